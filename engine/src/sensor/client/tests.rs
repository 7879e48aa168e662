//! Conversations with daemons of several manners.

use proptest::prelude::*;

use super::*;
use crate::rpcap::{ErrorCode, Filter};

fn reply(kind: MessageType, value: u16, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let mut bytes = Header::new(kind, value, len).to_bytes().to_vec();
    bytes.extend(payload);
    bytes
}

fn interface(name: &str, description: &str) -> Interface {
    Interface { name: name.into(), description: description.into(), ..Interface::default() }
}

fn list(interfaces: &[Interface]) -> Vec<u8> {
    let mut payload = Vec::new();
    interfaces.iter().for_each(|interface| interface.write(&mut payload));
    reply(MessageType::FindAllIfReply, u16::try_from(interfaces.len()).unwrap(), &payload)
}

struct Talk {
    client: Client,
    now: Instant,
    events: Vec<Event>,
}

impl Talk {
    fn begin(wishes: Wishes) -> Self {
        let now = Instant::now();
        let mut talk = Self { client: Client::new(wishes, now), now, events: Vec::new() };
        talk.asked(MessageType::Auth);
        talk
    }

    /// The one request that is waiting to be sent; its payload.
    fn asked(&mut self, kind: MessageType) -> Vec<u8> {
        let bytes = std::mem::take(self.client.output());
        let (header, payload) = bytes.split_first_chunk().expect("a request");
        let header = Header::read(*header);
        assert_eq!(header.message_type(), Some(kind));
        assert_eq!(header.payload_len as usize, payload.len());
        payload.to_vec()
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.client.receive(self.now, bytes, &mut self.events)
    }

    fn wait(&mut self, time: Duration) -> Result<(), Failure> {
        self.now += time;
        self.client.tick(self.now, &mut self.events)
    }

    fn running() -> Self {
        let mut talk = Self::begin(Wishes::default());
        talk.hear(&reply(MessageType::AuthReply, 0, &Auth::reply())).unwrap();
        talk.asked(MessageType::FindAllIf);
        talk.hear(&list(&[interface("eth0", "")])).unwrap();
        assert_eq!(talk.asked(MessageType::Open), b"eth0");
        talk.hear(&reply(MessageType::OpenReply, 0, &OpenReply { linktype: 1 }.to_bytes()))
            .unwrap();
        let opened = Event::Opened { interface: "eth0".into(), linktype: 1, is_swapped: false };
        assert_eq!(std::mem::take(&mut talk.events), [opened]);
        let request = StartCapture {
            snaplen: 65_535,
            read_timeout_ms: 100,
            flags: StartCapture::DGRAM,
            port: 5_000,
            filter: Filter::default(),
        };
        talk.client.start_capture(talk.now, &request);
        assert_eq!(StartCapture::read(&talk.asked(MessageType::StartCapture)), Ok(request));
        let started = StartCaptureReply { buffer_bytes: 0, port: 0 };
        talk.hear(&reply(MessageType::StartCaptureReply, 0, &started.to_bytes())).unwrap();
        assert_eq!(std::mem::take(&mut talk.events), [Event::Started(started)]);
        talk
    }
}

const STATS: Stats = Stats { received: 9, interface_dropped: 1, kernel_dropped: 2, sent: 6 };

fn stats() -> Vec<u8> {
    reply(MessageType::StatsReply, 0, &STATS.to_bytes())
}

fn error(code: ErrorCode, text: &str) -> Vec<u8> {
    reply(MessageType::Error, code as u16, text.as_bytes())
}

#[test]
fn a_capture_runs_and_ends() {
    let mut talk = Talk::running();
    talk.wait(STATS_PERIOD - Duration::from_millis(1)).unwrap();
    assert!(talk.client.output().is_empty());
    talk.wait(Duration::from_millis(1)).unwrap();
    talk.asked(MessageType::Stats);
    talk.hear(&stats()).unwrap();
    assert!(talk.client.end(talk.now));
    talk.asked(MessageType::Stats);
    talk.hear(&stats()).unwrap();
    talk.asked(MessageType::EndCapture);
    talk.hear(&reply(MessageType::EndCaptureReply, 0, &[])).unwrap();
    talk.asked(MessageType::Stats);
    talk.hear(&stats()).unwrap();
    let said = [Event::Stats(STATS), Event::Stats(STATS), Event::FinalStats(STATS), Event::Ended];
    assert_eq!(talk.events, said);
    talk.client.close();
    talk.asked(MessageType::Close);
    assert_eq!(talk.client.deadline(), None);
}

#[test]
fn the_end_waits_for_a_stats_that_was_asked_for_already() {
    let mut talk = Talk::running();
    talk.wait(STATS_PERIOD).unwrap();
    talk.asked(MessageType::Stats);
    assert!(talk.client.end(talk.now));
    assert!(talk.client.output().is_empty(), "one request at a time");
    talk.hear(&stats()).unwrap();
    talk.asked(MessageType::EndCapture);
    assert!(!talk.client.end(talk.now), "it is ending already");
}

#[test]
fn an_unasked_error_9_at_the_end_is_not_taken_for_the_stats() {
    let mut talk = Talk::running();
    talk.client.end(talk.now);
    talk.asked(MessageType::Stats);
    talk.hear(&error(ErrorCode::Read, "The interface disappeared")).unwrap();
    talk.asked(MessageType::EndCapture);
    talk.hear(&stats()).unwrap();
    assert!(talk.client.output().is_empty(), "the late STATS are passed over");
    talk.hear(&reply(MessageType::EndCaptureReply, 0, &[])).unwrap();
    talk.asked(MessageType::Stats);
}

/// What a daemon's AUTH reply leads to.
fn after_auth(payload: &[u8]) -> Result<Talk, Failure> {
    let mut talk = Talk::begin(Wishes::default());
    talk.hear(&reply(MessageType::AuthReply, 0, payload)).map(|()| talk)
}

#[test]
fn every_length_of_auth_reply_is_understood() {
    let long = [0, 0, 0, 0, 0xa1, 0xb2, 0xc3, 0xd4, 9, 9, 9, 9];
    // WinPcap and ExtraHop, a short-lived libpcap, libpcap, and one to come.
    for payload in [&[][..], &[0, 0], &Auth::reply(), &long] {
        after_auth(payload).unwrap().asked(MessageType::FindAllIf);
    }
}

#[test]
fn auth_replies_that_contradict_themselves_are_refused() {
    let cases: [(&[u8], &str); 7] = [
        (&[0], "maximum version"),
        (&[0, 0, 0], "padding"),
        (&[0, 0, 0, 0], "byte order"),
        (&[0, 0, 0, 0, 1, 2, 3, 4], "magic"),
        (&[1, 2], "no version that we speak"),
        (&[2, 1], "no version that we speak"),
        (&[1, 0], "no version that we speak"),
    ];
    for (payload, reason) in cases {
        let failure = after_auth(payload).err().unwrap();
        assert_eq!(failure.label(), "malformed");
        assert!(failure.to_string().contains(reason), "{payload:?}: {failure}");
    }
}

#[test]
fn a_daemon_of_the_other_byte_order_is_understood_and_noted() {
    let mut magic = Auth::reply();
    magic[4..].reverse();
    let mut talk = after_auth(&magic).unwrap();
    talk.asked(MessageType::FindAllIf);
    talk.hear(&list(&[interface("usbmon0", "")])).unwrap();
    talk.hear(&reply(MessageType::OpenReply, 0, &OpenReply { linktype: 189 }.to_bytes())).unwrap();
    let opened = Event::Opened { interface: "usbmon0".into(), linktype: 189, is_swapped: true };
    assert_eq!(talk.events, [opened]);
}

#[test]
fn a_password_is_sent_as_the_daemon_reads_it() {
    let credentials = Some(("me".into(), "secret".into()));
    let wishes = Wishes { credentials, ..Wishes::default() };
    let mut client = Client::new(wishes, Instant::now());
    let sent = Auth::read(&client.output()[HEADER_BYTES..]).unwrap();
    assert_eq!(sent, Auth::Password { user: b"me".into(), password: b"secret".into() });
}

#[test]
fn the_preselected_interface_is_the_default() {
    let offers = [interface("lo", ""), interface("any-eth", "all ;preselected")];
    let mut talk = Talk::begin(Wishes::default());
    talk.hear(&reply(MessageType::AuthReply, 0, &[])).unwrap();
    talk.asked(MessageType::FindAllIf);
    talk.hear(&list(&offers)).unwrap();
    assert_eq!(talk.asked(MessageType::Open), b"any-eth");
}

#[test]
fn thousands_of_interfaces_are_read_in_pieces() {
    let offers: Vec<_> = (0..5_000).map(|n| interface(&format!("veth{n}"), "pod")).collect();
    let mut talk = Talk::begin(Wishes::default());
    talk.hear(&reply(MessageType::AuthReply, 0, &[])).unwrap();
    talk.asked(MessageType::FindAllIf);
    for piece in list(&offers).chunks(1_000) {
        talk.hear(piece).unwrap();
    }
    assert_eq!(talk.asked(MessageType::Open), b"veth0");
    assert!(talk.client.inbound.capacity() < 4_096, "the list's memory is given back");
}

#[test]
fn without_a_preselection_the_first_interface_is_opened() {
    let mut talk = after_auth(&[]).unwrap();
    talk.asked(MessageType::FindAllIf);
    talk.hear(&list(&[interface("eth3", "a card"), interface("any", "all")])).unwrap();
    assert_eq!(talk.asked(MessageType::Open), b"eth3");
}

#[test]
fn the_list_of_extrahops_daemon_is_read() {
    // Its own family numbers: AF_PACKET (17) with the MAC, Linux' AF_INET6 (10); and its mark.
    let mut payload = vec![0, 4, 0, 12, 0, 0, 0, 6, 0, 3, 0, 0];
    payload.extend(b"eth0;preselected");
    for family in [17u8, 2, 10] {
        let mut slots = [0xab; 512];
        slots[..2].copy_from_slice(&[0, family]);
        payload.extend(slots);
    }
    let mut talk = after_auth(&[]).unwrap();
    talk.asked(MessageType::FindAllIf);
    talk.hear(&reply(MessageType::FindAllIfReply, 1, &payload)).unwrap();
    assert_eq!(talk.asked(MessageType::Open), b"eth0");
}

#[test]
fn a_named_interface_is_opened_without_a_list() {
    // ExtraHop's daemon never answers FINDALLIF when it has some 60 interfaces.
    let mut talk = Talk::begin(Wishes { open: Some("eth7".into()), ..Wishes::default() });
    talk.hear(&reply(MessageType::AuthReply, 0, &[])).unwrap();
    assert_eq!(talk.asked(MessageType::Open), b"eth7");
    talk.hear(&list(&[interface("unasked", "")])).unwrap();
    assert!(talk.client.output().is_empty());
}

#[test]
fn sampling_is_set_between_open_and_startcap() {
    let sampling = Sampling { method: 2, value: 70_000 };
    let sampled = || {
        let wishes = Wishes { open: Some("e".into()), sampling: Some(sampling), credentials: None };
        let mut talk = Talk::begin(wishes);
        talk.hear(&reply(MessageType::AuthReply, 0, &[])).unwrap();
        talk.asked(MessageType::Open);
        talk.hear(&reply(MessageType::OpenReply, 0, &OpenReply { linktype: 1 }.to_bytes()))
            .unwrap();
        assert_eq!(Sampling::read(&talk.asked(MessageType::SetSampling)), Ok(sampling));
        assert_eq!(talk.events, []);
        talk
    };
    let mut talk = sampled();
    talk.hear(&reply(MessageType::SetSamplingReply, 0, &[])).unwrap();
    assert!(matches!(talk.events[..], [Event::Opened { .. }]));
    let refusal = sampled().hear(&error(ErrorCode::SetSampling, "no")).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "refused SETSAMPLING: error 15 (sampling cannot be set), \"no\""
    );
    assert_eq!(sampled().wait(REPLY_TIMEOUT), Err(Failure::Timeout("SETSAMPLING")));
}

fn filter(k: u32) -> Filter {
    Filter { kind: 1, instructions: vec![crate::rpcap::BpfInsn { code: 6, jt: 0, jf: 0, k }] }
}

#[test]
fn a_new_filter_is_asked_for_when_nothing_else_is() {
    let mut talk = Talk::running();
    talk.wait(STATS_PERIOD).unwrap();
    talk.asked(MessageType::Stats);
    talk.client.update_filter(talk.now, filter(1));
    talk.client.update_filter(talk.now, filter(2));
    assert!(talk.client.output().is_empty(), "STATS are not answered yet");
    talk.hear(&stats()).unwrap();
    assert_eq!(Filter::read(&talk.asked(MessageType::UpdateFilter)), Ok(filter(2)));
    talk.hear(&reply(MessageType::UpdateFilterReply, 0, &[])).unwrap();
    assert_eq!(talk.events, [Event::Stats(STATS), Event::FilterReplaced]);
    talk.wait(STATS_PERIOD).unwrap();
    talk.asked(MessageType::Stats);
}

#[test]
fn a_refused_filter_is_said_and_the_capture_goes_on() {
    let mut talk = Talk::running();
    talk.client.update_filter(talk.now, filter(1));
    talk.asked(MessageType::UpdateFilter);
    talk.hear(&error(ErrorCode::UpdateFilter, "bad")).unwrap();
    assert_eq!(talk.events, [Event::FilterKept(Complaint { code: 7, text: "bad".into() })]);
    assert!(talk.client.is_running());
    talk.client.update_filter(talk.now, filter(1));
    assert_eq!(talk.wait(REPLY_TIMEOUT), Err(Failure::Timeout("UPDATEFILTER")));
}

#[test]
fn a_filter_is_never_updated_before_startcap() {
    // libpcap's daemon refuses it then, forgets to read the payload and is out of step for good.
    let mut talk = after_auth(&[]).unwrap();
    talk.asked(MessageType::FindAllIf);
    talk.client.update_filter(talk.now, filter(1));
    assert!(talk.client.output().is_empty());
    talk.hear(&list(&[interface("eth0", "")])).unwrap();
    talk.asked(MessageType::Open);
}

#[test]
fn the_recorded_conversation_of_the_spec_is_held() {
    // Active UDP, libpcap's daemon; "..." of the specification is filled up with zeros.
    let mut talk = Talk::begin(Wishes::default());
    talk.hear(&[0, 0x88, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0xd4, 0xc3, 0xb2, 0xa1]).unwrap();
    assert_eq!(*talk.client.output(), [0, 2, 0, 0, 0, 0, 0, 0]);
    talk.asked(MessageType::FindAllIf);
    let mut offers = vec![0, 0x82, 0, 1, 0, 0, 6, 0x11, 0, 5, 0, 0, 0, 0, 0, 0x16, 0, 3, 0, 0];
    offers.extend(b"rpxv0");
    offers.extend([0, 2, 0, 0, 0x0a, 0x4d, 0, 1]);
    offers.resize(8 + 0x611, 0);
    talk.hear(&offers).unwrap();
    assert_eq!(*talk.client.output(), *b"\0\x03\0\0\0\0\0\x05rpxv0");
    talk.asked(MessageType::Open);
    talk.hear(&[0, 0x83, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0]).unwrap();
    let request = StartCapture {
        snaplen: 65_535,
        read_timeout_ms: 250,
        flags: StartCapture::DGRAM | StartCapture::SERVER_OPEN,
        port: 0xcc3d,
        filter: filter(0x40000),
    };
    talk.client.start_capture(talk.now, &request);
    let start = [
        &[0, 4, 0, 0, 0, 0, 0, 28, 0, 0, 0xff, 0xff, 0, 0, 0, 0xfa, 0, 6, 0xcc, 0x3d][..],
        &[0, 1, 0, 0, 0, 0, 0, 1, 0, 6, 0, 0, 0, 4, 0, 0],
    ];
    assert_eq!(*talk.client.output(), start.concat(), "plen covers the filter, unlike libpcap's");
    talk.asked(MessageType::StartCapture);
    talk.hear(&[0, 0x84, 0, 0, 0, 0, 0, 8, 0, 4, 0, 0, 0, 0, 0, 0]).unwrap();
    let started = StartCaptureReply { buffer_bytes: 0x40000, port: 0 };
    assert_eq!(talk.events.last(), Some(&Event::Started(started)));
}

#[test]
fn refusals_are_named_and_their_codes_explained() {
    let refusal = |bytes: &[u8]| Talk::begin(Wishes::default()).hear(bytes).unwrap_err();
    // libpcap's way, ExtraHop's, one for strangers, and a code that nobody knows.
    for (code, expected) in [
        (18, "refused AUTH: error 18 (authentication failed), \"no\""),
        (3, "refused AUTH: error 3 (authentication), \"no\""),
        (10, "refused AUTH: error 10 (host not authorised), \"no\""),
        (77, "refused AUTH: error 77, \"no\""),
    ] {
        assert_eq!(refusal(&reply(MessageType::Error, code, b"no")).to_string(), expected);
    }
    // libpcap answers a version that it does not speak with one that it does.
    assert_eq!(refusal(&[1, 1, 0, 17, 0, 0, 0, 0]).label(), "refused");
    let mut talk = after_auth(&[]).unwrap();
    assert_eq!(talk.hear(&list(&[])), Err(Failure::NoInterface));
    let mut talk = after_auth(&[]).unwrap();
    let failure = talk.hear(&error(ErrorCode::NoInterfaces, "")).unwrap_err();
    assert_eq!(failure.to_string(), "refused FINDALLIF: error 5 (no interfaces), \"\"");
    let mut talk = after_auth(&[]).unwrap();
    talk.hear(&list(&[interface("eth0", "")])).unwrap();
    let failure = talk.hear(&error(ErrorCode::Open, "gone")).unwrap_err();
    assert_eq!(failure.to_string(), "refused OPEN: error 6 (interface cannot be opened), \"gone\"");
}

#[test]
fn a_list_with_a_name_longer_than_1024_bytes_is_refused() {
    let mut payload = vec![4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    payload.extend([b'x'; 1_025]);
    let mut talk = after_auth(&[]).unwrap();
    let failure = talk.hear(&reply(MessageType::FindAllIfReply, 1, &payload)).unwrap_err();
    assert!(failure.to_string().contains("longer than 1024 bytes"), "{failure}");
}

#[test]
fn what_follows_the_known_fields_of_a_reply_is_passed_over() {
    let mut talk = after_auth(&[0; 0]).unwrap();
    talk.asked(MessageType::FindAllIf);
    let mut offers = list(&[interface("eth0", "")]);
    let len = u16::try_from(offers.len() - 8 + 3).unwrap();
    offers[6..8].copy_from_slice(&len.to_be_bytes());
    offers.extend([9; 3]);
    talk.hear(&offers).unwrap();
    talk.asked(MessageType::Open);
    talk.hear(&reply(MessageType::OpenReply, 0, &[0, 0, 0, 1, 0, 0, 0, 0, 7, 7, 7])).unwrap();
    assert!(matches!(talk.events[..], [Event::Opened { linktype: 1, .. }]));
}

#[test]
fn an_unasked_error_is_a_complaint() {
    let mut talk = Talk::running();
    talk.wait(STATS_PERIOD).unwrap();
    talk.hear(&error(ErrorCode::GetStats, "busy")).unwrap();
    talk.hear(&stats()).unwrap();
    let complaint = Event::Complaint(Complaint { code: 8, text: "busy".into() });
    assert_eq!(talk.events, [complaint, Event::Stats(STATS)]);
}

#[test]
fn an_unasked_error_9_is_the_end_of_the_capture() {
    for is_asked in [false, true] {
        let mut talk = Talk::running();
        if is_asked {
            talk.wait(STATS_PERIOD).unwrap();
            talk.asked(MessageType::Stats);
        }
        let failure = talk.hear(&error(ErrorCode::Read, "The interface disappeared")).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "ended its capture: error 9 (capture failed), \"The interface disappeared\""
        );
    }
}

#[test]
fn silence_is_noticed() {
    let mut talk = Talk::begin(Wishes::default());
    assert_eq!(talk.wait(REPLY_TIMEOUT), Err(Failure::Timeout("AUTH")));
    let mut talk = Talk::running();
    talk.wait(STATS_PERIOD).unwrap();
    assert_eq!(talk.wait(REPLY_TIMEOUT), Err(Failure::Timeout("STATS")));
    let mut talk = Talk::running();
    talk.client.end(talk.now);
    talk.asked(MessageType::Stats);
    talk.wait(END_TIMEOUT).unwrap();
    talk.asked(MessageType::EndCapture);
    talk.wait(END_TIMEOUT).unwrap();
    assert_eq!(talk.events, [Event::Ended], "an end is an end without the daemon, too");
}

#[test]
fn strangers_are_recognised_at_once() {
    let hear = |bytes: &[u8]| Talk::begin(Wishes::default()).hear(bytes);
    assert_eq!(hear(b"GET / HTTP/1.1\r\n"), Err(Failure::NotRpcap(b'E')));
    assert_eq!(hear(&[1, 0x88, 0, 0, 0, 0, 0, 0]), Err(Failure::Version(1)));
}

#[test]
fn a_message_of_4_gib_takes_no_memory() {
    let mut talk = Talk::running();
    talk.hear(&[0, 200, 0, 0, 0xff, 0xff, 0xff, 0xff]).unwrap();
    for _ in 0..1_000 {
        talk.hear(&[0; 10_000]).unwrap();
        assert!(talk.client.inbound.capacity() < 100_000);
    }
    let mut talk = Talk::begin(Wishes::default());
    talk.hear(&reply(MessageType::AuthReply, 0, &[])).unwrap();
    let failure = talk.hear(&[0, 130, 0, 1, 0xff, 0xff, 0xff, 0xff]).unwrap_err();
    assert_eq!(failure, Failure::TooLong(u32::MAX));
}

proptest! {
    /// A good conversation with bytes changed, in pieces of any size.
    #[test]
    fn no_bytes_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        piece in 1usize..200,
        noise in proptest::collection::vec(any::<u8>(), 0..50),
    ) {
        let mut bytes = reply(MessageType::AuthReply, 0, &Auth::reply());
        bytes.extend(list(&[interface("eth0", "x"), interface("eth1", "y")]));
        bytes.extend(reply(MessageType::OpenReply, 0, &[0, 0, 0, 1, 0, 0, 0, 0]));
        bytes.extend(stats());
        bytes.extend(noise);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let mut talk = Talk::begin(Wishes::default());
        for piece in bytes.chunks(piece) {
            if talk.hear(piece).is_err() {
                break;
            }
        }
        let _ = talk.wait(REPLY_TIMEOUT);
    }
}
