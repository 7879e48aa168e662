//! Passive mode as users see it: clients of other makes, and no traffic of ours in any capture.
//!
//! ```text
//! lab: node with a tap (--listen), its pods ping; client on the sensor's host, or in a pod
//! client (by hand) --AUTH, OPEN, STARTCAP--> UDP | TCP --> exactly the pings, nothing of ours
//! ```

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
    use std::path::Path;
    use std::process::Command;
    use std::time::{Duration, Instant};
    use tests::lab::{Host, Lab, LabSpec, Process, can_run};
    use tests::tap::podtap;
    use tests::traffic::ping;

    const LIMIT: Duration = Duration::from_secs(20);
    /// Twice as many datagrams fit a receive buffer of the default size unread.
    const PINGS: u32 = 30;

    fn start(node: &Host, args: &[&str]) -> Process {
        let mut command = node.command(podtap());
        command
            .args(["run", "--listen", "2002", "--workers", "2", "--ring-memory", "8M"])
            .args(args);
        let mut process = Process::start(command).unwrap();
        process.wait_for("capturing with", LIMIT).unwrap();
        process
    }

    fn stop(mut tap: Process) {
        let status = tap.stop(Signal::SIGTERM, LIMIT).unwrap();
        assert!(status.success(), "{}", tap.stderr());
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Data {
        Udp,
        ClientOpens,
        ServerOpens,
    }

    /// A client of the protocol, written for this test alone.
    struct Client {
        control: TcpStream,
        udp: Option<UdpSocket>,
        tcp: Option<TcpStream>,
        /// Bytes of TCP that are not a whole message yet.
        rest: Vec<u8>,
    }

    impl Client {
        fn connect(to: SocketAddr, user: &str, password: &str) -> Self {
            let control = TcpStream::connect_timeout(&to, LIMIT).unwrap();
            control.set_read_timeout(Some(LIMIT)).unwrap();
            let mut client = Self { control, udp: None, tcp: None, rest: Vec::new() };
            let len = |text: &str| u16::try_from(text.len()).unwrap().to_be_bytes();
            let auth = [&[0, 1, 0, 0][..], &len(user), &len(password)];
            let auth = [&auth.concat(), user.as_bytes(), password.as_bytes()].concat();
            client.ask(8, &auth);
            client
        }

        fn ask(&mut self, kind: u8, payload: &[u8]) -> Vec<u8> {
            let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
            self.control.write_all(&[&[0, kind, 0, 0][..], &len, payload].concat()).unwrap();
            let mut header = [0; 8];
            self.control.read_exact(&mut header).unwrap();
            let len = u32::from_be_bytes(header[4..].try_into().unwrap());
            let mut reply = vec![0; usize::try_from(len).unwrap()];
            self.control.read_exact(&mut reply).unwrap();
            assert_eq!(header[1], kind | 0x80, "{}", String::from_utf8_lossy(&reply));
            reply
        }

        fn start(&mut self, interface: &str, data: Data) {
            self.ask(3, interface.as_bytes());
            let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
            let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
            let (flags, port) = match data {
                Data::Udp => (2u16, udp.local_addr().unwrap().port()),
                Data::ClientOpens => (0, 0),
                Data::ServerOpens => (4, listener.local_addr().unwrap().port()),
            };
            let mut request = [65_535u32.to_be_bytes(), 250u32.to_be_bytes()].concat();
            request.extend(flags.to_be_bytes());
            request.extend(port.to_be_bytes());
            request.extend([0, 1, 0, 0, 0, 0, 0, 1, 0, 6, 0, 0, 0, 4, 0, 0]);
            let reply = self.ask(4, &request);
            let port = u16::from_be_bytes([reply[4], reply[5]]);
            assert_eq!(port != 0, data == Data::ClientOpens);
            match data {
                Data::Udp => self.udp = Some(udp),
                Data::ClientOpens => {
                    let host = self.control.peer_addr().unwrap().ip();
                    self.tcp = Some(TcpStream::connect((host, port)).unwrap());
                }
                Data::ServerOpens => self.tcp = Some(listener.accept().unwrap().0),
            }
        }

        /// The next frame; `None` when none came for a while.
        fn frame(&mut self) -> Option<Vec<u8>> {
            let mut buffer = vec![0; 65_535];
            if let Some(udp) = &self.udp {
                udp.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                let len = udp.recv(&mut buffer).ok()?;
                assert_eq!(buffer[..2], [0, 7], "an unknown client gets the standard's form");
                return Some(buffer[28..len].to_vec());
            }
            let tcp = self.tcp.as_mut().unwrap();
            tcp.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            loop {
                if let Some(head) = self.rest.first_chunk::<8>() {
                    let len = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
                    let end = 8 + usize::try_from(len).unwrap();
                    if self.rest.len() >= end {
                        let message: Vec<u8> = self.rest.drain(..end).collect();
                        return Some(message[28..].to_vec());
                    }
                }
                let len = tcp.read(&mut buffer).ok().filter(|len| *len > 0)?;
                self.rest.extend_from_slice(&buffer[..len]);
            }
        }
    }

    fn protocol(frame: &[u8]) -> Option<u8> {
        (frame.len() > 34 && frame[12..14] == [8, 0]).then(|| frame[23])
    }

    /// Captures while `from` pings `to`: echo messages seen, and TCP or UDP of the tap's own.
    fn captured(
        client: &mut Client,
        interface: &str,
        data: Data,
        from: &Host,
        to: Ipv4Addr,
        at: Ipv4Addr,
    ) -> (usize, usize) {
        client.start(interface, data);
        // Until the first ping arrives, the capture may not have begun.
        let deadline = Instant::now() + LIMIT;
        while !std::iter::from_fn(|| client.frame()).any(|frame| protocol(&frame) == Some(1)) {
            assert!(Instant::now() < deadline, "nothing is captured");
            ping(from, to.into(), 1, 56).unwrap();
        }
        ping(from, to.into(), PINGS, 1000).unwrap();
        let frames: Vec<_> = std::iter::from_fn(|| client.frame()).collect();
        let pings = frames.iter().filter(|frame| protocol(frame) == Some(1) && frame.len() > 1000);
        let is_ours = |frame: &&Vec<u8>| {
            let addresses = [&frame[26..30], &frame[30..34]];
            matches!(protocol(frame), Some(6 | 17)) && addresses.contains(&&at.octets()[..])
        };
        let own = frames.iter().filter(is_ours).count();
        client.ask(10, &[]);
        (pings.count(), own)
    }

    #[test]
    fn a_client_gets_every_packet_once_and_nothing_of_its_own_connections() {
        if !can_run("passive mode") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let passwords = directory.path().join("passwords");
        std::fs::write(&passwords, "ann:secret\n").unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(3)).unwrap();
        let node = lab.node(1);
        let tap = start(node, &["--password-file", passwords.to_str().unwrap()]);
        let (one, two, three) = (node.pod(1), node.pod(2), node.pod(3));
        let to = SocketAddr::from((node.v4(), 2002));
        // A client elsewhere, and one in a pod of the same node.
        for host in [lab.sensor(), &**three] {
            for data in [Data::Udp, Data::ClientOpens, Data::ServerOpens] {
                let run = || {
                    let mut client = Client::connect(to, "ann", "secret");
                    let interface = one.host_veth();
                    let all = captured(&mut client, "any-eth", data, one, two.v4(), host.v4());
                    let single = captured(&mut client, interface, data, one, two.v4(), host.v4());
                    (all, single)
                };
                let twice = usize::try_from(2 * PINGS).unwrap();
                let (all, single) = host.enter(run).unwrap();
                assert_eq!((all, single), ((twice, 0), (twice, 0)), "{data:?}");
            }
        }
        stop(tap);
    }

    fn has(program: &str) -> bool {
        let found = Command::new("which").arg(program).output().unwrap().status.success();
        if !found {
            eprintln!("SKIPPED: no {program} here");
        }
        found
    }

    #[test]
    fn nmap_lists_the_interfaces_and_hydra_finds_the_password() {
        if !can_run("other clients") || !has("nmap") || !has("hydra") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(1)).unwrap();
        let (node, host) = (lab.node(1), lab.sensor());
        let tap = start(node, &["--password-file", &file("passwords", "ann:secret\n")]);
        let to = node.v4().to_string();
        let words = ["nmap", "-Pn", "-n", "-p", "2002", "--script", "rpcap-info", &to];
        let account = ["--script-args", "creds.rpcap=ann:secret"];
        let listed = host.exec([&words[..], &account].concat()).unwrap();
        for expected in ["any-eth", "eth0", &format!("{to}/")] {
            assert!(listed.contains(expected), "{expected}: {listed}");
        }
        let words = file("words", "guess\nsecret\n");
        // It asks with null first, and goes on only if the refusal is in libpcap's words. Its state is
        // written to the current folder.
        let mut hydra = host.command("hydra");
        hydra.current_dir(Path::new(directory.path()));
        hydra.args(["-l", "ann", "-P", &words, "-t", "1", &format!("rpcap://{to}")]);
        let output = hydra.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("password: secret"), "{said}");
        assert!(!said.contains("password: guess"), "{said}");
        stop(tap);
    }

    #[test]
    fn a_port_that_is_taken_is_one_clear_line_and_exit_code_2() {
        if !can_run("a listener") {
            return;
        }
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = holder.local_addr().unwrap().to_string();
        let output = Command::new(podtap())
            .env("PODTAP_LOG", "error")
            .args(["run", "--null-auth", "--ring-memory", "8M", "--listen", &taken])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("cannot listen on {taken}")), "{said}");
        assert_eq!(said.trim().lines().count(), 1, "{said}");
    }
}
