//! A capture through the real forwarder: packets of a file in, [`process_batch`], packets of a file out.
//!
//! Nothing is asked of a kernel, so it needs no privilege, and the same input yields the same output to the byte:
//! the clock is the capture's, the flow table's hash has a fixed seed, one worker does all. What the kernel, the
//! router and the devices do live is done here at once and by the book: a rewritten flow is held as soon as it
//! asks ([`Wait::Hold`]), a next hop is resolved as soon as it is asked for ([`Wait::Neighbour`]), a TCP super-packet
//! has segments that fit (a capture does not say how it is to be split).
//! What a NIC's packet socket would not hear is left to the kernel ([`filter::Ears`]).

mod checksum;
mod report;
mod view;

use std::io::{self, Read, Write};
use std::sync::atomic::AtomicU64;

use crate::balance::table;
use crate::capture::{self, Interface, Link, Packet, Reader, Writer};
use crate::config::Config;
use crate::device::filter;
use crate::engine::waiting::{PATIENCE, Waiter, Waiting};
use crate::engine::worker::{SWEEP_EVERY, SWEEPS_FOR_ALL};
use crate::forward::flow::{FlowTable, Millis};
use crate::forward::frame::{Frame, Ingress, MAX_PACKET};
use crate::forward::pipeline::{Sight, State, process_batch};
use crate::forward::preferred::PreferredTable;
use crate::forward::verdict::{DropReason, Verdict, Wait};
use crate::forward::view::{NetView, NicId, WorkerId};
use crate::wire::ethernet;
use crate::wire::ip::{self, Family};
use crate::wire::offload::{Csum, Gso, GsoKind, Offload};
use crate::wire::packet::Headers;

use report::Counts;
pub use report::Report;
pub use view::{Card, cards, view};

/// Frames of a batch.
const BATCH: usize = 64;
/// Of the flow table's hash: any will do, but always the same.
const SEED: u64 = 0x7669_7061;
/// Next hops that are remembered, as many as live.
const MOST_NEIGHBOURS: usize = 4096;
/// A frame waits at most for its next hop and for the hold.
const MOST_WAITS: usize = 2;
/// Packets between two reports of progress.
const PROGRESS: u64 = 1 << 16;

/// Why a replay ended before its capture did.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The output.
    #[error("cannot be written: {0}")]
    Output(#[from] io::Error),
    /// A packet of an interface without a name and nobody said which NIC that is.
    #[error(
        "the capture names no interface for its Ethernet packets: say by --in which [[nic]] they came in by"
    )]
    UnnamedNic,
}

/// How far a replay has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Packets read.
    pub packets: u64,
    /// Bytes of the capture that have been read.
    pub offset: u64,
}

/// Runs all of `input` and writes what comes out to `output`. Ethernet packets without the name of an interface
/// came in by `unnamed`. A capture that breaks off ends the run, and the report says where; all before it has run.
///
/// # Errors
/// See [`Error`].
pub fn run<R: Read, W: Write>(
    config: &Config,
    mut input: Reader<R>,
    output: W,
    unnamed: Option<NicId>,
    mut progress: impl FnMut(Progress),
) -> Result<Report, Error> {
    let mut replay = Replay::new(config, output, unnamed);
    let error = loop {
        match input.next_packet() {
            Ok(Some(packet)) => replay.take(&packet)?,
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
        if replay.counts.packets.is_multiple_of(PROGRESS) {
            progress(Progress { packets: replay.counts.packets, offset: input.offset() });
        }
    };
    replay.finish(error)
}

/// Where an interface's packets come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Device(Ingress),
    /// At none of our devices.
    Other,
}

/// A replay under way.
struct Replay<'a, W> {
    config: &'a Config,
    unnamed: Option<NicId>,
    cards: Vec<Card>,
    /// Addresses on which a NIC's packet sockets hear replies.
    ears: filter::Ears,
    view: NetView,
    preferred: PreferredTable,
    state: State,
    /// Of the section's interfaces, as far as packets of them came.
    origins: Vec<Option<Origin>>,
    section: u32,
    frames: Vec<Frame>,
    /// Time of each frame of the batch.
    times: [u64; BATCH],
    count: usize,
    now: Millis,
    swept: Millis,
    /// Later fragments whose first one has not come.
    waiting: Waiting,
    counts: Counts,
    writer: Writer<W>,
}

impl<'a, W: Write> Replay<'a, W> {
    fn new(config: &'a Config, output: W, unnamed: Option<NicId>) -> Replay<'a, W> {
        let view = view(config);
        let shape = config.shape(1);
        // The table wants memory that outlives it: live that is a mapping, here what the process ends with.
        let words: &'static [AtomicU64] =
            (0..shape.words()).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
        let state = State::new(FlowTable::adopt(words, shape, SEED).0, WorkerId(0), 1);
        let nics = config.nics.iter().map(|nic| (nic.name.as_str(), Link::Ethernet));
        let interfaces = [(config.adapter.name.as_str(), Link::Ip)].into_iter().chain(nics);
        Replay {
            config,
            unnamed,
            cards: cards(config),
            ears: filter::Ears::new(&view.claims),
            view,
            preferred: table::assumed(config),
            state,
            origins: Vec::new(),
            section: 0,
            frames: (0..BATCH).map(|_| Frame::new()).collect(),
            times: [0; BATCH],
            count: 0,
            now: Millis(0),
            swept: Millis(0),
            waiting: Waiting::default(),
            counts: Counts::new(config.nics.len()),
            writer: Writer::new(output, interfaces),
        }
    }

    /// A packet of the capture: it gets its fate at once, or a place in the batch.
    fn take(&mut self, packet: &Packet<'_>) -> Result<(), Error> {
        self.counts.packets += 1;
        self.tell_time(packet.time)?;
        let origin = self.origin(packet)?;
        if let Origin::Device(ingress) = origin {
            match ingress {
                Ingress::Tun => self.counts.from_adapter += 1,
                Ingress::Nic(nic) => self.counts.from_nic[nic.index()] += 1,
            }
        }
        match (origin, origin.admit(packet, self)) {
            (Origin::Device(ingress), Admission::Frame(bytes)) => {
                self.add(bytes, ingress, packet.time)?;
            }
            (_, Admission::Frame(_) | Admission::Other) => self.counts.other_interfaces += 1,
            (_, Admission::Snapped) => self.counts.snapped += 1,
            (_, Admission::Kernel) => self.counts.left_to_kernel += 1,
            (_, Admission::Drop(reason)) => self.counts.drop(reason),
        }
        Ok(())
    }

    /// The clock goes with the capture and never back. A batch is of one millisecond.
    #[inline]
    fn tell_time(&mut self, time: u64) -> Result<(), Error> {
        let now = Millis(time / 1_000_000);
        if now <= self.now {
            return Ok(());
        }
        self.run_batch()?;
        if self.now == Millis(0) {
            self.swept = now;
        }
        self.now = now;
        self.run_waiting(time)?;
        let turns = (now.0 - self.swept.0) / SWEEP_EVERY.0;
        if turns > 0 {
            self.swept = now;
            let part = self.state.flows.capacity().div_ceil(SWEEPS_FOR_ALL);
            let turns = turns.min(u64::from(SWEEPS_FOR_ALL)) as u32;
            self.state.flows.sweep(part * turns, now, |_| {});
        }
        Ok(())
    }

    /// Where the packet came in; found out once for each interface.
    #[inline]
    fn origin(&mut self, packet: &Packet<'_>) -> Result<Origin, Error> {
        if packet.section != self.section {
            self.section = packet.section;
            self.origins.clear();
        }
        let number = packet.number as usize;
        if let Some(Some(origin)) = self.origins.get(number) {
            return Ok(*origin);
        }
        let origin = self.find_origin(packet.interface)?;
        if self.origins.len() <= number {
            self.origins.resize(number + 1, None);
        }
        self.origins[number] = Some(origin);
        Ok(origin)
    }

    fn find_origin(&self, interface: &Interface) -> Result<Origin, Error> {
        let name = interface.name.as_deref().filter(|name| !name.is_empty());
        let nic = |name| (0..).map(NicId).zip(&self.config.nics).find(|(_, nic)| nic.name == name);
        Ok(match (name, interface.link) {
            (_, Link::Other(_)) => Origin::Other,
            (Some(name), _) if name == self.config.adapter.name => Origin::Device(Ingress::Tun),
            (Some(name), _) => {
                nic(name).map_or(Origin::Other, |(id, _)| Origin::Device(Ingress::Nic(id)))
            }
            (None, Link::Ip) => Origin::Device(Ingress::Tun),
            (None, Link::Ethernet) => {
                Origin::Device(Ingress::Nic(self.unnamed.ok_or(Error::UnnamedNic)?))
            }
        })
    }

    #[inline]
    fn add(&mut self, packet: &[u8], ingress: Ingress, time: u64) -> Result<(), Error> {
        let frame = &mut self.frames[self.count];
        // What lies behind the largest packet is padding.
        let length = packet.len().min(MAX_PACKET);
        frame.space(0)[..length].copy_from_slice(&packet[..length]);
        frame.received(length);
        frame.ingress = ingress;
        frame.offload = Offload::default();
        if let Ok(headers) = Headers::parse(frame.packet()) {
            let found = checksum::judge(frame.packet(), &headers);
            frame.offload.csum = found.csum;
            frame.offload.gso = super_packet(&headers);
            self.counts.wrong_checksums_in += u64::from(found.is_wrong);
        }
        self.times[self.count] = time;
        self.count += 1;
        if self.count == BATCH { self.run_batch() } else { Ok(()) }
    }

    fn run_batch(&mut self) -> Result<(), Error> {
        let mut frames = std::mem::take(&mut self.frames);
        let batch = &mut frames[..self.count];
        self.process(batch);
        for (frame, time) in batch.iter_mut().zip(self.times) {
            self.settle(frame, time)?;
        }
        let last = self.times[self.count.saturating_sub(1)];
        self.frames = frames;
        self.count = 0;
        if self.state.fragments.take_news() {
            self.run_waiting(last)?;
        }
        // No egress hold is here that would have to forget them.
        self.state.released.clear();
        Ok(())
    }

    fn process(&mut self, frames: &mut [Frame]) {
        let sight = Sight { net: &self.view, preferred: &self.preferred, now: self.now };
        process_batch(frames, &mut self.state, sight);
    }

    /// Does what the frame's verdict says.
    #[inline]
    fn settle(&mut self, frame: &mut Frame, time: u64) -> Result<(), Error> {
        for _ in 0..MOST_WAITS {
            let Verdict::Wait(cause) = frame.verdict else { break };
            self.grant(cause);
            self.process(std::slice::from_mut(frame));
        }
        match frame.verdict {
            Verdict::Transmit { nic, destination } => {
                self.complete_checksum(frame);
                let is_v6 = frame.packet().first().is_some_and(|first| first >> 4 == 6);
                let ether_type = if is_v6 { ethernet::IPV6 } else { ethernet::IPV4 };
                let source = self.view.nic(nic).mac;
                let bytes = frame.with_front(ethernet::HEADER_LEN);
                let header = ethernet::header(destination, source, ether_type);
                bytes[..ethernet::HEADER_LEN].copy_from_slice(&header);
                self.writer.write(1 + u32::from(nic.0), time, bytes)?;
                self.counts.to_nic[nic.index()] += 1;
            }
            Verdict::Deliver => {
                self.complete_checksum(frame);
                self.writer.write(0, time, frame.packet())?;
                self.counts.delivered += 1;
            }
            Verdict::Answer => {
                self.writer.write(0, time, frame.packet())?;
                self.counts.answered += 1;
            }
            Verdict::Kernel => self.counts.left_to_kernel += 1,
            Verdict::Drop(reason) => self.counts.drop(reason),
            Verdict::Wait(cause @ Wait::FirstFragment(_)) => {
                let frame = Frame::holding(frame.packet(), frame.offload, frame.ingress);
                if !self.waiting.push(Waiter { frame, cause, since: self.now }) {
                    self.counts.drop(DropReason::WaitQueueFull);
                }
            }
            Verdict::Wait(_) => self.counts.drop(DropReason::NeighbourUnresolved),
            // There is one worker only, whatever the configuration says.
            Verdict::Punt(_) => self.counts.drop(DropReason::PuntQueueFull),
        }
        Ok(())
    }

    /// Runs the later fragments that wait once more; whose time is over goes.
    fn run_waiting(&mut self, time: u64) -> Result<(), Error> {
        for waiter in self.waiting.take() {
            let Waiter { mut frame, cause, since } = waiter;
            if self.now.0.saturating_sub(since.0) > PATIENCE {
                self.counts.drop(DropReason::Fragment);
                continue;
            }
            self.process(std::slice::from_mut(&mut frame));
            if matches!(frame.verdict, Verdict::Wait(Wait::FirstFragment(_))) {
                // It was there already, so there is room.
                self.waiting.push(Waiter { frame, cause, since });
            } else {
                self.settle(&mut frame, time)?;
            }
        }
        Ok(())
    }

    /// What live the router would see to.
    fn grant(&mut self, cause: Wait) {
        match cause {
            // Rules that need the socket match nothing here: nobody is asked.
            Wait::FirstFragment(_) | Wait::Socket(_) => {}
            Wait::Hold(id) => self.state.flows.set_held(id),
            Wait::Neighbour { nic, address } => {
                let neighbours = &mut self.view.neighbours;
                if neighbours.len() >= MOST_NEIGHBOURS {
                    neighbours.clear();
                    self.view.generation += 1;
                }
                neighbours.insert((nic, address), self.cards[nic.index()].next_hop);
            }
        }
    }

    #[inline]
    fn complete_checksum(&mut self, frame: &mut Frame) {
        if frame.offload.csum != Csum::Complete {
            checksum::complete(frame.packet_mut());
            self.counts.completed_checksums += 1;
        }
    }

    fn finish(mut self, error: Option<capture::Error>) -> Result<Report, Error> {
        self.run_batch()?;
        for _ in self.waiting.take() {
            self.counts.drop(DropReason::Fragment);
        }
        self.writer.finish()?;
        let nics: Vec<String> = self.config.nics.iter().map(|nic| nic.name.clone()).collect();
        Ok(Report {
            flows: self.state.flows.created(),
            flows_rewritten: u64::from(self.state.flows.rewritten()),
            error: error.map(|error| error.to_string()),
            ..self.counts.report(&self.config.adapter.name, &nics)
        })
    }
}

/// TCP that is longer than Ethernet takes is a super-packet. A capture does not say how it is to be split: its
/// segments are taken to fit.
fn super_packet(headers: &Headers) -> Option<Gso> {
    /// RFC 9293 section 3.7.1: what every path takes.
    const SEGMENT: u16 = 536;
    let kind = if headers.source.is_ipv4() { GsoKind::Tcp4 } else { GsoKind::Tcp6 };
    let is_long = headers.length > 1500;
    (is_long && headers.protocol == ip::TCP).then_some(Gso::new(kind, SEGMENT))
}

/// What becomes of a packet before the pipeline sees it.
enum Admission<'p> {
    /// It is run.
    Frame(&'p [u8]),
    /// It came in at none of our devices.
    Other,
    /// It is not whole.
    Snapped,
    /// The kernel takes it.
    Kernel,
    /// Gone.
    Drop(DropReason),
}

impl Origin {
    #[inline]
    fn admit<'p, W>(self, packet: &Packet<'p>, replay: &Replay<'_, W>) -> Admission<'p> {
        let Origin::Device(ingress) = self else { return Admission::Other };
        if packet.is_snapped() {
            return Admission::Snapped;
        }
        let mut bytes = packet.bytes;
        let mut is_for_host = true;
        if packet.interface.link == Link::Ethernet {
            let Some((header, behind)) = bytes.split_first_chunk::<{ ethernet::HEADER_LEN }>()
            else {
                return Admission::Drop(DropReason::Malformed);
            };
            let ether_type = u16::from_be_bytes([header[12], header[13]]);
            if ether_type != ethernet::IPV4 && ether_type != ethernet::IPV6 {
                return Admission::Drop(DropReason::NotIp);
            }
            bytes = behind;
            is_for_host = header[0] & 1 == 0;
            if let Ingress::Nic(nic) = ingress
                && let Some(mac) = replay.cards[nic.index()].known_mac
            {
                is_for_host = header[..6] == mac.0;
            }
        }
        if ingress == Ingress::Tun {
            return Admission::Frame(bytes);
        }
        let family = match bytes.first().map(|first| first >> 4) {
            Some(4) => Family::V4,
            Some(6) => Family::V6,
            Some(_) => return Admission::Drop(DropReason::NotIp),
            None => return Admission::Drop(DropReason::Malformed),
        };
        if is_for_host && replay.ears.hear(family, bytes) {
            Admission::Frame(bytes)
        } else {
            Admission::Kernel
        }
    }
}
