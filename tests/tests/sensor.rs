//! `podtap sensor` as a process: what is left after kill -9, signals, exit codes.

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;
    use std::fs;
    use std::net::TcpListener;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    use tests::compare::read;
    use tests::lab::Process;
    use tests::tap::podtap;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A sensor on loopback, and the address that it listens on.
    fn sensor(more: &[&str]) -> (Process, String) {
        let mut command = Command::new(podtap());
        command.args(["sensor", "--listen", "127.0.0.1:0"]).args(more);
        let mut process = Process::start(command).unwrap();
        process.wait_for("waiting for taps on ", LIMIT).unwrap();
        let said = process.stderr();
        let address = said.split("waiting for taps on ").nth(1).unwrap();
        (process, address.split_whitespace().next().unwrap().to_owned())
    }

    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A capture file of UDP packets, each of its own.
    fn capture(path: &Path, packets: u16) {
        let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend([0, 0, 4, 0, 1, 0, 0, 0]);
        for number in 0..packets {
            let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
            frame.extend([0x45, 0, 0, 46]);
            frame.extend(number.to_be_bytes());
            frame.extend([0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            frame.extend([0x20, 0, 0x30, 0, 0, 26, 0, 0]);
            frame.extend(number.to_be_bytes());
            frame.extend([7; 16]);
            let len = u32::try_from(frame.len()).unwrap().to_le_bytes();
            let micros = (u32::from(number) * 10).to_le_bytes();
            file.extend([0, 0xf1, 0x53, 0x65]);
            for field in [micros, len, len] {
                file.extend(field);
            }
            file.extend(frame);
        }
        fs::write(path, file).unwrap();
    }

    fn replay(file: &Path, to: &str) {
        let output = Command::new(podtap())
            .arg("replay")
            .arg(file)
            .args(["--sensor", to, "--election", "none"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }

    #[test]
    fn a_killed_sensor_leaves_a_whole_file() {
        let directory = tempfile::tempdir().unwrap();
        let (input, output) =
            (directory.path().join("in.pcap"), directory.path().join("out.pcapng"));
        capture(&input, 3_000);
        let (process, address) = sensor(&["--write", output.to_str().unwrap()]);
        replay(&input, &address);
        let count = || read(&output).map_or(0, |packets| packets.len());
        eventually("every packet is in the file while the sensor runs", || count() == 3_000);
        process.signal(Signal::SIGKILL).unwrap();
        drop(process);
        let tools: [(&str, &[&str]); 2] = [("tshark", &["-n", "-r"]), ("tcpdump", &["-n", "-r"])];
        for (program, args) in tools {
            let Ok(output) = Command::new(program).args(args).arg(&output).output() else {
                eprintln!("SKIPPED: no {program} on this machine");
                continue;
            };
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{program}: {errors}");
            assert!(!errors.contains("cut short") && !errors.contains("truncated"), "{errors}");
            let lines = String::from_utf8_lossy(&output.stdout);
            assert_eq!(lines.lines().filter(|line| line.contains("10.0.0.2")).count(), 3_000);
        }
    }

    #[test]
    fn a_sensor_that_is_told_to_stop_prints_its_summary_and_exits_with_0() {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let (mut process, _) = sensor(&["--json", "--write", "-"]);
            // Twice, as `timeout` does: to the process and to its group.
            process.signal(signal).unwrap();
            assert!(process.stop(signal, LIMIT).unwrap().success());
            let said = process.stderr();
            let summary = said.lines().last().unwrap();
            let summary: serde_json::Value = serde_json::from_str(summary).unwrap();
            assert_eq!(summary["totals"]["packets"], 0);
            assert!(!process.stdout().contains("waiting"), "standard output is for packets");
        }
    }

    #[test]
    fn sighup_reads_the_filter_file_again_and_a_bad_one_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("filter");
        fs::write(&path, "tcp").unwrap();
        let (mut process, _) = sensor(&["--filter-file", path.to_str().unwrap()]);
        fs::write(&path, "tcp prot 80").unwrap();
        process.signal(Signal::SIGHUP).unwrap();
        process.wait_for("the old filter stays", LIMIT).unwrap();
        fs::write(&path, "udp").unwrap();
        process.signal(Signal::SIGHUP).unwrap();
        process.wait_for("the filter was read again", LIMIT).unwrap();
        assert!(process.stop(Signal::SIGTERM, LIMIT).unwrap().success());
    }

    /// Runs a sensor to its end: the exit code, and the last line that is no summary.
    fn ends(args: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(podtap());
        command.arg("sensor").args(args);
        let mut process = Process::start(command).unwrap();
        let status = process.wait(LIMIT).unwrap();
        (status.code(), process.stderr())
    }

    #[test]
    fn a_daemon_that_is_not_there_is_exit_code_1() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (code, said) = ends(&["--connect", &nobody]);
        assert_eq!(code, Some(1), "{said}");
        let reason = format!("stopped: {nobody} cannot be connected to: Connection refused");
        assert!(said.contains(&reason), "{said}");
    }

    #[test]
    fn senseless_arguments_are_exit_code_2() {
        for (args, expected) in [
            (&["--connect", "127.0.0.1:x"][..], "expected HOST or HOST:PORT"),
            (&["--connect", "127.0.0.1", "--filter-file", "/nonexistent"], "--filter-file"),
            (&["--connect", "127.0.0.1", "--sampling", "2/3"], "expected 1/N or Nms"),
            (&["--connect", "127.0.0.1", "--user", "me"], "PODTAP_SENSOR_PASSWORD"),
            (&[], "--listen"),
        ] {
            let (code, said) = ends(args);
            assert_eq!(code, Some(2), "{args:?}: {said}");
            assert!(said.contains(expected), "{args:?}: {said}");
        }
    }
}
