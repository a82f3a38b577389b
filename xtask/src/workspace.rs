//! Where the workspace and its build outputs lie.

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the workspace: the parent of this package.
///
/// Cargo says at every start where the package lies. Where it was built is only the second best answer: two checkouts
/// may build into one directory, and then either may start what the other built.
pub(crate) fn root() -> PathBuf {
    root_of(std::env::var_os("CARGO_MANIFEST_DIR"))
}

fn root_of(package: Option<OsString>) -> PathBuf {
    let package = package.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Refuses a root that holds no checkout of this repository.
///
/// # Errors
/// Text that names the directory and what is missing there.
pub(crate) fn check(root: &Path) -> Result<(), Box<dyn Error>> {
    for (manifest, package) in [("xtask/Cargo.toml", "xtask"), ("crates/ring/Cargo.toml", "zcmi-ring")] {
        let named = format!("name = \"{package}\"");
        let text = std::fs::read_to_string(root.join(manifest)).unwrap_or_default();
        if !text.lines().any(|line| line.trim() == named) {
            let root = root.display();
            let why = format!("{root} is no checkout of zcmi: {manifest} is not the manifest of {package}");
            return Err(format!("{why}; start this by `cargo xtask` in the checkout that is meant").into());
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_the_checkout_that_cargo_names_and_not_the_one_it_was_built_in() {
        assert_eq!(root_of(Some("/elsewhere/zcmi/xtask".into())), Path::new("/elsewhere/zcmi"));
        assert_eq!(root_of(None), Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent"));
    }

    #[test]
    fn a_directory_that_is_no_checkout_is_refused_by_name() {
        check(&root()).expect("this is one");
        // A package of this repository, whose parent is no checkout.
        let refused = check(&root().join("crates")).expect_err("no checkout").to_string();
        assert!(refused.contains("crates is no checkout of zcmi: xtask/Cargo.toml"), "{refused}");
    }
}
