//! Parses the command line and calls one command of `vipa::cli`.

fn main() -> std::process::ExitCode {
    let json = std::env::args().any(|a| a == "--json");
    match vipa::cli::demo::run(json) {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
        Err(e) => {
            eprintln!("vipa: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}
