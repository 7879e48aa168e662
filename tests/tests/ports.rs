//! `--election ports` from outside: what it asks for, what it says, and that it does as the
//! reference where that is not what it should be.

#[cfg(test)]
mod tests {
    use std::process::Command;
    use tests::balance::each_packet;
    use tests::lab::{Lab, LabSpec, can_run};
    use tests::scenario::TAP_FLAGS;
    use tests::tap::{Sensor, Tap, check_account, podtap};
    use tests::traffic::{Datagrams, Serve, Server};

    const PORTS: [&str; 2] = ["--election", "ports"];

    #[test]
    fn without_the_pods_prefixes_it_is_refused_as_the_reference_refuses_to_start() {
        let output = Command::new(podtap())
            .args(["check", "--election", "ports"])
            .env_remove("PODNET")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("--podnet: --election ports needs the pods' IPv4 prefixes"),
            "{said}"
        );
    }

    #[test]
    fn a_check_names_the_main_device_and_its_subnets() {
        if !can_run("the main device of a node") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(1)).unwrap();
        let podtap = podtap();
        let words = [podtap.to_str().unwrap(), "check", "--podnet", "10.0.0.0/16"];
        let said = lab.node(1).exec(words.iter().chain(&PORTS)).unwrap();
        assert!(said.contains("\nmain device: eth0 10.0.1.0/24\n"), "{said}");
        let said = lab.node(1).exec(words).unwrap();
        assert!(!said.contains("main device"), "{said}");
    }

    #[test]
    fn between_nodes_it_reports_twice_as_the_reference_does_and_within_one_once() {
        if !can_run("the reference's rule in the lab") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(2).pods(2)).unwrap();
        let file = directory.path().join("sensor.pcapng");
        let sensor = Sensor::start(lab.sensor(), file.clone(), &[]).unwrap();
        let flags = [&TAP_FLAGS[..], &PORTS].concat();
        let taps: Vec<Tap> = lab
            .nodes()
            .iter()
            .map(|node| Tap::start(node, lab.sensor(), &flags).unwrap())
            .collect();
        let (from, same, other) = (lab.node(1).pod(1), lab.node(1).pod(2), lab.node(2).pod(1));
        for (to, port) in [(same, 7001), (other, 7002)] {
            let _server = Server::start(to, Serve::Discard, port).unwrap();
            Datagrams::new(to.socket(port), 100, 64).run_on(from).unwrap();
        }
        for tap in taps {
            let (account, log) = tap.stop_with_log().unwrap();
            check_account(&account).unwrap();
            assert!(account["dropped"]["election"].is_u64(), "{account}");
            assert_eq!(account["dropped"]["duplicate"], 0, "there is no table");
            assert!(log.contains("for swapping one node at a time"), "{log}");
        }
        sensor.stop().unwrap();
        let mut seen = [0; 2];
        each_packet(&file, |_at, frame| {
            let port = frame.get(36..38).map(|port| u16::from_be_bytes([port[0], port[1]]));
            if frame.get(23) == Some(&17) {
                seen[0] += u32::from(port == Some(7001));
                seen[1] += u32::from(port == Some(7002));
            }
        })
        .unwrap();
        assert_eq!(seen, [100, 200]);
    }
}
