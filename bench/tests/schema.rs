//! Reports against the published schema, by a checker for the part of JSON Schema that the schema uses.

use std::time::Duration;

use serde_json::{Value, json};
use zcmi_bench::host::Host;
use zcmi_bench::net::denied::{Outcome, Outcomes};
use zcmi_bench::net::flips::{Flipped, Flips};
use zcmi_bench::regret::{Regret, RegretCell};
use zcmi_bench::report::{COMPLETIONS, FIGURES, Report, ReportError, Row};
use zcmi_bench::rounds::{Observation, merge};
use zcmi_bench::stats::Latencies;
use zcmi_bench::wires::WireKind;
use zcmi_net::path::PathKind;

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
                    Some("boolean") => value.is_boolean(),
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
            "minimum" | "exclusiveMinimum" | "maximum" => {
                let bound = rule.as_f64().ok_or("a bound is a number")?;
                let fits = |number: f64| match keyword.as_str() {
                    "minimum" => number >= bound,
                    "maximum" => number <= bound,
                    _ => number > bound,
                };
                if value.as_f64().is_some_and(|number| !fits(number)) {
                    return wrong(format!("{value} breaks {keyword} {rule}"));
                }
            }
            "minItems" | "maxItems" => {
                let bound = rule.as_u64().ok_or("a count is a number")?;
                let fits = |count: u64| if keyword == "minItems" { count >= bound } else { count <= bound };
                if value.as_array().is_some_and(|items| !fits(items.len() as u64)) {
                    return wrong(format!("{value} breaks {keyword} {rule}"));
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

/// Whether a document is of a shape that is published, and of the one that it names.
fn fits(document: &Value) -> Result<(), String> {
    let schema = schema();
    let shapes = schema["oneOf"].as_array().ok_or("the shapes are listed")?;
    let is_it = |shape: &&Value| {
        let pointer = shape["$ref"].as_str().and_then(|name| name.strip_prefix('#')).unwrap_or("?");
        schema.pointer(&format!("{pointer}/properties/schema/const")) == Some(&document["schema"])
    };
    let shape = shapes.iter().find(is_it).ok_or(format!("no shape is called {}", document["schema"]))?;
    check(&schema, shape, document, "document")?;
    check(&schema, &schema, document, "document")
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
    let mut silent = full.clone();
    silent.explain_completions("no completion came");
    full.copied_completions = Some(0.5);
    let mut rows = merge(vec![round(100), round(200), round(300)]);
    rows.extend([full, silent]);
    serde_json::from_str(&Report::new(Host::here(), rows).to_json().unwrap()).unwrap()
}

#[test]
fn produced_reports_fit_the_schema() {
    let report = report();
    assert!(report["rows"][0]["spread"].get("p50_ns").is_some(), "{report:#}");
    fits(&report).unwrap();
}

fn value(json: Result<String, ReportError>) -> Value {
    let json = json.unwrap();
    assert!(json.ends_with("}\n"), "a document ends with a line feed");
    serde_json::from_str(&json).unwrap()
}

fn flips() -> Value {
    let flipped = Flipped {
        wire: WireKind::Veth,
        flip: "XDP program attached",
        before: PathKind::Splice,
        after: PathKind::Write,
        best: vec![PathKind::Write, PathKind::UringSend],
        sends: 12,
        took: Duration::from_micros(2500),
        switches: 0,
        watched: Duration::from_millis(1400),
    };
    let skipped = [("ifb".to_owned(), "run as root".to_owned())].into();
    value(Flips { flips: vec![flipped], skipped }.to_json(&Host::here()))
}

fn denied() -> Value {
    let outcome = |denied, ratios| Outcome {
        denied,
        wire: WireKind::Lo,
        found: vec!["io_uring".into()],
        congestion: Some("cubic".into()),
        ratios,
    };
    let cases = vec![outcome("io_uring", Ok([1.01, 0.97])), outcome("optmem past 1 byte", Err("run as root".into()))];
    value(Outcomes { rounds: 11, length: Duration::from_secs(1), cases }.to_json(&Host::here()))
}

fn regret() -> Value {
    let cell = RegretCell {
        wire: "lo".into(),
        streams: 1,
        bytes: 1024,
        rounds: [4, 80],
        fastest: "write".into(),
        rate: [0.98, 0.9, 1.1],
        thriftiest: "splice".into(),
        thrift: [0.8, 0.7, 0.9],
        control: Some([[1.0, 0.9, 1.1], [0.9, 0.8, 1.0]]),
        medians: [("write".to_owned(), [1e9, 0.4])].into(),
    };
    let skipped = [("ifb".to_owned(), "run as root".to_owned())].into();
    value(Regret { cells: vec![cell], skipped }.to_json(&Host::here()))
}

#[test]
fn documents_without_rows_fit_the_schema_and_hold_their_figures() {
    for document in [flips(), denied(), regret()] {
        fits(&document).unwrap_or_else(|wrong| panic!("{wrong} in {document:#}"));
        assert!(document["host"]["kernel"].is_string(), "{document:#}");
    }
    let flip = &flips()["flips"][0];
    assert_eq!((&flip["took_ms"], &flip["best"]), (&json!(2.5), &json!(["write", "uring-send"])));
    assert_eq!((&flip["sends"], &flip["met"]), (&json!(12), &json!(true)));
    let denied = denied();
    assert_eq!((&denied["cases"][0]["cpu_ratio"], &denied["cases"][0]["met"]), (&json!(0.97), &json!(true)));
    assert_eq!(denied["cases"][1]["skipped"], "run as root");
    let regret = regret();
    assert_eq!(regret["standing"]["throughput"], json!({ "good_share": 1.0, "lowest": 0.98, "met": true }));
    assert_eq!(regret["standing"]["cpu"], json!({ "good_share": 0.0, "lowest": 0.8, "met": false }));
    assert_eq!(regret["control"]["cpu"], json!({ "good_share": 1.0, "lowest": 0.9 }));
    let nothing = value(Regret::default().to_json(&Host::here()));
    assert!(fits(&nothing).is_ok() && nothing.get("standing").is_none(), "{nothing:#}");
}

#[test]
fn the_schema_refuses_what_documents_without_rows_must_not_hold() {
    type Break = fn(&mut Value);
    type Whole = fn() -> Value;
    let breaks: [(Whole, &str, Break); 9] = [
        (flips, "no host", |flips| drop(flips.as_object_mut().unwrap().remove("host"))),
        (flips, "the name of another shape", |flips| flips["schema"] = json!("zcmi-bench-denied/1")),
        (flips, "no best path", |flips| flips["flips"][0]["best"] = json!([])),
        (flips, "an unknown member", |flips| flips["flips"][0]["took_s"] = json!(1)),
        (denied, "neither figures nor a reason", |denied| {
            denied["cases"][0].as_object_mut().unwrap().remove("cpu_ratio");
        }),
        (denied, "figures and a reason", |denied| denied["cases"][0]["skipped"] = json!("why")),
        (regret, "a standing of 2", |regret| regret["standing"]["cpu"]["good_share"] = json!(2)),
        (regret, "an interval of two numbers", |regret| regret["cells"][0]["rate"] = json!([1, 1])),
        (regret, "an empty reason", |regret| regret["skipped"]["ifb"] = json!("")),
    ];
    for (document, what, damage) in breaks {
        let mut document = document();
        damage(&mut document);
        assert!(fits(&document).is_err(), "{what} is accepted");
    }
}

#[test]
fn every_figure_is_in_the_schema_and_the_other_way_round() {
    let schema = schema();
    let names = schema.pointer("/$defs/figures_to/propertyNames/enum").unwrap();
    assert_eq!(names, &json!(FIGURES));
    let reasons = schema.pointer("/$defs/row/properties/na/propertyNames/enum").unwrap();
    assert_eq!(reasons, &json!([&FIGURES[..], &[COMPLETIONS]].concat()));
    let explained = schema.pointer("/$defs/row/allOf").unwrap().as_array().unwrap();
    assert_eq!(explained.len(), FIGURES.len());
}

#[test]
fn the_schema_refuses_what_a_report_must_not_hold() {
    type Break = fn(&mut Value);
    let breaks: [(&str, Break); 9] = [
        ("more completions than there were", |report| report["rows"][1]["copied_completions"] = json!(1.5)),
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
