//! `podtap rpcapd`: in the place of the reference's daemon, below its own file and filter.

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::Duration;
    use tests::compare::read;
    use tests::lab::{Host, Lab, LabSpec, Process, can_run};
    use tests::tap::{Sensor, podtap};
    use tests::traffic::ping;

    const LIMIT: Duration = Duration::from_secs(20);

    /// As the reference's script writes it, for this cluster.
    fn filter(cluster: &str) -> String {
        let rule = |direction: &str, address: &str, port: &str| {
            format!(
                "({direction} and (((ip[6:2] & 0x1fff != 0) or ((not tcp)) and (ip[12:4] {address} ip[16:4])) \
                 or (tcp and ((tcp[0:2] {port} tcp[2:2]) or ((tcp[0:2] = tcp[2:2]) and (ip[12:4] {address} ip[16:4]))))))"
            )
        };
        format!(
            "not ip or (not ip proto 4) and (not ip net 172.20.0.0/16) and (( not ( ip src or dst net {cluster} ) ) or {} or {})",
            rule("inbound", ">=", "<"),
            rule("outbound", "<=", ">"),
        )
    }

    /// The binary under the reference's name, as the image has it.
    fn link(folder: &Path) -> PathBuf {
        let link = folder.join("rpcapd");
        let target = podtap().canonicalize().unwrap();
        std::os::unix::fs::symlink(target, &link).unwrap();
        link
    }

    fn second_sensor(host: &Host, file: &Path) -> Process {
        let listen = host.socket(2004).to_string();
        let mut command = host.command(podtap());
        command.args(["sensor", "--listen", &listen, "--write"]).arg(file);
        let mut process = Process::start(command).unwrap();
        process.wait_for("waiting for taps", LIMIT).unwrap();
        process
    }

    fn echoes(file: &Path) -> usize {
        read(file).unwrap().iter().filter(|packet| packet.protocol() == Some(1)).count()
    }

    #[test]
    fn the_reference_s_file_and_filter_report_each_packet_once_and_sighup_adds_a_sensor() {
        if !can_run("podtap rpcapd") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(2)).unwrap();
        let (node, host) = (lab.node(1), lab.sensor());
        let first = Sensor::start(host, directory.path().join("1.pcapng"), &[]).unwrap();
        let ini = directory.path().join("rpcapd.ini");
        let line = |port: u16| format!("ActiveClient = {},{port}\n", host.v4());
        fs::write(&ini, format!("{}NullAuthPermit = YES\n", line(2003))).unwrap();

        let mut command = node.command(link(directory.path()));
        command.args(["-v", "-f", ini.to_str().unwrap(), "-i", "any-eth", "-D", "-S", "-F"]);
        command.arg(filter("10.0.0.0/16"));
        let mut tap = Process::start(command).unwrap();
        tap.wait_for("-S has no effect here", LIMIT).unwrap();
        tap.wait_for("takes the place of podtap's own election", LIMIT).unwrap();
        tap.wait_for("new socket filter", LIMIT).unwrap();
        tap.wait_for("connected", LIMIT).unwrap();
        ping_until_seen(node, &first.file);
        let before = echoes(&first.file);

        fs::write(&ini, format!("{}ActiveClient = x,y\n", line(2003))).unwrap();
        tap.signal(Signal::SIGHUP).unwrap();
        tap.wait_for("nothing is changed", LIMIT).unwrap();
        assert!(tap.stderr().contains("rpcapd.ini:2: ActiveClient = x,y"), "{}", tap.stderr());

        let file = directory.path().join("2.pcapng");
        let mut second = second_sensor(host, &file);
        fs::write(&ini, format!("{}{}NullAuthPermit = YES\n", line(2003), line(2004))).unwrap();
        tap.signal(Signal::SIGHUP).unwrap();
        tap.wait_for("a new sensor", LIMIT).unwrap();
        ping_until_seen(node, &file);

        let status = tap.stop(Signal::SIGTERM, LIMIT).unwrap();
        let said = tap.stderr();
        assert!(status.success(), "{said}");
        let file_of_first = first.file.clone();
        first.stop().unwrap();
        assert!(second.stop(Signal::SIGINT, LIMIT).unwrap().success());
        assert!(echoes(&file_of_first) > before && echoes(&file) > 0);
        // Each echo crosses the node at two points at least; what the filter took is there once.
        let packets = read(&file_of_first).unwrap();
        let mut seen = std::collections::HashSet::new();
        for packet in packets.iter().filter(|packet| packet.protocol() == Some(1)) {
            assert!(seen.insert(packet.data()[14..].to_vec()), "an echo is there twice");
        }
        assert!(
            said.contains("\"node_filter\":") && !said.contains("\"node_filter\":0,"),
            "{said}"
        );
    }

    /// Until the sensor has written an echo: the capture runs then.
    fn ping_until_seen(node: &tests::lab::Node, file: &Path) {
        for _ in 0..100 {
            ping(node.pod(1), node.pod(2).v4().into(), 5, 56).unwrap();
            if fs::metadata(file).is_ok_and(|about| about.len() > 0)
                && read(file).is_ok()
                && echoes(file) > 0
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("no echo came to {}", file.display());
    }

    #[test]
    fn wrong_input_is_one_clear_line_and_exit_code_2() {
        let folder = tempfile::tempdir().unwrap();
        let link = link(folder.path());
        let ini = folder.path().join("x.ini");
        fs::write(&ini, "# sensors\nActiveClient = 10.0.0.300,1\n").unwrap();
        let ini = ini.to_str().unwrap();
        let cases: &[(&[&str], &str)] = &[
            (&["-x"], "there is no option -x"),
            (&["-v"], "-v: active mode only, and no sensor"),
            (&["-f", "/no/such.ini"], "-f /no/such.ini"),
            (&["-v", "-f", ini], "x.ini:2: ActiveClient = 10.0.0.300,1: \"10.0.0.300\" is neither"),
            (&["-v", "-a", "10.0.0.1", "-t", "5"], "rpcapd -t: \"5\" is not a number"),
            (&["-v", "-a", "10.0.0.1", "-y"], "-y: there is no dry run"),
        ];
        for (args, expected) in cases {
            let output = Command::new(&link).args(*args).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
            assert!(said.contains(expected), "{args:?}: {said}");
            assert_eq!(said.trim().lines().count(), 1, "{args:?}: {said}");
        }
    }

    #[test]
    fn help_and_settings_are_printed_under_both_names() {
        let folder = tempfile::tempdir().unwrap();
        let run = |program: PathBuf, args: &[&str]| {
            let output = Command::new(program).args(args).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let by_name = run(link(folder.path()), &["-h"]);
        assert_eq!(run(podtap(), &["rpcapd", "-h"]), by_name);
        assert!(by_name.contains("-F EXPR"), "{by_name}");
        let args = ["rpcapd", "-vn", "-a10.0.0.1,7", "-i", "any-eth", "--print-config"];
        let settings = run(podtap(), &args);
        assert!(
            settings.lines().any(|line| line.starts_with("sensor ")
                && line.contains("10.0.0.1:7")
                && line.ends_with("# rpcapd -a")),
            "{settings}"
        );
    }
}
