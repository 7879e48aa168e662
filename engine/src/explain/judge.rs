//! The verdict on each copy of a packet, and the words for it.
//!
//! ```text
//! Step --frame--> Classifier::classify, narrow --> Scope | Candidate | DropReason     (the data path's)
//! all of a packet's copies --> which is the first plain one --> reported, duplicate, held for its twin
//! ```
//!
//! The classifier decides; here is only what the table adds in the order of the path: the first copy
//! with the same ends is reported, later ones are duplicates, and a candidate waits for its twin.

use serde::Serialize;

use crate::classify::{Candidate, Election, Scope};
use crate::frame::{Direction, Frame};
use crate::stats::DropReason;
use crate::wire::Headers;

use super::craft::{self, End, Ends, Protocol};
use super::known::{Known, nobody};
use super::path::{Branch, Step};

/// The rules of spec/exactly-once.md that decide about copies.
pub(super) const RULES: [(u8, &str); 8] = [
    (1, "the sender's node reports"),
    (2, "the first copy that carries no service address wins"),
    (3, "a duplicate is the same packet at a different point"),
    (4, "the same packet: equal but for what a host changes on the way"),
    (5, "segments, not frames"),
    (6, "pod addresses win over node addresses"),
    (7, "never the tap's own traffic"),
    (8, "drop early what addresses, role and direction decide alone"),
];

/// What becomes of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Reported,
    Dropped,
    /// Decided when its twin is seen, or does not come.
    Held,
}

/// One place where a packet is seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Copy {
    /// 1, 2, ...: how the others call it.
    pub(super) copy: usize,
    /// The interface, or which one it is.
    pub(super) interface: String,
    /// `in` or `out`.
    pub(super) direction: &'static str,
    pub(super) source: String,
    pub(super) destination: String,
    /// What must be so for it to be seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) when: Option<&'static str>,
    pub(super) verdict: Verdict,
    /// The drop's name in the metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
    /// The rule that decides, if one of them does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rule: Option<u8>,
    pub(super) why: String,
}

pub(super) fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "in",
        Direction::Out => "out",
    }
}

/// Which of a flow's packets it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Request,
    Answer {
        /// See [`is_proven`].
        is_proven: bool,
    },
}

/// Whether the requests have twins here: then the flow's memory knows that it is a service's.
pub(super) fn is_proven(request: &[Copy]) -> bool {
    let service = Some(DropReason::Service.label());
    request.iter().any(|copy| copy.verdict == Verdict::Held && copy.reason == service)
}

/// A verdict with its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) verdict: Verdict,
    pub(super) reason: Option<DropReason>,
    pub(super) rule: Option<u8>,
    pub(super) why: String,
}

impl Said {
    fn reported(rule: impl Into<Option<u8>>, why: impl Into<String>) -> Self {
        Self { verdict: Verdict::Reported, reason: None, rule: rule.into(), why: why.into() }
    }

    fn dropped(reason: DropReason, rule: impl Into<Option<u8>>, why: impl Into<String>) -> Self {
        let (rule, why) = (rule.into(), why.into());
        Self { verdict: Verdict::Dropped, reason: Some(reason), rule, why }
    }

    fn held(reason: DropReason, rule: u8, why: impl Into<String>) -> Self {
        let (rule, why) = (Some(rule), why.into());
        Self { verdict: Verdict::Held, reason: Some(reason), rule, why }
    }
}

/// A step at one of its interfaces, or at several that all see it alike.
struct Seen<'a> {
    step: &'a Step,
    ends: Ends,
    interfaces: Vec<u32>,
    judged: Result<Scope, DropReason>,
}

/// The classifier's word on one frame, the node's own filter included.
pub(super) fn judge(known: &Known, frame: &Frame<'_>) -> Result<Scope, DropReason> {
    let headers = Headers::parse(frame.data);
    known.classifier.narrow(known.classifier.classify(frame, &headers), frame)
}

/// What is the same for the reader: the point's number is not.
fn alike(a: &Result<Scope, DropReason>, b: &Result<Scope, DropReason>) -> bool {
    match (a, b) {
        (Ok(a), Ok(b)) => a.candidate == b.candidate,
        (Err(a), Err(b)) => a == b,
        _ => false,
    }
}

fn look<'a>(known: &Known, steps: &'a [Step], protocol: Protocol, way: Way) -> Vec<Seen<'a>> {
    let mut all: Vec<Seen<'_>> = Vec::new();
    for step in steps {
        let made;
        let data = match &step.bytes {
            Some(bytes) => bytes,
            None => {
                made = craft::packet(&step.ends, protocol, way != Way::Request);
                &made
            }
        };
        let first = all.len();
        for &ifindex in &step.interfaces {
            let judged = judge(known, &craft::frame(data, ifindex, step.direction));
            match all[first..].iter_mut().find(|seen| alike(&seen.judged, &judged)) {
                Some(seen) => seen.interfaces.push(ifindex),
                None => all.push(Seen { step, ends: step.ends, interfaces: vec![ifindex], judged }),
            }
        }
    }
    all
}

/// The verdicts on the copies of one packet, in the order in which they are seen.
pub(super) fn copies(known: &Known, steps: &[Step], protocol: Protocol, way: Way) -> Vec<Copy> {
    let seen = look(known, steps, protocol, way);
    let say = |at: usize| {
        let Said { verdict, reason, rule, why } = say(known, &seen, at, protocol, way);
        let Seen { step, ends, interfaces, .. } = &seen[at];
        Copy {
            copy: at + 1,
            interface: step.at.map_or_else(|| names(known, interfaces), str::to_owned),
            direction: direction_name(step.direction),
            source: match step.is_outer {
                true => "this node".to_owned(),
                false => ends.source.to_string(),
            },
            destination: match (step.is_outer, step.at) {
                (true, _) => "another node".to_owned(),
                (false, Some(_)) if step.direction == Direction::Out => "the backend".to_owned(),
                _ => ends.destination.to_string(),
            },
            when: step.when,
            verdict,
            reason: reason.map(DropReason::label),
            rule,
            why,
        }
    };
    let mut copies: Vec<Copy> = (0..seen.len()).map(say).collect();
    for (copy, seen) in copies.iter_mut().zip(&seen) {
        if seen.step.at.is_some() && seen.step.direction == Direction::In {
            copy.source = "the backend".to_owned();
            if copy.verdict == Verdict::Reported {
                copy.why = "if the backend is on this node or on one without a tap; else its own node reports it".into();
            }
        }
    }
    copies
}

/// The verdict on each step by itself, as if it were all that is known of its packet.
pub(super) fn each(known: &Known, steps: &[Step], protocol: Protocol) -> Vec<Copy> {
    let mut all = Vec::new();
    for step in steps {
        let steps = std::slice::from_ref(step);
        let seen = look(known, steps, protocol, Way::Request);
        let mut of_one = copies(known, steps, protocol, Way::Request);
        for (copy, seen) in of_one.iter_mut().zip(&seen) {
            if let Ok(Some(candidate)) = seen.judged.map(|scope| scope.candidate)
                && is_service(candidate)
            {
                let twin = Some("its copy without the service address".to_owned());
                let said = held(known, candidate, twin, protocol, Way::Request);
                (copy.verdict, copy.why) = (said.verdict, said.why);
                copy.reason = said.reason.map(DropReason::label);
            }
            // Who the other end is does not matter.
            let named = |end: End| match end.address == nobody(end.address.is_ipv6()) {
                true => "anybody".to_owned(),
                false => end.to_string(),
            };
            copy.source = named(step.ends.source);
            copy.destination = named(step.ends.destination);
        }
        all.extend(of_one);
    }
    for (copy, number) in all.iter_mut().zip(1..) {
        copy.copy = number;
    }
    all
}

/// Names of interfaces of which it is one: the first few.
fn names(known: &Known, interfaces: &[u32]) -> String {
    const MOST: usize = 3;
    let names: Vec<String> = interfaces.iter().take(MOST).map(|i| known.name(*i)).collect();
    match interfaces.len().saturating_sub(MOST) {
        0 => names.join(" or "),
        more => format!("{} or {more} more", names.join(" or ")),
    }
}

fn is_plain(seen: &Seen<'_>) -> bool {
    matches!(seen.judged.map(|scope| scope.candidate), Ok(None)) && !seen.step.is_outer
}

/// What is said of the copy `at` among all of them.
fn say(known: &Known, all: &[Seen<'_>], at: usize, protocol: Protocol, way: Way) -> Said {
    let seen = &all[at];
    match seen.judged.map(|scope| scope.candidate) {
        Err(reason) => not_ours(known, seen, reason),
        Ok(_) if known.policy.election == Election::Ports => Said::reported(
            None,
            "the reference's filter takes it (--election ports: no rule of podtap's)",
        ),
        Ok(None) => plain(known, all, at),
        Ok(Some(candidate)) => held(known, candidate, twins(all, at, candidate), protocol, way),
    }
}

/// The copy before `at` that makes it a duplicate, for a packet that goes by this branch.
fn earlier(all: &[Seen<'_>], at: usize, branch: Branch) -> Option<usize> {
    let ends = all[at].ends;
    all[..at]
        .iter()
        .position(|other| is_plain(other) && other.ends == ends && other.step.branch.meets(branch))
}

/// A plain copy: the first of its packet, or not, or that depends on the branch.
fn plain(known: &Known, all: &[Seen<'_>], at: usize) -> Said {
    let branches = match all[at].step.branch {
        Branch::Any => [Branch::Plain, Branch::Snat],
        one => [one; 2],
    };
    match branches.map(|branch| earlier(all, at, branch)) {
        [None, None] => first(known, all, &all[at], all[at].step.branch),
        [Some(index), None] => Said::reported(
            6,
            format!("if the node masquerades; if not, a duplicate of copy {}", index + 1),
        ),
        [_, Some(index)] => Said::dropped(
            DropReason::Duplicate,
            3,
            format!("the same packet as copy {}", index + 1),
        ),
    }
}

/// The copies that take a candidate's place, as they are called; `None` if none is seen here.
fn twins(all: &[Seen<'_>], at: usize, candidate: Candidate) -> Option<String> {
    let branch = all[at].step.branch;
    let is_twin = |index: &usize| {
        let other = &all[*index];
        // What carries the node's address for a service's may be the best copy there is.
        let is_snat = other.step.branch == Branch::Snat && is_service(candidate);
        let counts = match other.judged.map(|scope| scope.candidate) {
            Ok(None) => is_plain(other) && earlier(all, *index, branch).is_none(),
            Ok(Some(Candidate::Node { .. })) => is_snat,
            _ => false,
        };
        *index != at && counts && other.step.branch.meets(branch)
    };
    let numbers: Vec<String> =
        (0..all.len()).filter(is_twin).map(|index| (index + 1).to_string()).collect();
    (!numbers.is_empty()).then(|| format!("copy {}", numbers.join(" or ")))
}

fn first(known: &Known, all: &[Seen<'_>], seen: &Seen<'_>, branch: Branch) -> Said {
    let is_after_service = all.iter().any(|other| {
        let candidate = other.judged.ok().and_then(|scope| scope.candidate);
        candidate.is_some_and(is_service) && other.step.branch.meets(branch)
    });
    if is_after_service {
        return Said::reported(2, "the first copy without the service address");
    }
    if known.policy.election == Election::None {
        return Said::reported(3, "the first copy on this node (--election none)");
    }
    let source = seen.ends.source.address;
    let standing = known.standing(source);
    Said::reported(
        1,
        match (standing.is_own, standing.is_local) {
            (true, _) => "the first copy, and this node sends it",
            (false, true) => "the first copy, and its sender is on this node",
            (false, false) => {
                "the first copy, and no other tap is known to report what its sender sends"
            }
        },
    )
}

fn not_ours(known: &Known, seen: &Seen<'_>, reason: DropReason) -> Said {
    let source = seen.ends.source.address;
    let interface = || names(known, &seen.interfaces);
    match reason {
        DropReason::Interface => {
            let flag = known.state.named("interface");
            Said::dropped(reason, None, format!("{flag} leaves {} out", interface()))
        }
        DropReason::OwnTraffic => Said::dropped(reason, 7, "the tap's own traffic"),
        DropReason::Overlay => Said::dropped(
            reason,
            8,
            "a tunnel's outer packet: the inner one is reported at the pod",
        ),
        DropReason::Covered => {
            let by = known.facts(source).tapped_by;
            let by = by.map_or_else(String::new, |net| {
                format!(
                    "{source} is in {net} of {}, not local here: ",
                    known.state.named("tapped-net")
                )
            });
            Said::dropped(reason, 1, format!("{by}the node of {source} reports it"))
        }
        DropReason::Election => Said::dropped(
            reason,
            None,
            "the reference's rule does not take it here (--election ports)",
        ),
        DropReason::Service => Said::dropped(reason, 2, "its translated twin is reported"),
        DropReason::NodeFilter => {
            let (flag, text) = (known.state.named("filter"), known.state.filter().unwrap_or(""));
            Said::dropped(reason, None, format!("{flag} {text:?} does not take it here"))
        }
        other => Said::dropped(other, None, format!("dropped as {}", other.label())),
    }
}

/// Nanoseconds as milliseconds, to a tenth.
fn millis(ns: u64) -> String {
    match (ns / 1_000_000, ns / 100_000 % 10) {
        (ms, 0) => ms.to_string(),
        (ms, tenths) => format!("{ms}.{tenths}"),
    }
}

fn is_service(candidate: Candidate) -> bool {
    matches!(candidate, Candidate::Service { .. } | Candidate::NodePort { .. })
}

/// What becomes of a candidate (`settle` does it, in this order: twin, flow, time).
fn held(
    known: &Known,
    candidate: Candidate,
    twin: Option<String>,
    protocol: Protocol,
    way: Way,
) -> Said {
    let (ms, half) = (millis(known.state.settle_ns), millis(known.state.settle_ns / 2));
    let is_table_alone = !known.classifier.settles();
    let is_answer = matches!(
        candidate,
        Candidate::Service { answers: true } | Candidate::NodePort { answers: true, .. }
    );
    match (candidate, twin) {
        (_, Some(twin)) if is_table_alone => Said::reported(
            3,
            format!("unless {twin} was seen before: whichever comes first is reported"),
        ),
        (_, None) if is_table_alone => Said::reported(3, "the first copy on this node"),
        (Candidate::Node { .. }, Some(twin)) => Said::held(
            DropReason::Translated,
            6,
            format!(
                "dropped when {twin} is seen, before or after; reported if it is not within {half} ms"
            ),
        ),
        (Candidate::Node { .. }, None) => {
            let what = if protocol == Protocol::TCP { "connection" } else { "flow" };
            Said::reported(
                6,
                format!(
                    "the node's own: a {what}'s first packets wait {half} ms for a twin with a pod's address; none comes, and all later ones are reported at once"
                ),
            )
        }
        (_, Some(twin)) if is_answer => Said::held(
            DropReason::Service,
            2,
            format!("dropped as {twin} was seen before; reported {half} ms later if it was not"),
        ),
        (_, Some(twin)) => Said::held(
            DropReason::Service,
            2,
            format!(
                "dropped when {twin} is seen; reported if it is not within {ms} ms (no backend, or refused)"
            ),
        ),
        (_, None) if way == (Way::Answer { is_proven: true }) => Said::dropped(
            DropReason::Service,
            2,
            "the flow's requests had twins here, so its answers have one that another node reports",
        ),
        (_, None) => {
            let ms = if is_answer { half } else { ms };
            Said::reported(
                2,
                format!("after {ms} ms: no copy without the service address is seen here"),
            )
        }
    }
}
