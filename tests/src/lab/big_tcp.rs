//! BIG TCP over IPv4: link settings that this `ip` does not know.
//!
//! ```text
//! RTM_SETLINK { index, IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE } -> NLMSG_ERROR 0
//! ```

use super::{Host, LabError, wiring::BIG};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, Read as _},
    time::Duration,
};

/// From `linux/if_link.h`, since 6.3.
const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
const IFLA_GRO_IPV4_MAX_SIZE: u16 = 64;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST_ACK: u16 = 5;
const NLMSG_ERROR: u16 = 2;
const MESSAGE_BYTES: u32 = 48;

/// For these interfaces of the host.
pub(super) fn over_ipv4(host: &Host, interfaces: &[String]) -> Result<(), LabError> {
    host.enter(|| interfaces.iter().try_for_each(|interface| set(interface)))?
        .map_err(|error| LabError::call(format!("BIG TCP on {}", host.name()), error))
}

fn set(interface: &str) -> io::Result<()> {
    let index = if_nametoindex(interface)?;
    let mut message = MESSAGE_BYTES.to_ne_bytes().to_vec();
    message.extend(libc::RTM_SETLINK.to_ne_bytes());
    message.extend(REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]); // sequence, port
    message.extend([0; 4]); // family, type
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]); // flags, change
    for attribute in [IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE] {
        message.extend(8_u16.to_ne_bytes());
        message.extend(attribute.to_ne_bytes());
        message.extend(BIG.to_ne_bytes());
    }
    let route = Protocol::from(libc::NETLINK_ROUTE);
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(route))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.send(&message)?;
    let mut answer = [0; 4096];
    let length = (&socket).read(&mut answer)?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    match (kind, error) {
        (NLMSG_ERROR, 0) if length >= 20 => Ok(()),
        (NLMSG_ERROR, error) if length >= 20 => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::Error::other("the kernel did not answer the request")),
    }
}
