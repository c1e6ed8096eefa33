//! Snapshots from one writer to the workers, without a lock (C4): whoever reads never waits, never sees half of an
//! update, and never frees one.
//!
//! Each reader has a mailbox, a pointer of its own. The writer swaps the newest snapshot into every mailbox; a
//! reader that finds one there swaps it out and keeps it until it finds the next. What is in a mailbox belongs to
//! whoever swaps it out: the reader, or the writer, if another came before the reader looked. The writer holds on
//! to each snapshot until no mailbox and no reader has it, so that it is freed on the writer's thread: at most
//! two for each reader, and the newest.
//!
//! The same file runs under loom, which tries every order of the two sides (`tests/publish.rs`).
#![allow(unsafe_code)] // A counted reference travels through an atomic pointer.

use super::atomic::{Arc, AtomicPtr, Ordering};

/// A mailbox, on cache lines of its own: readers that find nothing new share no line with each other.
#[derive(Debug)]
#[repr(align(128))]
struct Mailbox<T> {
    /// Null, or a counted reference that belongs to the mailbox.
    newest: AtomicPtr<T>,
}

impl<T> Mailbox<T> {
    /// Puts `snapshot` in and takes out what was never read.
    fn put(&self, snapshot: Arc<T>) -> Option<Arc<T>> {
        let new = Arc::into_raw(snapshot).cast_mut();
        // Release: the reader sees all of the snapshot. Acquire: as `take`.
        Self::own(self.newest.swap(new, Ordering::AcqRel))
    }

    fn take(&self) -> Option<Arc<T>> {
        // Acquire: all of the snapshot is seen.
        Self::own(self.newest.swap(std::ptr::null_mut(), Ordering::AcqRel))
    }

    /// Takes over what `pointer`, which has just been swapped out, refers to.
    fn own(pointer: *mut T) -> Option<Arc<T>> {
        // SAFETY: only `put` stores pointers that are not null, each from `Arc::into_raw`, with a count of its own. A swap hands
        // it to one side alone, so that the count is taken back once. Publisher and Reader, through which alone a mailbox is
        // reached, hold an `Arc<T>` beside it and so cross threads only where `Arc<T>` may.
        (!pointer.is_null()).then(|| unsafe { Arc::from_raw(pointer) })
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// The writer's end.
#[derive(Debug)]
pub struct Publisher<T> {
    mailboxes: Vec<Arc<Mailbox<T>>>,
    newest: Arc<T>,
    /// Those before it that a mailbox or a reader may still have.
    older: Vec<Arc<T>>,
}

/// A reader's end.
#[derive(Debug)]
pub struct Reader<T> {
    mailbox: Arc<Mailbox<T>>,
    seen: Arc<T>,
}

/// A writer and so many readers; all of them have `first`.
pub fn channel<T>(readers: usize, first: Arc<T>) -> (Publisher<T>, Vec<Reader<T>>) {
    let empty = || Arc::new(Mailbox { newest: AtomicPtr::new(std::ptr::null_mut()) });
    let mailboxes: Vec<_> = (0..readers).map(|_| empty()).collect();
    let reader =
        |mailbox: &Arc<_>| Reader { mailbox: Arc::clone(mailbox), seen: Arc::clone(&first) };
    let readers = mailboxes.iter().map(reader).collect();
    (Publisher { mailboxes, newest: first, older: Vec::new() }, readers)
}

impl<T> Publisher<T> {
    /// From now on every reader finds `snapshot`. What nobody reads any more is freed.
    pub fn publish(&mut self, snapshot: Arc<T>) {
        for mailbox in &self.mailboxes {
            // Not the last reference: it is in `older`, or was the newest until now.
            drop(mailbox.put(Arc::clone(&snapshot)));
        }
        self.older.push(std::mem::replace(&mut self.newest, snapshot));
        // One: ours. A count that others still hold, and that is about to fall, is seen the next time.
        self.older.retain(|older| Arc::strong_count(older) > 1);
    }

    /// What was published last.
    pub fn newest(&self) -> &Arc<T> {
        &self.newest
    }

    /// How many snapshots are held, the newest included.
    pub fn held(&self) -> usize {
        1 + self.older.len()
    }
}

impl<T> Reader<T> {
    /// The newest snapshot. Costs one load of a line that nobody writes, where nothing was published since.
    #[inline]
    pub fn get(&mut self) -> &Arc<T> {
        // Relaxed: the pointer is not followed; `take` is what orders.
        if !self.mailbox.newest.load(Ordering::Relaxed).is_null()
            && let Some(newest) = self.mailbox.take()
        {
            // What was seen until now is not the last reference: the writer has one.
            self.seen = newest;
        }
        &self.seen
    }
}
