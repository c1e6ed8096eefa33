//! Plays the script over running traffic, and watches.

use std::thread;
use std::time::{Duration, Instant};

use super::comeback::Comeback;
use super::display::{Display, Throughput};
use super::report::{Bulk, Happened, Report, judge};
use super::script::{Act, BUSIEST, SCRIPT};
use crate::lab::process::Forwarder;
use crate::lab::topology::{Network, nic_name};
use crate::lab::traffic::{Micros, Outcome, Traffic};
use crate::lab::{Counters, Error, FrameMeter};

const SECOND: Duration = Duration::from_secs(1);
/// How long the traffic runs freely to see what the machine can do: with offload, and without.
const CALIBRATION: [(bool, Duration); 2] =
    [(true, Duration::from_millis(500)), (false, Duration::from_millis(400))];
/// A new pace takes this long to settle before it is measured.
const SETTLING: Duration = Duration::from_millis(100);
/// How long it is looked for the busiest NIC.
const LOOK: Duration = Duration::from_millis(100);
/// While it waits it looks this often whether a healed path is used again.
const SLICE: Duration = Duration::from_millis(20);
/// How long the last killed forwarder may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(2);

/// The demo while it runs.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    display: Display,
    network: &'a Network,
    traffic: &'a Traffic,
    forwarder: Forwarder,
    meter: FrameMeter,
    throughput: Throughput,
    /// Bytes a second with checksum offload, and without: half of what the machine can do.
    pace: [u64; 2],
    happened: Vec<Happened>,
    /// How many of them were judged and shown.
    judged: usize,
    /// Bytes at the client when the frames began to count, then the result.
    bulk: Bulk,
    began: Micros,
}

/// What is left to report when the stage is empty.
#[derive(Debug)]
pub(super) struct Played {
    happened: Vec<Happened>,
    bulk: Bulk,
    seconds: f64,
    complaints: Vec<String>,
    /// Goes on until the last byte has arrived.
    forwarder: Forwarder,
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        display: Display,
        network: &'a Network,
        traffic: &'a Traffic,
        forwarder: Forwarder,
    ) -> Result<Stage<'a>, Error> {
        Ok(Stage {
            display,
            network,
            traffic,
            forwarder,
            meter: FrameMeter::new(&network.router, "c0")?,
            throughput: Throughput::new(network, traffic),
            pace: [0; 2],
            happened: Vec::new(),
            judged: 0,
            bulk: Bulk::default(),
            began: traffic.now(),
        })
    }

    /// Finds half of what the machine can do, with checksum offload and without.
    pub(super) fn calibrate(&mut self) -> Result<(), Error> {
        for (pace, (offload, time)) in self.pace.iter_mut().zip(CALIBRATION) {
            self.network.tx_checksum(offload)?;
            thread::sleep(SETTLING);
            let (from, before) = (Instant::now(), self.traffic.received());
            thread::sleep(time);
            let bytes = self.traffic.received() - before;
            *pace = (bytes as f64 / from.elapsed().as_secs_f64() / 2.0) as u64;
        }
        self.network.tx_checksum(true)?;
        let [offload, verified] = self.pace.map(|pace| pace as f64 * 8.0 / 1e9);
        self.display.line(format_args!(
            "half of what this machine can do: {offload:.2} Gbit/s, {verified:.2} with every \
             checksum verified\n"
        ));
        self.traffic.set_rate(Some(self.pace[0]));
        Ok(())
    }

    /// The whole script.
    pub(super) fn play(&mut self) -> Result<(), Error> {
        let start = Instant::now();
        self.throughput = Throughput::new(self.network, self.traffic);
        self.meter.take()?;
        self.bulk.bytes = self.traffic.received_by_client();
        let mut second = start + SECOND;
        for (at, act) in SCRIPT {
            let due = start + at;
            while second < due {
                self.wait_until(second);
                self.throughput.show(self.display, self.network, self.traffic);
                self.judge_closed();
                second += SECOND;
            }
            self.wait_until(due);
            self.perform(act)?;
        }
        Ok(())
    }

    /// Waits for a forwarder that is still away, and leaves the stage with what was seen.
    pub(super) fn finish(mut self) -> Played {
        let mut complaints = Vec::new();
        self.wait_until(Instant::now()); // takes what has been said
        let deadline = Instant::now() + READY_LIMIT;
        while self.is_away() && Instant::now() < deadline {
            self.wait_until((Instant::now() + SECOND / 20).min(deadline));
        }
        if self.is_away() {
            complaints.push("the killed forwarder was not ready again".to_owned());
        }
        match carried_frames(&self.forwarder) {
            Ok(1..) => {}
            Ok(0) => complaints.push("the forwarder carried nothing".to_owned()),
            Err(e) => complaints.push(e.to_string()),
        }
        Played {
            happened: self.happened,
            bulk: self.bulk,
            seconds: (self.traffic.now() - self.began) as f64 / 1e6,
            complaints,
            forwarder: self.forwarder,
        }
    }

    fn perform(&mut self, act: Act) -> Result<(), Error> {
        let act = match act {
            Act::BreakPath(BUSIEST) => Act::BreakPath(self.busiest()?),
            Act::MendPath(BUSIEST) => Act::MendPath(self.broken()),
            act => act,
        };
        let mut event = Happened { at: self.traffic.now(), act, ready: None, comeback: None };
        match act {
            Act::LoseCarrier(nic) => self.network.pull_cable(nic)?,
            Act::ReturnCarrier(nic) => self.network.plug_cable(nic)?,
            Act::DeleteNic(nic) => self.network.delete_nic(nic)?,
            Act::CreateNic(nic) => self.network.create_nic(nic)?,
            Act::BreakPath(nic) => self.network.break_path(nic)?,
            Act::MendPath(nic) => {
                self.network.mend_path(nic)?;
                let carried = self.network.host.counters(&nic_name(nic))?;
                event.comeback = Some(Comeback::new(event.at, carried));
            }
            Act::KillForwarder => {
                self.forwarder.kill();
                self.forwarder.start()?;
            }
            Act::VerifyChecksums => {
                self.bulk.frames = self.meter.take()?;
                self.bulk.bytes = self.traffic.received_by_client() - self.bulk.bytes;
                self.traffic.set_rate(Some(self.pace[1]));
                self.network.tx_checksum(false)?;
            }
            Act::End => {}
        }
        self.display.happened(self.throughput.since(), &event);
        if act.is_event() {
            self.happened.push(event);
        }
        self.judge_closed();
        Ok(())
    }

    /// The NIC that carries the most both ways.
    fn busiest(&mut self) -> Result<u8, Error> {
        let network = self.network;
        let carried = || -> Result<Vec<Counters>, Error> {
            network.nics().map(|nic| network.host.counters(&nic_name(nic))).collect()
        };
        let before = carried()?;
        self.wait_until(Instant::now() + LOOK);
        let after = carried()?;
        let both_ways = |nic: &u8| {
            let (before, after) = (before[usize::from(nic - 1)], after[usize::from(nic - 1)]);
            (after.rx_bytes - before.rx_bytes).min(after.tx_bytes - before.tx_bytes)
        };
        Ok(network.nics().max_by_key(both_ways).unwrap_or(1))
    }

    /// The NIC whose path broke.
    fn broken(&self) -> u8 {
        let is_broken = |event: &Happened| matches!(event.act, Act::BreakPath(_));
        self.happened.iter().rfind(|event| is_broken(event)).and_then(|e| e.act.nic()).unwrap_or(1)
    }

    /// Waits, and looks after what comes back meanwhile.
    fn wait_until(&mut self, deadline: Instant) {
        loop {
            let slice = deadline.min(Instant::now() + SLICE);
            self.wait_for_forwarder(slice);
            let now = self.traffic.now();
            for event in &mut self.happened {
                let Some((comeback, nic)) = event.comeback.as_mut().zip(event.act.nic()) else {
                    continue;
                };
                if let Ok(counters) = self.network.host.counters(&nic_name(nic)) {
                    comeback.look(now, counters);
                }
            }
            if slice == deadline {
                return;
            }
        }
    }

    /// Waits, and notes when a killed forwarder says that it is ready.
    fn wait_for_forwarder(&mut self, deadline: Instant) {
        if let Some(ready) = self.forwarder.ready_before(deadline) {
            let ready = ready.duration_since(self.traffic.instant(0)).as_micros() as Micros;
            for event in &mut self.happened {
                if event.act == Act::KillForwarder {
                    event.ready.get_or_insert(ready);
                }
            }
        }
        thread::sleep(deadline.saturating_duration_since(Instant::now()));
    }

    fn is_away(&self) -> bool {
        self.happened.iter().any(|h| h.act == Act::KillForwarder && h.ready.is_none())
    }

    /// Shows what the events cost whose window is over.
    fn judge_closed(&mut self) {
        while let Some(event) = self.happened.get(self.judged) {
            let is_last = self.judged + 1 == self.happened.len();
            if is_last && self.traffic.now() < event.at + event.act.window() {
                return;
            }
            self.display.judged(&judge(self.traffic, &self.happened, self.judged));
            self.judged += 1;
        }
    }
}

impl Played {
    /// Judges all events again, now that everything has arrived that ever will.
    pub(super) fn report(self, traffic: &Traffic, outcome: Outcome) -> Report {
        let events = (0..self.happened.len()).map(|n| judge(traffic, &self.happened, n)).collect();
        let mut report = Report::new(outcome, events, self.bulk, self.seconds);
        self.complaints.into_iter().for_each(|complaint| report.complain(complaint));
        if !report.ok {
            report.last_words = self.forwarder.log();
        }
        report
    }
}

/// Frames that the forwarder took from the adapter since it was started.
fn carried_frames(forwarder: &Forwarder) -> Result<u64, Error> {
    let status = forwarder.status()?;
    let workers = status["workers"].as_array().into_iter().flatten();
    Ok(workers.filter_map(|worker| worker["from_tun"]["frames"].as_u64()).sum())
}
