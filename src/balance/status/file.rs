//! `file`: a number, or an agent's words, in the first line of a file that somebody else writes.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::answer::{told, unreached};
use super::blocking::Blocking;
use super::template::Template;
use super::{Failure, Instance, Pending, Reading, StatusObject, words};

/// Bytes of the largest file that is read.
const LARGEST: usize = 4096;

/// What the file says.
#[derive(Debug)]
pub(super) struct File {
    pub(super) path: Template,
    /// Older than this it is stale; `None`: it never is.
    pub(super) most_age: Option<Duration>,
    pub(super) blocking: Blocking,
}

impl StatusObject for File {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        let path = PathBuf::from(self.path.fill(instance.address));
        let most_age = self.most_age;
        Box::pin(self.blocking.run(move |_| read(&path, most_age)))
    }
}

fn read(path: &Path, most_age: Option<Duration>) -> Result<Reading, Failure> {
    // A pipe that nobody writes to must not hold the reader.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(|error| unreached(&error))?;
    let metadata = file.metadata().map_err(|error| unreached(&error))?;
    if !metadata.is_file() {
        return Err(told("no regular file", "a file"));
    }
    if let (Some(most), Ok(modified)) = (most_age, metadata.modified())
        && SystemTime::now().duration_since(modified).is_ok_and(|age| age > most)
    {
        return Err(Failure::Stale);
    }
    let mut bytes = Vec::new();
    file.take(LARGEST as u64 + 1).read_to_end(&mut bytes).map_err(|error| unreached(&error))?;
    if bytes.len() > LARGEST {
        return Err(Failure::TooMuch(LARGEST));
    }
    words::read(&String::from_utf8_lossy(&bytes), true)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::lab::Scratch;

    #[test]
    fn the_first_line_of_a_young_file_of_fair_size() {
        let scratch = Scratch::new().expect("a directory");
        let path = scratch.path().join("load");
        let read = |most_age| super::read(&path, most_age);
        assert!(matches!(read(None), Err(Failure::Unreached(_))));
        fs::write(&path, "12 drain\nup\n").expect("a file");
        let reading = read(None).expect("a line");
        assert_eq!((reading.value, reading.words.is_up), (Some(12.0), None));
        assert!(reading.words.administrative.is_some());
        assert_eq!(read(Some(Duration::from_secs(60))), Ok(reading));
        let file = fs::File::options().write(true).open(&path).expect("a file");
        file.set_modified(SystemTime::now() - Duration::from_secs(90)).expect("an older time");
        assert_eq!(read(Some(Duration::from_secs(60))), Err(Failure::Stale));
        for (text, is_answer) in [("", true), ("much", true), (&"1".repeat(5000), false)] {
            fs::write(&path, text).expect("a file");
            let failure = read(None).expect_err("no line of ours");
            assert_eq!(matches!(failure, Failure::Answer { .. }), is_answer, "{failure}");
        }
    }

    #[test]
    fn what_is_no_regular_file_holds_nobody() {
        let scratch = Scratch::new().expect("a directory");
        let made = std::process::Command::new("mkfifo").arg(scratch.path().join("pipe")).status();
        assert!(made.expect("coreutils").success());
        for path in [scratch.path().join("pipe"), scratch.path().to_owned(), "/dev/zero".into()] {
            assert!(matches!(read(&path, None), Err(Failure::Answer { .. })), "{path:?}");
        }
    }
}
