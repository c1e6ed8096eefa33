//! What is asked of services and servers over the control socket:
//!
//! | request | answer |
//! |---|---|
//! | `{"command":"change","change":{"drain":"web/a"}}`, and the others of [`Change`] | `{"done":true}` |
//! | `{"command":"check","server":"web/a"}` | a [`Checked`], once every status object of the server was read |
//! | `{"command":"push","server":"web/a","status":"clients","line":"17"}` | `{"done":true}` |
//!
//! or `{"error":"…"}`, and then nothing has changed.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::server::json_line;
use super::{Admin, reload};
use crate::balance::monitor::Change;

/// The fields of such requests.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Asked {
    change: Option<Change>,
    server: Option<String>,
    status: Option<String>,
    line: Option<String>,
}

#[derive(Serialize)]
struct Done {
    done: bool,
}

/// What was read of a server just now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checked {
    /// By each of its status objects.
    pub readings: Vec<ReadingStatus>,
}

/// One reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadingStatus {
    /// Name of the status object.
    pub name: String,
    /// The value.
    pub value: Option<f64>,
    /// What an agent said beside it.
    pub words: String,
    /// Why nothing was read.
    pub error: Option<String>,
}

/// A line, or why it cannot be done; `None`: the command is another one's.
pub(super) async fn answer(
    command: &str,
    asked: Asked,
    admin: &Admin,
) -> Option<Result<String, String>> {
    let done = |done: Result<(), String>| done.map(|()| json_line(&Done { done: true }));
    Some(match command {
        "change" => match asked.change {
            Some(change) => done(reload::change(admin, &change, &nics(admin)).await),
            None => Err("change needs a change".to_owned()),
        },
        "check" => match asked.server {
            Some(server) => check(&server, admin).await,
            None => Err("check needs a server".to_owned()),
        },
        "push" => match (asked.server, asked.status, asked.line) {
            (Some(server), Some(status), Some(line)) => {
                done(admin.balance.push(&server, &status, &line))
            }
            _ => Err("push needs a server, a status and a line".to_owned()),
        },
        _ => return None,
    })
}

async fn check(server: &str, admin: &Admin) -> Result<String, String> {
    let answers = admin.balance.check(server).await?;
    let readings = answers.into_iter().map(|(name, answer)| match answer {
        Ok(reading) => ReadingStatus {
            name,
            value: reading.value,
            words: reading.words.to_string(),
            error: None,
        },
        Err(failure) => {
            ReadingStatus { name, error: Some(failure.to_string()), ..ReadingStatus::default() }
        }
    });
    Ok(json_line(&Checked { readings: readings.collect() }))
}

/// Addresses of this host's NICs, as the router sees them.
fn nics(admin: &Admin) -> Vec<IpAddr> {
    let view = admin.cell.load();
    view.nics.iter().flat_map(|nic| &nic.addresses).map(|(address, _)| *address).collect()
}
