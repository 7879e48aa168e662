//! `podtap explain` against running taps, as a person on the node asks.

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Output};
    use std::time::{Duration, Instant};

    use nix::sys::signal::Signal;
    use serde_json::Value;
    use tests::lab::{Host, Lab, LabSpec, Process, can_run};
    use tests::tap::{Tap, podtap};

    /// How long a process may take to start or to end.
    const LIMIT: Duration = Duration::from_secs(20);
    const FLAGS: [&str; 4] = ["--tapped-net", "10.0.0.0/17", "--svcnet", "172.20.0.0/16"];

    fn explain(host: &Host, words: &[&str]) -> Output {
        host.command(podtap()).arg("explain").args(words).output().unwrap()
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    /// The answer as JSON; what tells where the state came from is taken out.
    #[track_caller]
    fn answer(host: &Host, words: &[&str]) -> Value {
        let output = explain(host, &[words, &["--json"]].concat());
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        let mut value: Value = serde_json::from_slice(&output.stdout).unwrap();
        value["state"]["from"] = Value::Null;
        value
    }

    /// Waits until a tap answers at the name.
    #[track_caller]
    fn wait_for(host: &Host, name: &str) {
        let started = Instant::now();
        loop {
            let output = explain(host, &["--socket", name, "lo"]);
            if output.status.success() {
                return;
            }
            assert!(started.elapsed() < LIMIT, "{}", text(&output.stderr));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn refused(output: &Output, code: i32, expected: &str) {
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(expected), "{said}");
        assert_eq!(said.trim().lines().count(), 1, "{said}");
    }

    #[test]
    fn a_running_tap_and_its_saved_state_give_the_same_answers() {
        if !can_run("podtap explain") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(2)).unwrap();
        let node = lab.node(1);
        let tap = Tap::launch(node, lab.sensor(), &FLAGS).unwrap();
        wait_for(node, "podtap");
        let file = directory.path().join("state.json");
        let file = file.to_str().unwrap();
        assert!(explain(node, &["--save", file]).status.success());

        let (pod, other) = (node.pod(1), node.pod(2));
        let (address, veth) = (pod.v4().to_string(), pod.host_veth().to_owned());
        let (from, to) = (pod.socket(40_000).to_string(), other.socket(80).to_string());
        let questions: [&[&str]; 6] = [
            &[&address],
            &["10.0.2.7"],
            &[&veth],
            &[&from, "tcp", &to],
            &[&from, "tcp", "10.0.2.7:80"],
            &[&from, "tcp", "172.20.0.10:80", "--backend", &to],
        ];
        let mut answers = Vec::new();
        for question in questions {
            let running = answer(node, question);
            assert_eq!(running, answer(node, &[question, &["--state", file]].concat()));
            answers.push(running);
        }
        assert_eq!(answers[0]["facts"]["place"], "local");
        assert_eq!(answers[0]["facts"]["behind"][0]["interface"], veth);
        assert_eq!(answers[1]["facts"]["covered"], true);
        assert_eq!(answers[2]["role"], "pod");
        assert_eq!(answers[3]["request"][0]["verdict"], "reported");
        assert_eq!(answers[3]["request"][0]["interface"], veth);
        assert_eq!(answers[3]["request"][1]["reason"], "duplicate");
        assert_eq!(answers[4]["answer"][0]["reason"], "covered");
        assert_eq!(answers[5]["request"][1]["verdict"], "reported");
        let said = text(&explain(node, &[&address]).stdout);
        assert!(said.starts_with("state") && said.contains("tap @podtap (pid "), "{said}");

        // A file on standard input, where the tap is not.
        let saved = std::fs::read(file).unwrap();
        let mut asked = Command::new(podtap());
        asked.args(["explain", "--json", "--state", "-", &address]);
        let asked = asked.stdin(std::fs::File::open(file).unwrap()).output().unwrap();
        assert!(asked.status.success(), "{}", text(&asked.stderr));
        assert!(!saved.is_empty());

        // Killed, it leaves nothing: the name is free, and who asks hears of it.
        tap.signal(Signal::SIGKILL).unwrap();
        drop(tap);
        refused(&explain(node, &["--socket", "podtap", &address]), 2, "no tap answers at @podtap");
        let said = text(&explain(node, &[&address]).stdout);
        assert!(said.contains("as no tap answers at @podtap"), "{said}");
        let tap = Tap::launch(node, lab.sensor(), &FLAGS).unwrap();
        wait_for(node, "podtap");
        tap.stop().unwrap();
    }

    #[test]
    fn a_second_tap_says_that_the_name_is_taken_and_taps_on() {
        if !can_run("two taps on one node") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(1)).unwrap();
        let node = lab.node(1);
        let to = lab.sensor().v4().to_string();
        let start = |more: &[&str]| {
            let mut command = node.command(podtap());
            command.args(["run", "--sensor", &to]).args(more);
            Process::start(command).unwrap()
        };
        let mut first = start(&[]);
        wait_for(node, "podtap");
        let mut second = start(&[]);
        second.wait_for("the name @podtap is taken", LIMIT).unwrap();
        second.wait_for("capturing with", LIMIT).unwrap();
        let mut third = start(&["--state-socket", "@other", "--tapped-net", "10.9.0.0/16"]);
        wait_for(node, "other");
        let covered =
            |name| answer(node, &["--socket", name, "10.9.0.1"])["facts"]["covered"].clone();
        assert_eq!(covered("@other"), true);
        assert_eq!(covered("podtap"), false);
        let mut silent = start(&["--state-socket", "none"]);
        silent.wait_for("capturing with", LIMIT).unwrap();
        for process in [&mut first, &mut second, &mut third, &mut silent] {
            assert!(process.stop(Signal::SIGTERM, LIMIT).unwrap().success());
        }
    }

    #[test]
    fn another_user_is_refused() {
        if !can_run("another user's question") {
            return;
        }
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(1)).unwrap();
        let node = lab.node(1);
        let tap = Tap::launch(node, lab.sensor(), &FLAGS).unwrap();
        wait_for(node, "podtap");
        let mut asked = node.command("setpriv");
        asked.args(["--reuid", "65534", "--clear-groups"]).arg(podtap()).args(["explain", "lo"]);
        let output = asked.output().unwrap();
        if text(&output.stderr).contains("Permission denied") {
            eprintln!("SKIPPED: nobody may not run {}", podtap().display());
        } else {
            refused(&output, 2, "answers root and its own user only");
        }
        wait_for(node, "podtap");
        tap.stop().unwrap();
    }

    #[test]
    fn wrong_input_is_one_clear_line() {
        if !can_run("wrong questions") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(1)).unwrap();
        let node = lab.node(1);
        let file = |name: &str, content: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let old = file("old.json", r#"{"format": 99, "version": "9.0.0", "new": true}"#);
        let broken = file("broken.json", "{\"format\": 1}");
        let capture = capture(directory.path());
        let cases: &[(&[&str], i32, &str)] = &[
            (&[], 2, "what? give an address"),
            (&["nope0"], 2, "\"nope0\" is neither an address nor an interface of this node"),
            (&["10.0.0.1:1", "tcp", "[fd00::1]:2"], 2, "of two families"),
            (&["--file", &capture, "--frame", "7"], 2, "so none of number 7"),
            (&["--file", "/nonexistent", "--frame", "1"], 2, "cannot read /nonexistent"),
            (&["--socket", "absent", "lo"], 2, "no tap answers at @absent"),
            (&["--socket", "a/b", "lo"], 2, "--socket: \"a/b\" is no name for a socket"),
            (&["--state", "/nonexistent", "lo"], 2, "--state /nonexistent"),
            (&["--state", &old, "lo"], 2, "form 99 (of podtap 9.0.0)"),
            (&["--state", &broken, "lo"], 2, "is no state of a tap"),
            (&["--state", &old, "--svcnet", "10.0.0.0/8", "lo"], 2, "give one or the other"),
            (&["--save", "/nonexistent/x"], 1, "--save /nonexistent/x"),
        ];
        for (words, code, expected) in cases {
            refused(&explain(node, words), *code, expected);
        }
    }

    /// A pcap of one frame.
    fn capture(folder: &Path) -> String {
        let mut bytes = Vec::new();
        for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1, 0, 0, 14, 14] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend([0; 14]);
        let path = folder.join("one.pcap");
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}
