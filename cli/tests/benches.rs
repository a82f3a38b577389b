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
    let rows = ["--row", "raw", "--row", "sendfile", "--row", "zerocopy", "--row", "adaptive", "--no-latency"];
    let measured = scratch.run(&[&["bench", "net", "--json", "-"][..], &cell, &rows].concat());
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
    assert!(row("adaptive")["cpu_s_per_gb"].as_f64().is_some_and(|cost| cost > 0.0));
    assert!(row("zerocopy")["na"]["bytes_per_s"].as_str().is_some_and(|reason| reason.contains("Unix sockets")));
}

#[test]
fn a_wire_or_size_that_does_not_exist_is_a_usage_error() {
    let scratch = Scratch::new();
    scratch.run(&["bench", "net", "--wire", "pigeon"]).expect_code(2).expect_words("the wires are lo, veth");
    scratch.run(&["bench", "net", "--bytes", "65"]).expect_code(2).expect_words("the sizes that are measured");
    scratch.run(&["bench", "net", "--row", "nothing"]).expect_code(2).expect_words("there are raw, write");
}

#[test]
fn a_document_that_cannot_be_written_is_told_before_anything_is_measured() {
    let scratch = Scratch::new();
    for (path, why) in [("nowhere/report.json", "No such file"), (".", "is a directory")] {
        let refused = scratch.run(&["bench", "ipc", "--json", path]);
        refused.expect_code(1).expect_words(&format!("{path} cannot be written: {why}"));
    }
}
