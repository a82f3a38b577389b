//! Checks of Rust files.

use super::{File, Finding, has_word, numbered};

/// Whether unsafe code may lie in `file`.
fn may_be_unsafe(file: &File) -> bool {
    matches!(file.name(), "sys.rs" | "raw.rs")
}

/// Unsafe code, and leave for it, are in `sys.rs` and `raw.rs` only.
pub(super) fn unsafe_has_its_files(files: &[File]) -> Vec<Finding> {
    let others = files.iter().filter(|file| file.is_rust() && !may_be_unsafe(file));
    let bad = |line: &str| {
        let leave = ["allow(", "expect("].iter().any(|word| line.contains(word)) && has_word(line, "unsafe_code");
        leave || has_word(line, "unsafe")
    };
    lines(others, bad, "unsafe code belongs in a file called sys.rs (kernel, C) or raw.rs (pointers)")
}

/// `sys.rs` and `raw.rs` open with a module comment.
pub(super) fn unsafe_files_open_with_a_comment(files: &[File]) -> Vec<Finding> {
    let bare = |file: &&File| file.is_rust() && may_be_unsafe(file) && !file.text.starts_with("//! ");
    files.iter().filter(bare).map(|file| file.at(1, "open with a comment on what every block relies on")).collect()
}

/// The roots of the programs and of the command line forbid unsafe code.
pub(super) fn front_ends_forbid_unsafe(files: &[File]) -> Vec<Finding> {
    let is_root = |file: &&File| {
        let front = file.path.starts_with("cli/") || file.path.starts_with("programs/");
        front && (file.path.ends_with("src/main.rs") || file.path.ends_with("src/lib.rs"))
    };
    let bare = files.iter().filter(is_root).filter(|file| !file.code.contains("#![forbid(unsafe_code)]"));
    bare.map(|file| file.at(1, "say #![forbid(unsafe_code)]")).collect()
}

/// Atomics are those of `zcmi_ring::sync`, so that models can take their place. An import of others stands below a
/// comment that begins with `Not from sync:` and says why; tests may use what they like.
pub(super) fn atomics_have_one_source(files: &[File]) -> Vec<Finding> {
    let ours = files.iter().filter(|file| {
        let apart = ["tests/", "bench/", "cli/", "xtask/"].iter().any(|start| file.path.starts_with(start));
        file.is_rust() && !apart && !is_test_file(file) && file.path != "crates/ring/src/sync.rs"
    });
    let mut findings = Vec::new();
    for file in ours {
        let (text, code): (Vec<&str>, Vec<&str>) = (file.text.lines().collect(), file.code.lines().collect());
        for (index, line) in code.iter().enumerate().take(first_test_line(&code)) {
            let comment = (0..index).rev().map(|above| text[above].trim()).take_while(|line| line.starts_with("//"));
            let explained = comment.into_iter().any(|line| line.starts_with("// Not from sync:"));
            if has_word(line, "atomic") && !explained {
                let what = "take atomics from zcmi_ring::sync, or say `// Not from sync: why` above";
                findings.push(file.at(index + 1, what));
            }
        }
    }
    findings
}

/// An ordering stronger than relaxed stands below a comment that names its edge, and a module head lists the edge.
pub(super) fn orderings_name_their_edge(files: &[File]) -> Vec<Finding> {
    let ring = || files.iter().filter(|file| file.is_rust() && file.path.starts_with("crates/ring/src/"));
    let heads = ring().flat_map(|file| file.text.lines().filter(|line| line.trim_start().starts_with("//!")));
    let listed: Vec<&str> = heads.flat_map(edges).collect();
    let mut findings = Vec::new();
    for file in ring() {
        let (text, code): (Vec<&str>, Vec<&str>) = (file.text.lines().collect(), file.code.lines().collect());
        for index in 0..first_test_line(&code) {
            if !is_strong(code[index]) || code[index].contains("use ") {
                continue;
            }
            match named_above(&text, &code, index) {
                None => findings.push(file.at(index + 1, "name the edge of this ordering in a comment above it")),
                Some(names) if !names.iter().any(|name| listed.contains(name)) => {
                    findings.push(file.at(index + 1, format!("no module head lists the edge {}", names.join(", "))));
                }
                Some(_) => {}
            }
        }
    }
    findings
}

/// Whether a line of code names an ordering stronger than relaxed.
fn is_strong(code: &str) -> bool {
    ["Acquire", "Release", "AcqRel", "SeqCst"].iter().any(|word| has_word(code, word))
}

/// The edges named in the comment above the statement that the line at `index` belongs to, or beside it. One comment
/// may stand for several such statements, one right below the other.
fn named_above<'a>(text: &[&'a str], code: &[&str], index: usize) -> Option<Vec<&'a str>> {
    let comment = |line: usize| text[line].split_once("//").map(|(_, comment)| comment);
    let mut names: Vec<&str> = comment(index).into_iter().flat_map(edges).collect();
    let mut line = index;
    // Up to the first line of the statement ...
    let goes_on = |above: &str| {
        let ended = above.trim_end().ends_with([';', '{', '}']);
        !above.trim().is_empty() && (!ended || is_strong(above))
    };
    while line > 0 && goes_on(code[line - 1]) {
        line -= 1;
    }
    // ... and then through the comment above it.
    let is_remark = |line: &str| line.trim_start().starts_with("//") && !line.trim_start().starts_with("//!");
    while line > 0 && is_remark(text[line - 1]) {
        line -= 1;
        names.extend(comment(line).into_iter().flat_map(edges));
    }
    (!names.is_empty()).then_some(names)
}

/// The names of edges in a comment: one or two capital letters and a number, such as P1.
fn edges(comment: &str) -> impl Iterator<Item = &str> {
    comment.split(|character: char| !character.is_ascii_alphanumeric()).filter(|word| {
        let digits = word.trim_start_matches(|character: char| character.is_ascii_uppercase());
        let letters = word.len() - digits.len();
        (1..=2).contains(&letters) && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Tests wait for what happens, and do not sleep until it probably has.
pub(super) fn tests_do_not_sleep(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let code: Vec<&str> = file.code.lines().collect();
        let start = if is_test_file(file) { 0 } else { first_test_line(&code) };
        for (index, line) in code.iter().enumerate().skip(start) {
            if has_word(line, "thread::sleep") || has_word(line, "nanosleep") {
                findings.push(file.at(index + 1, "wait for the event, with a bound, instead of sleeping"));
            }
        }
    }
    findings
}

/// Every layout that lies in shared memory is described below `docs/layout`.
pub(super) fn layouts_have_pictures(files: &[File]) -> Vec<Finding> {
    let pictures: Vec<&str> = files
        .iter()
        .filter(|file| file.path.starts_with("docs/layout/") && file.is_document())
        .map(|file| file.text.as_str())
        .collect();
    let sources = files.iter().filter(|file| file.path.starts_with("crates/") && file.path.contains("/src/"));
    let shared: Vec<String> = sources
        .clone()
        .flat_map(|file| file.code.lines())
        .filter_map(|line| line.split_once("Shared for "))
        .map(|(_, rest)| identifier(rest).to_string())
        .collect();
    let mut findings = Vec::new();
    for file in sources {
        let mut in_c_order = false;
        for (number, line) in numbered(&file.code) {
            in_c_order |= line.contains("#[repr(C");
            let Some((before, rest)) = line.split_once("struct ") else { continue };
            let name = identifier(rest);
            let public = before.trim_start().starts_with("pub");
            let here = public && std::mem::take(&mut in_c_order) && shared.iter().any(|other| other == name);
            if here && !pictures.iter().any(|picture| has_word(picture, name)) {
                findings.push(file.at(number, format!("{name} lies in shared memory: draw it in docs/layout")));
            }
        }
    }
    findings
}

/// The identifier at the start of `text`, the last part of it if it is a path.
fn identifier(text: &str) -> &str {
    let path = text.split(|character: char| !(character.is_alphanumeric() || "_:".contains(character))).next();
    path.unwrap_or_default().rsplit("::").next().unwrap_or_default()
}

/// Whether `file` holds nothing but tests.
fn is_test_file(file: &File) -> bool {
    file.path.starts_with("tests/") || file.path.contains("/tests/") || file.path.contains("/benches/")
}

/// The line (counted from 0) at which the unit tests begin, or the number of lines.
fn first_test_line(code: &[&str]) -> usize {
    let gate = |line: &&str| line.trim_start().starts_with("#[cfg(") && has_word(line, "test");
    let opens = |index: usize| code.get(index + 1).is_some_and(|next| next.trim_start().starts_with("mod "));
    (0..code.len()).find(|&index| gate(&code[index]) && opens(index)).unwrap_or(code.len())
}

/// A finding for each line of code that is `bad`.
fn lines<'a>(files: impl Iterator<Item = &'a File>, bad: impl Fn(&str) -> bool, what: &str) -> Vec<Finding> {
    files
        .flat_map(|file| numbered(&file.code).map(move |(number, line)| (file, number, line)))
        .filter(|(_, _, line)| bad(line))
        .map(|(file, number, _)| file.at(number, what))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::tells_apart;
    use super::*;

    #[test]
    fn unsafe_code_elsewhere_is_found() {
        let good = &[("crates/a/src/raw.rs", "unsafe {}"), ("crates/a/src/b.rs", "// unsafe\n#![deny(unsafe_code)]")];
        tells_apart(unsafe_has_its_files, &[("crates/a/src/b.rs", "unsafe {}")], good);
        tells_apart(unsafe_has_its_files, &[("crates/a/src/b.rs", "#![allow(unsafe_code)]")], good);
    }

    #[test]
    fn an_unsafe_file_without_a_comment_is_found() {
        let check = unsafe_files_open_with_a_comment;
        tells_apart(check, &[("a/sys.rs", "use x;")], &[("a/sys.rs", "//! Calls.\nuse x;"), ("a/b.rs", "use x;")]);
    }

    #[test]
    fn a_front_end_that_could_be_unsafe_is_found() {
        let good = "//! Doc.\n#![forbid(unsafe_code)]\n";
        tells_apart(front_ends_forbid_unsafe, &[("cli/src/main.rs", "//! D\n")], &[("cli/src/main.rs", good)]);
    }

    #[test]
    fn atomics_of_another_source_are_found() {
        let text = "use std::sync::{Arc, atomic::AtomicU64};";
        let told = format!("// Not from sync: a static that orders nothing,\n// and no model runs it.\n{text}");
        let unit = format!("#[cfg(test)]\nmod tests {{\n    {text}\n}}\n");
        let good = &[
            ("crates/ring/src/sync.rs", text),
            ("crates/ipc/tests/a.rs", text),
            ("bench/src/lib.rs", text),
            ("crates/ipc/src/b.rs", &told),
            ("crates/ipc/src/c.rs", &unit),
        ];
        tells_apart(atomics_have_one_source, &[("crates/ipc/src/a.rs", text)], good);
    }

    #[test]
    fn an_ordering_without_its_edge_is_found() {
        let path = "crates/ring/src/lane.rs";
        let good = "//! Edges: P1 publishes.\nuse x::Ordering::Release;\n// P1 (Release): publishes the\n// entry.\n\
            a.b\n    .store(1, Ordering::Release);\na.load(Relaxed);\n#[cfg(test)]\nmod tests { f(SeqCst); }\n";
        let other = "//! Edges: P1.\n// P1: publishes.\na.store(1, Release);\nb();\nb.store(1, Release);\n";
        tells_apart(orderings_name_their_edge, &[(path, other)], &[(path, good)]);
        let unlisted = "//! Edges: P1.\n// P2: publishes.\na.store(1, Release);\n";
        tells_apart(orderings_name_their_edge, &[(path, unlisted)], &[(path, good)]);
    }

    #[test]
    fn a_test_that_sleeps_is_found() {
        let text = "std::thread::sleep(d);";
        let unit = format!("fn f() {{ {text} }}\n#[cfg(test)]\nmod tests {{}}\n");
        tells_apart(tests_do_not_sleep, &[("tests/src/a.rs", text)], &[("crates/a/src/b.rs", &unit)]);
        let bad = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{ {text} }}\n");
        tells_apart(tests_do_not_sleep, &[("crates/a/src/b.rs", &bad)], &[("crates/a/src/b.rs", &unit)]);
    }

    #[test]
    fn a_layout_without_a_picture_is_found() {
        let source = "/// Doc.\n#[repr(C)]\n#[derive(Debug)]\npub struct Entry {\n}\n// SAFETY: atomics.\n\
            impl Shared for Entry {}\n";
        let file = ("crates/ring/src/lane.rs", source);
        tells_apart(layouts_have_pictures, &[file], &[file, ("docs/layout/lane.md", "The `Entry` is 64 bytes.")]);
    }
}
