//! A stranger that connects all the time: the processes of our own user go on meeting.
//!
//! The queue in which connections wait for a process is one for all users, and finds no place for ours now and then.
//! What serves them all the same: every connection that waits is taken, a stranger's past its bounds is closed at once,
//! and who found no place tries again for a second.

use std::time::{Duration, Instant};

use zcmi_tests::rig::{Scratch, Worker};

const OWNER: u32 = 61_000;
const STRANGER: u32 = 61_001;

/// Connections that each of the stranger's processes keeps open.
const HELD: u32 = 500;
/// Services that are open to the stranger.
const SERVICES: u32 = 100;
/// Within which a join must be done.
const SERVED: Duration = Duration::from_secs(2);

/// The names of the processes that have a socket.
fn processes(scratch: &Scratch) -> Vec<String> {
    let found = std::fs::read_dir(scratch.path().join("p")).expect("a listing").flatten();
    found.map(|entry| entry.file_name().into_string().expect("text")).collect()
}

#[test]
fn joins_of_our_own_user_are_done_in_time_while_a_stranger_floods_the_socket() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: starting processes of other users takes root");
        return;
    }
    let scratch = Scratch::shared();
    let mut owner = Worker::start_as(OWNER, scratch.path());
    owner.ask("pub id=p service=s tag=1 allow=everybody");
    owner.ask("sub id=s service=back");
    // What the stranger may do is asked of each of them.
    for number in 0..SERVICES {
        owner.ask(format!("pub id=p{number} service=s{number} allow=user:61001 capacity=2 max_len=64"));
    }
    let process = processes(&scratch).pop().expect("a socket");
    let mut strangers = [(); 3].map(|()| Worker::start_as(STRANGER, scratch.path()));
    for stranger in &mut strangers {
        stranger.tell(format!("connect-all process={process} held={HELD} ms=2000"));
    }
    let (mut rounds, mut longest) = (0, Duration::ZERO);
    while !strangers.iter_mut().any(|stranger| stranger.is_heard_within(Duration::ZERO)) {
        let mut friend = Worker::start_as(OWNER, scratch.path());
        let begun = Instant::now();
        friend.ask("sub id=f service=s");
        assert_eq!(friend.ask("publishers id=f").number("n"), 1, "round {rounds}");
        // The other way round: a publisher that comes is made known to a subscriber that is flooded.
        friend.ask("pub id=b service=back tag=2");
        assert_eq!(friend.ask("subscribers id=b").number("n"), 1, "round {rounds}");
        longest = longest.max(begun.elapsed());
        assert!(longest < SERVED, "round {rounds} took {longest:?}");
        friend.finish();
        owner.ask("collect id=s endings=1");
        rounds += 1;
    }
    assert!(rounds > 0);
    for mut stranger in strangers {
        let flood = stranger.hear();
        println!("{rounds} rounds, the longest {longest:?}; {}", flood.whole());
        assert_eq!(flood.number("held"), u64::from(HELD));
    }
}
