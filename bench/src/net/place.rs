//! Where the cells of a round are measured, one after the other: a wire, and what the oracle said of the paths over it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use zcmi_net::path::PathKind;

use super::CellError;
use crate::oracle::OracleError;
use crate::truth::{self, TruthError};
use crate::wires::{Unavailable, Wire, WireKind};

/// How much of a stream the oracle has sent at a time.
const STREAM_BYTES: usize = 60_000;
/// How often the oracle is asked again because a datagram was lost.
const ASKED: usize = 3;

/// A wire, and shares of bytes that were copied over it before the receiver read them, by path and by the length of a
/// datagram, none for streams. Each is asked for once, for it is the kernel's rule and no measurement.
pub(super) struct Place {
    wire: Wire,
    said: RefCell<BTreeMap<(PathKind, Option<usize>), f64>>,
}

impl Place {
    pub(super) fn on(wire: Wire) -> Self {
        Self { wire, said: RefCell::default() }
    }

    pub(super) fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The share of a stream's bytes that the kernel copied.
    pub(super) fn copied_of_stream(&self, path: PathKind) -> Result<f64, CellError> {
        if matches!(path, PathKind::Write | PathKind::UringSend) {
            return Ok(1.0);
        }
        self.once(path, None, || match truth::ask(&self.wire, path, STREAM_BYTES) {
            // What went although payloads are refused is heads, which are copied.
            Err(TruthError::Oracle(OracleError::Send(_))) => Ok(1.0),
            verdict => Ok(verdict?.copied_share(STREAM_BYTES)),
        })
    }

    /// The same of datagrams of that length.
    pub(super) fn copied_of_datagrams(&self, path: PathKind, bytes: usize) -> Result<f64, CellError> {
        self.once(path, Some(bytes), || {
            let mut asked = 1;
            loop {
                match truth::ask_of_datagram(&self.wire, path, bytes) {
                    Err(TruthError::Oracle(OracleError::Missing { .. })) if asked < ASKED => asked += 1,
                    verdict => return Ok(verdict?.copied_share(bytes)),
                }
            }
        })
    }

    fn once(
        &self,
        path: PathKind,
        datagram_bytes: Option<usize>,
        ask: impl FnOnce() -> Result<f64, CellError>,
    ) -> Result<f64, CellError> {
        let key = (path, datagram_bytes);
        if let Some(&share) = self.said.borrow().get(&key) {
            return Ok(share);
        }
        let share = ask()?;
        self.said.borrow_mut().insert(key, share);
        Ok(share)
    }
}

/// The place of the cells that are measured just now.
#[derive(Default)]
pub(super) struct Places {
    last: Option<(WireKind, Result<Place, String>)>,
}

impl Places {
    /// The next round has another place, so that no accident of this one is in all of them.
    pub(super) fn end_round(&mut self) {
        self.last = None;
    }

    /// The place on that wire, or why there is none. Cells on the same wire have the same place, but for those behind a
    /// relay: each has the same losses, from the first packet.
    pub(super) fn on(&mut self, kind: WireKind) -> Result<&Place, &str> {
        let last = match self.last.take() {
            Some(last) if last.0 == kind && kind != WireKind::Relay => last,
            // It goes before another is made.
            gone => {
                drop(gone);
                (kind, Wire::make(kind).map(Place::on).map_err(|unavailable| Unavailable::reason(&unavailable)))
            }
        };
        self.last.insert(last).1.as_ref().map_err(|reason| &**reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_is_asked_once_for_each_path_and_kind_of_message() {
        let mut places = Places::default();
        let place = places.on(WireKind::Unix).expect("every host has sockets");
        let asked = RefCell::new(Vec::new());
        let ask = |path, bytes, share| {
            place.once(path, bytes, || {
                asked.borrow_mut().push((path, bytes));
                Ok(share)
            })
        };
        for _ in 0..3 {
            assert_eq!(ask(PathKind::Splice, None, 0.0).expect("an answer"), 0.0);
            assert_eq!(ask(PathKind::Splice, Some(9000), 1.0).expect("an answer"), 1.0);
            assert_eq!(ask(PathKind::SendFile, None, 0.25).expect("an answer"), 0.25);
        }
        let each = [(PathKind::Splice, None), (PathKind::Splice, Some(9000)), (PathKind::SendFile, None)];
        assert_eq!(asked.into_inner(), each);
        // What failed was not answered.
        assert!(place.once(PathKind::Splice, Some(1), || Err(CellError::Late("nothing"))).is_err());
        assert_eq!(place.once(PathKind::Splice, Some(1), || Ok(0.5)).expect("an answer"), 0.5);
    }

    #[test]
    fn cells_on_one_wire_share_it_and_behind_a_relay_none_do() {
        let mut places = Places::default();
        let marked = |places: &mut Places, kind| {
            let place = places.on(kind).map_err(str::to_owned)?;
            Ok::<_, String>(place.said.borrow_mut().insert((PathKind::Write, None), 1.0).is_some())
        };
        assert_eq!(marked(&mut places, WireKind::Unix), Ok(false));
        assert_eq!(marked(&mut places, WireKind::Unix), Ok(true));
        places.end_round();
        assert_eq!(marked(&mut places, WireKind::Unix), Ok(false));
        for kind in [WireKind::Relay, WireKind::Relay, WireKind::Unix] {
            match marked(&mut places, kind) {
                Ok(there) => assert!(!there, "{kind} has what was said of another"),
                Err(reason) => println!("SKIP: {reason}"),
            }
        }
    }
}
