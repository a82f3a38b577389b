//! Checks of any text.
//!
//! The words that are looked for are put together from parts, so that this file does not find itself.

use super::{File, Finding, has_word, numbered};

/// Files that programs write.
fn is_generated(file: &File) -> bool {
    file.name() == "Cargo.lock" || file.path.ends_with(".json") || file.path.contains("proptest-regressions")
}

/// No file has more than a thousand lines.
pub(super) fn files_are_short(files: &[File]) -> Vec<Finding> {
    let long = |file: &&File| !is_generated(file) && file.text.lines().count() > 1000;
    files.iter().filter(long).map(|file| file.at(1001, "split this file: it is past 1,000 lines")).collect()
}

/// Nothing is put off with a mark in the text.
pub(super) fn nothing_is_put_off(files: &[File]) -> Vec<Finding> {
    const MARKS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    const MACROS: &[&str] = &[concat!("to", "do!"), concat!("unimple", "mented!")];
    let marks: Vec<&str> = [MARKS, MACROS].concat();
    each_line(files, |line| marks.iter().find(|mark| has_word(line, mark)).map(|mark| format!("`{mark}`: do it")))
}

/// No line ends with a blank, and the last one ends.
pub(super) fn lines_end_clean(files: &[File]) -> Vec<Finding> {
    let mut findings = each_line(files, |line| line.ends_with([' ', '\t', '\r']).then(|| "a blank at the end".into()));
    let open = files.iter().filter(|file| !is_generated(file) && !file.text.is_empty() && !file.text.ends_with('\n'));
    findings.extend(open.map(|file| file.at(file.text.lines().count(), "the last line has no end")));
    findings
}

/// Lines of source, comments included, are at most 120 characters wide; documents may be wider.
pub(super) fn lines_are_narrow(files: &[File]) -> Vec<Finding> {
    let wide = |line: &str| line.chars().count() > 120;
    let sources = files.iter().filter(|file| file.is_rust() || file.path.starts_with(".ci/"));
    let lines = sources.flat_map(|file| numbered(&file.text).map(move |(number, line)| (file, number, line)));
    lines.filter(|line| wide(line.2)).map(|(file, number, _)| file.at(number, "wider than 120 characters")).collect()
}

/// No path of the machine that something was built on, and no host that packages came from.
pub(super) fn no_machine_is_named(files: &[File]) -> Vec<Finding> {
    const NAMES: &[&str] = &[
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("crates", ".io"),
        concat!("arti", "factory"),
    ];
    // The registry's own name, which cargo writes into the lock file for everyone.
    let source = concat!("registry+https://github.com/rust-lang/crates", ".io-index");
    let mut findings = Vec::new();
    for file in files {
        for (number, line) in numbered(&file.text) {
            let line = if file.name() == "Cargo.lock" { line.replace(source, "") } else { line.to_string() };
            if let Some(name) = NAMES.iter().find(|name| line.contains(**name)) {
                findings.push(file.at(number, format!("`{name}` belongs to a machine, not to the project")));
            }
        }
    }
    findings
}

/// No word that stands for unfinished work, or speaks of how the text came about.
pub(super) fn words_are_plain(files: &[File]) -> Vec<Finding> {
    const WORDS: &[&str] = &[
        concat!("for ", "now"),
        concat!("simpli", "fied"),
        concat!("place", "holder"),
        concat!("as reque", "sted"),
        concat!("this se", "ssion"),
        concat!("last se", "ssion"),
        concat!("next se", "ssion"),
    ];
    each_line(files, |line| {
        let line = line.to_lowercase();
        WORDS.iter().find(|word| has_word(&line, word)).map(|word| format!("`{word}`: say what is"))
    })
}

/// A finding for each line of a written file for which `look` has something to say.
fn each_line(files: &[File], look: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| !is_generated(file)) {
        findings.extend(numbered(&file.text).filter_map(|(number, line)| Some(file.at(number, look(line)?))));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::tells_apart;
    use super::*;

    #[test]
    fn a_long_file_is_found() {
        let long = "x\n".repeat(1001);
        tells_apart(files_are_short, &[("a.rs", &long)], &[("a.rs", &long[2..]), ("Cargo.lock", &long)]);
    }

    #[test]
    fn a_mark_for_later_is_found() {
        for mark in [concat!("// TO", "DO: x"), concat!("to", "do!()"), concat!("// X", "XX")] {
            tells_apart(nothing_is_put_off, &[("a.rs", mark)], &[("a.sh", concat!("mktemp X", "XXXXX"))]);
        }
    }

    #[test]
    fn a_trailing_blank_is_found() {
        tells_apart(lines_end_clean, &[("a.md", "text \nmore\n")], &[("a.md", "text\nmore\n"), ("b.md", "")]);
        tells_apart(lines_end_clean, &[("a.md", "text")], &[("a.md", "text\n")]);
    }

    #[test]
    fn a_wide_line_is_found() {
        let wide = "é".repeat(121);
        tells_apart(lines_are_narrow, &[("a.rs", &wide)], &[("a.rs", &wide[2..]), ("a.md", &wide)]);
    }

    #[test]
    fn a_machine_s_path_is_found() {
        let lock = concat!("source = \"registry+https://github.com/rust-lang/crates", ".io-index\"\n");
        for bad in [concat!("cd /wo", "rk/main"), concat!("see https://crates", ".io/x")] {
            tells_apart(no_machine_is_named, &[("a.md", bad)], &[("Cargo.lock", lock), ("a.md", "rework/main")]);
        }
        let mirror = concat!("source = \"registry+https://index.crates", ".io/x\"");
        tells_apart(no_machine_is_named, &[("Cargo.lock", mirror)], &[("Cargo.lock", lock)]);
    }

    #[test]
    fn a_word_of_unfinished_work_is_found() {
        tells_apart(words_are_plain, &[("a.md", concat!("It does, For ", "now."))], &[("a.md", "It does. Now.")]);
    }
}
