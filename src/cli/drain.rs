//! `vipa drain [CONFIG]`: the forwarder takes leave of its neighbours and stops; the kernel forwards what still comes.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use super::{Drain, Failure, failure, forwarder, output};
use crate::admin::Draining;
use crate::config;
use crate::engine::leave::LONGEST_WAIT;
use crate::engine::pidfd;
use crate::state::State;

/// How much longer than it said a forwarder may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// `--wait`.
pub(super) fn wait(text: &str) -> Result<Duration, String> {
    let wait = config::duration(text).filter(|wait| *wait <= LONGEST_WAIT);
    wait.ok_or_else(|| "wanted a time from 0s to 1h with its unit: 500ms, 3s, 1m".to_owned())
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Refused { error: String },
    Draining(Draining),
}

/// Returns when the forwarder has ended.
pub(super) fn run(arguments: &Drain) -> Result<ExitCode, Failure> {
    let began = Instant::now();
    let state = State::locate(arguments.state.as_deref())?;
    let named = match &arguments.config {
        Some(path) => Some(failure::load(path)?.adapter.name),
        None => arguments.adapter.clone(),
    };
    let adapter = forwarder::adapter(named, &state)?;
    // Its end is awaited by what is opened before it is asked: nobody who comes after it is taken for it.
    let Some((pid, process)) = forwarder::holder(&adapter)? else {
        return Err(forwarder::none(&adapter));
    };
    let wait = u64::try_from(arguments.wait.as_millis()).unwrap_or(u64::MAX);
    let request = json!({ "command": "drain", "wait_ms": wait }).to_string();
    let answer = forwarder::ask_of(&adapter, &state, &request)?;
    let draining = match serde_json::from_str(&answer) {
        Ok(Answer::Draining(draining)) => draining,
        Ok(Answer::Refused { error }) => return Err(Failure::failed(error)),
        Err(error) => {
            let error = format!("the forwarder's answer is not understood: {error}");
            return Err(Failure::failed(error));
        }
    };
    if !arguments.json {
        output::print(&format!("{adapter}: {}\n", in_words(&draining)))?;
    }
    let ends_in = Duration::try_from_secs_f64(draining.ends_in_seconds).unwrap_or(LONGEST_WAIT);
    let has_ended = pidfd::wait(&process, ends_in.min(LONGEST_WAIT) + PATIENCE)?;
    if arguments.json {
        let told = json!({
            "adapter": adapter,
            "pid": pid,
            "was_leaving": draining.was_leaving,
            "told_by": draining.told_by,
            "stopped": has_ended,
            "seconds": began.elapsed().as_secs_f64(),
        });
        output::print(&format!("{told}\n"))?;
    }
    if !has_ended {
        return Err(Failure::failed(format!(
            "the forwarder of {adapter} (pid {pid}) was told to stop and has not"
        )));
    }
    if arguments.json {
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&format!("{adapter}: stopped; the kernel forwards\n"))
}

fn in_words(draining: &Draining) -> String {
    let Draining { was_leaving, told_by, ends_in_seconds, .. } = draining;
    let already = if *was_leaving { "already " } else { "" };
    match &told_by[..] {
        [] => format!("{already}stopping; there is nobody to tell by RIP"),
        nics => format!(
            "{already}withdrawing: the neighbours behind {} are told; stops in {ends_in_seconds:.1} s",
            nics.join(", ")
        ),
    }
}
