//! Parses the command line and calls one command of `vipa::cli`.

use std::process::ExitCode;

use clap::Parser;
use vipa::cli::{Arguments, call};

fn main() -> ExitCode {
    call(&Arguments::parse())
}
