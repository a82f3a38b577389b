//! Publishing and subscribing between users: who may, what they share, and that neither side can harm the other.
//!
//! Three users take part, all of them made up: the owner of a publisher, a stranger, and one that nobody knows. They
//! meet in a directory as an operator makes it. Without root there is no such test.

use std::collections::BTreeSet;
use std::time::Duration;

use zcmi_tests::look;
use zcmi_tests::rig::{Scratch, Track, Worker, wait_until};

const OWNER: u32 = 61_000;
const STRANGER: u32 = 61_001;
const NOBODY_KNOWS: u32 = 61_002;

/// The shared directory, or nothing where no other users can be had.
fn shared() -> Option<Scratch> {
    if rustix::process::geteuid().is_root() {
        return Some(Scratch::shared());
    }
    println!("SKIP: starting processes of other users takes root");
    None
}

/// A publisher of the owner's, made with these options besides its name, and a process of the stranger's.
fn publisher_and_stranger(scratch: &Scratch, options: &str) -> (Worker, Worker) {
    let mut owner = Worker::start_as(OWNER, scratch.path());
    owner.ask(format!("pub id=p service=s tag=1 max_len=4096 {options}"));
    (owner, Worker::start_as(STRANGER, scratch.path()))
}

/// The name of the only process that has a socket.
fn only_process(scratch: &Scratch) -> String {
    let mut found = std::fs::read_dir(scratch.path().join("p")).expect("a listing").flatten();
    let name = found.next().expect("a socket").file_name().into_string().expect("text");
    assert!(found.next().is_none(), "one process");
    name
}

#[test]
fn a_stranger_that_is_allowed_gets_history_and_what_comes_and_copies_it() {
    let Some(scratch) = shared() else { return };
    for (who, sizes) in [("user:61001", "tagged:4096"), ("group:61001", "fixed:8"), ("everybody", "fixed:40")] {
        let (mut owner, mut stranger) = publisher_and_stranger(&scratch, &format!("allow={who} history=8"));
        owner.ask(format!("send id=p n=20 sizes={sizes}"));
        stranger.ask("sub id=s service=s drop_oldest=1 accept=user:61000 wait=park");
        let held = stranger.ask("hold id=s n=1");
        assert_eq!(held.number("in_place"), 0, "{who}");
        stranger.tell("collect id=s n=18");
        owner.ask(format!("send id=p n=10 sizes={sizes}"));
        assert_eq!(stranger.hear().tracks()[&1], Track::whole(12, 30), "{who}");
        stranger.ask("check-held id=s");
        owner.ask("end id=p");
        stranger.ask("collect id=s endings=1");
        owner.finish();
        stranger.finish();
    }
}

#[test]
fn a_parked_stranger_is_woken_for_every_message() {
    let Some(scratch) = shared() else { return };
    let (mut owner, mut stranger) = publisher_and_stranger(&scratch, "allow=user:61001");
    owner.ask("sub id=back service=back accept=user:61001 drop_oldest=1 wait=park");
    stranger.ask("pub id=p service=back tag=2 allow=user:61000");
    stranger.ask("sub id=s service=s accept=user:61000 drop_oldest=1 wait=park");
    owner.ask("wait-subscribers id=p n=1 ms=5000");
    stranger.ask("wait-subscribers id=p n=1 ms=5000");
    stranger.tell("echo to=p from=s");
    // A wake that is lost is an answer that does not come: nothing else would wake either side.
    let answer = owner.ask("ping to=p from=back n=300 delay_us=300 seed=3");
    assert_eq!(answer.number("n"), 300);
}

#[test]
fn a_slow_stranger_loses_messages_and_knows_exactly_how_many() {
    let Some(scratch) = shared() else { return };
    let (mut owner, mut stranger) = publisher_and_stranger(&scratch, "allow=user:61001 capacity=16");
    stranger.ask("sub id=s service=s drop_oldest=1 accept=user:61000");
    owner.ask("wait-subscribers id=p n=1 ms=5000");
    stranger.tell("collect id=s endings=1");
    owner.ask("send id=p n=100000 sizes=tagged:4096");
    owner.ask("end id=p");
    // Every message was checked to the last byte when it came.
    let answer = stranger.hear();
    let track = answer.tracks()[&1];
    assert_eq!(track.got + answer.number("lost"), 100_000, "{}", answer.whole());
    assert!(track.got > 0 && answer.number("lost") > 0, "{}", answer.whole());
    assert_eq!(answer.happened().last().map(|last| (last.what.as_str(), last.number)), Some(("ended", 100_000)));
}

#[test]
fn a_stranger_with_the_grant_loses_nothing_and_holds_the_publisher_up() {
    let Some(scratch) = shared() else { return };
    let (mut owner, mut stranger) = publisher_and_stranger(&scratch, "may_block=user:61001 capacity=16 when_full=2000");
    stranger.ask("sub id=s service=s accept=user:61000 wait=park");
    owner.ask("wait-subscribers id=p n=1 ms=5000");
    let answer = owner.ask("send id=p n=100 sizes=fixed:1000");
    assert_eq!(answer.number("sent"), 16, "it reads nothing: {}", answer.whole());
    stranger.tell("collect id=s n=5016");
    // Each wait of the publisher's is ended by a message of the stranger's, since no eventfd goes between them.
    assert_eq!(owner.ask("send id=p n=5000 sizes=tagged:4096").number("sent"), 5000);
    assert_eq!(stranger.hear().tracks()[&1], Track::whole(0, 5016));
}

#[test]
fn whoever_is_not_allowed_is_refused_with_the_reason() {
    let Some(scratch) = shared() else { return };
    let (owner, mut stranger) = publisher_and_stranger(&scratch, "allow=user:61001");
    let text = stranger.ask_in_vain("sub id=s service=s accept=user:61000");
    assert!(text.contains("may not hold this publisher up") && text.contains("drop_oldest"), "{text}");
    let mut other = Worker::start_as(NOBODY_KNOWS, scratch.path());
    let text = other.ask_in_vain("sub id=s service=s accept=user:61000 drop_oldest=1");
    assert!(text.contains("does not let this user in"), "{text}");
    // The process lets it in for another service: then the publisher itself refuses.
    let mut owner = owner;
    owner.ask("pub id=q service=open tag=2 allow=user:61002");
    let text = other.ask_in_vain("sub id=s service=s accept=user:61000 drop_oldest=1");
    assert!(text.contains("user 61002 may not subscribe to `s`"), "{text}");
    other.ask("sub id=t service=open accept=user:61000 drop_oldest=1");
    assert_eq!(owner.ask("subscribers id=q").number("n"), 1);
    assert_eq!(owner.ask("subscribers id=p").number("n"), 0);
}

#[test]
fn nothing_is_read_of_a_stranger_that_was_not_asked_for() {
    let Some(scratch) = shared() else { return };
    let mut owner = Worker::start_as(OWNER, scratch.path());
    // Neither its layout nor its number matters to ours, and its publisher is not read.
    owner.ask("pub id=p service=s tag=1 kind=w1 allow=everybody max_publishers=1");
    let mut stranger = Worker::start_as(STRANGER, scratch.path());
    stranger.ask("pub id=p service=s tag=2 kind=w100 allow=everybody max_publishers=1");
    stranger.ask("sub id=s service=s kind=w100");
    assert_eq!(stranger.ask("publishers id=s").number("n"), 1, "its own");
    owner.ask("sub id=s service=s kind=w1");
    assert_eq!(owner.ask("publishers id=s").number("n"), 1, "its own");
}

#[test]
fn a_directory_of_ones_own_is_shared_with_nobody_and_says_what_to_do() {
    let scratch = Scratch::new();
    let mut worker = Worker::start(scratch.path());
    for command in ["pub id=p service=s allow=everybody", "sub id=s service=s accept=user:61001"] {
        let text = worker.ask_in_vain(command);
        assert!(text.contains("0711") && text.contains("ZCMI_RUNTIME_DIR"), "{text}");
    }
    worker.ask("pub id=p service=s");
}

#[test]
fn a_stranger_has_the_regions_of_its_audience_and_cannot_change_them() {
    let Some(scratch) = shared() else { return };
    let (mut owner, mut stranger) = publisher_and_stranger(&scratch, "allow=user:61001");
    owner.ask("pub id=own service=own tag=3 max_len=4096");
    owner.ask("pub id=other service=other tag=4 max_len=4096 allow=user:61002");
    let mut friend = Worker::start_as(OWNER, scratch.path());
    for service in ["s", "own", "other"] {
        friend.ask(format!("sub id={service} service={service}"));
    }
    let mut other = Worker::start_as(NOBODY_KNOWS, scratch.path());
    other.ask("sub id=s service=other accept=user:61000 drop_oldest=1");
    stranger.ask("sub id=s service=s accept=user:61000 drop_oldest=1 wait=park");
    stranger.tell("collect id=s n=100");
    owner.ask("send id=p n=100 sizes=fixed:1000");
    stranger.hear();

    let made: BTreeSet<u64> = look::own_memfds(owner.pid());
    let given = |worker: &Worker| look::foreign_memfds(worker.pid()).intersection(&made).copied().collect();
    let (ours, strangers, others): (BTreeSet<u64>, BTreeSet<u64>, BTreeSet<u64>) =
        (given(&friend), given(&stranger), given(&other));
    assert!(!strangers.is_empty() && strangers.is_subset(&ours), "{strangers:?} of {ours:?}");
    assert!(!others.is_empty() && strangers.is_disjoint(&others), "{strangers:?} and {others:?}");
    assert!(ours.len() > strangers.len() + others.len(), "what is the user's own stays there");
    // What the stranger made for its block is mapped by the publisher, and no wake page of either by the other.
    assert_eq!(look::own_memfds(stranger.pid()).intersection(&look::own_memfds(owner.pid())).count(), 0);
    let waking = look::descriptors(stranger.pid()).iter().filter(|name| name.contains("eventfd")).count();
    assert!(waking <= 2, "its mailbox's and its waiter's: {:?}", look::descriptors(stranger.pid()));
    assert_eq!(stranger.ask("try-memory").number("foreign"), strangers.len() as u64);
}

#[test]
fn a_stranger_killed_under_load_is_forgotten_and_nobody_is_held_up() {
    let Some(scratch) = shared() else { return };
    let (mut owner, _) = publisher_and_stranger(&scratch, "may_block=user:61001 capacity=16");
    let mut friend = Worker::start_as(OWNER, scratch.path());
    friend.ask("sub id=f service=s");
    owner.tell("flood id=p n=20000 sizes=tagged:4096");
    owner.hear();
    friend.tell("collect id=f endings=1");
    for policy in ["", "drop_oldest=1", "", "drop_oldest=1"] {
        let mut stranger = Worker::start_as(STRANGER, scratch.path());
        stranger.ask(format!("sub id=s service=s accept=user:61000 {policy}"));
        // Dead in the middle of its reading, and with everything unread.
        stranger.tell("collect id=s");
        stranger.kill();
    }
    assert_eq!(owner.hear().number("next"), 20_000);
    wait_until("only the friend is left", || owner.ask("subscribers id=p").number("n") == 1);
    owner.ask("end id=p");
    assert_eq!(friend.hear().tracks()[&1].next, 20_000);
}

#[test]
fn what_a_dead_stranger_had_published_is_still_received() {
    let Some(scratch) = shared() else { return };
    let mut owner = Worker::start_as(OWNER, scratch.path());
    let mut stranger = Worker::start_as(STRANGER, scratch.path());
    stranger.ask("pub id=p service=s tag=1 max_len=4096 allow=user:61000 capacity=64");
    owner.ask("sub id=s service=s accept=user:61001 drop_oldest=1");
    stranger.ask("send id=p n=40 sizes=tagged:4096");
    stranger.kill();
    let answer = owner.ask("collect id=s endings=1");
    assert_eq!(answer.tracks()[&1], Track::whole(0, 40));
    assert_eq!(answer.happened().last().map(|last| last.what.clone()), Some("died".to_owned()));
}

#[test]
fn a_hostile_stranger_on_the_socket_costs_the_others_nothing() {
    let Some(scratch) = shared() else { return };
    let (mut owner, mut stranger) = publisher_and_stranger(&scratch, "allow=everybody");
    let process = only_process(&scratch);
    // So that the process stays the same when its publisher goes.
    owner.ask("pub id=stays service=stays tag=9 allow=everybody");
    let mut friend = Worker::start_as(OWNER, scratch.path());
    friend.ask("sub id=f service=s");
    stranger.ask("sub id=s service=s accept=user:61000 drop_oldest=1");
    let own = std::fs::read_dir(scratch.path().join("p")).expect("a listing").flatten().find_map(|entry| {
        let theirs = std::os::unix::fs::MetadataExt::uid(&entry.metadata().ok()?) == STRANGER;
        theirs.then(|| entry.file_name().into_string().expect("text"))
    });
    let own = own.expect("the stranger's socket");
    for (seed, what) in ["silence", "garbage", "parks", "descriptors"].into_iter().enumerate() {
        stranger.tell(format!("hammer process={process} as={own} what={what} seed={seed} ms=300"));
        friend.tell("collect id=f n=2000");
        owner.ask("send id=p n=2000 sizes=tagged:4096");
        friend.hear();
        // A friend that comes meanwhile is served.
        let mut late = Worker::start_as(OWNER, scratch.path());
        late.ask("sub id=l service=s");
        assert_eq!(late.ask("publishers id=l").number("n"), 1, "{what}");
        late.finish();
        let answer = stranger.hear();
        assert!(answer.number("connected") > 0, "{what}: {}", answer.whole());
        owner.ask("end id=p");
        friend.ask("end id=f");
        owner.ask("pub id=p service=s tag=1 max_len=4096 allow=everybody");
        friend.ask("sub id=f service=s");
    }
    assert!(look::descriptors(owner.pid()).len() < 100, "{:?}", look::descriptors(owner.pid()));
}

#[test]
fn nobody_takes_the_name_of_another_users_process() {
    let Some(scratch) = shared() else { return };
    let mut owner = Worker::start_as(OWNER, scratch.path());
    owner.ask("pub id=p service=s tag=1 allow=everybody");
    let process = only_process(&scratch);
    let mut friend = Worker::start_as(OWNER, scratch.path());
    // It is there, with a socket, and the owner has not heard of it.
    friend.ask("pub id=q service=elsewhere");
    let name = std::fs::read_dir(scratch.path().join("p")).expect("a listing").flatten();
    let name = name.filter_map(|entry| entry.file_name().into_string().ok()).find(|name| *name != process);
    let name = name.expect("the friend's socket");
    let mut stranger = Worker::start_as(STRANGER, scratch.path());
    // It says so over many connections, and keeps the last ones.
    stranger.ask(format!("hammer process={process} as={name} what=name keep=1 seed=1 ms=100"));
    friend.ask("sub id=f service=s kind=bytes");
    assert_eq!(friend.ask("publishers id=f").number("n"), 1);
}

#[test]
fn a_stranger_whose_cursor_lies_ends_itself_alone() {
    let Some(scratch) = shared() else { return };
    let (mut owner, mut stranger) =
        publisher_and_stranger(&scratch, "may_block=user:61001 capacity=64 when_full=refuse");
    let mut friend = Worker::start_as(OWNER, scratch.path());
    friend.ask("sub id=f service=s");
    stranger.ask("sub id=s service=s accept=user:61000");
    owner.ask("wait-subscribers id=p n=2 ms=5000");
    stranger.tell("scribble seed=5 ms=500");
    friend.tell("collect id=f endings=1");
    // Whatever the words of its block become, no slot is reused that the friend has not read, and none is lost.
    let mut sent = 0;
    while !stranger.is_heard_within(Duration::ZERO) {
        sent += owner.ask("send id=p n=100 sizes=tagged:4096").number("sent");
    }
    owner.ask("end id=p");
    assert_eq!(friend.hear().tracks()[&1], Track::whole(0, sent));
    assert!(sent > 0);
}

#[test]
fn a_publisher_that_writes_nonsense_is_given_up_and_the_others_are_read() {
    let Some(scratch) = shared() else { return };
    for (seed, policy) in ["drop_oldest=1", "drop_oldest=1", ""].into_iter().enumerate() {
        let mut owner = Worker::start_as(OWNER, scratch.path());
        let mut stranger = Worker::start_as(STRANGER, scratch.path());
        owner.ask("pub id=own service=s tag=1 max_len=4096 capacity=64");
        stranger.ask("pub id=p service=s tag=2 max_len=4096 capacity=64 may_block=user:61000 when_full=refuse");
        owner.ask(format!("sub id=s service=s accept=user:61001 bears_faults=1 {policy}"));
        assert_eq!(owner.ask("publishers id=s").number("n"), 2);
        stranger.tell(format!("scribble seed={seed} ms=400"));
        let mut sent = 0;
        while !stranger.is_heard_within(Duration::ZERO) {
            owner.ask("send id=own n=32 sizes=tagged:4096");
            sent += 32;
            owner.ask(format!("collect id=s of=1 until={sent}"));
        }
        stranger.hear();
        let answer = owner.ask(format!("collect id=s of=1 until={sent}"));
        assert_eq!(answer.tracks()[&1].next, sent, "{}", answer.whole());
        let faults = answer.happened().iter().filter(|event| event.what == "faulty").count();
        assert!(faults <= 1, "{}", answer.whole());
        if faults == 0 {
            assert_eq!(owner.ask("publishers id=s").number("n"), 2, "{}", answer.whole());
        }
    }
}

#[test]
fn what_a_stranger_leaves_in_the_directory_costs_little() {
    use std::os::unix::fs::chown;
    let Some(scratch) = shared() else { return };
    let mut owner = Worker::start_as(OWNER, scratch.path());
    owner.ask("pub id=first service=s tag=1 max_len=64 allow=user:61001");
    let service = std::fs::read_dir(scratch.path().join("s")).expect("a listing").flatten().next().expect("a service");
    let text = std::fs::read_to_string(
        std::fs::read_dir(service.path()).expect("a listing").flatten().next().expect("a file").path(),
    );
    let text = text.expect("a participant's file");
    for number in 0..3000_u128 {
        for role in ["sub", "pub"] {
            let path = service.path().join(format!("{:032x}.00000001.{role}", number << 64 | 7));
            std::fs::write(&path, &text).expect("a file");
            chown(&path, Some(STRANGER), Some(STRANGER)).expect("chown");
        }
    }
    let begin = std::time::Instant::now();
    owner.ask("pub id=second service=s tag=2 max_len=64 allow=user:61001");
    owner.ask("sub id=own service=s accept=user:61001");
    // Asking all of them, and looking at all for each, took more than half a minute.
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    owner.ask("send id=second n=3");
    owner.ask("collect id=own n=3");
    owner.finish();
}
