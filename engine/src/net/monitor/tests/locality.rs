//! What is local, and behind which interface, while a node's network changes under the monitor:
//! as the VPC CNI, kube-proxy, NodeLocal DNS and overlay CNIs change it.
//!
//! Device types that this kernel lacks (dummy, vlan, geneve, ipip) are written down as fixtures in
//! `roles/tests.rs`; a veth of the same name stands in for a dummy here.

use super::*;

/// Interfaces that a prefix is behind, by name; "" for the node itself.
fn behind(view: &View, net: &str) -> Vec<String> {
    let net: ipnet::IpNet = net.parse().unwrap();
    let of_it = view.local_by.iter().filter(|(prefix, _)| *prefix == net);
    let name = |ifindex| view.links.get(&ifindex).map_or("", |link| link.name.as_str());
    of_it.map(|(_, ifindex)| name(*ifindex).to_owned()).collect()
}

fn is_own(view: &View, address: &str) -> bool {
    view.own.contains(&address.parse().unwrap())
}

/// A veth whose other end is a pod's, as the VPC CNI sets it up.
fn pod(name: &str, elsewhere: &Elsewhere) {
    ip(&format!("link add {name} type veth peer name p-{name}"));
    ip(&format!("link set p-{name} netns {} up", elsewhere.pid()));
    ip(&format!("link set {name} up"));
}

/// Views say what a dump says, and no more dumps were needed than `most`.
#[track_caller]
fn settled(monitor: &Monitor, most: u64) {
    eventually(monitor, "as a dump says", |view| {
        without_slots(view.clone()) == without_slots(snapshot_now())
    });
    let dumps = monitor.counters.dumps.load(Ordering::Relaxed);
    assert!(dumps <= most, "{dumps} dumps");
    assert_eq!(monitor.counters.overruns.load(Ordering::Relaxed), 0);
}

#[test]
fn a_route_that_moves_to_another_veth_takes_its_pod_along() {
    in_namespace(|| {
        let elsewhere = Elsewhere::new();
        let monitor = start(NO_RECONCILING);
        pod("eni1", &elsewhere);
        pod("eni2", &elsewhere);
        ip("route add 10.0.3.7/32 dev eni1");
        eventually(&monitor, "at eni1", |view| behind(view, "10.0.3.7/32") == ["eni1"]);
        ip("route replace 10.0.3.7/32 dev eni2");
        eventually(&monitor, "at eni2", |view| behind(view, "10.0.3.7/32") == ["eni2"]);
        // A CNI that adds the new before it deletes the old: local all the time.
        ip("route append 10.0.3.7/32 dev eni1 metric 5");
        eventually(&monitor, "at both", |view| {
            let mut names = behind(view, "10.0.3.7/32");
            names.sort_unstable();
            names == ["eni1", "eni2"]
        });
        ip("link del eni2");
        eventually(&monitor, "back at eni1", |view| behind(view, "10.0.3.7/32") == ["eni1"]);
        assert_eq!(role(&monitor.view.load(), "eni1"), Some(Role::Pod));
        ip("link del eni1");
        eventually(&monitor, "gone", |view| behind(view, "10.0.3.7/32").is_empty());
        settled(&monitor, 10);
    });
}

#[test]
fn a_pod_whose_namespace_ends_takes_its_veth_and_route_along() {
    in_namespace(|| {
        let (first, second) = (Elsewhere::new(), Elsewhere::new());
        let monitor = start(NO_RECONCILING);
        for (name, elsewhere, net) in
            [("eni1", &first, "10.0.3.7/32"), ("eni2", &second, "10.0.3.8/32")]
        {
            pod(name, elsewhere);
            ip(&format!("route add {net} dev {name}"));
        }
        eventually(&monitor, "two pods", |view| {
            behind(view, "10.0.3.7/32") == ["eni1"] && behind(view, "10.0.3.8/32") == ["eni2"]
        });
        let ifindex = link(&monitor.view.load(), "eni1").unwrap().ifindex;
        drop(first);
        eventually(&monitor, "one pod", |view| {
            link(view, "eni1").is_none()
                && behind(view, "10.0.3.7/32").is_empty()
                && behind(view, "10.0.3.8/32") == ["eni2"]
                && view.gone.contains(&ifindex)
        });
        settled(&monitor, 1);
    });
}

#[test]
fn a_second_uplink_attaches_and_detaches_with_its_table_and_rules() {
    in_namespace(|| {
        let elsewhere = Elsewhere::new();
        let monitor = start(NO_RECONCILING);
        pod("eth0", &elsewhere);
        ip("addr add 10.0.0.10/24 dev eth0");
        ip("route add default via 10.0.0.1 dev eth0");
        pod("eni1", &elsewhere);
        ip("route add 10.0.1.7/32 dev eni1");
        eventually(&monitor, "a node", |view| {
            role(view, "eth0") == Some(Role::Uplink) && is_local(view, "10.0.1.7/32")
        });
        for _ in 0..3 {
            pod("eth1", &elsewhere);
            ip("addr add 10.0.1.10/24 dev eth1");
            ip("route add 10.0.1.1/32 dev eth1 table 2");
            ip("route add default via 10.0.1.1 dev eth1 table 2");
            ip("rule add from 10.0.1.7 lookup 2 priority 1536");
            eventually(&monitor, "an uplink more", |view| {
                role(view, "eth1") == Some(Role::Uplink)
                    && is_own(view, "10.0.1.10")
                    && !is_local(view, "10.0.1.0/24")
                    && behind(view, "10.0.1.7/32") == ["eni1"]
                    && view.main_name() == Some("eth0")
            });
            ip("rule del from 10.0.1.7 lookup 2 priority 1536");
            ip("link del eth1");
            eventually(&monitor, "one less", |view| {
                link(view, "eth1").is_none()
                    && !is_own(view, "10.0.1.10")
                    && role(view, "eth0") == Some(Role::Uplink)
                    && is_local(view, "10.0.1.7/32")
            });
        }
        settled(&monitor, 20);
    });
}

#[test]
fn the_main_device_and_its_subnets_follow_the_default_route() {
    in_namespace(|| {
        let elsewhere = Elsewhere::new();
        let monitor = start(NO_RECONCILING);
        let is_main = |view: &View, name: Option<&str>, subnets: &[&str]| {
            let known: Vec<String> = view.main_subnets.iter().map(ToString::to_string).collect();
            view.main_name() == name && known == subnets
        };
        for (name, net) in [("eth0", "10.0.0.10/24"), ("eth1", "10.0.1.10/24")] {
            pod(name, &elsewhere);
            ip(&format!("addr add {net} dev {name}"));
        }
        eventually(&monitor, "no default", |view| is_main(view, None, &[]));
        ip("route add default via 10.0.0.1 dev eth0 metric 512");
        eventually(&monitor, "eth0", |view| is_main(view, Some("eth0"), &["10.0.0.0/24"]));
        ip("route add default via 10.0.1.1 dev eth1 metric 1024");
        ip("route add default via 10.0.1.1 dev eth1 table 2");
        ip("addr add 10.0.8.10/22 dev eth0");
        eventually(&monitor, "one subnet more", |view| {
            is_main(view, Some("eth0"), &["10.0.0.0/24", "10.0.8.0/22"])
        });
        ip("route del default via 10.0.0.1 dev eth0 metric 512");
        eventually(&monitor, "eth1", |view| is_main(view, Some("eth1"), &["10.0.1.0/24"]));
        ip("link set eth1 down");
        eventually(&monitor, "none", |view| is_main(view, None, &[]));
    });
}

#[test]
fn thousands_of_service_addresses_on_kube_ipvs0_are_nobodys_and_cost_no_dump() {
    in_namespace(|| {
        ip("link add kube-ipvs0 type veth peer name other");
        let monitor = start(NO_RECONCILING);
        let service = |n: u32| format!("172.20.{}.{}", n / 250, 1 + n % 250);
        for verb in ["add", "del", "add"] {
            ip_batch((0..1000).map(|n| format!("addr {verb} {}/32 dev kube-ipvs0", service(n))));
        }
        eventually(&monitor, "the addresses there", |view| {
            link(view, "kube-ipvs0").is_some_and(|link| link.addresses.len() == 1000)
        });
        let view = monitor.view.load();
        assert!(!is_own(&view, "172.20.0.1") && view.local.is_empty() && view.own.is_empty());
        settled(&monitor, 1);
    });
}

#[test]
fn node_local_dns_owns_its_service_address_for_as_long_as_it_runs() {
    in_namespace(|| {
        let monitor = start(NO_RECONCILING);
        for _ in 0..2 {
            ip("link add nodelocaldns type veth peer name other");
            ip("addr add 169.254.20.10/32 dev nodelocaldns");
            ip("addr add 172.20.0.10/32 dev nodelocaldns");
            eventually(&monitor, "its own", |view| {
                ["169.254.20.10", "172.20.0.10"].iter().all(|address| is_own(view, address))
                    && behind(view, "172.20.0.10/32") == [""]
            });
            ip("link del nodelocaldns");
            eventually(&monitor, "a service again", |view| {
                !is_own(view, "172.20.0.10") && !is_local(view, "172.20.0.10/32")
            });
        }
        settled(&monitor, 10);
    });
}

#[test]
fn a_delegated_prefix_is_local_pod_by_pod() {
    in_namespace(|| {
        let elsewhere = Elsewhere::new();
        let monitor = start(NO_RECONCILING);
        ip("route add blackhole 10.0.3.16/28");
        ip("route add unreachable 10.0.3.32/28");
        for n in 0..4 {
            pod(&format!("eni{n}"), &elsewhere);
            ip(&format!("route add 10.0.3.{}/32 dev eni{n}", 16 + n));
        }
        eventually(&monitor, "four of sixteen", |view| {
            view.local.iter().filter(|net| net.addr().is_ipv4()).count() == 4
                && (0..4)
                    .all(|n| behind(view, &format!("10.0.3.{}/32", 16 + n)) == [format!("eni{n}")])
                && !is_local(view, "10.0.3.16/28")
        });
        ip("link del eni2");
        eventually(&monitor, "three", |view| !is_local(view, "10.0.3.18/32"));
        settled(&monitor, 10);
    });
}

#[test]
fn pods_of_custom_networking_are_local_whatever_subnet_they_are_in() {
    in_namespace(|| {
        let elsewhere = Elsewhere::new();
        let monitor = start(NO_RECONCILING);
        pod("eth0", &elsewhere);
        ip("addr add 10.0.0.10/24 dev eth0");
        ip("route add default via 10.0.0.1 dev eth0");
        // The pods' ENI has no address that the host uses, only routes of its table.
        pod("eth1", &elsewhere);
        ip("route add 100.64.0.1/32 dev eth1 table 2");
        ip("route add default via 100.64.0.1 dev eth1 table 2");
        pod("eni1", &elsewhere);
        ip("route add 100.64.3.7/32 dev eni1");
        eventually(&monitor, "custom", |view| {
            role(view, "eth1") == Some(Role::Uplink)
                && role(view, "eni1") == Some(Role::Pod)
                && behind(view, "100.64.3.7/32") == ["eni1"]
                && !is_local(view, "100.64.0.1/32")
        });
        settled(&monitor, 10);
    });
}

#[test]
fn behind_an_overlay_the_bridge_s_pods_are_local_and_the_tunnel_s_are_not() {
    in_namespace(|| {
        let elsewhere = Elsewhere::new();
        let monitor = start(NO_RECONCILING);
        pod("eth0", &elsewhere);
        ip("addr add 10.0.0.10/24 dev eth0");
        ip("route add default via 10.0.0.1 dev eth0");
        for port in ["8472", "4789"] {
            let vxlan = "link add flannel.1 type vxlan id 1 local 10.0.0.10 dev eth0 dstport";
            if !ip_if_known(&format!("{vxlan} {port}")) || !ip_if_known("link add cni0 type bridge")
            {
                eprintln!("SKIPPED: this kernel has no vxlan or no bridge");
                return;
            }
            ip("link set flannel.1 up");
            ip("addr add 10.244.1.0/32 dev flannel.1");
            ip("route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink");
            ip("link set cni0 up");
            ip("addr add 10.244.1.1/24 dev cni0");
            pod("veth1", &elsewhere);
            ip("link set veth1 master cni0");
            let ports = [port.parse::<u16>().unwrap()];
            eventually(&monitor, "an overlay", |view| {
                view.overlay_ports == ports
                    && role(view, "flannel.1") == Some(Role::Uplink)
                    && role(view, "veth1") == Some(Role::Pod)
                    && role(view, "cni0") == Some(Role::Other)
                    && behind(view, "10.244.1.0/24") == ["cni0"]
                    && !is_local(view, "10.244.2.0/24")
            });
            for name in ["flannel.1", "cni0", "veth1"] {
                ip(&format!("link del {name}"));
            }
            eventually(&monitor, "none", |view| {
                view.overlay_ports.is_empty() && !is_local(view, "10.244.1.0/24")
            });
        }
        settled(&monitor, 20);
    });
}

#[test]
fn pods_with_an_address_on_the_host_s_end_go_without_a_storm_of_dumps() {
    in_namespace(|| {
        let monitor = start(NO_RECONCILING);
        let before = Instant::now();
        for _ in 0..4 {
            let name = |n: u32| format!("cali{n}");
            ip_batch((0..50).map(|n| format!("link add {} type veth peer name p{n}", name(n))));
            ip_batch((0..50).map(|n| format!("link set {} up", name(n))));
            ip_batch((0..50).map(|n| format!("addr add 169.254.1.{n}/32 dev {}", name(n))));
            ip_batch((0..50).map(|n| format!("route add 10.0.4.{n}/32 dev {}", name(n))));
            eventually(&monitor, "there", |view| {
                (0..50).all(|n| behind(view, &format!("10.0.4.{n}/32")) == [name(n)])
            });
            ip_batch((0..50).map(|n| format!("link del {}", name(n))));
            eventually(&monitor, "gone", |view| view.links.len() == 1 && view.local.is_empty());
        }
        // One in 50 ms at most, however many events ask for one: 200 links went.
        let most = 2 + u64::try_from(before.elapsed().as_millis() / 50).unwrap();
        settled(&monitor, most);
    });
}

#[test]
fn two_thousand_links_have_a_thousand_numbers_and_every_freed_one_is_given_again() {
    in_namespace(|| {
        let monitor = start(NO_RECONCILING);
        let unnumbered = || monitor.counters.unnumbered.load(Ordering::Relaxed);
        ip_batch((0..600).map(|n| format!("link add a{n} type veth peer name b{n}")));
        eventually(&monitor, "more than numbers", |view| view.links.len() == 1201);
        eventually(&monitor, "counted", |_| unnumbered() == 1200 - 1022);
        ip_batch((0..100).map(|n| format!("link del a{n}")));
        eventually(&monitor, "all numbered", |view| {
            view.links.len() == 1001
                && view.links.values().all(|link| link.is_loopback || link.slot != 0)
        });
        eventually(&monitor, "none left over", |_| unnumbered() == 0);
        let view = monitor.view.load();
        let mut slots: Vec<u16> = view.links.values().map(|link| link.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), 1001, "each its own");
    });
}
