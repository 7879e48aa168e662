//! The largest datagram that reaches the sensor in one piece (RFC 1191, RFC 8201).
//!
//! ```text
//! route, ICMP --kernel--> path MTU --less--> size in use, lowered at once
//!                             |------more--> probe --arrived, or silence--> raised
//!                                              `--refused on the way--> path MTU
//! ```
//!
//! A router that cannot forward a datagram drops it and says so; what was sent until then is lost.
//! So frames travel in datagrams of [`SAFE_MTU`] until a probe of the larger size has gone ahead:
//! one datagram to a port of the sensor's host where nobody listens ([`PROBE_PORT`]). Its "port
//! unreachable" proves that the size arrives, a router's "fragmentation needed" that it does not.
//! A host that says nothing gets what the reference sends unasked, and no more.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::rpcap::{MAX_UDP_PAYLOAD, PROBE_PORT, STREAM_NO_PACKET, StreamHeader};
use crate::sys::udp::{allow_fragments, path_mtu};

use super::SessionSpec;
use super::run::MIN_DATAGRAM;

/// What the reference sends: an Ethernet's 1500 bytes less the headers of IPv4 and UDP. All that
/// is known of what its receivers take.
pub(super) const REFERENCE_BYTES: usize = 1472;
/// Packets of this size pass everywhere: the least that IPv6 demands of a link.
const SAFE_MTU: usize = 1280;
/// Probes of a size before nobody's answer is taken for silence: any may be lost, or its answer
/// held back by a router's limit on ICMP messages.
const PROBES: u32 = 3;
/// Between two probes, and after the last: longer than a round trip around the earth.
const PROBE_WAIT: Duration = Duration::from_millis(300);
/// How often the kernel is asked for the path MTU.
const LOOK: Duration = Duration::from_millis(200);
/// How often while a probe is under way.
const LOOK_PROBING: Duration = Duration::from_millis(20);
/// A size that nobody confirmed is tried again after this; RFC 1191's timer, and the time after
/// which the kernel forgets what ICMP told it.
const RETRY: Duration = Duration::from_mins(10);

/// A size beyond what is used unasked is confirmed again this often: a path may change where no
/// router says so, and everything of that size would be lost from then on.
const CONFIRM: Duration = Duration::from_mins(1);

/// A probe under way.
#[derive(Debug)]
struct Probe {
    bytes: usize,
    sent: u32,
    next: Instant,
}

/// What has become of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    UnderWay,
    Arrived,
    TooLarge,
    Silence,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Path {
    is_v6: bool,
    /// Sends probes; connected anew for each look, so that the kernel looks at the route.
    scout: UdpSocket,
    scout_to: SocketAddr,
    /// The most that is wished for.
    most: usize,
    /// The most that is used though no probe was seen to arrive.
    unconfirmed: usize,
    /// False for the plain form: one message per datagram, whatever its size.
    is_probing: bool,
    /// What the kernel believes to fit.
    fits: usize,
    /// UDP payload bytes that a datagram may have now.
    size: usize,
    probe: Option<Probe>,
    /// When the size in use, which was confirmed, is to be confirmed again.
    confirm: Option<Instant>,
    /// Nobody answered for this size; when it may be tried again.
    silent: Option<(usize, Instant)>,
    next_look: Instant,
}

impl Path {
    /// The path to `spec.peer`; the first look is due at once.
    ///
    /// # Errors
    ///
    /// What `socket`, `bind` and `connect` answer.
    pub(super) fn new(spec: &SessionSpec, is_probing: bool, now: Instant) -> io::Result<Self> {
        let is_v6 = spec.peer.is_ipv6();
        let scout = match is_v6 {
            true => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
            false => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        };
        scout.set_nonblocking(true)?;
        allow_fragments(&scout, is_v6, false)?;
        let takes_any_size = spec.takes_large_datagrams || !is_probing;
        let most = match (spec.datagram_bytes, takes_any_size) {
            (Some(bytes), _) => bytes.clamp(MIN_DATAGRAM, MAX_UDP_PAYLOAD),
            (None, true) => MAX_UDP_PAYLOAD,
            (None, false) => REFERENCE_BYTES,
        };
        // Who gives a number knows the path.
        let unconfirmed = spec.datagram_bytes.map_or(REFERENCE_BYTES, |_known| most);
        let mut scout_to = spec.peer;
        scout_to.set_port(PROBE_PORT);
        let mut path = Self {
            is_v6,
            scout,
            scout_to,
            most,
            unconfirmed,
            is_probing,
            fits: most,
            size: most,
            probe: None,
            confirm: None,
            silent: None,
            next_look: now,
        };
        path.fits = path.route()?;
        if is_probing {
            path.size = path.fits.min(path.payload(SAFE_MTU));
        }
        Ok(path)
    }

    /// UDP payload bytes that a datagram may have now.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// UDP payload bytes that go through in one piece, for all that the kernel knows.
    pub(super) fn fits(&self) -> usize {
        self.fits
    }

    /// When [`look`](Self::look) is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next_look
    }

    /// Asks the kernel, and follows a probe. True if the path was found to take less than was used
    /// or than its route promised.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        // With no route at all, what was known is as good as anything.
        self.fits = self.route().unwrap_or(self.fits);
        self.next_look = now + LOOK;
        if !self.is_probing {
            return false;
        }
        let is_lowered = self.lower();
        let mut probe = match self.probe.take() {
            Some(probe) if probe.bytes <= self.fits => probe,
            _ if self.fits > self.size && !self.is_silent(now) => {
                Probe { bytes: self.fits, sent: 0, next: now }
            }
            _ if self.is_unsure(now) => Probe { bytes: self.size, sent: 0, next: now },
            _ => return is_lowered,
        };
        self.next_look = now + LOOK_PROBING;
        match probe.follow(&self.scout, now) {
            Fate::UnderWay => {
                if probe.next == now + PROBE_WAIT {
                    // On loopback, the next look knows already.
                    self.next_look = now;
                }
                self.probe = Some(probe);
            }
            Fate::Arrived => {
                self.size = probe.bytes;
                self.confirm = Some(now + CONFIRM);
            }
            Fate::TooLarge => {
                self.fits = self.route().unwrap_or(self.fits);
                if self.fits >= probe.bytes {
                    // The router did not say, or the kernel not believe, what would fit.
                    self.keep_silent(&probe, now);
                }
                self.lower();
                return true;
            }
            // Who answered before would have answered now.
            Fate::Silence if probe.bytes == self.size && self.size > self.unconfirmed => {
                self.size = self.unconfirmed;
                self.keep_silent(&probe, now);
                return true;
            }
            Fate::Silence => self.keep_silent(&probe, now),
        }
        is_lowered
    }

    /// The size in use was confirmed too long ago.
    fn is_unsure(&self, now: Instant) -> bool {
        self.size > self.unconfirmed && self.confirm.is_some_and(|due| now >= due)
    }

    /// Nobody knows whether the probe arrived.
    fn keep_silent(&mut self, probe: &Probe, now: Instant) {
        self.silent = Some((probe.bytes, now + RETRY));
        self.size = self.size.max(probe.bytes.min(self.unconfirmed));
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.silent.is_some_and(|(bytes, until)| bytes == self.fits && now < until)
    }

    /// The kernel refused a datagram on `data` as too large, or told of an earlier one. True if the
    /// path takes less than was used.
    pub(super) fn refused(&mut self, data: impl AsFd) -> bool {
        // The send has made the kernel look at the route: `data` knows best.
        if let Ok(mtu) = path_mtu(data, self.is_v6) {
            self.fits = self.payload(mtu).min(self.most);
        }
        self.lower()
    }

    /// Uses no more than fits.
    fn lower(&mut self) -> bool {
        let is_lowered = self.fits < self.size;
        if is_lowered {
            self.size = self.fits;
        }
        is_lowered
    }

    /// What fits, from a fresh look at the route.
    fn route(&self) -> io::Result<usize> {
        self.scout.connect(self.scout_to)?;
        Ok(self.payload(path_mtu(&self.scout, self.is_v6)?).min(self.most))
    }

    /// UDP payload bytes of an IP packet; a path that takes nothing useful counts as one that
    /// takes the smallest datagram.
    fn payload(&self, mtu: usize) -> usize {
        let headers = if self.is_v6 { 48 } else { 28 };
        mtu.saturating_sub(headers).clamp(MIN_DATAGRAM, MAX_UDP_PAYLOAD)
    }
}

impl Probe {
    /// Reads the answers, and sends what is due.
    fn follow(&mut self, scout: &UdpSocket, now: Instant) -> Fate {
        if self.sent > 0 {
            let answer = scout.take_error().ok().flatten();
            match answer.and_then(|error| error.raw_os_error()) {
                Some(libc::ECONNREFUSED) => return Fate::Arrived,
                Some(libc::EMSGSIZE) => return Fate::TooLarge,
                // Prohibited, unreachable: no word about the size.
                _ => {}
            }
        }
        if now < self.next {
            return Fate::UnderWay;
        }
        if self.sent == PROBES {
            return Fate::Silence;
        }
        // It looks like RPCAP data, so that no tap on the way takes it for traffic.
        let mut datagram = vec![0; self.bytes];
        let header = StreamHeader { first_header: STREAM_NO_PACKET, sequence: 0 };
        let header = header.to_bytes();
        datagram[..header.len()].copy_from_slice(&header);
        match scout.send(&datagram).map_err(|error| error.raw_os_error()) {
            Err(Some(libc::EMSGSIZE)) => return Fate::TooLarge,
            Err(Some(libc::ECONNREFUSED)) if self.sent > 0 => return Fate::Arrived,
            // As good as lost.
            _ => {}
        }
        self.sent += 1;
        self.next = now + PROBE_WAIT;
        Fate::UnderWay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks as often as it is due; the time afterwards.
    fn follow(path: &mut Path, mut now: Instant, until: impl Fn(&Path) -> bool) -> Instant {
        for _ in 0..200 {
            if until(path) {
                return now;
            }
            now = now.max(path.next_look) + Duration::from_millis(1);
            path.look(now);
        }
        panic!("{path:?}");
    }

    #[test]
    fn a_size_is_confirmed_again_and_left_when_nobody_answers_any_more() {
        // An address of this test alone, since the port is the same for all.
        let host = Ipv4Addr::new(127, 0, 33, 77);
        let mut spec = super::super::tests::spec((host, 9).into());
        spec.takes_large_datagrams = true;
        let mut path = Path::new(&spec, true, Instant::now()).unwrap();
        let now = follow(&mut path, Instant::now(), |path| path.size == MAX_UDP_PAYLOAD);
        let first = path.confirm;
        let now = follow(&mut path, now + CONFIRM, |path| path.confirm > first);
        assert_eq!(path.size, MAX_UDP_PAYLOAD, "answered again");
        // Who listens there answers nothing.
        let _mute = UdpSocket::bind((host, PROBE_PORT)).unwrap();
        let now = follow(&mut path, now + CONFIRM, |path| path.size < MAX_UDP_PAYLOAD);
        assert_eq!((path.size, path.is_silent(now)), (REFERENCE_BYTES, true));
    }
}
