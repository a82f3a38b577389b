//! Checks of errors: each has a code, and each code a row in `docs/errors.md`.
//!
//! Codes are given in files called `code.rs`, one in each crate, and nowhere else. What is read there are lines:
//! `enum NAME {`, `struct NAME = "ZC1001";` or `impl Coded for NAME` say whose codes follow, and `Variant = "ZC1001",`
//! or `Variant(_) => "ZC1001",` say which variant has which.

use super::{File, Finding, has_word, is_word, numbered};

const LIST: &str = "docs/errors.md";
/// How the lines of the list begin that say which codes were ever given.
const EVER_GIVEN: &str = "Given so far: ";

/// A code, and what has it.
#[derive(Debug, PartialEq, Eq)]
struct Given {
    code: String,
    /// `Type::Variant`, or `Type`.
    error: String,
    line: usize,
}

/// The first digit of the codes that a file may give.
fn digit_of(path: &str) -> Option<char> {
    match path {
        "crates/ring/src/code.rs" => Some('1'),
        "crates/mem/src/code.rs" => Some('2'),
        "crates/ipc/src/code.rs" => Some('3'),
        "crates/net/src/code.rs" => Some('4'),
        "cli/src/code.rs" => Some('9'),
        _ => None,
    }
}

/// The codes in a text: `ZC` and four digits, with no letter or digit beside them.
fn codes(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !character.is_ascii_alphanumeric()).filter(|word| is_code(word))
}

fn is_code(word: &str) -> bool {
    word.strip_prefix("ZC").is_some_and(|digits| digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The identifier at the end of `text`, before whatever is no part of one.
fn last_name(text: &str) -> &str {
    let end = text.trim_end_matches(|character: char| !character.is_ascii_alphanumeric());
    end.rsplit(|character: char| !character.is_ascii() || !is_word(character as u8)).next().unwrap_or_default()
}

/// Whose codes follow a line such as `enum NAME {`, `struct NAME = …`, `impl<M> Coded for NAME<M> {`.
fn owner(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let (head, rest) = match line.split_once(" for ") {
        Some((head, rest)) if head.starts_with("impl") => (true, rest),
        _ => {
            let rest =
                ["pub(crate) enum ", "enum ", "struct ", "impl "].iter().find_map(|word| line.strip_prefix(word));
            (rest.is_some(), rest.unwrap_or_default())
        }
    };
    let path = rest.split(['<', '{', '=', ';', '(']).next()?.trim();
    head.then(|| last_name(path))
}

/// What a file gives codes to.
fn given(file: &File) -> Vec<Given> {
    let (mut found, mut whose) = (Vec::new(), String::new());
    for (line, text) in numbered(&file.text).filter(|(_, text)| !text.trim_start().starts_with("//")) {
        let opened = owner(text);
        if let Some(name) = opened {
            name.clone_into(&mut whose);
        }
        let Some((before, literal)) = text.split_once("\"ZC") else { continue };
        let code = format!("ZC{}", literal.split('"').next().unwrap_or_default());
        // A variant's own fields say nothing here: `Variant { .. } =>`, `Variant(_) =>`.
        let variant = before.split("=").next().unwrap_or_default();
        let variant = last_name(variant.split(" {").next().unwrap_or_default().trim_end_matches("(_) "));
        let error = if opened.is_some() { whose.clone() } else { format!("{whose}::{variant}") };
        found.push(Given { code, error, line });
    }
    found
}

/// Each code is given once, in the `code.rs` of its crate, and `docs/errors.md` has the same codes with the same
/// errors, a cause and a next step.
pub(super) fn codes_are_listed(files: &[File]) -> Vec<Finding> {
    let mut findings = codes_have_one_place(files);
    let mut all: Vec<Given> = Vec::new();
    for file in files.iter().filter(|file| file.is_rust() && file.name() == "code.rs") {
        for one in given(file) {
            if !is_code(&one.code) || digit_of(&file.path) != one.code.chars().nth(2) {
                findings.push(file.at(one.line, format!("`{}` is no code that this file may give", one.code)));
            }
            if let Some(other) = all.iter().find(|other| other.code == one.code) {
                findings.push(file.at(one.line, format!("{} is given to {} already", one.code, other.error)));
            }
            all.push(one);
        }
    }
    let Some(list) = files.iter().find(|file| file.path == LIST) else {
        let missing = all.first().map(|one| Finding {
            path: LIST.into(),
            line: 1,
            what: format!("the list of codes is missing, {} among them", one.code),
        });
        findings.extend(missing);
        return findings;
    };
    let mut listed: Vec<&str> = Vec::new();
    for (line, text) in numbered(&list.text).filter(|(_, text)| text.starts_with("| ZC")) {
        let cells: Vec<&str> = text.split('|').map(str::trim).collect();
        let &[_, code, error, cause, step, _] = &cells[..] else {
            findings.push(list.at(line, "a row is `| code | error | cause | next step |`"));
            continue;
        };
        if cause.is_empty() || step.is_empty() {
            findings.push(list.at(line, format!("{code} lacks its cause or its next step")));
        }
        if listed.contains(&code) {
            findings.push(list.at(line, format!("{code} has two rows")));
        }
        listed.push(code);
        match all.iter().find(|one| one.code == code) {
            // A code is not taken back, so the row of an error that has gone stays.
            None if cause.starts_with("gone since ") => {}
            Some(_) if cause.starts_with("gone since ") => {
                findings.push(list.at(line, format!("{code} has gone, and is never given again")));
            }
            None => findings.push(list.at(line, format!("no error has the code {code}"))),
            Some(one) if format!("`{}`", one.error) != error => {
                findings.push(list.at(line, format!("{code} is the code of `{}`", one.error)));
            }
            Some(_) => {}
        }
    }
    for one in all.iter().filter(|one| !listed.contains(&one.code.as_str())) {
        findings.push(list.at(1, format!("{} (`{}`) has no row", one.code, one.error)));
    }
    findings.extend(rows_stay(list, &listed));
    for document in files.iter().filter(|file| file.is_document()) {
        for (line, text) in numbered(&document.text) {
            let unknown = codes(text).filter(|code| !listed.contains(code));
            findings.extend(unknown.map(|code| document.at(line, format!("{code} is mentioned and has no row"))));
        }
    }
    findings
}

/// The rows of the list are those of all codes that were ever given: so none goes unnoticed, not even the last one of
/// its type together with its error, and none is free to be given again.
fn rows_stay(list: &File, listed: &[&str]) -> Vec<Finding> {
    let (mut findings, mut ever) = (Vec::new(), Vec::new());
    for (line, text) in numbered(&list.text) {
        let Some(ranges) = text.strip_prefix(EVER_GIVEN) else { continue };
        for range in ranges.trim_end_matches('.').split(", ") {
            let (first, last) = range.split_once(" to ").unwrap_or((range, range));
            if !is_code(first) || !is_code(last) {
                findings.push(list.at(line, format!("`{range}` is neither a code nor `CODE to CODE`")));
                continue;
            }
            let number = |code: &str| code.bytes().skip(2).fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
            for code in (number(first)..=number(last)).map(|number| format!("ZC{number:04}")) {
                if !listed.contains(&code.as_str()) {
                    let what = format!("{code} was given, and its row is missing; it stays, with `gone since`");
                    findings.push(list.at(line, what));
                }
                ever.push(code);
            }
        }
    }
    let new = listed.iter().filter(|code| !ever.iter().any(|known| known == *code));
    findings.extend(new.map(|code| list.at(1, format!("add {code} to its line `{EVER_GIVEN}`"))));
    findings
}

/// Codes stand in the files called `code.rs` only: elsewhere a literal would escape the list. Comments and tests may
/// name them.
fn codes_have_one_place(files: &[File]) -> Vec<Finding> {
    let own = |file: &&File| file.path.starts_with("crates/") || file.path.starts_with("cli/src/");
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust() && file.name() != "code.rs").filter(own) {
        if file.path.contains("/tests/") {
            continue;
        }
        let lines = numbered(&file.text).take_while(|(_, text)| text.trim() != "#[cfg(test)]");
        for (line, text) in lines.filter(|(_, text)| !text.trim_start().starts_with("//")) {
            findings.extend(codes(text).map(|code| file.at(line, format!("{code} stands outside a code.rs"))));
        }
    }
    findings
}

/// Each public error of the crates has a code: the `code.rs` beside its crate's root names it.
pub(super) fn errors_have_codes(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust() && file.path.starts_with("crates/")) {
        let Some((root, _)) = file.path.split_once("/src/") else { continue };
        let codes = files.iter().find(|other| other.path == format!("{root}/src/code.rs"));
        let coded: Vec<&str> = codes.map(|codes| codes.code.lines().filter_map(owner).collect()).unwrap_or_default();
        for (line, name) in public_errors(file) {
            if !coded.contains(&name) {
                findings.push(file.at(line, format!("{name} has no code; give it one in {root}/src/code.rs")));
            }
        }
    }
    findings
}

/// The public types of a file that are errors: by the derive macro of thiserror, or by hand.
fn public_errors(file: &File) -> Vec<(usize, &str)> {
    let lines: Vec<&str> = file.code.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        if line.contains("derive(") && has_word(line, "Error") {
            // Behind the other attributes, of which one may go over several lines.
            let item = (index..lines.len()).find(|&at| ["enum", "struct"].iter().any(|word| has_word(lines[at], word)));
            found.extend(item.and_then(|at| Some((at + 1, public_name(lines[at])?))));
        }
        if line.trim_start().starts_with("impl")
            && let Some((head, of)) = line.split_once(" for ")
            && last_name(head) == "Error"
        {
            let of = first_name(of);
            let is_public = lines.iter().any(|line| public_name(line) == Some(of));
            found.extend(is_public.then_some((index + 1, of)));
        }
    }
    found
}

/// The name that a line such as `pub enum NAME {` declares for everybody.
fn public_name(line: &str) -> Option<&str> {
    let line = line.trim_start();
    ["pub enum ", "pub struct "].iter().find_map(|start| line.strip_prefix(start)).map(first_name)
}

/// The identifier at the start of `text`.
fn first_name(text: &str) -> &str {
    &text[..text.bytes().position(|byte| !is_word(byte)).unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::super::tests::tells_apart;
    use super::*;

    const RING: &str = "crates/ring/src/code.rs";
    const CODES: &str = r#"
        codes! {
            struct a::Lost = "ZC1001";
            enum Full {
                Ring = "ZC1011",
            }
        }
        impl<M> Coded for Other<M> {
            fn code(&self) -> &'static str {
                match self {
                    Some(Why::Late(_)) => "ZC1021",
                }
            }
        }
    "#;
    const ROWS: &str = "| ZC1001 | `Lost` | it went | look |\n| ZC1011 | `Full::Ring` | full | wait |\n\
                        | ZC1021 | `Other::Late` | late | come early |\n\
                        Given so far: ZC1001, ZC1011 to ZC1011, ZC1021.\n";

    #[test]
    fn codes_and_their_list_that_differ_are_found() {
        let good = [(RING, CODES), (LIST, ROWS)];
        let without = ROWS.lines().skip(1).collect::<Vec<_>>().join("\n");
        let grown = ROWS.replace("ZC1021.", "ZC1021, ZC1099.");
        let more = format!("{grown}| ZC1099 | `Gone` | it was | look |\n");
        let twice = format!("{ROWS}| ZC1001 | `Lost` | it went | look |\n");
        let bare = ROWS.replace("look", "");
        let mentioned = format!("{ROWS}\nAs ZC1002 says.\n");
        for list in [&without, &more, &twice, &bare, &mentioned, &ROWS.replace("Full::Ring", "Full::Rung")] {
            tells_apart(codes_are_listed, &[(RING, CODES), (LIST, list)], &good);
        }
        tells_apart(codes_are_listed, &[(RING, CODES)], &good);
        let gone = format!("{grown}| ZC1099 | `Gone` | gone since 0.2 | nothing |\n");
        tells_apart(codes_are_listed, &[(RING, CODES), (LIST, &more)], &[(RING, CODES), (LIST, &gone)]);
    }

    #[test]
    fn a_row_that_goes_with_its_error_and_a_code_that_comes_back_are_found() {
        let good = [(RING, CODES), (LIST, ROWS)];
        let (codes, rows) = (CODES.replace("\"ZC1021\"", "late"), ROWS.replace("| ZC1021 |", "| was |"));
        tells_apart(codes_are_listed, &[(RING, &codes), (LIST, &rows)], &good);
        let unrecorded = ROWS.replace(", ZC1021.", ".");
        let odd = ROWS.replace("ZC1011 to ZC1011", "ZC1011 and such");
        let back = ROWS.replace("| late |", "| gone since 0.2 |");
        for list in [&unrecorded, &odd, &back] {
            tells_apart(codes_are_listed, &[(RING, CODES), (LIST, list)], &good);
        }
        tells_apart(codes_are_listed, &[(RING, CODES), (LIST, &back)], &[(RING, &codes), (LIST, &back)]);
    }

    #[test]
    fn a_document_that_names_an_unknown_code_is_found() {
        let good = [(RING, CODES), (LIST, ROWS), ("README.md", "As ZC1001 says.\n")];
        tells_apart(codes_are_listed, &[(RING, CODES), (LIST, ROWS), ("README.md", "As ZC1002 says.\n")], &good);
    }

    #[test]
    fn a_code_outside_its_file_is_found() {
        let bad = "fn code() -> &'static str {\n    \"ZC1001\"\n}\n";
        let tests = format!("/// ZC1001\nfn nothing() {{}}\n#[cfg(test)]\nmod tests {{\n{bad}}}\n");
        let good = [(RING, CODES), ("crates/ring/tests/a.rs", bad), ("cli/src/a.rs", &tests), ("cli/tests/a.rs", bad)];
        for path in ["crates/ring/src/a.rs", "cli/src/a.rs"] {
            tells_apart(codes_have_one_place, &[(path, bad)], &good);
        }
    }

    #[test]
    fn a_code_that_is_given_twice_or_is_another_crates_is_found() {
        let good = [(RING, CODES), (LIST, ROWS)];
        let twice = CODES.replace("ZC1011", "ZC1001");
        tells_apart(codes_are_listed, &[(RING, &twice), (LIST, ROWS)], &good);
        let foreign = (CODES.replace("ZC1011", "ZC2011"), ROWS.replace("ZC1011", "ZC2011"));
        tells_apart(codes_are_listed, &[(RING, &foreign.0), (LIST, &foreign.1)], &good);
    }

    #[test]
    fn a_public_error_without_a_code_is_found() {
        let hidden = "#[derive(Debug, thiserror::Error)]\npub(crate) enum Hidden {}\n";
        let derived =
            "#[derive(Debug, thiserror::Error)]\n#[non_exhaustive]\n#[error(\n    \"a {b}\"\n)]\npub enum Full {\n";
        let by_hand = "pub struct Other<M>(M);\nimpl<M> std::error::Error for Other<M> {\n";
        let good = [(RING, CODES), ("crates/ring/src/a.rs", hidden), ("crates/ring/src/b.rs", derived)];
        for bad in [derived.replace("Full", "Empty"), by_hand.replace("Other", "Another")] {
            tells_apart(errors_have_codes, &[(RING, CODES), ("crates/ring/src/a.rs", &bad)], &good);
        }
        tells_apart(
            errors_have_codes,
            &[("crates/ring/src/b.rs", derived)],
            &[(RING, CODES), ("crates/ring/src/a.rs", by_hand)],
        );
    }
}
