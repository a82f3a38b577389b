//! Users and groups as people name them: by number, or as `/etc/passwd` and `/etc/group` do.

use std::fs;

use crate::failure::Failure;

/// The number of a user.
pub(crate) fn user(text: &str) -> Result<u32, Failure> {
    number_of(text, "/etc/passwd", "user")
}

/// The number of a group.
pub(crate) fn group(text: &str) -> Result<u32, Failure> {
    number_of(text, "/etc/group", "group")
}

fn number_of(text: &str, file: &str, what: &str) -> Result<u32, Failure> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let accounts = fs::read_to_string(file).unwrap_or_default();
    let of_name = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == text).then(|| fields.nth(1)?.parse().ok())?
    };
    let missing = || Failure::usage(format!("{file} has no {what} `{text}`; give the {what}'s number"));
    accounts.lines().find_map(of_name).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_number_and_by_name() {
        assert_eq!((user("0").ok(), user("root").ok(), group("61001").ok()), (Some(0), Some(0), Some(61001)));
        assert!(matches!(user("no such user"), Err(Failure::Usage { text, .. }) if text.contains("no such user")));
    }
}
