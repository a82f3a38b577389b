//! Running the command lines that the documents show.
//!
//! A fenced block whose info string is `sh test` is run by bash in an empty directory, with the `zcmi` that was just
//! built first in `PATH` and a runtime directory of its own. The first command that fails fails the block.

use std::error::Error;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{self, Ended};
use crate::tally::Tally;

/// How long one block may take, also on a machine that others slow down.
const LIMIT: Duration = Duration::from_secs(180);

/// A block of a document that is to be run.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// The line of its opening fence.
    line: usize,
    script: String,
}

/// Runs every block of the documents of `root`, with the programs in `programs` first in `PATH`, below `own`.
///
/// # Errors
/// If a document cannot be read or a directory cannot be made.
pub(crate) fn run(root: &Path, programs: &Path, own: &Path, tally: &mut Tally) -> Result<(), Box<dyn Error>> {
    for document in documents(root)? {
        let name = document.strip_prefix(root).unwrap_or(&document).display().to_string();
        for block in blocks(&fs::read_to_string(&document)?) {
            let name = format!("{name}:{}", block.line);
            println!("     Running the block at {name}");
            let directory = own.join("block");
            let runtime = own.join("runtime");
            for path in [&directory, &runtime] {
                fs::DirBuilder::new().mode(0o700).create(path)?;
            }
            let mut path = programs.as_os_str().to_owned();
            path.push(":");
            path.push(std::env::var_os("PATH").unwrap_or_default());
            let mut bash = Command::new("bash");
            bash.args(["-euo", "pipefail", "-c", &block.script]).current_dir(&directory);
            bash.env("PATH", path).env("ZCMI_RUNTIME_DIR", &runtime);
            let ended = command::run(&mut bash, LIMIT, |_| ());
            tally.check(&name, matches!(ended, Ok(Ended::Well)));
            fs::remove_dir_all(&directory)?;
            fs::remove_dir_all(&runtime)?;
        }
    }
    Ok(())
}

/// The documents at `root` and below its `docs`.
fn documents(root: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut found = Vec::new();
    let mut open = vec![root.join("docs")];
    let is_document = |path: &Path| path.extension().is_some_and(|extension| extension == "md");
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if is_document(&path) {
            found.push(path);
        }
    }
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if is_document(&entry.path()) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The blocks of `text` that are to be run.
fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in text.lines().enumerate() {
        match open.take() {
            Some(block) if line.trim() == "```" => found.push(block),
            Some(mut block) => {
                block.script.push_str(line);
                block.script.push('\n');
                open = Some(block);
            }
            None if line.trim() == "```sh test" => open = Some(Block { line: index + 1, script: String::new() }),
            None => {}
        }
    }
    // A block without an end is run as well: what it holds will fail loudly, where leaving it out would be silent.
    found.extend(open);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_blocks_are_run() {
        let text = "a\n```sh\nfalse\n```\n```sh test\necho 1\necho 2\n```\n";
        assert_eq!(blocks(text), [Block { line: 5, script: "echo 1\necho 2\n".to_string() }]);
    }

    #[test]
    fn a_block_that_fails_is_counted_and_leaves_nothing() {
        let root = std::env::temp_dir().join(format!("zcmi-documents-test-{}", std::process::id()));
        let own = root.join("own");
        fs::create_dir_all(&own).expect("a directory can be made");
        let text = "```sh test\nfalse | cat\n```\n```sh test\ntest -d \"$ZCMI_RUNTIME_DIR\"\n```\n";
        fs::write(root.join("A.md"), text).expect("a file can be made");
        let mut tally = Tally::default();
        let done = run(&root, Path::new("/nonexistent"), &own, &mut tally).map_err(|error| error.to_string());
        let left = fs::read_dir(&own).map(Iterator::count);
        fs::remove_dir_all(&root).expect("the directory can be removed");
        assert_eq!(done, Ok(()));
        assert_eq!(tally.failures(), ["A.md:1"]);
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 0 skipped");
        assert_eq!(left.expect("the directory was there"), 0);
    }
}
