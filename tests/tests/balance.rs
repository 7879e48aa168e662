//! Two sensors in balance mode, killed, silenced and stopped at random under load.

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;
    use serde_json::Value;
    use std::collections::{HashMap, HashSet};
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
    use tests::balance::{Shift, Traffic, datagram, disagreement, judge, shifts, sightings};
    use tests::compare::read;
    use tests::lab::{Host, Lab, LabSpec, can_run};
    use tests::scenario::TAP_FLAGS;
    use tests::tap::{Sensor, Tap, check_account, settle_accounts};
    use tests::traffic::{Capture, Side};

    /// Seconds of faults, unless `PODTAP_BALANCE_SECONDS` says more.
    const SECONDS: u64 = 20;
    /// A long time: two busy cores are shared by many.
    const LIMIT: Duration = Duration::from_secs(40);
    /// How far from a shift a frame may go either way: it waits in the ring until its worker gets
    /// a core.
    const WINDOW: Duration = Duration::from_millis(500);
    /// What flows take to move after a sensor died: promised, and slack for a busy machine.
    const MOVED: Duration = Duration::from_secs(1 + 2);
    /// The same after its host fell silent.
    const MOVED_FROM_SILENCE: Duration = Duration::from_millis(1250 + 2000);
    /// A worker that counts no batch for so long is blocked; it looks around every 100 ms.
    const BLOCKED: Duration = Duration::from_secs(3);
    const FLOWS: u16 = 256;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    enum Fault {
        /// `kill -9`, and a new sensor.
        Kill,
        /// Its host neither receives nor sends.
        Silence,
        /// SIGSTOP: its host's kernel answers, so nobody can tell it from one that is slow.
        Stop,
    }

    struct Dice(u64);

    impl Dice {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }
    }

    fn now() -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
    }

    fn environment(name: &str) -> Option<u64> {
        std::env::var(name).ok().map(|text| text.parse().expect("a number"))
    }

    /// Both sensors and the files of their lives.
    struct Sensors<'a> {
        hosts: [&'a Host; 2],
        running: [Option<Sensor>; 2],
        directory: &'a Path,
        files: Vec<(usize, PathBuf)>,
    }

    impl Sensors<'_> {
        fn start(&mut self, which: usize) {
            let file = self.directory.join(format!("{which}-{}.pcapng", self.files.len()));
            self.files.push((which, file.clone()));
            self.running[which] = Some(Sensor::start(self.hosts[which], file, &[]).unwrap());
        }

        fn signal(&self, which: usize, signal: Signal) {
            self.running[which].as_ref().unwrap().signal(signal).unwrap();
        }

        fn silence(&self, which: usize, verb: &str) {
            for (chain, side) in [("INPUT", "-i"), ("OUTPUT", "-o")] {
                let rule = ["iptables", "-w", verb, chain, side, "eth0", "-j", "DROP"];
                self.hosts[which].exec(rule).unwrap();
            }
        }
    }

    /// What a tap's heartbeats show.
    #[derive(Default)]
    struct Heartbeats {
        workers: HashMap<String, (f64, Option<Instant>)>,
        longest: Duration,
        looks: u64,
    }

    impl Heartbeats {
        fn look(&mut self, tap: &Tap) {
            let text = tap.get("/metrics").expect("the tap answers");
            let now = Instant::now();
            self.looks += 1;
            for line in text.lines().filter(|l| l.starts_with("podtap_worker_batches_total{")) {
                let (labels, value) = line.rsplit_once(' ').unwrap();
                let value: f64 = value.parse().unwrap();
                let (last, since) = self.workers.entry(labels.to_owned()).or_default();
                let since = since.get_or_insert(now);
                if *last != value {
                    (*last, *since) = (value, now);
                }
                self.longest = self.longest.max(now - *since);
            }
        }
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < LIMIT, "never came: {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn both_take_part(taps: &[Tap], names: &[String]) -> bool {
        taps.iter().all(|tap| {
            names.iter().all(|name| {
                tap.metric("podtap_sensor_slots", name).is_some_and(|slots| slots > 0.0)
            })
        })
    }

    #[test]
    fn no_flow_is_split_while_sensors_are_killed_at_random_and_no_worker_blocks() {
        if !can_run("two sensors in balance") {
            return;
        }
        let seconds = environment("PODTAP_BALANCE_SECONDS").unwrap_or(SECONDS);
        let seed = environment("PODTAP_BALANCE_SEED")
            .unwrap_or_else(|| u64::from(now().subsec_nanos()) ^ now().as_secs());
        println!("PODTAP_BALANCE_SEED={seed} PODTAP_BALANCE_SECONDS={seconds}");
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(2).pods(2)).unwrap();
        let hosts = [lab.sensor(), lab.inet()];
        let names = hosts.map(|host| host.socket(2003).to_string());
        let mut sensors = Sensors {
            hosts,
            running: [None, None],
            directory: directory.path(),
            files: Vec::new(),
        };
        sensors.start(0);
        sensors.start(1);
        let list = format!("{},{}", names[0], names[1]);
        let more = [
            &TAP_FLAGS[..],
            &["--sensor", &list, "--sensors-mode", "balance", "--balance-settle-ms", "1500"],
            &["--workers", "2"],
        ]
        .concat();
        let taps: Vec<Tap> =
            lab.nodes().iter().map(|node| Tap::start_with(node, &more).unwrap()).collect();
        until("both sensors at both taps", || both_take_part(&taps, &names));
        // Half of the flows within node 1: both directions are its tap's. The other half between
        // the nodes: each direction is another tap's.
        let servers: [&Host; 2] = [lab.node(1).pod(2), lab.node(2).pod(1)];
        let traffic = Traffic::start(lab.node(1).pod(1), &servers, FLOWS).unwrap();
        let tap_of = |flow: u16, direction: u8| usize::from(flow >= FLOWS && direction == 1);

        let stop = AtomicBool::new(false);
        let faults = thread::scope(|scope| {
            let look = || {
                let mut beats: Vec<Heartbeats> =
                    taps.iter().map(|_| Heartbeats::default()).collect();
                while !stop.load(Ordering::Relaxed) {
                    beats.iter_mut().zip(&taps).for_each(|(beats, tap)| beats.look(tap));
                    thread::sleep(Duration::from_millis(250));
                }
                beats
            };
            let heartbeats = scope.spawn(look);
            let faults = rage(&mut sensors, &taps, &names, Duration::from_secs(seconds), seed);
            stop.store(true, Ordering::Relaxed);
            for beats in heartbeats.join().unwrap() {
                println!(
                    "heartbeats: {} workers, {} looks, longest standstill {:?}",
                    beats.workers.len(),
                    beats.looks,
                    beats.longest
                );
                assert_eq!(beats.workers.len(), 2);
                assert!(beats.longest < BLOCKED, "a worker stood still for {:?}", beats.longest);
            }
            faults
        });
        until("both sensors at the end", || both_take_part(&taps, &names));
        let sent = traffic.stop().unwrap();
        // What was sent last is on its way; frames wait a few milliseconds at most.
        let counted: Vec<Vec<f64>> = taps.iter().map(|tap| counted_moves(tap, &names)).collect();
        let (mut accounts, mut all_shifts) = (Vec::new(), Vec::new());
        for (tap, counted) in taps.into_iter().zip(counted) {
            let (account, log) = tap.stop_with_log().unwrap();
            // Ending, it takes one sensor after the other away: no flow is left to be split.
            let lived = log.split("ending: flushing").next().unwrap();
            let shifts = shifts(lived, &names);
            assert_eq!(counted, logged_moves(&shifts), "each move is counted: {log}");
            all_shifts.push(shifts);
            accounts.push(account);
        }
        let Sensors { running, files, .. } = sensors;
        let summaries = running.map(|sensor| sensor.unwrap().stop().unwrap());
        let mut seen = Vec::new();
        for (which, file) in &files {
            sightings(file, *which, &mut seen).unwrap();
        }
        report_moves(&faults, &all_shifts);
        settle(&accounts, &summaries);

        // From when both taps know both sensors.
        let (total, longest) = disagreement(&all_shifts[0], &all_shifts[1]);
        println!("the two taps disagreed for {total:?}, {longest:?} at a time at most");
        let judgement = judge(seen, &all_shifts, tap_of, WINDOW);
        println!("{sent:?}; in {} files: {judgement:#?}", files.len());
        assert!(judgement.wrong.is_empty(), "{faults:#?} {all_shifts:#?}");
        // Lost is what was on its way to a dead sensor, or in its buffers; most is there.
        assert!(judgement.packets > sent.sent, "{} of {sent:?}", judgement.packets);
        assert!(judgement.changes > 0 && judgement.away > 0, "faults move flows");
    }

    #[test]
    fn the_sessions_of_one_sensor_share_its_flows_and_lose_none() {
        if !can_run("several sessions to one sensor") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(2)).unwrap();
        let sensor = Sensor::start(lab.sensor(), directory.path().join("s.pcapng"), &[]).unwrap();
        // Plain form, so that each datagram on the wire shows whose packet it is.
        let more = ["--sessions-per-sensor", "3", "--workers", "2", "--encoding", "plain"];
        let flags = [&TAP_FLAGS[..], &more].concat();
        let tap = Tap::start(lab.node(1), lab.sensor(), &flags).unwrap();
        let name = lab.sensor().socket(2003).to_string();
        until("three sessions", || tap.metric("podtap_sensor_sessions", &name) == Some(3.0));
        let file = directory.path().join("wire.pcap");
        let filter = format!("udp and src host {}", lab.node(1).v4());
        let wire = Capture::start(lab.sensor(), "eth0", Side::Received, &filter, &file).unwrap();
        let server: &Host = lab.node(1).pod(2);
        let traffic = Traffic::start(lab.node(1).pod(1), &[server], 64).unwrap();
        let offered = || tap.metric("podtap_session_frames_offered_total", &name).unwrap();
        until("some packets", || offered() > 5000.0);
        let sent = traffic.stop().unwrap();
        let account = tap.stop().unwrap();
        let wire = wire.stop().unwrap();
        let file = sensor.file.clone();
        let summary = sensor.stop().unwrap();
        let lost = settle_accounts(std::slice::from_ref(&account), &summary).unwrap();
        let sensors = account["sensors"].as_array().unwrap();
        assert_eq!((sensors.len(), &sensors[0]["offered"]), (1, &account["admitted"]), "{account}");

        let mut sessions: HashMap<u16, u16> = HashMap::new();
        for packet in read(&wire.path).unwrap() {
            // Behind IP, UDP, the message's and the packet's header.
            let Some((flow, ..)) = datagram(&packet.data()[20 + 8 + 8 + 20..]) else { continue };
            let from = packet.source_port().unwrap();
            assert_eq!(*sessions.entry(flow).or_insert(from), from, "flow {flow} is split");
        }
        let distinct: HashSet<u16> = sessions.values().copied().collect();
        assert_eq!((sessions.len(), distinct.len()), (64, 3), "each session has its share");

        let mut seen = Vec::new();
        sightings(&file, 0, &mut seen).unwrap();
        let packets: HashSet<_> = seen.iter().map(|s| (s.flow, s.direction, s.number)).collect();
        assert_eq!(packets.len(), seen.len(), "each packet once");
        let lost = lost + summary["totals"]["lost_packets"].as_u64().unwrap();
        // A worker may take the sessions over a moment after they show in the metrics,
        // and there are other packets than the flows'.
        let early = account["dropped"]["no_session"].as_u64().unwrap();
        let most = seen.len() as u64 + early;
        assert!(lost > 0 || most >= sent.sent + sent.answered, "{most} of {sent:?}: {account}");
    }

    /// Faults, one after the other, for so long. Returns what was done to whom, and when.
    fn rage(
        sensors: &mut Sensors<'_>,
        taps: &[Tap],
        names: &[String],
        duration: Duration,
        seed: u64,
    ) -> Vec<(Fault, usize, Duration)> {
        let mut dice = Dice(seed);
        let mut faults = Vec::new();
        // Where each flow belongs shows while both are there.
        thread::sleep(WINDOW * 4);
        let started = Instant::now();
        // One of each kind that moves flows comes first, however short the run.
        while started.elapsed() < duration || faults.is_empty() {
            let which = usize::try_from(dice.below(2)).unwrap();
            let (fault, pause) = match (faults.len(), dice.below(4)) {
                (0, _) | (2.., 0 | 1) => (Fault::Kill, 300 + dice.below(3000)),
                (1, _) | (_, 2) => (Fault::Silence, 300 + dice.below(6000)),
                _ => (Fault::Stop, 300 + dice.below(3000)),
            };
            let pause = Duration::from_millis(pause);
            faults.push((fault, which, now()));
            match fault {
                Fault::Kill => {
                    sensors.signal(which, Signal::SIGKILL);
                    sensors.running[which] = None;
                    thread::sleep(pause);
                    sensors.start(which);
                }
                Fault::Silence => {
                    sensors.silence(which, "-I");
                    thread::sleep(pause);
                    sensors.silence(which, "-D");
                }
                Fault::Stop => {
                    sensors.signal(which, Signal::SIGSTOP);
                    thread::sleep(pause);
                    sensors.signal(which, Signal::SIGCONT);
                }
            }
            // Mostly from a sound state, sometimes while one settles or is away.
            if dice.below(3) == 0 {
                thread::sleep(Duration::from_millis(dice.below(2000)));
            } else {
                until("both sensors again", || both_take_part(taps, names));
                thread::sleep(Duration::from_millis(dice.below(1500)));
            }
        }
        faults
    }

    /// Of each sensor: times in, times out.
    fn counted_moves(tap: &Tap, names: &[String]) -> Vec<f64> {
        let text = tap.get("/metrics").unwrap();
        let count = |name: &str, kinds: &[&str]| {
            let is_it = |line: &&str| {
                line.starts_with("podtap_sensor_moves_total{")
                    && line.contains(name)
                    && kinds.iter().any(|kind| line.contains(kind))
            };
            let lines = text.lines().filter(is_it);
            lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
        };
        names
            .iter()
            .flat_map(|name| [count(name, &["joined", "returned"]), count(name, &["left"])])
            .collect()
    }

    fn logged_moves(shifts: &[Shift]) -> Vec<f64> {
        let count = |sensor: usize, is_in: bool| {
            let matching = shifts.iter().filter(|s| s.sensor == sensor && s.is_in == is_in);
            matching.map(|_| 1.0).sum::<f64>()
        };
        (0..2).flat_map(|sensor| [count(sensor, true), count(sensor, false)]).collect()
    }

    /// How long flows took to move after each fault that began with the sensor taking part.
    fn report_moves(faults: &[(Fault, usize, Duration)], shifts: &[Vec<Shift>]) {
        for (fault, limit) in
            [(Fault::Kill, MOVED), (Fault::Silence, MOVED_FROM_SILENCE), (Fault::Stop, LIMIT)]
        {
            let (mut times, mut count) = (Vec::new(), 0);
            for (at, (kind, which, begun)) in faults.iter().enumerate() {
                let until = faults.get(at + 1).map_or(*begun + LIMIT, |(_, _, next)| *next);
                count += usize::from(*kind == fault);
                for shifts in shifts.iter().filter(|_| *kind == fault) {
                    let of_it = || shifts.iter().filter(|shift| shift.sensor == *which);
                    let was_in = of_it().rfind(|shift| shift.at < *begun).is_some_and(|s| s.is_in);
                    let left = of_it().find(|s| s.at >= *begun && s.at < until && !s.is_in);
                    times.extend(left.filter(|_| was_in).map(|left| left.at - *begun));
                }
            }
            times.sort_unstable();
            let (median, longest) = (times.get(times.len() / 2), times.last());
            println!(
                "{fault:?}: {count} times, {} moves, median {median:?}, longest {longest:?}",
                times.len()
            );
            assert!(longest.is_none_or(|longest| *longest < limit), "{fault:?}: {times:?}");
        }
    }

    /// The accounting identity, and that each admitted packet was offered to exactly one sensor.
    fn settle(accounts: &[Value], summaries: &[Value; 2]) {
        for account in accounts {
            check_account(account).unwrap();
            let sensors = account["sensors"].as_array().unwrap();
            let offered: u64 = sensors.iter().map(|s| s["offered"].as_u64().unwrap()).sum();
            assert_eq!(Some(offered), account["admitted"].as_u64(), "{account}");
            println!("account: {account}");
        }
        for summary in summaries {
            println!("a sensor's last life: {}", summary["totals"]);
        }
    }
}
