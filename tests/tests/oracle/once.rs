//! Over the whole cluster: each packet once, by one node; in doubt twice, and never not at all.

use engine::dedup::MIN_MEMORY;
use engine::settle::Settling;
use proptest::prelude::*;
use tests::oracle::generate::{Limits, plan};
use tests::oracle::taps::{Running, mixed};
use tests::oracle::topology::{Cni, Coverage, NodePlan, Pod, Topology};
use tests::oracle::way::{Conversation, Kind};
use tests::oracle::world::{Load, Message, Plan, Transport, World};

use super::check::{config, exactly_once, never_lost, outcomes};

const ALL_IS_WELL: Limits = Limits {
    has_missing_taps: false,
    has_losses: false,
    has_equals_of_all_kinds: false,
    has_doubtful_addresses: false,
};

fn known() -> impl Strategy<Value = Coverage> {
    prop_oneof![Just(Coverage::Published), Just(Coverage::Cidr)]
}

fn any_knowledge() -> impl Strategy<Value = Coverage> {
    prop_oneof![
        Just(Coverage::Published),
        Just(Coverage::Cidr),
        any::<u32>().prop_map(Coverage::Lagging),
        Just(Coverage::None),
    ]
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn with_coverage_each_packet_is_reported_once_by_one_node_with_the_right_addresses(
        plan in plan(ALL_IS_WELL, known()),
        seed: u64,
    ) {
        exactly_once(&plan, Running { skew_ns: 0, ..Running::new(1, seed) })?;
    }

    #[test]
    fn whatever_the_order_at_up_to_four_workers_each_packet_is_reported_once(
        plan in plan(Limits { has_losses: true, ..ALL_IS_WELL }, known()),
        workers in 1..=4usize,
        seed: u64,
    ) {
        exactly_once(&plan, Running::new(workers, seed))?;
    }

    #[test]
    fn where_taps_are_missing_the_first_one_on_the_way_reports(
        plan in plan(Limits { has_missing_taps: true, has_losses: true, ..ALL_IS_WELL }, known()),
        workers in 1..=4usize,
        seed: u64,
    ) {
        exactly_once(&plan, Running::new(workers, seed))?;
    }

    #[test]
    fn whatever_is_known_of_other_nodes_no_packet_is_lost_and_none_is_doubled_on_a_node(
        plan in plan(
            Limits {
                has_missing_taps: true,
                has_losses: true,
                has_doubtful_addresses: true,
                ..ALL_IS_WELL
            },
            any_knowledge(),
        ),
        workers in 1..=4usize,
        seed: u64,
    ) {
        never_lost(&plan, Running::new(workers, seed), true)?;
    }

    #[test]
    fn equal_packets_of_all_kinds_are_counted_right_and_never_lost_on_a_node_with_one_uplink(
        plan in plan(
            Limits { has_equals_of_all_kinds: true, ..ALL_IS_WELL },
            any_knowledge(),
        ),
        seed: u64,
    ) {
        never_lost(&plan, Running { skew_ns: 0, ..Running::new(1, seed) }, false)?;
    }

    #[test]
    fn past_the_bound_on_skew_there_are_only_duplicates(
        plan in plan(
            Limits { has_losses: true, has_doubtful_addresses: true, ..ALL_IS_WELL },
            any_knowledge(),
        ),
        workers in 2..=4usize,
        skew_ms in 10..400u64,
        seed: u64,
    ) {
        let running = Running { skew_ns: skew_ms * 1_000_000, ..Running::new(workers, seed) };
        never_lost(&plan, running, false)?;
    }

    #[test]
    fn with_hardly_any_memory_for_what_waits_there_are_only_duplicates(
        plan in plan(
            ALL_IS_WELL,
            any_knowledge(),
        ),
        workers in 1..=4usize,
        memory in 0..8000usize,
        seed: u64,
    ) {
        let running = Running::new(workers, seed);
        let settling = Settling { memory, ..running.settling };
        never_lost(&plan, Running { settling, ..running }, false)?;
    }
}

/// Pods of two nodes, by a service, and to the internet: more packets within a window than the
/// least table has room for.
fn crowd() -> Plan {
    let pod = |node, index| Pod { node, index };
    let kinds = [
        Kind::ClusterIp(pod(0, 0), pod(1, 1)),
        Kind::PodOutside(pod(0, 1), 0, true),
        Kind::Pods(pod(1, 0), pod(0, 1)),
    ];
    let conversation = |(kind, number): (Kind, u16)| Conversation {
        kind,
        v6: false,
        client: 40_000 + number,
        server: 80,
        service: 8000,
        translated: 50_000 + number,
        node_port: 30_000,
        second: false,
        is_asymmetric: false,
    };
    let node = NodePlan { cni: Cni::Routed, is_tapped: true, has_stacked_uplink: false };
    let message = |number: u64| Message {
        conversation: [0, 1, 2, 0, 1, 2][usize::try_from(number % 6).unwrap_or(0)],
        is_reply: number % 2 == 1,
        load: Load::Data(20),
        gap_us: 3,
        repeats: 0,
        has_no_id: false,
        has_option: false,
        lost_after: None,
        look: mixed(7, number),
    };
    Plan {
        topology: Topology { nodes: vec![node.clone(), node], coverage: Coverage::Published },
        conversations: kinds
            .into_iter()
            .zip(0..)
            .map(|pair| (conversation(pair), Transport::Udp))
            .collect(),
        messages: (0..12_000).map(message).collect(),
        has_equals_of_all_kinds: false,
    }
}

#[test]
fn a_table_that_is_too_small_doubles_packets_and_loses_none() {
    let plan = crowd();
    let running = Running { table_memory: MIN_MEMORY, ..Running::new(3, 5) };
    let world = World::new(&plan);
    let evicted: u64 =
        outcomes(&world, running).unwrap().iter().flatten().map(|outcome| outcome.evicted).sum();
    assert!(evicted > 100, "{evicted}");
    never_lost(&plan, running, false).unwrap();
    // With room for all of them, each comes once.
    exactly_once(&plan, Running { table_memory: 1 << 24, ..running }).unwrap();
}
