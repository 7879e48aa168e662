//! The tap, the sensor and the command line, as a user runs them.

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use tests::compare::{Comparison, Identity, Packet, read};
    use tests::lab::{Lab, LabSpec, can_run};
    use tests::scenario::{Size, TAP_FLAGS, run};
    use tests::tap::{Sensor, Tap, check_account, podtap, settle_accounts};
    use tests::traffic::{ping, tcpreplay};

    #[test]
    fn every_packet_of_the_main_job_reaches_the_sensor_once() {
        if !can_run("the main job") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let outcome =
            run(directory.path(), Size::TEST, &["--workers", "2"], &mut |_step| {}).unwrap();
        // What a ring lost on a busy machine is accounted for, so it explains what is missing.
        let missing: u64 = outcome.report.rows.iter().map(|row| row.missing).sum();
        let doubled: u64 = outcome.report.rows.iter().map(|row| row.doubled).sum();
        let unexpected: u64 = outcome.report.rows.iter().map(|row| row.unexpected).sum();
        assert_eq!((doubled, unexpected), (0, 0), "{}", outcome.report);
        let network_lost = outcome.summary["totals"]["lost_packets"].as_u64().unwrap();
        if outcome.ring_lost == 0 && network_lost == 0 {
            assert_eq!(missing, 0, "{}", outcome.report);
            assert!(outcome.report.is_exact(), "{}", outcome.report);
        }
    }

    #[test]
    fn captures_replayed_by_tcpreplay_arrive_once_byte_for_byte() {
        if !can_run("tcpreplay") {
            return;
        }
        let Some(files) = captures() else { return };
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(2)).unwrap();
        let (node, pod) = (lab.node(1), lab.node(1).pod(1));
        let sensor = Sensor::start(lab.sensor(), directory.path().join("s.pcapng"), &[]).unwrap();
        // No --svcnet: one of the captures was taken in 172.20.0.0/16.
        let tap = Tap::start(node, lab.sensor(), &["--tapped-net", "10.0.0.0/17"]).unwrap();
        let mut sent = Vec::new();
        let mut replayed = 0;
        for file in &files {
            // tcpreplay sends other link types' bytes as if they were Ethernet's, or refuses.
            if !is_ethernet(file) {
                continue;
            }
            let Ok(counts) = tcpreplay(pod, "eth0", file, 5000) else { continue };
            let packets = read(file).unwrap();
            let fits = |packet: &Packet| packet.data().len() <= 1500 && !packet.is_cut_short();
            let packets: Vec<_> = packets.into_iter().filter(fits).collect();
            if packets.len() as u64 == counts.sent {
                replayed += 1;
                sent.extend(packets);
            } else {
                eprintln!(
                    "{}: {} frames fit the MTU, tcpreplay sent {}: left out of the comparison",
                    file.display(),
                    packets.len(),
                    counts.sent
                );
            }
        }
        assert!(replayed >= 30, "only {replayed} captures could be replayed");
        let account = tap.stop().unwrap();
        let file = sensor.file.clone();
        let summary = sensor.stop().unwrap();
        let lost = settle_accounts(&[account], &summary).unwrap();
        let report = Comparison::new()
            .identity(Identity::strict())
            .kind("replayed", |_packet| true)
            .run(&sent, &read(&file).unwrap());
        let row = report.row("replayed").unwrap();
        // A busy machine may lose frames in a ring or at the sensor's socket: counted, so explained.
        let lost = lost + summary["totals"]["lost_packets"].as_u64().unwrap();
        assert!(lost > 0 || row.missing == 0, "{report}");
        assert!(row.sent > 10_000, "{report}");
    }

    #[test]
    fn kill_9_leaves_nothing_and_a_new_tap_goes_on() {
        if !can_run("kill -9") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(2)).unwrap();
        let node = lab.node(1);
        let sensor = Sensor::start(lab.sensor(), directory.path().join("s.pcapng"), &[]).unwrap();
        let state = || {
            let qdiscs = node.exec(["tc", "qdisc", "show"]).unwrap();
            let links = node.exec(["ip", "-o", "-d", "link", "show"]).unwrap();
            let sockets = node.exec(["cat", "/proc/net/packet"]).unwrap();
            (qdiscs, links, sockets.lines().count())
        };
        let before = state();
        let tap = Tap::start(node, lab.sensor(), &TAP_FLAGS).unwrap();
        assert!(state().2 > before.2, "a tap has packet sockets");
        tap.signal(Signal::SIGKILL).unwrap();
        drop(tap);
        assert_eq!(state(), before);
        let tap = Tap::start(node, lab.sensor(), &TAP_FLAGS).unwrap();
        let (from, to) = (node.pod(1), node.pod(2));
        ping(from, to.v4().into(), 10, 56).unwrap();
        let account = tap.stop().unwrap();
        check_account(&account).unwrap();
        let file = sensor.file.clone();
        sensor.stop().unwrap();
        let echoes =
            read(&file).unwrap().iter().filter(|packet| packet.protocol() == Some(1)).count();
        assert_eq!(echoes, 20, "ten requests, ten replies, each once");
    }

    #[test]
    fn metrics_add_up_while_it_runs() {
        if !can_run("metrics") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(2)).unwrap();
        let node = lab.node(1);
        let tap = Tap::launch(node, lab.sensor(), &TAP_FLAGS).unwrap();
        let sensor = Sensor::start(lab.sensor(), directory.path().join("s.pcapng"), &[]).unwrap();
        let mut tap = tap;
        tap.wait_ready().unwrap();
        ping(node.pod(1), node.pod(2).v4().into(), 50, 56).unwrap();
        assert!(tap.get("/livez").unwrap().starts_with("HTTP/1.1 200"));
        assert!(tap.get("/nothing").unwrap().starts_with("HTTP/1.1 404"));
        // Counters are published per batch, the ring's five times a second.
        let adds_up = || {
            let metric = |name: &str| tap.metric(name, "").unwrap();
            let received = metric("podtap_frames_received_total");
            let sum =
                metric("podtap_frames_admitted_total") + metric("podtap_frames_dropped_total");
            received >= 200.0 && (received - sum).abs() < 0.5
        };
        assert!(eventually(adds_up), "{}", tap.get("/metrics").unwrap());
        let latencies = || tap.metric("podtap_latency_seconds_count", "stage=\"ring\"");
        assert!(eventually(|| latencies().unwrap() > 0.0), "published once a second");
        check_account(&tap.stop().unwrap()).unwrap();
        sensor.stop().unwrap();
    }

    #[test]
    fn wrong_input_is_one_clear_line_and_exit_code_2() {
        if !can_run("the machine's checks") {
            return;
        }
        let cases: &[(&[&str], &str)] = &[
            (&["run"], "no sensor"),
            (&["run", "--sensor", "192.0.2.1", "--interface", "nope0"], "no such interface: nope0"),
            (&["check", "--podnet", "10.0.0.0/99"], "--podnet: \"10.0.0.0/99\" is not a prefix"),
            (&["check", "--podnet", "10.0.0.0/8", "--svcnet", "10.1.0.0/16"], "overlaps PODNET"),
            (&["check", "--ring-memory", "64K"], "--ring-memory"),
            (&["check", "--dedup-memory", "64"], "--dedup-memory"),
            (&["replay", "/nonexistent.pcap", "--write", "/dev/null"], "/nonexistent.pcap"),
            (&["replay", "/etc/hostname", "--write", "/dev/null"], "not a capture file"),
            (&["sensor", "--listen", "127.0.0.1:0", "--filter", "not a filter"], "--filter"),
        ];
        for (args, expected) in cases {
            let output = Command::new(podtap()).args(*args).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
            assert!(said.contains(expected), "{args:?}: {said}");
            assert_eq!(said.trim().lines().count(), 1, "{args:?}: {said}");
        }
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap().to_string();
        let output = Command::new(podtap()).args(["sensor", "--listen", &taken]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("in use"), "{said}");
    }

    #[test]
    fn a_missing_privilege_is_named_with_what_it_is_for() {
        if !can_run("dropping a capability") {
            return;
        }
        let output = Command::new("setpriv")
            .args(["--bounding-set=-net_raw", "--inh-caps=-net_raw"])
            .arg(podtap())
            .args(["run", "--sensor", "192.0.2.1"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("CAP_NET_RAW") && said.contains("to capture"), "{said}");
    }

    fn eventually(holds: impl Fn() -> bool) -> bool {
        (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            holds()
        })
    }

    fn is_ethernet(file: &Path) -> bool {
        let args = ["-c", "1", "-w", "/dev/null", "-r"];
        let output = Command::new("tcpdump").args(args).arg(file).output().unwrap();
        String::from_utf8_lossy(&output.stderr).contains("link-type EN10MB")
    }

    fn captures() -> Option<Vec<PathBuf>> {
        let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures");
        let folder = std::env::var_os("PODTAP_CAPTURES").map_or(default, PathBuf::from);
        let Ok(entries) = std::fs::read_dir(&folder) else {
            eprintln!("SKIPPED: no captures in {}", folder.display());
            return None;
        };
        let mut files: Vec<PathBuf> =
            entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e != "md"));
        files.sort();
        Some(files)
    }
}
