//! Ten thousand conversations that no client would have.

use proptest::prelude::*;

use super::bench::{Bench, filter, message, replies, start};
use super::*;

/// Largest legal payload kept, with room for the allocator's doubling.
const MOST_KEPT: usize = 2 * 131_078;

/// A request as a client would send it, or nearly.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let instruction = prop_oneof![Just([0, 6, 0, 0, 0, 4, 0, 0]), any::<[u8; 8]>()];
    let instructions = proptest::collection::vec(instruction, 0..4);
    let junk = proptest::collection::vec(any::<u8>(), 0..80);
    prop_oneof![
        Just(message(8, &[0; 8])),
        Just(message(8, b"\0\x01\0\0\0\x01\0\x01up")),
        Just(message(2, &[])),
        Just(message(3, b"eth0")),
        instructions.clone().prop_map(|list| start(2, 4000, &list)),
        instructions.prop_map(|list| message(5, &filter(&list))),
        Just(message(9, &[])),
        Just(message(10, &[])),
        any::<[u8; 8]>().prop_map(|payload| message(11, &payload)),
        (any::<u8>(), junk.clone()).prop_map(|(kind, payload)| message(kind, &payload)),
        (0..12u8, junk).prop_map(|(kind, payload)| message(kind, &payload)),
    ]
}

/// What happens to the bytes on the way: a byte changed, cut out, put in.
#[derive(Clone, Debug)]
enum Mutation {
    Set(prop::sample::Index, u8),
    Remove(prop::sample::Index),
    Insert(prop::sample::Index, u8),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        any::<prop::sample::Index>().prop_map(Mutation::Remove),
        (any::<prop::sample::Index>(), any::<u8>())
            .prop_map(|(at, byte)| Mutation::Insert(at, byte)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn no_conversation_panics_grows_or_is_answered_in_pieces(
        requests in proptest::collection::vec(request(), 1..30),
        mutations in proptest::collection::vec(mutation(), 0..6),
        authenticates: bool,
        chunk in 1..200usize,
    ) {
        let mut bytes = requests.concat();
        for mutation in mutations {
            match mutation {
                Mutation::Set(at, byte) => *at.get_mut(&mut bytes) = byte,
                Mutation::Remove(at) if bytes.len() > 1 => { bytes.remove(at.index(bytes.len())); }
                Mutation::Remove(_) => {}
                Mutation::Insert(at, byte) => bytes.insert(at.index(bytes.len()), byte),
            }
        }
        if authenticates {
            bytes.splice(0..0, message(8, &[0; 8]));
        }

        let whole = Bench::new(None).talk(&bytes);
        let mut bench = Bench::new(None);
        let mut pieces = Vec::new();
        for piece in bytes.chunks(chunk) {
            pieces.extend(bench.talk(piece));
            prop_assert!(bench.conversation.decoder.kept_bytes() <= MOST_KEPT);
        }
        prop_assert_eq!(&pieces, &whole, "how the bytes are cut must not matter");
        // One reply a request at most; a message takes eight bytes, an ERROR 264.
        let count = replies(&whole).len();
        prop_assert!(count <= bytes.len() / 8);
        prop_assert!(whole.len() <= count * 264);
        prop_assert!(bench.conversation.output.capacity() <= 2 * OUTPUT_HIGH_WATER);
    }
}
