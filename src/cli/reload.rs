//! `vipa reload`: the forwarder reads its configuration file again.

use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize;

use super::{Failure, Reload, forwarder, output};
use crate::admin::Reloaded;

/// Thousands of routes may be others.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Refused {
        error: String,
        #[serde(default)]
        is_wrong: bool,
    },
    Reloaded(Reloaded),
}

/// Returns when what the file says stands; exit status 2 where it is wrong.
pub(super) fn run(arguments: &Reload) -> Result<ExitCode, Failure> {
    let (adapter, state) = (arguments.adapter.clone(), arguments.state.as_deref());
    let answer = forwarder::ask_within(PATIENCE, state, adapter, r#"{"command":"reload"}"#)?;
    let reloaded = match serde_json::from_str(&answer) {
        Ok(Answer::Reloaded(reloaded)) => reloaded,
        Ok(Answer::Refused { error, is_wrong: true }) => return Err(Failure::wrong_here(error)),
        Ok(Answer::Refused { error, .. }) => {
            return Err(Failure::failed(format!("not reloaded, nothing has changed: {error}")));
        }
        Err(error) => {
            let error = format!("the forwarder's answer is not understood: {error}");
            return Err(Failure::failed(error));
        }
    };
    if arguments.json {
        return output::print(&format!("{answer}\n"));
    }
    for warning in reloaded.warnings {
        eprintln!("{warning}\n");
    }
    output::print(&match reloaded.difference {
        difference if difference.is_nothing() => "nothing has changed\n".to_owned(),
        difference => difference.to_string(),
    })
}
