//! `cargo xtask xray`: what a function was compiled to, and what is executed between two points.
//!
//! Claims such as "no locked instruction and no division on the hot path" are checked here against the machine code, in
//! two ways. The first decodes a function of a built program from its symbol table. The second runs a program one
//! instruction at a time from each call of one marker function to the next call of another, and counts. Without
//! arguments the second is done for the library's own hot path, and the counts are held against their bounds.

mod decode;
#[cfg(target_arch = "x86_64")]
mod hot_path;
#[cfg(target_arch = "x86_64")]
mod step;
#[cfg(target_arch = "x86_64")]
mod sys;

use std::error::Error;
use std::fs;
use std::path::Path;

use crate::Outcome;

/// Decodes the named functions of a program, or steps through one.
///
/// # Errors
/// If the arguments are wrong, the program cannot be read or run, or a symbol is not in it.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    match arguments {
        #[cfg(target_arch = "x86_64")]
        [] => hot_path::check(),
        #[cfg(not(target_arch = "x86_64"))]
        [] => step("", "", &[]),
        [flag, from, to, rest @ ..] if flag == "--step" => step(from, to, rest),
        [binary, symbols @ ..] if !symbols.is_empty() && !binary.starts_with("--") => {
            let data = fs::read(Path::new(binary)).map_err(|error| format!("{binary}: {error}"))?;
            for symbol in symbols {
                for function in decode::functions(&data, symbol)? {
                    print!("{function}");
                }
            }
            Ok(true)
        }
        _ => Err("usage: xray | xray BINARY SYMBOL... | xray --step FROM TO [--windows N] PROGRAM [ARGS]".into()),
    }
}

/// Steps through a program from `from` to `to` and prints the counts of the windows.
#[cfg(target_arch = "x86_64")]
fn step(from: &str, to: &str, rest: &[String]) -> Outcome {
    let (most, rest) = match rest {
        [flag, count, rest @ ..] if flag == "--windows" => (count.parse::<usize>()?, rest),
        rest => (100, rest),
    };
    let Some((program, arguments)) = rest.split_first() else { return Err("name the program to run".into()) };
    let mut windows = step::windows(Path::new(program), arguments, from, to, most)?;
    if windows.is_empty() {
        return Err(format!("{program} never called {from}").into());
    }
    windows.sort_by_key(|window| window.instructions);
    for (name, window) in
        [("least", &windows[0]), ("median", &windows[windows.len() / 2]), ("most", &windows[windows.len() - 1])]
    {
        println!("{name} of {}: {window}", windows.len());
    }
    Ok(true)
}

/// Stepping reads the registers of an x86-64 processor.
#[cfg(not(target_arch = "x86_64"))]
fn step(_from: &str, _to: &str, _rest: &[String]) -> Outcome {
    println!("SKIP: stepping through a program is for x86-64");
    Ok(true)
}

/// The address of the one symbol in `data` that `wanted` names.
fn address_of(data: &[u8], wanted: &str) -> Result<u64, Box<dyn Error>> {
    match decode::symbols(data, wanted)?.as_slice() {
        [symbol] => Ok(symbol.address),
        several => Err(format!("{} symbols are called {wanted}", several.len()).into()),
    }
}
