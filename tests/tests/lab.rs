//! The lab itself: does it route, translate and vanish as promised, and can the comparison be
//! trusted when there is no tap at all between what was sent and what was seen?

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;
    use std::{
        net::{IpAddr, SocketAddr},
        path::Path,
        time::Duration,
    };
    use tempfile::TempDir;
    use tests::{
        compare::{Checksums, Comparison, Identity, Packet, read},
        lab::{Host, Lab, LabError, LabSpec, Service, can_run},
        traffic::{
            Bulk, Capture, Datagrams, Dns, Http, Serve, Server, Side, Truth, iperf3, ping,
            tcpreplay,
        },
    };

    const LIMIT: Duration = Duration::from_secs(20);

    fn namespaces_of(lab: &str) -> Vec<String> {
        let prefix = format!("pt-{lab}-");
        std::fs::read_dir("/run/netns")
            .map(|entries| {
                entries
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .filter(|name| name.starts_with(&prefix))
                    .collect()
            })
            .unwrap_or_default()
    }

    /// TTL or hop limit with which one echo reply arrives.
    fn reply_ttl(from: &Host, to: IpAddr) -> u32 {
        let output = from.exec(["ping", "-n", "-c", "1", "-W", "10", &to.to_string()]).unwrap();
        let (_, rest) = output.split_once("ttl=").expect("a reply");
        rest.split(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    fn pods_reach_each_other_and_every_hop_is_routed() {
        if !can_run("pods_reach_each_other_and_every_hop_is_routed") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6()).unwrap();
        let pod = lab.node(1).pod(1);
        let (same, other) = (lab.node(1).pod(2), lab.node(2).pod(1));
        for (to, ttl) in [(same, 63), (other, 61)] {
            assert_eq!(reply_ttl(pod, to.v4().into()), ttl);
            assert_eq!(reply_ttl(pod, to.v6().unwrap().into()), ttl);
        }
        assert_eq!(reply_ttl(lab.node(1), pod.v4().into()), 64);
        assert_eq!(reply_ttl(lab.node(2), lab.sensor().v4().into()), 63);
        assert_eq!(reply_ttl(pod, lab.inet().v6().unwrap().into()), 62);
        assert_eq!(reply_ttl(lab.inet(), other.v4().into()), 62);
    }

    #[test]
    fn a_pod_is_wired_as_the_vpc_cni_does_it() {
        if !can_run("a_pod_is_wired_as_the_vpc_cni_does_it") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().mtu(9001)).unwrap();
        let (node, pod) = (lab.node(1), lab.node(1).pod(1));
        let routes = pod.exec(["ip", "route"]).unwrap();
        assert!(routes.contains("default via 169.254.1.1 dev eth0"), "{routes}");
        let neighbours = pod.exec(["ip", "neighbour"]).unwrap();
        assert!(neighbours.contains("169.254.1.1 dev eth0 lladdr"), "{neighbours}");
        assert!(neighbours.contains("PERMANENT"), "{neighbours}");
        let routes = node.exec(["ip", "route"]).unwrap();
        let host_route = format!("{} dev {} scope link", pod.v4(), pod.host_veth());
        assert!(routes.contains(&host_route), "{routes}");
        assert!(routes.contains("default via 10.0.1.1 dev eth0"), "{routes}");
        assert!(pod.exec(["ip", "link", "show", "eth0"]).unwrap().contains("mtu 9001"));
    }

    #[test]
    fn a_service_leads_to_all_its_backends_from_pods_and_nodes() {
        if !can_run("a_service_leads_to_all_its_backends_from_pods_and_nodes") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6()).unwrap();
        let (near, far) = (lab.node(1).pod(2), lab.node(2).pod(1));
        let servers = [near, far].map(|pod| Server::start(pod, Serve::Http, 8080).unwrap());
        let address = SocketAddr::from(([172, 20, 0, 10], 80));
        let v6: SocketAddr = "[fd00:172:20::10]:80".parse().unwrap();
        lab.add_service(&Service::tcp(address, &[near.socket(8080), far.socket(8080)])).unwrap();
        lab.add_service(&Service::tcp(v6, &[near.socket_v6(8080).unwrap()])).unwrap();

        let client = lab.node(1).pod(1);
        // 64 connections that all go to one of two backends: once in 2^63 runs.
        let sent = Http::new(address, 64, 64).run_on(client).unwrap();
        assert_eq!((sent.requests, sent.responses), (64, 64));
        assert!(servers.iter().all(|server| server.requests() > 0));
        Http::new(address, 1, 1).run_on(lab.node(2)).unwrap();
        Http::new(v6, 1, 1).run_on(client).unwrap();
        assert_eq!(servers.iter().map(Server::requests).sum::<u64>(), 66);
    }

    #[test]
    fn a_service_without_backends_refuses() {
        if !can_run("a_service_without_backends_refuses") {
            return;
        }
        let lab = Lab::up(LabSpec::unique()).unwrap();
        let address = SocketAddr::from(([172, 20, 0, 10], 80));
        lab.add_service(&Service::tcp(address, &[])).unwrap();
        let error = Http::new(address, 1, 1).run_on(lab.node(1).pod(1)).unwrap_err();
        assert!(error.chain().contains("refused"), "{}", error.chain());
    }

    #[test]
    fn the_internet_sees_the_nodes_address_and_the_vpc_the_pods() {
        if !can_run("the_internet_sees_the_nodes_address_and_the_vpc_the_pods") {
            return;
        }
        let lab = Lab::up(LabSpec::unique()).unwrap();
        let directory = TempDir::new().unwrap();
        let pod = lab.node(1).pod(1);
        for (number, (server, seen)) in
            [(lab.inet(), lab.node(1).v4()), (lab.sensor(), pod.v4())].into_iter().enumerate()
        {
            let _server = Server::start(server, Serve::Http, 80).unwrap();
            let path = directory.path().join(format!("{number}.pcap"));
            let capture = Capture::start(server, "eth0", Side::Received, "tcp", &path).unwrap();
            Http::new(server.socket(80), 1, 1).run_on(pod).unwrap();
            capture.stop().unwrap();
            let packets = read(&path).unwrap();
            assert!(!packets.is_empty());
            assert!(packets.iter().all(|packet| packet.source() == Some(seen.into())));
        }
    }

    #[test]
    fn labs_live_side_by_side_and_leave_nothing() {
        if !can_run("labs_live_side_by_side_and_leave_nothing") {
            return;
        }
        let one = Lab::up(LabSpec::unique().nodes(1).pods(1)).unwrap();
        let two = Lab::up(LabSpec::unique().nodes(1).pods(1)).unwrap();
        let (one_name, two_name) = (one.spec().name.clone(), two.spec().name.clone());
        assert!(matches!(Lab::up(one.spec().clone()), Err(LabError::Exists(_))));
        assert_eq!(Lab::attach(&one_name).unwrap().spec(), one.spec());

        // Deaf to the polite signal, and in a namespace of the lab.
        let stubborn = one.node(1).pod(1).spawn([
            "sh",
            "-c",
            "trap '' TERM; echo deaf; while :; do sleep 0.1; done",
        ]);
        let mut stubborn = stubborn.unwrap();
        stubborn.wait_for("deaf", LIMIT).unwrap();
        let pids = one.processes().unwrap();
        assert!(pids.contains(&i32::try_from(stubborn.id()).unwrap()));
        drop(one);
        assert!(!stubborn.wait(LIMIT).unwrap().success());
        for pid in pids {
            let net = std::fs::read_link(format!("/proc/{pid}/ns/net"));
            assert!(net.is_err(), "process {pid} is left");
        }
        assert!(namespaces_of(&one_name).is_empty());
        assert!(!Path::new("/run/podtap-lab").join(format!("{one_name}.json")).exists());
        assert!(matches!(Lab::attach(&one_name), Err(LabError::NotUp(_))));

        // The other one did not notice.
        assert_eq!(namespaces_of(&two_name).len(), 5);
        reply_ttl(two.node(1).pod(1), two.inet().v4().into());
        drop(two);
        assert!(namespaces_of(&two_name).is_empty());
        // All links were inside the namespaces.
        let links = std::fs::read_dir("/sys/class/net").unwrap();
        assert!(links.flatten().all(|link| !link.file_name().to_string_lossy().starts_with("eni")));
    }

    #[test]
    fn a_failed_up_leaves_nothing() {
        if !can_run("a_failed_up_leaves_nothing") {
            return;
        }
        let spec = LabSpec::unique().nodes(1).pods(1);
        // In the way of the state file, which is written last.
        let state = Path::new("/run/podtap-lab").join(format!("{}.json", spec.name));
        std::fs::create_dir_all(&state).unwrap();
        let name = spec.name.clone();
        let error = Lab::up(spec).unwrap_err();
        std::fs::remove_dir(&state).unwrap();
        assert!(matches!(error, LabError::File { .. }), "{}", error.chain());
        assert!(namespaces_of(&name).is_empty());
    }

    #[test]
    fn an_idle_lab_is_silent() {
        if !can_run("an_idle_lab_is_silent") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6().nodes(1).pods(1)).unwrap();
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("any.pcap");
        let capture = Capture::start(lab.node(1), "any", Side::Both, "", &path).unwrap();
        // Longer than any report or probe that the kernel could have pending.
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(capture.stop().unwrap().packets, 0);
    }

    /// Every kind of traffic at once, seen by tcpdump where it is delivered: the harness alone.
    fn compare_with_receivers(spec: LabSpec, identity: Identity) {
        let lab = Lab::up(spec).unwrap();
        let directory = TempDir::new().unwrap();
        let (a, b, c) = (lab.node(1).pod(1), lab.node(1).pod(2), lab.node(2).pod(1));
        let service = Service::tcp(
            SocketAddr::from(([172, 20, 0, 10], 80)),
            &[b.socket(8080), c.socket(8080)],
        );
        lab.add_service(&service).unwrap();

        let ip = "not arp and not icmp6";
        let truth = Truth::of_pods(&lab, directory.path(), ip).unwrap();
        // The stand-in for the sensor: what each node delivers to its pods.
        // A reply through the service is delivered with the service's address, which a sensor
        // must never show; so those replies are taken where the backend's node gets them.
        let delivered_to = directory.path().join("delivered");
        std::fs::create_dir(&delivered_to).unwrap();
        let mut delivered = Truth::new(&delivered_to);
        let out = format!("{ip} and not src net 172.20.0.0/16");
        for node in lab.nodes() {
            for pod in node.pods() {
                let replies = format!("tcp src port 8080 and src host {}", pod.v4());
                delivered.add(node, pod.host_veth(), Side::Sent, &out).unwrap();
                delivered.add(node, pod.host_veth(), Side::Received, &replies).unwrap();
            }
        }

        let servers: Vec<Server> = [b, c]
            .into_iter()
            .flat_map(|pod| {
                [(Serve::Http, 8080), (Serve::Http, 8081), (Serve::Dns, 53), (Serve::Bulk, 9000)]
                    .map(|(serve, port)| Server::start(pod, serve, port).unwrap())
            })
            .collect();
        for pod in [b, c] {
            Http::new(pod.socket(8081), 40, 4).run_on(a).unwrap();
            Http::new(pod.socket_v6(8081).unwrap(), 10, 2).run_on(a).unwrap();
            Dns::new(pod.socket(53), 50, 3).run_on(a).unwrap();
            Bulk::new(pod.socket(9000), 3_000_000).run_on(a).unwrap();
            ping(a, pod.v4().into(), 20, 56).unwrap();
        }
        Http::new(service.address, 40, 8).run_on(a).unwrap();
        iperf3(a, c, c.v4().into(), 5201, 1_000_000).unwrap();
        drop(servers);

        let sent = truth.stop().unwrap();
        let mut seen = Vec::new();
        for capture in delivered.stop().unwrap() {
            assert_eq!(capture.lost, 0, "{}", capture.what);
            seen.extend(read(&capture.path).unwrap());
        }
        let mut all_sent = Vec::new();
        for capture in &sent {
            assert_eq!(capture.lost, 0, "{}", capture.what);
            let packets = read(&capture.path).unwrap();
            assert_eq!(u64::try_from(packets.len()).unwrap(), capture.packets);
            all_sent.extend(packets);
        }
        let port = |port| move |packet: &Packet| packet.has_port(port) && !packet.is_ipv6();
        let comparison = Comparison::new()
            .identity(identity)
            .by_segments(1500)
            .services(std::slice::from_ref(&service))
            .kind("HTTP", port(8081))
            .kind("HTTP through a service", port(8080))
            .kind("HTTP over IPv6", |packet| packet.is_ipv6() && packet.has_port(8081))
            .kind("DNS", port(53))
            .kind("bulk", port(9000))
            .kind("iperf3", port(5201))
            .kind("ping", |packet| packet.protocol() == Some(1));
        let report = comparison.run(&all_sent, &seen);
        assert!(report.is_exact(), "{report}");
        assert_eq!((report.other_sent, report.other_sensor), (0, 0), "{report}");
        assert_eq!(report.row("ping").unwrap().sent, 80);

        // And it can fail.
        let twice = seen[0].clone();
        seen.push(twice);
        assert!(comparison.run(&all_sent, &seen).total().doubled > 0);
        seen.pop();
        seen.swap_remove(0);
        assert!(comparison.run(&all_sent, &seen).total().missing > 0);
    }

    #[test]
    fn super_frames_are_delivered_once_as_far_as_the_harness_can_tell() {
        if !can_run("super_frames_are_delivered_once_as_far_as_the_harness_can_tell") {
            return;
        }
        compare_with_receivers(LabSpec::unique().ipv6(), Identity::default());
    }

    #[test]
    fn frames_without_offloads_are_delivered_byte_for_byte() {
        if !can_run("frames_without_offloads_are_delivered_byte_for_byte") {
            return;
        }
        let spec = LabSpec::unique().ipv6().without_pod_offloads();
        let identity = Identity { checksums: Checksums::AsSent, ..Identity::default() };
        compare_with_receivers(spec, identity);
    }

    #[test]
    fn repeats_and_fragments_are_what_they_say() {
        if !can_run("repeats_and_fragments_are_what_they_say") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().ipv6()).unwrap();
        let directory = TempDir::new().unwrap();
        let (a, b) = (lab.node(1).pod(1), lab.node(2).pod(1));
        let _server = Server::start(b, Serve::Discard, 7000).unwrap();
        let path = directory.path().join("sent.pcap");
        let capture = Capture::start(a, "eth0", Side::Sent, "udp", &path).unwrap();
        for to in [b.socket(7000), b.socket_v6(7000).unwrap()] {
            let mut datagrams = Datagrams::new(to, 5, 100);
            datagrams.times = 3;
            datagrams.client_port = Some(7001);
            datagrams.run_on(a).unwrap();
        }
        Datagrams::new(b.socket(7000), 1, 3000).run_on(a).unwrap();
        capture.stop().unwrap();

        let packets = read(&path).unwrap();
        let (fragments, whole): (Vec<_>, Vec<_>) =
            packets.into_iter().partition(Packet::is_fragment);
        assert_eq!(fragments.len(), 3);
        assert_eq!(fragments.iter().filter(|part| part.source_port().is_some()).count(), 1);
        assert_eq!(whole.len(), 30);
        assert!(whole.iter().all(|packet| packet.source_port() == Some(7001)));
        for repeats in whole.chunks(3) {
            // Payload alike; over IPv6 everything.
            assert_eq!(repeats[0].data()[48..], repeats[2].data()[48..]);
            assert_eq!(repeats[0] == repeats[2], repeats[0].is_ipv6());
        }
        assert_ne!(whole[0].data()[48..], whole[3].data()[48..]);
    }

    #[test]
    fn tcpreplay_says_what_it_sent() {
        if !can_run("tcpreplay_says_what_it_sent") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(1)).unwrap();
        let directory = TempDir::new().unwrap();
        let (source, seen) = (directory.path().join("a.pcap"), directory.path().join("b.pcap"));
        let (node, pod) = (lab.node(1), lab.node(1).pod(1));
        let capture = Capture::start(pod, "eth0", Side::Sent, "icmp", &source).unwrap();
        ping(pod, node.v4().into(), 10, 100).unwrap();
        let captured = capture.stop().unwrap();
        assert_eq!(captured.packets, 10);

        let capture = Capture::start(node, pod.host_veth(), Side::Received, "icmp", &seen).unwrap();
        let replayed = tcpreplay(pod, "eth0", &source, 1000).unwrap();
        let seen_captured = capture.stop().unwrap();
        assert_eq!((replayed.sent, replayed.failed), (10, 0));
        assert_eq!(seen_captured.packets, 10);
        let report = Comparison::new()
            .identity(Identity::strict())
            .kind("replayed", |_packet| true)
            .files(&[captured], &seen)
            .unwrap();
        assert!(report.is_exact(), "{report}");
    }

    #[test]
    fn a_capture_that_lost_packets_is_named() {
        if !can_run("a_capture_that_lost_packets_is_named") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(1)).unwrap();
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("a.pcap");
        let pod = lab.node(1).pod(1);
        let capture = Capture::start(pod, "eth0", Side::Sent, "icmp", &path).unwrap();
        ping(pod, lab.node(1).v4().into(), 5, 56).unwrap();
        let mut captured = capture.stop().unwrap();
        assert_eq!((captured.packets, captured.lost), (5, 0));
        captured.lost = 1;
        let comparison = Comparison::new().kind("ping", |_packet| true);
        let report = comparison.files(&[captured], &path).unwrap();
        assert_eq!(report.total().missing, 0);
        assert!(!report.is_exact());
        assert!(report.to_string().contains("not to be trusted"), "{report}");
    }

    #[test]
    fn traffic_runs_by_hand_inside_a_namespace() {
        if !can_run("traffic_runs_by_hand_inside_a_namespace") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().pods(1)).unwrap();
        let (a, b) = (lab.node(1).pod(1), lab.node(2).pod(1));
        let traffic = env!("CARGO_BIN_EXE_traffic");
        let address = b.socket(8080).to_string();
        let mut server = b.spawn([traffic, "serve", "http", &address]).unwrap();
        server.wait_for("serving", LIMIT).unwrap();
        let output = a.exec([traffic, "http", &address, "--requests", "7"]).unwrap();
        let sent: serde_json::Value = serde_json::from_str(&output).unwrap();
        assert_eq!(sent["requests"], 7);
        assert_eq!(sent["responses"], 7);
        server.stop(Signal::SIGTERM, LIMIT).unwrap();
    }
}
