//! podtap's protocol, byte for byte, against the specification.
//!
//! ```text
//! control   a scripted sensor  <--> podtap run, podtap replay      sections 1.1 to 1.13
//! capture   a scripted sensor  <--> podtap run, frames on a veth   sections 1.6 to 1.11, 2
//! passive   a scripted client  <--> podtap run --listen            sections 1.3, 2.2, 2.3
//! sensor    a scripted daemon  <--> podtap sensor                  sections 1, 2
//! ```
//!
//! A test is a conversation: `C` is what the client (the sensor) says, `D` the daemon (the tap),
//! in the specification's own notation (`tests::rpcap_spec`). Each line of the other side is
//! compared byte for byte; a module is a section.

#[cfg(test)]
mod capture;
#[cfg(test)]
mod control;
#[cfg(test)]
mod passive;
#[cfg(test)]
mod sensor;
