//! The long forms of tests that the ordinary run keeps short: `ZCMI_LONG=1`, optimised, one campaign after the other.

use std::time::{Duration, Instant};

use crate::Outcome;
use crate::tally::Tally;
use crate::test::cargo_test;
use crate::workspace;

/// A campaign: what is run, and how long it may take.
struct Campaign {
    name: &'static str,
    purpose: &'static str,
    arguments: &'static [&'static str],
    hours: u64,
}

const CAMPAIGNS: &[Campaign] = &[
    Campaign {
        name: "links",
        purpose: "10^8 random operations over a kernel that delays, doubles and refuses, with poison at release",
        arguments: &["--package", "zcmi-net", "--test", "link_model"],
        hours: 2,
    },
    Campaign {
        name: "frames",
        purpose: "10^8 frames, many of them wrong, from peers that lie",
        arguments: &["--package", "zcmi-net", "--test", "link_hostile"],
        hours: 2,
    },
    Campaign {
        name: "datagrams",
        purpose: "sessions over UDP on networks that lose, double, reorder and delay, and peers that lie",
        arguments: &["--package", "zcmi-net", "--lib", "udp::"],
        hours: 4,
    },
    Campaign {
        name: "peers",
        purpose: "100,000 rounds with hostile peers, and a thousand slow ones beside a good connection",
        arguments: &["--package", "zcmi-net", "--test", "hostile_peers"],
        hours: 1,
    },
    Campaign {
        name: "kills",
        purpose: "senders and receivers that are killed, 100 times by each path on each wire",
        arguments: &["--package", "zcmi-tests", "--test", "transport_kills"],
        hours: 1,
    },
    Campaign {
        name: "datagram-kills",
        purpose: "the same over UDP",
        arguments: &["--package", "zcmi-tests", "--test", "datagram_kills"],
        hours: 4,
    },
    Campaign {
        name: "forwarded-kills",
        purpose: "processes that are killed while they send on what another one owns",
        arguments: &["--package", "zcmi-tests", "--test", "forwarded_kills"],
        hours: 4,
    },
    Campaign {
        name: "network",
        purpose: "loss, doubles, reordering, delay, resets, and a network that is away for 30 s",
        arguments: &["--package", "zcmi-tests", "--test", "bad_network"],
        hours: 1,
    },
    Campaign {
        name: "goodput",
        purpose: "what arrives over a network that loses, beside plain TCP",
        arguments: &["--package", "zcmi-tests", "--test", "goodput"],
        hours: 1,
    },
    Campaign {
        name: "slow-reader",
        purpose: "99 connections beside one that reads slowly",
        arguments: &["--package", "zcmi-tests", "--test", "slow_reader"],
        hours: 1,
    },
];

/// Runs all campaigns, or the one that is named.
///
/// # Errors
/// If there is none of that name.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let wanted = |campaign: &&Campaign| arguments.iter().all(|name| name == campaign.name);
    let campaigns: Vec<&Campaign> = CAMPAIGNS.iter().filter(wanted).collect();
    if campaigns.is_empty() {
        let names: Vec<String> = CAMPAIGNS.iter().map(|one| format!("  {:<16} {}", one.name, one.purpose)).collect();
        return Err(format!("there is no such campaign; there are\n{}", names.join("\n")).into());
    }
    let mut tally = Tally::default();
    for campaign in campaigns {
        let begin = Instant::now();
        println!("== {}: {}", campaign.name, campaign.purpose);
        let mut cargo = workspace::cargo();
        cargo.args(["test", "--release"]).args(campaign.arguments).args(["--", "--show-output"]);
        cargo.env("ZCMI_LONG", "1").env_remove("ZCMI_QUICK");
        cargo_test(campaign.name, &mut cargo, Duration::from_secs(3600 * campaign.hours), &mut tally);
        println!("== {}: {} s", campaign.name, begin.elapsed().as_secs());
    }
    println!("{tally}");
    Ok(tally.is_clean())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_campaign_is_refused_with_those_there_are() {
        let refused = run(&["lnks".to_string()]).expect_err("there is none").to_string();
        assert!(CAMPAIGNS.iter().all(|campaign| refused.contains(campaign.name)), "{refused}");
    }

    #[test]
    fn every_campaign_names_a_test_that_there_is() {
        for campaign in CAMPAIGNS {
            let [_, package, kind, name] = campaign.arguments else { panic!("{}", campaign.name) };
            let directory = match *package {
                "zcmi-net" => "crates/net",
                "zcmi-tests" => "tests",
                other => panic!("{other}"),
            };
            let file = if *kind == "--test" { format!("tests/{name}.rs") } else { "src/udp.rs".to_string() };
            assert!(workspace::root().join(directory).join(&file).exists(), "{directory}/{file}");
        }
    }
}
