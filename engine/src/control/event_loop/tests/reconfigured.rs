//! What may change while the tap runs, and what must not notice.

use super::*;
use crate::control::{Access, AllowedHosts, ListenAddress, NullAuth};

impl Tap {
    /// Changes the configuration that `start` was given.
    fn change(&self, config: ControlConfig) {
        self.control.reconfigure(config);
    }
}

#[test]
fn sensors_come_and_go_while_one_that_stays_notices_nothing() {
    let (stays, goes, comes) = (Sensor::new(), Sensor::new(), Sensor::new());
    let tap = Tap::start(config(&[stays.target(), goes.target()]), 0);
    let (mut kept, mut left) = (stays.accept(), goes.accept());
    kept.capture(ANY_ETH);
    left.capture(ANY_ETH);
    assert_eq!(tap.capturing(), 2);
    let session = tap.sessions.load()[0].id;

    tap.change(config(&[comes.target(), stays.target()]));
    assert!(left.is_closed(), "the sensor that is left sees the end");
    let mut new = comes.accept();
    new.capture(ANY_ETH);
    kept.ask(9, &[]);
    let list = tap.sessions.load();
    assert_eq!((list.len(), list[0].id), (2, session), "the kept sensor's capture is the same");
    assert_eq!(list[1].spec.sensor, 2, "behind the places that are taken");
    tap.until_status(1, "left", |status| {
        status.last_error.as_deref() == Some("it is not configured any more")
    });
    let status = &tap.control.state()[0];
    assert_eq!((status.connects, status.failures), (1, 0));

    tap.change(config(&[stays.target(), goes.target()]));
    assert!(new.is_closed());
    let mut again = goes.accept();
    again.capture(ANY_ETH);
    let list = tap.sessions.load();
    assert_eq!(list[1].spec.sensor, 1, "who comes again counts where it counted");
    assert_eq!(tap.control.state().len(), 3);
}

#[test]
fn a_sensor_with_another_interface_is_another_sensor() {
    let sensor = Sensor::new();
    let with = |interface: Option<&str>| {
        config(&[SensorTarget { interface: interface.map(str::to_owned), ..sensor.target() }])
    };
    let tap = Tap::start(with(Some("eth0")), 0);
    let mut client = sensor.accept();
    client.ask(8, &[0; 8]);
    assert!(client.ask(2, &[]).windows(12).any(|bytes| bytes == b";preselected"));
    client.ask(3, b"eth0");
    client.send(3, b"any-eth");
    assert_eq!(client.receive().0, 1, "only the preselected interface opens");

    tap.change(with(None));
    assert!(client.is_closed());
    let mut client = sensor.accept();
    client.ask(8, &[0; 8]);
    client.ask(3, b"any-eth");
}

#[test]
fn other_credentials_and_hosts_are_good_from_then_on() {
    let sensor = Sensor::new();
    let listen = ListenAddress { ip: Some("127.0.0.1".parse().unwrap()), port: 0 };
    let with = |null, nets: &[&str]| ControlConfig {
        access: Access { null, ..Access::default() },
        allowed_hosts: AllowedHosts {
            nets: nets.iter().map(|net| net.parse().unwrap()).collect(),
            names: Vec::new(),
        },
        listen: vec![listen],
        ..config(&[sensor.target()])
    };
    let tap = Tap::start(with(NullAuth::Everybody, &["127.0.0.0/8"]), 0);
    let connect = || {
        let stream = TcpStream::connect(tap.control.listening()[0]).unwrap();
        stream.set_read_timeout(Some(FAR)).unwrap();
        Client(stream)
    };
    let mut early = connect();
    early.ask(8, &[0; 8]);

    tap.change(with(NullAuth::Nobody, &["127.0.0.0/8"]));
    // Whoever connects after the change was taken over is refused.
    until("the new rule", || {
        let mut late = connect();
        late.send(8, &[0; 8]);
        late.receive().0 == 1
    });
    early.ask(2, &[]);

    tap.change(with(NullAuth::Everybody, &["192.0.2.1/32"]));
    until("the new list", || {
        let mut late = connect();
        late.send(8, &[0; 8]);
        let mut header = [0; 8];
        // A refusal, or a connection that is gone already.
        late.0.read_exact(&mut header).is_err() || header[1] == 1
    });
    early.ask(2, &[]);
}

#[test]
fn a_sensor_that_is_left_while_its_name_is_looked_up_is_gone() {
    let sensor = Sensor::new();
    let named =
        SensorTarget { host: "no.such.name.invalid".to_owned(), port: 2003, interface: None };
    let tap = Tap::start(config(&[named]), 0);
    tap.change(config(&[sensor.target()]));
    sensor.accept().capture(ANY_ETH);
    tap.until_status(0, "left", |status| status.state == SensorState::Backoff);
    assert!(tap.control.shutdown(FAR));
}
