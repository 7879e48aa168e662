//! A block of the ring that the kernel has handed over.
//!
//! ```text
//! kernel fills  --status = USER-->  Block::acquire .. frames() .. drop  --status = KERNEL-->
//! ```
//!
//! What is inside the block is `walk`'s business; which block comes next is `ring`'s.
#![expect(unsafe_code, reason = "reads memory shared with the kernel")]

use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::walk::Frames;
use crate::frame::Frame;
use crate::source::Batch;
use crate::sys::packet::BlockHeader;

/// A block of frames. Dropping it gives the memory back to the kernel, and the borrow of the ring
/// keeps every frame in it from outliving that moment.
#[derive(Debug)]
pub struct Block<'ring> {
    memory: NonNull<[u8]>,
    malformed: &'ring Cell<u64>,
    /// Entries that an earlier walk of this block has already counted as malformed.
    counted: Cell<u32>,
    ring: PhantomData<&'ring mut [u8]>,
}

impl<'ring> Block<'ring> {
    /// Takes the block if the kernel has finished writing it; entries that make no sense will be
    /// added to `malformed`.
    ///
    /// # Safety
    ///
    /// `memory` is one whole block of a mapped ring: aligned to 8, at least a [`BlockHeader`]
    /// long, mapped for `'ring`, written by nobody but the kernel, and then only while its status
    /// lacks `TP_STATUS_USER`. No other `Block` of it exists.
    pub(super) unsafe fn acquire(
        memory: NonNull<[u8]>,
        malformed: &'ring Cell<u64>,
    ) -> Option<Self> {
        // SAFETY: the caller promises a block that is mapped for 'ring.
        let status = unsafe { status(memory) };
        // ORDER: Acquire, pairs with the kernel's barrier in `prb_flush_block`: it sets
        // TP_STATUS_USER after it has written the frames, and none may be read before that is seen.
        let ours = status.load(Ordering::Acquire) & libc::TP_STATUS_USER != 0;
        // Lazily: a guard built on the other path would be dropped, and would release a block that
        // the kernel still owns.
        ours.then(|| Self { memory, malformed, counted: Cell::new(0), ring: PhantomData })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for 'ring (see `acquire`), which outlives `self`; the kernel leaves the
        // block alone while its status is TP_STATUS_USER, and only our drop, which no borrow of
        // `self` survives, changes that.
        unsafe { self.memory.as_ref() }
    }
}

/// The word by which the block changes hands.
///
/// # Safety
///
/// `memory` is aligned to 8, at least a [`BlockHeader`] long, and mapped for `'a`.
unsafe fn status<'a>(memory: NonNull<[u8]>) -> &'a AtomicU32 {
    // SAFETY: within the header, which the caller promises is there.
    let word = unsafe { memory.cast::<u8>().add(offset_of!(BlockHeader, block_status)) };
    // SAFETY: aligned to 4 (8 into an 8-aligned block) and mapped for 'a; all our concurrent
    // accesses to it are atomic.
    unsafe { AtomicU32::from_ptr(word.as_ptr().cast()) }
}

impl Batch for Block<'_> {
    #[inline]
    fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        Frames::new(self.bytes(), self.malformed, &self.counted)
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        // SAFETY: mapped for 'ring (see `acquire`), which outlives `self`.
        let status = unsafe { status(self.memory) };
        // ORDER: Release. Our reads of the frames must finish before the kernel may overwrite them.
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block's memory with `status` in it, and the status that is there afterwards.
    fn with_status(status: u32, test: impl FnOnce(Option<Block<'_>>)) -> u32 {
        let malformed = Cell::new(0);
        let mut words = [0u64; 16];
        let memory = NonNull::from(bytemuck::bytes_of_mut(&mut words));
        // SAFETY: as `status` asks: 128 bytes, aligned to 8, alive to the end of this function.
        let word = unsafe { super::status(memory) };
        word.store(status, Ordering::Relaxed);
        // SAFETY: as `acquire` asks; nobody writes to `words` but the block.
        test(unsafe { Block::acquire(memory, &malformed) });
        word.load(Ordering::Relaxed)
    }

    #[test]
    fn a_status_that_neither_side_wrote_is_left_alone() {
        // Anything without TP_STATUS_USER: a store of TP_STATUS_KERNEL would show.
        let odd = 0x5a5a_5a5a & !libc::TP_STATUS_USER;
        assert_eq!(with_status(odd, |block| assert!(block.is_none())), odd);
    }

    #[test]
    fn a_block_is_kept_until_drop_gives_it_back() {
        let status = libc::TP_STATUS_USER | libc::TP_STATUS_BLK_TMO | libc::TP_STATUS_LOSING;
        let after = with_status(status, |block| {
            let block = block.expect("the kernel has handed it over");
            let held = AtomicU32::new(0);
            // SAFETY: the block is alive.
            held.store(
                unsafe { super::status(block.memory) }.load(Ordering::Relaxed),
                Ordering::Relaxed,
            );
            assert_eq!(held.into_inner(), status);
            assert_eq!(block.frames().count(), 0);
        });
        assert_eq!(after, libc::TP_STATUS_KERNEL);
    }
}
