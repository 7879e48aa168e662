//! Conversations without a capture, with every kind of tap: `podtap run` and `podtap replay`.

use tests::lab::can_run;
use tests::rpcap_spec::{Peer, Tap, Wire, filter, in_namespace, kind, message, read_interfaces};

mod requests;

/// Has the same conversation with each tap.
fn with_every_tap(conversation: impl Fn(&mut Peer) + Send + Sync) {
    conversation(&mut Tap::replay(&[Wire::frame(1, 60)], &[]).accept());
    if can_run("a conversation with podtap run") {
        in_namespace("a conversation", |_wire| conversation(&mut Tap::run(&[]).accept()));
    }
}

fn every_tap_plays(script: &str) {
    with_every_tap(|peer| peer.plays(script));
}

/// The same, authenticated first.
fn every_authenticated_tap_plays(script: &str) {
    with_every_tap(|peer| {
        peer.plays(AUTH);
        peer.plays(script);
    });
}

const AUTH: &str = "
    C 00 08 0000 00000008 0000 0000 0000 0000
    D 00 88 0000 00000008 00 00 0000 MAGIC
";

mod section_1_1_header {
    use super::*;

    #[test]
    fn several_messages_in_one_segment_are_answered_in_order() {
        every_tap_plays(
            "
            C 00 08 0000 00000008 0000 0000 0000 0000
            C 00 09 0000 00000000
            C 00 0a 0000 00000000
            C 00 09 0000 00000000
            D 00 88 0000 00000008 00 00 0000 MAGIC
            D 00 89 0000 00000010 00*16
            D error 13
            D 00 89 0000 00000010 00*16
            ",
        );
    }

    #[test]
    fn a_message_may_come_byte_by_byte() {
        with_every_tap(|peer| {
            peer.cut_into(1);
            peer.plays(AUTH);
            peer.plays(
                "
                C 00 03 0000 00000007 \"any-eth\"
                D 00 83 0000 00000008 00000001 00000000
                C 00 0b 0000 00000008 01 00 0000 00000005
                D 00 8b 0000 00000000
                ",
            );
        });
    }

    #[test]
    fn a_trailing_payload_is_discarded() {
        every_tap_plays(
            "
            C 00 08 0000 0000000c 0000 0000 0000 0000 deadbeef
            D 00 88 0000 00000008 00 00 0000 MAGIC
            C 00 09 0000 00000004 deadbeef
            D 00 89 0000 00000010 00*16
            C 00 0b 0000 0000000b 00 00 0000 00000000 deadbe
            D 00 8b 0000 00000000
            C 00 0a 0000 000007d0 ff*2000
            D error 13
            C 00 09 0000 00000000
            D 00 89 0000 00000010 00*16
            ",
        );
    }

    #[test]
    fn a_value_where_none_belongs_is_ignored() {
        every_authenticated_tap_plays(
            "
            C 00 09 1234 00000000
            D 00 89 0000 00000010 00*16
            ",
        );
    }

    #[test]
    fn an_unknown_type_is_refused_and_its_payload_discarded() {
        every_authenticated_tap_plays(
            "
            C 00 00 0000 00000003 010203
            D error 16
            C 00 4d 0000 00000400 4d*1024
            D error 16
            C 00 ff 0000 00000000
            D error 16
            C 00 09 0000 00000000
            D 00 89 0000 00000010 00*16
            ",
        );
    }

    #[test]
    fn replies_and_data_types_are_no_requests() {
        every_authenticated_tap_plays(
            "
            C 00 88 0000 00000008 00 00 0000 MAGIC
            D error 16
            C 00 82 0000 00000000
            D error 16
            C 00 07 0000 00000014 00*20
            D error 16
            C 00 6e 0008 00000000
            D error 16
            C 00 09 0000 00000000
            D 00 89 0000 00000010 00*16
            ",
        );
    }
}

mod section_1_3_auth {
    use super::*;

    #[test]
    fn null_auth_is_answered_with_versions_and_byte_order() {
        every_tap_plays(AUTH);
    }

    #[test]
    fn another_version_in_auth_is_answered_in_that_version_and_ends_it() {
        every_tap_plays(
            "
            C 03 08 0000 00000008 0000 0000 0000 0000
            D 03 01 0011 0000001d \"RPCAP version number mismatch\"
            D end
            ",
        );
    }

    #[test]
    fn another_version_later_is_answered_in_that_version_and_ends_it() {
        every_authenticated_tap_plays(
            "
            C 01 09 0000 00000000
            D 01 01 0011 0000001d \"RPCAP version number mismatch\"
            D end
            ",
        );
    }

    #[test]
    fn all_but_auth_is_refused_before_auth_and_the_connection_is_kept() {
        every_tap_plays(
            "
            C 00 02 0000 00000000
            D error 16
            C 00 03 0000 00000007 \"any-eth\"
            D error 16
            C 00 04 0000 0000001c 0000ffff 000000fa 0002 1388 0001 0000 00000001 0006 00 00 00040000
            D error 16
            C 00 05 0000 00000010 0001 0000 00000001 0006 00 00 00040000
            D error 16
            C 00 09 0000 00000000
            D error 16
            C 00 0a 0000 00000000
            D error 16
            C 00 0b 0000 00000008 01 00 0000 00000005
            D error 16
            C 00 4d 0000 00000010 4d*16
            D error 16
            C 00 08 0000 00000008 0000 0000 0000 0000
            D 00 88 0000 00000008 00 00 0000 MAGIC
            ",
        );
    }

    #[test]
    fn a_second_auth_is_refused_and_ends_it() {
        every_authenticated_tap_plays(
            "
            C 00 08 0000 00000008 0000 0000 0000 0000
            D error 16
            D end
            ",
        );
    }

    #[test]
    fn an_unknown_kind_of_auth_is_refused_and_may_be_corrected() {
        every_tap_plays(
            "
            C 00 08 0000 00000008 0002 0000 0000 0000
            D error 20
            C 00 08 0000 00000008 0000 0000 0000 0000
            D 00 88 0000 00000008 00 00 0000 MAGIC
            ",
        );
    }

    #[test]
    fn a_short_auth_is_refused_and_may_be_corrected() {
        every_tap_plays(
            "
            C 00 08 0000 00000000
            D error 3
            C 00 08 0000 00000007 0000 0000 0000 00
            D error 3
            C 00 08 0000 0000000a 0001 0000 0004 0004 \"us\"
            D error 3
            C 00 08 0000 00000008 0000 0000 0000 0000
            D 00 88 0000 00000008 00 00 0000 MAGIC
            ",
        );
    }

    #[test]
    fn a_password_where_none_is_configured_is_refused_and_null_may_follow() {
        every_tap_plays(
            "
            C 00 08 0000 00000010 0001 0000 0004 0004 \"user\" \"pass\"
            D error 18
            C 00 08 0000 00000008 0000 0000 0000 0000
            D 00 88 0000 00000008 00 00 0000 MAGIC
            ",
        );
    }

    #[test]
    fn an_auth_with_the_longest_strings_is_read_whole() {
        with_every_tap(|peer| {
            let mut payload = vec![0, 1, 0, 0, 0xff, 0xff, 0xff, 0xff];
            payload.resize(8 + 2 * 65_535, b'x');
            peer.send(&message(8, 0, &payload));
            peer.plays("D error 18");
            payload.push(b'x');
            peer.send(&message(8, 0, &payload));
            peer.plays("D error 3");
            peer.plays(AUTH);
        });
    }
}

mod section_1_4_findallif {
    use super::*;

    #[test]
    fn the_list_is_well_formed_and_any_eth_is_first_and_preselected() {
        with_every_tap(|peer| {
            peer.plays(AUTH);
            // A payload is discarded.
            for request in ["C 00 02 0000 00000000", "C 00 02 0000 00000003 010203"] {
                peer.plays(request);
                let (version, reply, count, payload) = peer.message("FINDALLIF's reply");
                assert_eq!((version, reply), (0, kind::FINDALLIF | kind::REPLY));
                let interfaces = read_interfaces(count, &payload);
                assert_eq!(interfaces[0].name, "any-eth");
                assert!(interfaces[0].description.ends_with(" ;preselected"), "{interfaces:?}");
                assert_eq!(interfaces[0].flags, 2 | 4 | 0x10, "up, running, connected");
                assert!(interfaces[0].addresses.is_empty());
            }
        });
    }

    #[test]
    fn an_interface_has_its_flags_and_addresses_in_slots_of_128_bytes() {
        in_namespace("an interface list", |wire| {
            wire.wait_until_it_carries();
            std::fs::write("/proc/sys/net/ipv6/conf/v1/disable_ipv6", "0").expect("IPv6");
            Wire::ip("addr add fd07::1/64 dev v1 nodad");
            let mut tap = Tap::run(&[]);
            let mut peer = tap.accept();
            peer.plays(AUTH);
            peer.plays("C 00 02 0000 00000000");
            let (.., count, payload) = peer.message("FINDALLIF's reply");
            let interfaces = read_interfaces(count, &payload);
            let v1 = interfaces.iter().find(|interface| interface.name == "v1").expect("v1");
            assert_eq!(v1.flags, 2 | 4 | 0x10, "up, running, connected");
            let slot = |bytes: &[u8]| {
                let mut slot = [0; 128];
                slot[..bytes.len()].copy_from_slice(bytes);
                slot
            };
            let v4 = v1.addresses.iter().find(|slots| slots[0][1] == 2).expect("IPv4");
            assert_eq!(v4[0], slot(&[0, 2, 0, 0, 10, 7, 0, 1]));
            assert_eq!(v4[1], slot(&[0, 2, 0, 0, 255, 255, 255, 0]));
            assert_eq!(v4[3], slot(&[]), "no point-to-point peer");
            let mut fd07 = vec![0, 23, 0, 0, 0, 0, 0, 0, 0xfd, 7];
            fd07.resize(23, 0);
            fd07.push(1);
            let v6 = v1.addresses.iter().find(|slots| slots[0] == slot(&fd07)).expect("fd07::1");
            assert_eq!(v6[1], slot(&[]), "a netmask here ends some clients");
        });
    }

    #[test]
    fn a_list_beyond_64000_bytes_is_sent() {
        in_namespace("many interfaces", |_wire| {
            // 128 addresses of 512 bytes each.
            let lines: Vec<String> =
                (1..=130).map(|n| format!("addr add 10.8.{n}.1/32 dev v1")).collect();
            Wire::ip(&lines.join("\n"));
            let mut tap = Tap::run(&[]);
            let mut peer = tap.accept();
            peer.plays(AUTH);
            peer.plays("C 00 02 0000 00000000");
            let (version, reply, count, payload) = peer.message("FINDALLIF's reply");
            assert_eq!((version, reply), (0, kind::FINDALLIF | kind::REPLY));
            assert!(payload.len() > 64_000, "{} bytes", payload.len());
            let interfaces = read_interfaces(count, &payload);
            let is_v4 = |slots: &&[[u8; 128]; 4]| slots[0][..2] == [0, 2];
            assert_eq!(interfaces[1].addresses.iter().filter(is_v4).count(), 131);
        });
    }
}

mod section_1_5_open {
    use super::*;

    #[test]
    fn any_eth_opens_as_ethernet() {
        every_authenticated_tap_plays(
            "
            C 00 03 0000 00000007 \"any-eth\"
            D 00 83 0000 00000008 00000001 00000000
            ",
        );
    }

    #[test]
    fn a_real_interface_opens_as_ethernet() {
        in_namespace("OPEN of a link", |_wire| {
            let mut tap = Tap::run(&[]);
            let mut peer = tap.accept();
            peer.plays(AUTH);
            peer.plays(
                "
                C 00 03 0000 00000002 \"v1\"
                D 00 83 0000 00000008 00000001 00000000
                ",
            );
        });
    }

    #[test]
    fn names_that_are_none_of_the_list_are_refused() {
        every_authenticated_tap_plays(
            "
            C 00 03 0000 00000004 \"nope\"
            D error 6
            C 00 03 0000 00000000
            D error 6
            C 00 03 0000 00000002 \"lo\"
            D error 6
            C 00 03 0000 0000000b \"any-eth\" 00 \"abc\"
            D error 6
            C 00 03 0000 00000003 fffefd
            D error 6
            C 00 03 0000 0000000b \"/etc/passwd\"
            D error 6
            C 00 03 0000 00000007 \"any-eth\"
            D 00 83 0000 00000008 00000001 00000000
            ",
        );
    }

    #[test]
    fn a_url_is_refused() {
        every_authenticated_tap_plays(
            "
            C 00 03 0000 00000019 \"rpcap://192.0.2.1/any-eth\"
            D error 6
            C 00 03 0000 0000000e \"file://any-eth\"
            D error 6
            ",
        );
    }

    #[test]
    fn a_name_of_1024_bytes_is_looked_up_and_a_longer_one_discarded() {
        every_authenticated_tap_plays(
            "
            C 00 03 0000 00000400 78*1024
            D error 6
            C 00 03 0000 00000401 78*1025
            D error 6
            C 00 09 0000 00000000
            D 00 89 0000 00000010 00*16
            ",
        );
    }
}
