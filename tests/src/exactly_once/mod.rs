//! The table of spec/exactly-once.md, measured: each row's packets, as they were sent and as they
//! reached the sensor, by the default rule and by the reference's.
//!
//! ```text
//! a row's traffic --> pods, nodes, hosts --> taps (--election source) --> sensor --+
//!                         |          \-----> taps (--election ports) ---> sensor --+--> Table
//!                         +--> tcpdump at the senders --> truth: what must come ---+
//! ```
//!
//! Both pairs of taps run at the same time on the same nodes and see the same packets. The
//! reference's taps must not report what ours send to their sensor, nor the other way round, so
//! each is told (`--filter`) to leave the other's sensor alone; their own they must know.

mod devices;
mod load;
mod node;
mod outside;
mod plain;
mod rows;
mod services;
mod shapes;
mod stage;
mod table;
mod truth;

pub use load::{Load, LoadLine, LoadTable, TIMES, run as run_load};
pub use rows::{ROWS, Row};
pub use stage::PATIENT;
pub use table::{Line, Table};

use crate::lab::{Host, Lab, LabError, Node, Pod};
use rows::Traffic;
use stage::Stage;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

/// Where the sensors listen: ours, the reference's.
pub(crate) const SENSORS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 0, 250, 11)), IpAddr::V4(Ipv4Addr::new(10, 0, 250, 12))];

/// How much traffic of each kind.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// HTTP requests, DNS queries.
    pub requests: u32,
    /// Bytes of bulk TCP.
    pub bulk_bytes: u64,
}

impl Size {
    /// What `scripts/exactly-once` shows.
    pub const SHOW: Self = Self { requests: 500, bulk_bytes: 5_000_000 };
    /// Enough to test, quickly.
    pub const TEST: Self = Self { requests: 60, bulk_bytes: 1_000_000 };

    /// A tenth: for what is many packets each, or one of several.
    fn some(self) -> u32 {
        self.requests.div_ceil(10)
    }
}

/// What a run is to do.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Where captures, logs and the sensors' files go; it exists.
    pub directory: &'a Path,
    /// How much traffic.
    pub size: Size,
    /// Numbers of the rows; none means all.
    pub rows: &'a [u8],
    /// Run the reference's rule beside ours.
    pub reference: bool,
    /// More flags for our taps; [`PATIENT`] if there are none.
    pub flags: &'a [&'a str],
}

/// What a row's traffic works with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ground<'a> {
    lab: &'a Lab,
    size: Size,
}

impl<'a> Ground<'a> {
    /// The pod that asks, on node 1.
    fn client(&self) -> &'a Pod {
        self.lab.node(1).pod(1)
    }

    /// Another pod of the same node.
    fn near(&self) -> &'a Pod {
        self.lab.node(1).pod(2)
    }

    /// A pod of the other node.
    fn far(&self) -> &'a Pod {
        self.lab.node(2).pod(1)
    }

    /// Machines of the VPC that run no tap: in a subnet of their own, and among the nodes'.
    fn instances(&self) -> [&'a Host; 2] {
        [self.lab.db(), self.lab.cache()]
    }

    fn v6(host: &Host, port: u16) -> Result<SocketAddr, LabError> {
        host.socket_v6(port).ok_or_else(|| LabError::Unexpected {
            what: "the lab".into(),
            detail: "it has no IPv6".into(),
        })
    }
}

/// Runs the rows; `say` is told each step.
///
/// # Errors
///
/// When there is no such row, the lab, a process or the traffic fails, or a tap's account does
/// not add up. Packets that are missing or doubled are no error, but in the table.
pub fn run(options: Options<'_>, say: &mut dyn FnMut(&str)) -> Result<Table, LabError> {
    let wanted = wanted(options.rows)?;
    say("raising the lab, two sensors, and the taps");
    let stage = Stage::up(options)?;
    let ground = Ground { lab: &stage.lab, size: options.size };
    for row in &ROWS {
        if let (Traffic::Of(traffic), true) = (row.traffic, wanted.contains(&row.number)) {
            say(&format!("row {}: {}", row.number, row.what));
            traffic(&ground)?;
        }
    }
    say("waiting for the last packets, ending taps and sensors");
    let seen = stage.end()?;
    say("comparing what was sent with what the sensors got");
    table::make(&seen, &wanted)
}

/// The rows to show, those included whose traffic is another's.
fn wanted(rows: &[u8]) -> Result<BTreeSet<u8>, LabError> {
    if rows.is_empty() {
        return Ok(ROWS.iter().map(|row| row.number).collect());
    }
    let mut wanted = BTreeSet::new();
    for number in rows {
        let row = ROWS.iter().find(|row| row.number == *number);
        let row = row.ok_or_else(|| LabError::Invalid(format!("there is no row {number}")))?;
        wanted.insert(*number);
        if let Traffic::With(other) = row.traffic {
            wanted.insert(other);
        }
        wanted.extend(
            ROWS.iter()
                .filter(|row| matches!(row.traffic, Traffic::With(other) if other == *number))
                .map(|row| row.number),
        );
    }
    Ok(wanted)
}

/// Nodes with a tap.
fn tapped(lab: &Lab) -> &[Node] {
    lab.nodes()
}
