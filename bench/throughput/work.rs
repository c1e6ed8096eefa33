//! What is asked of each subject, and which figures come of it.

use std::ops::RangeInclusive;
use std::time::Duration;

use vipa::wire::ip::Family;

use crate::bulk::{Background, bulk};
use crate::flood::flood;
use crate::latency::round_trips;
use crate::place::Place;
use crate::report::Shown;
use crate::short::short;
use crate::subject::Subject;
use crate::{Error, Scene};

/// Ports that go to the first server as they are.
pub(crate) const BULK: RangeInclusive<u16> = 5000..=5009;
pub(crate) const IPERF: u16 = 5001;
pub(crate) const ECHO: u16 = 5002;
/// The port that is spread over the servers.
pub(crate) const SHORT: u16 = 8080;
pub(crate) const UDP: u16 = 9;
/// bit/s beside which round trips are measured under heavy load.
const LOAD: &str = "2G";

/// How much iperf3 sends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    Seconds(u32),
    Megabytes(u32),
}

/// How long is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    pub(crate) bulk: Length,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Tcp { streams: u32, is_down: bool, family: Family },
    Udp(Family),
    New(Family),
    RoundTrip { is_heavy: bool },
}

/// A row of the report, still without figures.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) id: String,
    pub(crate) panel: String,
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) shown: Shown,
    pub(crate) is_more_better: bool,
}

impl Work {
    pub(crate) fn of(scene: Scene) -> Vec<Work> {
        use Family::{V4, V6};
        let tcp = |streams, is_down, family| Work::Tcp { streams, is_down, family };
        let mut all = vec![
            tcp(1, false, V4),
            tcp(1, true, V4),
            tcp(4, false, V4),
            tcp(4, true, V4),
            tcp(1, false, V6),
            tcp(4, false, V6),
        ];
        // What a host sends by itself is no frame of a packet socket's.
        if scene == Scene::Balance {
            all.extend([Work::Udp(V4), Work::Udp(V6)]);
        }
        all.extend([Work::New(V4), Work::New(V6)]);
        all.extend([false, true].map(|is_heavy| Work::RoundTrip { is_heavy }));
        all
    }

    /// Why a subject cannot do this.
    pub(crate) fn impossible(self, subject: Subject) -> Option<&'static str> {
        match (subject, self) {
            (Subject::HaProxy, Work::Udp(_)) => Some("it does not carry UDP"),
            (Subject::Rewritten, Work::New(_) | Work::RoundTrip { .. }) => {
                Some("only what iperf3 sends is rewritten")
            }
            _ => None,
        }
    }

    /// In the order of what [`Work::measure`] returns.
    pub(crate) fn figures(self, scene: Scene) -> Vec<Figure> {
        let six = |family| if family == Family::V6 { ("-v6", ", IPv6") } else { ("", "") };
        let figure = |id: String, panel: String, name, unit, shown, is_more_better| Figure {
            id,
            panel,
            name,
            unit,
            shown,
            is_more_better,
        };
        match self {
            Work::Tcp { streams, is_down, family } => {
                let (id, words) = six(family);
                let way = match (scene, is_down) {
                    (Scene::Egress, false) => "to the client",
                    (Scene::Egress, true) => "from the client",
                    (Scene::Balance, false) => "to the server",
                    (Scene::Balance, true) => "from the server",
                };
                let plural = if streams == 1 { "" } else { "s" };
                let panel = format!("TCP, {streams} stream{plural} {way}{words}");
                let id = format!("tcp{streams}-{}{id}", if is_down { "down" } else { "up" });
                vec![figure(id, panel, "", "Gbit/s", Shown::Bar, true)]
            }
            Work::Udp(family) => {
                let (id, words) = six(family);
                let bytes = if family == Family::V4 { 64 } else { 84 };
                let panel = format!("UDP, {bytes}-byte frames delivered{words}");
                vec![
                    figure(format!("udp{id}"), panel.clone(), "", "1/s", Shown::Bar, true),
                    figure(format!("udp-lost{id}"), panel, "lost", "%", Shown::Beside, false),
                    figure(
                        format!("udp-cpu{id}"),
                        format!("… machine's CPU time for each{words}"),
                        "",
                        "ns",
                        Shown::Bar,
                        false,
                    ),
                ]
            }
            Work::New(family) => {
                let (id, words) = six(family);
                let panel = format!("New connections{words}");
                vec![
                    figure(format!("new{id}"), panel.clone(), "", "1/s", Shown::Bar, true),
                    figure(format!("new-failed{id}"), panel, "failed", "%", Shown::Beside, false),
                ]
            }
            Work::RoundTrip { is_heavy } => {
                let (id, panel) = if is_heavy {
                    ("heavy", "Round trip beside 2 Gbit/s of TCP")
                } else {
                    ("light", "Round trip, nothing else")
                };
                let point = |name: &'static str| {
                    let id = format!("rtt-{id}-{name}");
                    figure(id, panel.to_owned(), name, "µs", Shown::Point, false)
                };
                ["p50", "p99", "p99.9", "max"].map(point).to_vec()
            }
        }
    }

    pub(crate) fn measure(
        self,
        place: &Place,
        span: &Span,
        baseline: f64,
    ) -> Result<Vec<f64>, Error> {
        match self {
            Work::Tcp { streams, is_down, family } => {
                Ok(vec![bulk(place, family, streams, is_down, span)?])
            }
            Work::Udp(family) => {
                let flood = flood(place, family, span, baseline)?;
                Ok(vec![flood.delivered, flood.lost, flood.busy])
            }
            Work::New(family) => {
                let short = short(place, family, span)?;
                Ok(vec![short.rate, short.failed])
            }
            Work::RoundTrip { is_heavy: false } => Ok(round_trips(place, span)?.to_vec()),
            Work::RoundTrip { is_heavy: true } => {
                let mut load = Background::start(place, LOAD)?;
                let took = round_trips(place, span)?;
                if !load.is_there() {
                    return Err("the load in the background ended early".into());
                }
                Ok(took.to_vec())
            }
        }
    }
}
