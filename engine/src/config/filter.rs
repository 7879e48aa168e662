//! `--filter`: text to a verified program.
//!
//! ```text
//! "inbound and tcp[0:2] < tcp[2:2]" --libpcap, EN10MB--> instructions --bpf::verify--> Program
//! ```

use crate::bpf::Program;
use crate::rpcap::{DLT_EN10MB, MAX_SNAPLEN};
use crate::sys::libpcap;

/// `None` for no text.
pub(super) fn compile(text: &str) -> Result<Option<Program>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    // The kernel hands us the tag beside the frame, where this word does not look: the filter
    // would reject every tagged packet, which is hardly what was meant.
    if words(text).any(|word| word == "vlan") {
        return Err("`vlan` is not supported: tags are taken out of frames before they are \
                    filtered, so match on what the tag encloses"
            .into());
    }
    let instructions =
        libpcap::compile(text, DLT_EN10MB, MAX_SNAPLEN, true, libpcap::NETMASK_UNKNOWN)
            .map_err(|error| format!("{:?}: {error}", shortened(text)))?;
    let program = Program::new(&instructions).map_err(|error| {
        format!("{:?} compiles to {} instructions: {error}", shortened(text), instructions.len())
    })?;
    Ok(Some(program))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-' | '.'))
}

/// Filters that scripts write fill screens.
fn shortened(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
