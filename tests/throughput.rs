//! What the bench `throughput` makes of its figures: medians and ratios, verdicts, tables, picture and page. Its parts without a clock
//! and without sockets are taken from there with their tests. (`tools/test` runs the bench itself once.)

#![allow(clippy::unwrap_used, dead_code, unreachable_pub, unused_imports)]

#[path = "../bench/throughput/report/mod.rs"]
mod report;
