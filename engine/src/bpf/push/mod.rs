//! What a sensor's filter needs of a packet, so that the kernel can drop the rest.
//!
//! ```text
//! Program --walk: for one kind of packet, tests on what may differ left open--> Versions
//!         each Version --normalise--> --write--> instructions of the socket filter
//! ```
//!
//! User space decides about every packet that it gets. The kernel's part may only drop a frame if
//! nothing that stands for the same packet would be accepted: no segment that is cut from the frame,
//! no copy at another point. So it does not run the filter, but a *necessary condition* of it:
//! the filter with every test left open whose operand may differ between the frame and those
//! others. Both sides of an open test are walked, each as a [`Version`] of its own, and the frame
//! passes if any version accepts it.
//!
//! What may differ follows from what the dedup key hashes and what the cutter changes
//! (`fields`): link addresses, TTL, ECN, checksums, IP length and identification, TCP sequence
//! number and FIN, PSH, CWR, payload, any length of the frame. All else is equal wherever the key is:
//!
//! 1. Where no end is translated, a frame that no version accepts has no segment
//!    and no copy that the filter accepts. Leaving all of them out changes no report: what dedup
//!    sees of other packets is what it saw, and of this one nobody wanted any. What gets through
//!    all the same (another point's frame that the filter's writer let pass) is refused there.
//! 2. An address differs where a node puts its own, or a service's, in a pod's place: the copies that
//!    [`Candidate`]s are twins of. Where candidates wait for a twin (`--election source`), any frame
//!    may be the twin of one with a service's address or a NodePort, with both ends otherwise; if
//!    it were kept back, the candidate would be reported. And what is learned of a flow from one
//!    packet decides about its others, in both directions. So only what all packets of a flow and
//!    of its twins have in common is tested: the family and the transport protocol
//!    ([`Protocols`]). ICMP errors belong to the flow that they are about: whoever wants any
//!    protocol of the family gets them past the kernel. Addresses, ports, flags are user space's.
//!    A family in which the node has no address and no service has no candidates.
//!    Where nothing waits (`none`), only the node's address at an uplink makes a candidate, and its
//!    twin has the other end in common. Of what goes out there, the twin entered the host
//!    elsewhere; of what comes in, it leaves elsewhere, and may be the first to be looked at, by
//!    another worker. There the filter is asked a second time, with each of the node's addresses in
//!    the place of that end and any port ([`Ends::From`], [`Ends::To`]).
//! 3. A copy may have a tag where another has none. A node that can add or remove tags gets a
//!    kernel part only from filters that accept no tagged frame ([`may_accept_tagged`]); frames
//!    with a tag pass.
//!
//! Repeats are no exception: a key's frames at one point pass all or none, so the table's counts
//! are those without the kernel's part, or are about a packet that nobody wants.
//!
//! Left out of the argument: hosts that insert IPv6 extension headers in passing (IOAM, SRv6);
//! filters that ask for an IPv6 extension header itself and for none of the protocols behind it, in
//! a flow through a service; and packets of different flows that are equal but for their ends. In
//! all of them there is one report more than without the kernel's part. Nothing is lost.
//!
//! [`Candidate`]: crate::classify::Candidate

mod fields;
mod flows;
mod normal;
#[cfg(test)]
mod tests;
mod value;
mod walk;

use std::net::IpAddr;

use super::Program;
use super::assemble::{Assembler, Label};
pub use flows::Protocols;
use normal::Normal;

/// What a packet is known to be before the filter is asked; the caller has to make sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 without options, a total length of 40 or more, at least 54 bytes of frame, no tag.
    V4,
    /// IPv6 with TCP, UDP or `ICMPv6` next, a payload of 20 bytes or more, no tag.
    V6,
    /// No tag, and no `EtherType` of IP.
    Other,
    /// With a tag, whatever follows.
    Tagged,
}

/// What is known of a packet's source and destination, ports included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Those in the frame.
    Seen,
    /// The destination in the frame; this source, and any port.
    From(IpAddr),
    /// The source in the frame; this destination, and any port.
    To(IpAddr),
    /// Nothing.
    Unknown,
    /// Nothing, nor anything else but the transport protocol.
    Flow(u8),
}

/// What must hold of a frame for a filter to want anything of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// It may want any.
    Everything,
    /// One of these accepts it; if there are none, it wants nothing.
    OneOf(Vec<Version>),
}

/// A filter's program with some of its tests decided, the rest as instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(Normal);

impl Need {
    /// Nothing is wanted.
    #[must_use]
    pub fn nothing() -> Self {
        Self::OneOf(Vec::new())
    }

    /// Of packets of this kind.
    #[must_use]
    pub fn of(program: &Program, family: Family, ends: Ends) -> Self {
        let Some(found) = walk::versions(&program.0, family, ends) else {
            return Self::Everything;
        };
        let mut need = Self::nothing();
        for version in found {
            match version {
                Normal::AcceptAll => return Self::Everything,
                Normal::RejectAll => {}
                normal @ Normal::Steps(_) => need.join(Self::OneOf(vec![Version(normal)])),
            }
        }
        need
    }

    /// What either wants.
    pub fn join(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Everything, _) => {}
            (_, Self::Everything) => *self = Self::Everything,
            (Self::OneOf(ours), Self::OneOf(theirs)) => {
                for version in theirs {
                    if !ours.contains(&version) {
                        ours.push(version);
                    }
                }
            }
        }
    }

    /// What `other` does not contain already.
    #[must_use]
    pub fn beyond(&self, other: &Self) -> Self {
        match (self, other) {
            (_, Self::Everything) => Self::nothing(),
            (Self::Everything, _) => Self::Everything,
            (Self::OneOf(ours), Self::OneOf(theirs)) => Self::OneOf(
                ours.iter().filter(|version| !theirs.contains(version)).cloned().collect(),
            ),
        }
    }

    /// Goes to `accept` if the frame has what is needed; else on with what is written next.
    pub fn write(&self, asm: &mut Assembler, accept: Label) {
        match self {
            Self::Everything => asm.jump(accept),
            Self::OneOf(versions) => {
                for Version(normal) in versions {
                    normal.write(asm, accept);
                }
            }
        }
    }
}

/// True if the program may accept a frame with a tag, whatever is behind it.
#[must_use]
pub fn may_accept_tagged(program: &Program) -> bool {
    Need::of(program, Family::Tagged, Ends::Unknown) != Need::nothing()
}
