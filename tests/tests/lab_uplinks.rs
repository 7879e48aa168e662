//! The lab's other ways off a node: secondary ENIs, branches of a trunk, an overlay; and who else
//! talks to pods and nodes. Each shows the points that its row of spec/exactly-once.md speaks of.

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use tests::{
        compare::Packet,
        lab::{Host, Lab, LabSpec, Overlay, Pod, PodKind, can_run},
        traffic::{Bulk, Http, Points, Serve, Server, Sighting, ping},
    };

    fn echo(packet: &Packet) -> bool {
        match packet.protocol() {
            Some(1) => packet.data()[20] == 8,
            Some(58) => packet.data()[40] == 128,
            _ => false,
        }
    }

    fn points_of(seen: &[Sighting]) -> Vec<String> {
        seen.iter().map(Sighting::point).collect()
    }

    /// Where the node has seen one echo request from `from` to `to`.
    fn points(node: &Host, from: &Host, to: IpAddr) -> Vec<String> {
        let points = Points::start(node).unwrap();
        ping(from, to, 1, 56).unwrap();
        points_of(&points.stop(echo).unwrap())
    }

    fn at(pod: &Pod, direction: &str) -> String {
        format!("{} {direction}", pod.host_veth())
    }

    /// The first address of each family.
    fn both(host: &Host) -> Vec<IpAddr> {
        host.addresses()
    }

    #[test]
    fn a_pod_of_a_secondary_eni_leaves_and_is_reached_by_it() {
        if !can_run("a_pod_of_a_secondary_eni_leaves_and_is_reached_by_it") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6().pods(1).eni_pods(1)).unwrap();
        let (node, plain) = (lab.node(1), lab.node(1).pod(1));
        let (eni, far) = (node.pod_of(PodKind::Eni, 1), lab.node(2).pod(1));
        for (index, to) in both(far).into_iter().enumerate() {
            let back = both(eni)[index];
            assert_eq!(points(node, eni, to), [at(eni, "in"), "eth1 out".to_owned()]);
            assert_eq!(points(node, far, back), ["eth1 in".to_owned(), at(eni, "out")]);
            // Within the node neither ENI is used.
            assert_eq!(points(node, plain, back), [at(plain, "in"), at(eni, "out")]);
            assert_eq!(points(node, eni, both(plain)[index]), [at(eni, "in"), at(plain, "out")]);
            assert_eq!(points(node, eni, both(node)[index]), [at(eni, "in")]);
        }
        // To the internet by the primary one, with its address.
        let seen = points(node, eni, lab.inet().v4().into());
        assert_eq!(seen, [at(eni, "in"), "eth0 out".to_owned()]);
        // An answer to the internet by the one that the question came by.
        let _server = Server::start(eni, Serve::Http, 8080).unwrap();
        let watch = Points::start(node).unwrap();
        Http::new(eni.socket(8080), 1, 1).run_on(lab.inet()).unwrap();
        let seen = watch.stop(|packet| packet.has_port(8080)).unwrap();
        assert!(seen.iter().all(|seen| seen.interface != "eth0"), "{seen:?}");
        assert!(seen.iter().all(|seen| seen.packet.is_between(eni.v4(), lab.inet().v4())));
    }

    #[test]
    fn pods_and_enis_come_and_go() {
        if !can_run("pods_and_enis_come_and_go") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6().nodes(1).pods(1).eni_pods(1)).unwrap();
        let (node, inet) = (lab.node(1), lab.sensor());
        for kind in [PodKind::Plain, PodKind::Eni] {
            let pod = lab.add_pod(1, kind, 7).unwrap();
            for to in both(&pod) {
                ping(inet, to, 1, 56).unwrap();
            }
            // The one that fails takes nothing of the first along.
            assert!(lab.add_pod(1, kind, 7).is_err());
            ping(inet, pod.v4().into(), 1, 56).unwrap();
            lab.remove_pod(&pod).unwrap();
            assert!(!node.running_interfaces().unwrap().contains(pod.host_veth()));
            let rules = node.exec(["ip", "rule"]).unwrap();
            assert!(!rules.contains(&pod.v4().to_string()), "{rules}");
            assert!(lab.add_pod(1, kind, 7).is_ok());
        }
        let eni = node.pod_of(PodKind::Eni, 1);
        lab.detach_eni(1).unwrap();
        assert!(!node.running_interfaces().unwrap().contains("eth1"));
        lab.attach_eni(1).unwrap();
        for (index, from) in both(inet).into_iter().enumerate() {
            assert_eq!(points(node, eni, from), [at(eni, "in"), "eth1 out".to_owned()]);
            ping(inet, both(eni)[index], 1, 56).unwrap();
        }
        assert!(lab.add_pod(1, PodKind::Branch, 1).is_err());
        assert!(lab.add_pod(1, PodKind::Overlay, 1).is_err());
    }

    #[test]
    fn two_pods_with_branch_enis_of_one_node_meet_in_the_vpc() {
        if !can_run("two_pods_with_branch_enis_of_one_node_meet_in_the_vpc") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6().pods(1).branch_pods(2)).unwrap();
        let node = lab.node(1);
        let (a, b) = (node.pod_of(PodKind::Branch, 1), node.pod_of(PodKind::Branch, 2));
        let far = lab.node(2).pod_of(PodKind::Branch, 1);
        assert!(a.host_veth().starts_with("vlan"));
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for index in 0..2 {
            let mut six = vec![at(a, "in")];
            six.extend(words(&["vlan.eth.1 out", "eth1.1 out", "eth1.2 in", "vlan.eth.2 in"]));
            six.push(at(b, "out"));
            assert_eq!(points(node, a, both(b)[index]), six);
            let mut out = vec![at(a, "in")];
            out.extend(words(&["vlan.eth.1 out", "eth1.1 out"]));
            assert_eq!(points(node, a, both(far)[index]), out);
            let mut arrival = words(&["eth1.1 in", "vlan.eth.1 in"]);
            arrival.push(at(a, "out"));
            assert_eq!(points(node, far, both(a)[index]), arrival);
            // A probe of the node goes by the VPC too, and so does the way to a plain pod.
            ping(node, both(a)[index], 1, 56).unwrap();
            ping(a, both(node)[index], 1, 56).unwrap();
            ping(a, both(node.pod(1))[index], 1, 56).unwrap();
            ping(lab.sensor(), both(a)[index], 1, 56).unwrap();
        }
        // Streams pass, super-frames and all.
        let _server = Server::start(b, Serve::Bulk, 9000).unwrap();
        Bulk::new(b.socket(9000), 3_000_000).run_on(a).unwrap();
        Bulk::new(b.socket_v6(9000).unwrap(), 3_000_000).run_on(a).unwrap();
    }

    #[test]
    fn an_overlays_inner_packets_are_seen_at_the_pods_and_outer_ones_at_the_uplink() {
        if !can_run("an_overlays_inner_packets_are_seen_at_the_pods_and_outer_ones_at_the_uplink") {
            return;
        }
        let port = |port: u16| move |packet: &Packet| packet.destination_port() == Some(port);
        let ipip = |packet: &Packet| packet.protocol() == Some(4);
        overlay(Overlay::Vxlan(8472), port(8472));
        overlay(Overlay::Vxlan(4789), port(4789));
        overlay(Overlay::Geneve, port(6081));
        overlay(Overlay::Ipip, ipip);
    }

    fn overlay(overlay: Overlay, is_outer: impl Fn(&Packet) -> bool) {
        let lab = Lab::up(LabSpec::unique().ipv6().pods(1).overlay_pods(2, overlay)).unwrap();
        let node = lab.node(1);
        let (a, b) = (node.pod_of(PodKind::Overlay, 1), node.pod_of(PodKind::Overlay, 2));
        let far = lab.node(2).pod_of(PodKind::Overlay, 1);
        let families = if overlay == Overlay::Ipip { 1 } else { 2 };
        for index in 0..families {
            // Neighbours are known after the first.
            ping(a, both(b)[index], 1, 56).unwrap();
            ping(a, both(far)[index], 1, 56).unwrap();
            let out = format!("{} out", overlay.device());
            let expected = [at(a, "in"), "cni0 in".to_owned(), out];
            assert_eq!(points(node, a, both(far)[index]), expected);
            assert_eq!(points(node, a, both(b)[index]), [at(a, "in"), at(b, "out")]);
        }
        let watch = Points::start(node).unwrap();
        ping(a, far.v4().into(), 1, 56).unwrap();
        let outer = watch.stop(is_outer).unwrap();
        assert_eq!(points_of(&outer), ["eth0 out", "eth0 in"]);
        let nodes = [lab.node(1).v4(), lab.node(2).v4()];
        assert!(outer.iter().all(|seen| seen.packet.is_between(nodes[0], nodes[1])));
        ping(a, lab.inet().v4().into(), 1, 56).unwrap();
        let _server = Server::start(far, Serve::Bulk, 9000).unwrap();
        Bulk::new(far.socket(9000), 1_000_000).run_on(a).unwrap();
    }

    #[test]
    fn bare_instances_talk_to_pods_both_ways() {
        if !can_run("bare_instances_talk_to_pods_both_ways") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6().nodes(1).pods(1).bare()).unwrap();
        let (node, pod) = (lab.node(1), lab.node(1).pod(1));
        let (veth_in, veth_out) = (at(pod, "in"), at(pod, "out"));
        for host in [lab.db(), lab.cache()] {
            for index in 0..2 {
                let (theirs, ours) = (both(host)[index], both(pod)[index]);
                assert_eq!(points(node, pod, theirs), [veth_in.clone(), "eth0 out".to_owned()]);
                assert_eq!(points(node, host, ours), ["eth0 in".to_owned(), veth_out.clone()]);
            }
            // With the pod's own address: the VPC is not translated to.
            let _server = Server::start(host, Serve::Http, 5432).unwrap();
            let watch = Points::start(host).unwrap();
            Http::new(host.socket(5432), 1, 1).run_on(pod).unwrap();
            let seen = watch.stop(|packet| packet.has_port(5432)).unwrap();
            assert!(seen.iter().all(|seen| seen.packet.is_between(pod.v4(), host.v4())));
        }
        assert_eq!(lab.host("db").unwrap().v4(), lab.db().v4());
    }

    #[test]
    fn the_internet_reaches_pods_and_nodes_directly() {
        if !can_run("the_internet_reaches_pods_and_nodes_directly") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6().pods(1)).unwrap();
        let (node, pod, inet) = (lab.node(1), lab.node(1).pod(1), lab.inet());
        let other = lab.node(2);
        let _servers = [
            Server::start(pod, Serve::Http, 8080).unwrap(),
            Server::start(node, Serve::Http, 9090).unwrap(),
        ];
        let run = |from: &Host, to: &Host, port: u16| {
            let watch = Points::start(node).unwrap();
            Http::new(to.socket(port), 1, 1).run_on(from).unwrap();
            let seen = watch.stop(|packet| packet.has_port(port)).unwrap();
            assert!(seen.iter().all(|seen| seen.packet.is_between(from.v4(), to.v4())));
            let mut points = points_of(&seen);
            points.sort();
            points.dedup();
            points
        };
        let (veth_in, veth_out) = (at(pod, "in"), at(pod, "out"));
        let all = ["eth0 in", "eth0 out", &veth_in, &veth_out].map(str::to_owned);
        // Row 11: a load balancer's targets are pods.
        let mut expected = all.to_vec();
        expected.sort();
        assert_eq!(run(inet, pod, 8080), expected);
        // Rows 28, 24, 29: a server of the node itself.
        assert_eq!(run(inet, node, 9090), all[..2]);
        assert_eq!(run(lab.node(2).pod(1), node, 9090), all[..2]);
        assert_eq!(run(other, node, 9090), all[..2]);
        assert_eq!(run(pod, node, 9090), all[2..]);
        // Rows 13 and 14: a probe from a port below and above the pod's.
        for port in [1024, 50000] {
            let watch = Points::start(node).unwrap();
            let mut http = Http::new(pod.socket(8080), 1, 1);
            http.client_port = Some(port);
            http.run_on(node).unwrap();
            let seen = watch.stop(|packet| packet.has_port(port)).unwrap();
            assert!(seen.iter().all(|seen| seen.interface == pod.host_veth()));
            assert!(seen.len() > 5);
        }
    }
}
