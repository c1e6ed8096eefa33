//! `maildir`: messages, mailboxes or bytes of mail below a directory, where mailboxes are Maildirs (cr.yp.to's format;
//! Maildir++ for what a file's name tells of its size).

use std::fs;
use std::path::{Path, PathBuf};

use super::answer::{told, unreached};
use super::blocking::{Blocking, Stop};
use super::template::Template;
use super::{Failure, Instance, Pending, Reading, StatusObject};

/// Directories below directories that are gone into.
const DEEPEST: usize = 16;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// In `new` and `cur`.
    Messages,
    /// Directories that have a `new` and a `cur`.
    Mailboxes,
    /// Of these messages.
    Bytes,
}

/// Walks the tree each time.
#[derive(Debug)]
pub(super) struct Maildir {
    pub(super) path: Template,
    pub(super) count: Count,
    /// Files and directories that are looked at; a larger tree is no answer.
    pub(super) most: usize,
    pub(super) blocking: Blocking,
}

impl StatusObject for Maildir {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        let path = PathBuf::from(self.path.fill(instance.address));
        let (count, most) = (self.count, self.most);
        Box::pin(self.blocking.run(move |stop| {
            let mut walk = Walk { count, left: most, most, total: 0, stop };
            walk.directory(&path, 0)?;
            Ok(Reading { value: Some(walk.total as f64), ..Reading::default() })
        }))
    }
}

struct Walk<'a> {
    count: Count,
    left: usize,
    most: usize,
    total: u64,
    stop: &'a Stop,
}

impl Walk<'_> {
    /// A directory that vanishes while the tree is walked is empty; the topmost has to be there.
    fn directory(&mut self, path: &Path, depth: usize) -> Result<(), Failure> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if depth > 0 && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(());
            }
            Err(error) => return Err(unreached(&error)),
        };
        let (mut below, mut has) = (Vec::new(), (false, false));
        for entry in entries {
            let entry = entry.map_err(|error| unreached(&error))?;
            self.look()?;
            // Links are not followed: they may lead in circles.
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            match entry.file_name().to_str() {
                Some("new") => has.0 = true,
                Some("cur") => has.1 = true,
                Some("tmp") => {}
                _ => below.push(entry.path()),
            }
        }
        if has == (true, true) {
            match self.count {
                Count::Mailboxes => self.total += 1,
                _ => {
                    self.messages(&path.join("new"))?;
                    self.messages(&path.join("cur"))?;
                }
            }
        } else {
            // They are names as others are.
            below.extend(has.0.then(|| path.join("new")));
            below.extend(has.1.then(|| path.join("cur")));
        }
        if depth < DEEPEST {
            below.iter().try_for_each(|path| self.directory(path, depth + 1))?;
        }
        Ok(())
    }

    fn messages(&mut self, path: &Path) -> Result<(), Failure> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(unreached(&error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| unreached(&error))?;
            self.look()?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".")
                || !entry.file_type().is_ok_and(|kind| kind.is_file())
            {
                continue;
            }
            self.total += match self.count {
                Count::Bytes => size_in_name(&name.to_string_lossy())
                    .or_else(|| Some(entry.metadata().ok()?.len()))
                    .unwrap_or(0),
                _ => 1,
            };
        }
        Ok(())
    }

    /// One more of them, if so many are allowed and anybody waits still.
    fn look(&mut self) -> Result<(), Failure> {
        if self.stop.is_stopped() {
            return Err(Failure::Timeout);
        }
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            told("a larger tree", format!("at most {} files and directories", self.most))
        })?;
        Ok(())
    }
}

/// Maildir++: `,S=1234` in the name is the size.
fn size_in_name(name: &str) -> Option<u64> {
    let (_, rest) = name.split_once(",S=")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::balance::status::tests::{block_on, instance};
    use crate::lab::Scratch;

    fn read(path: &Path, count: Count, most: usize) -> Result<f64, Failure> {
        let path = Template::parse(&path.display().to_string()).expect("a path");
        let mut maildir = Maildir { path, count, most, blocking: Blocking::default() };
        let reading = block_on(maildir.read(&instance("127.0.0.1:1")))?;
        Ok(reading.value.expect("a value"))
    }

    #[test]
    fn a_tree_of_mailboxes_is_counted() {
        let scratch = Scratch::new().expect("a directory");
        let root = scratch.path().join("mail");
        for mailbox in ["ann", "ann/.Sent", "bob", "example.org/eve"] {
            for part in ["new", "cur", "tmp"] {
                fs::create_dir_all(root.join(mailbox).join(part)).expect("a directory");
            }
        }
        let write =
            |path: &str, size| fs::write(root.join(path), vec![b'x'; size]).expect("a file");
        write("ann/new/1.a.host", 10);
        write("ann/cur/2.b.host,S=2000:2,S", 5);
        write("ann/.Sent/cur/3.c.host:2,S", 100);
        write("example.org/eve/cur/4.d.host,W=9:2,", 1);
        // None of these counts.
        write("ann/tmp/5.e.host", 1000);
        write("ann/new/.hidden", 1000);
        write("ann/dovecot.index", 1000);
        fs::create_dir_all(root.join("bob/new/odd")).expect("a directory");
        fs::create_dir_all(root.join("empty/new")).expect("a directory");
        symlink(&root, root.join("bob/circle")).expect("a link");
        assert_eq!(read(&root, Count::Mailboxes, 1000), Ok(4.0));
        assert_eq!(read(&root, Count::Messages, 1000), Ok(4.0));
        assert_eq!(read(&root, Count::Bytes, 1000), Ok(2111.0));
        assert_eq!(read(&root.join("ann"), Count::Mailboxes, 1000), Ok(2.0));
        assert!(matches!(read(&root, Count::Messages, 10), Err(Failure::Answer { .. })));
        assert!(matches!(read(&root.join("no"), Count::Bytes, 10), Err(Failure::Unreached(_))));
    }
}
