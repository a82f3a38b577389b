//! A link among many others reads a long piece on while something comes; one among few leaves that to its next turn.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};

use zcmi_mem::pool::PoolPlan;
use zcmi_net::frame::{HEADER_BYTES, Header, Hello, Kind};
use zcmi_net::link::{Happened, Link, LinkLimits, Readiness};
use zcmi_net::path::{PathKind, Release};
use zcmi_net::slots::{SlotPlan, Slots};
use zcmi_net::wire::{Notification, Segment, Sent, Wire};

/// Bytes of the piece.
const LENGTH: u32 = 300_000;
/// Bytes that come at a time: the window opens when they are read.
const WINDOW: usize = 50_000;

/// A wire where a window comes for each call.
struct Windows(VecDeque<Vec<u8>>);

impl Wire for Windows {
    fn send(&mut self, _path: PathKind, segments: &[Segment<'_>]) -> io::Result<Sent> {
        Ok(Sent { bytes: segments.iter().map(|segment| segment.bytes.len()).sum(), release: Release::Now })
    }

    fn receive(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let window = self.0.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        let mut rest = &window[..];
        for buffer in buffers {
            let (into, behind) = rest.split_at(rest.len().min(buffer.len()));
            buffer[..into.len()].copy_from_slice(into);
            rest = behind;
        }
        assert!(rest.is_empty(), "there is room for a window");
        Ok(window.len())
    }

    fn notifications(&mut self, _each: &mut dyn FnMut(Notification)) -> io::Result<()> {
        Ok(())
    }

    fn owed(&self) -> u64 {
        0
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn abort(&mut self) {}
}

/// How many turns a piece takes among so many connections.
fn turns(connections: usize) -> usize {
    let plan = SlotPlan {
        small_bytes: 1000,
        small_slots: 16,
        slot_bytes: LENGTH,
        large_slots: 4,
        headers: 16,
        loans: PoolPlan::single(64, 1).ok(),
    };
    let mut slots = Slots::new(&plan).expect("memory");
    let limits = LinkLimits::default();
    let mut link = Link::new(limits, &slots);
    let granted = limits.first_credits(&mut slots);
    assert!(granted[1] > 0);
    let ours = Hello {
        incarnation: [1; 16],
        session: [2; 16],
        epoch: 0,
        resume_from: 0,
        small_bytes: 1000,
        slot_bytes: LENGTH,
        streams: limits.streams,
        granted,
        nonce: [0; 32],
        proof: [0; 32],
    };
    let mut bytes = vec![7; HEADER_BYTES + LENGTH as usize];
    let header = Header { message_bytes: LENGTH, length: LENGTH, ..Header::empty(Kind::Data) };
    header.encode(bytes.first_chunk_mut().expect("it is longer"));
    let windows = Windows(bytes.chunks(WINDOW).map(<[u8]>::to_vec).collect());
    let mut happened = Vec::new();
    let theirs = Hello { granted: [0; 2], ..ours };
    assert!(link.connect(windows, &ours, &theirs, &mut happened).is_ok());
    for turn in 1.. {
        let read = link.receive_beside(connections, &mut slots, &mut happened).expect("an honest peer");
        assert_eq!(read, Readiness::Drained);
        if let Some(Happened::Received(piece)) = happened.pop() {
            assert!(piece.lease.len() == LENGTH as usize && piece.lease.iter().all(|byte| *byte == 7));
            return turn;
        }
        assert!(turn < 100, "the piece does not come");
    }
    unreachable!("it is bounded")
}

#[test]
fn a_long_piece_among_many_connections_is_read_in_one_turn() {
    assert_eq!(turns(1000), 1);
}

#[test]
fn among_few_each_window_has_a_turn() {
    assert_eq!(turns(1), 7);
}
