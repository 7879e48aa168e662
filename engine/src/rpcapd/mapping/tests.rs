//! Each option, and what it comes to.

use std::ffi::OsString;

use super::*;
use crate::control::tests_node as node;
use crate::rpcapd::ini;
use crate::rpcapd::options::OPTIONS;

fn invocation(args: &[&str]) -> Result<Invocation, UsageError> {
    Invocation::new(&CommandLine::parse(args.iter().map(OsString::from)).unwrap())
}

/// What a command line with this file comes to, on a node with eth0 and eth1.
fn map_with(args: &[&str], file: Option<&str>) -> Result<Mapped, UsageError> {
    let ini = file.map(|text| ini::parse(text.as_bytes()).unwrap());
    let view = node(&["eth0", "eth1"]);
    invocation(args)?.map(ini.as_ref(), &Links(&view))
}

fn map(args: &[&str]) -> Result<Mapped, UsageError> {
    map_with(args, None)
}

impl Mapped {
    fn text(&self, flag: &str) -> Option<&str> {
        let mut found = self.pairs.iter().filter(|(given, ..)| *given == flag);
        let pair = found.next();
        assert!(found.next().is_none(), "{flag} is there twice: {:?}", self.pairs);
        pair.map(|(_, text, _)| text.as_str())
    }

    fn origin(&self, flag: &str) -> &Origin {
        &self.pairs.iter().find(|(given, ..)| *given == flag).unwrap().2
    }
}

/// A command line, the setting that it shows in, and its text; `None` where it is not set.
type Case = (&'static [&'static str], &'static str, Option<&'static str>);

const EFFECTS: &[(char, Case)] = &[
    ('a', (&["-a", "10.0.0.1,2103"], "sensor", Some("10.0.0.1:2103"))),
    ('a', (&["-a", "10.0.0.1"], "sensor", Some("10.0.0.1:2003"))),
    ('a', (&["-a", "a,1,b,DEFAULT", "-a", "fd00::1,3"], "sensor", Some("a:1,b:2003,[fd00::1]:3"))),
    ('a', (&["-a", "a,1,ifname=eth1"], "sensor", Some("a:1/eth1"))),
    ('b', (&["-b", "10.0.0.1"], "listen", Some("10.0.0.1:2002"))),
    ('b', (&["-b", "fd00::1", "-p", "7"], "listen", Some("[fd00::1]:7"))),
    ('p', (&["-p", "2012"], "listen", Some("2012"))),
    ('p', (&["-p2012", "-p2013"], "listen", Some("2013"))),
    ('4', (&["-4"], "listen", Some("0.0.0.0:2002"))),
    ('4', (&["-4", "-p", "7"], "listen", Some("0.0.0.0:7"))),
    ('4', (&["-4", "-b", "10.0.0.1"], "listen", Some("10.0.0.1:2002"))),
    ('l', (&["-l", "10.0.0.1,host;10.1.0.0/16"], "allow-hosts", Some("10.0.0.1,host,10.1.0.0/16"))),
    ('n', (&["-n"], "null-auth", Some("yes"))),
    ('n', (&[], "null-auth", Some("no"))),
    ('v', (&["-v", "-a", "h"], "listen", Some(""))),
    ('v', (&[], "listen", Some("2002"))),
    ('v', (&["-v", "-p", "7", "-a", "h"], "listen", Some(""))),
    ('i', (&["-i", "any-eth"], "interface", Some("any-eth"))),
    ('i', (&["-i", "any-eth"], "preselect", Some("any-eth"))),
    ('i', (&["-i", "eth0"], "interface", Some("eth0"))),
    ('i', (&["-i", "eth0"], "preselect", Some("eth0"))),
    ('i', (&["-i", "eth*"], "preselect", Some("any-eth"))),
    ('i', (&["-i", "eth0,eth1"], "preselect", Some("any-eth"))),
    ('i', (&["-i", "eth0", "-a", "a,1,ifname=eth1"], "interface", Some("eth0,eth1"))),
    ('i', (&[], "interface", None)),
    ('F', (&["-F", "tcp"], "filter", Some("tcp"))),
    ('t', (&["-t", "8000"], "datagram-bytes", Some("8000"))),
    ('t', (&["-t", "8000"], "encoding", Some("stream"))),
    ('t', (&["-t", "99999"], "datagram-bytes", Some("65000"))),
    ('t', (&["-t", "0"], "encoding", Some("plain"))),
    ('t', (&["-t", "0"], "datagram-bytes", None)),
    ('c', (&["-c", "single"], "workers", Some("1"))),
    ('c', (&["-c", "3"], "workers", Some("1"))),
    ('c', (&["-c", "-1,0"], "workers", Some("2"))),
    ('z', (&["-z", "16777216"], "ring-memory", Some("16777216"))),
    ('m', (&["-m", "64"], "ring-memory", Some("64000000"))),
    ('m', (&["-z", "100", "-m", "64"], "ring-memory", Some("64000100"))),
];

#[test]
fn each_option_has_its_effect() {
    for (letter, (args, flag, expected)) in EFFECTS {
        let mapped = map(args).unwrap();
        assert_eq!(mapped.text(flag), *expected, "-{letter}: {args:?}");
    }
}

#[test]
fn each_option_is_tested_or_says_that_it_has_no_effect() {
    // What these do is no setting: tested where it is done.
    let elsewhere = ['f', 's', 'D', 'h'];
    for row in OPTIONS {
        let is_here = EFFECTS.iter().any(|(letter, _)| *letter == row.letter);
        assert_eq!(
            is_here || elsewhere.contains(&row.letter),
            row.effect == Effect::Works,
            "-{}",
            row.letter
        );
    }
}

#[test]
fn an_option_without_effect_changes_no_setting() {
    let without = map(&["-n"]).unwrap();
    let given = ["-n", "-d", "-e", "-5,5", "-g", "-k", "9", "-u", "9", "-S", "-L", "-D"];
    assert_eq!(map(&given).unwrap(), without);
}

#[test]
fn what_cannot_be_used_names_its_option() {
    for (args, expected) in [
        (&["-a", "h,http"][..], "-a: \"http\" is not a port"),
        (&["-a", ","], "-a: no host"),
        (&["-b", "host"], "-b: \"host\" is not an address"),
        (&["-b", "::1", "-4"], "-b: ::1 is an IPv6 address"),
        (&["-p", "0"], "-p: \"0\" is not a number from 1 to 65535"),
        (&["-p", "rpcap"], "-p: \"rpcap\" is not a number"),
        (&["-l", "10.0.0.0/40"], "-l: \"10.0.0.0/40\" is neither"),
        (&["-4", "-a", "fd00::1,2"], "-4: the sensor fd00::1 has an IPv6 address"),
        (&["-t", "x"], "-t: \"x\" is not a number"),
        (&["-t", "-1"], "-t: \"-1\" is not a number"),
        (&["-z", "16M"], "-z: \"16M\" is not a number"),
        (&["-m", ""], "-m: \"\" is not a number"),
        (&["-c", "1,2,3"], "-c: \"1,2,3\" is neither"),
        (&["-c", "fast"], "-c: \"fast\" is neither"),
        (&["-y"], "-y: there is no dry run"),
        (&["-v"], "-v: active mode only, and no sensor"),
    ] {
        let said = map(args).unwrap_err().to_string();
        assert!(said.starts_with(expected), "{args:?}: {said}");
    }
    let said = map_with(&["-v", "-f", "x.ini"], Some("NullAuthPermit = YES\n")).unwrap_err();
    assert!(said.to_string().contains("ActiveClient in x.ini"), "{said}");
}

#[test]
fn the_file_replaces_sensors_hosts_and_null_authentication() {
    let args = ["-n", "-f", "x.ini", "-a", "old,1", "-l", "older"];
    let file = "ActiveClient = new,2\nPassiveClient = newer\nNullAuthPermit = NO\n";
    let mapped = map_with(&args, Some(file)).unwrap();
    assert_eq!(mapped.text("sensor"), Some("new:2"));
    assert_eq!(mapped.text("allow-hosts"), Some("newer"));
    assert_eq!(mapped.text("null-auth"), Some("no"));
    assert_eq!(*mapped.origin("sensor"), Origin::Rpcapd("rpcapd -f x.ini".into()));
    assert_eq!(mapped.remarks.len(), 2, "{:?}", mapped.remarks);

    let silent = map_with(&args, Some("ActiveClient = new,2\n")).unwrap();
    assert_eq!(silent.text("null-auth"), Some("yes"), "the file does not say, -n does");
    assert_eq!(silent.text("allow-hosts"), Some(""), "as with the reference, the file's list");
}

#[test]
fn a_sensor_s_interface_is_found_by_name_and_by_address() {
    // Both links of the node have 10.0.0.1/16 and fd00::1/64.
    for (wish, expected) in [
        ("ifname=eth1", "h:1/eth1"),
        ("ifaddr=10.0.0.0/24", "h:1/eth0"),
        ("ifaddr=fd00::1", "h:1/eth0"),
        ("ifname=eth1,ifaddr=10.0.0.0/8", "h:1/eth1"),
        ("ifname=any-eth", "h:1/any-eth"),
    ] {
        let file = format!("ActiveClient = h,1,{wish}\n");
        let mapped = map_with(&["-v"], Some(&file)).unwrap();
        assert_eq!(mapped.text("sensor"), Some(expected), "{wish}");
        assert!(mapped.remarks.is_empty(), "{:?}", mapped.remarks);
    }
}

#[test]
fn a_sensor_whose_interface_is_not_there_gets_the_common_one_and_that_is_said_once() {
    let file = "ActiveClient = h,1,ifname=eth9\nActiveClient = g,1,ifaddr=192.0.2.1\n\
                ActiveClient = f,1,ifname=tun0\n";
    let mapped = map_with(&["-v", "-i", "eth0"], Some(file)).unwrap();
    assert_eq!(mapped.text("sensor"), Some("h:1,g:1,f:1"));
    assert_eq!(mapped.text("preselect"), Some("eth0"));
    let lists = mapped.remarks.iter().filter(|remark| remark.starts_with("the interfaces are"));
    assert_eq!((mapped.remarks.len(), lists.count()), (4, 1), "{:?}", mapped.remarks);
}

#[test]
fn the_same_sensor_twice_is_two_interfaces_or_one_sensor() {
    let file = "ActiveClient = h,1,ifname=eth0\nActiveClient = h,1,ifname=eth1\n";
    let two = map_with(&["-v"], Some(file)).unwrap();
    assert_eq!(two.text("sensor"), Some("h:1/eth0,h:1/eth1"));
    let one = map_with(&["-v"], Some("ActiveClient = h,1\nActiveClient = h,1\n")).unwrap();
    assert_eq!(one.text("sensor"), Some("h:1"));
    assert!(one.remarks[0].contains("twice"), "{:?}", one.remarks);
}

#[test]
fn a_long_option_wins_over_letter_and_file() {
    let mapped = map(&["-v", "-a", "h", "-t", "0", "--encoding", "stream", "--sensor=g"]).unwrap();
    assert_eq!(mapped.text("encoding"), Some("stream"));
    assert_eq!(mapped.text("sensor"), Some("g"));
    assert_eq!(*mapped.origin("sensor"), Origin::Flag);
}

#[test]
fn settings_show_the_option_that_they_came_from_and_the_environment_beneath() {
    let mapped = map(&["-v", "-n", "-i", "any-eth", "-a", "10.0.0.1,7"]).unwrap();
    let variables =
        [("PODTAP_SNAPLEN", "96"), ("EXTRAHOP_SENSOR_IP", "10.9.9.9"), ("PODNET", "10.0.0.0/8")];
    let settings = mapped
        .settings(|name| variables.iter().find(|(given, _)| *given == name).map(|(_, v)| v.into()))
        .unwrap();
    let text = settings.to_text();
    for (flag, value, origin) in [
        ("sensor", "10.0.0.1:7", "rpcapd -a"),
        ("port", "2003", "rpcapd's default"),
        ("interface", "any-eth", "rpcapd -i"),
        ("preselect", "any-eth", "rpcapd -i"),
        ("snaplen", "96", "environment, PODTAP_SNAPLEN"),
        ("podnet", "10.0.0.0/8", "environment, PODNET"),
    ] {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(flag)).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1], value, "{line}");
        assert!(line.ends_with(origin), "{line}");
    }
}

#[test]
fn an_error_of_a_setting_names_the_option() {
    let mapped = map(&["-v", "-a", "h", "-t", "5"]).unwrap();
    let settings = mapped.settings(|_| None).unwrap();
    let said = crate::config::Config::new(&settings).unwrap_err().to_string();
    assert!(said.starts_with("rpcapd -t: \"5\" is not a number from 128"), "{said}");
}
