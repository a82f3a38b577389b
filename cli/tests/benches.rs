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
