//! Where the commands meet `link`: what would be set up, what on this host would change, and down.

use std::fmt::Write as _;
use std::path::Path;

use super::Failure;
use crate::admin;
use crate::config::Config;
use crate::link;

/// What `run` would set up on this host now, and the sockets and netfilter rules that would behave
/// differently: text for a reader.
pub(super) fn describe(config: &Config) -> Result<String, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::failed(error.to_string());
    let plan = link::preview(config).map_err(|error| failed(&error))?;
    let findings = link::inspect::inspect(config)?;
    let tables = link::nft::outline(config);
    let (xdp, rules) = (xdp(config), rules(config));
    let mut text = format!("vipa run would set up:\n{plan}{tables}{xdp}\n{rules}");
    if findings.is_empty() {
        text.push_str("Nothing on this host would behave differently.\n");
    } else {
        text.push_str("On this host would behave differently:\n");
    }
    for finding in findings {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "  {}: {}", finding.kind.name(), finding.text);
    }
    Ok(text)
}

/// Whose small frames XDP takes; empty if nobody's.
fn xdp(config: &Config) -> String {
    let mut text = String::new();
    for (nic, hook) in config.nics.iter().filter_map(|nic| Some((nic, nic.xdp?))) {
        let (nic, hook) = (&nic.name, hook.name());
        let _ = writeln!(
            text,
            "XDP of {nic} ({hook}): takes small frames for services, which tcpdump and filters at ingress then do not see"
        );
    }
    text
}

/// Who applies each source rule, and why; empty without rules.
fn rules(config: &Config) -> String {
    let rules = admin::rules(config);
    if rules.is_empty() {
        return String::new();
    }
    let mut text = "Source rules, of which the first that matches wins:\n".to_owned();
    for rule in rules {
        let _ = writeln!(
            text,
            "  line {}: {} carries {}, by the {} ({})",
            rule.line, rule.matches, rule.target, rule.applied_by, rule.because
        );
    }
    text.push('\n');
    text
}

/// Deletes `adapter` and restores what is saved of it in `state`; says what that was. Whoever calls holds its lock.
pub(super) fn take_down(state: &Path, adapter: &str) -> Result<String, Failure> {
    let report = link::down::down(state, Some(adapter))
        .map_err(|error| Failure::failed(error.to_string()))?;
    if report.failed.is_empty() {
        return Ok(report.to_string());
    }
    Err(Failure::failed(format!("{adapter} is down, but {}", report.failed.join("; "))))
}
