//! `--filter`: text to a verified program.
//!
//! ```text
//! "inbound and tcp[0:2] < tcp[2:2]" --libpcap, EN10MB--> instructions --bpf::verify--> Program
//! ```

use crate::bpf::{MAX_INSTRUCTIONS, Program};
use crate::rpcap::{DLT_EN10MB, MAX_SNAPLEN};
use crate::sys::libpcap;

/// libpcap's time grows with the square of the text (some seconds for this much), and its
/// optimizer's with more than that: longer filters would end in too many instructions in any case.
const MOST_TEXT: usize = 24 * 1024;
/// See [`MOST_TEXT`]. The reference's filter for 480 prefixes has 6,100 before the optimizer.
const MOST_UNOPTIMIZED: usize = 2 * MAX_INSTRUCTIONS;

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
    if text.len() > MOST_TEXT {
        return Err(format!("{} bytes of text, at most {MOST_TEXT}", text.len()));
    }
    let with = |optimize: bool| {
        libpcap::compile(text, DLT_EN10MB, MAX_SNAPLEN, optimize, libpcap::NETMASK_UNKNOWN)
            .map_err(|error| format!("{:?}: {error}", shortened(text)))
    };
    let plain = with(false)?.len();
    if plain > MOST_UNOPTIMIZED {
        return Err(format!(
            "{:?} compiles to {plain} instructions, which are too many to be made \
             {MAX_INSTRUCTIONS}",
            shortened(text)
        ));
    }
    let instructions = with(true)?;
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
