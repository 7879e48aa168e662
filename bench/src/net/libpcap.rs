//! The classic tap, to compare with: Debian's libpcap, one packet a callback, one plain RPCAP datagram each.
//!
//! ```text
//! pcap_dispatch --callback--> 8 + 20 bytes of headers, packet copied --send--> sensor
//! ```
//!
//! The library is opened at run time, so that the harness builds without it.
#![expect(unsafe_code, reason = "a C library")]

use std::ffi::{CStr, CString, c_char, c_int, c_uchar, c_void};
use std::net::{SocketAddr, UdpSocket};

use libloading::{Library, Symbol};

use crate::error::Error;

#[repr(C)]
struct PacketHeader {
    stamp: libc::timeval,
    caplen: u32,
    len: u32,
}

type Callback = extern "C" fn(*mut c_uchar, *const PacketHeader, *const c_uchar);
type OpenLive =
    unsafe extern "C" fn(*const c_char, c_int, c_int, c_int, *mut c_char) -> *mut c_void;
type Dispatch = unsafe extern "C" fn(*mut c_void, c_int, Callback, *mut c_uchar) -> c_int;

struct Sender {
    socket: UdpSocket,
    buffer: Vec<u8>,
    number: u32,
}

extern "C" fn take(sender: *mut c_uchar, header: *const PacketHeader, data: *const c_uchar) {
    // SAFETY: `sender` is the one that `run` hands to `pcap_dispatch`, which hands us a header and as
    // many bytes as that says.
    let (sender, header, data) = unsafe {
        let header = &*header;
        (
            &mut *sender.cast::<Sender>(),
            header,
            std::slice::from_raw_parts(data, header.caplen as usize),
        )
    };
    sender.number = sender.number.wrapping_add(1);
    let field = |value: i64| u32::try_from(value).unwrap_or(0).to_be_bytes();
    sender.buffer.clear();
    sender.buffer.extend([0, 7, 0, 0]);
    sender.buffer.extend((header.caplen + 20).to_be_bytes());
    sender.buffer.extend(field(header.stamp.tv_sec));
    sender.buffer.extend(field(header.stamp.tv_usec));
    sender.buffer.extend(header.caplen.to_be_bytes());
    sender.buffer.extend(header.len.to_be_bytes());
    sender.buffer.extend(sender.number.to_be_bytes());
    sender.buffer.extend(data);
    // A sensor that is not there costs datagrams, no more.
    let _ = sender.socket.send(&sender.buffer);
}

/// Taps `interface` until it is killed.
///
/// # Errors
///
/// Without libpcap, or what that says.
pub fn run(interface: &str, sensor: SocketAddr) -> Result<(), Error> {
    let missing = |error: libloading::Error| Error::Input(format!("libpcap: {error}"));
    // SAFETY: the functions are declared as <pcap/pcap.h> has them; the library stays open.
    unsafe {
        let library = Library::new("libpcap.so.0.8").map_err(missing)?;
        let open: Symbol<'_, OpenLive> = library.get(b"pcap_open_live\0").map_err(missing)?;
        let dispatch: Symbol<'_, Dispatch> = library.get(b"pcap_dispatch\0").map_err(missing)?;
        let name =
            CString::new(interface).map_err(|_nul| Error::Input("a name with NUL".into()))?;
        let mut said = [0 as c_char; 256];
        // As the reference opens it: everything of a packet, at most a second's wait.
        let handle = open(name.as_ptr(), 262_144, 0, 1000, said.as_mut_ptr());
        if handle.is_null() {
            let said = CStr::from_ptr(said.as_ptr()).to_string_lossy().into_owned();
            return Err(Error::Program { command: "pcap_open_live".into(), said });
        }
        let call = || Error::call("a UDP socket");
        let socket = UdpSocket::bind("0.0.0.0:0").map_err(call())?;
        socket.connect(sensor).map_err(call())?;
        let mut sender = Sender { socket, buffer: Vec::with_capacity(1 << 18), number: 0 };
        while dispatch(handle, -1, take, (&raw mut sender).cast()) >= 0 {}
    }
    Err(Error::Input(format!("libpcap gave up on {interface}")))
}
