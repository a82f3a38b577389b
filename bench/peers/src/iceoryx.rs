//! Row `iceoryx2`: publish/subscribe of the crate iceoryx2 between two processes, polled without sleeping.
//!
//! Payloads are loaned slices of words, one service for each direction, one publisher and one subscriber each, buffers
//! as deep as those of the other rows, and a publisher that retries until delivered, without sleeping in between.
//! Nothing it makes is left behind: all its files have a root directory and a prefix of their own ([`Scene`]), which go
//! when the scene does; what a killed run left, the next one sweeps.

mod sys;

use std::fs;
use std::path::{Path, PathBuf};

use iceoryx2::config::Config;
use iceoryx2::node::Node;
use iceoryx2::port::BackpressureAction;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::{
    BackpressureStrategy, FileName, LogLevel, NodeBuilder, SemanticString, ServiceName, SignalHandlingMode, ipc,
    set_log_level,
};
use iceoryx2::sample::Sample;
use rustix::process::{Pid, getpid, test_kill_process};
use serde::{Deserialize, Serialize};
use zcmi_bench::child::{Channel, Child, RoleResult};
use zcmi_bench::link::{Link, LinkError, Near, serve};
use zcmi_bench::pattern;
use zcmi_bench::pin::{self, Pair};
use zcmi_bench::spin::{LIMIT, Patience};

/// Samples under way stay near this size together, as the slots of zcmi's row `bare`.
const FOOTPRINT_BYTES: usize = 256 << 10;
/// The deepest buffer of a subscriber.
const DEEPEST: usize = 256;
/// What the files' prefixes begin with; the process number follows.
const PREFIX: &str = "zcmi_peers_";

/// A root directory and a prefix for the files of iceoryx2; dropping it removes all of them.
#[derive(Debug)]
pub(crate) struct Scene {
    number: String,
}

impl Scene {
    /// A scene for this process, after removing those of dead ones.
    pub(crate) fn new() -> Result<Self, LinkError> {
        for entry in fs::read_dir(std::env::temp_dir())?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(number) = name.strip_prefix(PREFIX) else { continue };
            let process = number.parse().ok().and_then(Pid::from_raw);
            if process.is_some_and(|process| test_kill_process(process).is_err()) {
                Self { number: number.to_owned() }.remove();
            }
        }
        let scene = Self { number: getpid().as_raw_nonzero().to_string() };
        fs::create_dir_all(root(&scene.number))?;
        Ok(scene)
    }

    fn remove(&self) {
        // What is not there needs no removing, and what cannot be removed is swept by the next run.
        let _ = fs::remove_dir_all(root(&self.number));
        let prefix = prefix(&self.number);
        for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.remove();
    }
}

fn root(number: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{number}"))
}

fn prefix(number: &str) -> String {
    format!("{PREFIX}{number}_")
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Setup {
    cpu: usize,
    payload_bytes: usize,
    scene: String,
    service: String,
}

/// One end: a publisher in one direction and a subscriber in the other.
#[derive(Debug)]
pub(crate) struct Ports {
    publisher: Publisher<ipc::Service, [u64], ()>,
    subscriber: Subscriber<ipc::Service, [u64], ()>,
    words: usize,
    _node: Node<ipc::Service>,
}

impl Ports {
    fn open(setup: &Setup, outgoing: &str, incoming: &str) -> Result<Self, LinkError> {
        set_log_level(LogLevel::Error);
        let mut config = Config::default();
        let root: &Path = &root(&setup.scene);
        let root = root.to_str().ok_or("the directory for temporary files has no readable name")?;
        config.global.set_root_path(&root.try_into().map_err(|error| format!("{root}: {error:?}"))?);
        config.global.prefix =
            FileName::new(prefix(&setup.scene).as_bytes()).map_err(|error| format!("prefix: {error:?}"))?;
        let node = NodeBuilder::new()
            .config(&config)
            .signal_handling_mode(SignalHandlingMode::Disabled)
            .create::<ipc::Service>()?;
        let words = setup.payload_bytes / 8;
        let depth = (FOOTPRINT_BYTES / setup.payload_bytes).clamp(4, DEEPEST);
        let service = |direction: &str| {
            let name = ServiceName::new(&format!("{}/{direction}", setup.service))?;
            let service = node
                .service_builder(&name)
                .publish_subscribe::<[u64]>()
                .enable_safe_overflow(false)
                .subscriber_max_buffer_size(depth)
                .subscriber_max_borrowed_samples(2)
                .history_size(0)
                .max_publishers(1)
                .max_subscribers(1)
                .open_or_create()?;
            Ok::<_, LinkError>(service)
        };
        let publisher = service(outgoing)?
            .publisher_builder()
            .initial_max_slice_len(words)
            .max_loaned_samples(1)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            // The strategy alone would sleep between tries; every row spins, and gives up at the same time.
            .set_backpressure_handler(|info| match info.elapsed_time {
                elapsed if elapsed < LIMIT => BackpressureAction::Retry,
                _ => BackpressureAction::DiscardDataAndFail,
            })
            .create()?;
        let subscriber = service(incoming)?.subscriber_builder().buffer_size(depth).create()?;
        Ok(Self { publisher, subscriber, words, _node: node })
    }

    #[inline]
    fn receive(&mut self) -> Result<Sample<ipc::Service, [u64], ()>, LinkError> {
        let mut patience = Patience::new();
        loop {
            if let Some(sample) = self.subscriber.receive()? {
                return Ok(sample);
            }
            patience.turn()?;
        }
    }
}

impl Link for Ports {
    #[inline]
    fn send_word(&mut self, word: u64) -> Result<(), LinkError> {
        let sample = self.publisher.loan_slice_uninit(self.words)?;
        sys::with_first_word(sample, word).send()?;
        Ok(())
    }

    #[inline]
    fn receive_word(&mut self) -> Result<u64, LinkError> {
        Ok(self.receive()?.payload()[0])
    }

    #[inline]
    fn produce(&mut self, sequence: u64) -> Result<(), LinkError> {
        let first = pattern::seed(sequence);
        let sample = self.publisher.loan_slice_uninit(self.words)?;
        sample.write_from_fn(|index| first.wrapping_add(index as u64)).send()?;
        Ok(())
    }

    #[inline]
    fn consume(&mut self, sequence: u64) -> Result<(), LinkError> {
        Ok(pattern::check(self.receive()?.payload(), sequence)?)
    }
}

/// Both ends, the far one in a child.
pub(crate) fn near(scene: &Scene, payload_bytes: usize, pair: Pair) -> Result<Near<Ports, Child>, LinkError> {
    let child = Child::spawn("iceoryx2")?;
    let setup =
        Setup { cpu: pair.far, payload_bytes, scene: scene.number.clone(), service: format!("size{payload_bytes}") };
    let link = Ports::open(&setup, "there", "back")?;
    child.channel().send(&setup, &[])?;
    child.channel().receive::<()>(0)?;
    Ok(Near::new(link, child, payload_bytes))
}

/// The far side.
pub(crate) fn far(channel: &Channel) -> RoleResult {
    let (setup, _) = channel.receive::<Setup>(0)?;
    let _pinned = pin::pin(setup.cpu)?;
    let mut link = Ports::open(&setup, "back", "there")?;
    channel.send(&(), &[])?;
    serve(channel, &mut link)
}
