//! `cargo xtask tidy`: what lints cannot see.
//!
//! Each check is a function from the files of the tree to what is wrong with them, and has a test which shows that it
//! fails on a bad example. The files are those that git tracks or would track.

mod documents;
mod errors;
mod lexer;
mod manifests;
mod sources;
mod text;

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Outcome;
use crate::workspace;

/// A text file of the tree.
struct File {
    /// Its path below the root.
    path: String,
    text: String,
    /// For a Rust file, its text with comments and literals blanked out.
    code: String,
}

impl File {
    fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        let code = if path.ends_with(".rs") { lexer::code_of(&text) } else { String::new() };
        Self { path, text, code }
    }

    /// The last part of the path.
    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_document(&self) -> bool {
        self.path.ends_with(".md")
    }

    /// Something that is wrong at `line`, which counts from 1.
    fn at(&self, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line, what: what.into() }
    }
}

/// Something that is wrong.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// One check of the whole tree.
type Check = fn(&[File]) -> Vec<Finding>;

/// Every check with what it demands.
const CHECKS: &[(&str, Check)] = &[
    ("unsafe code lies in sys.rs and raw.rs only", sources::unsafe_has_its_files),
    ("sys.rs and raw.rs say what their blocks rely on", sources::unsafe_files_open_with_a_comment),
    ("programs and the command line forbid unsafe code", sources::front_ends_forbid_unsafe),
    ("atomics come from zcmi-ring's sync module", sources::atomics_have_one_source),
    ("strong orderings name their edge", sources::orderings_name_their_edge),
    ("tests do not sleep", sources::tests_do_not_sleep),
    ("every shared layout has its picture", sources::layouts_have_pictures),
    ("files stay below a thousand lines", text::files_are_short),
    ("nothing is left to be done later", text::nothing_is_put_off),
    ("lines end where their text ends", text::lines_end_clean),
    ("source lines are at most 120 wide", text::lines_are_narrow),
    ("no path or host of a build machine", text::no_machine_is_named),
    ("plain words", text::words_are_plain),
    ("imports point one way", manifests::imports_point_one_way),
    ("every dependency has its reason", manifests::dependencies_have_reasons),
    ("links lead somewhere", documents::links_lead_somewhere),
    ("error codes and their list agree", errors::codes_are_listed),
    ("every public error has a code", errors::errors_have_codes),
    ("the change log has an Unreleased part", documents::change_log_is_open),
];

/// Runs every check and prints what is wrong.
///
/// # Errors
/// If the files of the tree cannot be listed or read, or an argument is given.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    if let Some(argument) = arguments.first() {
        return Err(format!("`{argument}` is no argument of tidy").into());
    }
    let files = read(&workspace::root())?;
    let mut clean = true;
    for (name, check) in CHECKS {
        let findings = check(&files);
        if !findings.is_empty() {
            clean = false;
            println!("{name}:");
            findings.iter().for_each(|finding| println!("    {finding}"));
        }
    }
    println!("tidy: {} checks over {} files: {}", CHECKS.len(), files.len(), if clean { "clean" } else { "not clean" });
    Ok(clean)
}

/// The text files below `root` that git tracks, or would track if they were added.
fn read(root: &Path) -> Result<Vec<File>, Box<dyn std::error::Error>> {
    let mut git = Command::new("git");
    // The tree may belong to another user than the one who checks it.
    git.args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = git.current_dir(root).output().map_err(|error| format!("git ls-files: {error}"))?;
    if !output.status.success() {
        return Err(format!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    let mut files = Vec::new();
    for path in String::from_utf8(output.stdout)?.split_terminator('\0') {
        // A tracked file may have been removed from the working tree, and not every file is text.
        let whole = root.join(path);
        if whole.is_file()
            && let Ok(text) = String::from_utf8(fs::read(whole)?)
        {
            files.push(File::new(path, text));
        }
    }
    Ok(files)
}

/// Whether `byte` can be part of a word: of an identifier.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether `text` holds `word` with no letter, digit or underscore beside it where it begins or ends with one.
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(start, found)| {
        let before = text.as_bytes()[..start].last().copied();
        let after = text.as_bytes().get(start + found.len()).copied();
        let apart =
            |own: Option<&u8>, other: Option<u8>| !(own.copied().is_some_and(is_word) && other.is_some_and(is_word));
        apart(word.as_bytes().first(), before) && apart(word.as_bytes().last(), after)
    })
}

/// The lines of `text`, counted from 1.
fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts that `check` finds something in `bad` (pairs of path and text) and nothing in `good`.
    #[track_caller]
    pub(super) fn tells_apart(check: Check, bad: &[(&str, &str)], good: &[(&str, &str)]) {
        let tree =
            |files: &[(&str, &str)]| files.iter().map(|(path, text)| File::new(*path, *text)).collect::<Vec<_>>();
        assert!(!check(&tree(bad)).is_empty(), "nothing found in the bad example");
        assert_eq!(check(&tree(good)), [], "found in the good example");
    }

    #[test]
    fn words_are_found_whole() {
        assert!(has_word("an unsafe block", "unsafe"));
        assert!(!has_word("allow(unsafe_code)", "unsafe"));
        assert!(has_word("a std::thread::sleep(x)", "thread::sleep"));
    }

    #[test]
    fn the_files_of_this_tree_can_be_read() {
        let files = read(&workspace::root());
        match files {
            Ok(files) => assert!(files.iter().any(|file| file.path == "xtask/src/tidy/mod.rs")),
            // Without git, or outside a checkout, there is nothing to ask.
            Err(error) => println!("SKIP: {error}"),
        }
    }
}
