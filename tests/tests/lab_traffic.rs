//! The lab's unusual traffic: does it leave as it says, is it delivered, and is what was sent
//! known to the byte?

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, net::SocketAddr};
    use tempfile::TempDir;
    use tests::{
        compare::{Checksums, Comparison, Identity, Packet, read},
        lab::{Lab, LabSpec, Pod, Protocol, Service, can_run},
        traffic::{
            Bulk, Captured, Datagrams, Points, Raw, Serve, Server, Side, Sighting, SuperDatagrams,
            WireTruth,
            craft::{self, Extension, flags},
            ping,
        },
    };

    fn right() -> Identity {
        Identity { checksums: Checksums::Right, ..Identity::default() }
    }

    /// Both families: an end of each pod.
    fn ends(a: &Pod, b: &Pod, from: u16, to: u16) -> [(SocketAddr, SocketAddr); 2] {
        [(a.socket(from), b.socket(to)), (a.socket_v6(from).unwrap(), b.socket_v6(to).unwrap())]
    }

    #[test]
    fn identical_datagrams_with_id_0_all_arrive() {
        if !can_run("identical_datagrams_with_id_0_all_arrive") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6()).unwrap();
        let (a, b) = (lab.node(1).pod(1), lab.node(2).pod(1));
        let raw = Raw::on(a).unwrap();
        let _server = Server::start(b, Serve::Discard, 7000).unwrap();
        // While a neighbour is looked up, the kernel holds only so many packets for it.
        for to in b.addresses() {
            ping(a, to, 1, 56).unwrap();
        }
        let watch = Points::start(lab.node(2)).unwrap();
        for (from, to) in ends(a, b, 7001, 7000) {
            raw.packets(&craft::udp(from, to, 0, b"the same"), 500).unwrap();
        }
        let seen = watch.stop(|packet| packet.has_port(7001)).unwrap();
        let arrived = seen.iter().filter(|seen| !seen.is_outgoing).count();
        assert_eq!(arrived, 1000);
        let first = &seen[0].packet;
        assert!(
            seen.iter()
                .filter(|seen| !seen.is_outgoing && !seen.packet.is_ipv6())
                .all(|seen| seen.packet == *first && seen.packet.data()[4..6] == [0, 0])
        );
        // To the pod; what its socket has room for is another matter.
        assert_eq!(seen.iter().filter(|seen| seen.interface == b.host_veth()).count(), 1000);
    }

    #[test]
    fn fragments_arrive_whole_in_order_and_reversed() {
        if !can_run("fragments_arrive_whole_in_order_and_reversed") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6()).unwrap();
        let (a, b) = (lab.node(1).pod(1), lab.node(2).pod(1));
        let server = Server::start(b, Serve::Discard, 7000).unwrap();
        let raw = Raw::on(a).unwrap();
        let watch = Points::start(lab.node(2)).unwrap();
        for (index, (from, to)) in ends(a, b, 7001, 7000).into_iter().enumerate() {
            // By the kernel.
            Datagrams::new(to, 2, 5000).run_on(a).unwrap();
            // By hand, the last first.
            let packet = craft::udp(from, to, 77, &[9; 4000]);
            let id = 1000 + u32::try_from(index).unwrap();
            for part in craft::fragments(&packet, 1500, id).iter().rev() {
                raw.packet(part).unwrap();
            }
        }
        let seen = watch.stop(Packet::is_fragment).unwrap();
        assert_eq!(server.requests(), 6);
        assert!(seen.iter().any(|seen| seen.packet.source_port().is_none()));
        assert!(seen.iter().filter(|seen| seen.interface == "eth0").count() >= 22, "{seen:?}");
    }

    #[test]
    fn extension_headers_and_sctp_are_delivered() {
        if !can_run("extension_headers_and_sctp_are_delivered") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6()).unwrap();
        let (a, b) = (lab.node(1).pod(1), lab.node(2).pod(1));
        let server = Server::start(b, Serve::Discard, 7000).unwrap();
        let raw = Raw::on(a).unwrap();
        let [(from4, to4), (from, to)] = ends(a, b, 7001, 7000);
        let packet = craft::udp(from, to, 0, b"extended");
        let chains: [&[Extension]; 4] = [
            &[Extension::HopByHop],
            &[Extension::Destination],
            &[Extension::Routing],
            &[Extension::HopByHop, Extension::Destination, Extension::Routing],
        ];
        let watch = Points::start(lab.node(2)).unwrap();
        for chain in chains {
            raw.packet(&craft::with_extensions(&packet, chain)).unwrap();
        }
        raw.packet(&craft::sctp_init(from4, to4, 1)).unwrap();
        raw.packet(&craft::sctp(from, to, 0, 7, b"chunk")).unwrap();
        let answer = craft::tcp(from4, to4, 5, (1, 2, flags::ACK | flags::PSH), b"out of nowhere");
        raw.packet(&answer).unwrap();
        let (icmp, icmp6): (IpAddr, IpAddr) = (to4.ip(), to.ip());
        raw.packet(&craft::echo(from4.ip(), icmp, 9, 1, b"echo")).unwrap();
        raw.packet(&craft::echo(from.ip(), icmp6, 9, 1, b"echo")).unwrap();
        let seen = watch.stop(|packet| packet.has_address(to.ip()) || packet.has_address(to4.ip()));
        let seen = seen.unwrap();
        assert_eq!(server.requests(), 4);
        let delivered = |protocol: u8| {
            seen.iter()
                .filter(|seen| {
                    seen.interface == b.host_veth()
                        && seen.is_outgoing
                        && seen.packet.protocol() == Some(protocol)
                })
                .count()
        };
        assert_eq!((delivered(17), delivered(132), delivered(6)), (4, 2, 1), "{seen:?}");
        // Both echoes were answered, the segment with a reset.
        let answers = seen.iter().filter(|seen| {
            seen.interface == b.host_veth() && matches!(seen.packet.protocol(), Some(1 | 58 | 6))
        });
        assert!(answers.filter(|seen| !seen.is_outgoing).count() >= 3, "{seen:?}");
    }

    #[test]
    fn sctp_is_translated_for_a_service() {
        if !can_run("sctp_is_translated_for_a_service") {
            return;
        }
        let lab = Lab::up(LabSpec::unique()).unwrap();
        let (a, b) = (lab.node(1).pod(1), lab.node(1).pod(2));
        let service: SocketAddr = "172.20.0.10:36412".parse().unwrap();
        lab.add_service(&Service::new(Protocol::Sctp, service, &[b.socket(36412)])).unwrap();
        let watch = Points::start(lab.node(1)).unwrap();
        Raw::on(a).unwrap().packet(&craft::sctp_init(a.socket(5000), service, 1)).unwrap();
        let seen = watch.stop(|packet| packet.protocol() == Some(132)).unwrap();
        let to: Vec<_> = seen.iter().map(|seen| seen.packet.destination().unwrap()).collect();
        assert_eq!(to, [service.ip(), b.v4().into()]);
    }

    #[test]
    fn arp_and_other_frames_are_on_one_wire_each() {
        if !can_run("arp_and_other_frames_are_on_one_wire_each") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(1)).unwrap();
        let (node, pod) = (lab.node(1), lab.node(1).pod(1));
        let raw = Raw::on(pod).unwrap();
        let gateway = lab.vpc().mac("node1").unwrap();
        let uplink = Raw::towards(node, "eth0", &gateway).unwrap();
        let watch = Points::start(node).unwrap();
        raw.frame(&craft::arp_request(raw.own_mac(), pod.v4(), node.v4())).unwrap();
        raw.frame(&craft::frame(raw.next_mac(), raw.own_mac(), 0x88b5, &[7; 50])).unwrap();
        let router = "10.0.1.1".parse().unwrap();
        uplink.frame(&craft::arp_request(uplink.own_mac(), node.v4(), router)).unwrap();
        let seen = watch.stop(|packet| matches!(packet.ethertype(), 0x0806 | 0x88b5)).unwrap();
        let points: Vec<String> = seen.iter().map(Sighting::point).collect();
        let veth = |direction: &str| format!("{} {direction}", pod.host_veth());
        // Each request has its reply; the other frame has none.
        assert_eq!(points.iter().filter(|point| **point == veth("in")).count(), 2, "{points:?}");
        assert_eq!(points.iter().filter(|point| **point == veth("out")).count(), 1);
        assert_eq!(points.iter().filter(|point| *point == "eth0 out").count(), 1);
        assert_eq!(points.iter().filter(|point| *point == "eth0 in").count(), 1);
    }

    #[test]
    fn a_closed_port_is_answered_by_an_error_each_time() {
        if !can_run("a_closed_port_is_answered_by_an_error_each_time") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6()).unwrap();
        let (a, b) = (lab.node(1).pod(1), lab.node(2).pod(1));
        let watch = Points::start(lab.node(1)).unwrap();
        for (_from, to) in ends(a, b, 1, 9999) {
            Datagrams::new(to, 20, 100).run_on(a).unwrap();
        }
        let seen = watch.stop(|packet| matches!(packet.protocol(), Some(1 | 58))).unwrap();
        let errors = seen.iter().filter(|seen| {
            seen.is_outgoing
                && seen.interface == a.host_veth()
                && matches!(
                    (
                        seen.packet.is_ipv6(),
                        seen.packet.data()[if seen.packet.is_ipv6() { 40 } else { 20 }]
                    ),
                    (false, 3) | (true, 1)
                )
        });
        assert_eq!(errors.count(), 40);
    }

    #[test]
    fn what_the_network_loses_is_sent_again() {
        if !can_run("what_the_network_loses_is_sent_again") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().without_pod_offloads()).unwrap();
        let (a, b) = (lab.node(1).pod(1), lab.node(2).pod(1));
        let to = b.socket(9000);
        lab.vpc().lose(Protocol::Tcp, to, 40).unwrap();
        let _server = Server::start(b, Serve::Bulk, 9000).unwrap();
        let watch = Points::start(lab.node(1)).unwrap();
        Bulk::new(to, 1_000_000).run_on(a).unwrap();
        let seen = watch.stop(|packet| packet.destination_port() == Some(9000)).unwrap();
        let mut sequences: Vec<&[u8]> = seen
            .iter()
            .filter(|seen| !seen.is_outgoing && seen.packet.data().len() > 200)
            .map(|seen| &seen.packet.data()[24..28])
            .collect();
        let all = sequences.len();
        sequences.sort_unstable();
        sequences.dedup();
        assert!(all >= sequences.len() + 5, "{all} segments, {} different", sequences.len());
    }

    /// Sent with the kernel's segmentation; delivered after the wire: the same segments.
    fn captured_as_on_the_wire(lab: &Lab, port: u16, send: impl Fn(&Lab)) {
        let directory = TempDir::new().unwrap();
        let wanted = |packet: &Packet| matches!(packet.protocol(), Some(6 | 17));
        let mut truth = WireTruth::new(directory.path(), wanted);
        truth.add(lab.node(1).pod(1), "eth0", Side::Sent).unwrap();
        truth.add(lab.node(2).pod(1), "eth0", Side::Sent).unwrap();
        let delivered = directory.path().join("delivered");
        std::fs::create_dir(&delivered).unwrap();
        let mut seen = WireTruth::new(&delivered, wanted);
        seen.add(lab.node(2), "eth0", Side::Both).unwrap();
        send(lab);
        let sent = truth.stop().unwrap();
        let seen = seen.stop().unwrap();
        let files: &Captured = &seen[0];
        assert_eq!(files.lost, 0);
        let report = Comparison::new()
            .identity(right())
            .kind("all", move |packet| packet.has_port(port))
            .files(&sent, &files.path)
            .unwrap();
        assert!(report.is_exact(), "{report}");
        assert!(report.total().sent > 100);
        let longest = read(&files.path).unwrap().iter().map(|packet| packet.data().len()).max();
        assert!(longest.unwrap() <= 1500, "{longest:?}");
    }

    #[test]
    fn super_frames_of_udp_and_tcp_are_known_by_their_segments() {
        if !can_run("super_frames_of_udp_and_tcp_are_known_by_their_segments") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6()).unwrap();
        let b = lab.node(2).pod(1);
        let _servers = [
            Server::start(b, Serve::Discard, 7000).unwrap(),
            Server::start(b, Serve::Bulk, 9000).unwrap(),
        ];
        // What is cut at the wire is the same that is cut here.
        lab.uplinks_like_wires().unwrap();
        captured_as_on_the_wire(&lab, 7000, |lab| {
            for (_from, to) in ends(lab.node(1).pod(1), lab.node(2).pod(1), 1, 7000) {
                SuperDatagrams::new(to, 10, 20, 1200).run_on(lab.node(1).pod(1)).unwrap();
            }
        });
        captured_as_on_the_wire(&lab, 9000, |lab| {
            for (_from, to) in ends(lab.node(1).pod(1), lab.node(2).pod(1), 1, 9000) {
                Bulk::new(to, 3_000_000).run_on(lab.node(1).pod(1)).unwrap();
            }
        });
    }

    #[test]
    fn super_frames_can_be_beyond_64_kb() {
        if !can_run("super_frames_can_be_beyond_64_kb") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6().big_tcp()).unwrap();
        let (a, b) = (lab.node(1).pod(1), lab.node(1).pod(2));
        let _server = Server::start(b, Serve::Bulk, 9000).unwrap();
        let directory = TempDir::new().unwrap();
        let mut truth = WireTruth::new(directory.path(), |packet| packet.has_port(9000));
        truth.add(a, "eth0", Side::Sent).unwrap();
        for to in [b.socket(9000), b.socket_v6(9000).unwrap()] {
            let watch = Points::start(lab.node(1)).unwrap();
            Bulk::new(to, 20_000_000).run_on(a).unwrap();
            let seen = watch.stop(|packet| packet.data().len() > 65_575).unwrap();
            assert!(!seen.is_empty(), "{to}: no super-frame is beyond 64 kB");
        }
        // They are known by their segments too.
        let sent = truth.stop().unwrap();
        assert_eq!(sent[0].lost, 0);
        let packets = read(&sent[0].path).unwrap();
        assert!(packets.iter().all(|packet| packet.data().len() <= 1500));
        let payload = |packet: &Packet| {
            let headers = if packet.is_ipv6() { 40 } else { 20 };
            packet.data().len() - headers - usize::from(packet.data()[headers + 12] >> 4) * 4
        };
        assert!(packets.iter().map(payload).sum::<usize>() >= 40_000_000);
    }
}
