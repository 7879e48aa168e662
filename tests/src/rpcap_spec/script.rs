//! Conversations as text: who says which bytes.
//!
//! ```text
//! C 00 03 0000 00000005 "rpxv0"            # OPEN            C: client to daemon
//! D 00 83 0000 00000008 00000001 00000000  # EN10MB          D: daemon to client
//! ```
//!
//! A line is a message in hexadecimal; blanks separate nothing. `"text"` is its bytes, `xx*N` a
//! byte N times. Words that stand for bytes:
//! - `MAGIC`: a1b2c3d4 in this machine's own order (1.3).
//! - `PORT`: two bytes; the data port.
//! - `????`: bytes of any value, in what is expected.
//!
//! Lines that are no message:
//! - `D error N`: an ERROR with code N (1.13) and a text as the specification wants it.
//! - `C end`, `D end`: that side closes the connection.

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaker {
    Client,
    Daemon,
}

/// A byte, or a place for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Byte {
    Is(u8),
    Any,
    /// First and second byte of the data port.
    PortHigh,
    PortLow,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Bytes(Vec<Byte>),
    Error(u16),
    End,
}

/// A line of a script.
#[derive(Clone, Debug)]
pub(super) struct Step<'a> {
    pub(super) line: &'a str,
    pub(super) speaker: Speaker,
    pub(super) what: What,
}

/// Reads a script.
///
/// # Panics
///
/// When a line is not as the module says: a mistake in the test.
pub(super) fn read(script: &str) -> Vec<Step<'_>> {
    let lines = script.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(step).collect()
}

fn step(line: &str) -> Step<'_> {
    let said = without_comment(line);
    let (speaker, rest) = match said.split_at_checked(2) {
        Some(("C ", rest)) => (Speaker::Client, rest),
        Some(("D ", rest)) => (Speaker::Daemon, rest),
        _ => panic!("{line:?} begins with neither C nor D"),
    };
    let what = match rest.trim() {
        "end" => What::End,
        rest => match rest.strip_prefix("error ") {
            Some(code) => What::Error(code.trim().parse().expect("an error code")),
            None => What::Bytes(bytes(rest)),
        },
    };
    Step { line, speaker, what }
}

fn without_comment(line: &str) -> &str {
    // No text of a script has this character.
    line.split('#').next().unwrap_or_default()
}

fn bytes(mut text: &str) -> Vec<Byte> {
    let mut bytes = Vec::new();
    loop {
        text = text.trim_start();
        if text.is_empty() {
            return bytes;
        }
        if let Some(rest) = text.strip_prefix('"') {
            let (quoted, rest) = rest.split_once('"').expect("a closing quote");
            bytes.extend(quoted.bytes().map(Byte::Is));
            text = rest;
            continue;
        }
        let (word, rest) = text.split_once([' ', '\n']).unwrap_or((text, ""));
        text = rest;
        match word {
            "MAGIC" => bytes.extend(0xa1b2_c3d4_u32.to_ne_bytes().map(Byte::Is)),
            "PORT" => bytes.extend([Byte::PortHigh, Byte::PortLow]),
            _ => match word.split_once('*') {
                Some((byte, times)) => {
                    let times = times.parse().expect("how many times");
                    bytes.extend(std::iter::repeat_n(pair(byte), times));
                }
                None => {
                    assert!(word.len() % 2 == 0, "{word:?} has half a byte");
                    let at = (0..word.len()).step_by(2);
                    bytes.extend(at.map(|at| pair(&word[at..at + 2])));
                }
            },
        }
    }
}

fn pair(digits: &str) -> Byte {
    match digits {
        "??" => Byte::Any,
        _ => Byte::Is(u8::from_str_radix(digits, 16).expect("two hexadecimal digits")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_notation_is_read() {
        let steps = read(
            "
            # a comment
            C 00 03 0000 00000005 \"rpxv0\"   # OPEN
            D 00 ?? 61*3 PORT
            D error 18
            C end
            ",
        );
        let open = [&[0, 3, 0, 0, 0, 0, 0, 5][..], b"rpxv0"].concat();
        assert_eq!(steps[0].what, What::Bytes(open.into_iter().map(Byte::Is).collect()));
        let is = Byte::Is;
        let expected =
            [is(0), Byte::Any, is(0x61), is(0x61), is(0x61), Byte::PortHigh, Byte::PortLow];
        assert_eq!(steps[1].what, What::Bytes(expected.to_vec()));
        assert_eq!((&steps[2].what, steps[3].speaker), (&What::Error(18), Speaker::Client));
        assert_eq!(steps[3].what, What::End);
    }
}
