//! The ledger, read from outside: counts that agree with what was done, of processes that run, stop and die.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Signal;
use zcmi::directory::RuntimeDirectory;
use zcmi::ledger::{Counter, EndpointReading, FallbackReason, LedgerReading, LedgerSnapshot, NotKnown, Role};
use zcmi::name::Incarnation;
use zcmi::observe::{Observed, ProcessState, observe};
use zcmi_tests::rig::{Scratch, Worker, wait_until};
use zcmi_tests::seed::Random;

/// How long a process may take to answer before it is looked at through `/proc`; long where it must answer.
const PATIENCE: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(100);

fn directory(scratch: &Scratch) -> RuntimeDirectory {
    RuntimeDirectory::at(scratch.path()).expect("a runtime directory")
}

/// The incarnation of a worker that takes part in something.
fn incarnation(scratch: &Scratch, worker: &Worker) -> Incarnation {
    let services = directory(scratch).services().expect("a listing");
    let all = services.iter().flat_map(|service| &service.participants);
    let found = all.into_iter().find(|participant| participant.facts.pid == worker.pid());
    found.expect("a participant's file").incarnation
}

fn look(scratch: &Scratch, worker: &Worker, patience: Duration) -> Observed {
    observe(&directory(scratch), incarnation(scratch, worker), Some(worker.pid()), patience)
}

/// What a running worker counted.
fn read(scratch: &Scratch, worker: &Worker) -> LedgerReading {
    let seen = look(scratch, worker, PATIENCE);
    assert_eq!((&seen.state, seen.pid), (&ProcessState::Running, worker.pid()), "{seen:?}");
    seen.ledger.unwrap_or_else(|| panic!("no ledger: {:?}", seen.no_ledger)).read()
}

fn of_role(reading: &LedgerReading, role: Role) -> Vec<&EndpointReading> {
    let mut all: Vec<_> = reading.endpoints.iter().filter(|one| one.snapshot.identity().role == role).collect();
    all.sort_by_key(|one| one.snapshot.identity().endpoint);
    all
}

/// Messages, bytes, copied bytes, drops and refusals.
fn counts(of: &LedgerSnapshot) -> [Result<u64, NotKnown>; 5] {
    [Counter::Messages, Counter::BytesDelivered, Counter::CopiedUser, Counter::Drops, Counter::Refusals]
        .map(|counter| of.count(counter))
}

fn all_known(counts: [u64; 5]) -> [Result<u64, NotKnown>; 5] {
    counts.map(Ok)
}

/// Has all readers receive so many messages in all, at the same time.
fn collect(readers: &mut [Worker], id: &str, count: u64) {
    for reader in &mut *readers {
        reader.tell(format!("collect id={id} n={count}"));
    }
    for reader in readers {
        reader.hear();
    }
}

#[test]
fn the_counts_of_many_processes_agree_with_what_they_did() {
    let scratch = Scratch::new();
    let mut random = Random::of_this_run();
    let (ticks, copies, batches) = (1 + random.below(5_000), 1 + random.below(500), 1 + random.below(20));
    let mut writers = [Worker::start(scratch.path()), Worker::start(scratch.path())];
    let mut readers = [Worker::start(scratch.path()), Worker::start(scratch.path())];
    // Each writer has a service of messages in entries and one of messages in slots.
    for (tag, writer) in writers.iter_mut().enumerate() {
        writer.ask(format!("pub id=ticks service=ticks kind=w3 tag={tag}"));
        writer.ask(format!("pub id=copies service=copies tag={tag}"));
    }
    for reader in &mut readers {
        reader.ask("sub id=ticks service=ticks kind=w3");
        reader.ask("sub id=copies service=copies");
    }
    for reader in &mut readers {
        reader.tell(format!("collect id=ticks n={}", 2 * ticks));
        // A wait is counted when it begins.
        wait_until("the reader waits", || {
            let reading = read(&scratch, reader);
            of_role(&reading, Role::Subscriber)[0].snapshot.count(Counter::Waits).is_ok_and(|waits| waits > 0)
        });
    }
    for writer in &mut writers {
        writer.tell(format!("send id=ticks n={ticks}"));
    }
    for reader in &mut readers {
        reader.hear();
    }
    for writer in &mut writers {
        assert_eq!(writer.hear().number("sent"), ticks);
        // In batches the worker publishes copies of 64 bytes; else it writes in place.
        writer.tell(format!("send id=copies n={copies} sizes=fixed:1000"));
    }
    collect(&mut readers, "copies", 2 * copies);
    for writer in &mut writers {
        assert_eq!(writer.hear().number("sent"), copies);
        writer.tell(format!("send id=copies n={batches} batch=1"));
    }
    collect(&mut readers, "copies", 2 * (copies + batches));
    for writer in &mut writers {
        writer.hear();
    }

    let slots = (copies + batches, 1000 * copies + 64 * batches);
    for writer in &writers {
        let reading = read(&scratch, writer);
        let found = of_role(&reading, Role::Publisher);
        assert_eq!(found.len(), 2, "{reading:?}");
        assert_eq!(counts(&found[0].snapshot), all_known([ticks, 24 * ticks, 0, 0, 0]));
        assert_eq!(counts(&found[1].snapshot), all_known([slots.0, slots.1, 64 * batches, 0, 0]));
        assert_eq!(found[0].lanes, 1);
        assert!(found[0].capacity.is_power_of_two());
    }
    for reader in &readers {
        let reading = read(&scratch, reader);
        let found = of_role(&reading, Role::Subscriber);
        assert_eq!(found.len(), 2, "{reading:?}");
        assert_eq!(counts(&found[0].snapshot), all_known([2 * ticks, 48 * ticks, 0, 0, 0]));
        assert_eq!(counts(&found[1].snapshot), all_known([2 * slots.0, 2 * slots.1, 0, 0, 0]));
        assert_eq!(found[0].lanes, 2);
        let (waits, ns) = (Counter::Waits, Counter::WaitedNs);
        let waited = |counter| found[0].snapshot.count(counter).expect("known");
        assert!(waited(waits) > 0 && waited(ns) > 0, "it waited for the first message");
    }
}

#[test]
fn what_is_refused_and_what_is_overtaken_is_counted_where_it_happens() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    writer.ask("pub id=full service=full kind=w1 tag=1 capacity=8 when_full=refuse");
    writer.ask("pub id=fast service=fast kind=w1 tag=2 capacity=8");
    reader.ask("sub id=full service=full kind=w1");
    reader.ask("sub id=fast service=fast kind=w1 drop_oldest=1");
    for _ in 0..3 {
        writer.ask("send id=full n=100");
    }
    writer.ask("send id=fast n=100");
    let reading = read(&scratch, &writer);
    let found = of_role(&reading, Role::Publisher);
    assert_eq!(counts(&found[0].snapshot), all_known([8, 64, 0, 0, 3]));
    assert_eq!(found[0].snapshot.count(Counter::Waits), Ok(0), "who refuses does not wait");
    assert_eq!(counts(&found[1].snapshot), all_known([100, 800, 0, 0, 0]));
    reader.ask("collect id=fast n=1 ms=200 or_time=1");
    let reading = read(&scratch, &reader);
    let overtaken = &of_role(&reading, Role::Subscriber)[1].snapshot;
    let (messages, drops) = (overtaken.count(Counter::Messages), overtaken.count(Counter::Drops));
    assert!(drops.is_ok_and(|drops| drops > 80), "{drops:?}");
    wait_until("everything was received or lost", || {
        reader.ask("collect id=fast n=100 ms=1 or_time=1");
        let reading = read(&scratch, &reader);
        let seen = &of_role(&reading, Role::Subscriber)[1].snapshot;
        let sum = |counter| seen.count(counter).expect("known");
        sum(Counter::Messages) + sum(Counter::Drops) == 100
    });
    assert!(messages.is_ok());
}

#[test]
fn waits_parks_and_wakes_are_counted_on_both_sides() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    writer.ask("pub id=p service=s kind=w1 tag=1");
    reader.ask("sub id=s service=s kind=w1 wait=park");
    for round in 1..=5 {
        reader.tell(format!("collect id=s n={round}"));
        wait_until("the reader parks", || {
            let reading = read(&scratch, &reader);
            of_role(&reading, Role::Subscriber)[0].snapshot.count(Counter::Parks).is_ok_and(|parks| parks >= round)
                && zcmi_tests::look::state(reader.pid()) == Some('S')
        });
        writer.ask("send id=p n=1");
        reader.hear();
    }
    let reading = read(&scratch, &reader);
    let waits = of_role(&reading, Role::Subscriber)[0].snapshot.count(Counter::Waits).expect("known");
    assert!(waits >= 5, "{waits}");
    let reading = read(&scratch, &writer);
    // Before the publisher knows that the reader may park, the reader wakes by itself; at most one round is spent so.
    let wakes = of_role(&reading, Role::Publisher)[0].snapshot.count(Counter::WakesSent).expect("known");
    assert!((4..=6).contains(&wakes), "{wakes} wakes for 5 messages to a sleeper");
}

#[test]
fn a_stopped_process_is_read_through_proc_with_its_counts() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    writer.ask("pub id=p service=s kind=w5 tag=1");
    reader.ask("sub id=s service=s kind=w5");
    writer.ask("send id=p n=700");
    reader.ask("collect id=s n=700");
    writer.stop();
    reader.stop();
    for (worker, role) in [(&writer, Role::Publisher), (&reader, Role::Subscriber)] {
        let began = Instant::now();
        let seen = look(&scratch, worker, SHORT);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!((&seen.state, seen.pid, &seen.report), (&ProcessState::Stopped, worker.pid(), &None));
        assert!(seen.open_regions.is_some_and(|(count, bytes)| count >= 1 && bytes > 100_000), "{seen:?}");
        let ledger = seen.ledger.unwrap_or_else(|| panic!("no ledger: {:?}", seen.no_ledger));
        let reading = ledger.read();
        assert_eq!(counts(&of_role(&reading, role)[0].snapshot), all_known([700, 28_000, 0, 0, 0]));
        assert_eq!(reading.unsettled, 0);
    }
    writer.signal(Signal::CONT);
    reader.signal(Signal::CONT);
    // It is as it was: the look cost it nothing.
    writer.ask("send id=p n=1");
    reader.ask("collect id=s n=701");
    assert_eq!(look(&scratch, &writer, PATIENCE).state, ProcessState::Running);
}

#[test]
fn a_killed_process_leaves_sums_that_its_observers_still_read() {
    let scratch = Scratch::new();
    let note = scratch.path().join("note");
    for _ in 0..5 {
        let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
        writer.ask("pub id=p service=s tag=1 max_len=256");
        reader.ask("sub id=s service=s");
        reader.tell("collect id=s endings=1");
        let ledger = look(&scratch, &writer, PATIENCE).ledger.expect("a ledger");
        let readers = look(&scratch, &reader, PATIENCE).ledger.expect("a ledger");
        writer.ask(format!("flood id=p sizes=fixed:256 note={}", note.display()));
        let messages = |reading: &LedgerReading| of_role(reading, Role::Publisher)[0].snapshot.count(Counter::Messages);
        wait_until("some messages went by", || messages(&ledger.read()).is_ok_and(|some| some > 2_000));
        writer.kill();
        let answer = reader.hear();
        let noted = std::fs::read(&note).expect("the note");
        let noted = u64::from_le_bytes(noted.try_into().expect("a number"));
        let reading = ledger.read();
        let published = messages(&reading).expect("known");
        assert!((noted..=noted + 1).contains(&published), "{published} in the ledger, {noted} noted");
        // Bytes are stored after the stamp: a kill may come between the two.
        let bytes = of_role(&reading, Role::Publisher)[0].snapshot.count(Counter::BytesDelivered).expect("known");
        assert!(bytes == 256 * published || bytes == 256 * (published - 1), "{bytes} of {published}");
        let received = of_role(&readers.read(), Role::Subscriber)[0].snapshot.count(Counter::Messages);
        assert_eq!(received, Ok(published), "{}", answer.whole());
        assert_eq!(look_dead(&scratch, &writer), ProcessState::Dead);
    }
}

/// How a process that was killed is found, if its files are still there to find it by.
fn look_dead(scratch: &Scratch, worker: &Worker) -> ProcessState {
    let services = directory(scratch).services().expect("a listing");
    let all = services.iter().flat_map(|service| &service.participants);
    let mut left = all.filter(|participant| participant.facts.pid == worker.pid());
    left.next().map_or(ProcessState::Dead, |participant| {
        observe(&directory(scratch), participant.incarnation, Some(worker.pid()), SHORT).state
    })
}

#[test]
fn what_closed_endpoints_did_stays_in_the_sums() {
    let scratch = Scratch::new();
    let (mut writer, mut reader) = (Worker::start(scratch.path()), Worker::start(scratch.path()));
    // Endpoints that stay, so that the processes do.
    writer.ask("pub id=stay service=stay kind=w1");
    reader.ask("sub id=stay service=stay kind=w1");
    for round in 1..=3 {
        writer.ask("pub id=p service=s tag=1");
        reader.ask("sub id=s service=s");
        writer.ask("send id=p n=10 batch=1");
        reader.ask("collect id=s n=10");
        writer.ask("end id=p");
        reader.ask("collect id=s endings=1");
        reader.ask("end id=s");
        let (sent, received) = (read(&scratch, &writer), read(&scratch, &reader));
        assert_eq!(counts(&sent.closed.snapshot), all_known([10 * round, 640 * round, 640 * round, 0, 0]));
        assert_eq!(counts(&received.closed.snapshot), all_known([10 * round, 640 * round, 0, 0, 0]));
        assert_eq!((sent.endpoints.len(), received.endpoints.len()), (1, 1), "{sent:?}");
        assert_eq!(sent.closed.snapshot.identity().role, Role::Closed);
    }
}

#[test]
fn endpoints_without_a_block_are_counted_together_and_nothing_is_made_up() {
    const ENDPOINTS: usize = 140;
    let scratch = Scratch::new();
    let mut worker = Worker::start(scratch.path());
    for index in 0..ENDPOINTS {
        worker.ask(format!("pub id=p{index} service=s{index} capacity=2 max_len=64 reader_slots=2"));
        worker.ask(format!("send id=p{index} n=3 batch=1"));
    }
    let reading = read(&scratch, &worker);
    let own = of_role(&reading, Role::Publisher);
    assert!(own.len() > 100 && own.len() < ENDPOINTS, "{}", own.len());
    assert!(own.iter().all(|one| counts(&one.snapshot) == all_known([3, 192, 192, 0, 0])));
    // Those without a block still have a row each for their lanes: nothing about them is unknown.
    let others = (ENDPOINTS - own.len()) as u64;
    assert_eq!(counts(&reading.overflow.snapshot), all_known([3 * others, 192 * others, 192 * others, 0, 0]));
    for index in ENDPOINTS..270 {
        worker.ask(format!("pub id=p{index} service=s{index} capacity=2 max_len=64 reader_slots=2"));
        worker.ask(format!("send id=p{index} n=3 batch=1"));
    }
    // Now rows are missing too, and what follows from those lanes is not known rather than wrong.
    let reading = read(&scratch, &worker);
    assert_eq!(reading.overflow.snapshot.count(Counter::Messages), Err(NotKnown::NotCounted));
    assert_eq!(reading.overflow.snapshot.count(Counter::CopiedUser), Ok(192 * (others + 130)));
    assert_eq!(reading.total().count(Counter::Messages), Err(NotKnown::NotCounted));
    for index in 1..270 {
        worker.ask(format!("end id=p{index}"));
    }
    let total = read(&scratch, &worker).total();
    assert_eq!(counts(&total), all_known([810, 51_840, 51_840, 0, 0]), "all of it is known once they are closed");
}

/// A socket of a process that is none, at the name of an incarnation.
fn false_process(scratch: &Scratch) -> (Incarnation, OwnedFd) {
    let directory = directory(scratch);
    let incarnation = Incarnation::random().expect("random bytes");
    let path = directory.path().join("p").join(incarnation.to_string());
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("socket");
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).expect("an address")).expect("bind");
    rustix::net::listen(&socket, 8).expect("listen");
    (incarnation, socket)
}

#[test]
fn a_process_that_talks_without_end_costs_its_observer_a_bounded_time() {
    let scratch = Scratch::new();
    let (incarnation, socket) = false_process(&scratch);
    let talker = std::thread::spawn(move || {
        let peer = rustix::net::accept(&socket).expect("accept");
        // Parts of a report, none of them the last: kind, flag, length, text.
        let mut part = vec![14, 0, 0, 0, 4];
        part.extend([b'x'; 1024]);
        let mut sent = 0_u64;
        while rustix::net::send(&peer, &part, SendFlags::NOSIGNAL).is_ok() {
            sent += 1;
        }
        sent
    });
    let began = Instant::now();
    let seen = observe(&directory(&scratch), incarnation, None, Duration::from_secs(20));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(seen.state, ProcessState::Silent, "{seen:?}");
    assert!(seen.report.is_none() && seen.ledger.is_none(), "{seen:?}");
    assert!(seen.no_ledger.as_ref().is_some_and(|reason| reason.contains("longer than")), "{seen:?}");
    assert!(talker.join().expect("it talks until nobody listens") < 10_000);
}

#[test]
fn a_ledger_of_another_incarnation_is_not_taken_for_the_one_asked_for() {
    let scratch = Scratch::new();
    // This process has a ledger of its own, and a socket under a name that is not its.
    let process = zcmi::Process::open(directory(&scratch)).expect("a participant");
    let name = zcmi::name::ServiceName::new("own").expect("a name");
    let service = zcmi::Service::<u64>::with(name, process.clone()).expect("a service");
    let mut publisher = service.publisher().create().expect("a publisher");
    publisher.publish_copy(&7).expect("room");
    let (incarnation, socket) = false_process(&scratch);
    let seen = observe(&directory(&scratch), incarnation, Some(std::process::id()), SHORT);
    assert_eq!(seen.state, ProcessState::Silent);
    assert!(seen.ledger.is_none(), "{seen:?}");
    // The same process under its own name is read.
    let own = observe(&directory(&scratch), process.incarnation(), None, PATIENCE);
    let reading = own.ledger.expect("a ledger").read();
    assert_eq!(of_role(&reading, Role::Publisher)[0].snapshot.count(Counter::Messages), Ok(1));
    drop(socket);
}

#[test]
fn what_is_copied_of_another_users_messages_is_counted() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: starting processes of other users takes root");
        return;
    }
    let scratch = Scratch::shared();
    let (mut owner, mut stranger) =
        (Worker::start_as(61_000, scratch.path()), Worker::start_as(61_001, scratch.path()));
    owner.ask("pub id=p service=s tag=1 max_len=4096 may_block=user:61001");
    stranger.ask("sub id=s service=s accept=user:61000");
    owner.ask("wait-subscribers id=p n=1 ms=5000");
    stranger.tell("collect id=s n=100");
    owner.ask("send id=p n=100 sizes=fixed:1000");
    stranger.hear();
    // Root asks as anybody would: over the socket.
    let reading = read(&scratch, &stranger);
    let subscribers = of_role(&reading, Role::Subscriber);
    assert_eq!(subscribers.len(), 1);
    let seen = &subscribers[0].snapshot;
    assert_eq!(counts(seen), all_known([100, 100_000, 100_000, 0, 0]));
    assert_eq!(seen.fallbacks(FallbackReason::Stranger), 1);
    let reading = read(&scratch, &owner);
    assert_eq!(counts(&of_role(&reading, Role::Publisher)[0].snapshot), all_known([100, 100_000, 0, 0, 0]));
    stranger.finish();
    owner.finish();
}
