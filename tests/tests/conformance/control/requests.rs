//! Requests that need an interface or a capture, and what must not be answered: sections 1.6 to 6.

use super::*;

mod section_1_6_startcap {
    use super::*;

    #[test]
    fn without_open_it_is_refused() {
        every_authenticated_tap_plays(
            "
            C 00 04 0000 0000001c 0000ffff 000000fa 0002 1388 0001 0000 00000001 0006 00 00 00040000
            D error 12
            ",
        );
    }

    #[test]
    fn after_an_open_that_failed_it_is_refused() {
        every_authenticated_tap_plays(
            "
            C 00 03 0000 00000007 \"any-eth\"
            D 00 83 0000 00000008 00000001 00000000
            C 00 03 0000 00000004 \"nope\"
            D error 6
            C 00 04 0000 0000001c 0000ffff 000000fa 0002 1388 0001 0000 00000001 0006 00 00 00040000
            D error 12
            ",
        );
    }

    #[test]
    fn a_payload_too_short_is_refused() {
        every_opened_tap_plays(
            "
            C 00 04 0000 00000000
            D error 12
            C 00 04 0000 0000000b 0000ffff 000000fa 0002 13
            D error 12
            C 00 04 0000 0000000c 0000ffff 000000fa 0002 1388
            D error 12
            C 00 04 0000 00000013 0000ffff 000000fa 0002 1388 0001 0000 000000
            D error 12
            C 00 09 0000 00000000
            D 00 89 0000 00000010 00*16
            ",
        );
    }

    #[test]
    fn data_port_0_is_refused() {
        every_opened_tap_plays(
            "
            C 00 04 0000 0000001c 0000ffff 000000fa 0002 0000 0001 0000 00000001 0006 00 00 00040000
            D error 12
            ",
        );
    }

    #[test]
    fn a_payload_beyond_any_filter_is_discarded() {
        with_every_tap(|peer| {
            peer.plays(AUTH);
            peer.plays(OPEN);
            peer.send(&message(kind::STARTCAP, 0, &vec![0; 20 + 8 * 4096 + 9]));
            peer.plays("D error 12");
            peer.plays(OPEN);
        });
    }
}

const OPEN: &str = "
    C 00 03 0000 00000007 \"any-eth\"
    D 00 83 0000 00000008 00000001 00000000
";

fn every_opened_tap_plays(script: &str) {
    with_every_tap(|peer| {
        peer.plays(AUTH);
        peer.plays(OPEN);
        peer.plays(script);
    });
}

mod section_1_7_filter {
    use super::*;

    /// STARTCAP with this filter's bytes.
    fn startcap(filter: &[u8]) -> Vec<u8> {
        let head = [0, 0, 0xff, 0xff, 0, 0, 0, 250, 0, 2, 0x13, 0x88];
        message(kind::STARTCAP, 0, &[&head, filter].concat())
    }

    fn is_refused(filter: &[u8]) {
        with_every_tap(|peer| {
            peer.plays(AUTH);
            peer.plays(OPEN);
            peer.send(&startcap(filter));
            peer.plays("D error 12");
            peer.plays(OPEN);
        });
    }

    #[test]
    fn a_filter_of_no_instructions_is_refused() {
        is_refused(&filter(&[]));
    }

    #[test]
    fn a_filter_of_another_type_is_refused() {
        is_refused(&[0, 2, 0, 0, 0, 0, 0, 1, 0, 6, 0, 0, 0, 4, 0, 0]);
    }

    #[test]
    fn more_instructions_than_the_payload_has_are_refused() {
        is_refused(&[0, 1, 0, 0, 0, 0, 0, 2, 0, 6, 0, 0, 0, 4, 0, 0]);
        is_refused(&[0, 1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 6, 0, 0, 0, 4, 0, 0]);
    }

    #[test]
    fn programs_that_the_kernel_would_refuse_are_refused() {
        for program in [
            &[(0x28, 0, 0, 12)][..],                    // ends without a return
            &[(0x15, 9, 0, 0), (6, 0, 0, 1)],           // jumps out
            &[(0x05, 0, 0, 0xffff_ffff), (6, 0, 0, 1)], // jumps backwards
            &[(0xffff, 0, 0, 0), (6, 0, 0, 1)],         // unknown opcode
            &[(0x34, 0, 0, 0), (6, 0, 0, 1)],           // divides by 0
            &[(0x94, 0, 0, 0), (6, 0, 0, 1)],           // modulo 0
            &[(0x64, 0, 0, 32), (6, 0, 0, 1)],          // shifts by 32
            &[(0x60, 0, 0, 16), (6, 0, 0, 1)],          // reads M[16]
            &[(0x02, 0, 0, 16), (6, 0, 0, 1)],          // writes M[16]
        ] {
            is_refused(&filter(program));
        }
    }

    #[test]
    fn a_filter_longer_than_linux_takes_is_refused() {
        let mut program = vec![(0x28, 0, 0, 12); 4097];
        program[4096] = (6, 0, 0, 1);
        is_refused(&filter(&program));
    }
}

mod section_1_9_updatefilter {
    use super::*;

    #[test]
    fn before_startcap_it_is_refused_and_its_payload_discarded() {
        every_authenticated_tap_plays(
            "
            C 00 05 0000 00000010 0001 0000 00000001 0006 00 00 00040000
            D error 7
            C 00 09 0000 00000000
            D 00 89 0000 00000010 00*16
            ",
        );
    }
}

mod section_1_10_stats {
    use super::*;

    #[test]
    fn before_startcap_they_are_zeros() {
        every_authenticated_tap_plays(
            "
            C 00 09 0000 00000000
            D 00 89 0000 00000010 00000000 00000000 00000000 00000000
            ",
        );
    }
}

mod section_1_11_endcap_and_close {
    use super::*;

    #[test]
    fn endcap_without_a_capture_is_refused() {
        every_authenticated_tap_plays(
            "
            C 00 0a 0000 00000000
            D error 13
            ",
        );
    }

    #[test]
    fn close_gets_no_reply_and_ends_it() {
        every_authenticated_tap_plays(
            "
            C 00 06 0000 00000000
            D end
            ",
        );
    }

    #[test]
    fn close_before_auth_ends_it() {
        every_tap_plays(
            "
            C 00 06 0000 00000000
            D end
            ",
        );
    }

    #[test]
    fn the_end_of_the_stream_ends_it() {
        every_authenticated_tap_plays(
            "
            C end
            D end
            ",
        );
    }
}

mod section_1_12_setsampling {
    use super::*;

    #[test]
    fn every_method_and_value_0_are_acknowledged() {
        every_authenticated_tap_plays(
            "
            C 00 0b 0000 00000008 00 00 0000 00000000
            D 00 8b 0000 00000000
            C 00 0b 0000 00000008 01 00 0000 00000000
            D 00 8b 0000 00000000
            C 00 0b 0000 00000008 01 00 0000 00000005
            D 00 8b 0000 00000000
            C 00 0b 0000 00000008 02 00 0000 0000000a
            D 00 8b 0000 00000000
            C 00 0b 0000 00000008 09 00 0000 00000001
            D 00 8b 0000 00000000
            ",
        );
    }

    #[test]
    fn a_payload_too_short_is_refused() {
        every_authenticated_tap_plays(
            "
            C 00 0b 0000 00000007 01 00 0000 000000
            D error 15
            C 00 09 0000 00000000
            D 00 89 0000 00000010 00*16
            ",
        );
    }
}

mod section_1_13_error {
    use super::*;

    #[test]
    fn an_error_from_the_sensor_ends_it() {
        // 11: the sensor's host list refuses us.
        every_tap_plays(
            "
            C error 11
            D end
            ",
        );
        every_authenticated_tap_plays(
            "
            C 00 01 0009 00000000
            D end
            ",
        );
    }
}

mod section_6_hardening {
    use super::*;

    #[test]
    fn payloads_of_four_gigabytes_end_it_and_are_not_waited_for() {
        for request in [
            "C 00 08 0000 ffffffff",
            "C 00 03 0000 ffffffff",
            "C 00 09 0000 ffffffff",
            "C 00 4d 0000 ffffffff",
        ] {
            with_every_tap(|peer| {
                peer.plays(request);
                let (version, reply, ..) = peer.message("an ERROR");
                assert_eq!((version, reply), (0, kind::ERROR));
                peer.plays("D end");
            });
        }
    }

    #[test]
    fn a_peer_that_never_authenticates_is_given_up() {
        with_every_tap(|peer| {
            for _ in 0..16 {
                peer.plays("C 00 02 0000 00000000\nD error 16");
            }
            peer.plays("C 00 02 0000 00000000\nD end");
        });
    }
}
