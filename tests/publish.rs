//! How snapshots reach the workers: a model of it in which loom tries every order of the two sides' steps, and
//! the same with real threads.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ThreadId};

/// In the place of `forward::atomic`: what the model is made of.
mod atomic {
    pub(crate) use loom::sync::Arc;
    pub(crate) use loom::sync::atomic::{AtomicPtr, Ordering};
}

#[path = "../src/forward/publish.rs"]
#[allow(unreachable_pub)]
mod publish;

mod under_loom {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::thread::{self, ThreadId};

    use super::publish::{Reader, channel};

    /// Two halves that belong together. Relaxed: only how it is published can order them.
    struct Table {
        halves: [AtomicU32; 2],
        writer: ThreadId,
    }

    impl Table {
        fn new(number: u32) -> Arc<Table> {
            let table = Table { halves: Default::default(), writer: thread::current().id() };
            table.halves.iter().for_each(|half| half.store(number, Ordering::Relaxed));
            Arc::new(table)
        }

        fn number(&self) -> u32 {
            let [first, second] = [0, 1].map(|at| self.halves[at].load(Ordering::Relaxed));
            assert_eq!(first, second, "half of an update");
            first
        }
    }

    impl Drop for Table {
        fn drop(&mut self) {
            assert_eq!(thread::current().id(), self.writer, "freed by a reader");
        }
    }

    fn read(mut reader: Reader<Table>, times: usize) -> Reader<Table> {
        let mut last = 0;
        for _ in 0..times {
            let number = reader.get().number();
            assert!(number >= last, "{number} after {last}");
            last = number;
        }
        reader
    }

    #[test]
    fn a_reader_sees_whole_snapshots_in_order_and_frees_none() {
        loom::model(|| {
            let (mut publisher, mut readers) = channel(1, Table::new(0));
            let reader = readers.pop().unwrap();
            let reader = thread::spawn(move || read(reader, 2));
            publisher.publish(Table::new(1));
            publisher.publish(Table::new(2));
            let mut reader = reader.join().unwrap();
            assert_eq!(publisher.newest().number(), 2);
            assert_eq!(reader.get().number(), 2);
            // What nobody has any more is freed.
            publisher.publish(Table::new(3));
            assert_eq!(publisher.held(), 2);
            assert_eq!(reader.get().number(), 3);
        });
    }

    #[test]
    fn readers_do_not_disturb_each_other() {
        loom::model(|| {
            let (mut publisher, readers) = channel(2, Table::new(0));
            let readers: Vec<_> =
                readers.into_iter().map(|reader| thread::spawn(move || read(reader, 1))).collect();
            publisher.publish(Table::new(1));
            for reader in readers {
                assert_eq!(reader.join().unwrap().get().number(), 1);
            }
        });
    }
}

/// Says who freed it.
struct Table {
    number: u64,
    copies: [u64; 64],
    writer: ThreadId,
    freed_elsewhere: Arc<AtomicU64>,
}

impl Drop for Table {
    fn drop(&mut self) {
        if thread::current().id() != self.writer {
            self.freed_elsewhere.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn real_threads_read_while_a_hundred_thousand_snapshots_go_by() {
    const LAST: u64 = 100_000;
    const READERS: usize = 3;
    let freed_elsewhere = Arc::new(AtomicU64::new(0));
    let writer = thread::current().id();
    let table = |number| {
        let freed_elsewhere = Arc::clone(&freed_elsewhere);
        Arc::new(Table { number, copies: [number; 64], writer, freed_elsewhere })
    };
    let (mut publisher, readers) = vipa::forward::publish::channel(READERS, table(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = readers
        .into_iter()
        .map(|mut reader| {
            let is_over = Arc::clone(&is_over);
            thread::spawn(move || {
                let mut last = 0;
                loop {
                    let was_last = is_over.load(Ordering::Acquire);
                    let table = reader.get();
                    assert!(table.copies.iter().all(|copy| *copy == table.number));
                    assert!(table.number >= last);
                    last = table.number;
                    if was_last {
                        assert_eq!(last, LAST);
                        break;
                    }
                }
                reader
            })
        })
        .collect();
    for number in 1..=LAST {
        publisher.publish(table(number));
        assert!(publisher.held() <= 1 + 2 * READERS, "{}", publisher.held());
    }
    is_over.store(true, Ordering::Release);
    // Their ends come back: the last snapshot is freed here too.
    let readers: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    drop(readers);
    drop(publisher);
    assert_eq!(freed_elsewhere.load(Ordering::Relaxed), 0);
}
