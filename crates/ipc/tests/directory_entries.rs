//! Participants come, go and die; what is listed is who is there.

mod scratch;

use scratch::{Child, Scratch};
use zcmi_ipc::directory::{EntryError, Facts, Participant, Role, RuntimeDirectory, ServiceEntry, Swept};
use zcmi_ipc::name::{Incarnation, ServiceName};

const FACTS: Facts = Facts { version: 3, pid: 42, layout_hash: 0x0123_4567_89ab_cdef };

fn name(text: &str) -> ServiceName {
    ServiceName::new(text).expect("a name")
}

fn process() -> Incarnation {
    Incarnation::random().expect("random bytes")
}

fn services_left(directory: &RuntimeDirectory) -> usize {
    std::fs::read_dir(directory.path().join("s")).expect("s").count()
}

#[test]
fn a_participant_is_listed_with_its_facts_until_it_is_dropped() {
    let scratch = Scratch::new();
    let directory = RuntimeDirectory::at(scratch.path().join("run")).expect("a directory");
    let (camera, clock, process) = (name("camera/left"), name("clock"), process());
    assert_eq!(directory.participants(&camera).expect("listing"), []);
    let publisher = directory.create_participant(&camera, process, 1, Role::Publisher, &FACTS).expect("an entry");
    let subscriber = directory.create_participant(&camera, process, 2, Role::Subscriber, &FACTS).expect("an entry");
    let other = directory.create_participant(&clock, process, 3, Role::Publisher, &FACTS).expect("an entry");

    let uid = rustix::process::geteuid().as_raw();
    // The first of a service has turn 1.
    let listed = |endpoint: u32, role| {
        let turn = if endpoint == 3 { 1 } else { endpoint.into() };
        Participant { incarnation: process, endpoint, role, uid, turn, facts: FACTS }
    };
    let both = vec![listed(1, Role::Publisher), listed(2, Role::Subscriber)];
    assert_eq!(directory.participants(&camera).expect("listing"), both);
    let all = [
        ServiceEntry { name: camera.clone(), participants: both },
        ServiceEntry { name: clock, participants: vec![listed(3, Role::Publisher)] },
    ];
    assert_eq!(directory.services().expect("listing"), all);

    drop(publisher);
    assert_eq!(directory.participants(&camera).expect("listing"), [listed(2, Role::Subscriber)]);
    drop(subscriber);
    assert_eq!(directory.participants(&camera).expect("listing"), []);
    assert_eq!(services_left(&directory), 1);
    drop(other);
    assert_eq!(services_left(&directory), 0);
}

#[test]
fn the_same_endpoint_cannot_take_part_twice() {
    let scratch = Scratch::new();
    let directory = RuntimeDirectory::at(scratch.path().join("run")).expect("a directory");
    let (camera, process) = (name("camera"), process());
    let first = directory.create_participant(&camera, process, 1, Role::Publisher, &FACTS).expect("an entry");
    let refusal = directory.create_participant(&camera, process, 1, Role::Publisher, &FACTS).expect_err("twice");
    assert!(matches!(refusal, EntryError::Exists { endpoint: 1, role: Role::Publisher, .. }), "{refusal}");
    assert_eq!(directory.participants(&camera).expect("listing").len(), 1, "the first one is still there");
    drop(first);
    assert_eq!(services_left(&directory), 0, "the refused one left nothing");
}

#[test]
fn another_name_with_the_same_hash_is_refused_and_leaves_nothing() {
    let scratch = Scratch::new();
    let directory = RuntimeDirectory::at(scratch.path().join("run")).expect("a directory");
    let (camera, process) = (name("camera"), process());
    // No two names of one hash are at hand, so a file in the one's directory names the other.
    let service = directory.path().join("s").join(format!("{:032x}", camera.hash()));
    std::fs::create_dir(&service).expect("mkdir");
    let file = service.join(format!("{process}.00000009.pub"));
    std::fs::write(&file, "service=colliding\nversion=3\npid=1\nlayout=0000000000000000\n").expect("a file");

    let refusal = directory.create_participant(&camera, process, 1, Role::Publisher, &FACTS).expect_err("a collision");
    assert!(
        matches!(
            &refusal,
            EntryError::HashCollision { name, other } if *name == camera && other.as_str() == "colliding"
        ),
        "{refusal}"
    );
    assert_eq!(std::fs::read_dir(&service).expect("listing").count(), 1);
    assert_eq!(directory.participants(&camera).expect("listing"), [], "the other's participants are not ours");
    assert_eq!(directory.services().expect("listing"), [], "a name in a directory that is not its own is no service");
}

#[test]
fn files_that_do_not_say_what_they_must_are_no_participants() {
    let scratch = Scratch::new();
    let directory = RuntimeDirectory::at(scratch.path().join("run")).expect("a directory");
    let (camera, process) = (name("camera"), process());
    let made = directory.create_participant(&camera, process, 1, Role::Publisher, &FACTS).expect("an entry");
    let service = directory.path().join("s").join(format!("{:032x}", camera.hash()));
    let good = std::fs::read_to_string(service.join(format!("{process}.00000001.pub"))).expect("the file");
    let long = format!("{good}{}\n", "x=y".repeat(400));
    let damaged = [
        ("00000002.pub", ""),
        ("00000003.pub", "service=camera\n"),
        ("00000004.pub", good.trim_end()),
        ("00000005.pub", &format!("{good}version=4\n")),
        ("00000006.pub", &good.replace("version=3", "version=-3")),
        ("00000007.pub", &good.replace("service=camera", "service=../camera")),
        ("00000008.pub", &long),
        ("00000009.pubs", &good),
        ("0000000A.pub", &good),
        ("a.pub", &good),
        ("+000000b.pub", &good),
    ];
    for (end, content) in damaged {
        std::fs::write(service.join(format!("{process}.{end}")), content).expect("a file");
    }
    std::fs::write(service.join(format!(".new-{process}.0000000c.pub")), &good).expect("a file");
    std::fs::create_dir(service.join(format!("{process}.0000000d.pub"))).expect("a directory");
    std::os::unix::fs::symlink("/dev/zero", service.join(format!("{process}.0000000e.pub"))).expect("a link");
    let pipe = std::process::Command::new("mkfifo").arg(service.join(format!("{process}.0000000f.pub"))).status();
    assert!(pipe.expect("mkfifo").success());
    assert_eq!(directory.participants(&camera).expect("listing").len(), 1);

    let later = good.replace("pid=", "colour=blue\npid=");
    std::fs::write(service.join(format!("{process}.00000010.sub")), later).expect("a file");
    assert_eq!(directory.participants(&camera).expect("listing").len(), 2, "a key of a later version is left alone");
    drop(made);
}

#[test]
fn a_sweep_removes_what_the_dead_left_and_nothing_else() {
    let scratch = Scratch::new();
    let directory = RuntimeDirectory::at(scratch.path().join("run")).expect("a directory");
    let mut child = Child::start("child_that_takes_part", directory.path(), None, &scratch);
    let dead: Incarnation = child.line().parse().expect("an incarnation");
    let living = process();
    let (shared, lonely) = (name("shared"), name("lonely"));
    let _file = directory.create_participant(&shared, living, 1, Role::Publisher, &FACTS).expect("an entry");
    assert_eq!(directory.participants(&shared).expect("listing").len(), 2);
    child.kill();
    std::fs::write(directory.path().join("p").join(dead.to_string()), "").expect("a socket's name");
    std::fs::write(directory.path().join("p").join(format!(".new-{dead}")), "").expect("an unfinished socket's name");
    std::fs::write(directory.path().join("p").join(living.to_string()), "").expect("a socket's name");

    let mut asked = Vec::new();
    let swept = directory.sweep_dead(|incarnation| {
        asked.push(incarnation);
        incarnation == dead
    });
    assert_eq!(swept.expect("a sweep"), Swept { processes: 2, participants: 2, services: 1, kept: 0 });
    asked.sort_unstable();
    let mut both = [dead, living];
    both.sort_unstable();
    assert_eq!(asked, both, "each process is asked about once");
    let left = directory.participants(&shared).expect("listing");
    assert_eq!(left.iter().map(|left| left.incarnation).collect::<Vec<_>>(), [living]);
    assert_eq!(directory.participants(&lonely).expect("listing"), []);
    assert_eq!(services_left(&directory), 1);
    assert_eq!(std::fs::read_dir(directory.path().join("p")).expect("p").count(), 1);
    assert_eq!(directory.sweep_dead(|_| false).expect("a sweep"), Swept::default());
}

#[test]
#[ignore = "a child of another test"]
fn child_that_takes_part() {
    let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
    let directory = RuntimeDirectory::at(path).expect("a directory");
    let own = process();
    let _one = directory.create_participant(&name("shared"), own, 1, Role::Subscriber, &FACTS).expect("an entry");
    let _two = directory.create_participant(&name("lonely"), own, 2, Role::Subscriber, &FACTS).expect("an entry");
    Child::answer(&own.to_string());
    Child::wait_for_parent();
}

#[test]
fn one_dead_participant_can_be_removed_by_whoever_meets_it() {
    let scratch = Scratch::new();
    let directory = RuntimeDirectory::at(scratch.path().join("run")).expect("a directory");
    let mut child = Child::start("child_that_takes_part", directory.path(), None, &scratch);
    child.line();
    child.kill();
    for service in ["shared", "lonely"] {
        let met = directory.participants(&name(service)).expect("listing");
        assert_eq!(met.len(), 1);
        assert!(directory.remove_participant(&name(service), &met[0]).expect("removing"));
        assert!(!directory.remove_participant(&name(service), &met[0]).expect("removing"), "it is gone already");
    }
    assert_eq!(services_left(&directory), 0);
}

#[test]
fn two_processes_that_come_and_go_at_once_never_lose_one_another() {
    let scratch = Scratch::new();
    let directory = RuntimeDirectory::at(scratch.path().join("run")).expect("a directory");
    let mut children = [(); 2].map(|()| Child::start("child_that_comes_and_goes", directory.path(), None, &scratch));
    // A sweep that finds nobody dead removes directories between their making and their first file.
    for _ in 0..200 {
        directory.sweep_dead(|_| false).expect("a sweep");
    }
    for child in &mut children {
        assert_eq!(child.line(), "never lost");
    }
    for child in children {
        assert!(child.finish());
    }
    assert_eq!(services_left(&directory), 0);
}

#[test]
#[ignore = "a child of another test"]
fn child_that_comes_and_goes() {
    let Some(path) = Child::directory() else { return println!("SKIP: only its parent's test needs it") };
    let directory = RuntimeDirectory::at(path).expect("a directory");
    let (meeting, own) = (name("meeting"), process());
    for round in 0..500 {
        let file = directory.create_participant(&meeting, own, round, Role::Publisher, &FACTS).expect("joining");
        let seen = directory.participants(&meeting).expect("listing");
        assert!(seen.iter().any(|seen| (seen.incarnation, seen.endpoint) == (own, round)), "lost in round {round}");
        drop(file);
    }
    Child::answer("never lost");
}
