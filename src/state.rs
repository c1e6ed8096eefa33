//! Where a forwarder leaves what outlives it.
//!
//! Names hold the adapter and the inode of the network namespace: forwarders of several namespaces share
//! one directory.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where state is kept if neither `--state` nor `$RUNTIME_DIRECTORY` says so.
const DEFAULT_DIRECTORY: &str = "/run/vipa";

/// What is kept for an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The values of the host's settings before vipa changed them.
    Saved,
    /// The flow table.
    Flows,
    /// The control socket.
    Socket,
}

impl Kept {
    const ALL: [Kept; 3] = [Kept::Saved, Kept::Flows, Kept::Socket];

    fn extension(self) -> &'static str {
        match self {
            Kept::Saved => "saved",
            Kept::Flows => "flows",
            Kept::Socket => "sock",
        }
    }
}

/// The state of one network namespace's adapters.
#[derive(Clone, Debug)]
pub struct State {
    directory: PathBuf,
    namespace: u64,
}

impl State {
    /// The state of the calling thread's network namespace in `explicit`, else in the first directory of
    /// `$RUNTIME_DIRECTORY`, else in /run/vipa. Nothing is made yet.
    ///
    /// # Errors
    /// /proc does not name the namespace.
    pub fn locate(explicit: Option<&Path>) -> io::Result<State> {
        let directory = match explicit {
            Some(directory) => directory.to_owned(),
            None => runtime_directory().unwrap_or_else(|| DEFAULT_DIRECTORY.into()),
        };
        let namespace = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
        Ok(State { directory, namespace })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Inode of the network namespace.
    pub fn namespace(&self) -> u64 {
        self.namespace
    }

    /// Makes the directory if it is missing; only its owner may write there.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn create(&self) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.directory)
    }

    /// Where `kept` of `adapter` lies.
    pub fn path(&self, adapter: &str, kept: Kept) -> PathBuf {
        self.directory.join(format!("{adapter}.{}.{}", self.namespace, kept.extension()))
    }

    /// The adapters of this namespace of which anything is kept, sorted. A missing directory holds none.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn adapters(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut adapters = Vec::new();
        for entry in entries {
            if let Some(adapter) = entry?.file_name().to_str().and_then(|name| self.adapter(name)) {
                adapters.push(adapter.to_owned());
            }
        }
        adapters.sort_unstable();
        adapters.dedup();
        Ok(adapters)
    }

    /// The adapter of `<adapter>.<namespace>.<extension>`; its name may hold dots.
    fn adapter<'n>(&self, file_name: &'n str) -> Option<&'n str> {
        let (rest, extension) = file_name.rsplit_once('.')?;
        let (adapter, namespace) = rest.rsplit_once('.')?;
        let is_ours = namespace.parse() == Ok(self.namespace)
            && Kept::ALL.iter().any(|kept| kept.extension() == extension);
        (is_ours && !adapter.is_empty()).then_some(adapter)
    }
}

fn runtime_directory() -> Option<PathBuf> {
    let listed = std::env::var("RUNTIME_DIRECTORY").ok()?;
    listed.split(':').find(|directory| !directory.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn adapters_of_this_namespace_alone_are_listed() {
        let directory = std::env::temp_dir().join(format!("vipa-state-{}", std::process::id()));
        let state = State::locate(Some(&directory)).unwrap();
        assert_eq!(state.adapters().unwrap(), Vec::<String>::new());
        state.create().unwrap();
        for path in [
            state.path("vipa0", Kept::Saved),
            state.path("vipa0", Kept::Socket),
            state.path("a.b", Kept::Flows),
            directory.join("vipa1.1.saved"),
            directory.join(format!("vipa2.{}.other", state.namespace())),
            directory.join("stray"),
        ] {
            std::fs::write(path, "").unwrap();
        }
        assert_eq!(state.adapters().unwrap(), ["a.b", "vipa0"]);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
