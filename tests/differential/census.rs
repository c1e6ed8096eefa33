//! What the generated flows consist of: a test that all agrees says nothing about what was never played.

use std::collections::BTreeMap;

use crate::generate::{Complaint, Flow, Step};
use crate::packet::{Layer4, Shape};

/// How many flows are of each kind, and how many steps have each peculiarity.
pub(crate) fn of(flows: &[Flow]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let mut count = |what: String| *counts.entry(what).or_default() += 1;
    for flow in flows {
        count(format!("{}, IPv{}", flow.name, if flow.is_v6 { 6 } else { 4 }));
        for step in &flow.steps {
            let (shape, complaint) = match step {
                Step::Out(shape) | Step::Back(shape) => (shape, None),
                Step::ErrorBack(complaint) | Step::ErrorOut(complaint) => {
                    (&complaint.shape, Some(complaint))
                }
            };
            of_shape(shape).chain(complaint.into_iter().flat_map(of_error)).for_each(|what| {
                count(format!("steps: {what}"));
            });
        }
    }
    counts
}

fn of_shape(shape: &Shape) -> impl Iterator<Item = &'static str> {
    let is_error = matches!(shape.layer4, Layer4::Icmp { .. });
    let split = shape.split.as_ref().filter(|split| shape.payload.len() > split.size || is_error);
    let order = split.map(|split| &split.order);
    let all = [
        ("IPv4 options", !shape.options.is_empty()),
        ("IPv6 extension headers", !shape.extensions.is_empty()),
        ("a wrong checksum", shape.is_wrong),
        ("a checksum of zero", shape.is_zero),
        ("a partial checksum", shape.is_partial),
        ("no checksum", matches!(shape.layer4, Layer4::Udp { has_checksum: false })),
        ("fragments in order", order.is_some_and(|order| order.is_sorted()) && !is_error),
        ("fragments out of order", order.is_some_and(|order| !order.is_sorted()) && !is_error),
        ("a fragmented error", order.is_some() && is_error),
    ];
    all.into_iter().filter_map(|(what, is_so)| is_so.then_some(what))
}

fn of_error(complaint: &Complaint) -> impl Iterator<Item = &'static str> {
    let all = [
        ("an error by a router", complaint.is_by_router),
        ("an error by an end", !complaint.is_by_router),
        ("an error with 8 bytes", complaint.quoted == 8),
        ("an error with some bytes", (9..64).contains(&complaint.quoted)),
        ("an error with all", complaint.quoted > 64),
        ("an error with an extension", complaint.is_extended),
        ("a redirect", complaint.is_redirect()),
    ];
    all.into_iter().filter_map(|(what, is_so)| is_so.then_some(what))
}
