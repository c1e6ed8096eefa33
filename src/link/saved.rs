//! What `vipa down` needs to know: originals of kernel settings and where our things stand. One file for
//! each adapter and network namespace, written whole and durably before the first change; it outlives
//! crashes and restarts and goes with `down`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::rules::{all_tables, preferences};
use super::sysctl::{Sysctl, Wanted};
use crate::config::Config;
use crate::wire::ip::Family;

/// Layout of the file.
const VERSION: u32 = 1;

/// An original value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// Below `/proc/sys`.
    pub path: String,
    /// The device that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The device's index then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ifindex: Option<u32>,
    /// The text before our first change.
    pub original: String,
    /// Ports that we added to the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<(u16, u16)>,
}

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    version: u32,
    /// Name of the adapter.
    pub adapter: String,
    /// Tables in which our routes may stand, the current one first.
    pub tables: Vec<u32>,
    /// First preferences of the blocks in which our rules may stand, the current one first.
    pub preferences: Vec<u32>,
    /// VIPAs that we may have given to the adapter.
    pub addresses: Vec<IpAddr>,
    /// Families whose rule of the `local` table we moved from its place.
    pub moved_local: Vec<Family>,
    /// Original settings.
    pub sysctls: Vec<Original>,
    /// Of `tables` those that no earlier run had.
    #[serde(skip)]
    pub fresh_tables: Vec<u32>,
    #[serde(skip)]
    file: PathBuf,
    #[serde(skip)]
    is_changed: bool,
}

impl Saved {
    /// The file of an earlier run, brought up to `config`, or a new one; true if it was there. Nothing is
    /// written yet.
    pub fn open(state: &Path, config: &Config) -> io::Result<(Saved, bool)> {
        let file = file_of(state, &config.adapter.name)?;
        let (mut saved, is_adopted) = match fs::read(&file) {
            Ok(bytes) => (Saved::parse(&bytes, file)?, true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let fresh = Saved {
                    version: VERSION,
                    adapter: config.adapter.name.clone(),
                    tables: Vec::new(),
                    preferences: Vec::new(),
                    addresses: Vec::new(),
                    moved_local: Vec::new(),
                    sysctls: Vec::new(),
                    fresh_tables: Vec::new(),
                    file,
                    is_changed: true,
                };
                (fresh, false)
            }
            Err(e) => return Err(e),
        };
        saved.follow(config);
        Ok((saved, is_adopted))
    }

    /// Brings it up to another configuration of the same adapter.
    pub fn follow(&mut self, config: &Config) {
        let saved = self;
        let before = saved.clone();
        for table in all_tables(config).into_iter().rev() {
            to_front(&mut saved.tables, table);
        }
        to_front(&mut saved.preferences, config.adapter.preference);
        saved.fresh_tables =
            saved.tables.iter().copied().filter(|table| !before.tables.contains(table)).collect();
        for address in &config.adapter.addresses {
            if !saved.addresses.contains(address) {
                saved.addresses.push(*address);
            }
        }
        saved.is_changed |= saved.tables != before.tables
            || saved.preferences != before.preferences
            || saved.addresses != before.addresses;
    }

    /// Where the file is.
    pub fn directory(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("."))
    }

    /// The files of other adapters of this network namespace.
    pub fn others(&self) -> io::Result<Vec<Saved>> {
        let mut found = Saved::find(self.directory(), None)?;
        found.retain(|other| other.adapter != self.adapter);
        Ok(found)
    }

    /// Another adapter among `others` that has a table or preferences of this one, and which: each would put its own in the other's
    /// place, for ever.
    pub fn clash<'a>(&self, others: &'a [Saved]) -> Option<(&'a str, String)> {
        others.iter().find_map(|other| {
            let table = self.tables.iter().find(|table| other.tables.contains(table));
            let is_had = |first: &&u32| {
                let is_in = |at, of| preferences(of).contains(&at);
                other.preferences.iter().any(|of| is_in(**first, *of) || is_in(*of, **first))
            };
            let what = match (table, self.preferences.iter().find(is_had)) {
                (Some(table), _) => format!("table {table}"),
                (None, Some(first)) => format!("preferences among the hundred from {first} on"),
                (None, None) => return None,
            };
            Some((other.adapter.as_str(), what))
        })
    }

    /// All files of this network namespace, or that of one adapter.
    pub fn find(state: &Path, adapter: Option<&str>) -> io::Result<Vec<Saved>> {
        let suffix = format!(".{}.saved", namespace()?);
        let entries = match fs::read_dir(state) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|n| n.strip_suffix(&suffix)) else { continue };
            if adapter.is_none_or(|wanted| wanted == name) {
                let file = entry.path();
                found.push(Saved::parse(&fs::read(&file)?, file)?);
            }
        }
        Ok(found)
    }

    fn parse(bytes: &[u8], file: PathBuf) -> io::Result<Saved> {
        let wrong = |why: String| {
            let text = format!("{} is not what vipa wrote: {why}", file.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let mut saved: Saved = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
        if saved.version != VERSION {
            return Err(wrong(format!("its layout is {}, wanted {VERSION}", saved.version)));
        }
        saved.file = file;
        Ok(saved)
    }

    /// The path of the file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Remembers an original, unless that of this very setting is known.
    pub fn remember(&mut self, sysctl: &Sysctl, found: &str) {
        let ifindex = sysctl.ifindex();
        let reserved = match &sysctl.wanted {
            Wanted::Reserved(ports) => Some((*ports.start(), *ports.end())),
            Wanted::Exactly(_) => None,
        };
        let is_known = |o: &&mut Original| o.path == sysctl.path && o.ifindex == ifindex;
        if let Some(known) = self.sysctls.iter_mut().find(is_known) {
            // The ports may have changed with the configuration; what was there before us has not.
            let all = reserved.map(|(first, last)| match known.reserved {
                Some((f, l)) => (f.min(first), l.max(last)),
                None => (first, last),
            });
            self.is_changed |= known.reserved != all;
            known.reserved = all;
            return;
        }
        self.sysctls.retain(|o| o.path != sysctl.path);
        self.sysctls.push(Original {
            path: sysctl.path.clone(),
            device: sysctl.device.as_ref().map(|(name, _)| name.clone()),
            ifindex,
            original: found.to_owned(),
            reserved,
        });
        self.is_changed = true;
    }

    /// Takes out what is known of settings of which `is_over` says that they are as they were again.
    pub fn forget(&mut self, is_over: impl Fn(&Original) -> bool) {
        let before = self.sysctls.len();
        self.sysctls.retain(|original| !is_over(original));
        self.is_changed |= self.sysctls.len() != before;
    }

    /// Remembers that the `local` table's rule of this family is about to be moved.
    pub fn remember_local(&mut self, family: Family) {
        if !self.moved_local.contains(&family) {
            self.moved_local.push(family);
            self.is_changed = true;
        }
    }

    /// Writes the file if it changed: whole or not at all, and on disk when this returns.
    pub fn store(&mut self) -> io::Result<()> {
        if !self.is_changed {
            return Ok(());
        }
        let directory = self.file.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let draft = self.file.with_extension("saved.new");
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::from)?;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&draft, &self.file)?;
        File::open(directory)?.sync_all()?;
        self.is_changed = false;
        Ok(())
    }

    /// Removes the file, and with it all that vipa remembers of the adapter in this namespace: the flow
    /// table and whatever else bears their names.
    pub fn remove(&self) -> io::Result<()> {
        for extension in ["flows", "sock", "saved.new", "saved"] {
            match fs::remove_file(self.file.with_extension(extension)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

fn to_front(list: &mut Vec<u32>, value: u32) {
    list.retain(|v| *v != value);
    list.insert(0, value);
}

/// `STATE/<adapter>.<namespace>.saved`; other files of the adapter differ in the extension alone.
pub fn file_of(state: &Path, adapter: &str) -> io::Result<PathBuf> {
    Ok(state.join(format!("{adapter}.{}.saved", namespace()?)))
}

/// Inode of the network namespace of the calling thread.
pub fn namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(directory: &Path) -> Saved {
        Saved {
            version: VERSION,
            adapter: "vipa0".into(),
            tables: vec![923],
            preferences: vec![9230],
            addresses: Vec::new(),
            moved_local: Vec::new(),
            sysctls: Vec::new(),
            fresh_tables: Vec::new(),
            file: file_of(directory, "vipa0").expect("the namespace has an inode"),
            is_changed: true,
        }
    }

    #[test]
    fn two_adapters_share_neither_a_table_nor_preferences() {
        let ours = saved(&directory("clash"));
        let other = |table, first| Saved {
            adapter: "vipa1".into(),
            tables: vec![table],
            preferences: vec![first],
            ..ours.clone()
        };
        let clash = |table, first| {
            let others = [other(table, first)];
            ours.clash(&others).map(|(adapter, what)| format!("{adapter}: {what}"))
        };
        assert_eq!((clash(930, 9330), clash(930, 9130)), (None, None));
        assert_eq!(clash(923, 9330).as_deref(), Some("vipa1: table 923"));
        for first in [9230, 9131, 9329] {
            let told = "vipa1: preferences among the hundred from 9230 on";
            assert_eq!(clash(930, first).as_deref(), Some(told));
        }
    }

    fn directory(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("vipa-saved-{name}-{}", std::process::id()))
    }

    #[test]
    fn the_first_original_of_a_device_stays_and_a_new_device_has_its_own() {
        let mut saved = saved(&directory("originals"));
        let of = |index| Sysctl::of_device("ipv4", "eth1", index, "rp_filter", "2");
        saved.remember(&of(5), "1");
        saved.remember(&of(5), "2");
        assert_eq!(saved.sysctls[0].original, "1");
        saved.remember(&of(9), "0");
        assert_eq!(saved.sysctls.len(), 1);
        assert_eq!((saved.sysctls[0].ifindex, saved.sysctls[0].original.as_str()), (Some(9), "0"));
    }

    #[test]
    fn what_was_stored_is_found_again_and_only_its_owner_may_read_it() {
        let directory = directory("stored");
        let mut saved = saved(&directory);
        saved.remember(&Sysctl::of_device("ipv4", "eth1", 5, "rp_filter", "2"), "1");
        saved.store().expect("the temporary directory can be written");
        let mode = |path: &Path| fs::metadata(path).expect("it exists").mode() & 0o777;
        assert_eq!((mode(&directory), mode(saved.file())), (0o700, 0o600));
        let found = Saved::find(&directory, None).expect("it can be read");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].sysctls, saved.sysctls);
        assert!(Saved::find(&directory, Some("vipa1")).expect("no error").is_empty());
        fs::write(saved.file(), b"{").expect("it can be written");
        let error = Saved::find(&directory, None).expect_err("it is torn");
        assert!(error.to_string().contains("vipa0."), "{error}");
        saved.remove().expect("it can be removed");
        saved.remove().expect("removing twice is no error");
        fs::remove_dir(&directory).expect("it is empty");
    }
}
