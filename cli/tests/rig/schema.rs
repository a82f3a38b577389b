//! Documents against docs/cli-schema.json, by a checker for the part of JSON Schema that it uses.

use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../../../docs/cli-schema.json");

/// Demands that a document fits the part of the schema that has this name.
#[track_caller]
pub(crate) fn expect_document(document: &Value, name: &str) {
    let root: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let checked = check(&root, &json!({ "$ref": format!("#/$defs/{name}") }), document, name);
    assert!(checked.is_ok(), "{checked:?} in {document:#}");
}

/// Checks `value` against `rules`; an unknown keyword is an error, so that none is passed over in silence.
fn check(root: &Value, rules: &Value, value: &Value, at: &str) -> Result<(), String> {
    let wrong = |what: String| Err(format!("{at}: {what}"));
    for (keyword, rule) in rules.as_object().ok_or("a schema is an object")? {
        match keyword.as_str() {
            "description" => {}
            "$ref" => {
                let target = rule.as_str().and_then(|name| root.pointer(name.strip_prefix('#')?));
                check(root, target.ok_or(format!("{at}: no {rule}"))?, value, at)?;
            }
            "type" => {
                let kinds = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                let is = |kind: &Value| match kind.as_str() {
                    Some("object") => value.is_object(),
                    Some("array") => value.is_array(),
                    Some("string") => value.is_string(),
                    Some("boolean") => value.is_boolean(),
                    Some("number") => value.is_number(),
                    Some("integer") => value.is_u64() || value.is_i64(),
                    Some("null") => value.is_null(),
                    _ => false,
                };
                if !kinds.iter().any(is) {
                    return wrong(format!("{value} is no {rule}"));
                }
            }
            "const" if value == rule => {}
            "enum" if rule.as_array().is_some_and(|values| values.contains(value)) => {}
            "const" | "enum" => return wrong(format!("{value} is not of {rule}")),
            "minimum" => {
                if value.as_f64().is_some_and(|number| Some(number) < rule.as_f64()) {
                    return wrong(format!("{value} is below {rule}"));
                }
            }
            "required" => {
                let names = rule.as_array().into_iter().flatten().filter_map(Value::as_str);
                let missing = names.into_iter().find(|name| value.is_object() && value.get(name).is_none());
                if let Some(name) = missing {
                    return wrong(format!("{name} is missing"));
                }
            }
            "additionalProperties" => {
                let known = rules.get("properties").and_then(Value::as_object).ok_or("no properties")?;
                let odd = value.as_object().and_then(|object| object.keys().find(|name| !known.contains_key(*name)));
                if let Some(name) = odd {
                    return wrong(format!("{name} is not known"));
                }
            }
            "properties" => {
                for (name, sub) in rule.as_object().into_iter().flatten() {
                    if let Some(member) = value.get(name) {
                        check(root, sub, member, &format!("{at}.{name}"))?;
                    }
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, rule, item, &format!("{at}[{index}]"))?;
                }
            }
            other => return wrong(format!("this checker does not know the keyword {other}")),
        }
    }
    Ok(())
}
