//! The demo's result, for people and for programs.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::content::{FRAME_BYTES, HEIGHT, WIDTH};
use super::part::Report;
use super::road::Road;
use super::{CAMERA_PER_SECOND, Outcome, Pass};
use crate::say::{bytes, harmless};

/// The result for people.
pub(super) fn render(outcome: &Outcome) -> String {
    let Outcome { frames_alone, tree_alone, frames, paced, tree, .. } = outcome;
    let mut text = String::new();
    let head = format!(
        "{} frames of {WIDTH} x {HEIGHT} RGB, {} each, from one process to another, as fast as they go",
        frames_alone.messages,
        bytes(FRAME_BYTES as u64)
    );
    let rows = [
        row(&format!("frames/s (a camera needs {CAMERA_PER_SECOND})"), frames, |pass| {
            format!("{:.0}", pass.received.messages as f64 / pass.seconds())
        }),
        row("CPU s per GB, both processes", frames, |pass| format!("{:.3}", pass.cpu_s_per_gb(frames_alone))),
        row("copied bytes per delivered byte", frames, copied),
        row("hand-over p50, at a camera's pace", paced, |pass| time(pass.received.p50_ns)),
        row("hand-over p99, at a camera's pace", paced, |pass| time(pass.received.p99_ns)),
        row("hash (xxh3-128)", frames, |pass| agrees(pass, frames_alone)),
    ];
    section(&mut text, &head, rows);
    let head = format!(
        "{} as a tar stream, {}, in messages of up to 1 MiB",
        harmless(&outcome.dir.display().to_string()),
        bytes(tree_alone.bytes)
    );
    let rows = [
        row("GB/s", tree, |pass| format!("{:.2}", pass.received.bytes as f64 * 1e-9 / pass.seconds())),
        row("CPU s per GB, both processes", tree, |pass| format!("{:.3}", pass.cpu_s_per_gb(tree_alone))),
        row("copied bytes per delivered byte", tree, copied),
        row("hash (xxh3-128)", tree, |pass| agrees(pass, tree_alone)),
    ];
    section(&mut text, &head, rows);
    let in_place: u64 = [frames, paced, tree].iter().map(|passes| passes[Road::Zcmi as usize].received.in_place).sum();
    let messages: u64 = [frames, paced, tree].iter().map(|passes| passes[Road::Zcmi as usize].received.messages).sum();
    // Writing to a string does not fail.
    let _infallible = write!(
        text,
        "CPU: subtracted is what was measured alone, per GB: {:.3} s for producing and {:.3} s for hashing the\n     \
         frames, {:.3} s for reading and {:.3} s for hashing the tree.\n\
         Copies: bytes through read(2) and write(2) between the two processes, which copy each byte once, by\n        \
         the kernel's count in /proc/PID/io, and bytes that zcmi copied, by the ledgers of both processes.\n        \
         Over zcmi {in_place} of {messages} messages were read at their place in the sender's memory.\n\
         Hashes: made by the receiver from the bytes where they lay.\n\
         This took {:.1} s, and nothing is left of it.\n\n\
         Next: tar c DIR | zcmi pub backup      and in another terminal      zcmi sub backup | tar x\n",
        per_gb(frames_alone.cpu_s - frames_alone.hash_cpu_s, frames_alone),
        per_gb(frames_alone.hash_cpu_s, frames_alone),
        per_gb(tree_alone.cpu_s - tree_alone.hash_cpu_s, tree_alone),
        per_gb(tree_alone.hash_cpu_s, tree_alone),
        outcome.seconds,
    );
    text
}

fn section<const N: usize>(text: &mut String, head: &str, rows: [[String; 4]; N]) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "pipe", "socket", "zcmi"]);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let _infallible = writeln!(text, "{head}\n{table}\n");
}

fn row(name: &str, passes: &[Pass], figure: impl Fn(&Pass) -> String) -> [String; 4] {
    [name.to_owned(), figure(&passes[0]), figure(&passes[1]), figure(&passes[2])]
}

fn copied(pass: &Pass) -> String {
    pass.copied().map_or_else(|| "n/a".into(), |copied| format!("{copied:.2}"))
}

fn agrees(pass: &Pass, alone: &Report) -> String {
    if pass.received.hash == alone.hash { "agrees".into() } else { "DIFFERS".into() }
}

fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..1_000_000 => format!("{:.1} us", ns as f64 * 1e-3),
        _ => format!("{:.2} ms", ns as f64 * 1e-6),
    }
}

fn per_gb(cpu_s: f64, report: &Report) -> f64 {
    cpu_s / (report.bytes as f64 * 1e-9)
}

/// The result for programs.
pub(super) fn document(outcome: &Outcome) -> Value {
    let load = |name: &str, passes: &[Pass], alone: Option<&Report>| {
        let roads: Vec<Value> = Road::ALL
            .iter()
            .zip(passes)
            .map(|(road, pass)| {
                json!({
                    "road": road.name(),
                    "messages": pass.received.messages,
                    "bytes": pass.received.bytes,
                    "seconds": pass.seconds(),
                    "messages_per_s": pass.received.messages as f64 / pass.seconds(),
                    "bytes_per_s": pass.received.bytes as f64 / pass.seconds(),
                    "cpu_s_per_gb": alone.map(|alone| pass.cpu_s_per_gb(alone)),
                    "copied_per_byte": pass.copied(),
                    "copied_kernel_per_byte": pass.copied_kernel(),
                    "copied_user_per_byte": pass.copied_user(),
                    "p50_ns": pass.received.p50_ns,
                    "p99_ns": pass.received.p99_ns,
                    "in_place": pass.received.in_place,
                    "xxh3_128": pass.received.hash,
                })
            })
            .collect();
        json!({
            "load": name,
            "produce_cpu_s_per_gb": alone.map(|alone| per_gb(alone.cpu_s - alone.hash_cpu_s, alone)),
            "hash_cpu_s_per_gb": alone.map(|alone| per_gb(alone.hash_cpu_s, alone)),
            "roads": roads,
        })
    };
    json!({
        "schema": "zcmi-demo/2",
        "dir": outcome.dir.display().to_string(),
        "seconds": outcome.seconds,
        "hashes_agree": outcome.hashes_agree(),
        "all_in_place": outcome.all_in_place(),
        "loads": [
            load("frames", &outcome.frames, Some(&outcome.frames_alone)),
            load("camera", &outcome.paced, None),
            load("tree", &outcome.tree, Some(&outcome.tree_alone)),
        ],
    })
}
