//! `zcmi send` and `zcmi recv`: what arrives, what is refused, and what is said about it.

mod rig;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use rig::schema::expect_document;
use rig::{Ended, Running, Scratch, make_tree, noise, read_tree};
use rustix::process::Signal;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

/// Sends to a `zcmi recv` over a Unix socket; how both ended, the sender first.
fn hand_over(scratch: &Scratch, send: &[&str], recv: &[&str]) -> (Ended, Ended) {
    let receiver = scratch.start(&[&["recv", "unix:socket"], recv].concat());
    let sent = scratch.run(&[&["send", "unix:socket"], send].concat());
    (sent, receiver.end())
}

/// The lines of JSON that a command printed, each checked against its schema.
fn lines(text: &[u8]) -> Vec<Value> {
    let text = String::from_utf8(text.to_vec()).expect("letters");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    for line in &lines {
        let schema = line["schema"].as_str().expect("each line says what it is");
        let name = schema.strip_prefix("zcmi-").and_then(|name| name.strip_suffix("/1")).expect("a name and a version");
        expect_document(line, &name.replace('-', "_"));
    }
    lines
}

/// What is known of everything in a tree besides its content.
fn modes_and_times(root: &Path) -> Vec<(String, u32, i64, i64)> {
    let mut all: Vec<_> = read_tree(root).into_iter().map(|(path, _)| path).collect();
    all.push("".into());
    let of = |path: std::path::PathBuf| {
        let metadata = fs::symlink_metadata(root.join(&path)).expect("metadata");
        // A link has neither that matters.
        let real = !metadata.is_symlink();
        let (mode, seconds, nanoseconds) = (metadata.mode(), metadata.mtime(), metadata.mtime_nsec());
        (path.display().to_string(), mode, if real { seconds } else { 0 }, if real { nanoseconds } else { 0 })
    };
    all.into_iter().map(of).collect()
}

#[test]
fn a_tree_arrives_with_its_modes_times_and_links_and_a_second_time_nothing_is_sent() {
    let scratch = Scratch::new();
    let (from, out) = (scratch.path("from"), scratch.directory("out"));
    make_tree(&from);
    fs::set_permissions(from.join("one"), fs::Permissions::from_mode(0o750)).expect("a mode");
    fs::set_permissions(from.join("deep/er"), fs::Permissions::from_mode(0o555)).expect("a mode");
    let long_ago = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for name in ["empty", "one", "deep"] {
        fs::File::open(from.join(name)).and_then(|file| file.set_modified(long_ago)).expect("a time");
    }
    let (sent, received) = hand_over(&scratch, &["from", "--json"], &["-o", "out", "--json"]);
    sent.expect_code(0);
    received.expect_code(0);
    assert_eq!(read_tree(&out.join("from")), read_tree(&from));
    assert_eq!(modes_and_times(&out.join("from")), modes_and_times(&from));
    let (sent, received) = (lines(&sent.stdout), lines(&received.stdout));
    assert_eq!(received[0]["schema"], "zcmi-recv-listening/1");
    let large = sent.iter().find(|line| line["name"] == "from/deep/er/large").expect("a line for each file");
    assert_eq!(large["xxh3_128"], format!("{:032x}", xxh3_128(&fs::read(from.join("deep/er/large")).expect("a file"))));
    assert!(received.iter().any(|line| line["name"] == large["name"] && line["xxh3_128"] == large["xxh3_128"]));
    let bytes: u64 = 1 + 512 + (3 << 20) + (1 << 20) + 7 + 4097;
    for end in [sent.last(), received.last()].map(|end| end.expect("the end")) {
        assert_eq!((&end["files"], &end["bytes"]), (&6.into(), &bytes.into()), "{end}");
    }
    let (sent, received) = hand_over(&scratch, &["from", "--json"], &["-o", "out", "--json"]);
    sent.expect_code(0);
    received.expect_code(0);
    let (sent, received) = (lines(&sent.stdout), lines(&received.stdout));
    for end in [sent.last(), received.last()].map(|end| end.expect("the end")) {
        assert_eq!((&end["files_already_there"], &end["bytes_already_there"]), (&6.into(), &bytes.into()), "{end}");
    }
    assert!(sent.last().expect("the end")["paths"]["write"].as_u64().expect("a count") < 100_000, "{sent:?}");
    // A tree that cannot be written cannot be removed either, but by root.
    for tree in [&from, &out.join("from")] {
        fs::set_permissions(tree.join("deep/er"), fs::Permissions::from_mode(0o755)).expect("a mode");
    }
}

#[test]
fn the_content_of_a_directory_without_a_name_and_an_empty_file_arrive() {
    let scratch = Scratch::new();
    scratch.directory("from");
    scratch.file("from/zero", b"");
    scratch.file("from/a", b"1");
    scratch.directory("out");
    let mut receiver = scratch.start(&["recv", "127.0.0.1:0", "-o", "out"]);
    let line = receiver.wait_for_words("listening at 127.0.0.1:");
    let address = line.split("zcmi send ").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address");
    let port = address.rsplit_once(':').expect("a port").1;
    let mut sender = scratch.command(&["send", &format!("localhost:{port}"), "."]);
    sender.current_dir(scratch.path("from"));
    Running::new(sender).end().expect_code(0).expect_words("in 2 files sent to localhost:");
    receiver.end().expect_code(0).expect_words("in 2 files received");
    assert_eq!(read_tree(&scratch.path("out")), read_tree(&scratch.path("from")));
}

#[test]
fn stdin_arrives_in_a_file_and_at_stdout() {
    let scratch = Scratch::new();
    let content = noise(5_000_000, 1);
    for output in ["file", "-"] {
        let receiver = scratch.start(&["recv", "unix:socket", "-o", output, "--json"]);
        let mut command = scratch.command(&["send", "unix:socket", "-", "--json"]);
        command.stdin(Stdio::piped());
        let mut sender = Running::new(command);
        for part in content.chunks(1_234_567) {
            sender.feed(part);
        }
        sender.close();
        let (sent, received) = (sender.end(), receiver.end());
        sent.expect_code(0);
        received.expect_code(0);
        let (arrived, said) = match output {
            "-" => (received.stdout.clone(), received.stderr.clone().into_bytes()),
            _ => (fs::read(scratch.path("file")).expect("the file"), received.stdout.clone()),
        };
        assert!(arrived == content, "{} bytes arrived", arrived.len());
        assert_eq!(lines(&said).last().expect("the end")["bytes"], 5_000_000);
        assert_eq!(lines(&sent.stdout)[0]["xxh3_128"], format!("{:032x}", xxh3_128(&content)));
    }
}

#[test]
fn several_files_or_a_directory_do_not_go_to_stdout() {
    let scratch = Scratch::new();
    scratch.file("a", b"first ");
    scratch.file("b", b"second");
    scratch.directory("d");
    for files in [&["a", "b"][..], &["d"]] {
        let (sent, received) = hand_over(&scratch, files, &["-o", "-"]);
        sent.expect_code(1).expect_words("error[ZC9053]: unix:socket gave up: the sender sends several files");
        received.expect_code(1).expect_words("error[ZC9031]: the sender sends several files, or a directory, and");
        assert!(received.stdout.is_empty(), "nothing came before it was refused");
    }
    let (sent, received) = hand_over(&scratch, &["a"], &["-o", "-"]);
    sent.expect_code(0);
    assert_eq!(received.expect_code(0).stdout, b"first ");
}

#[test]
fn a_pipe_without_a_name_needs_one_and_several_files_do_not_fit_one() {
    let scratch = Scratch::new();
    scratch.directory("out");
    let (sent, received) = hand_over(&scratch, &["-"], &["-o", "out"]);
    sent.expect_code(1).expect_words("has no name");
    received.expect_code(1).expect_words("error[ZC9032]: ");
    scratch.file("a", b"1");
    scratch.file("b", b"2");
    let (sent, received) = hand_over(&scratch, &["a", "b"], &["-o", "one"]);
    sent.expect_code(1);
    received.expect_code(1).expect_words("error[ZC9031]: ");
}

#[test]
fn a_file_is_not_replaced_where_a_directory_was_named() {
    let scratch = Scratch::new();
    scratch.file("a", b"new");
    scratch.file("ex", b"old");
    symlink("ex", scratch.path("link")).expect("a link");
    for output in ["ex/", "ex//", "ex/.", "link/"] {
        for more in [&[][..], &["--force"], &["--keep"], &["--keep", "--force"]] {
            let (sent, received) = hand_over(&scratch, &["a", "--resume-for", "0"], &[&["-o", output], more].concat());
            sent.expect_code(1);
            received.expect_code(1).expect_words("error[ZC9038]: ").expect_words("is a file, not a directory");
        }
    }
    scratch.run(&["recv", "unix:socket", "-o", "ex/in/", "--force"]).expect_code(1).expect_words("cannot be opened");
    let kept = scratch.run(&["recv", "unix:socket", "-o", "ex", "--keep"]);
    kept.expect_code(2).expect_words("--keep needs a directory, and ex is a file");
    assert_eq!(fs::read(scratch.path("ex")).expect("the file"), b"old");
    assert!(fs::symlink_metadata(scratch.path("link")).expect("the link").is_symlink());
}

#[test]
fn what_exists_is_kept_unless_it_may_be_replaced_and_everything_else_arrives() {
    let scratch = Scratch::new();
    scratch.file("a", b"new");
    scratch.file("b", b"other");
    scratch.directory("out");
    scratch.file("out/a", b"old!");
    let (sent, received) = hand_over(&scratch, &["a", "b"], &["-o", "out"]);
    sent.expect_code(1).expect_words("error[ZC9052]: everything else arrived, but this was left out: a: a exists");
    received.expect_code(1).expect_words("error[ZC9052]: ").expect_words("a exists already");
    assert_eq!(fs::read(scratch.path("out/a")).expect("the file"), b"old!");
    assert_eq!(fs::read(scratch.path("out/b")).expect("the file"), b"other");
    let (sent, received) = hand_over(&scratch, &["a", "b"], &["-o", "out", "--force"]);
    sent.expect_code(0);
    received.expect_code(0);
    assert_eq!(fs::read(scratch.path("out/a")).expect("the file"), b"new");
    let left: Vec<_> = read_tree(&scratch.path("out")).into_iter().map(|(path, _)| path).collect();
    assert_eq!(left, [Path::new("a"), Path::new("b")], "no part and no journal is left");
}

#[test]
fn a_file_of_the_same_size_and_time_but_another_content_is_not_taken_for_the_same() {
    let scratch = Scratch::new();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    scratch.directory("out");
    for (name, content) in [("a", b"new"), ("out/a", b"old")] {
        let path = scratch.file(name, content);
        fs::File::open(path).and_then(|file| file.set_modified(time)).expect("a time");
    }
    let (sent, received) = hand_over(&scratch, &["a"], &["-o", "out"]);
    sent.expect_code(1).expect_words("a exists already");
    received.expect_code(1);
    assert_eq!(fs::read(scratch.path("out/a")).expect("the file"), b"old");
    let (sent, received) = hand_over(&scratch, &["a", "--no-hash"], &["-o", "out", "--force"]);
    sent.expect_code(0);
    received.expect_code(0);
    assert_eq!(fs::read(scratch.path("out/a")).expect("the file"), b"new");
}

#[test]
fn links_that_lead_outside_and_what_is_no_file_are_left_out_and_said() {
    let scratch = Scratch::new();
    scratch.directory("from");
    scratch.directory("out");
    scratch.file("from/a", b"1");
    symlink("/etc/passwd", scratch.path("from/far")).expect("a link");
    let (sent, received) = hand_over(&scratch, &["from"], &["-o", "out"]);
    sent.expect_code(1).expect_words("[ZC9055]");
    received.expect_code(1).expect_words("leads out of the output directory, to /etc/passwd");
    assert!(fs::symlink_metadata(scratch.path("out/from/far")).is_err());
    let (sent, received) = hand_over(&scratch, &["from"], &["-o", "out", "--unsafe-links"]);
    sent.expect_code(0);
    received.expect_code(0);
    assert_eq!(read_tree(&scratch.path("out/from")), read_tree(&scratch.path("from")));
    let _listener = std::os::unix::net::UnixListener::bind(scratch.path("from/socket")).expect("a socket");
    let (sent, received) = hand_over(&scratch, &["from"], &["-o", "out", "--unsafe-links"]);
    sent.expect_code(1).expect_words("from/socket is neither file, directory nor link");
    received.expect_code(1).expect_words("the sender left out 1 entry");
}

#[test]
fn each_entry_that_is_left_out_is_named_once_and_counted_once() {
    let scratch = Scratch::new();
    // Of `way` nothing can be stored, because a file is in its way; of `from` all but what is below a reserved name.
    for directory in ["way", "way/sub", "from", "from/x.zcmi-part", "out"] {
        scratch.directory(directory);
    }
    for file in ["way/a", "way/b", "way/sub/c", "from/x.zcmi-part/d", "out/way"] {
        scratch.file(file, b"1");
    }
    let cases = [
        ("way", &["way", "way/a", "way/b", "way/sub", "way/sub/c"][..], "nothing arrived, and 5 entries were left out"),
        ("from", &["from/x.zcmi-part", "from/x.zcmi-part/d"], "no file arrived, and 2 entries were left out"),
    ];
    for (tree, names, words) in cases {
        let (sent, received) = hand_over(&scratch, &[tree, "--json"], &["-o", "out", "--json"]);
        for (ended, schema) in [(&sent, "zcmi-send-left-out/1"), (&received, "zcmi-recv-left-out/1")] {
            ended.expect_code(1).expect_words(words);
            let lines = lines(&ended.stdout);
            assert_eq!(lines.last().expect("the end")["left_out"], names.len(), "{lines:?}");
            let left_out = lines.iter().filter(|line| line["schema"] == schema);
            let mut left_out: Vec<_> = left_out.map(|line| line["name"].as_str().expect("a name")).collect();
            left_out.sort_unstable();
            assert_eq!(left_out, names);
        }
        let (sent, received) = hand_over(&scratch, &[tree, "-q"], &["-o", "out", "-q"]);
        for ended in [&sent, &received] {
            ended.expect_code(1).expect_words(words);
            let left_out: Vec<_> = ended.stderr.lines().filter(|line| line.starts_with("zcmi: left out: ")).collect();
            assert_eq!(left_out.len(), names.len(), "{}", ended.stderr);
            assert!(names.iter().all(|name| left_out.iter().any(|line| line.contains(name))), "{}", ended.stderr);
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_sent_is_left_out() {
    let scratch = Scratch::new();
    scratch.file("a", &noise(2_000_000, 1));
    scratch.file("b", b"stays");
    scratch.file("c", b"before");
    scratch.directory("out");
    // Nobody receives yet, but the files are open: their sizes are what is promised.
    let sender = scratch.start(&["send", "unix:socket", "a", "b", "c"]);
    wait_until(|| ["/a", "/b", "/c"].into_iter().all(|name| has_open(sender.pid(), name)));
    fs::File::options().append(true).open(scratch.path("a")).and_then(|mut file| file.write_all(b"x")).expect("a file");
    // Of the same length.
    scratch.file("c", b"behind");
    let received = scratch.run(&["recv", "unix:socket", "-o", "out"]);
    let sent = sender.end();
    sent.expect_code(1).expect_words("left out: a changed while it was sent");
    sent.expect_words("left out: c changed while it was sent");
    received.expect_code(1).expect_words("a changed while it was sent");
    let there: Vec<_> = read_tree(&scratch.path("out")).into_iter().map(|(path, _)| path).collect();
    assert_eq!(there, [Path::new("b")]);
}

#[test]
fn a_large_file_that_is_not_hashed_leaves_from_where_it_lies() {
    let scratch = Scratch::new();
    let content = noise(40_000_000, 3);
    scratch.file("large", &content);
    scratch.file("small", b"behind it");
    scratch.directory("out");
    for (path, by) in [(None, "sendfile"), (Some("write"), "write")] {
        let forced = path.map_or(Vec::new(), |path| vec!["--path", path]);
        let send = [&["large", "small", "--no-hash", "--json"], &forced[..]].concat();
        let (sent, received) = hand_over(&scratch, &send, &["-o", "out", "--no-hash", "--force"]);
        sent.expect_code(0);
        received.expect_code(0);
        assert!(fs::read(scratch.path("out/large")).expect("a file") == content);
        assert_eq!(fs::read(scratch.path("out/small")).expect("a file"), b"behind it");
        let end = lines(&sent.stdout).pop().expect("the end");
        assert!(end["paths"][by].as_u64().is_some_and(|bytes| bytes > 40_000_000), "{end}");
        fs::remove_file(scratch.path("out/large")).expect("it is there");
    }
}

#[test]
fn a_large_file_that_changes_while_it_leaves_from_where_it_lies_is_left_out() {
    type Change = fn(&fs::File) -> std::io::Result<()>;
    let changes: [(Change, &str); 2] = [
        (|file| file.set_len(1_000_000), "became shorter while it was sent, at byte 1000000"),
        (|mut file| file.write_all(b"x"), "changed while it was sent"),
    ];
    for (change, words) in changes {
        let scratch = Scratch::new();
        scratch.file("large", &noise(40_000_000, 1));
        scratch.file("b", b"stays");
        scratch.directory("out");
        // Nobody receives yet, but the file is open: its size is what is promised.
        let sender = scratch.start(&["send", "unix:socket", "large", "b", "--no-hash"]);
        wait_until(|| has_open(sender.pid(), "/large"));
        let file = fs::File::options().write(true).open(scratch.path("large")).expect("the file");
        change(&file).expect("a change");
        let received = scratch.run(&["recv", "unix:socket", "-o", "out", "--no-hash"]);
        sender.end().expect_code(1).expect_words(&format!("left out: large {words}"));
        received.expect_code(1).expect_words(&format!("large {words}"));
        let there: Vec<_> = read_tree(&scratch.path("out")).into_iter().map(|(path, _)| path).collect();
        assert_eq!(there, [Path::new("b")], "neither the file nor a part of it");
    }
}

#[test]
fn a_file_that_leaves_from_where_it_lies_is_looked_at_when_all_of_it_has_arrived() {
    let scratch = Scratch::new();
    // All of it is handed over at once.
    let content = noise(16 << 20, 2);
    scratch.file("large", &content);
    let fifo = scratch.path("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("a fifo");
    let receiver = scratch.start(&["recv", "unix:socket", "-o", "fifo", "--no-hash"]);
    let sender = scratch.start(&["send", "unix:socket", "large", "--no-hash"]);
    let mut arrived = [0; 1];
    let mut fifo = fs::File::open(&fifo).expect("a reader");
    fifo.read_exact(&mut arrived).expect("the first byte");
    // The fifo is full, so that the receiver takes no more, and most of the file still lies in its own pages.
    let room = rustix::pipe::fcntl_getpipe_size(&fifo).expect("its size") as u64;
    wait_until(|| rustix::io::ioctl_fionread(&fifo).expect("how much is in it") + 8192 >= room);
    fs::File::options().append(true).open(scratch.path("large")).and_then(|mut file| file.write_all(b"x")).expect("x");
    let mut rest = Vec::new();
    fifo.read_to_end(&mut rest).expect("the rest");
    assert!(arrived[0] == content[0] && rest == content[1..], "{} bytes came", rest.len());
    sender.end().expect_code(1).expect_words("large changed while it was sent");
    receiver.end().expect_code(1).expect_words("the stream cannot be whole: large changed while it was sent");
}

/// Whether a process has a file open whose path ends so.
fn has_open(pid: u32, end: &str) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|path| path.to_string_lossy().ends_with(end))
}

/// Waits for what is to be seen from outside only.
fn wait_until(mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + rig::LIMIT;
    while !is_so() {
        assert!(Instant::now() < until, "it never came");
        std::thread::yield_now();
    }
}

#[test]
fn arguments_that_are_not_there_or_alike_are_refused_before_anybody_is_asked() {
    let scratch = Scratch::new();
    scratch.directory("d");
    scratch.file("a", b"1");
    scratch.file("d/a", b"2");
    scratch.run(&["send", "unix:socket", "gone"]).expect_code(1).expect_words("error[ZC9002]: gone cannot be read");
    scratch.run(&["send", "unix:socket", "a", "d/a"]).expect_code(2).expect_words("two arguments are named a");
    scratch.run(&["send", "unix:socket", "a", "-"]).expect_code(2).expect_words("`-` is sent alone");
    scratch.run(&["send", "localhost", "a"]).expect_code(2).expect_words("`localhost` is no address");
    for address in ["127.0.0.1:99999", "[::1]:65536"] {
        let told = scratch.run(&["send", address, "a"]);
        told.expect_code(2).expect_words("is no port: the highest is 65535");
    }
    scratch.run(&["send", "unix:socket", "a", "--path", "magic"]).expect_code(2).expect_words("the paths are write");
    let late = scratch.run(&["send", "unix:socket", "a", "--resume-for", "0"]);
    late.expect_code(1).expect_words("unix:socket");
}

#[test]
fn without_a_key_other_hosts_are_neither_served_nor_asked() {
    let scratch = Scratch::new();
    scratch.file("a", b"1");
    for arguments in [&["recv", "192.0.2.1:7070"][..], &["send", "192.0.2.1:7070", "a"], &["recv", "0.0.0.0:7070"]] {
        let told = scratch.run(arguments);
        told.expect_code(1).expect_words("error[ZC4302]: ").expect_words("without a key").expect_words("`--insecure`");
        assert_eq!(told.stderr.matches(arguments[1]).count(), 1, "the address is said once: {}", told.stderr);
    }
}

#[test]
fn only_who_has_the_key_is_served_and_a_key_is_for_nobody_else_s_eyes() {
    let scratch = Scratch::new();
    scratch.file("a", b"content");
    scratch.directory("out");
    for (name, secret, mode) in [
        ("key", "0123456789abcdef\n", 0o600),
        ("same", "0123456789abcdef", 0o400),
        ("other", "fedcba9876543210", 0o600),
        ("open", "0123456789abcdef", 0o640),
        ("short", "0123456789abcde\n", 0o600),
    ] {
        let path = scratch.file(name, secret.as_bytes());
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    }
    let send = |more: &[&str]| scratch.run(&[&["send", "unix:socket", "a", "--resume-for", "2"], more].concat());
    send(&["--key-file", "open"]).expect_code(1).expect_words("error[ZC9051]: others can read the key file open");
    send(&["--key-file", "short"]).expect_code(1).expect_words("error[ZC4041]: ");
    let mut receiver = scratch.start(&["recv", "unix:socket", "-o", "out", "--key-file", "key"]);
    receiver.wait_for_words("listening at");
    send(&["--key-file", "other"]).expect_code(1).expect_words("error[ZC4033]: ");
    for without_a_key in [&[][..], &["--json"]] {
        let told = send(without_a_key);
        told.expect_code(1).expect_words("ZC4033").expect_words("or only one has a key; give the same `--key-file`");
    }
    assert!(read_tree(&scratch.path("out")).is_empty());
    send(&["--key-file", "same"]).expect_code(0);
    receiver.end().expect_code(0);
    assert_eq!(fs::read(scratch.path("out/a")).expect("the file"), b"content");
    // A receiver that has no key is not who the sender takes it for.
    let receiver = scratch.start(&["recv", "unix:socket", "-o", "out"]);
    send(&["--key-file", "key"]).expect_code(1).expect_words("error[ZC4033]: ");
    receiver.signal(Signal::TERM);
    receiver.end().expect_code(130);
}

#[test]
fn help_says_where_progress_is_shown() {
    let scratch = Scratch::new();
    for command in ["send", "recv"] {
        let told = scratch.run(&[command, "--help"]);
        let help = String::from_utf8_lossy(&told.expect_code(0).stdout).into_owned();
        assert!(help.contains("if stderr is a terminal, and not with --json or -q"), "{help}");
    }
}

#[test]
fn a_port_where_nobody_listens_refuses_the_connection() {
    let scratch = Scratch::new();
    scratch.file("a", b"1");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address").to_string();
    drop(listener);
    let told = scratch.run(&["send", &address, "a", "--resume-for", "0"]);
    told.expect_code(1).expect_words("connect failed: Connection refused").expect_words("`zcmi recv` must run there");
}

#[test]
fn who_may_not_write_or_waits_for_another_is_told_where_and_what_to_do() {
    let scratch = Scratch::new();
    scratch.file("f", b"1");
    let shut = scratch.directory("shut");
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o555)).expect("a mode");
    for output in ["shut", "shut/g"] {
        let arguments = ["recv", "unix:socket", "-o", output];
        // Root may write everywhere, unless it gives that up.
        let receiver = if rustix::process::geteuid().is_root() {
            let setpriv = ["--bounding-set=-dac_override", rig::ZCMI];
            Running::new(scratch.command_of(Path::new("setpriv"), &[&setpriv[..], &arguments].concat()))
        } else {
            scratch.start(&arguments)
        };
        scratch.run(&["send", "unix:socket", "f"]).expect_code(1);
        let received = receiver.end();
        received.expect_code(1).expect_words("in the directory shut: Permission denied");
        received.expect_words("or give another directory to its --output");
    }
    let out = scratch.directory("out");
    let part = fs::File::create(out.join("f.zcmi-part")).expect("a part");
    part.lock().expect("a lock");
    let (sent, received) = hand_over(&scratch, &["f"], &["-o", "out"]);
    for ended in [sent, received] {
        ended.expect_code(1).expect_words("is receiving f into the directory out; wait until it has ended");
    }
    scratch.directory("from");
    scratch.file("from/x.zcmi-part", b"1");
    let (sent, received) = hand_over(&scratch, &["from"], &["-o", "out"]);
    for ended in [sent, received] {
        ended.expect_code(1).expect_words("[ZC9033]").expect_words("rename it, and send it again");
    }
    scratch.run(&["recv", "unix:socket", "-o", "gone/f"]).expect_code(1).expect_words("make it, or give another place");
}

#[test]
fn every_path_carries_the_same_bytes_and_says_so() {
    let scratch = Scratch::new();
    let content = noise(3_500_000, 4);
    scratch.file("a", &content);
    for path in ["write", "zerocopy", "sendfile", "splice"] {
        let (sent, received) = hand_over(&scratch, &["a", "--path", path, "--json"], &["-o", path]);
        sent.expect_code(0);
        received.expect_code(0);
        assert!(fs::read(scratch.path(path)).expect("the file") == content, "{path}");
        let lines = lines(&sent.stdout);
        let bytes = lines.last().expect("the end")["paths"][path].as_u64();
        // A Unix socket refuses MSG_ZEROCOPY.
        assert!(path == "zerocopy" || bytes.is_some_and(|bytes| bytes > 3_500_000), "{path}: {bytes:?}");
    }
}

#[test]
fn one_transfer_ends_it_and_keep_goes_on_until_it_is_told_to_end() {
    let scratch = Scratch::new();
    scratch.file("a", b"1");
    scratch.file("b", b"2");
    scratch.directory("out");
    scratch
        .run(&["recv", "unix:socket", "-o", "one", "--keep"])
        .expect_code(2)
        .expect_words("--keep needs a directory");
    let mut receiver = scratch.start(&["recv", "unix:socket", "-o", "out", "--keep"]);
    for name in ["a", "b"] {
        scratch.run(&["send", "unix:socket", name]).expect_code(0);
        receiver.wait_for_words("in 1 file received");
    }
    receiver.signal(Signal::INT);
    receiver.end().expect_code(130).expect_words("interrupted");
    assert!(!scratch.path("socket").exists(), "the socket's name goes with its listener");
    assert_eq!(fs::read(scratch.path("out/b")).expect("the file"), b"2");
}

#[test]
fn a_full_disk_ends_both_and_leaves_what_came() {
    let scratch = Scratch::new();
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: a file system of its own needs root");
        return;
    }
    scratch.file("a", &noise(8 << 20, 1));
    scratch.directory("out");
    let script = "mount -t tmpfs -o size=4m zcmi-test out || exit 77
        code=0; \"$0\" recv unix:socket -o out || code=$?
        ls out; exit $code";
    let mut command = scratch.command_of(Path::new("unshare"), &["-m", "sh", "-c", script, rig::ZCMI]);
    command.current_dir(scratch.path("."));
    let receiver = Running::new(command);
    let sent = scratch.run(&["send", "unix:socket", "a", "--resume-for", "3"]);
    let received = receiver.end();
    if received.status.code() == Some(77) || received.stderr.contains("unshare: ") {
        println!("SKIP: no mount namespace: {}", received.stderr);
        return;
    }
    received.expect_code(1).expect_words("error[ZC9002]: a cannot be written at byte").expect_words("No space left");
    assert_eq!(received.stdout, b"a.zcmi-journal\na.zcmi-part\n");
    sent.expect_code(1).expect_words("error[ZC9053]: unix:socket gave up: a cannot be written at byte");
}
