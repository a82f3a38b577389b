//! Checks of the documents.

use super::{File, Finding, numbered};

/// Relative links lead to a file or directory of the tree.
pub(super) fn links_lead_somewhere(files: &[File]) -> Vec<Finding> {
    let exists = |path: &str| {
        let below = format!("{path}/");
        path.is_empty() || files.iter().any(|file| file.path == path || file.path.starts_with(&below))
    };
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_document()) {
        let mut in_block = false;
        for (number, line) in numbered(&file.text) {
            if line.trim_start().starts_with("```") {
                in_block = !in_block;
            }
            if in_block {
                continue;
            }
            for target in targets(line) {
                let path = target.split('#').next().unwrap_or_default();
                if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                    continue;
                }
                if !resolve(&file.path, path).is_some_and(|path| exists(&path)) {
                    findings.push(file.at(number, format!("the link `{target}` leads nowhere")));
                }
            }
        }
    }
    findings
}

/// The targets of the links in a line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.trim())
}

/// The path that `link`, found in the file `from`, means; `None` if it leaves the tree.
fn resolve(from: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.trim_end_matches('/').split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// The change log has a part for what is not released.
pub(super) fn change_log_is_open(files: &[File]) -> Vec<Finding> {
    let log = files.iter().find(|file| file.path == "CHANGELOG.md");
    if log.is_some_and(|log| log.text.lines().any(|line| line == "## Unreleased")) {
        return Vec::new();
    }
    vec![Finding { path: "CHANGELOG.md".into(), line: 1, what: "there is no part `## Unreleased`".into() }]
}

#[cfg(test)]
mod tests {
    use super::super::tests::tells_apart;
    use super::*;

    #[test]
    fn a_link_to_nothing_is_found() {
        let good = "[a](../README.md#x), [b](https://example.org/), [c](#here), [d](adr/)\n```\n[e](f)\n```\n";
        let readme = ("README.md", "[docs](docs)\n");
        let decision = ("docs/adr/0001.md", "# One\n");
        tells_apart(links_lead_somewhere, &[("docs/A.md", "[a](B.md)")], &[readme, decision, ("docs/A.md", good)]);
        tells_apart(links_lead_somewhere, &[("A.md", "[a](../B.md)")], &[readme, ("docs/A.md", "text")]);
    }

    #[test]
    fn a_change_log_without_an_open_part_is_found() {
        let good = &[("CHANGELOG.md", "# Changes\n\n## Unreleased\n")];
        tells_apart(change_log_is_open, &[("CHANGELOG.md", "# Changes\n")], good);
        tells_apart(change_log_is_open, &[("README.md", "# zcmi\n")], good);
    }
}
