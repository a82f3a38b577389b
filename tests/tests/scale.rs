//! Many endpoints: descriptors and memory stay few.

use std::sync::{Mutex, PoisonError};

use zcmi::prelude::*;
use zcmi::{Process, directory::RuntimeDirectory, name::ServiceName};
use zcmi_tests::look;
use zcmi_tests::rig::{Scratch, Track, Worker};
use zcmi_tests::seed::Length;

/// Descriptors are counted, so one test at a time has its pipes open.
static ALONE: Mutex<()> = Mutex::new(());

/// 64 publishers and 64 subscribers on one service, in so many processes each.
fn sixty_four_by_sixty_four(processes: u16) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::new();
    let mut readers: Vec<Worker> = (0..processes).map(|_| Worker::start(scratch.path())).collect();
    let mut writers: Vec<Worker> = (0..processes).map(|_| Worker::start(scratch.path())).collect();
    let each = 64 / processes;
    for number in 0..each {
        for reader in &mut readers {
            reader.ask(format!("sub id=s{number} service=all kind=w2"));
        }
    }
    for number in 0..each {
        for (process, writer) in writers.iter_mut().enumerate() {
            let tag = process as u16 * each + number;
            writer.ask(format!("pub id=p{number} service=all kind=w2 tag={tag} capacity=64"));
        }
    }
    for number in 0..each {
        for writer in &mut writers {
            writer.ask(format!("wait-subscribers id=p{number} n=64 ms=20000"));
            writer.ask(format!("send id=p{number} n=20"));
        }
    }
    let pids: Vec<u32> = readers.iter().chain(&writers).map(Worker::pid).collect();
    let memfds = look::memfds(&pids);
    println!("{processes} + {processes} processes, 64 x 64 endpoints: {memfds} memfds");
    assert!(memfds <= 256, "{memfds} memfds");
    for number in 0..each {
        for writer in &mut writers {
            writer.ask(format!("end id=p{number}"));
        }
    }
    let expected = (0..64).map(|tag| (tag, Track::whole(0, 20))).collect();
    for number in 0..each {
        for reader in &mut readers {
            let answer = reader.ask(format!("collect id=s{number} endings=64"));
            assert_eq!(answer.tracks(), expected, "{}", answer.whole());
        }
    }
}

#[test]
fn sixty_four_publishers_and_subscribers_in_sixteen_processes_need_few_memfds() {
    sixty_four_by_sixty_four(8);
}

#[test]
fn sixty_four_publishers_and_subscribers_in_processes_of_their_own_need_few_memfds() {
    if Length::of_this_run() != Length::Long {
        return println!("SKIP: 128 processes are started with ZCMI_LONG=1 only");
    }
    sixty_four_by_sixty_four(64);
}

#[test]
fn a_thousand_services_with_four_endpoints_fit_under_a_thousand_descriptors() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let services = Length::of_this_run().pick(200, 1_000, 1_000);
    let scratch = Scratch::new();
    let process = Process::open(RuntimeDirectory::at(scratch.path()).expect("a directory")).expect("a participant");
    let before = look::descriptors(std::process::id()).len();
    let mut endpoints = Vec::new();
    for number in 0..services {
        let name = ServiceName::new(&format!("many/{number}")).expect("a name");
        let service = Service::<u64>::with(name, process.clone()).expect("a service");
        let subscribers = [0, 1].map(|_| service.subscriber().join().expect("a subscriber"));
        let publishers = [0, 1].map(|_| service.publisher().capacity(4).create().expect("a publisher"));
        endpoints.push((publishers, subscribers));
    }
    for (publishers, _) in &mut endpoints {
        for publisher in publishers {
            assert_eq!(publisher.subscribers(), 2);
            publisher.publish_copy(&7).expect("room");
        }
    }
    let now = look::descriptors(std::process::id()).len();
    println!("{services} services with 4 endpoints: {} descriptors", now - before);
    assert!(now < 1_024, "{now} descriptors");
    for (_, subscribers) in &mut endpoints {
        for subscriber in subscribers {
            for _ in 0..2 {
                assert_eq!(subscriber.try_receive().expect("no error").map(|sample| *sample), Some(7));
            }
        }
    }
    drop(endpoints);
    drop(process);
    assert_eq!(look::below(scratch.path()), ["p", "s"].map(std::path::PathBuf::from));
}
