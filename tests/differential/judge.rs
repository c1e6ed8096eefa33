//! Plays flows to the kernel and to us, each with answers to its own output.

use vipa::wire::offload::Csum;

use crate::addresses::{Way, default_vipa, remote, router, second_vipa};
use crate::bytes::{get, put, sum};
use crate::compare;
use crate::generate::{Complaint, Flow, Step};
use crate::kernel::Kernel;
use crate::ours::{Ours, partial};
use crate::packet::{Ends, Layer4, Layout, Shape, part};

/// Flows played at the same time.
const BATCH: usize = 48;

/// What came of it all.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) disagreements: Vec<String>,
    /// Steps on which both agreed.
    pub(crate) agreed: usize,
    /// What left us.
    pub(crate) frames: Frames,
}

/// Frames that left us, by what a reader can say about their checksums.
#[derive(Default)]
pub(crate) struct Frames {
    /// All checksums cover what is there, and are right.
    pub(crate) right: Vec<Vec<u8>>,
    /// Errors that quote the beginning of a packet, or one with a wrong checksum: that one cannot be verified.
    pub(crate) cut: Vec<Vec<u8>>,
    /// Whole packets that came with a wrong checksum. (Fragments of such: only one of them would show it.)
    pub(crate) wrong: Vec<Vec<u8>>,
}

impl Frames {
    fn sort_in(&mut self, given: &Given, out: &[Vec<u8>]) {
        let frames = match (given.shape.is_wrong, given.is_verifiable) {
            (true, _) if given.frames.len() > 1 => return,
            (true, _) => &mut self.wrong,
            (false, true) => &mut self.right,
            (false, false) => &mut self.cut,
        };
        frames.extend(out.iter().cloned());
    }
}

/// One side's half of a flow.
#[derive(Clone, Default)]
pub(crate) struct Half {
    /// Source port on the wire, or identifier.
    pub(crate) port: Option<u16>,
    /// What left last, and what came in last, as seen on the wire: the frame that has layer 4's header.
    pub(crate) left: Option<Quoted>,
    pub(crate) came: Option<Quoted>,
    /// What of it the host sent, or got.
    pub(crate) sent: Option<Quoted>,
    pub(crate) arrived: Option<Quoted>,
}

/// A frame, and where layer 4 begins in it.
#[derive(Clone)]
pub(crate) struct Quoted {
    pub(crate) frame: Vec<u8>,
    pub(crate) layer4: usize,
    pub(crate) protocol: u8,
    /// Can its checksum be verified?
    pub(crate) is_verifiable: bool,
}

/// A flow being played: our half, and the kernel's.
struct Play<'a> {
    flow: &'a Flow,
    halves: [Half; 2],
    is_over: bool,
}

/// What one side is given in one step.
pub(crate) struct Given {
    pub(crate) shape: Shape,
    pub(crate) whole: Vec<u8>,
    pub(crate) layout: Layout,
    pub(crate) frames: Vec<Vec<u8>>,
    /// Bytes that it quotes of another packet.
    pub(crate) quoted: usize,
    /// Can all its checksums be verified?
    pub(crate) is_verifiable: bool,
}

pub(crate) fn play(flows: &[Flow], ours: &mut Ours, kernel: &mut Kernel) -> Outcome {
    let mut outcome = Outcome::default();
    for batch in flows.chunks(BATCH) {
        let mut plays: Vec<Play<'_>> = batch
            .iter()
            .map(|flow| Play { flow, halves: Default::default(), is_over: false })
            .collect();
        let longest = batch.iter().map(|flow| flow.steps.len()).max().unwrap_or(0);
        for at in 0..longest {
            for way in [Way::Out, Way::In] {
                turn(&mut plays, at, way, ours, kernel, &mut outcome);
            }
        }
    }
    outcome
}

/// Step `at` of those flows in which it goes this way.
fn turn(
    plays: &mut [Play<'_>],
    at: usize,
    way: Way,
    ours: &mut Ours,
    kernel: &mut Kernel,
    outcome: &mut Outcome,
) {
    let mut turns = Vec::new();
    for play in plays.iter_mut().filter(|play| !play.is_over) {
        let Some(step) = play.flow.steps.get(at).filter(|step| way_of(step) == way) else {
            continue;
        };
        let given = [0, 1].map(|side| give(play.flow, step, &play.halves[side]));
        turns.push((play, step, given));
    }
    let to_us: Vec<_> = turns.iter().flat_map(|(_, _, [given, _])| with_offload(given)).collect();
    let to_kernel: Vec<_> =
        turns.iter().flat_map(|(_, _, [_, given])| given.frames.clone()).collect();
    let (mut from_us, mut from_kernel) = (ours.pass(way, &to_us), kernel.pass(way, &to_kernel));
    for (play, step, given) in turns {
        let number = &play.flow.number;
        let out =
            [&mut from_us, &mut from_kernel].map(|from| from.remove(number).unwrap_or_default());
        outcome.frames.sort_in(&given[0], &out[0]);
        match compare::verdict(step, &play.halves, &given, &out) {
            Ok(wholes) => {
                outcome.agreed += 1;
                for (side, whole) in wholes.into_iter().flatten().enumerate() {
                    remember(&mut play.halves[side], step, &given[side], whole);
                }
            }
            Err(what) => {
                // What follows would only disagree about the same.
                play.is_over = true;
                let Flow { name, is_v6, .. } = play.flow;
                let step = describe(step);
                outcome.disagreements.push(format!(
                    "flow {number}, {name}, IPv{}, step {at}, {step}: {what}\n  ours   {:02x?}\n  kernel {:02x?}",
                    if *is_v6 { 6 } else { 4 }, out[0], out[1]
                ));
            }
        }
    }
}

fn way_of(step: &Step) -> Way {
    match step {
        Step::Out(_) | Step::ErrorOut(_) => Way::Out,
        Step::Back(_) | Step::ErrorBack(_) => Way::In,
    }
}

fn describe(step: &Step) -> String {
    let (what, shape) = match step {
        Step::Out(shape) => ("out".to_owned(), shape),
        Step::Back(shape) => ("back".to_owned(), shape),
        Step::ErrorBack(c) => (format!("error back, {} bytes", c.quoted), &c.shape),
        Step::ErrorOut(c) => (format!("error out, {} bytes", c.quoted), &c.shape),
    };
    format!(
        "{what} ({:?}, split {:?}, options {:?}, extensions {:?})",
        shape.layer4,
        shape.split.as_ref().map(|s| s.size),
        shape.options,
        shape.extensions
    )
}

/// The frames of a step for one side, whose half of the flow is `half`.
fn give(flow: &Flow, step: &Step, half: &Half) -> Given {
    let v6 = flow.is_v6;
    let (local, far) = flow.ports;
    let far = (remote(v6, flow.number), far);
    let complainer = |complaint: &Complaint| match complaint.is_by_router {
        true => (router(v6, flow.number), 0),
        false => far,
    };
    let socket = default_vipa(v6);
    let wire = second_vipa(v6);
    let (source, destination, complaint) = match step {
        Step::Out(_) => ((socket, local), far, None),
        Step::Back(_) => (far, (wire, half.port.unwrap_or(local)), None),
        Step::ErrorBack(complaint) => {
            (complainer(complaint), (wire, 0), Some((complaint, &half.left)))
        }
        Step::ErrorOut(complaint) => ((socket, 0), far, Some((complaint, &half.arrived))),
    };
    let (shape, quoted, is_verifiable) = match (step, complaint) {
        (_, Some((complaint, quoted))) => {
            let quoted = quoted.as_ref().expect("it came before");
            let (shape, length) = quoting(complaint, quoted);
            (shape, length, quoted.is_verifiable && length == quoted.frame.len())
        }
        (Step::Back(shape), None) if shape.is_zero => {
            let ends = Ends { source: far, destination: (socket, local) };
            (shape.zeroed(ends), 0, true)
        }
        (Step::Out(shape) | Step::Back(shape), None) => (shape.clone(), 0, true),
        _ => unreachable!("an error is a complaint"),
    };
    let ends = Ends { source, destination };
    let (whole, layout) = shape.build(ends);
    let frames = shape.frames(ends);
    Given { shape, whole, layout, frames, quoted, is_verifiable }
}

/// The error with its quote (RFC 792 and RFC 4443) and the extension structure of RFC 4884, and how long the quote is.
fn quoting(complaint: &Complaint, quoted: &Quoted) -> (Shape, usize) {
    /// RFC 4884 section 5.1: bytes of the quote if an extension follows.
    const BEFORE_EXTENSION: usize = 128;
    let is_v6 = quoted.frame[0] >> 4 == 6;
    let most = match (complaint.is_extended, is_v6) {
        (true, _) => BEFORE_EXTENSION,
        (false, true) => 1100,
        (false, false) => 508,
    };
    let length = (quoted.layer4 + complaint.quoted).min(quoted.frame.len()).min(most);
    let mut shape = complaint.shape.clone();
    shape.payload = quoted.frame[..length].to_vec();
    if let (Layer4::Icmp { rest, .. }, true) = (&mut shape.layer4, complaint.is_extended) {
        if is_v6 {
            rest[0] = 16;
        } else {
            rest[1] = 32;
        }
        shape.payload.resize(BEFORE_EXTENSION, 0);
        // One object: an MPLS label (RFC 4950).
        let mut extension = [0x20, 0, 0, 0, 0, 8, 1, 1, 0, 1, 0xf1, 0x40];
        let field = !sum(&[&extension]);
        put(&mut extension, 2, field);
        shape.payload.extend(extension);
    }
    (shape, length)
}

/// A whole packet may reach us with its checksum left to the device.
fn with_offload(given: &Given) -> Vec<(Vec<u8>, Csum)> {
    let mut frames: Vec<_> = given.frames.iter().map(|f| (f.clone(), Csum::Complete)).collect();
    if let ([(frame, csum)], true, Some((at, _))) =
        (&mut frames[..], given.shape.is_partial, given.layout.checksum)
    {
        *csum = partial(frame, given.layout.layer4, at, given.layout.protocol);
    }
    frames
}

/// What later steps of the flow build on. What was fragmented is quoted in the fragments that it came in: the judge
/// may have split it otherwise.
fn remember(half: &mut Half, step: &Step, given: &Given, whole: Vec<u8>) {
    let quoted = |frames: Vec<Vec<u8>>| {
        let first = frames.into_iter().find(|frame| part(frame).0.offset == 0);
        let frame = first.expect("a first one");
        // An IPv6 fragment header lies in front of layer 4 in the frame, and not in the whole.
        let added = part(&frame).1 - part(&given.whole).1;
        let Given { layout, shape, frames, .. } = given;
        Quoted {
            frame,
            layer4: layout.layer4 + added,
            protocol: layout.protocol,
            is_verifiable: !shape.is_wrong && frames.len() == 1,
        }
    };
    let port = given.layout.source_port.map(|at| get(&whole, at));
    let (before, after) = (quoted(given.frames.clone()), quoted(given.shape.split(whole)));
    match step {
        Step::Out(_) => {
            half.port = port;
            (half.sent, half.left) = (Some(before), Some(after));
        }
        Step::Back(_) => (half.came, half.arrived) = (Some(before), Some(after)),
        Step::ErrorBack(_) | Step::ErrorOut(_) => {}
    }
}
