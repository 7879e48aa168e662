//! The network that a replay's command line describes.

use std::collections::HashMap;

use ipnet::IpNet;

use super::{Args, ReplayError};
use crate::frame::{Direction, Point};
use crate::net::{InterfaceSelection, Link, Role, View};
use crate::source::file::Input;

/// Files with their points, and the view in which these are interfaces.
pub(super) struct Points {
    pub(super) inputs: Vec<Input>,
    pub(super) view: View,
}

/// The interface of files that are given without `--point`.
const UNNAMED: &str = "file";

impl Points {
    pub(super) fn new(args: &Args) -> Result<Self, ReplayError> {
        let uplinks = match args.uplink.trim() {
            "" => None,
            list => Some(
                InterfaceSelection::parse(list)
                    .map_err(|error| ReplayError::Usage(format!("--uplink: {error}")))?,
            ),
        };
        let mut inputs = Vec::new();
        let mut links = HashMap::<String, u32>::new();
        let mut place = |name: &str, direction| {
            let next = u32::try_from(links.len() + 1).unwrap_or(u32::MAX);
            Point { ifindex: *links.entry(name.into()).or_insert(next), direction }
        };
        for path in &args.files {
            inputs.push(Input { path: path.clone(), point: place(UNNAMED, Direction::In) });
        }
        for text in &args.point {
            let (name, direction, path) = parse(text)?;
            inputs.push(Input { path: path.into(), point: place(name, direction) });
        }
        if inputs.is_empty() {
            return Err(ReplayError::Usage("no capture file was given".into()));
        }
        let local = args
            .local_net
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(|entry| {
                entry.parse::<IpNet>().map_err(|_not_a_prefix| {
                    ReplayError::Usage(format!("--local-net: {entry:?} is not a prefix"))
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let links = links.into_iter().map(|(name, ifindex)| {
            let is_uplink = uplinks.as_ref().is_some_and(|uplinks| uplinks.matches(&name));
            (ifindex, link(name, ifindex, if is_uplink { Role::Uplink } else { Role::Pod }))
        });
        Ok(Self { inputs, view: View { links: links.collect(), local, ..View::default() } })
    }
}

fn parse(text: &str) -> Result<(&str, Direction, &str), ReplayError> {
    let refusal =
        || ReplayError::Usage(format!("--point: {text:?} is not IFACE:in=FILE or IFACE:out=FILE"));
    let (place, path) = text.split_once('=').ok_or_else(refusal)?;
    let (name, direction) = place.rsplit_once(':').ok_or_else(refusal)?;
    let direction = match direction {
        "in" => Direction::In,
        "out" => Direction::Out,
        _ => return Err(refusal()),
    };
    if name.is_empty() || path.is_empty() {
        return Err(refusal());
    }
    Ok((name, direction, path))
}

fn link(name: String, ifindex: u32, role: Role) -> Link {
    Link {
        ifindex,
        name,
        kind: String::new(),
        is_ethernet: true,
        is_up: true,
        is_running: true,
        is_loopback: false,
        mac: Vec::new(),
        mtu: 65_535,
        addresses: Vec::new(),
        role,
        slot: u16::try_from(ifindex).unwrap_or(0),
        is_tapped: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(point: &[&str], uplink: &str) -> Args {
        Args {
            files: Vec::new(),
            point: point.iter().map(ToString::to_string).collect(),
            uplink: uplink.into(),
            local_net: "10.0.1.0/24".into(),
            write: None,
            packets_per_second: 0,
            wait_seconds: 1,
        }
    }

    #[test]
    fn two_directions_of_a_name_are_one_interface() {
        let points =
            Points::new(&args(&["vethA:in=a.pcap", "vethA:out=b.pcap", "eth0:out=c=d"], "eth*"))
                .unwrap();
        let of = |at: usize| points.inputs[at].point;
        assert_eq!(of(0).ifindex, of(1).ifindex);
        assert_ne!(of(0).direction, of(1).direction);
        assert_eq!(points.view.links[&of(2).ifindex].role, Role::Uplink);
        assert_eq!(points.view.links[&of(0).ifindex].role, Role::Pod);
        assert_eq!(points.inputs[2].path.to_str(), Some("c=d"));
        assert_eq!(points.view.local.len(), 1);
    }

    #[test]
    fn a_wrong_point_is_refused_by_name() {
        for text in ["", "a", "a=b", "a:up=b", ":in=b", "a:in="] {
            let error = Points::new(&args(&[text], "")).err().unwrap().to_string();
            assert!(error.starts_with("--point:"), "{error}");
        }
        assert!(Points::new(&args(&[], "")).is_err());
    }
}
