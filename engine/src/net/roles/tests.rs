//! Nodes as CNIs lay them out, written down as `ip` would show them.

use super::*;
use crate::net::tables::fixture;
use crate::net::{InterfaceSelection, RoleOverrides};

fn assert_roles(view: &View, expected: &[(&str, Role)]) {
    for &(name, role) in expected {
        let link = view.links.values().find(|link| link.name == name);
        assert_eq!(link.unwrap_or_else(|| panic!("no {name}")).role, role, "{name}");
    }
}

fn names<T: ToString>(list: &[T]) -> Vec<String> {
    list.iter().map(T::to_string).collect()
}

use Role::{Other, Pod, Uplink};

#[test]
fn vpc_cni() {
    let view = fixture(
        "link lo loopback
         link eth0 physical
         link eni1a veth peer=elsewhere
         link eni2b veth peer=elsewhere
         addr lo 127.0.0.1/8
         addr lo ::1/128
         addr eth0 10.0.0.10/20
         addr eth0 fe80::a/64
         addr eni1a fe80::b/64
         route default via 10.0.0.1 dev eth0
         route 10.0.0.0/20 dev eth0
         route 169.254.169.254/32 dev eth0
         route fe80::/64 dev eth0
         route fe80::/64 dev eni1a
         route ff00::/8 dev eni1a table 255
         route 10.0.3.7/32 dev eni1a
         route 10.0.3.8/32 dev eni2b",
    )
    .view();
    assert_roles(&view, &[("lo", Other), ("eth0", Uplink), ("eni1a", Pod), ("eni2b", Pod)]);
    assert_eq!(names(&view.own), ["10.0.0.10", "fe80::a", "fe80::b"]);
    let local = ["10.0.0.10/32", "10.0.3.7/32", "10.0.3.8/32", "fe80::a/128", "fe80::b/128"];
    assert_eq!(names(&view.local), local);
    let tapped = |view: &View| view.links.values().filter(|link| link.is_tapped).count();
    assert_eq!(tapped(&view), 3, "loopback is not Ethernet");
}

#[test]
fn a_lab_node_whose_uplinks_are_veths() {
    let view = fixture(
        "link eth0 veth peer=elsewhere
         link eth1 veth peer=elsewhere
         link eni1 veth peer=elsewhere
         addr eth0 10.0.0.10/24
         addr eth1 10.0.0.11/24
         route default via 10.0.0.1 dev eth0
         route 10.0.0.0/24 dev eth0
         route 10.0.0.1/32 dev eth1 table 2
         route default via 10.0.0.1 dev eth1 table 2
         route 10.0.3.7/32 dev eni1",
    )
    .view();
    assert_roles(&view, &[("eth0", Uplink), ("eth1", Uplink), ("eni1", Pod)]);
    assert_eq!(names(&view.local), ["10.0.0.10/32", "10.0.0.11/32", "10.0.3.7/32"]);
}

#[test]
fn secondary_enis_custom_networking_and_prefix_delegation() {
    // Pods of 100.64/10 behind eth1; table 2 is theirs. A delegated /28 shows as one /32 per pod.
    let view = fixture(
        "link ens5 physical
         link ens6 physical
         link eni1 veth peer=elsewhere
         link eni2 veth peer=elsewhere
         addr ens5 10.0.0.10/20
         route default via 10.0.0.1 dev ens5
         route 10.0.0.0/20 dev ens5
         route 100.64.0.1/32 dev ens6 table 2
         route default via 100.64.0.1 dev ens6 table 2
         route 100.64.3.16/32 dev eni1
         route 100.64.3.17/32 dev eni2",
    )
    .view();
    assert_roles(&view, &[("ens5", Uplink), ("ens6", Uplink), ("eni1", Pod), ("eni2", Pod)]);
    assert_eq!(names(&view.local), ["10.0.0.10/32", "100.64.3.16/32", "100.64.3.17/32"]);
}

#[test]
fn strict_security_groups_trunk_and_branch() {
    for trunk in ["physical", "veth peer=elsewhere"] {
        let view = fixture(&format!(
            "link eth0 physical
             link eth1 {trunk}
             link vlan.eth.1 vlan parent=eth1
             link vlan.eth.2 vlan parent=eth1
             link vlan11aa veth peer=elsewhere
             link vlan22bb veth peer=elsewhere
             addr eth0 10.0.0.10/20
             route default via 10.0.0.1 dev eth0
             route 10.0.16.1/32 dev vlan.eth.1 table 101
             route default via 10.0.16.1 dev vlan.eth.1 table 101
             route 10.0.17.5/32 dev vlan11aa table 101
             route 10.0.17.6/32 dev vlan22bb table 102"
        ))
        .view();
        let expected = [
            ("eth1", Uplink),
            ("vlan.eth.1", Uplink),
            ("vlan.eth.2", Uplink), // no route of its own yet, but it sits on the trunk
            ("vlan11aa", Pod),
            ("vlan22bb", Pod),
        ];
        assert_roles(&view, &expected);
        assert_eq!(names(&view.local), ["10.0.0.10/32", "10.0.17.5/32", "10.0.17.6/32"]);
    }
}

#[test]
fn calico_ipip_and_vxlan() {
    // Its `blackhole 10.0.1.64/26` is no unicast route and never gets here.
    let view = fixture(
        "link eth0 physical
         link tunl0 ipip raw
         link vxlan.calico vxlan port=4789
         link cali1 veth peer=elsewhere
         addr eth0 192.168.0.11/24
         addr tunl0 10.0.1.64/32
         addr vxlan.calico 10.0.1.65/32
         route default via 192.168.0.1 dev eth0
         route 10.0.2.64/26 via 192.168.0.12 dev tunl0
         route 10.0.3.64/26 via 10.0.3.65 dev vxlan.calico
         route 10.0.1.66/32 dev cali1",
    )
    .view();
    let expected = [("eth0", Uplink), ("tunl0", Uplink), ("vxlan.calico", Uplink), ("cali1", Pod)];
    assert_roles(&view, &expected);
    let local = ["10.0.1.64/32", "10.0.1.65/32", "10.0.1.66/32", "192.168.0.11/32"];
    assert_eq!(names(&view.local), local);
    assert_eq!(view.overlay_ports, [4789]);
}

#[test]
fn calico_wireguard_routes_without_gateway_are_not_local() {
    let view = fixture(
        "link wireguard.cali wireguard raw
         route 10.0.2.64/26 dev wireguard.cali table 1",
    )
    .view();
    assert_roles(&view, &[("wireguard.cali", Uplink)]);
    assert!(view.local.is_empty());
}

#[test]
fn bridge_cni_with_flannel() {
    let view = fixture(
        "link eth0 physical
         link cni0 bridge
         link veth1 veth peer=elsewhere master=cni0
         link veth2 veth peer=elsewhere master=cni0
         link flannel.1 vxlan port=8472
         addr eth0 192.168.0.11/24
         addr cni0 10.244.1.1/24
         addr flannel.1 10.244.1.0/32
         route default via 192.168.0.1 dev eth0
         route 192.168.0.0/24 dev eth0
         route 10.244.1.0/24 dev cni0
         route 10.244.2.0/24 via 10.244.2.0 dev flannel.1
         route 10.244.3.0/24 via 10.244.3.0 dev flannel.1",
    )
    .view();
    let expected =
        [("cni0", Other), ("veth1", Pod), ("veth2", Pod), ("flannel.1", Uplink), ("eth0", Uplink)];
    assert_roles(&view, &expected);
    let local = ["10.244.1.0/24", "10.244.1.0/32", "10.244.1.1/32", "192.168.0.11/32"];
    assert_eq!(names(&view.local), local);
    assert_eq!(view.overlay_ports, [8472]);
}

#[test]
fn flannel_host_gateway_routes_are_other_nodes() {
    let view = fixture(
        "link eth0 veth peer=elsewhere
         link cni0 bridge
         addr eth0 192.168.0.11/24
         addr cni0 10.244.1.1/24
         route 10.244.1.0/24 dev cni0
         route 10.244.2.0/24 via 192.168.0.12 dev eth0",
    )
    .view();
    assert_roles(&view, &[("eth0", Uplink), ("cni0", Other)]);
    assert_eq!(names(&view.local), ["10.244.1.0/24", "10.244.1.1/32", "192.168.0.11/32"]);
}

#[test]
fn cilium_routes_pods_by_its_own_address() {
    let view = fixture(
        "link eth0 physical
         link cilium_net veth
         link cilium_host veth
         link cilium_vxlan vxlan
         link lxc1 veth peer=elsewhere
         link lxc_health netkit peer=elsewhere
         addr eth0 192.168.0.11/24
         addr cilium_host 10.0.1.100/32
         addr cilium_host fd00:1::100/128
         route default via 192.168.0.1 dev eth0
         route 10.0.1.100/32 dev cilium_host
         route 10.0.1.0/24 via 10.0.1.100 dev cilium_host
         route 10.0.2.0/24 via 10.0.1.100 dev cilium_host
         route fd00:1::100/128 dev cilium_host
         route fd00:1::/64 via fd00:1::100 dev cilium_host
         route fd00:2::/64 via fd00:1::100 dev cilium_host",
    )
    .view();
    let expected = [
        ("cilium_host", Other),
        ("cilium_net", Other),
        ("cilium_vxlan", Uplink),
        ("lxc1", Pod),
        ("lxc_health", Pod),
    ];
    assert_roles(&view, &expected);
    let local =
        ["10.0.1.0/24", "10.0.1.100/32", "192.168.0.11/32", "fd00:1::/64", "fd00:1::100/128"];
    assert_eq!(names(&view.local), local, "10.0.2.0/24 and fd00:2::/64 are another node's");
}

#[test]
fn ipv6_cluster_with_ipv4_egress() {
    let view = fixture(
        "link eth0 physical
         link eni1 veth peer=elsewhere
         link v4if1 veth peer=elsewhere
         addr eth0 10.0.0.10/20
         addr eth0 2600:1f14::10/128
         addr eth0 fe80::a/64
         route default via 10.0.0.1 dev eth0
         route default6 via fe80::1 dev eth0
         route 2600:1f14::10/128 dev eth0
         route 2600:1f14::/64 dev eth0
         route 2600:1f14:0:1::7/128 dev eni1
         route 169.254.172.5/32 dev v4if1",
    )
    .view();
    assert_roles(&view, &[("eth0", Uplink), ("eni1", Pod), ("v4if1", Pod)]);
    let local = [
        "10.0.0.10/32",
        "169.254.172.5/32",
        "2600:1f14::10/128",
        "2600:1f14:0:1::7/128",
        "fe80::a/128",
    ];
    assert_eq!(names(&view.local), local);
}

#[test]
fn service_addresses_do_not_count_and_nodelocal_dns_does() {
    let view = fixture(
        "link eth0 physical
         link kube-ipvs0 dummy
         link nodelocaldns dummy
         addr eth0 10.0.0.10/20
         addr kube-ipvs0 10.96.0.1/32
         addr kube-ipvs0 fd00:96::1/128
         addr nodelocaldns 169.254.20.10/32
         addr nodelocaldns 10.96.0.10/32
         route default via 10.0.0.1 dev eth0
         route fd00:96::1/128 dev kube-ipvs0",
    )
    .view();
    assert_roles(&view, &[("kube-ipvs0", Other), ("nodelocaldns", Other)]);
    assert_eq!(names(&view.own), ["10.0.0.10", "10.96.0.10", "169.254.20.10"]);
    assert_eq!(names(&view.local), ["10.0.0.10/32", "10.96.0.10/32", "169.254.20.10/32"]);
}

#[test]
fn nexthop_objects_and_multipath_make_uplinks() {
    let view = fixture(
        "link a veth peer=elsewhere
         link b veth peer=elsewhere
         link c veth peer=elsewhere
         link d veth peer=elsewhere
         nexthop 1 via 10.0.0.1 dev a
         nexthop 2 via fe80::1 dev b
         nexthop 10 group 1 2
         nexthop 20 dev d
         route default nhid 10
         route 10.9.0.0/16 via 10.0.0.1 dev c via 10.0.0.2 dev c
         route 10.8.0.1/32 nhid 20
         route 10.7.0.1/32 nhid 99",
    )
    .view();
    assert_roles(&view, &[("a", Uplink), ("b", Uplink), ("c", Uplink), ("d", Pod)]);
    assert_eq!(names(&view.local), ["10.8.0.1/32"]);
}

#[test]
fn a_network_behind_a_pod_does_not_make_its_veth_an_uplink() {
    let view = fixture(
        "link eni1 veth peer=elsewhere
         route 10.0.3.7/32 dev eni1
         route 192.168.77.0/24 via 10.0.3.7 dev eni1",
    )
    .view();
    assert_roles(&view, &[("eni1", Pod)]);
    assert_eq!(names(&view.local), ["10.0.3.7/32"]);
}

#[test]
fn bonds_and_bridges_over_physical_devices_are_uplinks_down_the_stack() {
    let view = fixture(
        "link bond0 bond
         link ens1 physical master=bond0
         link bond0.7 vlan parent=bond0
         link br7 bridge
         link bond0.8 vlan parent=bond0 master=br7
         link vnet0 tun master=br7
         link docker0 bridge
         link vxlan9 vxlan master=docker0
         route default via 10.0.0.1 dev bond0.7",
    )
    .view();
    let expected = [
        ("bond0", Uplink),
        ("ens1", Uplink),
        ("bond0.7", Uplink),
        ("bond0.8", Uplink),
        ("br7", Uplink),
        ("vnet0", Other),
        ("docker0", Other),
        ("vxlan9", Uplink),
    ];
    assert_roles(&view, &expected);
}

#[test]
fn ovn_and_antrea_keep_their_pods_local() {
    let view = fixture(
        "link antrea-gw0 openvswitch
         link br-ex openvswitch
         addr antrea-gw0 10.10.1.1/24
         route 10.10.1.0/24 dev antrea-gw0
         route 10.10.2.0/24 via 10.10.2.1 dev antrea-gw0
         route default via 192.168.0.1 dev br-ex",
    )
    .view();
    assert_roles(&view, &[("antrea-gw0", Other), ("br-ex", Uplink)]);
    assert_eq!(names(&view.local), ["10.10.1.0/24", "10.10.1.1/32"]);
}

#[test]
fn overrides_win_and_move_what_is_local() {
    let mut overrides = RoleOverrides::default();
    overrides.force("--uplink", "eni9", Role::Uplink).unwrap();
    let selection = InterfaceSelection::parse("eni9").unwrap();
    let mut tables = Tables::new(selection, overrides);
    let plain = fixture("link eni9 veth\nlink eni8 veth\nroute 10.0.3.9/32 dev eni9");
    for device in plain.devices().values() {
        tables.apply(crate::net::tables::Update::Link(Box::new(device.clone())));
    }
    let view = tables.view();
    assert_roles(&view, &[("eni9", Uplink), ("eni8", Other)]);
    assert!(view.local.is_empty());
    let tapped: Vec<&str> =
        view.links.values().filter(|l| l.is_tapped).map(|l| l.name.as_str()).collect();
    assert_eq!(tapped, ["eni9"]);
}

fn main_of(view: &View) -> (Option<&str>, Vec<String>) {
    (view.main_name(), names(&view.main_subnets))
}

#[test]
fn the_main_device_has_the_default_route_of_least_metric_in_the_main_table() {
    let network = "link lo loopback
         link ens5 physical
         link ens6 physical
         link eni1 veth peer=elsewhere
         addr ens5 10.0.0.10/20
         route default via 10.0.16.1 dev ens6 metric 1024
         route default via 10.0.0.1 dev ens5 metric 512
         route default via 10.0.16.1 dev ens6 table 2
         route 10.0.0.0/20 dev ens5 metric 512
         route 10.0.0.1/32 dev ens5 metric 512
         route 10.0.0.2/32 dev ens5 metric 512
         route 10.0.64.0/20 via 10.0.0.1 dev ens5
         route 10.0.16.0/20 dev ens6
         route 10.0.32.0/20 dev ens5 table 2
         route fd00::/64 dev ens5
         route 10.0.3.7/32 dev eni1";
    let view = fixture(network).view();
    // Link scope, with a prefix length: no hosts, nothing by a gateway, no other table or device.
    assert_eq!(main_of(&view), (Some("ens5"), vec!["10.0.0.0/20".to_owned()]));
    let only_v6 = fixture("link ens5 physical\n route default6 via fe80::1 dev ens5").view();
    assert_eq!(main_of(&only_v6), (None, vec![]));
}

#[test]
fn each_local_prefix_is_known_with_its_interface() {
    let view = fixture(
        "link eth0 physical
         link eni1 veth peer=elsewhere
         link eni2 veth peer=elsewhere
         addr eth0 10.0.0.10/20
         route default via 10.0.0.1 dev eth0
         route 10.0.3.7/32 dev eni1
         route 10.0.3.7/32 dev eni2 table 2
         route 10.0.3.8/32 dev eni2",
    )
    .view();
    let name = |ifindex: u32| view.links.get(&ifindex).map_or("", |link| link.name.as_str());
    let by: Vec<(String, &str)> =
        view.local_by.iter().map(|(net, ifindex)| (net.to_string(), name(*ifindex))).collect();
    let expected = [
        ("10.0.0.10/32", ""),
        ("10.0.3.7/32", "eni1"),
        ("10.0.3.7/32", "eni2"),
        ("10.0.3.8/32", "eni2"),
    ];
    assert_eq!(by, expected.map(|(net, name)| (net.to_owned(), name)));
    assert_eq!(view.local.len(), 3);
}
