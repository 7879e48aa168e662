//! `scripts/lab`: what a lab up by hand has, and that nothing of it is left.

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};
    use tests::lab::{Lab, LabSpec, can_run};

    fn lab(words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_lab")).args(words).output().unwrap()
    }

    fn succeeds(words: &[&str]) -> String {
        let output = lab(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Takes it down when a test fails half way.
    struct Down(String);

    impl Drop for Down {
        fn drop(&mut self) {
            let _ = Lab::down(&self.0);
        }
    }

    #[test]
    fn relays_stay_with_a_lab_that_is_up_and_go_with_it() {
        if !can_run("relays_stay_with_a_lab_that_is_up_and_go_with_it") {
            return;
        }
        let name = LabSpec::unique().name;
        let _down = Down(name.clone());
        let name = name.as_str();
        let up = ["up", "--name", name, "--pods", "1", "--branch-pods", "2", "--eni-pods", "1"];
        let more = ["--overlay-pods", "1", "--overlay", "geneve", "--bare"];
        let said = succeeds(&[&up[..], &more[..]].concat());
        assert!(said.contains("node2-branch2") && said.contains("db "), "{said}");
        // Two ends of each trunk, and a tunnel on each node.
        let running = Lab::attach(name).unwrap().processes().unwrap();
        assert_eq!(running.len(), 6);
        for to in ["10.0.81.102", "10.0.82.101", "10.0.200.10", "10.0.42.101"] {
            let ping = ["--", "ping", "-c", "1", "-W", "10", to];
            let exec = ["exec", "--name", name, "node1-branch1"];
            succeeds(&[&exec[..], &ping[..]].concat());
        }
        let ping = ["--", "ping", "-c", "1", "-W", "10", "10.244.2.101"];
        succeeds(&[&["exec", "--name", name, "node1-overlay1"][..], &ping[..]].concat());
        let service = ["service", "--name", name, "--node-port", "30080", "--local-only"];
        succeeds(&[&service[..], &["172.20.0.10:80", "10.0.1.101:8080"][..]].concat());
        succeeds(&["node-dns", "--name", name, "1", "172.20.0.53"]);

        succeeds(&["down", "--name", name]);
        assert!(Lab::attach(name).is_err());
        for pid in running {
            assert!(std::fs::read_link(format!("/proc/{pid}/ns/net")).is_err(), "{pid} is left");
        }
    }

    #[test]
    fn a_senseless_lab_is_refused_by_name() {
        for (words, why) in [
            (&["up", "--overlay", "gre"][..], "geneve or ipip"),
            (&["up", "--nodes", "40", "--bare"][..], "1 to 39"),
            (&["service", "172.20.0.1:80", "--local-only"][..], "--node-port"),
        ] {
            let output = lab(words);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.contains(why), "{words:?}: {said}");
        }
    }
}
