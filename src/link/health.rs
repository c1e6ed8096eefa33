//! Which NICs and next hops carry traffic now: carrier, paths and hold-downs taken together. Plain data.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::homes::Homes;
use super::plan::routes::Way;
use crate::forward::view::{NicId, NicState};
use crate::path::Hop;
use crate::wire::ip::Family;

/// The NICs and next hops as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// State of each `[[nic]]`.
    pub states: Vec<NicState>,
    /// Next hops that are dead, or wait out their hold-down.
    pub resting: BTreeSet<Hop>,
    /// Families of which every next hop behind a NIC is resting.
    pub silent: BTreeSet<(NicId, Family)>,
    /// Which NIC answers for each VIPA that lies in a NIC's own subnet.
    pub homes: Homes,
}

impl Health {
    /// As if no next hop were watched.
    pub fn of(states: impl Into<Vec<NicState>>) -> Health {
        Health { states: states.into(), ..Health::default() }
    }

    /// Takes in the next hops that are watched; true: it rests.
    pub(super) fn with_hops(states: Vec<NicState>, hops: &BTreeMap<Hop, bool>) -> Health {
        let resting = hops.iter().filter(|(_, rests)| **rests).map(|(hop, _)| *hop).collect();
        let group = |hop: &Hop| (hop.0, Family::of(hop.1));
        let mut silent: BTreeSet<(NicId, Family)> = hops.keys().map(group).collect();
        for (hop, _) in hops.iter().filter(|(_, rests)| !**rests) {
            silent.remove(&group(hop));
        }
        Health { states, resting, silent, homes: Homes::new() }
    }

    /// Are frames put on this NIC?
    pub fn is_live(&self, nic: NicId) -> bool {
        is_live(&self.states, nic)
    }

    /// Is traffic sent this way, if there is another?
    pub fn is_usable(&self, way: &Way) -> bool {
        let is_resting = |gateway| self.resting.contains(&(way.nic, gateway));
        self.is_live(way.nic) && !way.gateway.is_some_and(is_resting)
    }

    /// Does anything of this family get through behind the NIC, as far as is known?
    pub fn carries(&self, nic: NicId, family: Family) -> bool {
        self.is_live(nic) && !self.silent.contains(&(nic, family))
    }

    /// State of one NIC.
    pub fn state(&self, nic: NicId) -> NicState {
        self.states.get(nic.index()).copied().unwrap_or(NicState::Missing)
    }
}

/// Are frames put on this NIC? Where nothing better is left, one that is held down counts, and then one behind which nobody answers.
pub fn is_live(states: &[NicState], nic: NicId) -> bool {
    match states.get(nic.index()) {
        Some(NicState::Live) => true,
        Some(NicState::HeldDown) => !states.contains(&NicState::Live),
        Some(NicState::NoPath) => {
            !states.contains(&NicState::Live) && !states.contains(&NicState::HeldDown)
        }
        _ => false,
    }
}
