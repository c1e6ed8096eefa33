//! `process_batch` on whatever comes: a host with workers, rules, virtual services and dying NICs sends, hears replies to what it sent
//! and errors about it, waits and tells the time. What holds of every packet is in [`examine`]; what left is sent by
//! a device that refuses all offload.

use std::collections::BTreeSet;
use std::net::IpAddr;

use vipa::device::fallback::Outlet;
use vipa::device::fault::Refusing;
use vipa::device::memory::Memory;
use vipa::forward::flow::Millis;
use vipa::forward::frame::{Frame, Ingress};
use vipa::forward::pipeline::{Sight, State, process_batch};
use vipa::forward::preferred::{Fate, Mode, PreferredTable, ServerId};
use vipa::forward::rewrite::Endpoint;
use vipa::forward::service;
use vipa::forward::verdict::{Verdict, Wait};
use vipa::forward::view::{NetView, NicId, WorkerId};
use vipa::wire::ethernet::MacAddr;
use vipa::wire::ip;
use vipa::wire::offload::{Csum, Offload};
use vipa::wire::packet::{Fragment, Headers, Layer4};

use super::input::Input;
use super::packets::ADDRESSES;
use super::{network, offload, packets, sums};

/// Steps of one run: enough to fill the smaller tables.
const STEPS: usize = 64;
const EINVAL: i32 = 22;

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let states = network::states(&mut input);
    let (view, preferred) = network::view(&mut input);
    let mut host = Host::new(states, view, preferred);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        host.step(&mut input);
    }
}

struct Host {
    states: Vec<State>,
    view: NetView,
    preferred: PreferredTable,
    /// Who has sent anything: what comes back is for one of them.
    met: BTreeSet<IpAddr>,
    now: Millis,
    /// Whose queue the next packet comes by.
    worker: usize,
    /// The last frame that left, and the one that was delivered.
    sent: Vec<u8>,
    delivered: Vec<u8>,
    /// For the parts of what is split.
    scratch: Frame,
}

/// What a frame was before it was processed.
struct Before {
    bytes: Vec<u8>,
    offload: Offload,
    ingress: Ingress,
    headers: Option<Headers>,
}

impl Host {
    fn new(states: Vec<State>, view: NetView, preferred: PreferredTable) -> Host {
        Host {
            states,
            view,
            preferred,
            met: BTreeSet::new(),
            now: Millis(1_000),
            worker: 0,
            sent: Vec::new(),
            delivered: Vec::new(),
            scratch: Frame::holding(&[0; 1 << 13], Offload::default(), Ingress::Tun),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        self.worker = usize::from(choice >> 6) % self.states.len();
        let nic = Ingress::Nic(NicId((choice >> 4) & 3).min(NicId(2)));
        match choice & 15 {
            0..=5 => self.take(input, Ingress::Tun),
            6 | 7 => self.take(input, nic),
            8 | 9 => {
                if let Some(reply) = packets::reply(&self.sent) {
                    self.run(&reply, Offload::default(), nic);
                }
            }
            10 => {
                let (from, quoted) = (input.pick(&ADDRESSES), usize::from(input.byte()));
                if let Some(error) = packets::error(&self.sent, from, quoted) {
                    self.run(&error, Offload::default(), nic);
                }
            }
            11 => {
                let (from, quoted) = (input.pick(&ADDRESSES), usize::from(input.byte()));
                if let Some(error) = packets::error(&self.delivered, from, quoted) {
                    self.run(&error, Offload::default(), Ingress::Tun);
                }
            }
            12 => self.answered(nic),
            13 => self.now.0 += u64::from(input.word()) << (choice >> 4),
            14 => self.sweep(input.byte()),
            _ => self.publish(input),
        }
    }

    fn take(&mut self, input: &mut Input<'_>, ingress: Ingress) {
        let mut packet = packets::packet(input);
        let offload = offload::offload(input, &mut packet);
        self.run(&packet, offload, ingress);
    }

    fn sweep(&mut self, count: u8) {
        for state in &mut self.states {
            let mut released = Vec::new();
            state.flows.sweep(u32::from(count), self.now, |flow| released.push(flow));
            assert!(released.len() <= usize::from(count));
        }
    }

    fn publish(&mut self, input: &mut Input<'_>) {
        self.view.generation += 1;
        let around = input.byte();
        self.view.nics = network::nics(around);
        network::choose(&mut self.preferred, around);
        self.bury();
    }

    /// Connections of dead servers are reset at both ends, and forgotten.
    fn bury(&mut self) {
        for state in &mut self.states {
            let sight = Sight { net: &self.view, preferred: &self.preferred, now: self.now };
            let mut next = Some(0);
            while let Some(from) = next {
                let mut frames: Vec<Frame> = (0..4).map(|_| Frame::new()).collect();
                let (filled, go_on) = service::bury(&mut frames, from, state, sight);
                frames[..filled].iter().for_each(|frame| {
                    let is_sent =
                        matches!(frame.verdict, Verdict::Transmit { .. } | Verdict::Deliver);
                    assert!(is_sent, "{:?}", frame.verdict);
                    reset(frame);
                });
                assert!(go_on.is_none_or(|go_on| go_on > from));
                next = go_on;
            }
            let has_dead = state.flows.served_flows().into_iter().any(|id| {
                let server = state.flows.served_by(id).map(|(_, server)| server);
                let server = server.and_then(|id| self.preferred.server(id));
                server.is_some_and(|server| server.fate != Fate::Kept)
            });
            assert!(!has_dead, "a dead server has a connection");
        }
    }

    /// The other end answers what was sent last: where that was rewritten, the answer goes to the socket.
    fn answered(&mut self, nic: Ingress) {
        let Ok(sent) = Headers::parse(&self.sent) else { return };
        let Some(reply) = packets::reply(&self.sent) else { return };
        let has_port = matches!(sent.layer4, Layer4::Tcp { .. } | Layer4::Udp { .. });
        let may_answer = !self.is_own(sent.destination) && sent.fragment == Fragment::Whole;
        let socket = self.socket_of(&sent).filter(|_| has_port && may_answer);
        let frame = self.run(&reply, Offload::default(), nic);
        if let Some(socket) = socket {
            assert_eq!(frame.verdict, Verdict::Deliver);
            let headers = Headers::parse(frame.packet()).expect("what is delivered parses");
            assert_eq!((headers.destination, headers.ports().1), (socket.address, socket.port));
        }
    }

    /// The kernel sends nothing to itself by the adapter; what comes back from there is dropped.
    fn is_own(&self, address: IpAddr) -> bool {
        let is_vipa = self.view.source.vipas.contains(&address);
        is_vipa || self.view.has_nic_address(address) || address.is_unspecified()
    }

    /// Whose is what left with this source, if it was rewritten?
    fn socket_of(&self, sent: &Headers) -> Option<Endpoint> {
        let (source, destination) = sent.ports();
        let wire = Endpoint { address: sent.source, port: source };
        let remote = Endpoint { address: sent.destination, port: destination };
        let mut flows = self.states.iter().flat_map(|state| state.flows.held_flows());
        let is_it = |original: &vipa::forward::flow::Key| {
            original.destination() == remote && original.protocol() == sent.protocol
        };
        flows.find(|f| f.wire == wire && is_it(&f.original)).map(|f| f.original.source())
    }

    /// Runs a packet as the engine does, over the workers that it is handed to, until it is done with.
    fn run(&mut self, packet: &[u8], offload: Offload, ingress: Ingress) -> Frame {
        let mut worker = self.worker;
        let mut hops = 0;
        let mut was_held = false;
        loop {
            let frame = self.process(worker, packet, offload, ingress);
            match frame.verdict {
                Verdict::Punt(WorkerId(to)) => {
                    assert!(usize::from(to) < self.states.len() && usize::from(to) != worker);
                    hops += 1;
                    assert!(hops == 1, "a frame that was handed over is handed on");
                    worker = usize::from(to);
                }
                Verdict::Wait(Wait::Hold(id)) => {
                    assert!(!was_held, "the hold knows it already");
                    was_held = true;
                    self.states[worker].flows.set_held(id);
                }
                _ => return frame,
            }
        }
    }

    fn process(
        &mut self,
        worker: usize,
        packet: &[u8],
        offload: Offload,
        ingress: Ingress,
    ) -> Frame {
        let before = Before {
            bytes: packet.to_vec(),
            offload,
            ingress,
            headers: Headers::parse(packet).ok(),
        };
        let mut frames = [Frame::holding(packet, offload, ingress)];
        let sight = Sight { net: &self.view, preferred: &self.preferred, now: self.now };
        process_batch(&mut frames, &mut self.states[worker], sight);
        service::settle(&mut self.states[worker], &self.preferred);
        let [mut frame] = frames;
        self.tell(worker);
        self.met.extend(before.headers.map(|headers| headers.source));
        examine(&before, &frame, &self.view, (&self.preferred, &self.met));
        match frame.verdict {
            Verdict::Transmit { .. } => {
                self.sent = frame.packet().to_vec();
                self.send(&before, &mut frame);
            }
            Verdict::Deliver => self.delivered = frame.packet().to_vec(),
            _ => {}
        }
        frame
    }
    /// First fragments are told to the worker at which the later ones meet, as the engine does.
    fn tell(&mut self, worker: usize) {
        let learned = std::mem::take(&mut self.states[worker].learned);
        for (key, fate) in learned {
            let home = usize::from(key.home(self.states.len() as u8).0);
            assert_ne!(home, worker);
            self.states[home].fragments.remember(key, fate, self.now);
        }
        let state = &mut self.states[worker];
        state.released.clear();
        assert!(state.flows.len() <= state.flows.capacity());
        assert!(state.flows.rewritten() + state.flows.served() <= state.flows.len());
        assert!(state.flows.half_open() <= state.flows.served());
        let _ = state.fragments.take_news();
    }

    /// Sends a frame by a device that takes no offload, and looks at what came out.
    fn send(&mut self, before: &Before, frame: &mut Frame) {
        let (memory, log) = Memory::new();
        let mut outlet = Outlet::new(Box::new(Refusing::new(memory, EINVAL)));
        outlet.send(frame, MacAddr([6; 6]), &mut self.scratch).expect("sent");
        let headers = Headers::parse(frame.packet()).expect("what leaves parses");
        let header_len = headers.headers_len(frame.packet());
        let mut payload = Vec::new();
        for part in log.sent() {
            let parsed = Headers::parse(&part).expect("a part that parses");
            assert_eq!((parsed.source, parsed.destination), (headers.source, headers.destination));
            assert_eq!(parsed.ports(), headers.ports());
            if before.is_right() && parsed.fragment == Fragment::Whole {
                let is_right = sums::is_layer4_right(&part, &parsed, Csum::Complete);
                assert_ne!(is_right, Some(false));
            }
            payload.extend_from_slice(&part[header_len..]);
        }
        assert_eq!(payload, &frame.packet()[header_len..]);
    }
}

impl Before {
    /// Was its layer 4 checksum as it should be (or does it show none)?
    fn is_right(&self) -> bool {
        self.headers.is_none_or(|headers| {
            sums::is_layer4_right(&self.bytes, &headers, self.offload.csum) == Some(true)
        })
    }
}

/// What holds of every packet that was processed.
fn examine(
    before: &Before,
    frame: &Frame,
    view: &NetView,
    (preferred, met): (&PreferredTable, &BTreeSet<IpAddr>),
) {
    let packet = frame.packet();
    let Some(was) = before.headers else {
        assert!(matches!(frame.verdict, Verdict::Drop(_)), "no packet, but {:?}", frame.verdict);
        return;
    };
    if frame.verdict == Verdict::Answer || is_told(before, frame, &was) {
        return answer(before, frame, &was, view);
    }
    assert_eq!(frame.offload, before.offload);
    assert_eq!(packet.len(), was.length, "only an answer has another length");
    match frame.verdict {
        Verdict::Kernel | Verdict::Wait(_) | Verdict::Punt(_) => {
            assert_eq!(packet, &before.bytes[..was.length], "{:?}", frame.verdict);
        }
        Verdict::Transmit { nic, .. } => {
            let is = edited(before, frame, &was);
            if !preferred.is_empty() {
                return served(before, &was, &is, view, (preferred, met));
            }
            assert_eq!(before.ingress, Ingress::Tun);
            assert_eq!(is.destination, was.destination);
            let is_error = was.quoted(&before.bytes).is_some();
            assert!(is_error || is.ports().1 == was.ports().1);
            let nic = &view.nics[nic.index()];
            let longest = match frame.offload.gso {
                Some(gso) => is.headers_len(packet) + usize::from(gso.size),
                None => packet.len(),
            };
            // Later fragments and errors follow without being measured: the kernel sizes them.
            let is_measured = was.fragment != Fragment::Later && !is_error;
            assert!(!is_measured || packet.len().min(longest) <= nic.mtu as usize);
            if is.source != was.source {
                let is_vipa = view.source.vipas.contains(&is.source);
                let was_vipa =
                    ADDRESSES.iter().any(|a| [IpAddr::from(a.0), a.1.into()].contains(&is.source));
                assert!(is_vipa || was_vipa || view.has_nic_address(is.source));
            }
        }
        Verdict::Deliver => {
            let is = edited(before, frame, &was);
            if !preferred.is_empty() {
                return served(before, &was, &is, view, (preferred, met));
            }
            assert_ne!(before.ingress, Ingress::Tun);
            assert_eq!(is.source, was.source);
            let is_error = was.quoted(&before.bytes).is_some();
            assert!(is_error || is.ports().0 == was.ports().0);
        }
        Verdict::Drop(_) | Verdict::Answer => {}
    }
}

/// A frame with edits is the packet that it was, and as right.
fn edited(before: &Before, frame: &Frame, was: &Headers) -> Headers {
    let packet = frame.packet();
    let is = Headers::parse(packet).expect("an edited packet parses");
    assert_eq!((is.protocol, is.fragment), (was.protocol, was.fragment));
    assert_eq!((is.length, is.layer4_start), (was.length, was.layer4_start));
    assert_eq!((is.family(), is.fragment_id), (was.family(), was.fragment_id));
    assert_eq!(sums::is_ip_right(packet, &is), sums::is_ip_right(&before.bytes, was));
    let csum = before.offload.csum;
    if sums::is_layer4_right(&before.bytes, was, csum) == Some(true) {
        assert_eq!(sums::is_layer4_right(packet, &is, csum), Some(true));
    }
    is
}

/// What goes on where there are services has ends that it had, or that somebody here gave it.
fn served(
    before: &Before,
    was: &Headers,
    is: &Headers,
    view: &NetView,
    (preferred, met): (&PreferredTable, &BTreeSet<IpAddr>),
) {
    let is_known = |address: IpAddr| {
        let is_server = (0..16).any(|id| {
            preferred.server(ServerId(id)).is_some_and(|server| server.address == address)
        });
        let is_ours = view.source.vipas.contains(&address) || view.has_nic_address(address);
        // One source is a VIPA that the view need not have.
        let is_nats = preferred.has_address(address) || preferred.is_source(address, 61000, &[]);
        is_server || is_ours || is_nats || met.contains(&address)
    };
    assert!(is.source == was.source || is_known(is.source), "{was:?} became {is:?}");
    assert!(is.destination == was.destination || is_known(is.destination), "{was:?} became {is:?}");
    if before.ingress != Ingress::Tun && is.source == was.source {
        // Routed without a new source: to whom this host knows for a server, by an address of its own, or as an error.
        let keeps = preferred.services().any(|(_, service)| match &service.mode {
            Mode::Nat { sources } => sources.is_empty(),
            Mode::Direct => true,
        });
        let is_for_us = view.source.vipas.contains(&was.destination)
            || view.has_nic_address(was.destination)
            || ADDRESSES[..2]
                .iter()
                .any(|a| [IpAddr::from(a.0), a.1.into()].contains(&was.destination));
        assert!(keeps || is_for_us, "{} to {}", was.source, was.destination);
    }
}

/// Is it no packet that goes on, but an answer to who sent one by a NIC?
fn is_told(before: &Before, frame: &Frame, was: &Headers) -> bool {
    let Ok(is) = Headers::parse(frame.packet()) else { return false };
    let is_reset =
        |headers: &Headers| matches!(headers.layer4, Layer4::Tcp { flags, .. } if flags.is_rst());
    let is_new = is.is_icmp_error() && !was.is_icmp_error() || is_reset(&is) && !is_reset(was);
    before.ingress != Ingress::Tun && matches!(frame.verdict, Verdict::Transmit { .. }) && is_new
}

/// A reset is TCP, and right.
fn reset(frame: &Frame) -> Headers {
    let packet = frame.packet();
    let is = Headers::parse(packet).expect("a reset parses");
    assert!(matches!(is.layer4, Layer4::Tcp { flags, .. } if flags.is_rst()));
    assert!(sums::is_ip_right(packet, &is));
    assert_eq!(sums::is_layer4_right(packet, &is, Csum::Complete), Some(true));
    assert_eq!((is.length, frame.offload), (packet.len(), Offload::default()));
    is
}

/// An answer is an error about the packet, to its source, or a reset.
fn answer(before: &Before, frame: &Frame, was: &Headers, view: &NetView) {
    let error = frame.packet();
    let is = Headers::parse(error).expect("an answer parses");
    if was.protocol == ip::TCP && is.protocol == ip::TCP {
        let is = reset(frame);
        assert_eq!((is.source, is.destination), (was.destination, was.source));
        assert_eq!(is.ports(), (was.ports().1, was.ports().0));
        return;
    }
    assert_eq!((is.destination, is.length), (was.source, error.len()));
    assert!(is.is_icmp_error() && error.len() <= 1280);
    assert!(is.source == was.destination || view.source.vipas.contains(&is.source));
    assert!(sums::is_ip_right(error, &is));
    assert_eq!(sums::is_layer4_right(error, &is, Csum::Complete), Some(true));
    assert_eq!(frame.offload, Offload::default());
    let quote = &error[is.quote_start()..];
    assert_eq!(quote, &before.bytes[..quote.len()]);
}
