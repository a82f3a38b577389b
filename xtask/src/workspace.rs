//! Where the workspace and its build outputs lie.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the workspace: the parent of this package, as it was when this program was built.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// A call of the cargo that started this program, from the root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The directory that cargo builds into, whatever the environment and the configuration say about it.
///
/// # Errors
/// If cargo cannot describe the workspace.
pub(crate) fn target_directory() -> Result<PathBuf, Box<dyn Error>> {
    let output = cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let directory = metadata["target_directory"].as_str().ok_or("cargo metadata names no target directory")?;
    Ok(PathBuf::from(directory))
}
