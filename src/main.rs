//! Parses the command line and calls one command of `vipa::cli`.

fn main() {}
