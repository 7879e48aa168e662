//! The datagrams themselves: section 2, and a replay's.

use super::*;

mod section_2_1_packet {
    use super::*;

    fn now() -> u32 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        u32::try_from(now.as_secs()).expect("before 2106")
    }

    #[test]
    fn each_frame_is_one_message_with_its_time_and_its_bytes() {
        with_plain_tap("PACKET", |sensor, wire| {
            sensor.peer.plays(STARTCAP);
            let before = now();
            // A runt, the smallest and the largest frame of Ethernet, and odd ones.
            let frames = [15, 59, 60, 61, 333, 1513, 1514].map(|len| Wire::frame(7, len));
            send(wire, &frames);
            for (number, frame) in (1..).zip(&frames) {
                let packet = &sensor.packets(1, SNAPLEN)[0];
                is_whole(packet, frame);
                assert_eq!(packet.number, number, "npkt");
                assert!((before..=now()).contains(&packet.seconds), "{packet:?}");
            }
        });
    }

    #[test]
    fn packets_over_udp_with_ip_headers_arrive_unchanged() {
        with_plain_tap("UDP", |sensor, wire| {
            sensor.peer.plays(STARTCAP);
            let mut frame = Wire::frame(0, 60);
            let ip = [0x45, 0, 0, 46, 0, 1, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
            frame.splice(12..34, [8, 0].into_iter().chain(ip));
            wire.send(&frame);
            sensor.gets(1, &[frame]);
        });
    }
}

mod section_2_2_udp {
    use super::*;

    #[test]
    fn a_frame_larger_than_a_datagram_is_cut_and_keeps_its_length() {
        in_namespace("a jumbo frame", |wire| {
            Wire::ip("link set v0 mtu 65535\nlink set v1 mtu 65535");
            wire.wait_until_it_carries();
            let mut tap = Tap::run(&PLAIN);
            let mut sensor = Sensor::meet(&mut tap);
            sensor.peer.plays(STARTCAP);
            let frame = Wire::frame(1, 65_549);
            wire.send(&frame);
            let packet = &sensor.packets(1, SNAPLEN)[0];
            assert_eq!(packet.len, 65_549);
            assert_eq!(packet.data, frame[..65_479]);
        });
    }

    #[test]
    fn a_receiver_that_was_gone_is_served_again() {
        with_plain_tap("port unreachable", |sensor, wire| {
            sensor.peer.plays(STARTCAP);
            let gone = std::mem::replace(&mut sensor.socket, datagrams().0);
            let address = gone.local_addr().expect("it is bound");
            drop(gone);
            // Each may be answered by ICMP, port unreachable.
            for _ in 0..20 {
                send(wire, &frames(1..=1));
            }
            while sensor.stats()[0] < 20 {}
            sensor.socket = UdpSocket::bind(address).expect("nobody else has it");
            sensor.socket.set_read_timeout(Some(LIMIT)).expect("an option of every socket");
            // The answer to the last datagram may cost the next one; not the one after it.
            send(wire, &frames(2..=4));
            let packet = &sensor.packets(1, SNAPLEN)[0];
            assert!(frames(1..=4).contains(&packet.data), "{packet:?}");
            sensor.peer.plays(ENDCAP);
        });
    }

    #[test]
    fn two_sensors_have_captures_of_their_own() {
        in_namespace("two sensors", |wire| {
            wire.wait_until_it_carries();
            let mut tap = Tap::run_towards(2, &PLAIN);
            let (mut one, mut other) = (Sensor::meet(&mut tap), Sensor::meet(&mut tap));
            one.peer.plays(STARTCAP);
            send(wire, &frames(1..=2));
            one.gets(1, &frames(1..=2));
            other.peer.plays(STARTCAP);
            send(wire, &frames(3..=4));
            one.gets(3, &frames(3..=4));
            other.gets(1, &frames(3..=4));
            one.peer.plays(ENDCAP);
            send(wire, &frames(5..=5));
            other.gets(3, &frames(5..=5));
        });
    }
}

mod section_2_4_udpstr {
    use super::*;

    /// Sends the frames and takes their datagrams; all must arrive whole, in order.
    fn streams(sensor: &mut Sensor, wire: &Wire, mtu: usize, frames: &[Vec<u8>]) {
        sensor.peer.plays(STARTCAP);
        let mut decoder = StreamDecoder::new(mtu);
        let mut packets = Vec::new();
        send(wire, frames);
        while packets.len() < frames.len() {
            packets.extend(decoder.take(&sensor.datagram()));
        }
        for ((number, frame), packet) in (1..).zip(frames).zip(&packets) {
            assert_eq!(packet.number, number, "npkt");
            is_whole(packet, frame);
        }
        sensor.peer.plays(ENDCAP);
        assert_eq!(decoder.unfinished(), 0);
    }

    #[test]
    fn frames_share_datagrams_and_are_split_at_their_ends() {
        with_tap("UDPSTR", &[], |sensor, wire| {
            let lens = (60..1515).step_by(97).chain([1514; 5]).chain([60; 40]);
            let frames: Vec<_> = lens.map(|len| Wire::frame(5, len)).collect();
            // Twice: numbers begin anew with each STARTCAP.
            streams(sensor, wire, 1472, &frames);
            streams(sensor, wire, 1472, &frames);
        });
    }

    #[test]
    fn a_small_datagram_size_is_kept() {
        with_tap("UDPSTR, 200 bytes", &["--datagram-bytes", "200"], |sensor, wire| {
            let frames: Vec<_> = [1514, 60, 61, 150, 171, 172, 173, 1000, 64]
                .map(|len| Wire::frame(5, len))
                .to_vec();
            streams(sensor, wire, 200, &frames);
        });
    }

    #[test]
    fn a_frame_alone_does_not_wait_for_the_next() {
        with_tap("UDPSTR, flush", &[], |sensor, wire| {
            sensor.peer.plays(STARTCAP);
            let mut decoder = StreamDecoder::new(1472);
            for frame in frames(1..=5) {
                wire.send(&frame);
                let packets = decoder.take(&sensor.datagram());
                assert_eq!(packets.len(), 1);
                is_whole(&packets[0], &frame);
            }
        });
    }
}

mod replay {
    use super::*;

    #[test]
    fn a_files_frames_arrive_byte_for_byte_in_both_forms() {
        let frames: Vec<_> = (60..1514).step_by(111).map(|len| Wire::frame(3, len)).collect();
        for form in ["plain", "stream"] {
            let mut tap = Tap::replay(&frames, &["--encoding", form]);
            let mut sensor = Sensor::meet(&mut tap);
            sensor.peer.plays(STARTCAP);
            let mut decoder = StreamDecoder::new(1472);
            let mut packets = Vec::new();
            while packets.len() < frames.len() {
                let datagram = sensor.datagram();
                match form {
                    "plain" => packets.push(read_plain(&datagram, SNAPLEN)),
                    _ => packets.extend(decoder.take(&datagram)),
                }
            }
            for ((number, frame), packet) in (1..).zip(&frames).zip(&packets) {
                is_whole(packet, frame);
                let second = 1_699_999_999 + number;
                let expected = (number, second, 5);
                assert_eq!((packet.number, packet.seconds, packet.micros), expected);
            }
            assert!(tap.wait().success(), "{}", tap.log());
        }
    }
}
