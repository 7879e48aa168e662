//! Sensors that share the packets, and several connections to one.

use std::sync::atomic::Ordering;

use super::*;
use crate::control::{SensorsMode, Sharing};

fn sharing(sensors: &[SensorTarget], mode: SensorsMode, each: usize) -> ControlConfig {
    let settle = Duration::from_millis(300);
    let mut config = config(sensors);
    config.sharing = Sharing { mode, sessions_per_sensor: each, settle };
    config
}

impl Tap {
    /// Of each group, the sensors of those that take part.
    fn groups(&self) -> Vec<Vec<usize>> {
        let roster = self.sessions.load();
        let sensors = |members: &[Arc<crate::session::Session>]| {
            let mut sensors: Vec<_> = members.iter().map(|member| member.spec.sensor).collect();
            sensors.sort_unstable();
            sensors
        };
        roster.groups().iter().map(|group| sensors(group.members())).collect()
    }

    fn until_groups(&self, what: &str, expected: &[&[usize]]) {
        until(what, || self.groups() == expected);
    }
}

#[test]
fn a_dead_sensors_flows_go_to_the_other_and_come_back_when_it_has_settled() {
    let (steady, dying) = (Sensor::new(), Sensor::new());
    let targets = [steady.target(), dying.target()];
    let tap = Tap::start(sharing(&targets, SensorsMode::Balance, 1), 0);
    let mut first = steady.accept();
    first.capture(ANY_ETH);
    tap.until_groups("one for all", &[&[0]]);
    for _ in 0..3 {
        let mut client = dying.accept();
        client.ask(8, &[0; 8]);
        assert_eq!(tap.groups(), [[0]], "no capture, no member");
        client.ask(3, b"any-eth");
        client.ask(4, &STARTCAP);
        tap.until_groups("both", &[&[0, 1]]);
        client.ask(10, &[]);
        assert_eq!(tap.groups(), [[0]], "ENDCAP");
        client.ask(4, &STARTCAP);
        tap.until_groups("both again", &[&[0, 1]]);
        drop(client);
        tap.until_groups("one left", &[&[0]]);
    }
    first.ask(9, &[]);
}

#[test]
fn back_after_an_absence_it_gets_nothing_at_first() {
    let (one, two) = (Sensor::new(), Sensor::new());
    let targets = [one.target(), two.target()];
    let mut config = sharing(&targets, SensorsMode::Balance, 1);
    config.sharing.settle = Duration::from_secs(3600);
    let tap = Tap::start(config, 0);
    let mut clients = [one.accept(), two.accept()];
    clients.iter_mut().for_each(|client| client.capture(ANY_ETH));
    tap.until_groups("both, at once", &[&[0, 1]]);
    clients[1].ask(4, &STARTCAP);
    assert_eq!((tap.groups(), tap.capturing()), (vec![vec![0]], 2));
    drop(clients);
}

#[test]
fn each_sensor_has_as_many_connections_as_asked_for_and_they_share() {
    let (one, two) = (Sensor::new(), Sensor::new());
    let targets = [one.target(), two.target()];
    let tap = Tap::start(sharing(&targets, SensorsMode::Copy, 3), 0);
    let connect = |sensor: &Sensor| {
        let mut client = sensor.accept();
        client.capture(ANY_ETH);
        client
    };
    let mut clients: Vec<_> = (0..3).map(|_| connect(&one)).collect();
    let _others: Vec<_> = (0..3).map(|_| connect(&two)).collect();
    tap.until_groups("all", &[&[0, 0, 0], &[1, 1, 1]]);
    let states = tap.control.state();
    let labels: Vec<_> = states.iter().map(|status| status.target.clone()).collect();
    let [one_label, two_label] = targets.map(|target| target.to_string());
    assert_eq!(labels[..3], [&*one_label; 3]);
    assert_eq!(labels[3..], [&*two_label; 3]);
    let shares = |k| {
        let roster = tap.sessions.load();
        roster.iter().any(|s| s.spec.share.as_ref().is_some_and(|share| share.ordinal == k))
    };
    assert!((0..3).all(shares) && !shares(3));
    drop(clients.pop());
    tap.until_groups("one connection less", &[&[0, 0], &[1, 1, 1]]);
    connect(&one);
}

#[test]
fn a_capture_of_one_interface_shares_nothing() {
    let (one, two) = (Sensor::new(), Sensor::new());
    let targets = [one.target(), two.target()];
    let tap = Tap::start(sharing(&targets, SensorsMode::Balance, 1), 0);
    let mut first = one.accept();
    first.capture(ANY_ETH);
    let mut second = two.accept();
    second.capture("eth0");
    assert_eq!((tap.capturing(), tap.groups()), (2, vec![vec![0]]));
    assert!(tap.sessions.load()[1].spec.share.is_none());
}

#[test]
fn one_sensor_with_one_session_shares_nothing() {
    let sensor = Sensor::new();
    let tap = Tap::start(sharing(&[sensor.target()], SensorsMode::Copy, 1), 0);
    sensor.accept().capture(ANY_ETH);
    assert!(tap.groups().is_empty());
}

#[test]
fn a_sensor_that_gets_company_while_the_tap_runs_shares_with_it() {
    let (one, two) = (Sensor::new(), Sensor::new());
    let alone = sharing(&[one.target()], SensorsMode::Balance, 1);
    let tap = Tap::start(alone.clone(), 0);
    let mut first = one.accept();
    first.capture(ANY_ETH);
    tap.until_groups("alone", &[&[0]]);
    tap.control.reconfigure(ControlConfig { sensors: vec![one.target(), two.target()], ..alone });
    let mut second = two.accept();
    second.capture(ANY_ETH);
    tap.until_groups("both", &[&[0, 1]]);
}

#[test]
fn a_closed_data_port_moves_the_flows_and_ends_no_conversation() {
    let (one, two) = (Sensor::new(), Sensor::new());
    let targets = [one.target(), two.target()];
    let tap = Tap::start(sharing(&targets, SensorsMode::Balance, 1), 0);
    let mut clients = [one.accept(), two.accept()];
    clients.iter_mut().for_each(|client| client.capture(ANY_ETH));
    tap.until_groups("both", &[&[0, 1]]);
    let refused = {
        let roster = tap.sessions.load();
        Arc::clone(roster.iter().find(|session| session.spec.sensor == 1).unwrap())
    };
    until("one left", || {
        refused.stats.refused.fetch_add(1, Ordering::Relaxed);
        tap.groups() == [[0]]
    });
    clients[1].ask(9, &[]);
    // Not refused any more.
    tap.until_groups("both again", &[&[0, 1]]);
    assert_eq!(tap.control.state()[1].connects, 1);
}

/// In a network namespace of its own, whose packet filter makes one of two addresses silent.
/// Needs root.
#[test]
fn a_silent_hosts_flows_move_long_before_its_connection_ends() {
    let test = thread::spawn(|| {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIPPED: needs root for a network namespace ({error})");
            return;
        }
        let run = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            let status = Command::new(words[0]).args(&words[1..]).status().unwrap();
            assert!(status.success(), "{line}");
        };
        run("ip link set lo up");
        let steady = Sensor::new();
        let silent = Sensor(TcpListener::bind("127.0.0.2:0").unwrap());
        let there = SensorTarget { host: "127.0.0.2".to_owned(), ..silent.target() };
        let mut config = sharing(&[steady.target(), there], SensorsMode::Balance, 1);
        config.timing.silence = Duration::from_secs(3600);
        let tap = Tap::start(config, 0);
        let mut clients = [steady.accept(), silent.accept()];
        clients.iter_mut().for_each(|client| client.capture(ANY_ETH));
        tap.until_groups("both", &[&[0, 1]]);
        run("iptables -I INPUT -d 127.0.0.2 -j DROP");
        tap.until_groups("one left", &[&[0]]);
        assert_eq!(tap.capturing(), 2, "the conversation goes on");
        run("iptables -D INPUT -d 127.0.0.2 -j DROP");
        tap.until_groups("both again", &[&[0, 1]]);
        clients[1].ask(9, &[]);
        assert_eq!(tap.control.state()[1].connects, 1);
    });
    test.join().unwrap();
}

#[test]
fn too_many_sessions_are_refused() {
    let target = |port| SensorTarget { host: "127.0.0.1".to_owned(), port, interface: None };
    let config = sharing(&(1..=17).map(target).collect::<Vec<_>>(), SensorsMode::Balance, 16);
    let view = Shared::new(View::default());
    let error = Control::start(config, Sessions::new(Vec::new()), view, Stats::default);
    assert!(error.unwrap_err().to_string().contains("17 sensors with 16 sessions each"));
}
