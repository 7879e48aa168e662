//! Answers: what is known and decided, as data. `text` says it to people, serde as JSON.
//!
//! ```text
//! Question + Known --> facts of addresses, interface, frame + copies (judge) --> Answer
//! ```

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::Serialize;

use crate::frame::Direction;
use crate::net::{Link, Role};

use super::ExplainError;
use super::capture::{self, FrameFacts};
use super::craft::{End, Ends, Protocol};
use super::judge::{self, Copy, RULES, Way};
use super::known::{AddressFacts, Known, Place, election_name, is_tunnel, nobody, role_name};
use super::path::{self, Step};
use super::question::Question;

/// Where the state is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Source {
    /// A running tap, by the name of its socket.
    Tap(String),
    File(String),
    /// None runs (at this name), or flags were given: this machine.
    Machine {
        absent: Option<String>,
    },
}

/// The tap that the answer is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct About {
    pub(super) from: Source,
    pub(super) version: String,
    pub(super) pid: Option<u32>,
    pub(super) election: &'static str,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Answer {
    pub(super) state: About,
    #[serde(flatten)]
    pub(super) body: Body,
    /// The rules that the answer names, in words.
    pub(super) rules: BTreeMap<u8, &'static str>,
    pub(super) notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "about", rename_all = "lowercase")]
pub(super) enum Body {
    Address { facts: AddressFacts, copies: Vec<Copy> },
    Flow { protocol: Protocol, facts: Vec<AddressFacts>, request: Vec<Copy>, answer: Vec<Copy> },
    Interface(InterfaceFacts),
    Frame(Box<FrameFacts>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct InterfaceFacts {
    pub(super) interface: String,
    pub(super) ifindex: u32,
    /// `IFLA_INFO_KIND`; none for a physical device.
    pub(super) kind: Option<String>,
    pub(super) role: &'static str,
    pub(super) main: bool,
    pub(super) up: bool,
    pub(super) tapped: bool,
    /// Its number in the table of copies.
    pub(super) slot: u16,
    pub(super) addresses: Vec<IpNet>,
    /// Local prefixes behind it.
    pub(super) leads_to: Vec<IpNet>,
    pub(super) mtu: u32,
    pub(super) says: String,
    /// What would be decided of frames there.
    pub(super) copies: Vec<Copy>,
}

/// Answers the question from what is known.
pub(super) fn answer(
    known: &Known,
    from: Source,
    question: Question,
) -> Result<Answer, ExplainError> {
    let (body, mut notes) = match question {
        Question::Address(end) => address(known, end),
        Question::Flow { ends, protocol, backend } => flow(known, ends, protocol, backend),
        Question::Interface(name) => interface(known, &name)?,
        Question::Frame { file, number, point, backend } => {
            capture::frame(known, &file, number, point, backend)?
        }
    };
    if let Some(filter) = known.state.filter() {
        let flag = known.state.named("filter");
        notes.push(format!("{flag} {filter:?} is asked of every packet; these verdicts are on a flow's first one, or on the frame's bytes"));
    }
    let named: Vec<u8> = body.copies().filter_map(|copy| copy.rule).collect();
    let rules = RULES.into_iter().filter(|(rule, _)| named.contains(rule)).collect();
    let election = election_name(known.policy.election);
    let (version, pid) = (known.state.version.clone(), known.state.pid);
    Ok(Answer { state: About { from, version, pid, election }, body, rules, notes })
}

impl Body {
    fn copies(&self) -> impl Iterator<Item = &Copy> {
        let (one, two): (&[Copy], &[Copy]) = match self {
            Self::Address { copies, .. } => (copies, &[]),
            Self::Flow { request, answer, .. } => (request, answer),
            Self::Interface(facts) => (&facts.copies, &[]),
            Self::Frame(facts) => (&facts.copies, &[]),
        };
        one.iter().chain(two)
    }
}

/// What the address sends, where it is first seen; of a service, also what is sent to it.
fn address(known: &Known, end: End) -> (Body, Vec<String>) {
    let is_v6 = end.address.is_ipv6();
    let other = End { address: nobody(is_v6), port: end.port.map(|_| 49_152) };
    let protocol = match end.port {
        Some(_) => Protocol::TCP,
        None => Protocol(crate::wire::protocol::ICMP).of_family(is_v6),
    };
    let sent = Ends { source: end, destination: other };
    let mut notes = Vec::new();
    let mut steps = Vec::new();
    let uplinks = known.uplinks();
    if known.is_service(end, protocol) {
        let pods = || known.view.links.values().filter(|link| link.role == Role::Pod);
        let pod = pods().map(|link| link.ifindex).min();
        let links = pod.map_or(uplinks, |pod| vec![pod]);
        let mut ask = |direction, ends| {
            let at = pod.map(|_| "a pod's interface");
            steps.push(Step { at, ..Step::new(links.clone(), direction, ends) });
        };
        ask(Direction::In, sent.reversed());
        ask(Direction::Out, sent);
        notes.push("`podtap explain CLIENT tcp SERVICE:PORT --backend ADDR:PORT` shows all copies of a flow".to_owned());
    } else {
        steps.push(match known.place(end.address) {
            Place::Own => Step::new(uplinks, Direction::Out, sent),
            Place::Behind(links) => Step::new(links, Direction::In, sent),
            Place::Elsewhere => Step::new(uplinks, Direction::In, sent),
        });
    }
    let copies = judge::each(known, &steps, protocol);
    (Body::Address { facts: known.facts(end.address), copies }, notes)
}

fn flow(
    known: &Known,
    ends: Ends,
    protocol: Protocol,
    backend: Option<End>,
) -> (Body, Vec<String>) {
    let path::Path { request, answer, mut notes } = path::find(known, ends, protocol, backend);
    let request = judge::copies(known, &request, protocol, Way::Request);
    let is_proven = judge::is_proven(&request);
    let answer = judge::copies(known, &answer, protocol, Way::Answer { is_proven });
    let all = [Some(ends.source), Some(ends.destination), backend];
    let facts: Vec<AddressFacts> =
        all.into_iter().flatten().map(|end| known.facts(end.address)).collect();
    if protocol.0 == crate::wire::protocol::UDP && facts[1].sensor {
        notes.push("datagrams with RPCAP data to a sensor are the tap's own: dropped at every point (rule 7)".into());
    }
    (Body::Flow { protocol, facts, request, answer }, notes)
}

pub(super) fn named<'a>(known: &'a Known, name: &str) -> Result<&'a Link, ExplainError> {
    known.link_named(name).ok_or_else(|| {
        let mut names: Vec<&str> = known.view.links.values().map(|l| l.name.as_str()).collect();
        names.sort_unstable();
        const MOST: usize = 12;
        let more = names.len().saturating_sub(MOST);
        names.truncate(MOST);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        ExplainError::Usage(format!(
            "{name:?} is neither an address nor an interface of this node: its interfaces are {}{more}",
            names.join(", ")
        ))
    })
}

fn interface(known: &Known, name: &str) -> Result<(Body, Vec<String>), ExplainError> {
    let link = named(known, name)?;
    let leads_to: Vec<IpNet> = known
        .view
        .local_by
        .iter()
        .filter(|(_, ifindex)| *ifindex == link.ifindex)
        .map(|(net, _)| *net)
        .collect();
    let samples = if link.is_tapped { samples(known, link, &leads_to) } else { Vec::new() };
    let copies = judge::each(known, &samples, Protocol::TCP);
    let facts = InterfaceFacts {
        interface: link.name.clone(),
        ifindex: link.ifindex,
        kind: (!link.kind.is_empty()).then(|| link.kind.clone()),
        role: role_name(link.role),
        main: known.view.main == Some(link.ifindex),
        up: link.is_up,
        tapped: link.is_tapped,
        slot: link.slot,
        addresses: link.addresses.clone(),
        says: sentence(known, link, &leads_to),
        leads_to,
        mtu: link.mtu,
        copies,
    };
    let mut notes = Vec::new();
    if link.is_tapped && link.slot == 0 {
        notes.push("it has no number in the table of copies, as there are more interfaces than numbers: what is seen there is always reported".to_owned());
    }
    Ok((Body::Interface(facts), notes))
}

fn sentence(known: &Known, link: &Link, leads_to: &[IpNet]) -> String {
    let role = match link.role {
        Role::Uplink if known.view.main == Some(link.ifindex) => {
            "uplink, the main device: the default route leaves the node there"
        }
        Role::Uplink if is_tunnel(link) => "uplink: a tunnel to other nodes",
        Role::Uplink => "uplink: it leads off the node",
        Role::Pod if !leads_to.is_empty() => "pod: a host route leads through it",
        Role::Pod => "pod: its other end is in another namespace, or it is a bridge's port",
        Role::Other if link.is_loopback => "other: loopback",
        Role::Other => "other: neither leads off the node nor to a pod",
    };
    let flag = known.state.named("interface");
    let tapped = match (link.is_tapped, link.is_ethernet) {
        (true, _) => "tapped".to_owned(),
        (false, false) => "not tapped: it is not Ethernet".to_owned(),
        (false, true) => format!("not tapped: {flag} leaves it out"),
    };
    format!("{role}; {tapped}")
}

/// A frame from each kind of address, in each direction in which it makes sense.
fn samples(known: &Known, link: &Link, leads_to: &[IpNet]) -> Vec<Step> {
    let peer = End { address: nobody(false), port: Some(49_152) };
    let end = |address| End { address, port: Some(80) };
    let step = |direction, source, destination: End| {
        // Nobody talks to themselves.
        let port = destination.port.filter(|_| source != destination).or(Some(80));
        let destination = End { port, ..destination };
        Step::new(vec![link.ifindex], direction, Ends { source, destination })
    };
    let is_v4 = |net: &&IpNet| net.addr().is_ipv4();
    let host = |net: &IpNet| net.hosts().next().unwrap_or(net.addr());
    let covered = known.policy.tapped.iter().filter(is_v4).map(host);
    let covered = covered.filter(|address| known.standing(*address).is_covered).map(end).next();
    let service = known.policy.svcnet.iter().filter(is_v4).map(host).map(end).next();
    let local = known.view.local.iter().filter(is_v4).map(host);
    let local = local.filter(|address| !known.standing(*address).is_own).map(end).next();
    let own = known.node_address(false).map(end);
    let mut steps = Vec::new();
    let mut add = |direction, source: Option<End>, when| {
        let Some(source) = source else { return };
        steps.push(Step { when: Some(when), ..step(direction, source, peer) });
    };
    match link.role {
        Role::Uplink => {
            add(Direction::In, covered, "from a covered address");
            add(Direction::In, Some(peer), "from an address that is neither local nor covered");
            add(Direction::Out, local, "from a local address");
            add(Direction::Out, own, "from the node's own address");
        }
        Role::Pod | Role::Other => {
            let behind = leads_to.iter().filter(is_v4).map(host).map(end).next();
            add(Direction::In, behind.or(local), "from a local address");
            add(Direction::Out, covered, "from a covered address");
            add(Direction::Out, service, "from a service address");
            add(Direction::Out, Some(peer), "from an address that is neither local nor covered");
        }
    }
    steps
}
