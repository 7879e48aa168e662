//! Promiscuous mode for as long as a capture wants it.
//!
//! A membership of a packet socket that captures nothing: the kernel counts memberships, and takes
//! this one back when the socket closes, however the process ends.

use std::io;
use std::os::fd::OwnedFd;

use crate::net::{Link, Role, View};
use crate::sys::packet;

/// Interfaces in promiscuous mode; dropping it leaves it.
#[derive(Debug)]
pub(super) struct Promiscuous(#[expect(dead_code, reason = "held open")] Option<OwnedFd>);

impl Promiscuous {
    /// Enters it on the one interface, or, for `None`, on every tapped physical one: the frames
    /// of a pod's link all pass by it in any mode. What the kernel refuses is said and left.
    pub(super) fn enter(view: &View, interface: Option<&str>) -> Self {
        let is_meant = |link: &&Link| match interface {
            Some(name) => link.name == name,
            None => link.is_tapped && link.kind.is_empty() && link.role == Role::Uplink,
        };
        let links: Vec<&Link> = view.links.values().filter(is_meant).collect();
        match enter(&links) {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                tracing::warn!(%error, "cannot open a socket for promiscuous mode");
                Self(None)
            }
        }
    }
}

fn enter(links: &[&Link]) -> io::Result<OwnedFd> {
    let socket = packet::socket()?;
    for link in links {
        if let Err(error) = packet::add_promiscuous(&socket, link.ifindex) {
            tracing::warn!(interface = link.name, %error, "no promiscuous mode");
        }
    }
    Ok(socket)
}
