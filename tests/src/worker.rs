//! The worker: a process that makes publishers and subscribers, and does with them what it is told, line by line.
//!
//! A command is a word and named values (`send id=a n=100 sizes=fixed:64`); the answer is `ok` with named values, or
//! `err` with a reason. The worker ends when its input does.

mod endpoints;
mod forks;
mod forward;
mod hostile;
mod words;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use endpoints::{Publishing, Subscribing};
use words::Words;

/// What a command comes to.
type Outcome = Result<String, String>;

/// Both ends of an exchange.
type Pair<'a> = (&'a mut Box<dyn Publishing>, &'a mut Box<dyn Subscribing>);

/// The worker's state.
#[derive(Default)]
struct Worker {
    publishers: BTreeMap<String, Box<dyn Publishing>>,
    subscribers: BTreeMap<String, Box<dyn Subscribing>>,
}

/// Runs until the input ends.
#[must_use]
pub fn run() -> ExitCode {
    // The kernel kills us with the thread that started us; it cannot have died before this unnoticed.
    let parent = std::env::var("ZCMI_TESTS_PARENT").ok().and_then(|pid| pid.parse::<i32>().ok());
    let died_with = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let ours = rustix::process::getppid().map(Pid::as_raw_pid);
    if died_with.is_err() || parent.is_none() || ours != parent {
        return ExitCode::FAILURE;
    }
    let mut worker = Worker::default();
    answer("ok");
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return ExitCode::FAILURE };
        let outcome = worker.obey(&line);
        match outcome {
            Ok(text) => answer(&format!("ok {text}")),
            Err(text) => answer(&format!("err {}", text.replace('\n', " "))),
        }
    }
    ExitCode::SUCCESS
}

/// Says a line to whoever drives us; without anybody there, there is nothing to live for.
fn answer(line: &str) {
    let mut output = std::io::stdout().lock();
    if writeln!(output, "{line}").and_then(|()| output.flush()).is_err() {
        std::process::exit(1);
    }
}

impl Worker {
    fn obey(&mut self, line: &str) -> Outcome {
        let words = Words::parse(line);
        match words.verb() {
            "pub" => {
                let made = endpoints::publish(&words)?;
                self.publishers.insert(words.text("id")?.to_owned(), made);
                Ok(String::new())
            }
            "sub" => {
                let made = endpoints::subscribe(&words)?;
                self.subscribers.insert(words.text("id")?.to_owned(), made);
                Ok(String::new())
            }
            "wait-subscribers" => {
                let time = Duration::from_millis(words.number("ms")?);
                let count = words.number("n")? as usize;
                let found = self.publisher(&words)?.wait_for_subscribers(count, time);
                if found >= count { Ok(format!("n={found}")) } else { Err(format!("only {found} subscribers")) }
            }
            "subscribers" => Ok(format!("n={}", self.publisher(&words)?.subscribers())),
            "send" => self.publisher(&words)?.send(&words),
            "flood" => {
                answer("ok");
                self.publisher(&words)?.flood(&words)
            }
            "forgets" => self.publisher(&words)?.forgets(&words),
            "loan" => self.publisher(&words)?.loan(&words),
            "publish-loaned" => self.publisher(&words)?.publish_loaned(),
            "poke" => {
                crate::sys::poke(words.number("at")? as usize, words.number("byte")? as u8);
                Ok(String::new())
            }
            "peek" => Ok(format!("byte={}", crate::sys::peek(words.number("at")? as usize))),
            "collect" => self.subscriber(&words)?.collect(&words),
            "hold" => self.subscriber(&words)?.hold(&words),
            "check-held" => self.subscriber(&words)?.check_held(),
            "drop-held" => self.subscriber(&words)?.drop_held(&words),
            "forget-held" => self.subscriber(&words)?.forget_held(),
            "leave" => self.subscriber(&words)?.leave(),
            "publishers" => Ok(format!("n={}", self.subscriber(&words)?.publishers())),
            "forward" => forward::forward(&words),
            "echo" => self.echo(&words),
            "ping" => self.ping(&words),
            "scribble" => hostile::scribble(&words),
            "try-memory" => hostile::try_memory(),
            "hammer" => hostile::hammer(&words),
            "connect-all" => hostile::connect_all(&words),
            "fork" => self.fork(&words),
            "cut" => {
                let cut = crate::sys::cut_connections().map_err(|error| error.to_string())?;
                if cut > 0 { Ok(format!("n={cut}")) } else { Err("there is no connection".to_owned()) }
            }
            "memory" => {
                let report = zcmi::Process::current().map_err(|error| error.to_string())?.report();
                let report = report.ok_or("no report")?;
                Ok(format!("regions={} bytes={}", report.regions, report.region_bytes))
            }
            "end" => {
                let id = words.text("id")?;
                let ended = self.publishers.remove(id).is_some() | self.subscribers.remove(id).is_some();
                if ended { Ok(String::new()) } else { Err(format!("nothing is called `{id}`")) }
            }
            other => Err(format!("`{other}` is no command")),
        }
    }

    fn publisher(&mut self, words: &Words) -> Result<&mut Box<dyn Publishing>, String> {
        let id = words.text("id")?;
        self.publishers.get_mut(id).ok_or_else(|| format!("no publisher is called `{id}`"))
    }

    fn subscriber(&mut self, words: &Words) -> Result<&mut Box<dyn Subscribing>, String> {
        let id = words.text("id")?;
        self.subscribers.get_mut(id).ok_or_else(|| format!("no subscriber is called `{id}`"))
    }

    fn pair(&mut self, words: &Words) -> Result<Pair<'_>, String> {
        let (to, from) = (words.text("to")?, words.text("from")?);
        let publisher = self.publishers.get_mut(to).ok_or_else(|| format!("no publisher is called `{to}`"))?;
        let subscriber = self.subscribers.get_mut(from).ok_or_else(|| format!("no subscriber is called `{from}`"))?;
        Ok((publisher, subscriber))
    }

    /// Answers each message received with one, until the publisher ends.
    fn echo(&mut self, words: &Words) -> Outcome {
        let (publisher, subscriber) = self.pair(words)?;
        let mut echoed = 0_u64;
        while subscriber.next(Duration::from_secs(50))? {
            publisher.send_one(8)?;
            echoed += 1;
        }
        Ok(format!("n={echoed}"))
    }

    /// Sends messages and waits for the answer to each, after a delay of up to `delay_us` that differs each time.
    fn ping(&mut self, words: &Words) -> Outcome {
        let (publisher, subscriber) = self.pair(words)?;
        let (count, delay) = (words.number("n")?, words.number("delay_us")?);
        let mut random = crate::seed::Random::of(words.number("seed")?);
        for done in 0..count {
            let until = std::time::Instant::now() + Duration::from_micros(random.below(delay + 1));
            while std::time::Instant::now() < until {
                std::hint::spin_loop();
            }
            publisher.send_one(8)?;
            if !subscriber.next(Duration::from_secs(5))? {
                return Err(format!("no answer to message {done}"));
            }
        }
        Ok(format!("n={count}"))
    }
}
