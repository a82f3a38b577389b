//! The models of `zcmi-ring`: every schedule of a few threads, explored by loom.
//!
//! A model is a file `crates/ring/tests/loom*.rs`. Its head may set how it is explored, each on a line of its own:
//! `//! loom: preemptions = 3` bounds the preemptions (without it there is no bound), and `//! loom: long` leaves the
//! model out of a quick run. Otherwise `ZCMI_LONG=1` is set, for models that have wider bounds. Models are compiled
//! with `--cfg zcmi_loom` into a directory of their own, so that they and the ordinary build do not undo each other.

use std::error::Error;
use std::fs;
use std::time::Duration;

use crate::Outcome;
use crate::tally::Tally;
use crate::test::cargo_test;
use crate::workspace;

/// How long one model may take.
const LIMIT: Duration = Duration::from_secs(1800);

/// A model and how it is explored.
#[derive(Debug, PartialEq, Eq)]
struct Model {
    name: String,
    preemptions: Option<u32>,
    long: bool,
}

/// Explores all models, or the one that is named.
///
/// # Errors
/// If the models cannot be listed, or the argument names none.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let mut tally = Tally::default();
    let mut models = models()?;
    if let [wanted] = arguments {
        models.retain(|model| &model.name == wanted);
    }
    if models.is_empty() {
        return Err("there is no such model in crates/ring/tests".into());
    }
    explore(&models, false, &mut tally)?;
    println!("{tally}");
    Ok(tally.is_clean())
}

/// Explores every model; a quick run leaves out the long ones.
///
/// # Errors
/// If the models cannot be listed.
pub(crate) fn all(quick: bool, tally: &mut Tally) -> Result<(), Box<dyn Error>> {
    let (long, short): (Vec<Model>, Vec<Model>) = models()?.into_iter().partition(|model| quick && model.long);
    for model in long {
        let text = format!("model {}: left out of a quick run", model.name);
        println!("SKIP: {text}");
        tally.skip(text);
    }
    explore(&short, quick, tally)
}

/// Explores `models`, one after the other, with narrower bounds if it is to be quick.
fn explore(models: &[Model], quick: bool, tally: &mut Tally) -> Result<(), Box<dyn Error>> {
    let flags = format!("{} --cfg zcmi_loom", std::env::var("RUSTFLAGS").unwrap_or_default());
    let target = workspace::target_directory()?.join("loom");
    for model in models {
        let mut cargo = workspace::cargo();
        cargo.args(["test", "--package", "zcmi-ring", "--release", "--test", &model.name, "--", "--show-output"]);
        cargo.env("RUSTFLAGS", flags.trim()).env("CARGO_TARGET_DIR", &target);
        cargo.env(if quick { "ZCMI_QUICK" } else { "ZCMI_LONG" }, "1");
        match model.preemptions {
            Some(bound) => cargo.env("LOOM_MAX_PREEMPTIONS", bound.to_string()),
            None => cargo.env_remove("LOOM_MAX_PREEMPTIONS"),
        };
        cargo_test(&format!("model {}", model.name), &mut cargo, LIMIT, tally);
    }
    Ok(())
}

/// The models there are, by name.
fn models() -> Result<Vec<Model>, Box<dyn Error>> {
    let directory = workspace::root().join("crates/ring/tests");
    let mut models = Vec::new();
    // Before the first model there is no such directory, and so no model.
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        if name.starts_with("loom") && path.extension().is_some_and(|extension| extension == "rs") {
            models.push(model(name, &fs::read_to_string(&path)?)?);
        }
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(models)
}

/// The model `name`, from what its head says.
fn model(name: &str, source: &str) -> Result<Model, Box<dyn Error>> {
    let mut model = Model { name: name.to_string(), preemptions: None, long: false };
    let head = source.lines().take_while(|line| line.starts_with("//!"));
    for setting in head.filter_map(|line| line.strip_prefix("//! loom: ")) {
        match setting.split_once(" = ") {
            Some(("preemptions", bound)) => model.preemptions = Some(bound.trim().parse()?),
            None if setting.trim() == "long" => model.long = true,
            _ => return Err(format!("{name}.rs: `{setting}` is no setting of a model").into()),
        }
    }
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_model_sets_how_it_is_explored() {
        let source = "//! Two readers.\n//! loom: preemptions = 3\n//! loom: long\n\nfn main() {}\n";
        let expected = Model { name: "loom_a".to_string(), preemptions: Some(3), long: true };
        assert_eq!(model("loom_a", source).expect("the head is right"), expected);
    }

    #[test]
    fn a_misspelt_setting_is_refused() {
        assert!(model("loom_a", "//! loom: premptions = 3\n").is_err());
    }
}
