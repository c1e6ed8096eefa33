//! What is wrong with servers on this host, where the configuration alone does not show it: a server that is this
//! host itself, or in no network that it reaches. Asked of the view that the forwarder would have.

use std::fmt;

use super::service::{GIVEN, Mode, Server, Settings};
use crate::config::Config;
use crate::forward::view::{NetView, NicState};

/// A server that cannot be, here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misplaced {
    /// Line and column of its address.
    pub place: (usize, usize),
    /// What was found.
    pub found: String,
    /// What would be right.
    pub wanted: String,
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.place;
        write!(f, "line {line}, column {column}: {}; wanted {}", self.found, self.wanted)
    }
}

/// What was found on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Servers that cannot be.
    pub mistakes: Vec<Misplaced>,
    /// What could not be looked at, and why.
    pub unchecked: Option<String>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// Looks at every server of `config` where the network is as in `view`.
pub fn look(config: &Config, view: &NetView) -> Outlook {
    let mut outlook = Outlook::default();
    if config.services.is_empty() {
        return outlook;
    }
    let there = view.nics.iter().filter(|nic| !nic.is_gone());
    let absent = there.filter(|nic| nic.state != NicState::Live);
    let absent: Vec<&str> = absent.map(|nic| &*nic.name).collect();
    // Where a NIC is missing, or routes are still to be learned, nothing is concluded from what is not there.
    let is_whole = absent.is_empty() && config.rip.is_none();
    if !absent.is_empty() {
        let carry = if absent.len() == 1 { "carries" } else { "carry" };
        let absent = absent.join(", ");
        let what = "whether every server is reached was not checked";
        outlook.unchecked = Some(format!("{absent} {carry} nothing here: {what}"));
    }
    for service in &config.services {
        for server in service.servers.iter().filter(|server| !server.is_local) {
            if let Some((found, wanted)) = misplaced(service, server, view, is_whole) {
                let (place, wanted) = (server.place, wanted.to_owned());
                outlook.mistakes.push(Misplaced { place, found, wanted });
            }
        }
        if let Mode::Nat { sources, keeps_client: false } = &service.mode {
            outlook.notes.push(capacity(config, service, sources.len()));
        }
    }
    outlook
}

fn misplaced(
    service: &Settings,
    server: &Server,
    view: &NetView,
    is_whole: bool,
) -> Option<(String, &'static str)> {
    let address = server.address;
    let has =
        |nic: &&crate::forward::view::NicView| nic.addresses.iter().any(|(own, _)| *own == address);
    if let Some(nic) = view.nics.iter().find(has) {
        let found = format!("{address} is the address of {} of this host", nic.name);
        return Some((found, "for a server on this host a VIPA, with another port"));
    }
    match view.routes.lookup(address) {
        Some(route) if route.next_hops.is_empty() => {
            let found =
                format!("the kernel's route to {address} leaves by a device that is no [[nic]]");
            Some((found, "a server behind a [[nic]]"))
        }
        Some(route) if service.mode == Mode::Direct && is_whole => {
            let is_on_link = route.next_hops.iter().any(|hop| hop.gateway.is_none());
            let found = format!("{address} is on no link of a [[nic]], and the mode is \"direct\"");
            (!is_on_link).then_some((found, "a server on a shared link, or mode = \"nat\""))
        }
        None if is_whole => {
            let found = format!("{address} is in no network that this host reaches");
            Some((found, "a `gateway`, or a route to it over a [[nic]]"))
        }
        _ => None,
    }
}

/// How many connections nat has room for.
fn capacity(config: &Config, service: &Settings, sources: usize) -> String {
    let name = &service.name;
    if sources > 0 {
        let most = GIVEN.len() * sources;
        return format!("{name}: at most {most} connections to each server at a time (`source`)");
    }
    let (most, more) = (config.source.ports.len(), GIVEN.len());
    format!(
        "{name}: at most {most} connections to each server at a time ([source] ports); with a VIPA of its own as `source`, {more}"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;
    use crate::forward::view::NicView;
    use crate::replay::view;

    fn config(service: &str, servers: &[&str]) -> Config {
        let mut text = format!(
            r#"
[virtual]
name = "vipa0"
addresses = ["203.0.113.10", "203.0.113.12"]
[[nic]]
name = "eth1"
gateway = "10.1.1.1"
[[replay.nic]]
name = "eth1"
addresses = ["10.1.1.2/24"]
[[service]]
name = "web"
address = "203.0.113.10:80"
{service}
[[service.status]]
name = "up"
role = "clients"
kind = "tcp"
"#
        );
        for (number, server) in servers.iter().enumerate() {
            text += &format!("[[service.server]]\nname = \"{number}\"\naddress = \"{server}\"\n");
        }
        Config::parse(&text, Path::new("vipa.toml")).unwrap().0
    }

    fn found(config: &Config, view: &NetView) -> Vec<((usize, usize), String)> {
        look(config, view).mistakes.into_iter().map(|wrong| (wrong.place, wrong.found)).collect()
    }

    #[test]
    fn a_server_is_no_nic_of_this_host() {
        let config =
            config("", &["10.1.1.3:80", "10.1.1.2:80", "203.0.113.10:8080", "10.9.9.9:80"]);
        let wanted = "10.1.1.2 is the address of eth1 of this host".to_owned();
        assert_eq!(found(&config, &view(&config)), [((24, 11), wanted)]);
    }

    #[test]
    fn a_server_is_in_a_network_that_is_reached() {
        let mut config = config("", &["10.1.1.3:80", "10.9.9.9:80"]);
        config.nics[0].gateways.clear();
        let mut here = view(&config);
        // Replay has a default route on a link without a gateway; a host need not.
        let on_link =
            here.routes.routes().iter().filter(|route| route.prefix.length() == 24).cloned();
        here.routes = crate::forward::route::RouteTable::new(on_link.collect());
        let wanted = "10.9.9.9 is in no network that this host reaches".to_owned();
        assert_eq!(found(&config, &here), [((24, 11), wanted)]);
        // A NIC that is not there may be the way.
        let mut nics = here.nics.to_vec();
        nics.push(NicView { name: "eth2".to_owned(), state: NicState::Missing, ..nics[0].clone() });
        here.nics = nics.into();
        let outlook = look(&config, &here);
        assert_eq!(outlook.mistakes, []);
        let wanted = "eth2 carries nothing here: whether every server is reached was not checked";
        assert_eq!(outlook.unchecked.as_deref(), Some(wanted));
    }

    #[test]
    fn direct_needs_a_shared_link() {
        let config = config("mode = \"direct\"", &["10.1.1.3", "10.9.9.9"]);
        let wanted = "10.9.9.9 is on no link of a [[nic]], and the mode is \"direct\"".to_owned();
        assert_eq!(found(&config, &view(&config)), [((24, 11), wanted)]);
    }

    #[test]
    fn what_is_routed_elsewhere_is_not_reached() {
        let config = config("", &["172.17.0.2:80"]);
        let mut here = view(&config);
        let elsewhere = crate::forward::route::Route {
            prefix: "172.17.0.0/16".parse().unwrap(),
            next_hops: Vec::new(),
        };
        let mut routes = here.routes.routes().to_vec();
        routes.push(elsewhere);
        here.routes = crate::forward::route::RouteTable::new(routes);
        let wanted =
            "the kernel's route to 172.17.0.2 leaves by a device that is no [[nic]]".to_owned();
        assert_eq!(found(&config, &here), [((21, 11), wanted)]);
    }

    #[test]
    fn how_many_connections_fit_is_told() {
        let notes = |service: &str| {
            let config = config(service, &["10.1.1.3:80"]);
            look(&config, &view(&config)).notes
        };
        let wanted = "web: at most 4536 connections to each server at a time ([source] ports); with a VIPA of its own as `source`, 64512";
        assert_eq!(notes(""), [wanted]);
        let wanted = "web: at most 64512 connections to each server at a time (`source`)";
        assert_eq!(notes("source = [\"203.0.113.12\"]"), [wanted]);
        assert!(notes("keep-client = true").is_empty());
    }
}
