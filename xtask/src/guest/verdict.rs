//! What a guest must have said, and what it said.

/// The paths that are tried over the device.
pub(super) const VIRTIO: &[&str] =
    &["write", "zerocopy", "uring-send", "uring-zc", "uring-fixed", "sendfile", "splice"];
/// The paths that are tried over the loopback device: those whose completions say whether the kernel copied.
pub(super) const LOOPBACK: &[&str] = &["zerocopy", "uring-zc", "uring-fixed"];
/// How messages go: each alone, and many at a time.
pub(super) const MODES: &[&str] = &["alone", "many"];
/// From this kernel on io_uring may hang the notification of a send on that of another one whose bytes are in the same
/// packet, and only the first of them is noted as used: the others say "copied" whatever was done (`io_link_skb` and
/// `io_notif_tw_complete` in io_uring/notif.c). Where sends are alone, that does not happen.
const HANGS_TOGETHER: (u32, u32) = (6, 10);
/// What every line begins with.
const MARK: &str = "zcmi-guest: ";

/// What came of one path over one wire.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    wire: String,
    path: String,
    mode: String,
    messages: u64,
    calls: u64,
    notified: u64,
    copied: u64,
    refused: u64,
    refusal: String,
}

/// The lines of a guest and of its peer.
#[derive(Default)]
pub(super) struct Heard {
    sent: Vec<Sent>,
    received: Vec<u64>,
    failures: Vec<String>,
    /// Whether the device has checksums computed: without, the kernel shares no pages with it.
    offloads: Option<bool>,
    done: bool,
}

impl Heard {
    /// Hears one line.
    pub(super) fn line(&mut self, line: &str) {
        // The kernel may have something to say in the same line.
        let Some((_, text)) = line.split_once(MARK) else { return };
        match text.split_whitespace().next() {
            Some("sent") => match sent(text) {
                Some(sent) => self.sent.push(sent),
                None => self.failures.push(format!("a line that cannot be read: {text}")),
            },
            Some("received") => {
                self.received.extend(value(text, "messages").and_then(|count| count.parse::<u64>().ok()))
            }
            // A device's features are a string of bits; the first says that it computes checksums.
            Some("features") => self.offloads = Some(text.trim_start_matches("features ").starts_with('1')),
            Some("failed") => self.failures.push(text.into()),
            Some("done") => self.done = true,
            _ => {}
        }
    }

    /// What is wrong with what was heard of a guest of this release.
    pub(super) fn faults(&self, release: &str) -> Vec<String> {
        let mut faults = self.failures.clone();
        if !self.done {
            faults.push("it did not get to its end".into());
        }
        if self.offloads != Some(true) {
            faults.push("its device computes no checksums, so that the kernel has to copy for it".into());
        }
        let hangs_together = version(release) >= HANGS_TOGETHER;
        for (wire, path, mode) in wanted() {
            let is_it = |sent: &&Sent| sent.wire == wire && sent.path == path && sent.mode == mode;
            let of: Vec<&Sent> = self.sent.iter().filter(is_it).collect();
            let fault = match of[..] {
                [sent] => fault(sent, hangs_together),
                _ => Some(format!("was told of {} times", of.len())),
            };
            faults.extend(fault.map(|fault| format!("{path} over {wire}, {mode}, {fault}")));
        }
        let sent: Vec<u64> = self.sent.iter().map(|sent| sent.messages).collect();
        let sums = [&self.received, &sent].map(|counts| (counts.len(), counts.iter().sum::<u64>()));
        if sums[0] != sums[1] {
            faults.push(format!("its peers received {:?} messages, and it sent {sent:?}", self.received));
        }
        faults
    }
}

/// Each wire, path and mode.
fn wanted() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let virtio = VIRTIO.iter().map(|path| ("virtio", *path));
    let both = virtio.chain(LOOPBACK.iter().map(|path| ("loopback", *path)));
    both.flat_map(|(wire, path)| MODES.iter().map(move |mode| (wire, path, *mode)))
}

/// What is wrong with what came of a path, if anything is.
fn fault(sent: &Sent, hangs_together: bool) -> Option<String> {
    let Sent { wire, path, mode, notified, copied, refused, refusal, calls, .. } = sent;
    if *calls == 0 || *refused > 0 {
        return Some(format!("was refused {refused} times: {refusal}"));
    }
    if !LOOPBACK.contains(&path.as_str()) {
        return None;
    }
    if *notified == 0 {
        return Some("was never notified".into());
    }
    let wanted = if wire == "virtio" { 0 } else { *notified };
    let is_hearsay = hangs_together && mode == "many" && path.starts_with("uring") && wire == "virtio";
    let wrong = *copied != wanted && !is_hearsay;
    wrong.then(|| format!("heard {copied} times of {notified} that the kernel copied, not {wanted}"))
}

/// Major and minor number of a release.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-', '+']).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The value of a name in a line of `name=value`.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn sent(text: &str) -> Option<Sent> {
    let number = |name: &str| value(text, name)?.parse::<u64>().ok();
    Some(Sent {
        wire: value(text, "wire")?.into(),
        path: value(text, "path")?.into(),
        mode: value(text, "mode")?.into(),
        messages: number("messages")?,
        calls: number("calls")?,
        notified: number("notified")?,
        copied: number("copied")?,
        refused: number("refused")?,
        // To the end of the line.
        refusal: text.split_once(" refusal=")?.1.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest says when all is well.
    fn well() -> Vec<String> {
        let mut lines = vec!["zcmi-guest: features 1100010110".to_string(), "[    1.2] noise".to_string()];
        for (wire, path, mode) in wanted() {
            let notified = if LOOPBACK.contains(&path) { 40 } else { 0 };
            let copied = if wire == "loopback" { notified } else { 0 };
            lines.push(format!(
                "zcmi-guest: sent wire={wire} path={path} mode={mode} messages=150 calls=90 bytes=1 \
                 notified={notified} copied={copied} refused=0 refusal=none"
            ));
            lines.push("zcmi-guest: received connection=0 messages=150".into());
        }
        lines.push("zcmi-guest: done".into());
        lines
    }

    fn faults(lines: &[String], release: &str) -> Vec<String> {
        let mut heard = Heard::default();
        lines.iter().for_each(|line| heard.line(line));
        heard.faults(release)
    }

    /// The same with one text replaced by another.
    fn with(from: &str, to: &str) -> Vec<String> {
        let lines: Vec<String> = well().iter().map(|line| line.replace(from, to)).collect();
        assert_ne!(lines, well(), "{from} is said");
        lines
    }

    #[test]
    fn a_guest_that_said_everything_is_well() {
        assert_eq!(faults(&well(), "6.12.1-amd64"), [""; 0]);
    }

    #[test]
    fn whatever_is_missing_or_wrong_is_a_fault() {
        for index in (0..well().len()).filter(|index| *index != 1) {
            let mut lines = well();
            let line = lines.remove(index);
            assert!(!faults(&lines, "6.12.1").is_empty(), "without {line}");
        }
        let of = |path: &str, mode: &str, rest: &str| format!("path={path} mode={mode} messages=150 calls=90 {rest}");
        for (from, to) in [
            ("copied=40".to_string(), "copied=0".to_string()),
            ("features 1".into(), "features 0".into()),
            ("zcmi-guest: done".into(), "zcmi-guest: failed send: message 7 was poisoned".into()),
            ("connection=0 messages=150".into(), "connection=0 messages=149".into()),
            (of("splice", "many", "bytes=1 notified=0"), of("splice", "many", "bytes=1 notified=?")),
            (
                of("sendfile", "alone", "bytes=1 notified=0 copied=0 refused=0"),
                of("sendfile", "alone", "bytes=1 notified=0 copied=0 refused=1"),
            ),
            (
                of("uring-zc", "alone", "bytes=1 notified=40 copied=0"),
                of("uring-zc", "alone", "bytes=1 notified=40 copied=1"),
            ),
            (
                of("zerocopy", "many", "bytes=1 notified=40 copied=0"),
                of("zerocopy", "many", "bytes=1 notified=40 copied=1"),
            ),
            (
                of("uring-fixed", "alone", "bytes=1 notified=40 copied=0"),
                of("uring-fixed", "alone", "bytes=1 notified=0 copied=0"),
            ),
        ] {
            assert!(!faults(&with(&from, &to), "6.12.1").is_empty(), "{from} as {to}");
        }
    }

    #[test]
    fn of_many_sends_at_a_time_io_uring_is_believed_only_where_its_notifications_do_not_hang_together() {
        let many = "path=uring-zc mode=many messages=150 calls=90 bytes=1 notified=40 copied=";
        let lines = with(&format!("{many}0"), &format!("{many}3"));
        assert_eq!(faults(&lines, "6.12.117+deb12-amd64"), [""; 0]);
        assert!(!faults(&lines, "6.1.0-56-amd64").is_empty());
    }

    #[test]
    fn releases_are_compared_by_their_numbers() {
        assert!(version("6.12.117+deb12-amd64") > version("6.2.0") && version("6.1.0-56-amd64") < HANGS_TOGETHER);
    }
}
