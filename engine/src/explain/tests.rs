//! Answers over nodes of every kind, as they are printed: `golden/*.txt`.
//!
//! To accept new answers, after reading them: `PODTAP_BLESS=1 cargo test -p engine --lib explain::`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::answer::{Source, answer};
use super::known::Known;
use super::question::Question;
use super::state::{State, StateError};
use super::{Args, ExplainError, text};
use crate::config::{Config, Settings};
use crate::net::{Link, Role, View};

mod frames;
mod state;

/// A node under construction.
#[derive(Default)]
struct Node {
    view: View,
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

impl Node {
    /// A device with own addresses, and what is behind it.
    fn link(mut self, name: &str, kind: &str, role: Role, own: &[&str], behind: &[&str]) -> Self {
        let ifindex = u32::try_from(self.view.links.len() + 1).unwrap();
        let addresses = nets(own);
        self.view.own.extend(addresses.iter().map(IpNet::addr));
        let host = |net: &IpNet| (IpNet::from(net.addr()), 0);
        self.view.local_by.extend(addresses.iter().map(host));
        self.view.local_by.extend(nets(behind).into_iter().map(|net| (net, ifindex)));
        let link = Link {
            ifindex,
            name: name.into(),
            kind: kind.into(),
            is_ethernet: true,
            is_up: true,
            is_running: true,
            is_loopback: false,
            mac: vec![2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses,
            role,
            slot: u16::try_from(ifindex).unwrap(),
            is_tapped: true,
        };
        self.view.links.insert(ifindex, link);
        if role == Role::Uplink && self.view.main.is_none() {
            self.view.main = Some(ifindex);
        }
        self
    }

    fn view(mut self) -> View {
        self.view.own.sort_unstable();
        self.view.local_by.sort_unstable();
        self.view.local = self.view.local_by.iter().map(|(net, _)| *net).collect();
        self.view.local.dedup();
        self.view
    }

    fn state(self, flags: &[&str]) -> State {
        let config = Config::new(&Settings::from_parts(flags, &[]).unwrap()).unwrap();
        let sensors: BTreeSet<IpAddr> = config.numeric_sensors().into_iter().collect();
        let state = State::new(&config, &config.policy, &self.view(), &sensors);
        // As it comes to who asks.
        State { version: "0".into(), ..State::parse(state.to_json().as_bytes()).unwrap() }
    }
}

const FLAGS: [&str; 8] = [
    "--svcnet",
    "172.20.0.0/16,fd00:172::/112",
    "--tapped-net",
    "10.0.0.0/16,fd00:10::/32",
    "--untapped-net",
    "10.0.200.0/24",
    "--sensor",
    "10.0.250.10",
];

fn vpc_cni() -> Node {
    Node::default()
        .link("eth0", "", Role::Uplink, &["10.0.1.10/24", "fd00:10:1::10/64"], &[])
        .link("eni1", "veth", Role::Pod, &[], &["10.0.1.101/32", "fd00:10:1::101/128"])
        .link("eni2", "veth", Role::Pod, &[], &["10.0.1.102/32", "fd00:10:1::102/128"])
}

/// Asks as the command line does.
fn ask(state: &State, words: &str) -> Result<String, ExplainError> {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    let words = words.split_whitespace();
    let line = <Line as clap::Parser>::try_parse_from(["explain"].into_iter().chain(words));
    let args = line.map_err(|error| ExplainError::Usage(error.to_string()))?.args;
    let question = Question::parse(&args).map_err(ExplainError::Usage)?;
    let answer = answer(&Known::new(state.clone()), Source::File("-".into()), question)?;
    Ok(if args.json { serde_json::to_string(&answer).unwrap() } else { text::render(&answer) })
}

/// The answers to all the questions, held against the file of that name.
#[track_caller]
fn golden(name: &str, state: &State, questions: &[&str]) {
    let mut said = String::new();
    for question in questions {
        let answer = ask(state, question).unwrap();
        said.push_str(&format!("$ podtap explain {question}\n{answer}\n"));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/explain/golden").join(name);
    if std::env::var_os("PODTAP_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &said).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(said == expected, "{} is not what is said now:\n{said}", path.display());
}

#[test]
fn the_vpc_cni_s_node_is_explained() {
    golden(
        "vpc-cni.txt",
        &vpc_cni().state(&FLAGS),
        &[
            "10.0.1.10",
            "10.0.1.101",
            "10.0.2.7",
            "10.0.200.3",
            "203.0.113.9",
            "172.20.0.10",
            "eth0",
            "eni1",
            "10.0.1.101:40000 tcp 10.0.1.102:8080",
            "10.0.1.101:40000 tcp 10.0.2.7:8080",
            "10.0.2.7:40000 tcp 10.0.1.101:8080",
            "10.0.1.101 10.0.200.3",
            "10.0.1.101:40000 tcp 203.0.113.9:443",
            "203.0.113.9:40000 tcp 10.0.1.101:443",
        ],
    );
}

#[test]
fn services_are_explained_with_a_backend_and_without() {
    golden(
        "services.txt",
        &vpc_cni().state(&FLAGS),
        &[
            "10.0.1.101:40000 tcp 172.20.0.10:80",
            "10.0.1.101:40000 tcp 172.20.0.10:80 --backend 10.0.1.102:8080",
            "10.0.1.101:40000 tcp 172.20.0.10:80 --backend 10.0.2.7:8080",
            "10.0.1.101:40000 tcp 172.20.0.10:80 --backend 10.0.1.101:8080",
            "10.0.1.101:40000 tcp 172.20.0.10:80 --backend 10.0.1.10:8080",
            "10.0.1.10:40000 tcp 172.20.0.10:80 --backend 10.0.1.102:8080",
            "203.0.113.9:40000 tcp 10.0.1.10:30080 --backend 10.0.1.102:8080",
            "203.0.113.9:40000 tcp 10.0.1.10:30080 --backend 10.0.2.7:8080",
        ],
    );
}

#[test]
fn the_host_s_own_traffic_is_explained() {
    golden(
        "host.txt",
        &vpc_cni().state(&FLAGS),
        &[
            "10.0.1.10:40000 tcp 10.0.1.101:8080",
            "10.0.1.101:40000 tcp 10.0.1.10:10250",
            "203.0.113.9:40000 tcp 10.0.1.10:22",
            "10.0.1.10:40000 tcp 203.0.113.9:443",
            "10.0.1.10:40000 tcp 10.0.1.10:443",
            "10.0.1.10:40000 tcp 10.0.250.10:2003",
            "10.0.1.10:40000 udp 10.0.250.10:2003",
            "203.0.113.9:1 udp 203.0.113.10:2",
        ],
    );
}

#[test]
fn secondary_enis_are_explained() {
    let node = vpc_cni().link("eth1", "", Role::Uplink, &[], &[]);
    golden(
        "secondary-eni.txt",
        &node.state(&FLAGS),
        &["eth1", "10.0.1.101:40000 tcp 10.0.2.7:8080"],
    );
}

#[test]
fn strict_security_groups_are_explained() {
    let node = Node::default()
        .link("eth0", "", Role::Uplink, &["10.0.1.10/24"], &[])
        .link("eth1", "", Role::Uplink, &[], &[])
        .link("vlan.eth.1", "vlan", Role::Uplink, &[], &[])
        .link("vlan.eth.2", "vlan", Role::Uplink, &[], &[])
        .link("vlan5a1", "veth", Role::Pod, &[], &["10.0.1.101/32"])
        .link("vlan5a2", "veth", Role::Pod, &[], &["10.0.1.102/32"]);
    golden(
        "strict-security-groups.txt",
        &node.state(&FLAGS),
        &["vlan.eth.1", "vlan5a1", "10.0.1.101:40000 tcp 10.0.1.102:8080"],
    );
}

#[test]
fn overlays_are_explained() {
    let mut node = Node::default()
        .link("eth0", "", Role::Uplink, &["192.168.0.5/24"], &[])
        .link("flannel.1", "vxlan", Role::Uplink, &["10.244.1.0/32"], &[])
        .link("cni0", "bridge", Role::Other, &["10.244.1.1/24"], &["10.244.1.0/24"])
        .link("veth9a", "veth", Role::Pod, &[], &[]);
    node.view.overlay_ports = vec![8472];
    golden(
        "overlay.txt",
        &node.state(&["--tapped-net", "10.244.0.0/16"]),
        &[
            "flannel.1",
            "veth9a",
            "10.244.1.7",
            "10.244.1.7:40000 tcp 10.244.2.9:80",
            "10.244.1.7:40000 tcp 10.244.1.8:80",
        ],
    );
}

#[test]
fn ipv6_is_explained() {
    golden(
        "ipv6.txt",
        &vpc_cni().state(&FLAGS),
        &[
            "fd00:10:1::101",
            "[fd00:10:1::101]:40000 tcp [fd00:10:2::7]:80",
            "[fd00:10:1::101]:40000 udp [fd00:172::a]:53 --backend [fd00:10:2::7]:53",
            "fd00:10:1::101 icmp 2001:db8:9::1",
        ],
    );
}

#[test]
fn nodelocal_dns_is_explained() {
    let node = vpc_cni().link(
        "nodelocaldns",
        "dummy",
        Role::Other,
        &["169.254.20.10/32", "172.20.0.10/32"],
        &[],
    );
    golden(
        "nodelocal-dns.txt",
        &node.state(&FLAGS),
        &["172.20.0.10", "10.0.1.101:40000 udp 172.20.0.10:53"],
    );
}

#[test]
fn a_node_without_coverage_reports_in_doubt() {
    golden(
        "no-coverage.txt",
        &vpc_cni().state(&["--svcnet", "172.20.0.0/16"]),
        &["10.0.2.7", "10.0.2.7:40000 tcp 10.0.1.101:80"],
    );
}

#[test]
fn other_elections_are_explained() {
    let flow = ["10.0.1.101:40000 tcp 10.0.2.7:8080"];
    let none = [&FLAGS[..], &["--election", "none"]].concat();
    golden("election-none.txt", &vpc_cni().state(&none), &flow);
    let ports = [&FLAGS[..], &["--election", "ports", "--podnet", "10.0.0.0/16"]].concat();
    golden("election-ports.txt", &vpc_cni().state(&ports), &flow);
}

#[test]
fn an_interface_that_is_left_out_is_named_with_the_flag() {
    let mut node = vpc_cni();
    node.view.links.get_mut(&2).unwrap().is_tapped = false;
    golden(
        "left-out.txt",
        &node.state(&[&FLAGS[..], &["--interface", "eth0,eni2"]].concat()),
        &["eni1", "10.0.1.101:40000 tcp 203.0.113.9:443"],
    );
}

#[test]
fn where_nothing_leads_off_the_node_it_is_said() {
    let node = Node::default().link("eni1", "veth", Role::Pod, &[], &["10.0.1.101/32"]);
    golden("no-uplink.txt", &node.state(&FLAGS), &["10.0.1.101:40000 tcp 10.0.2.7:8080"]);
}

#[test]
fn an_answer_s_lines_are_aligned_and_end_plainly() {
    let said = ask(&vpc_cni().state(&FLAGS), "10.0.1.101:40000 tcp 10.0.2.7:8080").unwrap();
    for line in said.lines() {
        assert_eq!(line.trim_end(), line, "{line:?}");
    }
    let column = |label: &str| {
        let line = said.lines().find(|line| line.starts_with(label)).unwrap();
        label.len() + line[label.len()..].find(|c| c != ' ').unwrap()
    };
    assert_eq!(column("state"), column("10.0.1.101"));
    assert_eq!(column("state"), column("10.0.2.7"));
}

#[test]
fn wrong_questions_say_what_would_be_right() {
    let state = vpc_cni().state(&FLAGS);
    for (words, expected) in [
        ("", "what? give an address"),
        (
            "eni9",
            "\"eni9\" is neither an address nor an interface of this node: its interfaces are eni1, eni2, eth0",
        ),
        ("10.0.1.300", "\"10.0.1.300\" is neither an address"),
        ("10.0.1.101:1 tcp [fd00::1]:2", "10.0.1.101 and fd00::1 are of two families"),
        (
            "10.0.1.101:1 tcp 10.0.1.102:2 --backend [fd00::1]:2",
            "10.0.1.101 and fd00::1 are of two",
        ),
        ("10.0.1.101:1 tpc 10.0.1.102:2", "\"tpc\" is no protocol"),
        ("10.0.1.101:1 icmp 10.0.1.102:2", "icmp has no ports"),
        ("10.0.1.101 tcp 10.0.1.102", "tcp to which port? as in 10.0.1.102:80"),
        ("10.0.1.101 tcp eni2", "\"eni2\" is not an address"),
        ("a b c d", "4 words are no question"),
        ("10.0.1.101 --backend 10.0.1.102:1", "--backend is for a flow"),
        ("10.0.1.101:1 10.0.1.102:2 --backend x", "--backend: \"x\" is not an address"),
    ] {
        let error = ask(&state, words).unwrap_err();
        assert!(error.is_input(), "{error}");
        assert!(error.to_string().starts_with(expected), "{words}: {error}");
    }
}

#[test]
fn json_is_one_object_with_the_same_verdicts() {
    let state = vpc_cni().state(&FLAGS);
    let said = ask(&state, "10.0.2.7:40000 tcp 10.0.1.101:8080 --json").unwrap();
    let value: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(value["about"], "flow");
    assert_eq!(value["state"]["election"], "source");
    assert_eq!(value["facts"][0]["covered"], true);
    assert_eq!(value["facts"][0]["tapped_by"], "10.0.0.0/16");
    assert_eq!(value["request"][0]["verdict"], "dropped");
    assert_eq!(value["request"][0]["reason"], "covered");
    assert_eq!(value["request"][0]["rule"], 1);
    assert_eq!(value["answer"][0]["verdict"], "reported");
    assert_eq!(value["answer"][0]["interface"], "eni1");
    assert_eq!(value["rules"]["1"], "the sender's node reports");
}
