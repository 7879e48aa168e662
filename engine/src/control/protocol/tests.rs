//! Each message, each error, each cut of the stream.

use super::bench::*;
use super::*;
use crate::rpcap::BpfInsn;

#[test]
fn the_reference_conversation_is_answered_byte_for_byte() {
    let mut bench = Bench::new(None);
    let auth = bench.talk(&[0, 8, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    #[cfg(target_endian = "little")]
    assert_eq!(auth, [0, 0x88, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0xd4, 0xc3, 0xb2, 0xa1]);

    let list = bench.talk(&[0, 2, 0, 0, 0, 0, 0, 0]);
    assert_eq!(list[..8], [0, 0x82, 0, 1, 0, 0, 0, 16]);
    assert_eq!(&list[8..], b"\0\x04\0\0\0\0\0\0\0\0\0\0eth0");

    let open = bench.talk(b"\0\x03\0\0\0\0\0\x05rpxv0");
    assert_eq!(open, [0, 0x83, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0]);

    // 0x44 bytes of payload: 12, 8, and six instructions of the recorded filter.
    let mut request = vec![0, 4, 0, 0, 0, 0, 0, 0x44, 0, 0, 0xff, 0xff, 0, 0, 0, 0xfa];
    request.extend([0, 6, 0xcc, 0x3d, 0, 1, 0, 0, 0, 0, 0, 6]);
    let arp_or_ip = [
        [0, 0x28, 0, 0, 0, 0, 0, 12],
        [0, 0x15, 2, 0, 0, 0, 8, 6],
        [0, 0x15, 1, 0, 0, 0, 8, 0],
        [0, 6, 0, 0, 0, 0, 0, 0],
        RET_ALL,
        RET_ALL,
    ];
    request.extend(arp_or_ip.concat());
    let started = bench.talk(&request);
    assert_eq!(started, [0, 0x84, 0, 0, 0, 0, 0, 8, 0, 4, 0, 0, 0, 0, 0, 0]);
    let wanted = &bench.starts[0];
    assert_eq!((&*wanted.interface, wanted.snaplen), ("rpxv0", 65_535));
    assert_eq!(wanted.transport, Transport::Udp { port: 0xcc3d });
    assert_eq!(wanted.filter.instructions().len(), 6);

    let stats = bench.talk(&[0, 9, 0, 0, 0, 0, 0, 0]);
    let counts = [0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
    assert_eq!(stats, [&[0, 0x89, 0, 0, 0, 0, 0, 16][..], &counts].concat());
    assert_eq!(bench.talk(&[0, 10, 0, 0, 0, 0, 0, 0]), [0, 0x8a, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bench.talk(&[0, 6, 0, 0, 0, 0, 0, 0]), [0; 0]);
    assert_eq!(bench.ending, Some(Ending::Close));
}

#[test]
fn delivery_byte_by_byte_changes_nothing() {
    let conversation = [
        message(8, &[0; 8]),
        message(2, &[]),
        message(3, b"eth0"),
        message(11, &[1, 0, 0, 0, 0, 0, 0, 9]),
        start(2, 4000, &[RET_ALL]),
        message(5, &filter(&[RET_ALL, RET_ALL])),
        message(9, &[]),
        message(10, &[]),
        message(99, &[1; 40]),
        message(6, &[]),
    ];
    let bytes = conversation.concat();
    let whole = Bench::new(None).talk(&bytes);
    let mut bench = Bench::new(None);
    let pieces: Vec<u8> = bytes.chunks(1).flat_map(|byte| bench.talk(byte)).collect();
    assert_eq!(pieces, whole);
    let expected =
        [reply(8), reply(2), reply(3), reply(11), reply(4), reply(5), reply(9), reply(10)];
    assert_eq!(replies(&whole), [&expected[..], &[error(16)]].concat());
    assert_eq!(bench.ending, Some(Ending::Close));
}

#[test]
fn before_auth_all_else_is_refused_and_skipped() {
    let mut bench = Bench::new(None);
    let early = [message(2, &[]), message(3, b"eth0"), message(9, &[]), message(77, &[0; 900])];
    bench.says(&early.concat(), &[error(16); 4]);
    bench.says(&start(2, 4000, &[RET_ALL]), &[error(16)]);
    bench.says(&message(8, &[0; 8]), &[reply(8)]);
}

#[test]
fn credentials_are_judged_by_the_driver() {
    let mut bench = Bench::new(None);
    bench.says(&message(8, b"\0\x01\0\0\0\x01\0\x01ux"), &[error(18)]);
    bench.says(&message(8, b"\0\x07\0\0\0\0\0\0"), &[error(20)]);
    bench.says(&message(8, b"\0\x01\0\0\0\x09\0\x01u"), &[error(3)]);
    bench.says(&message(8, b"\0"), &[error(3)]);
    bench.says(&message(8, &vec![0; 131_079]), &[error(3)]);
    bench.says(&message(8, b"\0\x01\0\0\0\x01\0\x01up and more"), &[reply(8)]);
}

#[test]
fn a_peer_that_never_authenticates_is_given_up() {
    let wrong = message(8, b"\0\x01\0\0\0\x01\0\x01ux");
    for (request, tries) in [(message(2, &[]), 16), (wrong, 3)] {
        let mut bench = Bench::new(None);
        let out = bench.talk(&request.repeat(100));
        assert_eq!(replies(&out).len(), tries);
        assert!(matches!(bench.ending, Some(Ending::Violation(_))));
    }
}

#[test]
fn a_second_auth_ends_the_conversation() {
    let mut bench = Bench::authenticated();
    bench.says(&[message(8, &[0; 8]), message(2, &[])].concat(), &[error(16)]);
    assert!(matches!(bench.ending, Some(Ending::Violation(_))));
}

#[test]
fn another_version_is_answered_in_that_version_and_ends_the_conversation() {
    for (mut bench, kind) in [(Bench::new(None), 8), (Bench::authenticated(), 9)] {
        let mut request = message(kind, &[0; 8]);
        request[0] = 2;
        let out = bench.talk(&request);
        assert_eq!((out[0], replies(&out)), (2, vec![error(17)]));
        assert!(matches!(bench.ending, Some(Ending::Violation(_))));
    }
}

#[test]
fn only_plain_names_reach_the_driver() {
    let mut bench = Bench::authenticated();
    for name in [&b""[..], b"eth0\0", b"rpcap://10.0.0.1/eth0", b"\xff\xfe", &[b'x'; 1025]] {
        bench.says(&message(3, name), &[error(6)]);
    }
    bench.says(&message(3, &[b'x'; 1024]), &[reply(3)]);
    bench.refuses = Some("The interface does not exist");
    bench.says(&message(3, b"eth9"), &[error(6)]);
}

#[test]
fn only_the_preselected_interface_opens() {
    let mut bench = Bench::new(Some("any-eth"));
    bench.talk(&message(8, &[0; 8]));
    let out = bench.talk(&message(3, b"eth0"));
    assert_eq!(replies(&out), [error(6)]);
    assert_eq!(error_text(&out), "can only open preselected interface 'any-eth'");
    bench.says(&message(3, b"any-eth"), &[reply(3)]);
}

#[test]
fn the_last_open_counts_even_if_it_failed() {
    let mut bench = Bench::authenticated();
    let out = bench.talk(&start(2, 4000, &[RET_ALL]));
    assert_eq!(replies(&out), [error(12)]);
    assert_eq!(error_text(&out), "No capture device was specified");

    bench.says(&message(3, b"eth0"), &[reply(3)]);
    bench.says(&message(3, b"eth1"), &[reply(3)]);
    bench.says(&start(2, 4000, &[RET_ALL]), &[reply(4)]);
    assert_eq!(bench.starts[0].interface, "eth1");
    bench.says(&message(10, &[]), &[reply(10)]);

    for failed in [&b""[..], b"eth9"] {
        bench.says(&message(3, b"eth0"), &[reply(3)]);
        bench.refuses = Some("no");
        bench.says(&message(3, failed), &[error(6)]);
        bench.refuses = None;
        bench.says(&start(2, 4000, &[RET_ALL]), &[error(12)]);
    }
    assert_eq!(bench.starts.len(), 1);
}

#[test]
fn snaplen_and_transport_are_read_from_startcap() {
    let mut bench = Bench::capturing();
    for snaplen in [0, 262_144, 262_145, u32::MAX] {
        bench.talk(&start_with_snaplen(snaplen, 2, 4000, &[RET_ALL]));
        assert_eq!(bench.starts.last().unwrap().snaplen, 262_144);
    }
    bench.talk(&start_with_snaplen(96, 4, 4001, &[RET_ALL]));
    let last = bench.starts.last().unwrap();
    assert_eq!(last.snaplen, 96);
    assert_eq!(last.transport, Transport::Tcp { port: 4001, is_server_open: true });
    bench.talk(&start(0, 0, &[RET_ALL]));
    let transport = bench.starts.last().unwrap().transport;
    assert_eq!(transport, Transport::Tcp { port: 0, is_server_open: false });
    bench.says(&start(2, 0, &[RET_ALL]), &[error(12)]);
}

#[test]
fn a_bad_startcap_is_error_12_and_the_stream_stays_in_step() {
    let mut bench = Bench::authenticated();
    bench.says(&message(3, b"eth0"), &[reply(3)]);
    let mut other_kind = start(2, 4000, &[RET_ALL]);
    other_kind[8 + 13] = 2;
    let mut missing = start(2, 4000, &[RET_ALL, RET_ALL]);
    missing[8 + 19] = 3;
    let mut too_many = start(2, 4000, &[RET_ALL]);
    too_many[8 + 18] = 0x20;
    let bad = [
        other_kind,
        missing,
        too_many,
        start(2, 4000, &[]),
        message(4, &[0; 11]),
        message(4, &[]),
        start(2, 4000, &[RET_ALL; 8192]),
    ];
    for request in bad {
        bench.says(&[request, message(9, &[])].concat(), &[error(12), reply(9)]);
    }
    assert!(bench.starts.is_empty());
    bench.refuses = Some("no socket");
    bench.says(&start(2, 4000, &[RET_ALL]), &[error(12)]);
    bench.refuses = None;
    // It never started, so there is nothing to end.
    bench.says(&message(10, &[]), &[error(13)]);
}

#[test]
fn the_unset_filter_of_libpcap_is_understood() {
    let mut bench = Bench::authenticated();
    bench.says(&message(3, b"eth0"), &[reply(3)]);
    let mut request = start(2, 4000, &[RET_ALL]);
    request[7] = 20;
    bench.says(&[request, message(9, &[])].concat(), &[reply(4), reply(9)]);
    let instruction = BpfInsn { code: 6, jt: 0, jf: 0, k: 0x40000 };
    assert_eq!(bench.starts[0].filter.instructions(), [instruction]);

    let mut request = message(5, &filter(&[RET_ALL]));
    request[7] = 8;
    bench.says(&[request, message(9, &[])].concat(), &[reply(5), reply(9)]);
    assert_eq!(bench.filters[0].instructions(), [instruction]);
}

#[test]
fn a_second_startcap_replaces_the_first() {
    let mut bench = Bench::capturing();
    bench.says(&start(2, 4001, &[RET_ALL]), &[reply(4)]);
    assert_eq!(bench.starts[1].transport, Transport::Udp { port: 4001 });
    bench.says(&message(10, &[]), &[reply(10)]);
    bench.says(&message(10, &[]), &[error(13)]);
    // The name stays opened over ENDCAP.
    bench.says(&start(2, 4002, &[RET_ALL]), &[reply(4)]);
}

#[test]
fn a_second_startcap_that_fails_leaves_the_first_running() {
    let mut bench = Bench::capturing();
    bench.says(&start(2, 4001, &[]), &[error(12)]);
    bench.refuses = Some("no socket");
    bench.says(&start(2, 4001, &[RET_ALL]), &[error(12)]);
    bench.refuses = None;
    bench.says(&message(10, &[]), &[reply(10)]);
}

#[test]
fn updatefilter_needs_a_capture_and_a_good_filter() {
    let update = message(5, &filter(&[RET_ALL]));
    let mut bench = Bench::authenticated();
    bench.says(&[update.clone(), message(9, &[])].concat(), &[error(7), reply(9)]);

    let mut bench = Bench::capturing();
    for bad in [message(5, &[]), message(5, &filter(&[])), message(5, &vec![0; 40_000])] {
        bench.says(&bad, &[error(7)]);
    }
    assert!(bench.filters.is_empty());
    bench.says(&update, &[reply(5)]);
    assert_eq!(bench.filters.len(), 1);
}

#[test]
fn stats_may_be_asked_for_at_any_time() {
    let mut bench = Bench::authenticated();
    let stats = [message(9, &[]), message(3, b"eth0"), message(9, &[])].concat();
    bench.says(&stats, &[reply(9), reply(3), reply(9)]);
    let mut bench = Bench::capturing();
    bench.says(&message(9, &[]), &[reply(9)]);
    bench.says(&[message(10, &[]), message(9, &[])].concat(), &[reply(10), reply(9)]);
}

#[test]
fn sampling_holds_for_one_capture_that_starts() {
    let mut bench = Bench::capturing();
    bench.says(&message(11, &[1, 0, 0, 0, 0, 0, 0, 9]), &[reply(11)]);
    // One that is refused has not used it.
    bench.refuses = Some("not now");
    bench.says(&start(2, 4000, &[RET_ALL]), &[error(12)]);
    bench.refuses = None;
    for _ in 0..2 {
        bench.says(&start(2, 4000, &[RET_ALL]), &[reply(4)]);
    }
    let methods: Vec<_> = bench.starts.iter().map(|start| start.sampling.method).collect();
    assert_eq!(methods, [0, 1, 1, 0]);
}

#[test]
fn sampling_holds_for_the_next_capture_and_value_0_is_none() {
    let mut bench = Bench::capturing();
    for (payload, expected) in [
        ([1, 0, 0, 0, 0, 0, 0, 5], Sampling { method: 1, value: 5 }),
        ([2, 0, 0, 0, 0, 0, 1, 0], Sampling { method: 2, value: 256 }),
        ([1, 0, 0, 0, 0, 0, 0, 0], NO_SAMPLING),
        ([9, 0, 0, 0, 0, 0, 0, 5], NO_SAMPLING),
    ] {
        bench.says(&message(11, &payload), &[reply(11)]);
        bench.says(&start(2, 4000, &[RET_ALL]), &[reply(4)]);
        assert_eq!(bench.starts.last().unwrap().sampling, expected);
    }
    bench.says(&message(11, &[1, 0, 0]), &[error(15)]);
    bench.says(&message(11, &[0; 65]), &[error(15)]);
}

#[test]
fn what_no_client_sends_is_error_16() {
    let mut bench = Bench::authenticated();
    for kind in [0, 7, 12, 110, 130, 132, 255] {
        bench.says(&[message(kind, &[3; 33]), message(9, &[])].concat(), &[error(16), reply(9)]);
    }
}

#[test]
fn payload_that_nobody_asked_for_is_ignored() {
    let mut bench = Bench::capturing();
    for kind in [2, 9, 10] {
        bench.says(&[message(kind, &[3; 33]), message(9, &[])].concat(), &[reply(kind), reply(9)]);
    }
}

#[test]
fn too_much_to_discard_is_answered_and_ends_the_conversation() {
    let mut bench = Bench::authenticated();
    bench.says(&[0, 3, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3], &[error(6)]);
    assert!(matches!(bench.ending, Some(Ending::Violation(_))));
}

#[test]
fn an_error_from_the_client_ends_the_conversation() {
    for (mut bench, code) in [(Bench::new(None), 11), (Bench::authenticated(), 3)] {
        let mut refusal = message(1, b"not on my list");
        refusal[3] = code;
        bench.says(&refusal, &[]);
        let text = "not on my list".to_owned();
        assert_eq!(bench.ending, Some(Ending::PeerError { code: code.into(), text }));
    }
    let mut bench = Bench::new(None);
    bench.says(&message(1, &[b'x'; 70_000]), &[]);
    assert!(matches!(bench.ending, Some(Ending::PeerError { text, .. }) if text.len() == 256));
}

#[test]
fn a_failed_capture_is_told_once_and_never_inside_a_reply() {
    let mut bench = Bench::capturing();
    let conversation = &mut bench.conversation;
    let action = conversation.advance(&mut &message(9, &[])[..]);
    assert!(matches!(action, Some(Action::Stats)));
    conversation.capture_failed("The interface disappeared");
    assert!(conversation.output().is_empty(), "the reply goes first");
    conversation.answer(Ok(Answer::Counted(Stats::default())));
    assert_eq!(replies(conversation.output()), [reply(9), error(9)]);
    conversation.output().clear();

    conversation.capture_failed("The interface disappeared");
    assert!(conversation.output().is_empty(), "it was told");
    bench.says(&message(10, &[]), &[error(13)]);

    let mut bench = Bench::capturing();
    bench.conversation.capture_failed("The interface disappeared");
    assert_eq!(replies(bench.conversation.output()), [error(9)]);
}

#[test]
fn nothing_is_taken_in_while_an_answer_is_due() {
    let mut bench = Bench::capturing();
    let bytes = [message(10, &[]), message(11, &[0; 8])].concat();
    let mut input = &bytes[..];
    assert!(matches!(bench.conversation.advance(&mut input), Some(Action::End)));
    assert!(bench.conversation.advance(&mut input).is_none());
    assert_eq!(input.len(), 16, "SETSAMPLING waits for the reply to ENDCAP");
    bench.conversation.answer(Ok(Answer::Ended));
    assert!(bench.conversation.advance(&mut input).is_none());
    assert_eq!(replies(bench.conversation.output()), [reply(10), reply(11)]);
}

#[test]
fn a_peer_that_does_not_read_is_not_answered_without_bound() {
    let mut bench = Bench::authenticated();
    let requests = message(11, &[0; 8]).repeat(100_000);
    let mut input = &requests[..];
    assert!(bench.conversation.advance(&mut input).is_none());
    assert!(bench.conversation.output().len() < OUTPUT_HIGH_WATER + 24);
    assert!(!input.is_empty() && !bench.conversation.takes_input());
    bench.conversation.output().clear();
    assert!(bench.conversation.takes_input());
}

#[test]
fn no_interface_is_error_5() {
    let mut bench = Bench::authenticated();
    let action = bench.conversation.advance(&mut &message(2, &[])[..]);
    assert!(matches!(action, Some(Action::List)));
    bench.conversation.answer(Ok(Answer::Interfaces(Vec::new())));
    assert_eq!(replies(bench.conversation.output()), [error(5)]);
}

#[test]
fn a_thousand_interfaces_fit_into_one_reply() {
    let mut bench = Bench::authenticated();
    bench.conversation.advance(&mut &message(2, &[])[..]);
    let address = crate::rpcap::Address { address: [10, 0, 0, 1].into(), netmask: None };
    let interface = |n: u32| Interface {
        name: format!("veth{n}"),
        addresses: vec![address],
        ..Interface::default()
    };
    let interfaces: Vec<_> = (0..1000).map(interface).collect();
    bench.conversation.answer(Ok(Answer::Interfaces(interfaces.clone())));
    let out = bench.conversation.output();
    assert_eq!(replies(out), [reply(2)]);
    assert_eq!(out[2..4], 1000u16.to_be_bytes());
    assert_eq!(Interface::read_all(&out[8..], 1000).unwrap(), interfaces);
}

#[test]
fn error_texts_are_cut_at_a_character() {
    let mut bench = Bench::authenticated();
    bench.conversation.advance(&mut &message(2, &[])[..]);
    bench.conversation.answer(Err("ü".repeat(400)));
    let out = bench.conversation.output();
    assert_eq!((replies(out), out.len()), (vec![error(4)], 8 + 256));
    out.clear();
    bench.conversation.advance(&mut &message(2, &[])[..]);
    bench.conversation.answer(Err("a".to_owned() + &"ü".repeat(400)));
    let out = bench.conversation.output();
    assert_eq!((replies(out), out.len()), (vec![error(4)], 8 + 255));
}

#[test]
fn who_is_given_up_is_told_and_heard_no_more() {
    let mut bench = Bench::new(None);
    bench.conversation.dismiss(ErrorCode::InitTimeout, "too late");
    assert_eq!(replies(bench.conversation.output()), [error(2)]);
    bench.conversation.output().clear();
    let mut input = &message(8, &[0; 8])[..];
    assert!(bench.conversation.advance(&mut input).is_none());
    assert_eq!((input.len(), bench.conversation.output().len()), (16, 0));
}

#[test]
fn the_last_wrong_try_ends_the_conversation_without_another_byte() {
    let mut bench = Bench::new(None);
    let wrong = message(8, b"\0\x01\0\0\0\x01\0\x01ux");
    bench.says(&wrong.repeat(2), &[error(18); 2]);
    assert!(!bench.conversation.is_given_up());
    let action = bench.conversation.advance(&mut &wrong[..]);
    assert!(matches!(action, Some(Action::Authenticate(_))));
    bench.conversation.answer(Ok(Answer::Authenticated(false)));
    assert!(bench.conversation.is_given_up());
    assert!(matches!(bench.conversation.advance(&mut &[][..]), Some(Action::Close(_))));
    assert_eq!(replies(bench.conversation.output()), [error(18)]);
}

#[test]
fn a_tls_client_gets_an_alert_of_its_version() {
    let hello = [0x16, 3, 3, 0, 200, 1, 0, 0, 196, 3, 3];
    for pieces in [11, 1, 2] {
        let mut bench = Bench::new(None);
        let out: Vec<u8> = hello.chunks(pieces).flat_map(|piece| bench.talk(piece)).collect();
        assert_eq!(out, [0x15, 3, 3, 0, 2, 2, 40]);
        assert!(matches!(bench.ending, Some(Ending::Violation(_))));
    }
    // Later, it is a version like any other.
    let mut bench = Bench::authenticated();
    let out = bench.talk(&[0x16, 3, 1, 0, 200, 1, 0, 0]);
    assert_eq!((out[0], replies(&out)), (0x16, vec![error(17)]));
}

#[test]
fn startcaps_wishes_reach_the_driver() {
    let mut bench = Bench::authenticated();
    bench.says(&message(3, b"eth0"), &[reply(3)]);
    for flags in [2, 3, 0x8002, 0x8003, 2 | 8 | 16] {
        bench.says(&start(flags, 4000, &[RET_ALL]), &[reply(4)]);
        let last = bench.starts.last().unwrap();
        assert_eq!(last.is_promiscuous, flags & 1 != 0);
        assert_eq!(last.takes_large_datagrams, flags & 0x8000 != 0);
        assert_eq!(last.read_timeout_ms, 250);
    }
}
