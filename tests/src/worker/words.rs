//! Commands as the worker reads them.

use std::str::FromStr;

/// A verb and named values.
#[derive(Debug)]
pub(super) struct Words<'a> {
    verb: &'a str,
    values: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    pub(super) fn parse(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap_or_default();
        Self { verb, values: words.filter_map(|word| word.split_once('=')).collect() }
    }

    pub(super) fn verb(&self) -> &'a str {
        self.verb
    }

    pub(super) fn given(&self, name: &str) -> Option<&'a str> {
        self.values.iter().find(|(named, _)| *named == name).map(|(_, value)| *value)
    }

    pub(super) fn text(&self, name: &str) -> Result<&'a str, String> {
        self.given(name).ok_or_else(|| format!("`{}` needs {name}", self.verb))
    }

    pub(super) fn number(&self, name: &str) -> Result<u64, String> {
        self.parsed(name)
    }

    pub(super) fn number_or(&self, name: &str, otherwise: u64) -> Result<u64, String> {
        if self.given(name).is_some() { self.parsed(name) } else { Ok(otherwise) }
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        self.given(name) == Some("1")
    }

    pub(super) fn parsed<T: FromStr>(&self, name: &str) -> Result<T, String> {
        let text = self.text(name)?;
        text.parse().map_err(|_| format!("{name}={text} is no value"))
    }
}
