//! Reports against the published schema, by a checker for the part of JSON Schema that the schema uses.

use serde_json::{Value, json};
use zcmi_bench::host::Host;
use zcmi_bench::report::{FIGURES, Report, Row};
use zcmi_bench::rounds::{Observation, merge};
use zcmi_bench::stats::Latencies;

const SCHEMA: &str = include_str!("../../docs/bench-schema.json");

/// Checks `value` against `schema`; an unknown keyword is an error, so that none is passed over in silence.
fn check(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let wrong = |what: String| Err(format!("{at}: {what}"));
    let rules = schema.as_object().ok_or(format!("{at}: a schema is an object"))?;
    for (keyword, rule) in rules {
        match keyword.as_str() {
            "$schema" | "title" | "description" | "$defs" => {}
            "$ref" => {
                let pointer = rule.as_str().and_then(|name| name.strip_prefix('#')).unwrap_or("?");
                let target = root.pointer(pointer).ok_or(format!("{at}: no {rule}"))?;
                check(root, target, value, at)?;
            }
            "type" => {
                let fits = match rule.as_str() {
                    Some("object") => value.is_object(),
                    Some("array") => value.is_array(),
                    Some("string") => value.is_string(),
                    Some("number") => value.is_number(),
                    Some("integer") => value.is_u64() || value.is_i64(),
                    _ => return wrong(format!("unknown type {rule}")),
                };
                if !fits {
                    return wrong(format!("{value} is not of type {rule}"));
                }
            }
            "const" => {
                if value != rule {
                    return wrong(format!("{value} is not {rule}"));
                }
            }
            "enum" => {
                if !rule.as_array().is_some_and(|values| values.contains(value)) {
                    return wrong(format!("{value} is none of {rule}"));
                }
            }
            "minimum" | "exclusiveMinimum" => {
                let bound = rule.as_f64().ok_or("a bound is a number")?;
                let fits = |number: f64| if keyword == "minimum" { number >= bound } else { number > bound };
                if value.as_f64().is_some_and(|number| !fits(number)) {
                    return wrong(format!("{value} is below {keyword} {rule}"));
                }
            }
            "minLength" | "maxLength" => {
                let bound = rule.as_u64().ok_or("a length is a number")?;
                let fits = |len: u64| if keyword == "minLength" { len >= bound } else { len <= bound };
                if value.as_str().is_some_and(|text| !fits(text.chars().count() as u64)) {
                    return wrong(format!("{value} breaks {keyword} {rule}"));
                }
            }
            "required" => {
                let names = rule.as_array().into_iter().flatten().filter_map(Value::as_str);
                for name in names {
                    if value.as_object().is_some_and(|object| !object.contains_key(name)) {
                        return wrong(format!("{name} is missing"));
                    }
                }
            }
            "properties" => {
                for (name, sub) in rule.as_object().into_iter().flatten() {
                    if let Some(member) = value.get(name) {
                        check(root, sub, member, &format!("{at}.{name}"))?;
                    }
                }
            }
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                for (name, member) in value.as_object().into_iter().flatten() {
                    if known.is_some_and(|known| known.contains_key(name)) {
                        continue;
                    }
                    if rule == &json!(false) {
                        return wrong(format!("{name} is not known"));
                    }
                    check(root, rule, member, &format!("{at}.{name}"))?;
                }
            }
            "propertyNames" => {
                for name in value.as_object().into_iter().flat_map(|object| object.keys()) {
                    check(root, rule, &json!(name), at)?;
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, rule, item, &format!("{at}[{index}]"))?;
                }
            }
            "allOf" => {
                for sub in rule.as_array().into_iter().flatten() {
                    check(root, sub, value, at)?;
                }
            }
            "oneOf" => {
                let subs = rule.as_array().into_iter().flatten();
                let fitting = subs.filter(|sub| check(root, sub, value, at).is_ok()).count();
                if fitting != 1 {
                    return wrong(format!("{fitting} of {rule} fit"));
                }
            }
            other => return wrong(format!("this checker does not know the keyword {other}")),
        }
    }
    Ok(())
}

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

fn fits(report: &Value) -> Result<(), String> {
    let schema = schema();
    check(&schema, &schema, report, "report")
}

fn report() -> Value {
    let round = |ns: u64| {
        let mut latencies = Latencies::of_round_trips();
        (0..100).for_each(|_| latencies.record_ns(ns));
        let mut row = Row::new("ipc", "pubsub", 64);
        row.copied_user_per_byte = Some(0.0);
        Observation::of_latencies(row, latencies).explained("not measured by this row")
    };
    let mut full = Row::new("ipc", "stream", 4096);
    for name in FIGURES {
        *full.figure_mut(name).unwrap() = Some(1.5);
    }
    let mut rows = merge(vec![round(100), round(200), round(300)]);
    rows.push(full);
    serde_json::from_str(&Report::new(Host::here(), rows).to_json().unwrap()).unwrap()
}

#[test]
fn produced_reports_fit_the_schema() {
    let report = report();
    assert!(report["rows"][0]["spread"].get("p50_ns").is_some(), "{report:#}");
    fits(&report).unwrap();
}

#[test]
fn every_figure_is_in_the_schema_and_the_other_way_round() {
    let schema = schema();
    let names = schema.pointer("/$defs/figures_to/propertyNames/enum").unwrap();
    assert_eq!(names, &json!(FIGURES));
    let explained = schema.pointer("/$defs/row/allOf").unwrap().as_array().unwrap();
    assert_eq!(explained.len(), FIGURES.len());
}

#[test]
fn the_schema_refuses_what_a_report_must_not_hold() {
    type Break = fn(&mut Value);
    let breaks: [(&str, Break); 8] = [
        ("another version", |report| report["schema"] = json!("zcmi-bench/2")),
        ("a time of 0", |report| report["rows"][0]["p50_ns"] = json!(0)),
        ("a figure without value and reason", |report| {
            report["rows"][0].as_object_mut().unwrap().remove("p50_ns");
        }),
        ("a figure with value and reason", |report| report["rows"][0]["na"]["p50_ns"] = json!("why")),
        ("an empty reason", |report| report["rows"][0]["na"]["msgs_per_s"] = json!("")),
        ("an unknown figure", |report| report["rows"][0]["p60_ns"] = json!(1)),
        ("an unknown name in na", |report| report["rows"][0]["na"]["p60_ns"] = json!("why")),
        ("a host without a kernel", |report| {
            report["host"].as_object_mut().unwrap().remove("kernel");
        }),
    ];
    for (what, damage) in breaks {
        let mut report = report();
        damage(&mut report);
        assert!(fits(&report).is_err(), "{what} is accepted");
    }
}
