//! The kernel as judge: generated flows go through Linux's own source NAT and through us, and what comes out agrees
//! to the bit but for the chosen source port or identifier and the checksums that follow from it. tshark then reads
//! all that left us.
//!
//! Needs root, the programs `ip`, `nft` and `tshark`, and a kernel with connection tracking.

mod addresses;
mod bytes;
mod capture;
mod census;
mod compare;
mod generate;
mod judge;
mod kernel;
mod ours;
mod packet;
mod socket;
mod talk;

use bytes::Random;
use capture::Tshark;
use generate::Flow;
use judge::Frames;
use kernel::Kernel;
use ours::Ours;

const FLOWS: u16 = 12_000;
const SEED: u64 = 3;

#[test]
fn what_comes_out_of_us_is_what_comes_out_of_the_kernels_own_nat() {
    socket::stay_on_this_processor();
    let tshark = Tshark::new();
    let mut random = Random(SEED);
    let flows: Vec<Flow> = (1..=FLOWS).map(|number| Flow::new(number, &mut random)).collect();
    let outcome = judge::play(&flows, &mut Ours::new(1 << 15), &mut Kernel::new());

    let first: Vec<&str> = outcome.disagreements.iter().take(3).map(String::as_str).collect();
    let count = outcome.disagreements.len();
    assert_eq!(count, 0, "disagreements with the kernel, of {FLOWS} flows:\n{}", first.join("\n"));
    let steps: usize = flows.iter().map(|flow| flow.steps.len()).sum();
    assert_eq!(outcome.agreed, steps, "every step was played");
    let census = census::of(&flows);
    assert!(
        census.len() == 35 && census.values().all(|n| *n >= 50),
        "all that is wanted: {census:?}"
    );

    let Frames { right, cut, wrong } = outcome.frames;
    println!(
        "{FLOWS} flows, {steps} steps: {census:#?}\nframes: {} with all checksums right, {} that quote a part, {} wrong",
        right.len(),
        cut.len(),
        wrong.len()
    );
    none_of(&right, &tshark.flawed(&right));
    none_of(&cut, &tshark.flawed_around_quotes(&cut));
    // What is wrong in stays wrong out; which also shows that tshark looks.
    assert!(wrong.len() > 500, "{} frames came with a wrong checksum", wrong.len());
    assert_eq!(tshark.flawed(&wrong), (1..=wrong.len()).collect::<Vec<_>>());
}

fn none_of(frames: &[Vec<u8>], flawed: &[usize]) {
    assert!(frames.len() > 5_000, "only {} frames", frames.len());
    let first: Vec<_> = flawed.iter().take(3).map(|n| format!("{:02x?}", frames[n - 1])).collect();
    assert!(flawed.is_empty(), "tshark finds fault with {} frames: {first:#?}", flawed.len());
}
