//! `vipa explain`: why the first packet of a flow takes the way that it takes (B2).

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;

use serde::Deserialize;
use serde_json::json;

use super::{Explain, Failure, failure, forwarder, output};
use crate::balance::table::Named;
use crate::config;
use crate::explain::{Explanation, Question, explain};
use crate::replay;

/// An address with a port or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<End, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(End { address, port: None });
        }
        let end = text.parse::<SocketAddr>();
        end.map(|end| End { address: end.ip(), port: Some(end.port()) }).map_err(|_| {
            "wanted an address such as 203.0.113.10 or 2001:db8::10, or with a port \
             203.0.113.10:443 or [2001:db8::10]:443"
                .to_owned()
        })
    }
}

pub(super) fn run(arguments: &Explain) -> Result<ExitCode, Failure> {
    let question = Question {
        protocol: arguments.protocol.to_lowercase(),
        from: arguments.from.address,
        from_port: arguments.from.port,
        to: arguments.to.address,
        to_port: arguments.to.port,
        user: arguments.user.as_deref().map(user).transpose()?,
        down: arguments.down.clone(),
    };
    let config = arguments.config.as_deref().map(failure::load).transpose()?;
    let explanation = match config {
        Some(config) if !arguments.live => {
            let file = config.file.display().to_string();
            let services = Named::assumed(&config);
            explain(&replay::view(&config), &services, &question, &file)
                .map_err(|error| Failure::bad_use(error.to_string()))?
        }
        config => {
            let adapter = config.map(|config| config.adapter.name);
            live(arguments, adapter.or(arguments.adapter.clone()), &question)?
        }
    };
    output::print(&if arguments.json {
        format!("{}\n", json!(explanation))
    } else {
        explanation.render()
    })
}

fn user(name: &str) -> Result<u32, Failure> {
    config::user_id(name).ok_or_else(|| Failure::bad_use(format!("this host has no user {name:?}")))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Refused { error: String },
    Explained(Box<Explanation>),
}

fn live(
    arguments: &Explain,
    adapter: Option<String>,
    question: &Question,
) -> Result<Explanation, Failure> {
    let request = json!({ "command": "explain", "question": question }).to_string();
    let answer = forwarder::ask(arguments.state.as_deref(), adapter, &request)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Explained(explanation)) => Ok(*explanation),
        Ok(Answer::Refused { error }) => Err(Failure::bad_use(error)),
        Err(error) => {
            Err(Failure::failed(format!("the forwarder's answer is not understood: {error}")))
        }
    }
}
