//! What a run needs besides its traffic: the lab, captures of the truth, sensors and taps.
//!
//! ```text
//! lab, services -> sensors -> captures of the truth -> taps --(traffic)--> quiet
//!       -> end taps: accounts -> end sensors: files -> end captures
//! ```

use super::{
    Ground, Options, SENSORS,
    rows::NODE_DNS,
    services, tapped,
    truth::{Testimony, Witness, unreadable},
};
use crate::{
    compare::{self, Frame},
    lab::{Lab, LabError, LabSpec, Service},
    tap::{Sensor, Tap, settle_accounts},
};
use serde_json::Value;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// The VPC, and the overlay's pods.
const PODNET: &str = "10.0.0.0/16,10.244.0.0/16,fd00:10::/32,fd00:244::/32";
const SVCNET: &str = "172.20.0.0/16,fd00:172:20::/112";
/// Where nodes and their pods are.
const TAPPED: &str = "10.0.0.0/17,10.244.0.0/16,fd00:10::/40,fd00:244::/32";
/// What runs no tap there: the instance `cache`, and the VPC's router, which speaks ARP.
const UNTAPPED: &str = "10.0.120.0/24,\
    10.0.1.1,10.0.2.1,10.0.41.1,10.0.42.1,10.0.81.1,10.0.82.1,\
    fd00:10:1::1,fd00:10:2::1,fd00:10:41::1,fd00:10:42::1,fd00:10:81::1,fd00:10:82::1";

/// Where a node has cores of its own, copies reach their workers microseconds apart. Here all of a
/// cluster shares the machine's, and a worker may not run for longer than the defaults allow:
/// that would cost a copy with the node's or the service's address.
pub const PATIENT: [&str; 4] = ["--dedup-window-ms", "2000", "--settle-ms", "500"];

/// A running stage.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) lab: Lab,
    services: Vec<Service>,
    witness: Witness,
    ours: Taps,
    reference: Option<Taps>,
    directory: PathBuf,
}

/// What was seen, by whom.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) testimony: Testimony,
    pub(super) ours: Reported,
    pub(super) reference: Option<Reported>,
}

/// What one pair of taps reported.
#[derive(Debug)]
pub(super) struct Reported {
    pub(super) frames: Vec<Frame>,
    pub(super) summary: Value,
    pub(super) lost: Lost,
}

/// What was lost, and counted as such, on the way to the sensor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lost {
    /// Frames, before full rings.
    pub(super) rings: u64,
    /// Packets, before the full queue of what is to be sent.
    pub(super) queues: u64,
    /// Packets, on the way to the sensor's socket.
    pub(super) network: u64,
}

/// Taps on all nodes, and their sensor.
#[derive(Debug)]
pub(super) struct Taps {
    name: &'static str,
    sensor: Sensor,
    taps: Vec<Tap>,
}

impl Stage {
    pub(super) fn up(options: Options<'_>) -> Result<Self, LabError> {
        let spec = LabSpec::unique().nodes(2).pods(2).ipv6().bare();
        let lab = Lab::up(spec.eni_pods(1).branch_pods(2).overlay_pods(2, 8472))?;
        let ground = Ground { lab: &lab, size: options.size };
        let services = services::all(&ground);
        for service in &services {
            lab.add_service(service)?;
        }
        lab.add_node_dns(1, &[NODE_DNS, services::CLUSTER_DNS])?;
        add_sensors(&lab)?;
        let mut witness = Witness::start(&lab, options.directory)?;
        let mut ours = Taps::launch("source", &lab, 0, options, &our_flags(options))?;
        let mut reference = None;
        if options.reference {
            let flags = ["--podnet", PODNET, "--svcnet", SVCNET, "--election", "ports"];
            reference = Some(Taps::launch("ports", &lab, 1, options, &flags)?);
        }
        ours.wait_ready()?;
        if let Some(reference) = &mut reference {
            reference.wait_ready()?;
        }
        witness.begin();
        let directory = options.directory.to_owned();
        Ok(Self { lab, services, witness, ours, reference, directory })
    }

    pub(super) fn end(self) -> Result<Seen, LabError> {
        let Self { lab, services, mut witness, ours, reference, directory } = self;
        witness.wait_for_quiet()?;
        let ours = ours.end(&directory)?;
        let reference = reference.map(|taps| taps.end(&directory)).transpose()?;
        let packets: Vec<_> = ours.frames.iter().map(|frame| frame.packet.clone()).collect();
        let testimony = witness.end(&services, &packets)?;
        drop(lab);
        Ok(Seen { testimony, ours, reference })
    }
}

impl Taps {
    pub(super) fn launch(
        name: &'static str,
        lab: &Lab,
        which: u16,
        options: Options<'_>,
        flags: &[&str],
    ) -> Result<Self, LabError> {
        let address = SENSORS[usize::from(which)];
        let file = options.directory.join(format!("sensor-{name}.pcapng"));
        let sensor = Sensor::start_at(lab.sensor(), SocketAddr::new(address, 2003), file, &[])?;
        let metrics = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9100 + which);
        let others: Vec<String> = SENSORS
            .iter()
            .filter(|other| **other != address)
            .map(|other| format!("not host {other}"))
            .collect();
        let (to, filter) = (address.to_string(), others.join(" and "));
        let mut all = vec!["--sensor", &to];
        if options.reference {
            all.extend(["--filter", &filter]);
        }
        all.extend(flags);
        let taps = tapped(lab)
            .iter()
            .map(|node| Tap::launch_at(node, metrics, &all))
            .collect::<Result<_, _>>()?;
        Ok(Self { name, sensor, taps })
    }

    pub(super) fn wait_ready(&mut self) -> Result<(), LabError> {
        self.taps.iter_mut().try_for_each(Tap::wait_ready)
    }

    /// Ends them: the sensor's file, its summary, and what was lost.
    pub(super) fn stop(self, directory: &Path) -> Result<(PathBuf, Value, Lost), LabError> {
        let Self { name, sensor, taps } = self;
        let mut accounts = Vec::new();
        for (number, tap) in (1..).zip(taps) {
            accounts.push(tap.stop_logging(&directory.join(format!("tap-{name}-{number}.log")))?);
        }
        let file = sensor.file.clone();
        let summary = sensor.stop()?;
        let rings = settle_accounts(&accounts, &summary).map_err(|detail| {
            LabError::Unexpected { what: format!("the accounts of taps {name}"), detail }
        })?;
        let dropped = |account: &Value| -> u64 {
            let drops = account.pointer("/sensors/0/dropped").and_then(Value::as_object);
            drops.into_iter().flat_map(|drops| drops.values()).filter_map(Value::as_u64).sum()
        };
        let network = summary["totals"]["lost_packets"].as_u64().unwrap_or(0);
        let queues = accounts.iter().map(dropped).sum();
        Ok((file, summary, Lost { rings, queues, network }))
    }

    fn end(self, directory: &Path) -> Result<Reported, LabError> {
        let (file, summary, lost) = self.stop(directory)?;
        let frames = compare::read_frames(&file).map_err(unreadable)?;
        Ok(Reported { frames, summary, lost })
    }
}

/// Gives the sensors' host its addresses.
pub(super) fn add_sensors(lab: &Lab) -> Result<(), LabError> {
    for sensor in SENSORS {
        lab.sensor().exec(["ip", "address", "add", &format!("{sensor}/24"), "dev", "eth0"])?;
    }
    Ok(())
}

/// As an operator of this lab would give them.
pub(super) fn our_flags(options: Options<'_>) -> Vec<&str> {
    let mut flags = vec![
        "--podnet",
        PODNET,
        "--svcnet",
        SVCNET,
        "--tapped-net",
        TAPPED,
        "--untapped-net",
        UNTAPPED,
    ];
    flags.extend(options.flags);
    if options.flags.is_empty() {
        flags.extend(PATIENT);
    }
    flags
}
