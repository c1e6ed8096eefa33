//! BIND's named, in a network, for the zone vipa.test.

use std::path::Path;

/// It listens here, on every address.
pub(crate) const PORT: u16 = 5300;

/// Writes into `home` what named needs, with these `records` beside the zone's own; its arguments.
pub(crate) fn set_up(home: &Path, records: &str) -> [String; 3] {
    let at = home.display();
    let options = format!(
        "options {{ directory \"{at}\"; pid-file none; session-keyfile none; managed-keys-directory \"{at}\";\n\
         listen-on port {PORT} {{ any; }}; listen-on-v6 port {PORT} {{ any; }};\n\
         recursion no; dnssec-validation no; }};\ncontrols {{ }};\n\
         zone \"vipa.test\" {{ type primary; file \"{at}/zone\"; }};\n"
    );
    let zone = "$TTL 60\n@ IN SOA ns admin 1 60 60 60 60\n@ IN NS ns\nns IN A 192.0.2.1\n";
    let config = home.join("named.conf");
    std::fs::write(&config, options).expect("a directory takes files");
    std::fs::write(home.join("zone"), format!("{zone}{records}")).expect("a directory takes files");
    ["-g".to_owned(), "-c".to_owned(), config.display().to_string()]
}
