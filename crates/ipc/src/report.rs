//! What a process says of itself to an observer.

use std::fmt::Write as _;

/// One endpoint of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointReport {
    /// Its service.
    pub service: String,
    /// What it does: `publisher` or `subscriber`.
    pub role: String,
    /// Its number in the process.
    pub endpoint: u32,
    /// How many it is connected with.
    pub peers: usize,
    /// Messages published or received.
    pub messages: u64,
    /// Bytes of payload published or received.
    pub bytes: u64,
    /// Messages overtaken and lost.
    pub lost: u64,
    /// Messages refused for want of room.
    pub refused: u64,
    /// Messages that may be under way; 0 for a subscriber.
    pub capacity: u64,
    /// Memory it takes in regions.
    pub memory_bytes: u64,
    /// Whether the publisher has ended and waits for its readers only.
    pub ended: bool,
}

/// A process as it describes itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessReport {
    /// Its identity, 32 hexadecimal digits.
    pub incarnation: String,
    /// Its process number, as it sees itself.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Regions it owns.
    pub regions: usize,
    /// Bytes of those regions.
    pub region_bytes: u64,
    /// Its endpoints.
    pub endpoints: Vec<EndpointReport>,
}

impl ProcessReport {
    /// The report as it travels: a line for the process, then a line for each endpoint, fields separated by tabs.
    pub(crate) fn encode(&self) -> String {
        let Self { incarnation, pid, uid, regions, region_bytes, endpoints } = self;
        let mut text = format!("process\t{incarnation}\t{pid}\t{uid}\t{regions}\t{region_bytes}\n");
        for endpoint in endpoints {
            let EndpointReport { memory_bytes, ended, refused, .. } = endpoint;
            let EndpointReport { service, role, endpoint, peers, messages, bytes, lost, capacity, .. } = endpoint;
            // Writing to a string does not fail.
            let _infallible = writeln!(
                text,
                "endpoint\t{service}\t{role}\t{endpoint}\t{peers}\t{messages}\t{bytes}\t{lost}\t{capacity}\t\
                 {memory_bytes}\t{ended}\t{refused}"
            );
        }
        text
    }

    /// Reads a report; a claim of the process it came from. Lines that are none are left out.
    pub(crate) fn decode(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut fields = lines.next()?.split('\t');
        if fields.next()? != "process" {
            return None;
        }
        let mut report = Self {
            incarnation: fields.next()?.to_owned(),
            pid: fields.next()?.parse().ok()?,
            uid: fields.next()?.parse().ok()?,
            regions: fields.next()?.parse().ok()?,
            region_bytes: fields.next()?.parse().ok()?,
            endpoints: Vec::new(),
        };
        report.endpoints.extend(lines.filter_map(EndpointReport::decode));
        Some(report)
    }
}

impl EndpointReport {
    fn decode(line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        if fields.next()? != "endpoint" {
            return None;
        }
        Some(Self {
            service: fields.next()?.to_owned(),
            role: fields.next()?.to_owned(),
            endpoint: fields.next()?.parse().ok()?,
            peers: fields.next()?.parse().ok()?,
            messages: fields.next()?.parse().ok()?,
            bytes: fields.next()?.parse().ok()?,
            lost: fields.next()?.parse().ok()?,
            capacity: fields.next()?.parse().ok()?,
            memory_bytes: fields.next()?.parse().ok()?,
            ended: fields.next()?.parse().ok()?,
            refused: fields.next()?.parse().ok()?,
        })
    }
}
