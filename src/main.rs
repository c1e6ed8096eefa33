//! Parses the command line and calls one command of `vipa::cli`.

use std::process::ExitCode;

use clap::Parser;
use vipa::cli::{Arguments, call};
use vipa::engine::guard;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    // Before anything else: the guard has to stay tiny.
    if args.next().is_some_and(|command| command == guard::SUBCOMMAND) {
        return guard::guard_main(args);
    }
    call(&Arguments::parse())
}
