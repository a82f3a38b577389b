//! `zcmi bench`: the report in its two forms.

mod rig;

use rig::Scratch;

#[test]
fn a_bench_writes_a_table_and_the_same_as_a_document() {
    let scratch = Scratch::new();
    let measured = scratch.run(&["bench", "ipc", "--quick", "--row", "syscall", "--json", "report.json"]);
    measured.expect_code(0);
    if measured.stderr.starts_with("SKIP: ") {
        print!("{}", measured.stderr);
        return;
    }
    assert!(String::from_utf8_lossy(&measured.stdout).contains("syscall"));
    let text = std::fs::read(scratch.path("report.json")).expect("the report");
    let report: serde_json::Value = serde_json::from_slice(&text).expect("a document");
    assert_eq!(report["schema"], "zcmi-bench/1");
    assert_eq!(report["rows"][0]["row"], "syscall");
}

#[test]
fn a_row_that_does_not_exist_is_a_usage_error() {
    let scratch = Scratch::new();
    scratch.run(&["bench", "ipc", "--row", "nothing"]).expect_code(2).expect_words("there are floor");
}

#[test]
fn a_bench_of_wires_measures_paths_and_says_why_it_does_not() {
    let scratch = Scratch::new();
    let cell = ["--wire", "unix", "--bytes", "65536", "--streams", "1", "--rounds", "1", "--length", "30"];
    let rows = ["raw", "raw-multishot", "sendfile", "zerocopy", "adaptive"].map(|row| ["--row", row]).concat();
    let measured = scratch.run(&[&["bench", "net", "--no-latency", "--json", "-"][..], &cell, &rows].concat());
    measured.expect_code(0);
    if measured.stderr.starts_with("SKIP: ") {
        print!("{}", measured.stderr);
        return;
    }
    let report: serde_json::Value = serde_json::from_slice(&measured.stdout).expect("a document");
    let rows = report["rows"].as_array().expect("rows");
    let row = |name: &str| rows.iter().find(|row| row["row"] == name).expect("the row");
    assert_eq!((&row("raw")["wire"], &row("raw")["streams"]), (&"unix".into(), &1.into()));
    assert!(row("sendfile")["bytes_per_s"].as_f64().is_some_and(|rate| rate > 0.0));
    let copied = row("sendfile")["copied_kernel_per_byte"].as_f64().expect("a figure");
    assert!(
        (1.0..1.01).contains(&copied),
        "the receiver copies, and the sender frames without payload alone: {copied}"
    );
    assert_eq!(row("raw")["copied_kernel_per_byte"], 2.0);
    let multishot = row("raw-multishot");
    let measured = multishot["bytes_per_s"].as_f64().is_some_and(|rate| rate > 0.0);
    assert!(measured || multishot["na"]["bytes_per_s"].as_str().is_some(), "{multishot:#}");
    assert!(row("adaptive")["cpu_s_per_gb"].as_f64().is_some_and(|cost| cost > 0.0));
    assert!(row("sendfile")["na"]["copied_completions"].as_str().is_some_and(|reason| reason.contains("no sends by")));
    assert!(row("zerocopy")["na"]["bytes_per_s"].as_str().is_some_and(|reason| reason.contains("Unix sockets")));
}

#[test]
fn a_comparison_with_the_best_path_is_a_document_of_its_own() {
    let scratch = Scratch::new();
    let cell = ["--wire", "unix", "--bytes", "65536", "--streams", "1", "--rounds", "2", "--length", "30"];
    let measured = scratch.run(&[&["bench", "net", "--regret", "--json", "regret.json"][..], &cell].concat());
    measured.expect_code(0);
    if measured.stderr.starts_with("SKIP: ") {
        print!("{}", measured.stderr);
        return;
    }
    assert!(String::from_utf8_lossy(&measured.stdout).contains("of 1 cells have"));
    let text = std::fs::read(scratch.path("regret.json")).expect("the document");
    let document: serde_json::Value = serde_json::from_slice(&text).expect("a document");
    assert_eq!(document["schema"], "zcmi-bench-regret/1");
    assert_eq!((&document["cells"][0]["wire"], &document["cells"][0]["rounds"][1]), (&"unix".into(), &30.into()));
    assert!(document["host"]["kernel"].is_string() && document["standing"]["cpu"]["met"].is_boolean(), "{document:#}");
    assert_eq!(document["control"]["cells"], 1, "{document:#}");
}

#[test]
fn what_is_denied_is_denied_alone_and_all_together_and_both_rows_have_one_congestion_control() {
    let scratch = Scratch::new();
    let measured = scratch.run(&["bench", "net", "--denied", "--rounds", "1", "--length", "10", "--json", "-"]);
    measured.expect_code(0);
    if measured.stderr.starts_with("SKIP: ") {
        print!("{}", measured.stderr);
        return;
    }
    let document: serde_json::Value = serde_json::from_slice(&measured.stdout).expect("a document");
    assert_eq!((&document["schema"], &document["length_ms"]), (&"zcmi-bench-denied/1".into(), &10.into()));
    let cases = document["cases"].as_array().expect("cases");
    let found = |case: &serde_json::Value| -> Vec<String> {
        let found = case["found"].as_array().expect("what was found");
        found.iter().filter_map(serde_json::Value::as_str).map(str::to_owned).collect()
    };
    let nothing = found(cases.first().expect("a case"));
    let names: Vec<&str> = cases.iter().filter_map(|case| case["denied"].as_str()).collect();
    let mut measured = 0;
    for case in cases {
        let name = case["denied"].as_str().expect("a name");
        if let Some(reason) = case["skipped"].as_str() {
            println!("SKIP: {name}: {reason}");
            continue;
        }
        measured += 1;
        assert!(case["congestion"].is_string() && case["met"].is_boolean(), "{case:#}");
        let found = found(case);
        for denied in &names[1..names.len() - 1] {
            if (name, *denied) == ("capabilities", "memlock past 64 KiB") {
                // So it is where the host allows no more.
                continue;
            }
            let is_due = name == *denied || name == "all together" || nothing.iter().any(|other| other == denied);
            assert_eq!(found.iter().any(|found| found == denied), is_due, "without {name}: {denied} in {found:?}");
        }
    }
    assert!(measured > 0, "{document:#}");
}

#[test]
fn a_number_of_round_trips_is_taken_and_one_that_makes_no_sense_is_a_usage_error() {
    let scratch = Scratch::new();
    let refused = scratch.run(&["bench", "net", "--samples", "0"]);
    refused.expect_code(2).expect_words("0 is not in 1..=100000000");
    scratch.run(&["bench", "net", "--samples", "100000001"]).expect_code(2).expect_words("is not in 1..=100000000");
    scratch.run(&["bench", "net", "--samples", "9", "--no-latency"]).expect_code(2).expect_words("cannot be used with");
    let cell = ["--wire", "unix", "--bytes", "64", "--streams", "1", "--rounds", "2", "--length", "10"];
    let measured =
        scratch.run(&[&["bench", "net", "--json", "-", "--row", "write", "--samples", "77"][..], &cell].concat());
    measured.expect_code(0);
    if measured.stderr.starts_with("SKIP: ") {
        print!("{}", measured.stderr);
        return;
    }
    let report: serde_json::Value = serde_json::from_slice(&measured.stdout).expect("a document");
    assert_eq!((&report["rows"][0]["samples"], &report["rows"][0]["rounds"]), (&154.into(), &2.into()), "{report:#}");
}

#[test]
fn a_wire_or_size_that_does_not_exist_is_a_usage_error() {
    let scratch = Scratch::new();
    scratch.run(&["bench", "net", "--wire", "pigeon"]).expect_code(2).expect_words("the wires are lo, veth");
    scratch.run(&["bench", "net", "--bytes", "65"]).expect_code(2).expect_words("the sizes that are measured");
    scratch
        .run(&["bench", "net", "--row", "nothing"])
        .expect_code(2)
        .expect_words("there are raw, raw-multishot, write");
}

#[test]
fn a_document_that_cannot_be_written_is_told_before_anything_is_measured() {
    let scratch = Scratch::new();
    for (path, why) in [("nowhere/report.json", "No such file"), (".", "is a directory")] {
        let refused = scratch.run(&["bench", "ipc", "--json", path]);
        refused.expect_code(1).expect_words(&format!("{path} cannot be written: {why}"));
    }
}
