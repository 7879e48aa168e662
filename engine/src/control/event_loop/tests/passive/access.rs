//! Which clients are let in.

use super::*;

#[test]
fn null_is_refused_of_clients_unless_it_is_permitted() {
    let mut config = open_config();
    config.access.null = NullAuth::Sensors;
    let tap = Tap::start(config, 0);
    let mut client = tap.connect();
    client.send(2, &[]);
    assert_eq!(client.receive().1, 16, "AUTH comes first");
    client.send(8, &[0; 8]);
    let (_, code, text) = client.receive();
    let expected = b"Authentication failed; NULL authentication not permitted.";
    assert_eq!((code, &*text), (18, &expected[..]), "the words that nmap and hydra look for");
    client.send(8, &[0, 2, 0, 0, 0, 0, 0, 0]);
    assert_eq!(client.receive().1, 20);
    client.send(8, &[0, 0, 0]);
    assert_eq!(client.receive().1, 3);
    assert_eq!(tap.count(|stats| &stats.auth_failures), 1);
    for _ in 0..12 {
        client.send(8, &[0; 8]);
        assert_eq!(client.receive().1, 18);
    }
    assert!(client.is_closed(), "enough is enough");
}

#[test]
fn who_leaves_when_its_credentials_are_refused_is_a_failure_with_that_reason() {
    let sensor = Sensor::new();
    let mut config = with_password();
    config.sensors = vec![sensor.target()];
    config.timing.refusal = Duration::ZERO;
    let tap = Tap::start(config, 0);
    let failed = |place: usize, count: u64, why: &str| {
        tap.until_status(place, "the failure", |status| status.failures >= count);
        let error = tap.control.state()[place].last_error.clone().unwrap();
        assert!(error.ends_with(why), "{error}");
    };
    let no_null = "null authentication is not permitted: there is a password";
    // The end, and CLOSE.
    let mut client = tap.connect();
    client.send(8, &[0; 8]);
    assert_eq!(client.receive().1, 18);
    drop(client);
    failed(1, 1, no_null);
    let mut client = tap.connect();
    assert_eq!(client.log_in("ann", "guess"), (1, 18));
    client.send(6, &[]);
    failed(1, 2, "wrong user or password");
    // A sensor's the same.
    let mut client = sensor.accept();
    client.send(8, &[0; 8]);
    assert_eq!(client.receive().1, 18);
    drop(client);
    failed(0, 1, no_null);
    // Who gets in in the end just leaves.
    let mut client = tap.connect();
    client.log_in("ann", "guess");
    assert_eq!(client.log_in("ann", "secret"), (0x88, 0));
    client.send(6, &[]);
    assert!(client.is_closed());
    until("the end", || tap.clients() == 0);
    assert_eq!(tap.control.state()[1].failures, 2);
}

#[test]
fn a_wrong_password_is_answered_late_and_nobody_else_waits() {
    let mut config = with_password();
    config.timing.refusal = Duration::from_millis(300);
    let tap = Tap::start(config, 0);
    for (user, password) in [("ann", "wrong"), ("nobody", "secret"), ("", "")] {
        let started = Instant::now();
        let mut client = tap.connect();
        assert_eq!(client.log_in(user, password), (1, 18));
        assert!(started.elapsed() >= Duration::from_millis(300));
        assert_eq!(client.log_in("ann", "secret"), (0x88, 0), "it may try again");
        client.ask(2, &[]);
    }
    let tap = Tap::start(patient(with_password()), 0);
    let mut wrong = tap.connect();
    wrong.send(8, b"\0\x01\0\0\0\x01\0\x01ux");
    until("the wrong try", || tap.count(|stats| &stats.auth_failures) == 1);
    let mut right = tap.connect();
    assert_eq!(right.log_in("ann", "secret"), (0x88, 0));
    right.ask(3, b"any-eth");
    right.ask(4, &STARTCAP);
    wrong.0.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    wrong.0.read_exact(&mut [0]).unwrap_err();
}

#[test]
fn three_wrong_passwords_end_a_connection() {
    let mut config = with_password();
    config.timing.refusal = Duration::ZERO;
    let tap = Tap::start(config, 0);
    let mut client = tap.connect();
    for _ in 0..3 {
        assert_eq!(client.log_in("ann", "guess"), (1, 18));
    }
    assert!(client.is_closed());
    assert_eq!(tap.count(|stats| &stats.auth_failures), 3);
}

#[test]
fn a_host_that_guesses_on_is_not_served_for_a_while() {
    let mut config = with_password();
    config.timing.refusal = Duration::ZERO;
    config.timing.forget = Duration::from_secs(3600);
    let tap = Tap::start(config, 0);
    let mut early = tap.connect();
    for _ in 0..5 {
        let mut client = tap.connect();
        for _ in 0..2 {
            client.log_in("ann", "guess");
        }
    }
    let text = tap.connect().is_refused_with(10);
    assert!(text.contains("later"), "{text}");
    assert_eq!(tap.count(|stats| &stats.refused_hosts), 1);
    assert_eq!(early.log_in("ann", "secret"), (1, 18), "nor told when it guesses right");
    assert_eq!(tap.connect_from([127, 0, 0, 2]).log_in("ann", "secret"), (0x88, 0));
}

#[test]
fn a_host_that_is_not_in_the_list_gets_error_10() {
    let mut config = open_config();
    config.allowed_hosts.nets = vec!["127.0.0.2/32".parse().unwrap()];
    let tap = Tap::start(config, 0);
    let mut stranger = tap.connect();
    // It speaks first, as clients do.
    stranger.send(8, &[0; 8]);
    stranger.is_refused_with(10);
    tap.connect_from([127, 0, 0, 2]).capture(ANY_ETH);
    assert_eq!(tap.count(|stats| &stats.refused_hosts), 1);
}

#[test]
fn the_list_of_hosts_may_hold_names() {
    let mut config = open_config();
    let names = vec!["no.such.name.invalid".to_owned(), "localhost".to_owned()];
    config.allowed_hosts = AllowedHosts { names, nets: Vec::new() };
    let tap = Tap::start(config, 0);
    tap.connect().capture(ANY_ETH);
    tap.connect_from([127, 0, 0, 9]).is_refused_with(10);
}

#[test]
fn who_does_not_authenticate_is_told_and_left() {
    let mut config = open_config();
    config.timing.client_auth = Duration::from_millis(100);
    let tap = Tap::start(config, 0);
    let mut silent = tap.connect();
    let mut slow = tap.connect();
    slow.0.write_all(&[0, 8, 0, 0]).unwrap();
    silent.is_refused_with(2);
    slow.is_refused_with(2);
    assert_eq!(tap.count(|stats| &stats.timeouts), 2);
}
