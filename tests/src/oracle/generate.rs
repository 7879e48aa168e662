//! Random plans, which shrink to small ones.
//!
//! ```text
//! proptest --> small numbers --> Plan        what is left out (see `Limits`) keeps a truth certain
//! ```

use proptest::prelude::*;

use super::topology::{Cni, Coverage, NodePlan, PODS, Pod, Topology};
use super::way::{Conversation, Kind};
use super::world::{Load, Message, Plan, Transport};

/// What plans may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Taps may be missing.
    pub has_missing_taps: bool,
    /// Packets may be lost on their way.
    pub has_losses: bool,
    /// Equal packets of conversations of all kinds, so that some cannot be told apart by anything.
    pub has_equals_of_all_kinds: bool,
    /// Packets of which no copy shows by its addresses that it is the better one: a port that was
    /// drawn for a translated client like a NodePort, later fragments by a NodePort to another node.
    pub has_doubtful_addresses: bool,
}

/// One number for each choice of a conversation.
type Raw = (u8, u8, u8, u8, u16, u8);

fn node(may_miss: bool) -> impl Strategy<Value = NodePlan> {
    let cni = prop_oneof![
        3 => Just(Cni::Routed),
        2 => Just(Cni::Bridge),
        1 => Just(Cni::Trunk),
        2 => Just(Cni::Overlay),
    ];
    let missing = if may_miss { 25 } else { 0 };
    (cni, 0..100u8, prop::bool::weighted(0.3)).prop_map(move |(cni, chance, stacked)| NodePlan {
        cni,
        is_tapped: chance >= missing,
        has_stacked_uplink: stacked,
    })
}

fn conversation(
    raw: Raw,
    number: u16,
    nodes: &[NodePlan],
    limits: Limits,
) -> (Conversation, Transport) {
    let (kind, a, b, c, bits, transport) = raw;
    let node = |choice: u8| usize::from(choice) % nodes.len();
    let pod = |choice: u8| Pod { node: node(choice), index: usize::from(choice / 8) % PODS };
    let other = |choice: u8, than: Pod| {
        let pod = pod(choice);
        if pod == than { Pod { index: (pod.index + 1) % PODS, ..pod } } else { pod }
    };
    let outside = usize::from(c % 4);
    let is_trunk = nodes[node(a)].cni == Cni::Trunk;
    let flag = |bit: u16| bits >> bit & 1 == 1;
    let kind = match kind % 20 {
        0 | 17 => Kind::Pods(pod(a), other(b, pod(a))),
        1 | 18 => Kind::ClusterIp(pod(a), other(b, pod(a))),
        2 => Kind::Hairpin(pod(a)),
        3 | 4 => Kind::PodOutside(pod(a), outside, flag(0) && !is_trunk),
        5 => Kind::ServiceOutside(pod(a), outside),
        6 => Kind::OutsidePod(outside, pod(b)),
        7 | 19 => {
            let is_translated = flag(0) || node(a) != node(b);
            Kind::NodePort(outside, node(a), pod(b), is_translated)
        }
        8 => Kind::NodeLocal(pod(a)),
        9 => Kind::PodHost(pod(a), node(b)),
        10 => Kind::HostPod(node(a), pod(b)),
        11 => Kind::HostOutside(node(a), outside),
        12 => Kind::OutsideHost(outside, node(a), flag(0)),
        13 if node(a) != node(b) => Kind::Hosts(node(a), node(b)),
        14 => Kind::Rejected(pod(a)),
        15 => Kind::Own(node(a)),
        _ => Kind::Pods(pod(a), other(b, pod(a))),
    };
    let client = 40_000 + number;
    let conversation = Conversation {
        kind,
        v6: flag(1),
        client,
        // Equal ports, a server's above the client's, and the usual.
        server: match bits >> 2 & 3 {
            0 => client,
            1 => 50_051,
            _ => 80,
        },
        service: if flag(4) { 8000 + number } else { 53 },
        translated: match bits >> 5 & 3 {
            0 => 50_000 + number,
            1 if limits.has_doubtful_addresses || matches!(kind, Kind::PodOutside(..)) => {
                31_000 + number
            }
            _ => client,
        },
        node_port: 30_000 + number,
        second: flag(7),
        is_asymmetric: flag(8) && flag(9),
    };
    let transport = match transport % 8 {
        0..=2 => Transport::Tcp,
        3 | 4 => Transport::Udp,
        5 => Transport::Echo,
        6 => Transport::Sctp,
        _ => Transport::Esp,
    };
    (conversation, transport)
}

fn load() -> impl Strategy<Value = Load> {
    prop_oneof![
        5 => (6..60usize).prop_map(Load::Data),
        3 => Just(Load::Heartbeat),
        2 => (2..9usize).prop_map(Load::Bulk),
        1 => (60..200usize, 5..8usize).prop_map(|(len, size)| Load::Fragments(len, size)),
        1 => any::<bool>().prop_map(Load::Error),
    ]
}

fn message(limits: Limits) -> impl Strategy<Value = Message> {
    let gap = prop_oneof![
        4 => 0..60u32,
        3 => 100..5000u32,
        1 => 20_000..250_000u32,
    ];
    let lost = prop::option::weighted(0.15, 0..8usize);
    let choices = (any::<prop::sample::Index>(), any::<bool>(), load(), gap, any::<u64>());
    let rare = (
        prop_oneof![4 => Just(0usize), 1 => 1..4usize],
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.1),
        lost,
    );
    (choices, rare).prop_map(move |((conversation, reply, load, gap_us, look), rare)| {
        let (repeats, has_no_id, has_option, lost_after) = rare;
        Message {
            conversation: conversation.index(1 << 16),
            is_reply: reply,
            load,
            gap_us,
            repeats,
            has_no_id,
            has_option: has_option && !matches!(load, Load::Bulk(_)),
            // Which of equal packets was lost, nobody can say.
            lost_after: lost_after.filter(|_| limits.has_losses && load != Load::Heartbeat),
            look,
        }
    })
}

/// Kinds of which equal packets can be told from each other's copies.
fn may_be_equal(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Pods(..)
            | Kind::ClusterIp(..)
            | Kind::PodOutside(..)
            | Kind::OutsidePod(..)
            | Kind::PodHost(..)
            | Kind::NodeLocal(_)
    )
}

/// Random plans.
pub fn plan(
    limits: Limits,
    coverage: impl Strategy<Value = Coverage>,
) -> impl Strategy<Value = Plan> {
    let nodes = prop::collection::vec(node(limits.has_missing_taps), 1..=3);
    let conversations = prop::collection::vec(any::<Raw>(), 1..7);
    let messages = prop::collection::vec(message(limits), 1..16);
    (nodes, coverage, conversations, messages).prop_map(
        move |(mut nodes, coverage, conversations, mut messages)| {
            if limits.has_equals_of_all_kinds {
                nodes.iter_mut().for_each(|node| node.cni = Cni::Routed);
            }
            let mut conversations: Vec<_> = conversations
                .into_iter()
                .zip(0u16..)
                .map(|(raw, number)| conversation(raw, number, &nodes, limits))
                .collect();
            if limits.has_equals_of_all_kinds {
                // By one uplink.
                for (conversation, _) in &mut conversations {
                    (conversation.second, conversation.is_asymmetric) = (false, false);
                }
            }
            for message in &mut messages {
                message.conversation %= conversations.len();
                let kind = conversations[message.conversation].0.kind;
                if matches!(kind, Kind::Own(_)) {
                    message.is_reply = false;
                    message.load = Load::Data(20);
                }
                let transport = conversations[message.conversation].1;
                let is_whole = matches!(transport, Transport::Tcp | Transport::Udp);
                if matches!(message.load, Load::Bulk(_)) && !is_whole {
                    message.load = Load::Data(70);
                }
                let by_a_node = matches!(kind, Kind::NodePort(_, node, pod, _) if node != pod.node);
                let is_cut = matches!(message.load, Load::Fragments(..));
                if by_a_node && is_cut && !limits.has_doubtful_addresses {
                    message.load = Load::Data(7);
                }
                let is_equal = message.load == Load::Heartbeat;
                let is_swallowed =
                    matches!(kind, Kind::Rejected(_) | Kind::OutsideHost(_, _, true));
                let may_be = may_be_equal(kind) || limits.has_equals_of_all_kinds;
                if is_equal && (!may_be || is_swallowed) {
                    message.load = Load::Data(9);
                }
            }
            Plan {
                topology: Topology { nodes, coverage },
                conversations,
                messages,
                has_equals_of_all_kinds: limits.has_equals_of_all_kinds,
            }
        },
    )
}
