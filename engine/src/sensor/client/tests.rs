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
        let opened = Event::Opened { interface: "eth0".into(), linktype: 1 };
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
    talk.asked(MessageType::EndCapture);
    talk.hear(&reply(MessageType::EndCaptureReply, 0, &[])).unwrap();
    talk.asked(MessageType::Stats);
    talk.hear(&stats()).unwrap();
    assert_eq!(talk.events, [Event::Stats(STATS), Event::FinalStats(STATS), Event::Ended]);
    talk.client.close();
    talk.asked(MessageType::Close);
    assert_eq!(talk.client.deadline(), None);
}

#[test]
fn every_length_of_auth_reply_is_understood() {
    for payload in [&[][..], &[0, 0], &Auth::reply(), &[0, 0, 0, 0, 0xa1, 0xb2, 0xc3, 0xd4, 9, 9]] {
        let mut talk = Talk::begin(Wishes::default());
        talk.hear(&reply(MessageType::AuthReply, 0, payload)).unwrap();
        talk.asked(MessageType::FindAllIf);
    }
    let mut talk = Talk::begin(Wishes::default());
    let failure = talk.hear(&reply(MessageType::AuthReply, 0, &[1, 2])).unwrap_err();
    assert_eq!(failure.label(), "malformed");
}

#[test]
fn a_password_is_sent_as_the_daemon_reads_it() {
    let wishes = Wishes { credentials: Some(("me".into(), "secret".into())), open: None };
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
fn a_named_interface_needs_no_list() {
    let wishes = Wishes { open: Some("eth7".into()), credentials: None };
    for answer in [None, Some(error(ErrorCode::FindAllIf, "too many"))] {
        let mut talk = Talk::begin(wishes.clone());
        talk.hear(&reply(MessageType::AuthReply, 0, &[])).unwrap();
        talk.asked(MessageType::FindAllIf);
        match answer {
            None => talk.wait(REPLY_TIMEOUT).unwrap(),
            Some(answer) => talk.hear(&answer).unwrap(),
        }
        assert_eq!(talk.asked(MessageType::Open), b"eth7");
        talk.hear(&list(&[interface("late", "")])).unwrap();
        assert!(talk.client.output().is_empty(), "a late list is passed over");
    }
}

#[test]
fn refusals_are_named() {
    let mut talk = Talk::begin(Wishes::default());
    let failure = talk.hear(&error(ErrorCode::AuthFailed, "no")).unwrap_err();
    assert_eq!(
        failure.to_string(),
        "refused AUTH: error 18, \"no\"",
        "said as: 10.0.0.1 refused AUTH"
    );
    let mut talk = Talk::begin(Wishes::default());
    talk.hear(&reply(MessageType::AuthReply, 0, &[])).unwrap();
    assert_eq!(talk.hear(&list(&[])), Err(Failure::NoInterface));
}

#[test]
fn an_unasked_error_is_a_complaint_unless_the_capture_is_over() {
    let mut talk = Talk::running();
    talk.wait(STATS_PERIOD).unwrap();
    talk.hear(&error(ErrorCode::GetStats, "busy")).unwrap();
    talk.hear(&stats()).unwrap();
    let complaint = Event::Complaint { code: 8, text: "busy".into() };
    assert_eq!(talk.events, [complaint, Event::Stats(STATS)]);
    let failure = talk.hear(&error(ErrorCode::Read, "The interface disappeared")).unwrap_err();
    assert_eq!(failure, Failure::CaptureFailed("The interface disappeared".into()));
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
