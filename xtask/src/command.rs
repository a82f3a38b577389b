//! Running a program with a time limit, its output shown and examined line by line.
//!
//! Every program started here carries a mark of its own in the environment variable [`MARK`], which begins with the
//! mark of this process. Whatever it starts inherits the mark, so that a program that outlives its limit can be ended
//! with all that it started, and a process left behind can be found.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The environment variable that marks the processes of a run.
pub(crate) const MARK: &str = "ZCMI_XTASK_RUN";

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It returned 0.
    Well,
    /// It returned another code, or a signal ended it.
    Badly,
    /// It did not end within its limit and was killed.
    Late,
}

/// The beginning of every mark that this process gives: the mark it carries itself, if any, and its own number.
fn mark() -> String {
    format!("{}{}.", std::env::var(MARK).unwrap_or_default(), std::process::id())
}

/// A mark that no other program started by this process carries.
fn next_mark() -> String {
    static GIVEN: AtomicUsize = AtomicUsize::new(0);
    format!("{}{}/", mark(), GIVEN.fetch_add(1, Ordering::Relaxed))
}

/// Runs `command` for at most `limit`, showing its output (both streams, as one) and handing each line to `see`.
///
/// # Errors
/// If the program cannot be started.
pub(crate) fn run(command: &mut Command, limit: Duration, mut see: impl FnMut(&str)) -> io::Result<Ended> {
    let (reader, writer) = io::pipe()?;
    let mark = next_mark();
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).env(MARK, &mark);
    let started = command.spawn();
    // The command keeps copies of the pipe's writing end; the reader would never see the end of the stream.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = started?;
    let (sender, lines) = mpsc::channel();
    let feeder = std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(count) if count > 0) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_string()).is_err() {
                break;
            }
            line.clear();
        }
    });
    let deadline = Instant::now() + limit;
    let mut late = false;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("{line}");
                see(&line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            // A second time out means that a process without the mark holds the pipe: go on without its output.
            Err(mpsc::RecvTimeoutError::Timeout) if late => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                late = true;
                child.kill()?;
                kill_marked(&mark);
            }
        }
    }
    let status = child.wait()?;
    if !late && feeder.join().is_err() {
        return Err(io::Error::other("the thread that reads the output panicked"));
    }
    Ok(match (late, status.success()) {
        (true, _) => Ended::Late,
        (false, true) => Ended::Well,
        (false, false) => Ended::Badly,
    })
}

/// The living processes that this process started through [`run`], and theirs, with their names.
pub(crate) fn left_running() -> Vec<(i32, String)> {
    let name = |number| fs::read_to_string(format!("/proc/{number}/comm")).unwrap_or_default().trim().to_string();
    marked(&mark()).into_iter().map(|number| (number, name(number))).collect()
}

/// Kills what [`left_running`] would list.
pub(crate) fn end_left_running() {
    kill_marked(&mark());
}

/// The numbers of the processes whose mark begins with `mark`.
fn marked(mark: &str) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter(|&number| has_mark(number, mark)).collect()
}

/// Whether process `number` carries a mark that begins with `mark`.
///
/// A zombie has an empty environment, and that of another user cannot be read: neither is ours to end.
fn has_mark(number: i32, mark: &str) -> bool {
    let wanted = format!("{MARK}={mark}");
    let environment = fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
    environment.split(|&byte| byte == 0).any(|entry| entry.starts_with(wanted.as_bytes()))
}

/// Kills the processes whose mark begins with `mark`.
fn kill_marked(mark: &str) {
    for number in marked(mark) {
        let Some(pid) = Pid::from_raw(number) else { continue };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // The number may have passed to another process before the descriptor was taken: look once more.
        if has_mark(number, mark) && pidfd_send_signal(process, Signal::KILL).is_err() {
            eprintln!("process {number} ended by itself, or cannot be killed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_of_both_streams_are_seen() {
        let mut seen: Vec<String> = Vec::new();
        let ended = run(&mut shell("echo out; echo err >&2"), Duration::from_secs(20), |line| seen.push(line.into()));
        assert_eq!(ended.expect("sh starts"), Ended::Well);
        assert_eq!(seen, ["out", "err"]);
    }

    #[test]
    fn a_program_that_fails_ended_badly() {
        let ended = run(&mut shell("exit 3"), Duration::from_secs(20), |_| ()).expect("sh starts");
        assert_eq!(ended, Ended::Badly);
    }

    #[test]
    fn a_program_past_its_limit_is_killed_with_what_it_started() {
        let start = Instant::now();
        let ended = run(&mut shell("sleep 300 & wait"), Duration::from_millis(200), |_| ()).expect("sh starts");
        assert_eq!(ended, Ended::Late);
        assert!(start.elapsed() < Duration::from_secs(60), "took {:?}", start.elapsed());
    }
}
