//! What may be typed after `podtap sensor`.

use clap::{Args as _, FromArgMatches as _};

use super::*;

fn parse(line: &str) -> Result<Args, clap::Error> {
    let command = Args::augment_args(clap::Command::new("sensor").no_binary_name(true));
    let matches = command.try_get_matches_from(line.split_whitespace())?;
    Args::from_arg_matches(&matches)
}

#[test]
fn several_daemons_are_a_list_or_several_flags() {
    let args = parse("--connect a:1,b --connect [::1]:3 --reconnect").unwrap();
    assert_eq!(args.connect, ["a:1", "b", "[::1]:3"]);
    assert!(args.reconnect);
    parse("--reconnect --listen 127.0.0.1:2003").unwrap_err();
    let said = parse("").unwrap_err().to_string();
    assert!(said.contains("--listen <ADDR:PORT>|--connect <HOST:PORT>"), "{said}");
    parse("--listen 127.0.0.1:2003 --connect a").unwrap();
}

#[test]
fn sampling_is_one_in_n_or_a_pause() {
    let sampling = |text: &str| parse(&format!("--connect a --sampling {text}"));
    let ok = |text: &str| sampling(text).unwrap().sampling.unwrap();
    assert_eq!(ok("1/5"), Sampling { method: 1, value: 5 });
    assert_eq!(ok("250ms"), Sampling { method: 2, value: 250 });
    for bad in ["5", "2/5", "1/0", "0ms", "1/", "ms", "1/-1", "1/4294967296", "1s"] {
        let error = sampling(bad).unwrap_err().to_string();
        assert!(error.contains("expected 1/N or Nms"), "{bad}: {error}");
    }
}

#[test]
fn other_senders_are_addresses_or_prefixes() {
    let args = parse("--connect a --data-from 10.0.0.1,fd00::/64").unwrap();
    let texts: Vec<_> = args.data_from.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["10.0.0.1/32", "fd00::/64"]);
    parse("--connect a --data-from 10.0.0.0/33").unwrap_err();
}

#[test]
fn a_filter_comes_from_one_place() {
    parse("--connect a --filter tcp --filter-file f").unwrap_err();
}

#[test]
fn no_longer_frames_are_asked_for_than_fit_a_datagram_unless_told() {
    let snaplen = |more: &str| parse(&format!("--connect a {more}")).unwrap().snaplen();
    // libpcap's capture dies of a frame that does not fit; loopback has such frames.
    assert_eq!(snaplen(""), 65_507 - 8 - 20);
    assert_eq!(snaplen("--data tcp"), 262_144);
    assert_eq!(snaplen("--snaplen 100000"), 100_000);
    parse("--connect a --snaplen 262145").unwrap_err();
}
