//! Two workers, each with flows of its own on a processor of its own, beside one; and what this machine has to give: two copies of an
//! empty loop beside one, and of one that adds. The latter is the limit where two processors are the two threads of one core.

#![allow(unsafe_code)] // threads are pinned to processors

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use vipa::wire::ip::Family;

use crate::common::median;
use crate::host::{BATCH, Host, Kind, Setup};

/// Flows of each: such as lie in a processor's own caches, and such as lie in the one that it shares.
const FLOWS: [u32; 2] = [1_000, 100_000];

/// The rate of two in multiples of that of one.
pub(crate) fn scaling(rounds: usize, packets: u32) -> Value {
    let batches = packets / BATCH as u32;
    let pipeline = |flows| {
        move || {
            let mut host = Host::full(Setup::of(Kind::Service, Family::V4, flows));
            move || {
                for _ in 0..batches {
                    host.fill_established(flows);
                    host.run(BATCH);
                }
            }
        }
    };
    let empty = || {
        move || {
            for at in 0..u64::from(packets) * 200 {
                black_box(at);
            }
        }
    };
    let adding = || {
        move || {
            // Eight chains that do not wait for each other fill the units of a core.
            let mut sums = black_box([1_u64, 2, 3, 4, 5, 6, 7, 8]);
            for at in 0..u64::from(packets) * 50 {
                for (sum, k) in sums.iter_mut().zip(at..) {
                    *sum = sum.wrapping_add(*sum ^ k);
                }
            }
            black_box(sums);
        }
    };
    let workers = FLOWS.map(|flows| ratio(rounds, pipeline(flows)));
    let [empty, adding] = [ratio(rounds, empty), ratio(rounds, adding)];
    for (flows, workers) in FLOWS.iter().zip(workers) {
        println!("two workers, {flows} flows each: {workers:.2} times one");
    }
    println!("two empty loops: {empty:.2}, two that add: {adding:.2}");
    json!({ "flows": FLOWS, "two_workers": workers, "two_empty_loops": empty, "two_that_add": adding })
}

/// Work of two at a time in multiples of that of one, per second; medians of rounds that take turns.
fn ratio<W: FnMut()>(rounds: usize, make: impl Fn() -> W + Sync) -> f64 {
    let once = |copies: usize| {
        let start = Arc::new(Barrier::new(copies + 1));
        thread::scope(|scope| {
            let threads: Vec<_> = (0..copies)
                .map(|at| {
                    let (start, make) = (Arc::clone(&start), &make);
                    scope.spawn(move || {
                        pin(at);
                        let mut work = make();
                        work();
                        start.wait();
                        let began = Instant::now();
                        work();
                        began.elapsed().as_secs_f64()
                    })
                })
                .collect();
            start.wait();
            let times = threads.into_iter().map(|thread| thread.join().expect("no panic"));
            copies as f64 / times.fold(0.0, f64::max)
        })
    };
    median(
        (0..rounds)
            .map(|_| {
                let one = once(1);
                once(2) / one
            })
            .collect(),
    )
}

/// To processor number `at` of those that we may use, counted from 0.
fn pin(at: usize) {
    const SIZE: usize = size_of::<libc::cpu_set_t>();
    // SAFETY: a set is plain bits, of which none is a set too; both calls get one of the size that they are told.
    let is_pinned = unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, SIZE, &raw mut allowed) == 0
            && (0..8 * SIZE).filter(|cpu| libc::CPU_ISSET(*cpu, &allowed)).nth(at).is_some_and(
                |cpu| {
                    libc::CPU_SET(cpu, &mut one);
                    libc::sched_setaffinity(0, SIZE, &raw const one) == 0
                },
            )
    };
    assert!(is_pinned, "two processors are wanted");
}
