//! What vipa aims at, by ratios to others in the same run, and what it reached.

use super::{NO_DIRECTOR, Report, Scene};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    /// Of the other's median.
    AtLeast(f64),
    /// Of the other's median.
    AtMost(f64),
    /// More than the other's median, in the row's unit.
    AddedBelow(f64),
}

/// Scene, row, who, beside whom, how much.
type Aim = (&'static str, &'static str, &'static str, &'static str, Bound);

use Bound::{AddedBelow, AtLeast, AtMost};

const NFTABLES: &str = "nftables";
const HAPROXY: &str = "HAProxy";
const NAT: &str = "vipa nat";
const XDP: &str = "vipa nat xdp";
const COPY: &str = "plain copy";

const AIMS: [Aim; 14] = [
    ("egress", "tcp1-up", "vipa", "kernel routes", AtLeast(0.95)),
    ("egress", "tcp4-up", "vipa", "kernel routes", AtLeast(0.60)),
    ("balance", "tcp1-up", NAT, NFTABLES, AtLeast(0.90)),
    ("balance", "tcp1-down", NAT, NFTABLES, AtLeast(0.90)),
    ("balance", "tcp4-up", NAT, NFTABLES, AtLeast(0.45)),
    ("balance", "tcp4-down", NAT, NFTABLES, AtLeast(0.45)),
    ("balance", "tcp1-up", NAT, HAPROXY, AtLeast(1.6)),
    ("balance", "tcp4-up", NAT, HAPROXY, AtLeast(1.6)),
    ("balance", "udp", XDP, NFTABLES, AtLeast(1.4)),
    ("balance", "udp", XDP, "testpmd af_packet", AtLeast(1.3)),
    ("balance", "udp", XDP, "testpmd af_xdp", AtLeast(0.9)),
    ("balance", "udp-cpu", XDP, NFTABLES, AtMost(1.4)),
    ("balance", "rtt-light-p99", NAT, NFTABLES, AddedBelow(60.0)),
    ("balance", "new", NAT, HAPROXY, AtLeast(1.5)),
];

/// Whether an aim was reached.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// Scene and work.
    pub(crate) work: String,
    /// Who beside whom.
    pub(crate) who: String,
    pub(crate) aim: String,
    /// `None`: one of the two is missing.
    pub(crate) reached: Option<(String, bool)>,
    /// What a plain copy and no director make of it, as far as they were measured; empty, or words.
    pub(crate) limits: String,
}

/// All aims that speak of what was measured.
pub(crate) fn verdicts(report: &Report) -> Vec<Verdict> {
    let of = |name: &str| report.scenes.iter().find(|scene| scene.name == name);
    AIMS.iter().filter_map(|aim| verdict(of(aim.0)?, aim)).collect()
}

fn verdict(scene: &Scene, (_, id, who, other, bound): &Aim) -> Option<Verdict> {
    let row = scene.rows.iter().find(|row| row.id == *id)?;
    let median = |name: &str| row.cells.get(scene.place(name)?)?.median();
    let beside = median(other).filter(|beside| *beside > 0.0);
    let judged = |value: f64, beside: f64| {
        let ratio = value / beside;
        match bound {
            AtLeast(least) => (format!("× {ratio:.2}"), ratio >= *least),
            AtMost(most) => (format!("× {ratio:.2}"), ratio <= *most),
            AddedBelow(limit) => {
                (format!("{:+.1} {}", value - beside, row.unit), value - beside < *limit)
            }
        }
    };
    let reached = median(who).zip(beside).map(|(value, beside)| judged(value, beside));
    let limits = [(COPY, median(COPY)), (NO_DIRECTOR, row.ceiling)];
    let limits = limits
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}: {}", judged(value?, beside?).0)));
    let limits = limits.collect::<Vec<_>>().join(", ");
    let aim = match bound {
        AtLeast(least) => format!("at least × {least}"),
        AtMost(most) => format!("at most × {most}"),
        AddedBelow(limit) => format!("less than +{limit} {}", row.unit),
    };
    let name = if row.name.is_empty() { String::new() } else { format!(", {}", row.name) };
    let work = format!("{}: {}{name}", scene.name, row.panel);
    Some(Verdict { work, who: format!("{who} beside {other}"), aim, reached, limits })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{report, row};
    use super::super::{Cell, Report};
    use super::*;

    fn judged(report: &Report, who: &str) -> Vec<(String, Option<(String, bool)>)> {
        let of = verdicts(report).into_iter().filter(|verdict| verdict.who == who);
        of.map(|verdict| (verdict.aim, verdict.reached)).collect()
    }

    #[test]
    fn a_ratio_is_reached_from_its_bound_on() {
        let mut report = report();
        let aim = "at least × 0.9".to_owned();
        let said = judged(&report, "vipa nat beside nftables");
        assert_eq!(said, [(aim.clone(), Some(("× 0.93".to_owned(), true)))]);
        report.scenes[0].rows[0].cells[1] = Cell::Values(vec![17.8]);
        let said = judged(&report, "vipa nat beside nftables");
        assert_eq!(said, [(aim, Some(("× 0.89".to_owned(), false)))]);
    }

    #[test]
    fn what_may_be_at_most_and_what_is_added_are_judged_the_other_way() {
        let mut report = report();
        let values = |a: f64, b: f64| vec![Cell::Values(vec![a]), Cell::Values(vec![b])];
        let mut reached = |who: &str, id| {
            report.scenes[0].subjects[1].name = who.to_owned();
            report.scenes[0].rows = vec![row(id, values(100.0, 150.0))];
            let said = judged(&report, &format!("{who} beside nftables"));
            said.into_iter().find_map(|(_, of)| Some(of?.1))
        };
        assert_eq!(reached("vipa nat xdp", "udp-cpu"), Some(false));
        assert_eq!(reached("vipa nat", "rtt-light-p99"), Some(true));
    }

    #[test]
    fn beside_it_stands_what_a_plain_copy_and_no_director_make_of_it() {
        let mut report = report();
        let limits = |report: &Report| verdicts(report)[0].limits.clone();
        assert_eq!(limits(&report), "no director: × 1.50");
        report.scenes[0].subjects[2].name = COPY.to_owned();
        report.scenes[0].rows[0].cells[2] = Cell::Values(vec![14.0]);
        assert_eq!(limits(&report), "plain copy: × 0.70, no director: × 1.50");
    }

    #[test]
    fn of_who_is_missing_nothing_is_said() {
        let said = judged(&report(), "vipa nat beside HAProxy");
        assert_eq!(said, [("at least × 1.6".to_owned(), None)]);
    }
}
