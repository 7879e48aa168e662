//! Against the kernel, in namespaces of their own. All need root and `ip`; without root they say
//! so and pass.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::net::{Link, Role};

/// Reconciling would hide what events should have told.
const NO_RECONCILING: Options =
    Options { receive_buffer_bytes: 16 << 20, reconcile_every: Duration::from_secs(3600) };

/// Runs the test in a thread that has a network namespace to itself; both end together.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIPPED: needs root for a network namespace ({error})");
            return;
        }
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    assert!(ip_if_known(arguments), "ip {arguments}: this kernel lacks the device type");
}

/// False where the kernel has no such devices (its own, or a module that is not there).
fn ip_if_known(arguments: &str) -> bool {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let is_unknown = error.contains("Unknown device type") || error.contains("Cannot find device");
    assert!(output.status.success() || is_unknown, "ip {arguments}: {error}");
    output.status.success()
}

fn ip_batch(lines: impl Iterator<Item = String>) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let text: String = lines.map(|line| line + "\n").collect();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// A namespace that holds the pods' ends, as long as this lives.
struct Elsewhere(Child);

impl Elsewhere {
    fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo there; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut word).unwrap();
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn start(options: Options) -> Monitor {
    let (any, none) = (InterfaceSelection::default(), RoleOverrides::default());
    Monitor::start_with(options, any, none, |_| {}).unwrap()
}

fn link<'a>(view: &'a View, name: &str) -> Option<&'a Link> {
    view.links.values().find(|link| link.name == name)
}

fn role(view: &View, name: &str) -> Option<Role> {
    link(view, name).map(|link| link.role)
}

#[track_caller]
fn eventually(monitor: &Monitor, what: &str, is_so: impl Fn(&View) -> bool) {
    let give_up = Instant::now() + Duration::from_secs(5);
    while !is_so(&monitor.view.load()) {
        assert!(Instant::now() < give_up, "never {what}: {:#?}", monitor.view.load());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a dump says: it knows of no numbers, and of no links that went.
fn without_slots(mut view: View) -> View {
    view.gone.clear();
    view.links.values_mut().for_each(|link| link.slot = 0);
    view
}

fn snapshot_now() -> View {
    snapshot(InterfaceSelection::default(), RoleOverrides::default()).unwrap()
}

fn is_local(view: &View, net: &str) -> bool {
    view.local.contains(&net.parse().unwrap())
}

#[test]
fn a_pod_comes_and_goes() {
    in_namespace(|| {
        let monitor = start(NO_RECONCILING);
        ip("link add eni1 type veth peer name p1");
        ip("link set eni1 up");
        ip("link set p1 up");
        ip("addr add 169.254.9.9/32 dev eni1");
        ip("route add 10.0.3.7/32 dev eni1");
        ip("route add fd00:3::7/128 dev eni1");
        eventually(&monitor, "a pod", |view| {
            role(view, "eni1") == Some(Role::Pod)
                && ["10.0.3.7/32", "fd00:3::7/128", "169.254.9.9/32"].map(|n| is_local(view, n))
                    == [true; 3]
        });
        let view = monitor.view.load();
        let eni1 = link(&view, "eni1").unwrap();
        assert!(eni1.is_tapped && eni1.is_up && eni1.slot != 0 && eni1.mac.len() == 6, "{eni1:?}");
        assert_eq!((eni1.kind.as_str(), eni1.mtu), ("veth", 1500));
        assert!(view.own.contains(&IpAddr::from([169, 254, 9, 9])));

        ip("link del eni1");
        eventually(&monitor, "gone", |view| {
            link(view, "eni1").is_none() && view.local.is_empty() && view.own.is_empty()
        });
    });
}

#[test]
fn a_default_route_makes_an_uplink_and_its_end_unmakes_it() {
    in_namespace(|| {
        let elsewhere = Elsewhere::new();
        let monitor = start(NO_RECONCILING);
        ip("link add eth0 type veth peer name p0");
        ip("link set eth0 up");
        ip(&format!("link set p0 netns {} up", elsewhere.pid()));
        ip("addr add 10.0.0.10/24 dev eth0");
        eventually(&monitor, "connected", |view| {
            role(view, "eth0") == Some(Role::Pod) && is_local(view, "10.0.0.0/24")
        });
        ip("route add default via 10.0.0.1 dev eth0 table 2");
        eventually(&monitor, "an uplink", |view| {
            role(view, "eth0") == Some(Role::Uplink) && !is_local(view, "10.0.0.0/24")
        });
        ip("route flush table 2");
        eventually(&monitor, "none", |view| role(view, "eth0") == Some(Role::Pod));
    });
}

#[test]
fn three_hundred_links_at_once_are_all_there() {
    in_namespace(|| {
        let monitor = start(NO_RECONCILING);
        ip_batch((0..300).map(|n| format!("link add eni{n} type veth peer name p{n}")));
        ip_batch((0..300).map(|n| format!("link set eni{n} up")));
        let pod = |n: u32| format!("10.1.{}.{}/32", n / 250, n % 250);
        ip_batch((0..300).map(|n| format!("route add {} dev eni{n}", pod(n))));
        eventually(&monitor, "all there", |view| {
            let pods = view.links.values().filter(|link| link.role == Role::Pod).count();
            pods == 300 && (0..300).all(|n| is_local(view, &pod(n)))
        });
        let view = monitor.view.load();
        let mut slots: Vec<u16> = view.links.values().map(|link| link.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), 601, "600 numbers, and loopback's 0");
        ip_batch((0..300).map(|n| format!("link del eni{n}")));
        eventually(&monitor, "all gone", |view| view.links.len() == 1 && view.local.is_empty());
    });
}

#[test]
fn an_overrun_is_seen_and_made_good() {
    in_namespace(|| {
        let tiny = Options { receive_buffer_bytes: 4096, ..NO_RECONCILING };
        // Holds the monitor's thread in its callback while the kernel's queue runs over.
        let gate = Arc::new(Mutex::new(()));
        let (entered, has_entered) = mpsc::channel();
        let of_callback = Arc::clone(&gate);
        let (any, none) = (InterfaceSelection::default(), RoleOverrides::default());
        let monitor = Monitor::start_with(tiny, any, none, move |_| {
            let _gone_at_the_end = entered.send(());
            drop(of_callback.lock().unwrap());
        })
        .unwrap();
        has_entered.recv().unwrap();

        let closed = gate.lock().unwrap();
        ip("link add eni0 type veth peer name p0");
        match has_entered.recv_timeout(Duration::from_secs(5)) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => panic!("no view"),
        }
        ip_batch((1..50).map(|n| format!("link add eni{n} type veth peer name p{n}")));
        ip("link del eni7");
        drop(closed);
        eventually(&monitor, "made good", |view| {
            without_slots(view.clone()) == without_slots(snapshot_now())
        });
        assert!(monitor.counters.overruns.load(Ordering::Relaxed) > 0);
        assert_eq!(monitor.view.load().links.len(), 1 + 2 * 49);
    });
}

#[test]
fn whatever_happens_events_tell_what_a_dump_would() {
    in_namespace(|| {
        let elsewhere = Elsewhere::new();
        let monitor = start(NO_RECONCILING);
        let to_elsewhere = format!("link set p1 netns {} up", elsewhere.pid());
        for command in [
            "link add eth0 type veth peer name p0",
            "link add eth1 type veth peer name p1",
            "link set eth0 up",
            "link set p0 up",
            &to_elsewhere,
            "link set eth1 up",
            "addr add 10.0.0.10/24 dev eth0",
            "addr add 10.0.1.10/24 dev eth1",
            "route add default nexthop via 10.0.0.1 dev eth0 nexthop via 10.0.1.1 dev eth1",
            "route add 10.9.0.0/16 via 10.0.0.7 dev eth0 src 10.0.1.10",
            // Takes the route that prefers it along, without a word.
            "addr del 10.0.1.10/24 dev eth1",
            "link set eth1 down",
            "link set eth1 up",
            "route replace default via 10.0.0.1 dev eth0",
            "route append default via 10.0.0.2 dev eth0",
            "route append default via 10.0.0.3 dev eth0",
            "route replace default via 10.0.0.9 dev eth0",
            "route add 10.8.0.0/24 dev eth1",
            "route replace blackhole 10.8.0.0/24",
            "route del blackhole 10.8.0.0/24",
            "nexthop add id 1 via 10.0.0.1 dev eth0",
            "nexthop add id 2 dev eth1",
            "nexthop add id 10 group 1/2",
            "route add 10.7.0.0/24 nhid 10",
            "route add 10.6.0.1/32 nhid 2",
            "nexthop replace id 2 via 10.0.0.3 dev eth0",
            "nexthop del id 10",
            "nexthop del id 2",
            "nexthop flush",
            "-6 addr add fd00:1::10/64 dev eth0 nodad",
            "-6 addr add fd00:2::10/64 dev eth1 nodad",
            "-6 route add default nexthop via fd00:1::1 nexthop via fd00:2::1",
            "-6 route append fd00:9::/64 via fd00:1::2",
            "-6 route append fd00:9::/64 via fd00:2::2",
            "-6 route del fd00:9::/64 via fd00:1::2",
            "link set eth1 down",
            "link set eth1 up",
            "-6 route replace default via fd00:1::3",
            "route add 192.168.0.0/24 via inet6 fd00:1::9 dev eth0",
            "link add br0 type bridge",
            "link set br0 up",
            "addr add 10.244.1.1/24 dev br0",
            "link set eth1 master br0",
            "link set eth1 nomaster",
            "link set eth1 name eni77",
            "link add link eth0 name vlan.eth.1 type vlan id 7",
            "link set vlan.eth.1 up",
            "link add flannel.1 type vxlan id 1 dstport 8472 local 10.0.0.10",
            "link add kube-ipvs0 type dummy",
            "addr add 10.96.0.1/32 dev kube-ipvs0",
            "-6 addr add fd00:96::1/128 dev kube-ipvs0 nodad",
            "link set br0 down",
            "link del eni77",
            "addr flush dev eth0",
            "link del eth0",
        ] {
            if !ip_if_known(command) {
                eprintln!("left out: ip {command}");
                continue;
            }
            eventually(&monitor, command, |view| {
                without_slots(view.clone()) == without_slots(snapshot_now())
            });
        }
        assert_eq!(monitor.counters.overruns.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_view_that_says_the_same_is_not_published() {
    in_namespace(|| {
        let often = Options { reconcile_every: Duration::from_millis(2), ..NO_RECONCILING };
        let monitor = start(often);
        ip("link add eth0 type veth peer name p0");
        eventually(&monitor, "there", |view| link(view, "eth0").is_some());
        let dumps = || monitor.counters.dumps.load(Ordering::Relaxed);
        let (views, enough) = (monitor.counters.views.load(Ordering::Relaxed), dumps() + 20);
        eventually(&monitor, "dumped again", |_| dumps() > enough);
        assert_eq!(monitor.counters.views.load(Ordering::Relaxed), views);
    });
}

#[test]
fn the_first_view_is_told_before_start_returns_and_none_after_the_end() {
    in_namespace(|| {
        let (send, told) = mpsc::channel();
        let (any, none) = (InterfaceSelection::default(), RoleOverrides::default());
        let monitor = Monitor::start(any, none, move |view| {
            send.send(view.links.len()).unwrap();
        })
        .unwrap();
        assert_eq!(told.try_recv(), Ok(1));
        drop(monitor);
        assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    });
}

/// Not a test: prints the figures behind "within 100 ms". `cargo test -p engine --lib
/// how_long -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, to be read"]
fn how_long_a_change_takes() {
    in_namespace(|| {
        let (send, views) = mpsc::channel::<(Instant, Arc<View>)>();
        let (any, none) = (InterfaceSelection::default(), RoleOverrides::default());
        let _monitor = Monitor::start(any, none, move |view| {
            send.send((Instant::now(), Arc::clone(view))).unwrap();
        })
        .unwrap();
        for existing in [0, 1000] {
            ip_batch((0..existing).map(|n| format!("link add x{n} type veth peer name y{n}")));
            std::thread::sleep(Duration::from_millis(500));
            let mut delays: Vec<Duration> = (0..100_u32)
                .map(|n| {
                    let name = format!("eni{existing}-{n}");
                    ip(&format!("link add {name} type veth peer name p{n}"));
                    let since = Instant::now();
                    let seen = views.iter().find(|(_, view)| link(view, &name).is_some());
                    let delay = seen.unwrap().0.saturating_duration_since(since);
                    ip(&format!("link del {name}"));
                    delay
                })
                .collect();
            delays.sort_unstable();
            let links = 2 * existing + 1;
            eprintln!("{links} links: median {:?}, most {:?}", delays[50], delays[99]);
        }
    });
}

mod locality;
