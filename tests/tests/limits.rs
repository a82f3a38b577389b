//! How many may take part: limits hold, whoever comes at the same moment or dies in between, and say what to do.

use rustix::process::Signal;
use zcmi::prelude::*;
use zcmi::{Process, PublisherError, SubscriberError, directory::RuntimeDirectory, name::ServiceName};
use zcmi_tests::rig::{Scratch, Worker};
use zcmi_tests::seed::{Length, Random};

/// A participant of a directory of its own, in this very process.
fn process(scratch: &Scratch) -> Process {
    let directory = RuntimeDirectory::at(scratch.path()).expect("a runtime directory");
    Process::open(directory).expect("a participant")
}

fn service(process: &Process, name: &str) -> Service<u64> {
    Service::with(ServiceName::new(name).expect("a name"), process.clone()).expect("a service")
}

#[test]
fn of_many_publishers_that_come_at_the_same_moment_exactly_as_many_stay_as_may() {
    let scratch = Scratch::new();
    let mut workers: Vec<Worker> = (0..6).map(|_| Worker::start(scratch.path())).collect();
    for worker in &mut workers {
        // Each has its socket and its thread, so that all that is left is the race.
        worker.ask("sub id=warm service=warm");
    }
    for round in 0..Length::of_this_run().pick(25, 100, 1000) {
        let may = 1 + round % 2;
        for worker in &mut workers {
            worker.tell(format!("pub id=p service=s kind=w1 capacity=2 max_publishers={may}"));
        }
        let answers: Vec<_> = workers.iter_mut().map(Worker::try_hear).collect();
        let stayed = answers.iter().filter(|answer| answer.is_ok()).count() as u64;
        assert_eq!(stayed, may, "round {round}: {answers:?}");
        for (worker, answer) in workers.iter_mut().zip(answers) {
            match answer {
                Ok(_) => drop(worker.ask("end id=p")),
                Err(text) => assert!(text.contains("TooManyPublishers"), "{text}"),
            }
        }
    }
}

#[test]
fn a_winner_that_is_killed_leaves_the_place_to_exactly_one_of_the_others() {
    let scratch = Scratch::new();
    let mut random = Random::of_this_run();
    for round in 0..Length::of_this_run().pick(10, 40, 400) {
        let mut workers: Vec<Worker> = (0..4).map(|_| Worker::start(scratch.path())).collect();
        for worker in &mut workers {
            worker.tell("pub id=p service=s kind=w1 capacity=2 max_publishers=1");
        }
        // One is killed somewhere in between, it may be the one that wins.
        zcmi_tests::rig::pause(std::time::Duration::from_micros(random.below(3000)));
        let mut victim = workers.swap_remove(random.below(4) as usize);
        victim.signal(Signal::KILL);
        victim.kill();
        let stayed = workers.iter_mut().map(Worker::try_hear).filter(Result::is_ok).count();
        assert!(stayed <= 1, "round {round}: {stayed} publish");
        if stayed == 0 {
            // The dead one had won. Of those that try again at the same moment one stays.
            for worker in &mut workers {
                worker.tell("pub id=p service=s kind=w1 capacity=2 max_publishers=1");
            }
            let stayed = workers.iter_mut().map(Worker::try_hear).filter(Result::is_ok).count();
            assert_eq!(stayed, 1, "round {round}: the place of the dead is free");
        }
    }
}

#[test]
fn the_sixty_fifth_publisher_of_a_service_is_refused_with_the_number() {
    let scratch = Scratch::new();
    let process = process(&scratch);
    let create = || service(&process, "s").publisher().capacity(2).create();
    let mut publishers: Vec<_> = (0..64).map(|_| create().expect("a place")).collect();
    let refused = create().expect_err("64 are there");
    assert!(matches!(refused, PublisherError::TooManyPublishers { limit: 64, .. }), "{refused}");
    assert!(refused.to_string().contains("64 publisher(s)") && refused.to_string().contains("end one"), "{refused}");
    drop(publishers.pop());
    publishers.push(create().expect("a place became free"));
}

#[test]
fn the_sixty_fifth_subscriber_of_a_service_is_refused_with_the_number() {
    let scratch = Scratch::new();
    let process = process(&scratch);
    let join = || service(&process, "s").subscriber().join();
    let mut subscribers: Vec<_> = (0..64).map(|_| join().expect("a place")).collect();
    let refused = join().expect_err("64 are there");
    assert!(matches!(refused, SubscriberError::TooManySubscribers { limit: 64, .. }), "{refused}");
    assert!(refused.to_string().contains("64 subscribers") && refused.to_string().contains("end one"), "{refused}");
    drop(subscribers.pop());
    subscribers.push(join().expect("a place became free"));
    let publisher = service(&process, "s").publisher().create().expect("a publisher");
    assert_eq!(publisher.subscribers(), 64);
}

#[test]
fn the_places_of_killed_subscribers_are_free() {
    let scratch = Scratch::new();
    let mut dead = Worker::start(scratch.path());
    for number in 0..64 {
        dead.ask(format!("sub id={number} service=s kind=w1"));
    }
    let process = process(&scratch);
    let refused = service(&process, "s").subscriber().join().expect_err("64 are there");
    assert!(matches!(refused, SubscriberError::TooManySubscribers { .. }), "{refused}");
    dead.kill();
    drop(service(&process, "s").subscriber().join().expect("nobody is there"));
}

#[test]
fn a_process_takes_part_in_1024_services_and_no_more() {
    let scratch = Scratch::new();
    let process = process(&scratch);
    let join = |number: u32| service(&process, &format!("s{number}")).subscriber().join();
    let mut subscribers: Vec<_> = (0..1024).map(|number| join(number).expect("a place")).collect();
    let refused = join(1024).expect_err("the limit");
    assert!(matches!(refused, SubscriberError::TooManyServices { limit: 1024 }), "{refused}");
    assert!(refused.to_string().contains("1024 services") && refused.to_string().contains("drop"), "{refused}");
    let refused = service(&process, "s1024").publisher().create().expect_err("the limit");
    assert!(matches!(refused, PublisherError::TooManyServices { limit: 1024 }), "{refused}");
    // Another endpoint of a service that is taken part in is none more.
    let publisher = service(&process, "s7").publisher().create().expect("a publisher");
    assert_eq!(publisher.subscribers(), 1);
    drop(subscribers.pop());
    subscribers.push(join(1024).expect("a place became free"));
}
