//! Events, dumps, and a plain model of the kernel beside them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::net::Role;

pub(in crate::net) fn device(ifindex: u32, name: &str, kind: &str) -> Device {
    let link = Link {
        ifindex,
        name: name.to_owned(),
        kind: kind.to_owned(),
        is_ethernet: true,
        is_up: true,
        is_running: true,
        is_loopback: false,
        mac: vec![2, 0, 0, 0, 0, 1],
        mtu: 1500,
        addresses: Vec::new(),
        role: Role::Other,
        slot: 0,
        is_tapped: false,
    };
    Device {
        link,
        master: 0,
        parent: 0,
        is_peer_elsewhere: false,
        overlay_port: None,
        largest_frame: 0,
    }
}

/// Tables as of a text that reads like `ip` output, links numbered from 1:
/// `link NAME KIND [down] [loopback] [raw] [peer=elsewhere] [master=NAME] [parent=NAME]
/// [port=N]`, `addr NAME NET`, `nexthop ID [via IP] dev NAME`, `nexthop ID group A B`,
/// `route NET|default|default6 [via IP] dev NAME ... [table N] [nhid N]`.
pub(in crate::net) fn fixture(text: &str) -> Tables {
    let mut tables = Tables::default();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let update = parse_line(&tables, line);
        assert!(tables.apply(update), "says nothing new: {line}");
    }
    tables
}

fn ifindex(tables: &Tables, name: &str) -> u32 {
    let found = tables.devices.values().find(|device| device.link.name == name);
    found.unwrap_or_else(|| panic!("no link {name}")).link.ifindex
}

fn parse_line(tables: &Tables, line: &str) -> Update {
    let words: Vec<&str> = line.split_whitespace().collect();
    let index_of = |name: &str| ifindex(tables, name);
    match words[..] {
        ["link", name, ref attributes @ ..] => {
            let count = u32::try_from(tables.devices.len()).unwrap();
            Update::Link(Box::new(parse_link(tables, count + 1, name, attributes)))
        }
        ["addr", name, net] => Update::Address(index_of(name), net.parse().unwrap()),
        ["nexthop", id, "group", ref members @ ..] => {
            let members = members.iter().map(|id| id.parse().unwrap()).collect();
            Update::Nexthop(id.parse().unwrap(), Nexthop::Group(members))
        }
        ["nexthop", id, ref hop @ ..] => {
            let Leg::Direct(hop) = parse_legs(tables, hop)[0] else { panic!("{line}") };
            Update::Nexthop(id.parse().unwrap(), Nexthop::Hop(hop))
        }
        ["route", destination, ref rest @ ..] => {
            let destination = match destination {
                "default" => "0.0.0.0/0",
                "default6" => "::/0",
                net => net,
            };
            let number = |name: &str, otherwise| {
                let at = rest.iter().position(|word| *word == name);
                at.map_or(otherwise, |at| rest[at + 1].parse().unwrap())
            };
            let (table, priority) = (number("table", 254), number("metric", 0));
            let destination = destination.parse().unwrap();
            let key = RouteKey { table, destination, priority, tos: 0 };
            Update::Route { key, legs: parse_legs(tables, rest), replaces: false }
        }
        _ => panic!("cannot read {line:?}"),
    }
}

fn parse_link(tables: &Tables, index: u32, name: &str, attributes: &[&str]) -> Device {
    let mut device = device(index, name, "");
    for attribute in attributes {
        match attribute.split_once('=').unwrap_or((attribute, "")) {
            ("physical", _) => {}
            ("down", _) => (device.link.is_up, device.link.is_running) = (false, false),
            ("loopback", _) => {
                (device.link.is_loopback, device.link.is_ethernet) = (true, false);
            }
            ("raw", _) => device.link.is_ethernet = false,
            ("peer", "elsewhere") => device.is_peer_elsewhere = true,
            ("master", name) => device.master = ifindex(tables, name),
            ("parent", name) => device.parent = ifindex(tables, name),
            ("port", port) => device.overlay_port = Some(port.parse().unwrap()),
            (kind, "") => device.link.kind = kind.to_owned(),
            _ => panic!("cannot read {attribute:?}"),
        }
    }
    device
}

fn parse_legs(tables: &Tables, words: &[&str]) -> Vec<Leg> {
    let mut legs = Vec::new();
    let mut gateway = None;
    for pair in words.windows(2) {
        match pair {
            ["via", address] => gateway = Some(address.parse().unwrap()),
            ["dev", name] => {
                let gateway = gateway.take();
                legs.push(Leg::Direct(Hop { ifindex: ifindex(tables, name), gateway }));
            }
            ["nhid", id] => legs.push(Leg::Object(id.parse().unwrap())),
            _ => {}
        }
    }
    legs
}

fn key(destination: &str) -> RouteKey {
    RouteKey { table: 254, destination: destination.parse().unwrap(), priority: 0, tos: 0 }
}

fn leg(ifindex: u32) -> Leg {
    Leg::Direct(Hop { ifindex, gateway: None })
}

fn route(destination: &str, ifindex: u32, replaces: bool) -> Update {
    Update::Route { key: key(destination), legs: vec![leg(ifindex)], replaces }
}

#[test]
fn what_is_told_twice_is_no_news() {
    let mut tables = fixture("link eth0 physical\naddr eth0 10.0.0.1/24");
    let eth0 = tables.devices[&1].clone();
    assert!(!tables.apply(Update::Link(Box::new(eth0))));
    assert!(!tables.apply(Update::Address(1, "10.0.0.1/24".parse().unwrap())));
    assert!(tables.apply(route("10.0.1.0/24", 1, false)));
    assert!(!tables.apply(route("10.0.1.0/24", 1, true)));
    assert!(!tables.take_stale());
    assert!(!tables.apply(Update::LinkGone(9)));
}

#[test]
fn a_link_that_goes_takes_everything_with_it() {
    let mut tables = fixture(
        "link eni1 veth
         addr eni1 fe80::1/64
         route 10.0.1.5/32 dev eni1
         route 10.0.1.5/32 dev eni1 table 3",
    );
    assert_eq!(tables.slot(1), 1);
    assert!(tables.apply(Update::LinkGone(1)));
    assert!(tables.routes.is_empty() && tables.routes_of.is_empty());
    assert!(tables.addresses.is_empty() && tables.devices.is_empty());
    assert_eq!(tables.slot(1), 0);
    assert!(!tables.take_stale(), "no dump for each pod that dies");
}

#[test]
fn a_veths_peer_that_goes_has_moved_elsewhere_and_costs_no_dump() {
    let mut tables = fixture("link p1 veth\nlink eth1 veth parent=p1");
    assert!(!tables.devices[&2].is_peer_elsewhere);
    tables.apply(Update::LinkGone(1));
    assert!(!tables.take_stale() && tables.devices[&2].is_peer_elsewhere);
    tables.apply(Update::LinkGone(2));
    assert!(!tables.take_stale() && tables.children_of.is_empty());
}

#[test]
fn a_trunk_that_goes_leaves_a_doubt_where_its_vlans_are() {
    let mut tables = fixture("link eth1 physical\nlink eth1.7 vlan parent=eth1");
    tables.apply(Update::LinkGone(1));
    assert!(tables.take_stale());
}

#[test]
fn tapped_links_that_went_are_known_for_a_while_however_they_went() {
    let gone = |tables: &Tables| tables.gone().collect::<Vec<_>>();
    let mut tables = fixture("link lo loopback\nlink eni1 veth\nlink eni2 veth\nlink eni3 veth");
    tables.apply(Update::LinkGone(1));
    tables.apply(Update::LinkGone(2));
    assert_eq!(gone(&tables), [2], "loopback was never tapped");
    let left = tables.devices[&3].clone();
    tables.replace(Kind::Links, vec![Update::Link(Box::new(left))]);
    assert_eq!(gone(&tables), [4, 2], "the dump lacks eni3");
    assert_eq!(tables.view().gone, [2, 4]);
    for ifindex in 100..500 {
        tables.apply(Update::Link(Box::new(device(ifindex, "eni", "veth"))));
        tables.apply(Update::LinkGone(ifindex));
    }
    assert_eq!((gone(&tables).len(), gone(&tables)[0]), (GONE, 499));
    tables.apply(Update::Link(Box::new(device(499, "eni", "veth"))));
    assert!(!gone(&tables).contains(&499), "it is back");
}

#[test]
fn a_link_that_goes_down_loses_its_routes_in_silence() {
    let mut tables = fixture("link eni1 veth\nroute 10.0.1.5/32 dev eni1");
    let mut down = tables.devices[&1].clone();
    down.link.is_up = false;
    assert!(tables.apply(Update::Link(Box::new(down))));
    assert!(tables.routes.is_empty());
}

#[test]
fn a_leg_that_dies_leaves_the_others_and_a_doubt() {
    let mut tables = fixture(
        "link eth0 physical
         link eth1 physical
         route default via 10.0.0.1 dev eth0 via 10.0.1.1 dev eth1",
    );
    tables.apply(Update::LinkGone(1));
    assert_eq!(tables.hops().map(|(_, hop)| hop.ifindex).collect::<Vec<_>>(), [2]);
    assert!(tables.take_stale());
    assert!(!tables.take_stale(), "said once");
}

#[test]
fn routes_with_one_key_stand_side_by_side_until_replaced() {
    let mut tables = fixture("link a veth\nlink b veth\nlink c veth");
    tables.apply(route("10.1.0.0/16", 1, false));
    tables.apply(route("10.1.0.0/16", 2, false));
    assert_eq!(tables.hops().count(), 2);
    tables.apply(route("10.1.0.0/16", 3, true));
    assert_eq!(tables.hops().map(|(_, hop)| hop.ifindex).collect::<Vec<_>>(), [3]);
    assert_eq!(tables.routes_of.keys().collect::<Vec<_>>(), [&3]);
    assert!(tables.take_stale(), "the second of the two is still there");
    // A blackhole in its place reads as a route without legs.
    let blackhole = Update::Route { key: key("10.1.0.0/16"), legs: Vec::new(), replaces: true };
    assert!(tables.apply(blackhole));
    assert!(tables.routes.is_empty() && tables.routes_of.is_empty());
}

#[test]
fn an_ipv4_address_that_goes_leaves_a_doubt_but_not_a_service_address() {
    let mut tables = fixture(
        "link eth0 physical
         link kube-ipvs0 dummy
         addr eth0 10.0.0.1/24
         addr eth0 fd00::1/64
         addr kube-ipvs0 10.96.0.1/32",
    );
    tables.apply(Update::AddressGone(2, "10.96.0.1/32".parse().unwrap()));
    tables.apply(Update::AddressGone(1, "fd00::1/64".parse().unwrap()));
    tables.apply(Update::AddressGone(1, "10.9.9.9/24".parse().unwrap()));
    assert!(!tables.take_stale());
    tables.apply(Update::AddressGone(1, "10.0.0.1/24".parse().unwrap()));
    assert!(tables.take_stale());
    assert!(tables.addresses.is_empty());
}

#[test]
fn a_dump_replaces_its_kind_and_keeps_the_numbers_of_the_living() {
    let mut tables = fixture(
        "link a veth
         link b veth
         route 10.0.0.1/32 dev a
         route fd00::1/128 dev b",
    );
    let b = tables.devices[&2].clone();
    tables.replace(Kind::Links, vec![Update::Link(Box::new(b))]);
    assert_eq!((tables.slot(1), tables.slot(2)), (0, 2));
    tables.replace(Kind::Routes4, Vec::new());
    assert_eq!(tables.hops().map(|(_, hop)| hop.ifindex).collect::<Vec<_>>(), [2]);
    assert_eq!(tables.routes_of.len(), 1);
    tables.replace(Kind::Routes6, Vec::new());
    assert!(tables.routes.is_empty() && tables.routes_of.is_empty());
}

#[test]
fn ten_thousand_pods_come_and_go_and_nothing_stays() {
    let mut tables = Tables::default();
    for index in 1..=10_000_u32 {
        tables.apply(Update::Link(Box::new(device(index, &format!("eni{index}"), "veth"))));
        let pod = IpAddr::from((0x0a00_0000 + index).to_be_bytes());
        let key = RouteKey { table: 254, destination: IpNet::from(pod), priority: 0, tos: 0 };
        tables.apply(Update::Route { key, legs: vec![leg(index)], replaces: false });
        tables.apply(Update::Address(index, "fe80::1/64".parse().unwrap()));
        if index > 100 {
            tables.apply(Update::LinkGone(index - 100));
        }
    }
    assert_eq!((tables.devices.len(), tables.routes.len()), (100, 100));
    assert_eq!((tables.addresses.len(), tables.routes_of.len()), (100, 100));
    assert!(tables.view().links.values().all(|link| link.slot != 0));
}

/// The kernel, as plain as can be: what exists now.
#[derive(Debug, Default)]
struct Truth {
    links: BTreeMap<u32, (bool, usize)>,
    addresses: BTreeSet<(u32, u8)>,
    routes: BTreeSet<(u8, u32)>,
}

#[derive(Clone, Debug)]
enum Step {
    Link(u32, bool, usize),
    LinkGone(u32),
    Address(u32, u8, bool),
    Route(u8, u32, bool),
    Dump,
}

fn step() -> impl Strategy<Value = Step> {
    let link = 1..6_u32;
    prop_oneof![
        (link.clone(), any::<bool>(), 0..3_usize).prop_map(|(l, up, k)| Step::Link(l, up, k)),
        link.clone().prop_map(Step::LinkGone),
        (link.clone(), 0..6_u8, any::<bool>()).prop_map(|(l, a, is)| Step::Address(l, a, is)),
        (0..6_u8, link, any::<bool>()).prop_map(|(r, l, is)| Step::Route(r, l, is)),
        Just(Step::Dump),
    ]
}

fn truth_device(index: u32, is_up: bool, kind: usize) -> Update {
    let mut device = device(index, &format!("if{index}"), ["veth", "bridge", ""][kind]);
    device.link.is_up = is_up;
    Update::Link(Box::new(device))
}

fn truth_address(number: u8) -> IpNet {
    let text = ["10.0.0.1/24", "10.0.1.1/32", "127.0.0.9/8", "fd00::1/64", "fe80::1/64"];
    text.get(usize::from(number)).unwrap_or(&"10.9.0.1/16").parse().unwrap()
}

fn truth_route(number: u8, ifindex: u32) -> (RouteKey, Vec<Leg>) {
    let texts = [
        ("0.0.0.0/0", Some("10.0.0.9")),
        ("10.0.2.5/32", None),
        ("10.0.2.6/32", None),
        ("10.8.0.0/16", Some("10.0.0.1")),
        ("fd00:1::7/128", None),
        ("10.7.0.0/24", None),
    ];
    let (destination, gateway) = texts[usize::from(number)];
    let gateway = gateway.map(|text| text.parse().unwrap());
    (key(destination), vec![Leg::Direct(Hop { ifindex, gateway })])
}

impl Truth {
    /// Changes what is; returns what the kernel would announce.
    fn step(&mut self, step: &Step) -> Option<Update> {
        match *step {
            Step::Link(index, is_up, kind) => {
                self.links.insert(index, (is_up, kind));
                if !is_up {
                    self.routes.retain(|&(_, by)| by != index);
                }
                Some(truth_device(index, is_up, kind))
            }
            Step::LinkGone(index) => {
                self.links.remove(&index);
                self.addresses.retain(|&(on, _)| on != index);
                self.routes.retain(|&(_, by)| by != index);
                Some(Update::LinkGone(index))
            }
            Step::Address(index, number, true) => {
                self.links.get(&index)?;
                self.addresses.insert((index, number));
                Some(Update::Address(index, truth_address(number)))
            }
            Step::Address(index, number, false) => {
                self.addresses.remove(&(index, number));
                Some(Update::AddressGone(index, truth_address(number)))
            }
            Step::Route(number, index, is_new) => {
                let (key, legs) = truth_route(number, index);
                if !is_new {
                    self.routes.remove(&(number, index));
                    return Some(Update::RouteGone { key, legs });
                }
                let &(is_up, _) = self.links.get(&index)?;
                is_up.then(|| {
                    self.routes.insert((number, index));
                    Update::Route { key, legs, replaces: false }
                })
            }
            Step::Dump => None,
        }
    }

    fn dump(&self, into: &mut Tables) {
        let links = self.links.iter();
        let links = links.map(|(&index, &(is_up, kind))| truth_device(index, is_up, kind));
        into.replace(Kind::Links, links.collect());
        let addresses = self.addresses.iter();
        let addresses = addresses.map(|&(on, n)| Update::Address(on, truth_address(n)));
        into.replace(Kind::Addresses, addresses.collect());
        for kind in [Kind::Routes4, Kind::Routes6] {
            let all = self.routes.iter().map(|&(number, by)| truth_route(number, by));
            let all = all.filter(|(key, _)| {
                matches!(key.destination, IpNet::V4(_)) == (kind == Kind::Routes4)
            });
            let all = all.map(|(key, legs)| Update::Route { key, legs, replaces: false });
            into.replace(kind, all.collect());
        }
    }
}

fn without_slots(mut view: View) -> View {
    view.gone.clear();
    for link in view.links.values_mut() {
        link.slot = 0;
    }
    view
}

proptest! {
    #[test]
    fn events_one_by_one_come_to_the_same_as_a_dump(
        steps in proptest::collection::vec(step(), 0..60)
    ) {
        let mut truth = Truth::default();
        let mut tables = Tables::default();
        let mut slots: HashMap<u32, u16> = HashMap::new();
        for step in &steps {
            match truth.step(step) {
                Some(update) => drop(tables.apply(update)),
                None if matches!(step, Step::Dump) => truth.dump(&mut tables),
                None => {}
            }
            let mut fresh = Tables::default();
            truth.dump(&mut fresh);
            let view = tables.view();
            prop_assert_eq!(without_slots(view.clone()), without_slots(fresh.view()));

            slots.retain(|ifindex, _| view.links.contains_key(ifindex));
            for link in view.links.values() {
                prop_assert_eq!(*slots.entry(link.ifindex).or_insert(link.slot), link.slot);
            }
            let distinct: HashSet<u16> = slots.values().copied().collect();
            prop_assert!(distinct.len() == slots.len() && !distinct.contains(&0));
        }
    }
}
