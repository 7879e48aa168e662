//! The lab's services: which addresses a packet has at which point of a node.

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};
    use tests::{
        compare::Packet,
        lab::{Host, Lab, LabSpec, Protocol, Service, can_run},
        traffic::{Datagrams, Dns, Http, Points, Serve, Server, Sighting},
    };

    fn service(port: u16) -> SocketAddr {
        SocketAddr::from(([172, 20, 0, 10], port))
    }

    fn is_tcp(packet: &Packet) -> bool {
        packet.protocol() == Some(6)
    }

    /// `point source > destination` of the first packet with a SYN and no ACK at each point.
    fn opening(seen: &[Sighting]) -> Vec<String> {
        let syn = |packet: &Packet| {
            let header = if packet.is_ipv6() { 40 } else { 20 };
            is_tcp(packet) && packet.data()[header + 13] & 0x12 == 0x02
        };
        seen.iter()
            .filter(|sighting| syn(&sighting.packet))
            .map(|sighting| {
                let (from, to) = (sighting.packet.source(), sighting.packet.destination());
                format!("{} {} > {}", sighting.point(), from.unwrap(), to.unwrap())
            })
            .collect()
    }

    fn line(point: &str, from: impl Into<IpAddr>, to: impl Into<IpAddr>) -> String {
        format!("{point} {} > {}", from.into(), to.into())
    }

    #[test]
    fn a_service_port_may_be_above_the_clients() {
        if !can_run("a_service_port_may_be_above_the_clients") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6()).unwrap();
        let (client, server) = (lab.node(1).pod(1), lab.node(1).pod(2));
        let v6: SocketAddr = "[fd00:172:20::10]:50051".parse().unwrap();
        lab.add_service(&Service::tcp(service(50051), &[server.socket(50051)])).unwrap();
        lab.add_service(&Service::udp(service(50053), &[server.socket(50053)])).unwrap();
        lab.add_service(&Service::tcp(v6, &[server.socket_v6(50051).unwrap()])).unwrap();
        let _http = Server::start(server, Serve::Http, 50051).unwrap();
        let _dns = Server::start(server, Serve::Dns, 50053).unwrap();
        for to in [service(50051), v6] {
            let points = Points::start(lab.node(1)).unwrap();
            let mut http = Http::new(to, 3, 1);
            http.client_port = Some(45000);
            http.run_on(client).unwrap();
            let seen = points.stop(is_tcp).unwrap();
            assert!(seen.iter().all(|seen| seen.packet.has_port(45000)));
            let address = |host: &Host| {
                if to.is_ipv4() { host.v4().into() } else { IpAddr::from(host.v6().unwrap()) }
            };
            assert_eq!(
                opening(&seen),
                [
                    line(&format!("{} in", client.host_veth()), address(client), to.ip()),
                    line(&format!("{} out", server.host_veth()), address(client), address(server)),
                ]
            );
        }
        Dns::new(service(50053), 3, 1).run_on(client).unwrap();
    }

    #[test]
    fn a_pod_that_reaches_itself_by_its_service_sees_the_nodes_address() {
        if !can_run("a_pod_that_reaches_itself_by_its_service_sees_the_nodes_address") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().nodes(1).ipv6()).unwrap();
        let (node, pod) = (lab.node(1), lab.node(1).pod(1));
        let v6: SocketAddr = "[fd00:172:20::10]:80".parse().unwrap();
        lab.add_service(&Service::tcp(service(80), &[pod.socket(8080)])).unwrap();
        lab.add_service(&Service::tcp(v6, &[pod.socket_v6(8080).unwrap()])).unwrap();
        let _server = Server::start(pod, Serve::Http, 8080).unwrap();
        let veth = pod.host_veth();
        let v4: [IpAddr; 2] = [pod.v4().into(), node.v4().into()];
        let six: [IpAddr; 2] = [pod.v6().unwrap().into(), node.v6().unwrap().into()];
        for (to, [pod_at, node_at]) in [(service(80), v4), (v6, six)] {
            let points = Points::start(node).unwrap();
            Http::new(to, 1, 1).run_on(pod).unwrap();
            let seen = points.stop(is_tcp).unwrap();
            assert_eq!(
                opening(&seen),
                [
                    line(&format!("{veth} in"), pod_at, to.ip()),
                    line(&format!("{veth} out"), node_at, pod_at),
                ]
            );
        }
    }

    #[test]
    fn a_node_port_leads_to_pods_of_this_node_and_of_another() {
        if !can_run("a_node_port_leads_to_pods_of_this_node_and_of_another") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6()).unwrap();
        let (node, near, far) = (lab.node(1), lab.node(1).pod(1), lab.node(2).pod(1));
        let service6: SocketAddr = "[fd00:172:20::10]:80".parse().unwrap();
        let mut port = 30080;
        let mut add = |at: SocketAddr, backend: SocketAddr, local: bool| {
            port += 1;
            let at = SocketAddr::new(at.ip(), port - 30000);
            let service = Service::tcp(at, &[backend]).node_port(port);
            lab.add_service(&if local { service.local_only() } else { service }).unwrap();
            port
        };
        let near_port = add(service(80), near.socket(8080), false);
        let far_port = add(service(80), far.socket(8080), false);
        let local_port = add(service(80), near.socket(8080), true);
        let nowhere = add(service(80), far.socket(8080), true);
        let far6_port = add(service6, far.socket_v6(8080).unwrap(), false);
        let _servers = [near, far].map(|pod| Server::start(pod, Serve::Http, 8080).unwrap());
        let inet = lab.inet();
        let veth_out = format!("{} out", near.host_veth());
        let cases = [
            // Marked: the backend sees the node.
            (
                node.socket(near_port),
                inet.v4().into(),
                (veth_out.clone(), node.v4().into(), IpAddr::from(near.v4())),
            ),
            (
                node.socket(far_port),
                inet.v4().into(),
                ("eth0 out".to_owned(), node.v4().into(), far.v4().into()),
            ),
            (
                node.socket(local_port),
                inet.v4().into(),
                (veth_out, inet.v4().into(), near.v4().into()),
            ),
            (
                node.socket_v6(far6_port).unwrap(),
                inet.v6().unwrap().into(),
                ("eth0 out".to_owned(), node.v6().unwrap().into(), far.v6().unwrap().into()),
            ),
        ];
        for (to, client, (point, from, backend)) in cases {
            let client: IpAddr = client;
            let from: IpAddr = from;
            let points = Points::start(node).unwrap();
            Http::new(to, 1, 1).run_on(inet).unwrap();
            let seen = points.stop(is_tcp).unwrap();
            assert_eq!(
                opening(&seen),
                [line("eth0 in", client, to.ip()), line(&point, from, backend)]
            );
        }
        // UDP as well.
        let udp = Service::udp(service(53), &[far.socket(53)]).node_port(30053);
        lab.add_service(&udp).unwrap();
        let _dns = Server::start(far, Serve::Dns, 53).unwrap();
        Dns::new(node.socket(30053), 5, 2).run_on(inet).unwrap();
        // No backend here and policy Local: dropped without a word.
        let points = Points::start(node).unwrap();
        let refused = inet
            .enter(|| {
                std::net::TcpStream::connect_timeout(
                    &node.socket(nowhere),
                    std::time::Duration::from_millis(300),
                )
            })
            .unwrap();
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        let seen = points.stop(is_tcp).unwrap();
        assert!(seen.iter().all(|seen| seen.point() == "eth0 in"), "{seen:?}");
    }

    #[test]
    fn what_a_node_refuses_it_refuses_by_icmp_or_by_reset() {
        if !can_run("what_a_node_refuses_it_refuses_by_icmp_or_by_reset") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().nodes(1)).unwrap();
        let pod = lab.node(1).pod(1);
        lab.add_service(&Service::tcp(service(80), &[])).unwrap();
        lab.add_service(&Service::tcp(service(81), &[]).refuse_by_reset()).unwrap();
        lab.add_service(&Service::udp(service(53), &[])).unwrap();
        for (port, by) in [(80, 1), (81, 6)] {
            let points = Points::start(lab.node(1)).unwrap();
            Http::new(service(port), 1, 1).run_on(pod).unwrap_err();
            let seen = points.stop(|packet| packet.protocol().is_some()).unwrap();
            let answers: Vec<_> = seen.iter().filter(|seen| seen.is_outgoing).collect();
            assert_eq!(answers.len(), 1, "{seen:?}");
            assert_eq!(answers[0].packet.protocol(), Some(by));
            assert_eq!(answers[0].interface, pod.host_veth());
        }
        let points = Points::start(lab.node(1)).unwrap();
        Datagrams::new(service(53), 1, 10).run_on(pod).unwrap();
        let seen = points.stop(|packet| packet.protocol().is_some()).unwrap();
        assert_eq!(seen.last().unwrap().packet.protocol(), Some(1));
    }

    #[test]
    fn what_a_policy_denies_gets_no_further_than_the_node() {
        if !can_run("what_a_policy_denies_gets_no_further_than_the_node") {
            return;
        }
        let lab = Lab::up(LabSpec::unique()).unwrap();
        let (a, b) = (lab.node(1).pod(1), lab.node(1).pod(2));
        let _server = Server::start(b, Serve::Discard, 9).unwrap();
        lab.node(1).deny(Protocol::Udp, b.socket(9)).unwrap();
        let points = Points::start(lab.node(1)).unwrap();
        Datagrams::new(b.socket(9), 3, 10).run_on(a).unwrap();
        let seen = points.stop(|packet| packet.protocol().is_some()).unwrap();
        let at: Vec<String> = seen.iter().map(Sighting::point).collect();
        assert_eq!(at, [format!("{} in", a.host_veth()), at[0].clone(), at[0].clone()]);
    }

    #[test]
    fn node_local_dns_answers_with_the_service_address_and_nothing_is_translated() {
        if !can_run("node_local_dns_answers_with_the_service_address_and_nothing_is_translated") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().nodes(1).ipv6()).unwrap();
        let (node, pod, elsewhere) = (lab.node(1), lab.node(1).pod(1), lab.node(1).pod(2));
        let addresses: [IpAddr; 2] = [service(53).ip(), "fd00:172:20::a".parse().unwrap()];
        // kube-proxy knows the service too; its DNAT must not apply.
        lab.add_service(&Service::udp(service(53), &[elsewhere.socket(53)])).unwrap();
        lab.add_node_dns(1, &addresses).unwrap();
        let at = addresses.map(|address| SocketAddr::new(address, 53));
        let server = Server::start_at(node, Serve::Dns, &at).unwrap();
        for to in at {
            let points = Points::start(node).unwrap();
            Dns::new(to, 1, 1).run_on(pod).unwrap();
            let seen = points.stop(|packet| packet.protocol() == Some(17)).unwrap();
            let shown: Vec<String> = seen
                .iter()
                .map(|seen| {
                    let (from, to) = (seen.packet.source(), seen.packet.destination());
                    line(&seen.point(), from.unwrap(), to.unwrap())
                })
                .collect();
            let own: IpAddr = if to.is_ipv4() { pod.v4().into() } else { pod.v6().unwrap().into() };
            assert_eq!(
                shown,
                [
                    line(&format!("{} in", pod.host_veth()), own, to.ip()),
                    line(&format!("{} out", pod.host_veth()), to.ip(), own),
                ]
            );
        }
        assert_eq!(server.requests(), 2);
    }
}
