//! Checks of the manifests: who imports whom, and why each dependency is there.

use super::{File, Finding};

/// The packages of the workspace and their height: a package imports only lower ones.
const HEIGHTS: &[(&str, u32)] = &[
    ("zcmi-ring", 0),
    ("zcmi-derive", 0),
    ("zcmi-mem", 1),
    ("zcmi-ipc", 2),
    ("zcmi-net", 2),
    ("zcmi-net-dpdk", 3),
    ("zcmi", 4),
    ("zcmi-bench", 5),
    ("zcmi-cli", 6),
    ("zcmi-tests", 7),
];

/// The height of programs and bindings, which are told by where they lie.
const SERVICE_HEIGHT: u32 = 5;

/// A manifest, parsed.
struct Manifest<'a> {
    file: &'a File,
    table: toml::Table,
}

impl Manifest<'_> {
    /// The name of the package, if the manifest has one.
    fn package(&self) -> Option<&str> {
        self.table.get("package")?.get("name")?.as_str()
    }

    /// Whether this is a program or a binding.
    fn is_service(&self) -> bool {
        self.file.path.starts_with("programs/") || self.file.path.starts_with("bindings/")
    }

    /// The names of everything that the package depends on, for whatever purpose and target.
    fn dependencies(&self) -> Vec<String> {
        let of = |table: &toml::Table| -> Vec<String> {
            let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
            let tables = kinds.iter().filter_map(|kind| table.get(*kind)?.as_table());
            tables.flatten().map(|(key, value)| name_of(key, value)).collect()
        };
        let mut names = of(&self.table);
        let targets = self.table.get("target").and_then(toml::Value::as_table);
        names.extend(targets.into_iter().flatten().filter_map(|(_, target)| target.as_table()).flat_map(of));
        let workspace = self.table.get("workspace").and_then(toml::Value::as_table);
        names.extend(workspace.into_iter().flat_map(of));
        names.sort();
        names.dedup();
        names
    }

    /// The line on which `name` is first mentioned at the start.
    fn line_of(&self, name: &str) -> usize {
        self.file.text.lines().position(|line| line.starts_with(name)).map_or(1, |index| index + 1)
    }
}

/// The package behind a dependency, which may go by another name in the manifest.
fn name_of(key: &str, value: &toml::Value) -> String {
    value.get("package").and_then(toml::Value::as_str).unwrap_or(key).to_string()
}

/// All manifests of the tree; one that cannot be parsed is a finding.
fn manifests(files: &[File]) -> (Vec<Manifest<'_>>, Vec<Finding>) {
    let (mut manifests, mut findings) = (Vec::new(), Vec::new());
    for file in files.iter().filter(|file| file.name() == "Cargo.toml") {
        match file.text.parse() {
            Ok(table) => manifests.push(Manifest { file, table }),
            Err(error) => findings.push(file.at(1, error.to_string())),
        }
    }
    (manifests, findings)
}

/// The height of package `name`.
fn height(name: &str, is_service: bool) -> Option<u32> {
    if is_service {
        return Some(SERVICE_HEIGHT);
    }
    HEIGHTS.iter().find(|(other, _)| *other == name).map(|(_, height)| *height)
}

/// Packages of the workspace import lower ones only, programs the front door only, and `xtask` none.
pub(super) fn imports_point_one_way(files: &[File]) -> Vec<Finding> {
    let (manifests, mut findings) = manifests(files);
    let services: Vec<&str> =
        manifests.iter().filter(|manifest| manifest.is_service()).filter_map(Manifest::package).collect();
    // Other systems are measured by a workspace of its own, which imports whatever it compares with.
    for manifest in manifests.iter().filter(|manifest| !manifest.file.path.starts_with("bench/peers/")) {
        let Some(package) = manifest.package() else { continue };
        let is_xtask = package == "xtask";
        let own = height(package, manifest.is_service());
        if own.is_none() && !is_xtask {
            findings.push(manifest.file.at(1, format!("{package} has no place in the order of imports")));
            continue;
        }
        for dependency in manifest.dependencies() {
            let is_service = services.contains(&dependency.as_str());
            let Some(other) = height(&dependency, is_service) else { continue };
            let apart = manifest.file.path.starts_with("programs/") && dependency != "zcmi";
            if apart || own.is_none_or(|own| own <= other) {
                let what = format!("{package} must not import {dependency}");
                findings.push(manifest.file.at(manifest.line_of(&dependency), what));
            }
        }
    }
    findings
}

/// Every dependency stands in `docs/dependencies.md`, in a row `| name | reason |`.
pub(super) fn dependencies_have_reasons(files: &[File]) -> Vec<Finding> {
    let (manifests, mut findings) = manifests(files);
    let own: Vec<&str> = manifests.iter().filter_map(Manifest::package).collect();
    let list = files.iter().find(|file| file.path == "docs/dependencies.md").map_or("", |file| file.text.as_str());
    let has_reason = |name: &str| {
        let cells = list.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        cells.into_iter().any(|cells| {
            cells.get(1) == Some(&format!("`{name}`").as_str()) && cells[2..].iter().any(|cell| cell.contains(' '))
        })
    };
    for manifest in &manifests {
        for name in manifest.dependencies() {
            if !own.contains(&name.as_str()) && !has_reason(&name) {
                let what = format!("{name} has no row with its reason in docs/dependencies.md");
                findings.push(manifest.file.at(manifest.line_of(&name), what));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::tests::tells_apart;
    use super::*;

    fn manifest(name: &str, dependency: &str) -> String {
        format!("[package]\nname = \"{name}\"\n[dependencies]\n{dependency} = \"1\"\n")
    }

    #[test]
    fn an_import_against_the_order_is_found() {
        let cases = [("ipc", "net"), ("net", "ipc"), ("ring", "mem"), ("mem", "ipc")];
        for (from, to) in cases {
            let path = format!("crates/{from}/Cargo.toml");
            let bad = manifest(&format!("zcmi-{from}"), &format!("zcmi-{to}"));
            let good = manifest("zcmi-ipc", "zcmi-mem");
            tells_apart(imports_point_one_way, &[(&path, &bad)], &[("crates/ipc/Cargo.toml", &good)]);
        }
    }

    #[test]
    fn an_import_for_tests_or_one_target_counts_too() {
        let good = manifest("zcmi-mem", "zcmi-ring");
        for kind in ["dev-dependencies", "target.'cfg(unix)'.dependencies"] {
            let bad = format!("{good}[{kind}]\nzcmi-ipc = \"1\"\n");
            tells_apart(imports_point_one_way, &[("crates/mem/Cargo.toml", &bad)], &[("crates/mem/Cargo.toml", &good)]);
        }
    }

    #[test]
    fn a_program_that_looks_behind_the_front_door_is_found() {
        let (bad, good) = (manifest("zcmi-kv", "zcmi-mem"), manifest("zcmi-kv", "zcmi"));
        tells_apart(imports_point_one_way, &[("programs/kv/Cargo.toml", &bad)], &[("programs/kv/Cargo.toml", &good)]);
    }

    #[test]
    fn a_package_without_a_place_is_found() {
        let (bad, good) = (manifest("zcmi-extra", "libc"), manifest("xtask", "libc"));
        tells_apart(imports_point_one_way, &[("crates/extra/Cargo.toml", &bad)], &[("xtask/Cargo.toml", &good)]);
    }

    #[test]
    fn a_dependency_without_a_reason_is_found() {
        let package = manifest("zcmi-mem", "libc");
        let file = ("crates/mem/Cargo.toml", package.as_str());
        let good = ("docs/dependencies.md", "| `libc` | calls that rustix lacks |\n");
        tells_apart(dependencies_have_reasons, &[file, ("docs/dependencies.md", "| `libc` | |\n")], &[file, good]);
        tells_apart(dependencies_have_reasons, &[file], &[file, good]);
    }
}
