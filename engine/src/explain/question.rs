//! What is asked: words of the command line to a question.
//!
//! ```text
//! "10.0.1.7" | "eni1234" | "10.0.1.7:40000 tcp 172.20.0.10:80" | --file, --frame, --point --> Question
//! ```

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::frame::Direction;

use super::Args;
use super::craft::{End, Ends, Protocol};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Address(End),
    Flow { ends: Ends, protocol: Protocol, backend: Option<End> },
    Interface(String),
    Frame { file: PathBuf, number: u64, point: Option<(String, Direction)>, backend: Option<End> },
}

impl Question {
    pub(super) fn parse(args: &Args) -> Result<Self, String> {
        let backend = match &args.backend {
            Some(text) => Some(end(text).ok_or_else(|| {
                format!("--backend: {text:?} is not an address with a port, as in 10.0.2.7:8080")
            })?),
            None => None,
        };
        if let (Some(file), Some(number)) = (&args.file, args.frame) {
            if number == 0 {
                return Err("--frame: frames are counted from 1".into());
            }
            let point = args.point.as_deref().map(point).transpose()?;
            return Ok(Self::Frame { file: file.clone(), number, point, backend });
        }
        let words: Vec<&str> = args.question.iter().map(String::as_str).collect();
        match words.as_slice() {
            [] => Err("what? give an address, an interface, a flow (SOURCE tcp DESTINATION), or --file with --frame".into()),
            [_] if backend.is_some() => Err("--backend is for a flow: SOURCE tcp DESTINATION".into()),
            [word] => match end(word) {
                Some(end) => Ok(Self::Address(end)),
                None => Ok(Self::Interface((*word).to_owned())),
            },
            [source, destination] => flow(source, None, destination, backend),
            [source, protocol, destination] => {
                let named = Protocol::parse(protocol).ok_or_else(|| {
                    format!("{protocol:?} is no protocol: tcp, udp, icmp, sctp or a number up to 255")
                })?;
                flow(source, Some(named), destination, backend)
            }
            _ => Err(format!("{} words are no question: a flow is SOURCE tcp DESTINATION", words.len())),
        }
    }
}

/// An address, with a port or without.
fn end(text: &str) -> Option<End> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(End { address: address.ip(), port: Some(address.port()) });
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|address| End { address, port: None })
}

fn flow(
    source: &str,
    protocol: Option<Protocol>,
    destination: &str,
    backend: Option<End>,
) -> Result<Question, String> {
    let of = |text: &str| {
        end(text).ok_or_else(|| format!("{text:?} is not an address, with :PORT or without"))
    };
    let ends = Ends { source: of(source)?, destination: of(destination)? };
    let has_ports = ends.source.port.is_some() || ends.destination.port.is_some();
    let is_v6 = ends.source.address.is_ipv6();
    let protocol = match protocol {
        Some(protocol) => protocol,
        None if has_ports => Protocol::TCP,
        None => Protocol(crate::wire::protocol::ICMP),
    };
    let protocol = protocol.of_family(is_v6);
    for other in [Some(ends.destination), backend].into_iter().flatten() {
        if other.address.is_ipv6() != is_v6 {
            let (one, other) = (ends.source.address, other.address);
            return Err(format!("{one} and {other} are of two families: a packet has one"));
        }
    }
    if has_ports && !protocol.has_ports() {
        return Err(format!("{protocol} has no ports"));
    }
    if protocol.has_ports() && ends.destination.port.is_none() {
        let address = End { port: Some(80), ..ends.destination };
        return Err(format!("{protocol} to which port? as in {address}"));
    }
    if backend.is_some_and(|backend| backend.port.is_some() != protocol.has_ports()) {
        return Err(format!("--backend: give a port with {protocol} if it has them, else none"));
    }
    Ok(Question::Flow { ends, protocol, backend })
}

fn point(text: &str) -> Result<(String, Direction), String> {
    let refusal = || format!("--point: {text:?} is not IFACE:in or IFACE:out");
    let (name, direction) = text.rsplit_once(':').ok_or_else(refusal)?;
    let direction = match direction {
        "in" => Direction::In,
        "out" => Direction::Out,
        _ => return Err(refusal()),
    };
    match name {
        "" => Err(refusal()),
        name => Ok((name.to_owned(), direction)),
    }
}
