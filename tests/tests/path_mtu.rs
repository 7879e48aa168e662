//! Datagrams on paths that take less than their first link: none becomes a fragment, and none is
//! lost for its size.
//!
//! ```text
//! node eth0 (session) --- 9000 --- vpc, a router --- 1400 --- eth0 sensor (socket, tcpdump)
//! ```

#[cfg(test)]
mod tests {
    use engine::frame::{Direction, Frame, Offload, Point};
    use engine::rpcap::Sampling;
    use engine::session::{Encoding, Packer, Session, SessionSpec};
    use engine::stats::SessionDrop;
    use engine::stats::histogram::WorkerHistograms;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};
    use tests::compare::read;
    use tests::lab::{Host, Lab, LabSpec, can_run};
    use tests::scenario::TAP_FLAGS;
    use tests::tap::{Sensor, Tap, settle_accounts};
    use tests::traffic::{Bulk, Capture, Serve, Server, Side};

    /// Generous: a machine may be busy.
    const LIMIT: Duration = Duration::from_secs(20);

    /// A capture towards the sensor host, with this test as its client.
    struct Bench {
        session: Arc<Session>,
        packer: Packer,
        histograms: WorkerHistograms,
        client: UdpSocket,
        offered: usize,
        /// Stream bytes that arrived; whether a datagram was missed.
        stream: Vec<u8>,
        sequence: u32,
        has_gap: bool,
        longest: usize,
    }

    impl Bench {
        fn new(lab: &Lab, is_v6: bool, change: impl FnOnce(&mut SessionSpec) + Send) -> Self {
            let any: IpAddr = match is_v6 {
                true => Ipv6Addr::UNSPECIFIED.into(),
                false => Ipv4Addr::UNSPECIFIED.into(),
            };
            let client = lab.sensor().enter(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
            client.set_read_timeout(Some(LIMIT)).unwrap();
            let port = client.local_addr().unwrap().port();
            let peer: SocketAddr = match is_v6 {
                true => lab.sensor().socket_v6(port).unwrap(),
                false => lab.sensor().socket(port),
            };
            let mut spec = SessionSpec {
                sensor: 0,
                interface: None,
                peer,
                encoding: Encoding::Stream,
                snaplen: 262_144,
                datagram_bytes: None,
                takes_large_datagrams: true,
                longest_wait_ns: u64::MAX,
                filter: None,
                sampling: Sampling { method: 0, value: 0 },
            };
            change(&mut spec);
            let session = lab.node(1).enter(|| Session::open(spec)).unwrap().unwrap();
            Self {
                packer: Packer::new(Arc::clone(&session)),
                session,
                histograms: WorkerHistograms::new(),
                client,
                offered: 0,
                stream: Vec::new(),
                sequence: 0,
                has_gap: false,
                longest: 0,
            }
        }

        /// Frame `n`: told apart by every byte.
        fn frame(n: usize) -> Vec<u8> {
            (0..200 + n * 97 % 1300).map(|at| u8::try_from((at + n) & 255).unwrap()).collect()
        }

        /// Offers `count` frames, and hands them on unless a run is full before.
        fn offer(&mut self, count: usize) {
            for n in self.offered..self.offered + count {
                let data = Self::frame(n);
                let frame = Frame {
                    data: &data,
                    wire_len: u32::try_from(data.len()).unwrap(),
                    timestamp_ns: 1_700_000_000_000_000_000,
                    point: Point { ifindex: 1, direction: Direction::In },
                    vlan: None,
                    offload: Offload::default(),
                };
                self.packer.offer(&frame, 0, &mut self.histograms);
            }
            self.offered += count;
            self.packer.publish();
        }

        fn flush(&mut self) {
            self.packer.flush(0, &mut self.histograms);
        }

        /// Reads one datagram of the stream form.
        fn read(&mut self) {
            let mut buffer = vec![0; 65_536];
            let len = self.client.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..2], [0, 110]);
            let sequence = u32::from_be_bytes(buffer[4..8].try_into().unwrap());
            self.has_gap |= sequence != self.sequence;
            self.sequence = sequence + 1;
            self.longest = self.longest.max(len);
            self.stream.extend_from_slice(&buffer[8..len]);
        }

        /// Reads until every frame that was offered is here, once and whole.
        fn receive_all(&mut self) {
            let total: usize = (0..self.offered).map(|n| 20 + Self::frame(n).len()).sum();
            while self.stream.len() < total {
                self.read();
            }
            assert!(!self.has_gap);
            let mut at = 0;
            for n in 0..self.offered {
                let data = Self::frame(n);
                let number = u32::from_be_bytes(self.stream[at + 16..at + 20].try_into().unwrap());
                assert_eq!(usize::try_from(number).unwrap(), n + 1);
                assert_eq!(self.stream[at + 20..at + 20 + data.len()], data);
                at += 20 + data.len();
            }
            assert_eq!(at, self.stream.len(), "nothing twice");
        }

        fn count(&self, counter: impl Fn(&engine::stats::SessionStats) -> &AtomicU64) -> u64 {
            counter(&self.session.stats).load(Ordering::Relaxed)
        }

        fn size(&self) -> u64 {
            self.count(|stats| &stats.datagram_size)
        }

        /// Follows the path until datagrams have this size.
        fn until_size(&self, size: u64) {
            let deadline = Instant::now() + LIMIT;
            while self.size() != size {
                assert!(Instant::now() < deadline, "{}, not {size}", self.size());
                self.session.pump();
                std::thread::sleep(Duration::from_millis(1));
            }
        }

        fn assert_identity(&self) {
            let dropped: u64 =
                SessionDrop::ALL.iter().map(|reason| self.session.stats.dropped(*reason)).sum();
            assert_eq!(self.count(|s| &s.offered), self.count(|s| &s.sent) + dropped);
        }
    }

    /// The router's link to the sensor takes `mtu` bytes.
    fn narrow(lab: &Lab, mtu: u32) {
        let mtu = mtu.to_string();
        lab.vpc().exec(["ip", "link", "set", "sensor", "mtu", &mtu]).unwrap();
        lab.sensor().exec(["ip", "link", "set", "eth0", "mtu", &mtu]).unwrap();
    }

    /// Everything from the node that comes in at the sensor.
    fn watch(lab: &Lab, directory: &Path) -> Capture {
        let path = directory.join("arrived.pcap");
        let filter = "ip proto 17 or ip6 proto 17 or ip6 proto 44";
        Capture::start(lab.sensor(), "eth0", Side::Received, filter, path).unwrap()
    }

    /// How many packets came, and how many were fragments.
    fn arrived(capture: Capture) -> (usize, usize) {
        let captured = capture.stop().unwrap();
        assert_eq!(captured.lost, 0);
        let packets = read(&captured.path).unwrap();
        (packets.len(), packets.iter().filter(|packet| packet.is_fragment()).count())
    }

    #[test]
    fn a_router_with_a_smaller_link_costs_no_frame_and_makes_no_fragment() {
        if !can_run("a router with a smaller link") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        for (link, takes_large_datagrams) in [(9000, true), (1500, true), (1500, false)] {
            let lab = Lab::up(LabSpec::unique().nodes(1).pods(0).ipv6().mtu(link)).unwrap();
            narrow(&lab, 1400);
            for (is_v6, size) in [(false, 1372), (true, 1352)] {
                let capture = watch(&lab, directory.path());
                let mut bench = Bench::new(&lab, is_v6, |spec| {
                    spec.takes_large_datagrams = takes_large_datagrams;
                });
                // From the first moment on, while the size is being found.
                bench.offer(30);
                bench.flush();
                bench.receive_all();
                bench.until_size(size);
                for _ in 0..5 {
                    bench.offer(30);
                    bench.flush();
                    bench.receive_all();
                }
                assert_eq!(bench.longest, usize::try_from(size).unwrap());
                assert!(bench.count(|stats| &stats.size_lowered) >= 1, "counted");
                assert_eq!(bench.count(|stats| &stats.sent), 180);
                bench.assert_identity();
                let (packets, fragments) = arrived(capture);
                assert!(packets > 100);
                assert_eq!(fragments, 0);
            }
        }
    }

    #[test]
    fn large_datagrams_are_used_where_the_whole_path_takes_them() {
        if !can_run("a path for large datagrams") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(0).ipv6().mtu(9000)).unwrap();
        for (is_v6, size) in [(false, 8972), (true, 8952)] {
            let mut bench = Bench::new(&lab, is_v6, |_spec| {});
            bench.until_size(size);
            bench.offer(40);
            bench.flush();
            bench.receive_all();
            assert_eq!(bench.longest, usize::try_from(size).unwrap());
            assert_eq!(bench.count(|stats| &stats.size_lowered), 0);
            let bench = Bench::new(&lab, is_v6, |spec| spec.takes_large_datagrams = false);
            bench.until_size(1472);
            let bench = Bench::new(&lab, is_v6, |spec| spec.datagram_bytes = Some(4000));
            bench.until_size(4000);
        }
    }

    #[test]
    fn a_host_that_answers_no_probe_gets_no_large_datagrams_unless_told_to() {
        if !can_run("a host that answers no probe") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(0).mtu(9000)).unwrap();
        // The probes vanish, as in front of many firewalls.
        lab.sensor()
            .exec(["iptables", "-I", "INPUT", "-p", "udp", "--dport", "33434", "-j", "DROP"])
            .unwrap();
        let bench = Bench::new(&lab, false, |_spec| {});
        assert_eq!(bench.size(), 1252, "what passes everywhere, until it is known");
        bench.until_size(1472);
        let bench = Bench::new(&lab, false, |spec| spec.datagram_bytes = Some(8000));
        bench.until_size(8000);
    }

    #[test]
    fn frames_packed_for_a_larger_path_are_cut_anew_and_none_is_lost() {
        if !can_run("a route that shrinks") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(0).ipv6().mtu(9000)).unwrap();
        for (is_v6, size) in [(false, 8972), (true, 8952)] {
            let mut bench = Bench::new(&lab, is_v6, |_spec| {});
            bench.until_size(size);
            let capture = watch(&lab, directory.path());
            bench.offer(40);
            set_route_mtu(lab.node(1), is_v6, 1300);
            bench.flush();
            bench.receive_all();
            let smaller = if is_v6 { 1252 } else { 1272 };
            assert_eq!(bench.longest, smaller, "the kernel refused the rest");
            assert_eq!(bench.size(), smaller as u64);
            assert_eq!(bench.count(|stats| &stats.size_lowered), 1);
            assert_eq!(bench.count(|stats| &stats.sent), 40);
            bench.assert_identity();
            // And back, when the route allows it again.
            set_route_mtu(lab.node(1), is_v6, 9000);
            bench.until_size(size);
            bench.offer(40);
            bench.flush();
            bench.receive_all();
            assert_eq!(arrived(capture).1, 0);
        }
    }

    #[test]
    fn a_link_that_shrinks_later_lowers_the_size() {
        if !can_run("a link that shrinks") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(0).ipv6().mtu(9000)).unwrap();
        let capture = watch(&lab, directory.path());
        for (is_v6, size) in [(false, 1372), (true, 1352)] {
            narrow(&lab, 9000);
            let mut bench = Bench::new(&lab, is_v6, |_spec| {});
            bench.until_size(if is_v6 { 8952 } else { 8972 });
            narrow(&lab, 1400);
            // What is on its way when the link shrinks is lost there, as on any bad link, until the
            // router has said so.
            let deadline = Instant::now() + LIMIT;
            while bench.size() != size {
                assert!(Instant::now() < deadline, "still {}", bench.size());
                bench.offer(10);
                bench.flush();
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(bench.count(|stats| &stats.size_lowered) >= 1);
            assert_eq!(bench.count(|stats| &stats.sent), bench.offered as u64);
            bench.assert_identity();
        }
        assert_eq!(arrived(capture).1, 0);
    }

    #[test]
    fn plain_datagrams_beyond_the_path_arrive_as_fragments_and_are_counted() {
        if !can_run("plain datagrams beyond the path") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(0).ipv6().mtu(1500)).unwrap();
        for is_v6 in [false, true] {
            for (fixed, over) in [(None, true), (Some(1400), false)] {
                let capture = watch(&lab, directory.path());
                let mut bench = Bench::new(&lab, is_v6, |spec| {
                    spec.encoding = Encoding::Plain;
                    spec.datagram_bytes = fixed;
                });
                bench.offer(40);
                bench.flush();
                let mut buffer = [0; 65_536];
                for n in 0..40 {
                    let len = bench.client.recv(&mut buffer).unwrap();
                    let data = Bench::frame(n);
                    let caplen = data.len().min(fixed.map_or(usize::MAX, |bytes| bytes - 28));
                    assert_eq!(buffer[28..len], data[..caplen]);
                }
                let headers = if is_v6 { 48 } else { 28 };
                let beyond = |most: usize| {
                    (0..40).filter(|n| Bench::frame(*n).len() + 28 > most).count() as u64
                };
                let fragmented = if over { beyond(1500 - headers) } else { 0 };
                assert_eq!(bench.count(|stats| &stats.datagrams_over_mtu), fragmented);
                let cut = fixed.map_or(0, beyond);
                assert_eq!(bench.count(|stats| &stats.frames_cut), cut);
                bench.assert_identity();
                assert_eq!(arrived(capture).1 as u64, 2 * fragmented);
            }
        }
    }

    #[test]
    fn a_tap_finds_its_sensors_path_and_says_so() {
        if !can_run("a tap behind a router with a smaller link") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(2).mtu(1500)).unwrap();
        narrow(&lab, 1400);
        let sensor = Sensor::start(lab.sensor(), directory.path().join("s.pcapng"), &[]).unwrap();
        let capture = watch(&lab, directory.path());
        let tap = Tap::start(lab.node(1), lab.sensor(), &TAP_FLAGS).unwrap();
        let server = lab.node(1).pod(1);
        let _server = Server::start(server, Serve::Bulk, 7000).unwrap();
        Bulk::new(server.socket(7000), 2_000_000).run_on(lab.node(1).pod(2)).unwrap();
        let deadline = Instant::now() + LIMIT;
        while tap.metric("podtap_sensor_datagram_bytes", "") != Some(1372.0) {
            assert!(Instant::now() < deadline, "{:?}", tap.get("/metrics"));
            std::thread::sleep(Duration::from_millis(10));
        }
        let lowered = tap.metric("podtap_session_datagram_size_lowered_total", "").unwrap();
        assert!(lowered >= 1.0);
        Bulk::new(server.socket(7000), 2_000_000).run_on(lab.node(1).pod(2)).unwrap();
        let account = tap.stop().unwrap();
        let summary = sensor.stop().unwrap();
        settle_accounts(&[account], &summary).unwrap();
        let (lost, at_socket) =
            (&summary["totals"]["lost_datagrams"], &summary["totals"]["socket_drops"]);
        assert_eq!(lost, at_socket, "what is lost, a busy machine's socket lost: {summary}");
        let (packets, fragments) = arrived(capture);
        assert!(packets > 1000);
        assert_eq!(fragments, 0);
    }

    /// As `ip route` says it: the kernel's own word, with no router to ask.
    fn set_route_mtu(node: &Host, is_v6: bool, mtu: u32) {
        let family = if is_v6 { "-6" } else { "-4" };
        let routes = node.exec(["ip", family, "route", "show", "default"]).unwrap();
        let words = routes.split_whitespace();
        let kept: Vec<&str> = words.take_while(|word| !matches!(*word, "metric" | "mtu")).collect();
        let mtu = mtu.to_string();
        let mut command = vec!["ip", family, "route", "replace"];
        command.extend(kept);
        if is_v6 {
            command.extend(["metric", "1024"]);
        }
        command.extend(["mtu", &mtu]);
        node.exec(command).unwrap();
    }
}
