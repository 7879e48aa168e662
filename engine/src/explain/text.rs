//! An answer for a person: one fact a line, labels in a column, verdicts in another.
//!
//! ```text
//! state        tap @podtap (pid 812, podtap 0.1.0), election source
//! 10.0.1.7     local: route 10.0.1.7/32 through eni1234 (pod)
//! request
//!   1 held      in  eni1234  10.0.1.7:40000 > 172.20.0.10:80
//!               until copy 2 is seen, then dropped; reported if none is within 20 ms (rule 2)
//! ```

use std::fmt::Write;

use super::answer::{About, Answer, Body, InterfaceFacts, Source};
use super::capture::FrameFacts;
use super::judge::{Copy, Verdict};
use super::known::AddressFacts;

/// The answer, lines ended.
pub(super) fn render(answer: &Answer) -> String {
    let mut page = Page::default();
    page.row("state", state(&answer.state));
    match &answer.body {
        Body::Address { facts, copies } => {
            page.address(facts);
            page.copies("what it sends, where it is first seen", copies);
        }
        Body::Flow { protocol, facts, request, answer } => {
            facts.iter().for_each(|facts| page.address(facts));
            page.copies(&format!("{protocol} request"), request);
            page.copies("answer", answer);
        }
        Body::Interface(facts) => page.interface(facts),
        Body::Frame(facts) => page.frame(facts),
    }
    page.finish(answer)
}

fn state(about: &About) -> String {
    let About { from, version, pid, election } = about;
    let pid = pid.map_or_else(String::new, |pid| format!("pid {pid}, "));
    let from = match from {
        Source::Tap(name) => format!("tap @{name}"),
        Source::File(path) => format!("file {path}"),
        Source::Machine { absent: Some(name) } => {
            format!("this machine now, with these flags, as no tap answers at @{name}")
        }
        Source::Machine { absent: None } => "this machine now, with these flags".to_owned(),
    };
    format!("{from} ({pid}podtap {version}), election {election}")
}

/// Rows wait here until the widest label is known.
#[derive(Default)]
struct Page {
    rows: Vec<(String, String)>,
    blocks: String,
}

/// No label column is wider: an IPv6 address has 39 letters at most.
const WIDEST: usize = 40;

impl Page {
    fn row(&mut self, label: impl Into<String>, text: impl Into<String>) {
        self.rows.push((label.into(), text.into()));
    }

    fn address(&mut self, facts: &AddressFacts) {
        let label = facts.address.to_string();
        if !self.rows.iter().any(|(known, _)| *known == label) {
            self.row(label, facts.says.clone());
        }
    }

    fn copies(&mut self, title: &str, copies: &[Copy]) {
        if copies.is_empty() {
            return;
        }
        let width = |of: fn(&Copy) -> &str| copies.iter().map(|c| of(c).len()).max().unwrap_or(0);
        let interface = width(|copy| &copy.interface);
        let number = copies.len().to_string().len();
        let _ok = writeln!(self.blocks, "{title}");
        for copy in copies {
            let verdict = match copy.verdict {
                Verdict::Reported => "REPORTED",
                Verdict::Dropped => "dropped",
                Verdict::Held => "held",
            };
            let when = copy.when.map_or_else(String::new, |when| format!("  [{when}]"));
            let rule = copy.rule.map_or_else(String::new, |rule| format!(" (rule {rule})"));
            let reason = match (copy.verdict, copy.reason) {
                (Verdict::Dropped, Some(reason)) => format!("{reason}: "),
                _ => String::new(),
            };
            let Copy { copy: at, direction, source, destination, why, .. } = copy;
            let _ok = writeln!(
                self.blocks,
                "  {at:>number$} {verdict:<8}  {direction:<3} {:<interface$}  {source} > {destination}{when}",
                copy.interface,
            );
            let _ok = writeln!(self.blocks, "  {:number$}           {reason}{why}{rule}", "");
        }
    }

    fn interface(&mut self, facts: &InterfaceFacts) {
        let listed = |nets: &[ipnet::IpNet]| {
            const MOST: usize = 8;
            let names: Vec<String> = nets.iter().take(MOST).map(ToString::to_string).collect();
            match nets.len().saturating_sub(MOST) {
                0 => names.join(", "),
                more => format!("{} and {more} more", names.join(", ")),
            }
        };
        self.row(facts.interface.clone(), facts.says.clone());
        let kind = facts.kind.as_deref().unwrap_or("physical");
        let up = if facts.up { "up" } else { "down" };
        let slot = match facts.slot {
            0 => "no number".to_owned(),
            slot => format!("number {slot}"),
        };
        let (ifindex, mtu) = (facts.ifindex, facts.mtu);
        self.row("device", format!("{kind}, ifindex {ifindex}, {up}, MTU {mtu}, {slot}"));
        if !facts.addresses.is_empty() {
            self.row("addresses", listed(&facts.addresses));
        }
        if !facts.leads_to.is_empty() {
            self.row("leads to", listed(&facts.leads_to));
        }
        self.copies("frames there", &facts.copies);
    }

    fn frame(&mut self, facts: &FrameFacts) {
        let FrameFacts { file, frame, bytes, captured, packet, key, .. } = facts;
        let cut = match u64::from(*bytes) == *captured {
            true => String::new(),
            false => format!(", {captured} captured"),
        };
        self.row("frame", format!("{frame} of {}, {bytes} bytes{cut}", file.display()));
        if !facts.vlans.is_empty() {
            let ids: Vec<String> = facts.vlans.iter().map(ToString::to_string).collect();
            self.row("VLAN", ids.join(", "));
        }
        if let Some(packet) = packet {
            let fragment = packet.fragment.as_ref().map_or_else(String::new, |fragment| {
                let more = if fragment.more { ", more follow" } else { ", the last" };
                format!(", fragment of {:#x} at {}{more}", fragment.id, fragment.offset)
            });
            let (source, destination) = (packet.source, packet.destination);
            let (protocol, payload) = (packet.protocol, packet.payload);
            self.row(
                "packet",
                format!(
                    "{protocol} {source} > {destination}, {payload} bytes of payload{fragment}"
                ),
            );
        }
        facts.facts.iter().for_each(|facts| self.address(facts));
        self.row("same if equal", key.counts.join(", "));
        if !key.ends.is_empty() {
            self.row("and its ends", key.ends.join(", "));
        }
        self.row("ignored", key.ignored.join(", "));
        let title = match facts.copy {
            Some(copy) => format!("this frame is copy {copy}"),
            None => "the copies of its packet".to_owned(),
        };
        self.copies(&title, &facts.copies);
    }

    fn finish(self, answer: &Answer) -> String {
        let width = self.rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0).min(WIDEST);
        let mut text = String::new();
        for (label, row) in &self.rows {
            let _ok = writeln!(text, "{label:<width$}  {row}");
        }
        if !self.blocks.is_empty() {
            let _ok = write!(text, "\n{}", self.blocks);
        }
        if !answer.rules.is_empty() || !answer.notes.is_empty() {
            text.push('\n');
        }
        for (rule, words) in &answer.rules {
            let _ok = writeln!(text, "rule {rule}: {words}");
        }
        for note in &answer.notes {
            let _ok = writeln!(text, "note: {note}");
        }
        text
    }
}
