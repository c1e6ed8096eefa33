//! Flows of every kind, the same in every run: what the host sends, what comes back, and errors about both.

use crate::bytes::Random;
use crate::packet::{Layer4, Shape, Split};
use crate::talk::{self, Talk};

/// One conversation between the default VIPA and a remote under a rule.
pub(crate) struct Flow {
    pub(crate) number: u16,
    pub(crate) is_v6: bool,
    /// Of the socket and of the remote.
    pub(crate) ports: (u16, u16),
    pub(crate) name: &'static str,
    pub(crate) steps: Vec<Step>,
}

/// What happens next in a flow.
pub(crate) enum Step {
    /// The host sends.
    Out(Shape),
    /// The remote answers.
    Back(Shape),
    /// An error about the last packet that left.
    ErrorBack(Complaint),
    /// The host sends an error about the last answer that arrived.
    ErrorOut(Complaint),
}

/// An ICMP error.
pub(crate) struct Complaint {
    /// Without the quote.
    pub(crate) shape: Shape,
    /// From a router on the way, or from the far end?
    pub(crate) is_by_router: bool,
    /// Bytes of layer 4 that it quotes, if they are there.
    pub(crate) quoted: usize,
    /// Does an extension structure follow the quote (RFC 4884)?
    pub(crate) is_extended: bool,
}

impl Complaint {
    /// RFC 792's redirect, which is about a way and not about a flow.
    pub(crate) fn is_redirect(&self) -> bool {
        matches!(self.shape.layer4, Layer4::Icmp { kind: 5, .. })
    }
}

impl Flow {
    pub(crate) fn new(number: u16, random: &mut Random) -> Flow {
        let is_v6 = random.is(50);
        // A UDP source port outside the ephemeral range would mark an answer; SCTP and DCCP have ports below 10,000
        // within UDP (RFC 6951, RFC 6773), where tshark would look for them.
        let ports = (random.of(32_768..61_000) as u16, random.of(10_000..32_000) as u16);
        let (name, talk) = talk::any(is_v6, random);
        let steps = steps(talk, is_v6, random);
        Flow { number, is_v6, ports, name, steps }
    }
}

fn steps(talk: Talk, is_v6: bool, random: &mut Random) -> Vec<Step> {
    let mut steps = Vec::new();
    for (at, (is_out, layer4, payload)) in talk.into_iter().enumerate() {
        let may_split = at > 0 || !matches!(layer4, Layer4::Tcp { .. } | Layer4::Sctp { .. });
        let mut shape = shape(layer4, payload, is_v6, may_split, random);
        // What leaves has a port in its sum that is not known yet.
        shape.is_zero &= !is_out;
        steps.push(if is_out { Step::Out(shape) } else { Step::Back(shape) });
        if random.is(45) {
            let complaint = complaint(is_out, is_v6, random);
            steps.push(if is_out { Step::ErrorBack(complaint) } else { Step::ErrorOut(complaint) });
        }
    }
    steps
}

fn shape(
    layer4: Layer4,
    mut payload: Vec<u8>,
    is_v6: bool,
    may_split: bool,
    random: &mut Random,
) -> Shape {
    // What has a structure of its own, or a length that its header names, is not stretched.
    let may_grow = !matches!(layer4, Layer4::Sctp { .. } | Layer4::UdpLite { coverage: 1.. });
    let split = (may_split && random.is(20)).then(|| {
        if may_grow {
            let more = random.of(200..6000);
            payload.extend(random.bytes(more));
        }
        let order = match random.of(0..3) {
            0 => vec![0],
            1 => (0..=255).rev().collect(),
            _ => random.bytes(64),
        };
        Split { size: random.of(16..170) * 8, order }
    });
    let has_sum = match layer4 {
        Layer4::Tcp { .. } | Layer4::Echo { .. } => true,
        Layer4::Udp { has_checksum } => has_checksum,
        _ => false,
    };
    let is_wrong = has_sum && random.is(3);
    let is_zero = has_sum && !is_wrong && payload.len() >= 2 && random.is(5);
    let is_offloadable = has_sum && !is_wrong && split.is_none();
    let is_partial =
        is_offloadable && !is_zero && !matches!(layer4, Layer4::Echo { .. }) && random.is(30);
    Shape {
        layer4,
        payload,
        ttl: random.of(2..254) as u8,
        tos: random.word() as u8,
        id: random.word(),
        may_fragment: split.is_some() || random.is(50),
        options: if is_v6 { vec![] } else { options(random) },
        extensions: if is_v6 { extensions(random) } else { vec![] },
        is_wrong,
        is_zero,
        is_partial,
        split,
    }
}

/// IPv4 options that a router leaves alone; the router that judges would enter itself where there is room.
fn options(random: &mut Random) -> Vec<u8> {
    match random.of(0..12) {
        // Router alert (RFC 2113).
        0 => vec![0x94, 4, 0, 0],
        1 => vec![1, 1, 1, 0],
        // A record of the route that is full.
        2 => vec![7, 7, 8, 192, 0, 2, 1, 0],
        // RFC 4727's experiment, as long as options may be.
        3 => [vec![0x9e, 40], random.bytes(38)].concat(),
        _ => vec![],
    }
}

fn extensions(random: &mut Random) -> Vec<(u8, Vec<u8>)> {
    let mut extensions = Vec::new();
    if random.is(85) {
        return extensions;
    }
    // PadN, or RFC 4727's experiment that is skipped where it is unknown.
    let padding = vec![0, 1, 4, 0, 0, 0, 0];
    let experiment = [vec![1, 0x1e, 12], random.bytes(12)].concat();
    if random.is(50) {
        extensions.push((0, random.pick(&[&padding, &experiment]).clone()));
    }
    if random.is(30) {
        extensions.push((43, vec![0, 253, 0, 0, 0, 0, 0]));
    }
    if random.is(30) {
        extensions.push((51, [vec![4, 0, 0], random.bytes(20)].concat()));
    }
    if random.is(50) {
        extensions.push((60, random.pick(&[&padding, &experiment]).clone()));
    }
    extensions
}

fn complaint(is_back: bool, is_v6: bool, random: &mut Random) -> Complaint {
    let [a, b] = (random.of(68..1500) as u16).to_be_bytes();
    let code = random.of(0..16) as u8;
    let (kind, code, rest) = match (is_v6, random.of(0..10)) {
        (false, 0) => (3, 4, [0, 0, a, b]),
        (false, 1..4) => (11, code % 2, [0; 4]),
        (false, 4) => (12, 0, [b % 20, 0, 0, 0]),
        (false, 5) => (4, 0, [0; 4]),
        // A host sends none: RFC 1122 section 3.2.2.2.
        (false, 6) if is_back && random.is(50) => (5, code % 4, [10, 1, 1, 77]),
        (false, _) => (3, code, [0; 4]),
        (true, 0..2) => (2, 0, [0, 0, a | 4, b]),
        (true, 2..4) => (3, code % 2, [0; 4]),
        (true, 4) => (4, code % 3, [0, 0, 0, b % 40]),
        // RFC 4443 section 2.1: an error, if an experiment.
        (true, 5) => (100, 0, [0; 4]),
        (true, _) => (1, code % 7, [0; 4]),
    };
    let is_extendable = if is_v6 { matches!(kind, 1 | 3) } else { matches!(kind, 3 | 11 | 12) };
    let is_extended = is_extendable && random.is(10);
    let quoted = match random.of(0..10) {
        _ if is_extended => 2000,
        0..5 => 8,
        5..8 => random.of(8..64),
        _ => 2000,
    };
    let mut shape = shape(Layer4::Icmp { kind, code, rest }, vec![], is_v6, false, random);
    if quoted > 64 && random.is(30) {
        shape.may_fragment = true;
        // All headers that it quotes are in the first one, on any link there is: the rest is not put together.
        shape.split = Some(Split { size: 256, order: random.pick(&[[0, 1], [1, 0]]).to_vec() });
    }
    Complaint { shape, is_by_router: random.is(60), quoted, is_extended }
}
