//! The bounds of the hot path: publish and receive, counted instruction by instruction.
//!
//! What is counted is one call of `publish`, `try_receive` or `publish_batch`. The markers' own instructions, counted
//! between two with nothing in between, are subtracted.

use std::path::Path;

use super::decode::Trait;
use super::step::{self, Window};
use crate::{Outcome, workspace};

/// What a scenario may cost.
struct Bound {
    scenario: &'static str,
    /// Messages per window.
    messages: u64,
    instructions: u64,
    fences: u64,
}

const BOUNDS: [Bound; 8] = [
    Bound { scenario: "publish-inline", messages: 1, instructions: 60, fences: 0 },
    // 64 readers are attached, 63 of which never look: the publisher does not know them on its way.
    Bound { scenario: "publish-inline-64", messages: 1, instructions: 60, fences: 0 },
    Bound { scenario: "receive-inline", messages: 1, instructions: 60, fences: 0 },
    Bound { scenario: "publish-slot", messages: 1, instructions: 60, fences: 0 },
    Bound { scenario: "receive-slot", messages: 1, instructions: 60, fences: 0 },
    // Where a reader may park, one fence a publish or batch orders the stamps before the look at the wake word.
    Bound { scenario: "publish-inline-parked", messages: 1, instructions: 60, fences: 1 },
    Bound { scenario: "publish-batch", messages: 16, instructions: 60, fences: 1 },
    Bound { scenario: "publish-batch-slot", messages: 16, instructions: 60, fences: 1 },
];

/// Builds the program of scenarios, steps through each, and compares.
///
/// # Errors
/// If it cannot be built, run or traced.
pub(super) fn check() -> Outcome {
    let built = workspace::cargo()
        .args(["build", "--quiet", "--release", "--package", "zcmi-bench", "--bin", "hotpath"])
        .status()?;
    if !built.success() {
        return Err("the program of scenarios does not build".into());
    }
    let program = workspace::target_directory()?.join("release/hotpath");
    let empty = median(&program, "empty")?.instructions;
    let mut kept = true;
    for bound in BOUNDS {
        let window = median(&program, bound.scenario)?;
        let instructions = window.instructions.saturating_sub(empty).div_ceil(bound.messages);
        if instructions == 0 {
            return Err(format!("scenario {} did nothing between its markers", bound.scenario).into());
        }
        let counts = &window.counts;
        let lawful = instructions <= bound.instructions
            && counts.of(Trait::Fence) <= bound.fences
            && [Trait::Locked, Trait::Division, Trait::SystemCall].iter().all(|which| counts.of(*which) == 0);
        println!(
            "{} {:22} {instructions} instructions a message (at most {}), {} locked, {} fences (at most {}), \
             {} divisions, {} system calls",
            if lawful { "ok  " } else { "FAIL" },
            bound.scenario,
            bound.instructions,
            counts.of(Trait::Locked),
            counts.of(Trait::Fence),
            bound.fences,
            counts.of(Trait::Division),
            counts.of(Trait::SystemCall),
        );
        kept &= lawful;
    }
    Ok(kept)
}

/// The window in the middle of all, by the number of instructions.
fn median(program: &Path, scenario: &str) -> Result<Window, Box<dyn std::error::Error>> {
    let arguments = [scenario.to_owned()];
    let mut windows = step::windows(program, &arguments, "zcmi_xray_begin", "zcmi_xray_end", 200)?;
    if windows.is_empty() {
        return Err(format!("scenario {scenario} never came to its marker").into());
    }
    windows.sort_by_key(|window| window.instructions);
    Ok(windows.swap_remove(windows.len() / 2))
}
