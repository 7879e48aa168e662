//! States as files, and the socket that gives them.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;
use crate::classify::OwnFlow;
use crate::explain::socket::{AskError, Server, ServerError, ask as ask_tap};

#[test]
fn a_state_comes_back_as_it_went() {
    let state = vpc_cni().state(&[
        "--svcnet",
        "172.20.0.0/16",
        "--listen",
        "99",
        "--sensor",
        "10.0.0.1",
        "--filter",
        "tcp port 80",
    ]);
    let flow = OwnFlow { peer: [10, 0, 9, 9].into(), peer_port: 9, tcp_port: Some(2002) };
    let state = state.running([flow]);
    let again = State::parse(state.to_json().as_bytes()).unwrap();
    assert_eq!(again, state);
    assert_eq!(again.filter(), Some("tcp port 80"));
    assert_eq!(again.view(), state.view());
    assert_eq!(format!("{:?}", again.policy()), format!("{:?}", state.policy()));
}

fn changed(change: impl FnOnce(&mut serde_json::Value)) -> Result<State, StateError> {
    let mut value: serde_json::Value =
        serde_json::from_str(&vpc_cni().state(&FLAGS).to_json()).unwrap();
    change(&mut value);
    State::parse(value.to_string().as_bytes())
}

#[test]
fn a_state_of_another_form_is_refused_with_both_numbers() {
    let error = changed(|value| {
        value["format"] = 7.into();
        value["version"] = "9.1.0".into();
        value["something"] = "else".into();
    });
    let said = error.unwrap_err().to_string();
    assert!(said.contains("form 7 (of podtap 9.1.0)"), "{said}");
    assert!(said.contains("reads form 1"), "{said}");
}

#[test]
fn what_is_not_understood_is_refused_since_it_may_decide() {
    for pointer in ["", "/policy", "/network", "/network/links/0"] {
        let error = changed(|value| value.pointer_mut(pointer).unwrap()["new_rule"] = 1.into());
        let said = error.unwrap_err().to_string();
        assert!(said.contains("new_rule"), "{pointer}: {said}");
    }
    for (pointer, wrong) in [
        ("/network/links/0/slot", serde_json::json!(40_000)),
        ("/network/links/0/role", "sideways".into()),
        ("/policy/election", "random".into()),
        ("/policy/node_filter", serde_json::json!({"text": "x", "instructions": [[1, 2, 3, 4]]})),
        ("/policy/svcnet", serde_json::json!(["10.0.0.0/99"])),
        ("/network", serde_json::Value::Null),
    ] {
        let result = changed(|value| *value.pointer_mut(pointer).unwrap() = wrong.clone());
        assert!(result.is_err(), "{pointer}: {wrong}");
    }
}

#[test]
fn what_is_no_state_is_an_error_whatever_it_is() {
    let state = vpc_cni().state(&FLAGS).to_json();
    let deep = "[".repeat(100_000);
    let mut texts = vec!["", "{}", "null", "\u{0}", "{\"format\":-1}", deep.as_str()];
    let cuts: Vec<usize> = (0..state.len()).step_by(97).collect();
    texts.extend(cuts.iter().map(|cut| &state[..*cut]));
    for text in texts {
        assert!(State::parse(text.as_bytes()).is_err(), "{}", &text[..text.len().min(40)]);
    }
}

/// A name that no other test has, nor another run of it.
fn name() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    // Relaxed: only the uniqueness of the number matters.
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("podtap-test-{}-{count}", std::process::id())
}

fn serve(name: &str) -> (Server, State) {
    let state = vpc_cni().state(&FLAGS);
    let told = state.clone();
    (Server::start(name, move || told.clone()).unwrap(), state)
}

fn connect(name: &str) -> UnixStream {
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let stream = UnixStream::connect_addr(&address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

#[test]
fn a_tap_says_its_state_to_who_may_ask() {
    let name = name();
    let (server, state) = serve(&name);
    for _ in 0..3 {
        assert_eq!(ask_tap(&name).unwrap(), state);
    }
    drop(server);
    let error = ask_tap(&name).unwrap_err();
    assert!(matches!(error, AskError::Absent { .. }), "{error}");
    assert!(ExplainError::from(error).is_input());
}

#[test]
fn a_name_that_is_taken_says_how_to_choose_another() {
    let name = name();
    let _first = serve(&name);
    let error = Server::start(&name, || unreachable!("nobody asks")).unwrap_err();
    assert!(matches!(error, ServerError::Taken { .. }));
    assert!(error.to_string().contains("--state-socket NAME"), "{error}");
}

#[test]
fn peers_that_say_nothing_do_not_keep_others_from_the_state() {
    let name = name();
    let (_server, state) = serve(&name);
    let silent: Vec<UnixStream> = (0..64).map(|_| connect(&name)).collect();
    assert_eq!(ask_tap(&name).unwrap(), state);
    let mut first = &silent[0];
    assert_eq!(first.read(&mut [0; 1]).unwrap_or(0), 0, "the oldest was closed");
}

#[test]
fn peers_that_do_not_read_are_cut_off() {
    let name = name();
    let (_server, state) = serve(&name);
    let greedy: Vec<UnixStream> = (0..8)
        .map(|_| {
            let mut stream = connect(&name);
            stream.write_all(b"state\n").unwrap();
            stream
        })
        .collect();
    assert_eq!(ask_tap(&name).unwrap(), state);
    drop(greedy);
}

#[test]
fn nonsense_gets_no_answer_and_ends_the_connection() {
    let name = name();
    let (_server, state) = serve(&name);
    for request in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100_000], &[0xff; 6], b"STATE\n"] {
        let mut stream = connect(&name);
        // It may have hung up before it has all of it.
        let _cut = stream.write_all(request);
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
    }
    let mut slow = connect(&name);
    slow.write_all(b"sta").unwrap();
    let mut answer = Vec::new();
    let _reset = slow.read_to_end(&mut answer);
    assert!(answer.is_empty(), "half a question is cut off in time");
    assert_eq!(ask_tap(&name).unwrap(), state);
}
