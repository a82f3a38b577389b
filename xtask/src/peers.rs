//! `cargo xtask peers`: other systems and zcmi, measured in turns on one machine.
//!
//! `bench/peers` is a workspace of its own, so that what it depends on is never part of the default build. Each round
//! runs its program `peers-SUITE` and then `zcmi bench SUITE` (for `net` `zcmi bench connections` too), in alternating
//! order, so that a drift of the machine meets both. Both write a document of the schema `zcmi-bench/1`; what is
//! printed is, for each row, size and figure, the median of the rounds and their range, and then what the [targets]
//! say. The suite `send` is all in `peers-send`, which starts `zcmi send` and `zcmi recv` itself.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Outcome;
use crate::command::{self, Ended};
use crate::targets::{self, Turn};
use crate::{packages, workspace};

/// How long one build, or one program of one round, may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    suite: String,
    rounds: usize,
    out: Option<PathBuf>,
    /// Arguments for both programs.
    passed_on: Vec<String>,
}

impl Plan {
    /// Reads `SUITE [--rounds N] [--out FILE] [-- ARGS]`.
    fn parse(arguments: &[String]) -> Result<Self, Box<dyn Error>> {
        let mut rest = arguments.iter();
        let suite = rest
            .next()
            .filter(|suite| ["ipc", "net", "send"].contains(&suite.as_str()))
            .ok_or("name the suite: ipc, net or send")?
            .clone();
        let mut plan = Self { suite, rounds: 10, out: None, passed_on: Vec::new() };
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--rounds" => plan.rounds = rest.next().ok_or("--rounds needs a number")?.parse()?,
                "--out" => plan.out = Some(rest.next().ok_or("--out needs a file")?.into()),
                "--" => plan.passed_on = rest.by_ref().cloned().collect(),
                other => return Err(format!("`{other}` is no argument of peers").into()),
            }
        }
        // A turn is a round; the figures are those of the turns.
        if plan.suite == "net" && !plan.passed_on.iter().any(|argument| argument.starts_with("--rounds")) {
            plan.passed_on.extend(["--rounds", "1"].map(String::from));
        }
        if plan.rounds == 0 {
            return Err("at least one round is needed".into());
        }
        Ok(plan)
    }

    /// Of the arguments for the suite `net` those that the suite `connections` has too.
    fn for_connections(&self) -> Vec<String> {
        let quick = self.passed_on.iter().filter(|argument| *argument == "--quick");
        ["--rounds", "1"].into_iter().map(String::from).chain(quick.cloned()).collect()
    }
}

/// Builds both programs and measures them in turns.
///
/// # Errors
/// If an argument is wrong, a program does not build, or one fails in a round.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let plan = Plan::parse(arguments)?;
    let root = workspace::root();
    let peers = root.join("bench/peers");
    if !peers.join("Cargo.toml").is_file() {
        return Err("bench/peers is not part of this tree".into());
    }
    if plan.suite != "ipc" {
        packages::install_peers();
    }
    let theirs_target = peers.join("target");
    let mut build = workspace::cargo();
    build.args(["build", "--release"]).current_dir(&peers).env("CARGO_TARGET_DIR", &theirs_target);
    must_end_well("the build of bench/peers", &mut build)?;
    let mut build = workspace::cargo();
    must_end_well("the build of zcmi", build.args(["build", "--release", "--package", "zcmi-cli"]))?;

    let theirs = theirs_target.join("release").join(format!("peers-{}", plan.suite));
    let ours = workspace::target_directory()?.join("release/zcmi");
    let scratch = std::env::temp_dir().join(format!("zcmi-peers-{}", std::process::id()));
    fs::create_dir(&scratch)?;
    let measured = measure(&plan, &theirs, &ours, &scratch);
    fs::remove_dir_all(&scratch)?;
    let turns = measured?;

    let rounds: Vec<&Value> = turns.iter().flat_map(|turn| [&turn.ours, &turn.theirs]).collect();
    let rows: Vec<&Value> = rounds.iter().filter_map(|document| document["rows"].as_array()).flatten().collect();
    for (figure, values) in collect(&rows) {
        println!("{figure}: {}", spread(values));
    }
    let (lines, missed) = targets::compare(&plan.suite, &turns);
    println!("\nfigures and targets; medians of the turns' own ratios, and their middle half:");
    lines.iter().for_each(|line| println!("{line}"));
    println!("{} of {} targets met", lines.len() - missed, lines.len());
    // To be missed is a result, and no failure of the measurement.
    if let Some(out) = &plan.out {
        fs::write(out, serde_json::to_string_pretty(&json!({ "rounds": rounds }))?)?;
    }
    Ok(true)
}

/// Runs all rounds and returns the documents they wrote.
fn measure(plan: &Plan, theirs: &Path, ours: &Path, scratch: &Path) -> Result<Vec<Turn>, Box<dyn Error>> {
    let mut measured = Vec::new();
    for round in 0..plan.rounds {
        let run = |program: &Path, suite: Option<&str>, arguments: &[String]| -> Result<Value, Box<dyn Error>> {
            // Its own each time, so that one that skips is not taken for another.
            let file = scratch.join(format!("{round}-{}.json", suite.unwrap_or("theirs")));
            let mut command = Command::new(program);
            command.args(suite.map(|suite| ["bench", suite]).into_iter().flatten());
            command.args(arguments).arg("--json").arg(&file);
            must_end_well(&format!("round {} of {}", round + 1, program.display()), &mut command)?;
            let document: Value = serde_json::from_slice(&fs::read(&file)?)?;
            if document["schema"] != "zcmi-bench/1" {
                return Err(format!("{} wrote the schema {}", program.display(), document["schema"]).into());
            }
            Ok(document)
        };
        if plan.suite == "send" {
            let with = ["--zcmi".into(), ours.to_string_lossy().into_owned()];
            let reversed = (round % 2 == 1).then(|| "--reversed".to_string());
            let arguments: Vec<String> = plan.passed_on.iter().cloned().chain(with).chain(reversed).collect();
            measured.push(Turn { ours: json!({ "rows": [] }), theirs: run(theirs, None, &arguments)? });
            continue;
        }
        let run_theirs = || run(theirs, None, &plan.passed_on);
        let run_ours = || -> Result<Value, Box<dyn Error>> {
            let mut document = run(ours, Some(&plan.suite), &plan.passed_on)?;
            if plan.suite == "net" {
                // The other program has the rows of both suites.
                let more = run(ours, Some("connections"), &plan.for_connections())?;
                if let (Some(rows), Some(more)) = (document["rows"].as_array_mut(), more["rows"].as_array()) {
                    rows.extend(more.iter().cloned());
                }
            }
            Ok(document)
        };
        let turn = if round % 2 == 0 {
            let theirs = run_theirs()?;
            Turn { ours: run_ours()?, theirs }
        } else {
            Turn { ours: run_ours()?, theirs: run_theirs()? }
        };
        measured.push(turn);
    }
    Ok(measured)
}

/// Runs `command` and turns every end but a good one into an error.
fn must_end_well(name: &str, command: &mut Command) -> Result<(), Box<dyn Error>> {
    match command::run(command, LIMIT, |_| ())? {
        Ended::Well => Ok(()),
        Ended::Badly => Err(format!("{name} failed").into()),
        Ended::Late => Err(format!("{name} was not done after {} s", LIMIT.as_secs()).into()),
    }
}

/// The values of every figure over all rounds, by row, size and name of the figure.
fn collect(rows: &[&Value]) -> BTreeMap<String, Vec<f64>> {
    let mut figures: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for row in rows {
        let Some(fields) = row.as_object() else { continue };
        let mut name = row["row"].as_str().unwrap_or("?").to_owned();
        if let (Some(wire), Some(streams)) = (row["wire"].as_str(), row["streams"].as_u64()) {
            name += &format!(" {wire} x{streams}");
        }
        for (field, value) in fields.iter().filter(|(field, _)| !["bytes", "streams"].contains(&field.as_str())) {
            if let Some(number) = value.as_f64() {
                figures
                    .entry(format!("{name} {:>8} B {field}", row["bytes"].as_u64().unwrap_or(0)))
                    .or_default()
                    .push(number);
            }
        }
    }
    figures
}

/// The median of `values`, their range and their number.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[0], values[values.len() - 1]);
    let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
    format!("median {median:.3}, {low:.3} to {high:.3} in {} rounds", values.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_behind_two_dashes_are_passed_on() {
        let text = ["ipc", "--rounds", "3", "--", "--row", "pubsub"].map(String::from);
        let plan = Plan::parse(&text).expect("well formed");
        assert_eq!((plan.rounds, plan.passed_on), (3, vec!["--row".to_string(), "pubsub".to_string()]));
        assert!(Plan::parse(&["other".to_string()]).is_err());
        let plan = Plan::parse(&["send", "--", "--bytes", "1048576"].map(String::from)).expect("well formed");
        assert_eq!(plan.passed_on, ["--bytes", "1048576"]);
        let plan = Plan::parse(&["net", "--", "--quick"].map(String::from)).expect("well formed");
        assert_eq!(plan.passed_on, ["--quick", "--rounds", "1"]);
        assert_eq!(plan.for_connections(), ["--rounds", "1", "--quick"]);
    }

    #[test]
    fn figures_are_collected_over_rounds() {
        let rows = [3.0, 1.0, 2.0].map(|p50| json!({ "suite": "ipc", "row": "pubsub", "bytes": 64, "p50_ns": p50 }));
        let figures = collect(&rows.iter().collect::<Vec<_>>());
        let values = figures.get("pubsub       64 B p50_ns").expect("the figure is there").clone();
        assert_eq!(spread(values), "median 2.000, 1.000 to 3.000 in 3 rounds");
    }
}
