//! A configuration file: any text is taken or refused in words, each with its place in the file.

use std::path::Path;

use vipa::config::{Config, Errors};

pub(crate) fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines = text.lines().count() + 1;
    match Config::parse(text, Path::new("vipa.toml")) {
        Ok((config, warnings)) => {
            assert!((1..=64).contains(&config.nics.len()));
            assert!((1..=64).contains(&config.forwarder.workers));
            assert!(config.nics.iter().all(|nic| (1..=1000).contains(&nic.weight)));
            assert!(!config.adapter.addresses.is_empty() && !config.source.ports.is_empty());
            for warning in warnings {
                assert!((1..=lines).contains(&warning.mistake().line));
                assert!(!warning.render(true).is_empty());
            }
        }
        Err(errors) => {
            assert!(matches!(errors, Errors::Mistakes(_)), "{errors}");
            assert!(!errors.mistakes().is_empty());
            for mistake in errors.mistakes() {
                assert!((1..=lines).contains(&mistake.line) && mistake.column >= 1);
                assert!(!mistake.wanted.is_empty() && !mistake.found.is_empty());
                assert!(!mistake.found.contains('\n'));
            }
            assert!(!errors.render(false).is_empty() && !errors.render(true).is_empty());
        }
    }
}
