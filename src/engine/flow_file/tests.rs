//! Every file that a forwarder can come upon at its start.

use std::ffi::CString;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

use super::*;

const LAYOUT: Layout = Layout { version: 3, workers: 2, words_per_worker: 700 };

/// A directory of its own for each test, gone with it.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("vipa-{test}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Directory(path)
    }

    fn flows(&self) -> PathBuf {
        self.0.join("vipa0.flows")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn open(path: &Path, layout: Layout) -> (FlowFile, Adopted) {
    FlowFile::open(path, "vipa0", layout).unwrap()
}

/// Makes a file with a mark in it, lets `change` work on it, and opens it again: the mark must be gone, and
/// the file be as good as new.
fn discarded_after(test: &str, change: impl FnOnce(&File)) -> Misfit {
    let directory = Directory::new(test);
    let path = directory.flows();
    let (before, _) = open(&path, LAYOUT);
    before.words(WorkerId(1)).unwrap()[699].store(77, Ordering::Relaxed);
    change(&OpenOptions::new().read(true).write(true).open(&path).unwrap());
    let (after, adopted) = open(&path, LAYOUT);
    let words: Vec<_> = (0..2).flat_map(|worker| after.words(WorkerId(worker)).unwrap()).collect();
    assert_eq!(words.len(), 1400);
    assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
    assert_ne!(after.seed(), before.seed());
    assert_eq!(open(&path, LAYOUT).1, Adopted::Adopted);
    match adopted {
        Adopted::Discarded(misfit) => misfit,
        other => panic!("{other:?}"),
    }
}

/// Writes header words and a right checksum, as another version or machine would have.
fn rewrite(file: &File, changes: &[(usize, u64)]) {
    let mut bytes = [0; 8 * HEADER_WORDS];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let mut header: Vec<u64> =
        bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect();
    for (word, value) in changes {
        header[*word] = *value;
    }
    header[11] = checksum(&header[1..11]);
    let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    file.write_all_at(&bytes, 0).unwrap();
}

#[test]
fn words_and_seed_outlive_their_forwarder() {
    let directory = Directory::new("adopt");
    let path = directory.flows();
    let (first, adopted) = open(&path, LAYOUT);
    assert_eq!(adopted, Adopted::Fresh);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    for worker in 0..2 {
        let words = first.words(WorkerId(worker)).unwrap();
        assert_eq!(words.len(), 700);
        for (at, word) in words.iter().enumerate() {
            word.store(u64::from(worker) * 1_000 + at as u64, Ordering::Relaxed);
        }
    }
    assert!(first.words(WorkerId(2)).is_none());

    let (second, adopted) = open(&path, LAYOUT);
    assert_eq!(adopted, Adopted::Adopted);
    assert_eq!(second.seed(), first.seed());
    for worker in 0..2 {
        let words = second.words(WorkerId(worker)).unwrap();
        for (at, word) in words.iter().enumerate() {
            assert_eq!(word.load(Ordering::Relaxed), u64::from(worker) * 1_000 + at as u64);
        }
    }
}

#[test]
fn every_page_is_in_place_from_the_start() {
    let directory = Directory::new("blocks");
    open(&directory.flows(), LAYOUT);
    let metadata = fs::metadata(directory.flows()).unwrap();
    assert_eq!(metadata.len(), 4096 + 2 * 8192);
    assert!(metadata.blocks() * 512 >= metadata.len());
}

#[test]
fn a_torn_header_starts_empty() {
    let torn = discarded_after("torn-magic", |file| file.write_all_at(&[0; 8], 0).unwrap());
    assert_eq!(torn, Misfit::Torn);
    for word in 1..HEADER_WORDS as u64 {
        let torn = discarded_after("torn-word", |file| {
            file.write_all_at(b"\x55\xaa\x55\xaa", word * 8 + 2).unwrap();
        });
        assert_eq!(torn, Misfit::Torn, "word {word}");
    }
    let torn = discarded_after("torn-zero", |file| {
        file.write_all_at(&[0; 4096 + 2 * 8192], 0).unwrap();
    });
    assert_eq!(torn, Misfit::Torn);
}

#[test]
fn an_older_or_newer_layout_starts_empty_and_says_which() {
    let older = discarded_after("older", |file| rewrite(file, &[(1, 2)]));
    assert_eq!(older.to_string(), "it was written by an older version (layout 2, not 3)");
    // A newer version may have other words behind its version; none of them is looked at.
    let newer = discarded_after("newer", |file| rewrite(file, &[(1, 4), (4, 9), (7, 9), (9, 9)]));
    assert_eq!(newer.to_string(), "it was written by a newer version (layout 4, not 3)");
}

#[test]
fn a_foreign_file_starts_empty() {
    assert_eq!(discarded_after("boot", |file| rewrite(file, &[(4, 1)])), Misfit::Boot);
    assert_eq!(discarded_after("netns", |file| rewrite(file, &[(6, 1)])), Misfit::Namespace);
    assert_eq!(discarded_after("adapter", |file| rewrite(file, &[(9, 1)])), Misfit::Adapter);
}

#[test]
fn another_number_of_workers_or_flows_starts_empty() {
    let directory = Directory::new("numbers");
    let path = directory.flows();
    open(&path, LAYOUT);
    let (_, adopted) = open(&path, Layout { workers: 3, ..LAYOUT });
    assert_eq!(adopted, Adopted::Discarded(Misfit::Workers { found: 2, wanted: 3 }));
    let (file, adopted) = open(&path, Layout { workers: 3, words_per_worker: 10, ..LAYOUT });
    assert_eq!(adopted, Adopted::Discarded(Misfit::Capacity { found: 700, wanted: 10 }));
    assert_eq!(file.words(WorkerId(2)).unwrap().len(), 10);
}

#[test]
fn a_truncated_file_starts_empty() {
    let wanted = 4096 + 2 * 8192;
    for found in [0, 1, 4095, 4096, wanted - 1, wanted + 1] {
        let misfit = discarded_after("truncated", |file| file.set_len(found).unwrap());
        assert_eq!(misfit, Misfit::Size { found, wanted });
    }
}

#[test]
fn a_file_that_others_could_write_to_starts_empty() {
    let misfit = discarded_after("mode", |file| {
        file.set_permissions(fs::Permissions::from_mode(0o620)).unwrap();
    });
    assert_eq!(misfit, Misfit::Writable);
}

#[test]
fn what_is_not_our_file_is_not_touched() {
    let directory = Directory::new("foreign");
    let path = directory.flows();
    let refused = |found: &str| match FlowFile::open(&path, "vipa0", LAYOUT) {
        Err(error @ Error::Foreign { .. }) => assert!(error.to_string().contains(found), "{error}"),
        other => panic!("{other:?}"),
    };
    let target = directory.0.join("target");
    fs::write(&target, "precious").unwrap();
    symlink(&target, &path).unwrap();
    refused("a symbolic link");
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    refused("a directory");
    fs::remove_dir(&path).unwrap();

    fs::write(&path, "another's").unwrap();
    std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
    refused("a file of user 4711");
    assert_eq!(fs::read(&path).unwrap(), b"another's");
}

/// Puts a tmpfs of `size` over `directory`, to be seen by this thread alone.
fn mount_small_tmpfs(directory: &Path, size: &str) {
    let checked = |result| assert_eq!(result, 0, "{}", io::Error::last_os_error());
    let target = CString::new(directory.to_str().unwrap()).unwrap();
    let options = CString::new(format!("size={size}")).unwrap();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    let none = ptr::null();
    // SAFETY: all strings are C strings that live until the call returns.
    unsafe {
        checked(libc::unshare(libc::CLONE_NEWNS));
        checked(libc::mount(none, c"/".as_ptr(), none, private, none.cast()));
        let tmpfs = c"tmpfs".as_ptr();
        checked(libc::mount(tmpfs, target.as_ptr(), tmpfs, 0, options.as_ptr().cast()));
    }
}

/// In a thread of its own, on a tmpfs of this size.
fn in_a_small_tmpfs(test: &str, size: &str, work: impl FnOnce(&Directory) + Send) {
    let directory = Directory::new(test);
    let mounted = || {
        mount_small_tmpfs(&directory.0, size);
        work(&directory);
    };
    std::thread::scope(|scope| scope.spawn(mounted).join()).unwrap();
}

#[test]
fn a_full_tmpfs_is_an_error_at_start() {
    in_a_small_tmpfs("tmpfs", "256k", |directory| {
        let path = directory.flows();
        let big = Layout { words_per_worker: 100_000, ..LAYOUT };
        let error = FlowFile::open(&path, "vipa0", big).unwrap_err();
        assert!(matches!(error, Error::NoRoom { .. }), "{error}");
        assert!(error.to_string().ends_with("no room for 1609728 bytes of flow table"), "{error}");
        assert!(!path.exists());

        // What fits, fits; and its holes are filled before it is adopted, or it is an error.
        open(&path, LAYOUT);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(4096).unwrap();
        file.set_len(4096 + 2 * 8192).unwrap();
        fs::write(directory.0.join("fill"), vec![1; 1 << 20]).unwrap_err();
        let error = FlowFile::open(&path, "vipa0", LAYOUT).unwrap_err();
        assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    });
}

#[test]
fn a_tmpfs_too_small_for_all_its_huge_pages_has_its_room_again() {
    in_a_small_tmpfs("huge", "3m", |directory| {
        let path = directory.flows();
        let big = Layout { words_per_worker: 300_000, ..LAYOUT };
        let error = FlowFile::open(&path, "vipa0", big).unwrap_err();
        assert!(matches!(error, Error::NoRoom { .. }), "{error}");
        assert!(!path.exists());
        fs::write(directory.0.join("fill"), vec![1; 5 << 19]).unwrap();
    });
}

fn words_of(file: &FlowFile) -> impl Iterator<Item = &'static AtomicU64> {
    [0, 1].map(|worker| file.words(WorkerId(worker)).unwrap()).into_iter().flatten()
}

#[test]
fn a_large_table_lies_in_huge_pages_and_keeps_its_words() {
    // tmpfs, mounted without huge pages as everywhere.
    let path = PathBuf::from(format!("/dev/shm/vipa-huge-{}", std::process::id()));
    let layout = Layout { version: 3, workers: 2, words_per_worker: 3 * HUGE_PAGE / 8 + 700 };
    let (before, adopted) = open(&path, layout);
    assert_eq!(adopted, Adopted::Fresh);
    for (value, word) in (1..).zip(words_of(&before)) {
        assert_eq!(word.load(Ordering::Relaxed), 0);
        word.store(value, Ordering::Relaxed);
    }
    let (after, adopted) = open(&path, layout);
    fs::remove_file(&path).unwrap();
    assert_eq!(adopted, Adopted::Adopted);
    assert!((1..).zip(words_of(&after)).all(|(value, word)| word.load(Ordering::Relaxed) == value));
    words_of(&after).for_each(|word| word.store(7, Ordering::Relaxed));
    assert!(words_of(&before).all(|word| word.load(Ordering::Relaxed) == 7), "one and the same");

    // Each mapping of it, the adopted one too.
    let mappings = fs::read_to_string("/proc/self/smaps").unwrap();
    let ours: Vec<&str> = mappings.split(path.to_str().unwrap()).skip(1).collect();
    assert_eq!(ours.len(), 2);
    for mapping in ours {
        let huge = mapping.lines().find_map(|line| line.strip_prefix("ShmemPmdMapped:")).unwrap();
        assert_ne!(huge.trim(), "0 kB");
    }
}
