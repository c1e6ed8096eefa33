//! Plays the script over clients that keep asking, and watches.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::clients::{Clients, Nanos};
use super::farm::{Farm, LOAD};
use super::report::{Happened, Play, Report, Seen};
use super::script::{Act, SCRIPT};
use super::{LATER_POLICY, SERVICE, START_LIMIT, service_address};
use crate::balance::monitor::{Change, ServiceStatus};
use crate::engine::heartbeat::monotonic_ns;
use crate::lab::Error;
use crate::lab::demo::display::Display;
use crate::lab::process::Forwarder;
use crate::lab::topology::Network;

const SECOND: Duration = Duration::from_secs(1);
/// The forwarder is asked this often what it has switched.
const SLICE: Duration = Duration::from_millis(50);
/// A switch is shown after so long at the latest, with effect or without.
const EFFECT_LIMIT: Nanos = 500_000_000;
/// Switches that the forwarder remembers: with as many, some may be missing.
const REMEMBERED: usize = 64;

/// The demo while it runs.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    display: Display,
    network: &'a Network,
    farm: Farm,
    forwarder: Forwarder,
    clients: Option<Clients>,
    play: Play,
    /// Who is preferred.
    choice: String,
    /// Who was killed.
    killed: String,
    /// How many switches were shown, …
    shown: usize,
    /// … and how many requests, with the time up to which.
    counted: (usize, Nanos),
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        display: Display,
        network: &'a Network,
        farm: Farm,
        forwarder: Forwarder,
    ) -> Stage<'a> {
        Stage {
            display,
            network,
            farm,
            forwarder,
            clients: None,
            play: Play::default(),
            choice: String::new(),
            killed: String::new(),
            shown: 0,
            counted: (0, 0),
        }
    }

    /// The whole script, once every server is up.
    ///
    /// # Errors
    /// When a server does not come up, or the forwarder answers no more.
    pub(super) fn play(&mut self) -> Result<(), Error> {
        self.wait_for_servers()?;
        self.play.earlier = self.play.switches.len();
        self.play.began = monotonic_ns();
        self.clients = Some(Clients::start(&self.network.client, service_address())?);
        self.counted.1 = self.play.began;
        let start = Instant::now();
        let mut second = start + SECOND;
        for (at, act) in SCRIPT {
            let due = start + at;
            while second < due {
                self.watch_until(second)?;
                self.show_second();
                second += SECOND;
            }
            self.watch_until(due)?;
            self.perform(act)?;
        }
        Ok(())
    }

    /// Waits for what is under way, and judges.
    ///
    /// # Errors
    /// When the forwarder does not answer any more.
    pub(super) fn finish(mut self) -> Result<Report, Error> {
        if let Some(clients) = &mut self.clients {
            clients.stop();
        }
        self.look()?;
        self.show_switches();
        let requests = self.clients.take().map(|of| of.requests().clone()).unwrap_or_default();
        let mut report = self.play.report(&requests);
        if self.play.switches.len() >= REMEMBERED {
            report.complain(format!("{REMEMBERED} switches and more"));
        }
        if !report.ok {
            report.last_words = self.last_words();
        }
        Ok(report)
    }

    /// All that the forwarder said, and how it ended, if it did.
    pub(super) fn last_words(&mut self) -> String {
        let ended = self.forwarder.ended().map(|status| format!("it ended: {status}"));
        format!("{}{}", self.forwarder.log(), ended.unwrap_or_default())
    }

    fn wait_for_servers(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let service = self.look()?;
            if service.servers.iter().all(|server| server.state == "up") {
                return Ok(());
            }
            if Instant::now() > deadline {
                let down = service.servers.iter().filter(|server| server.state != "up");
                let why = down.map(|of| format!("{} is {}: {}", of.name, of.state, of.why));
                return Err(Error::Program(why.collect::<Vec<_>>().join("; ")));
            }
            thread::sleep(SLICE);
        }
    }

    fn perform(&mut self, act: Act) -> Result<(), Error> {
        if act == Act::End {
            return Ok(());
        }
        self.look()?;
        let preferred = self.choice.clone();
        let server = if act == Act::Return { self.killed.clone() } else { preferred };
        let (at, switches) = (monotonic_ns(), self.play.switches.len());
        let what = match act {
            Act::Load => {
                self.farm.log_in(&server, LOAD)?;
                format!("{LOAD} log in at {server}, past the VIPA")
            }
            Act::Kill => {
                self.farm.kill(&server)?;
                self.killed.clone_from(&server);
                format!("server {server} is killed")
            }
            Act::Swap => {
                let (service, policy) = (SERVICE.to_owned(), LATER_POLICY.to_owned());
                self.order(&Change::Policy { service, policy })?;
                format!("vipa policy {SERVICE} {LATER_POLICY}")
            }
            Act::Return => {
                self.farm.start(&server)?;
                format!("server {server} is started again")
            }
            Act::Drain => {
                let name = format!("{SERVICE}/{server}");
                self.order(&Change::Drain(name.clone()))?;
                format!("vipa server drain {name}")
            }
            Act::End => String::new(),
        };
        self.show(at, format_args!(">> {what}"));
        self.play.happened.push(Happened { act, at, server, switches });
        Ok(())
    }

    /// As `vipa policy` and `vipa server` do it.
    fn order(&self, change: &Change) -> Result<(), Error> {
        let answer = self.forwarder.ask(&json!({"command": "change", "change": change}))?;
        match answer["error"].as_str() {
            Some(error) => Err(Error::Program(format!("the forwarder refuses: {error}"))),
            None => Ok(()),
        }
    }

    fn watch_until(&mut self, deadline: Instant) -> Result<(), Error> {
        while Instant::now() < deadline {
            thread::sleep(SLICE.min(deadline.saturating_duration_since(Instant::now())));
            self.look()?;
            self.show_switches();
        }
        Ok(())
    }

    /// Takes what the forwarder tells of the service.
    fn look(&mut self) -> Result<ServiceStatus, Error> {
        let before = monotonic_ns();
        let mut status = self.forwarder.status()?;
        let service = status["balance"]["services"][0].take();
        let service: ServiceStatus = serde_json::from_value(service)
            .map_err(|e| Error::Program(format!("the forwarder tells of no service: {e}")))?;
        self.choice.clone_from(&service.choice);
        for (number, switch) in service.switches.iter().enumerate() {
            // It was told of after `before`, so that this is not too late; the next time may be nearer.
            let at = before.saturating_sub((switch.ago_seconds * 1e9) as Nanos);
            match self.play.switches.get_mut(number) {
                Some(seen) => seen.at = seen.at.max(at),
                None => {
                    let (from, to) = (switch.from.clone(), switch.to.clone());
                    self.play.switches.push(Seen { at, from, to, why: switch.why.clone() });
                }
            }
        }
        Ok(service)
    }

    fn show_switches(&mut self) {
        let Some(clients) = &self.clients else { return };
        if self.play.switches.len() - self.play.earlier == self.shown {
            return;
        }
        let switches = self.play.switches(&clients.requests());
        for (switch, seen) in
            switches.iter().zip(&self.play.switches[self.play.earlier..]).skip(self.shown)
        {
            let is_new = monotonic_ns().saturating_sub(seen.at) < EFFECT_LIMIT;
            if switch.effect_ms.is_none() && is_new {
                break;
            }
            self.show(seen.at, format_args!("<< {switch}"));
            self.shown += 1;
        }
    }

    /// Who answered in the last second.
    fn show_second(&mut self) {
        let Some(clients) = &self.clients else { return };
        let requests = clients.requests();
        let mut served: BTreeMap<&str, usize> =
            self.farm.names().into_iter().map(|name| (name, 0)).collect();
        let mut failed = 0;
        for request in &requests[self.counted.0..] {
            match &request.outcome {
                Ok(of) => *served.entry(&of.server).or_default() += 1,
                Err(_) => failed += 1,
            }
        }
        let served: Vec<String> =
            served.iter().map(|(server, count)| format!("{server} {count:>4}")).collect();
        let failed = if failed > 0 { format!("  failed {failed}") } else { String::new() };
        let count = requests.len();
        let now = monotonic_ns();
        self.show(now, format_args!("   {}{failed}", served.join("  ")));
        drop(requests);
        self.counted = (count, now);
    }

    fn show(&self, at: Nanos, text: std::fmt::Arguments<'_>) {
        let seconds = at.saturating_sub(self.play.began) as f64 / 1e9;
        self.display.line(format_args!("{seconds:5.1} s  {text}"));
    }
}
