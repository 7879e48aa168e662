//! What the sensor makes of data: section 2.

use super::*;

mod section_2_2_udp {
    use super::*;

    #[test]
    fn exact_messages_are_delivered_byte_for_byte() {
        let (written, totals) = outcome(&[plain(1), plain(2), plain(3)]);
        assert_eq!(written, frames(&[1, 2, 3]));
        assert_eq!((&totals["packets"], &totals["lost_packets"]), (&3.into(), &0.into()));
    }

    #[test]
    fn trailing_bytes_and_a_second_message_are_ignored() {
        let trailing = [&plain(1)[..], &[0xde, 0xad]].concat();
        let (written, _) = outcome(&[trailing, [plain(2), plain(3)].concat(), plain(4)]);
        assert_eq!(written, frames(&[1, 2, 4]));
    }

    #[test]
    fn a_caplen_below_the_payload_cuts_the_frame() {
        let mut datagram = plain(1);
        datagram[16..20].copy_from_slice(&60_u32.to_be_bytes());
        let (written, _) = outcome(&[datagram]);
        assert_eq!(written, [frame(1)[..60].to_vec()]);
    }

    #[test]
    fn malformed_datagrams_are_counted_by_reason_and_harm_nothing() {
        let changed = |at: usize, bytes: &[u8]| {
            let mut datagram = plain(7);
            datagram[at..at + bytes.len()].copy_from_slice(bytes);
            datagram
        };
        let lens = |caplen: u32, len: u32| [caplen.to_be_bytes(), len.to_be_bytes()].concat();
        let faults: [(&str, Vec<u8>); 12] = [
            ("short", vec![]),
            ("short", vec![0, 7, 0, 0, 0, 0, 0]),
            ("version", changed(0, &[1])),
            ("type", changed(1, &[9])),
            ("type", changed(1, &[0x87])),
            // plen: shorter than a packet header, more than what came, much more.
            ("payload_length", message(7, 0, &[0; 19])),
            ("payload_length", plain(7)[..100].to_vec()),
            ("payload_length", changed(4, &[0xff])),
            // caplen: one byte, and a header's length (CVE-2026-18238), beyond plen; much more.
            ("caplen", changed(16, &lens(108, 1500))),
            ("caplen", changed(16, &lens(127, 1500))),
            ("caplen", changed(16, &lens(u32::MAX, u32::MAX))),
            // Longer here than on the wire.
            ("wire_len", changed(16, &lens(107, 106))),
        ];
        let bad = faults.iter().map(|(_, datagram)| datagram.clone());
        let datagrams: Vec<_> = [plain(1)].into_iter().chain(bad).chain([plain(2)]).collect();
        let (written, totals) = outcome(&datagrams);
        assert_eq!(written, frames(&[1, 2]), "{totals}");
        let reasons = ["short", "version", "type", "payload_length", "caplen", "wire_len"];
        for reason in reasons {
            let expected = faults.iter().filter(|(label, _)| *label == reason).count();
            assert_eq!(totals["malformed"][reason], expected, "{reason}: {totals}");
        }
    }

    #[test]
    fn a_lost_datagram_is_counted_and_reordered_ones_are_delivered() {
        let (written, totals) = outcome(&[plain(1), plain(4), plain(3), plain(4), plain(6)]);
        assert_eq!(written, frames(&[1, 4, 3, 6]));
        for (what, expected) in
            [("lost_packets", 2), ("reordered", 1), ("duplicates", 1), ("packets", 4)]
        {
            assert_eq!(totals[what], expected, "{what}: {totals}");
        }
    }

    #[test]
    fn a_strangers_datagram_is_not_taken() {
        let daemon = Daemon::capturing(&[]);
        let stranger = UdpSocket::bind("127.0.0.2:0").expect("loopback is a /8");
        stranger.send_to(&plain(9), daemon.to).expect("it is there");
        daemon.sends(&plain(1));
        let (written, totals) = daemon.ends();
        assert_eq!(written, frames(&[1]));
        assert_eq!(totals["foreign"], 1, "{totals}");
    }

    #[test]
    fn the_largest_datagram_is_taken() {
        let frame = Wire::frame(1, 65_549);
        let (written, _) = outcome(&[packet(1, 5, 6, &frame, 65_479)]);
        assert_eq!(written, [frame[..65_479].to_vec()]);
    }
}

mod section_2_3_tcp {
    use super::*;

    /// Flags SERVEROPEN: the daemon connects to the port.
    fn server_open() -> (SensorRun, Peer, TcpStream) {
        let mut sensor = SensorRun::listening(&["--data", "tcp"]);
        let mut peer = sensor.meet();
        // No frame is too long for TCP: the whole snaplen.
        let over_tcp = STARTCAP.replace("0000ffc7", "00040000").replace("8006 PORT", "0004 PORT");
        for script in [AUTH, FINDALLIF, OPEN, &over_tcp] {
            peer.plays(script);
        }
        let data = TcpStream::connect(("127.0.0.1", peer.port())).expect("it listens");
        data.set_nodelay(true).expect("an option of every TCP socket");
        (sensor, peer, data)
    }

    fn ends(mut sensor: SensorRun, mut peer: Peer, data: TcpStream) -> (Vec<Vec<u8>>, Value) {
        sensor.interrupt();
        let (stats, rest) = END.split_once("D 00 8a").expect("ENDCAP's reply");
        peer.plays(stats);
        drop(data); // ENDCAP closes the data socket before it is answered.
        peer.plays(&format!("D 00 8a{rest}"));
        let summary = sensor.summary();
        (frames_of(&sensor.file()), summary["totals"].clone())
    }

    #[test]
    fn an_active_daemon_connects_to_the_port_and_its_messages_are_taken_in_any_pieces() {
        let (sensor, peer, mut data) = server_open();
        let bytes = [plain(1), plain(2), plain(3)].concat();
        for piece in bytes.chunks(7) {
            data.write_all(piece).expect("it reads");
        }
        let (written, totals) = ends(sensor, peer, data);
        assert_eq!(written, frames(&[1, 2, 3]));
        assert_eq!(totals["packets"], 3);
    }

    #[test]
    fn trailing_bytes_and_other_types_within_a_message_are_skipped() {
        let (sensor, peer, mut data) = server_open();
        let mut padded = plain(1);
        padded.extend([0xde; 5]);
        let plen = u32::try_from(padded.len() - 8).expect("a message");
        padded[4..8].copy_from_slice(&plen.to_be_bytes());
        let other = message(77, 0, &[7; 300]);
        data.write_all(&[padded, other, plain(2)].concat()).expect("it reads");
        let (written, _) = ends(sensor, peer, data);
        assert_eq!(written, frames(&[1, 2]));
    }

    #[test]
    fn data_that_cannot_be_followed_end_the_capture() {
        for (at, byte) in [(0, 1), (4, 0x7f)] {
            let (mut sensor, _peer, mut data) = server_open();
            let mut wrong = plain(2);
            wrong[at] = byte;
            data.write_all(&[plain(1), wrong].concat()).expect("it reads");
            sensor.wait_for("sends data that cannot be followed");
        }
    }

    #[test]
    fn a_data_connection_that_closes_ends_the_capture() {
        let (mut sensor, _peer, data) = server_open();
        drop(data);
        sensor.wait_for("closed its data connection");
    }

    #[test]
    fn to_a_passive_daemon_the_sensor_connects_itself() {
        let mut sensor = SensorRun::connecting(&["--data", "tcp"]);
        let mut peer = sensor.meet();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback");
        for script in [AUTH, FINDALLIF, OPEN] {
            peer.plays(script);
        }
        peer.set_port(listener.local_addr().expect("it is bound").port());
        peer.plays(
            "
            C 00 04 0000 0000001c 00040000 00000064 0000 0000 0001 0000 00000001 0006 00 00 00040000
            D 00 84 0000 00000008 00040000 PORT 0000
            ",
        );
        let (mut data, _from) = listener.accept().expect("the sensor connects");
        data.set_write_timeout(Some(LIMIT)).expect("an option of every socket");
        data.write_all(&[plain(1), plain(2)].concat()).expect("it reads");
        let (written, _) = ends(sensor, peer, data);
        assert_eq!(written, frames(&[1, 2]));
    }
}

mod section_2_2_passive_udp {
    use super::*;

    #[test]
    fn to_a_passive_daemon_the_sensor_tells_its_port() {
        let mut sensor = SensorRun::connecting(&[]);
        let mut peer = sensor.meet();
        for script in [AUTH, FINDALLIF, OPEN, &STARTCAP.replace("8006 PORT", "8002 PORT")] {
            peer.plays(script);
        }
        let data = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of loopback");
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, peer.port()));
        let daemon = Daemon { sensor, peer, data, to };
        daemon.sends(&plain(1));
        assert_eq!(daemon.ends().0, frames(&[1]));
    }
}

mod section_2_4_udpstr {
    use super::*;

    /// The stream of these frames, and where each packet header starts.
    fn stream(numbers: &[u8]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut starts) = (Vec::new(), Vec::new());
        for number in numbers {
            starts.push(bytes.len());
            bytes.extend(&plain(*number)[8..]);
        }
        (bytes, starts)
    }

    /// Cuts a stream at these places; each datagram says where its first header starts.
    fn cut(numbers: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let (bytes, starts) = stream(numbers);
        let mut from = 0;
        let mut datagrams = Vec::new();
        for (sequence, to) in (0_u32..).zip(cuts.iter().copied().chain([bytes.len()])) {
            let first = starts.iter().find(|start| (from..to).contains(*start));
            let first =
                first.map_or(0xffff, |start| u16::try_from(8 + start - from).expect("16 bits"));
            let mut datagram = vec![0, 110];
            datagram.extend(first.to_be_bytes());
            datagram.extend(sequence.to_be_bytes());
            datagram.extend(&bytes[from..to]);
            datagrams.push(datagram);
            from = to;
        }
        datagrams
    }

    #[test]
    fn packets_are_put_together_across_datagrams() {
        // Packets of 121, 122 and 123 bytes: cut in a frame, twice in the next, at an edge.
        let datagrams = cut(&[1, 2, 3], &[100, 150, 200, 243]);
        let (written, totals) = outcome(&datagrams);
        assert_eq!(written, frames(&[1, 2, 3]), "{totals}");
        assert_eq!(totals["gaps"], 0);
    }

    #[test]
    fn a_lost_datagram_costs_only_the_packets_that_touch_it() {
        let mut datagrams = cut(&[1, 2, 3, 4], &[121, 200, 270]);
        datagrams.remove(1);
        let (written, totals) = outcome(&datagrams);
        assert_eq!(written, frames(&[1, 3, 4]), "{totals}");
        assert_eq!((&totals["lost_datagrams"], &totals["lost_packets"]), (&1.into(), &1.into()));
    }

    #[test]
    fn swapped_and_doubled_datagrams_are_put_in_order() {
        let mut datagrams = cut(&[1, 2, 3, 4], &[121, 200, 270]);
        datagrams.swap(1, 2);
        datagrams.push(datagrams[0].clone());
        let (written, totals) = outcome(&datagrams);
        assert_eq!(written, frames(&[1, 2, 3, 4]), "{totals}");
        assert_eq!((&totals["reordered"], &totals["duplicates"]), (&1.into(), &1.into()));
    }

    #[test]
    fn malformed_datagrams_are_counted_and_harm_nothing() {
        let mut datagrams = cut(&[1, 2], &[121]);
        let numbered =
            |head: [u8; 4], number: u8, body: &[u8]| [&head[..], &[0, 0, 0, number], body].concat();
        let ((third, _), (fourth, _)) = (stream(&[3]), stream(&[4]));
        datagrams.extend([
            vec![0, 110, 0],
            numbered([1, 110, 0, 8], 2, &third),
            // A byte that continues nothing; the header behind it can be used.
            numbered([0, 110, 0, 9], 2, &[&[0xff], &third[..]].concat()),
            // The first header beyond the datagram's end, and one cut by it.
            numbered([0, 110, 0xff, 0], 3, &third),
            numbered([0, 110, 0, 8], 4, &third[..19]),
            numbered([0, 110, 0, 8], 5, &fourth),
        ]);
        let (written, totals) = outcome(&datagrams);
        assert_eq!(written, frames(&[1, 2, 3, 4]), "{totals}");
        for (reason, count) in
            [("short", 1), ("version", 1), ("continuation", 1), ("first_header", 2)]
        {
            assert_eq!(totals["malformed"][reason], count, "{reason}: {totals}");
        }
    }

    #[test]
    fn both_forms_may_be_mixed() {
        let datagrams = [cut(&[1], &[]), vec![plain(2)]].concat();
        assert_eq!(outcome(&datagrams).0, frames(&[1, 2]));
    }
}
