//! What the guard sees of its parent, and what it makes of it.
//!
//! One look proves nothing: a worker may stamp in the next microsecond, and under strace every task is
//! stopped at most moments. So a symptom condemns only when two looks in a row show the *same* one: the same
//! stamp of the same worker, or the same task stopped with not a nanosecond run in between. Nor does a worker hang that waits for a
//! processor: one that wants one must have run for a while between the looks.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::time::Duration;

use crate::engine::heartbeat::{Busy, HeartbeatPage};
use crate::forward::view::WorkerId;

/// A worker that is busy without a new stamp for longer hangs.
pub const HANG: Duration = Duration::from_millis(200);
/// Between two looks while nothing is wrong.
pub const LOOK: Duration = Duration::from_millis(200);
/// Between a symptom and the look that confirms it.
pub const CONFIRM: Duration = Duration::from_millis(30);
/// What a worker that wants a processor must have run since the symptom was first seen. A turn takes far less; how long a
/// task has run the kernel may bring up to date at its ticks alone, of 10 ms at the most.
const RUN: Duration = Duration::from_millis(15);

/// What the name of a worker's thread begins with; its number follows.
pub const WORKER: &str = "worker-";

/// Why a forwarder has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symptom {
    /// A worker is busy without a beat.
    Hung {
        /// Which one.
        worker: WorkerId,
        /// Its last stamp.
        since: u64,
    },
    /// A task is stopped by a signal (`T`) or a debugger (`t`).
    Stopped {
        /// Its number.
        task: u32,
        /// Nanoseconds that it has run so far: while they stand still, it never ran in between.
        ran: u64,
    },
    /// Its core is being written, with all descriptors open.
    DumpsCore,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Look again after this time.
    LookAgain(Duration),
    /// Kill the parent.
    Kill(Symptom),
    /// The parent is gone already.
    Gone,
}

/// One look at the parent.
#[derive(Debug, Default)]
pub struct Sight {
    /// The workers that are busy.
    pub busy: Vec<Busy>,
    /// Those workers that run or want to, with the nanoseconds that they ran so far.
    pub runnable: Vec<(WorkerId, u64)>,
    /// Tasks that are stopped, and a core that is being written.
    pub stopped: Vec<Symptom>,
    /// All tasks are zombies: descriptors are closed, only a tracer still holds the process.
    pub is_gone: bool,
}

/// Remembers the symptoms of the look before.
#[derive(Debug, Default)]
pub struct Judge {
    suspected: Vec<Suspicion>,
}

#[derive(Clone, Copy, Debug)]
struct Suspicion {
    symptom: Symptom,
    /// What the worker had run when it was first seen wanting a processor.
    ran: Option<u64>,
}

impl Judge {
    /// Judges a look taken at `now_ns`. One that came late does not confirm that a worker hangs: what kept the
    /// guard from running may have kept the workers from running. It still confirms that a task is stopped.
    pub fn judge(&mut self, sight: &Sight, now_ns: u64, is_late: bool) -> Verdict {
        if sight.is_gone {
            return Verdict::Gone;
        }
        let silence = |busy: &Busy| Duration::from_nanos(now_ns.saturating_sub(busy.since));
        // What is stopped comes first: it is the cause of the beat that it misses.
        let hung = sight.busy.iter().filter(|busy| silence(busy) > HANG);
        let hung = hung.map(|busy| Symptom::Hung { worker: busy.worker, since: busy.since });
        let symptoms = sight.stopped.iter().copied().chain(hung);
        let suspect = |symptom| {
            let before = self.suspected.iter().find(|of| of.symptom == symptom);
            Suspicion { symptom, ran: before.and_then(|of| of.ran).or(sight.ran(symptom)) }
        };
        let suspicions: Vec<Suspicion> = symptoms.map(suspect).collect();
        let confirmed = suspicions.iter().find(|of| {
            let is_hung = matches!(of.symptom, Symptom::Hung { .. });
            let is_known = self.suspected.iter().any(|before| before.symptom == of.symptom);
            is_known && !(is_hung && (is_late || sight.is_starved(**of)))
        });
        if let Some(Suspicion { symptom, .. }) = confirmed {
            return Verdict::Kill(*symptom);
        }
        self.suspected = suspicions;
        if !self.suspected.is_empty() {
            return Verdict::LookAgain(CONFIRM);
        }
        // Not at the next look but when a worker that is busy now would first be overdue.
        let longest = sight.busy.iter().map(silence).max().unwrap_or_default();
        let overdue = HANG.saturating_sub(longest) + Duration::from_millis(1);
        Verdict::LookAgain(if longest.is_zero() { LOOK } else { LOOK.min(overdue) })
    }
}

impl Sight {
    /// What a worker that wants a processor has run.
    fn ran(&self, symptom: Symptom) -> Option<u64> {
        let Symptom::Hung { worker, .. } = symptom else { return None };
        self.runnable.iter().find(|(of, _)| *of == worker).map(|(_, ran)| *ran)
    }

    /// Does it want a processor, and had none, or hardly?
    fn is_starved(&self, since: Suspicion) -> bool {
        let times = self.ran(since.symptom).zip(since.ran);
        times.is_some_and(|(now, then)| Duration::from_nanos(now.saturating_sub(then)) < RUN)
    }

    /// Looks at the process `pid` through its heartbeats and /proc. A task that goes meanwhile is not seen; a
    /// process that is gone has no task.
    pub fn of(pid: u32, page: &HeartbeatPage) -> io::Result<Sight> {
        let mut sight = Sight { busy: page.busy().collect(), ..Sight::default() };
        let tasks = match fs::read_dir(format!("/proc/{pid}/task")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(sight),
            tasks => tasks?,
        };
        let (mut zombies, mut others) = (0, 0);
        let mut may_dump_core = false;
        let mut buffer = [0; 512];
        for task in tasks.flatten() {
            let Some(number) = task.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let directory = format!("/proc/{pid}/task/{number}");
            let stat = read(&format!("{directory}/stat"), &mut buffer);
            let Some(state) = state_of(stat) else { continue };
            let worker = worker_of(stat).filter(|_| state == b'R');
            match state {
                b'Z' | b'X' => zombies += 1,
                _ => others += 1,
            }
            match state {
                b'T' | b't' => {
                    let schedstat = read(&format!("{directory}/schedstat"), &mut buffer);
                    sight.stopped.push(Symptom::Stopped { task: number, ran: first_of(schedstat) });
                }
                b'R' => {
                    let Some(worker) = worker else { continue };
                    let schedstat = read(&format!("{directory}/schedstat"), &mut buffer);
                    // 0: this kernel does not count.
                    let ran = Some(first_of(schedstat)).filter(|ran| *ran > 0);
                    sight.runnable.extend(ran.map(|ran| (worker, ran)));
                }
                // The tasks of a process that writes its core wait in I; of old kernels, in D.
                b'I' | b'D' => may_dump_core = true,
                _ => {}
            }
        }
        sight.is_gone = zombies > 0 && others == 0;
        if may_dump_core {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            if status.lines().any(|line| line == "CoreDumping:\t1") {
                sight.stopped.push(Symptom::DumpsCore);
            }
        }
        Ok(sight)
    }
}

impl fmt::Display for Symptom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Symptom::Hung { worker, .. } => {
                write!(f, "worker {} was busy for {} ms without a beat", worker.0, HANG.as_millis())
            }
            Symptom::Stopped { task, .. } => write!(f, "task {task} was stopped"),
            Symptom::DumpsCore => f.write_str("it was writing its core, holding the adapter"),
        }
    }
}

/// The file's beginning; nothing if it cannot be read.
fn read<'a>(path: &str, buffer: &'a mut [u8]) -> &'a [u8] {
    let length = fs::File::open(path).and_then(|mut file| file.read(buffer)).unwrap_or(0);
    &buffer[..length]
}

/// Field 3 of /proc/PID/stat: the first after the name, which may itself hold spaces and parentheses.
fn state_of(stat: &[u8]) -> Option<u8> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(name_end + 2).copied()
}

/// Which worker a task is, by the name of its thread.
fn worker_of(stat: &[u8]) -> Option<WorkerId> {
    let begin = stat.iter().position(|byte| *byte == b'(')? + 1;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let name = std::str::from_utf8(stat.get(begin..end)?).ok()?;
    name.strip_prefix(WORKER)?.parse().ok().map(WorkerId)
}

fn first_of(numbers: &[u8]) -> u64 {
    let text = std::str::from_utf8(numbers).unwrap_or_default();
    text.split_ascii_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn busy_since(ms: u64) -> Sight {
        Sight { busy: vec![Busy { worker: WorkerId(1), since: ms * MS }], ..Sight::default() }
    }

    fn stopped(ran: u64) -> Sight {
        Sight { stopped: vec![Symptom::Stopped { task: 7, ran }], ..Sight::default() }
    }

    fn wait(ms: u64) -> Verdict {
        Verdict::LookAgain(Duration::from_millis(ms))
    }

    #[test]
    fn a_worker_that_hangs_is_found_within_235_ms_wherever_the_look_falls() {
        for first_look in 0..=200 {
            let mut judge = Judge::default();
            let mut now = 1_000 + first_look;
            let verdict = loop {
                match judge.judge(&busy_since(1_000), now * MS, false) {
                    Verdict::LookAgain(after) => now += after.as_millis() as u64,
                    verdict => break verdict,
                }
                assert!(now < 1_235, "not before {now}, first look after {first_look} ms");
            };
            assert!(now > 1_200 + 29, "killed after {} ms only", now - 1_000);
            assert!(matches!(verdict, Verdict::Kill(Symptom::Hung { worker: WorkerId(1), .. })));
        }
    }

    #[test]
    fn a_worker_that_stamps_between_the_looks_lives() {
        let mut judge = Judge::default();
        assert_eq!(judge.judge(&busy_since(1_000), 1_300 * MS, false), wait(30));
        assert_eq!(judge.judge(&busy_since(1_020), 1_330 * MS, false), wait(30));
        assert_eq!(judge.judge(&busy_since(1_360), 1_360 * MS, false), wait(200));
    }

    #[test]
    fn idle_workers_cost_five_looks_a_second() {
        assert_eq!(Judge::default().judge(&Sight::default(), 77 * MS, false), wait(200));
    }

    #[test]
    fn a_guard_that_was_late_looks_once_more_before_it_calls_a_worker_hung() {
        let mut judge = Judge::default();
        assert_eq!(judge.judge(&busy_since(1_000), 1_300 * MS, false), wait(30));
        assert_eq!(judge.judge(&busy_since(1_000), 9_000 * MS, true), wait(30));
        assert!(matches!(judge.judge(&busy_since(1_000), 9_030 * MS, false), Verdict::Kill(_)));
    }

    #[test]
    fn workers_that_ran_as_late_as_the_guard_live() {
        let mut judge = Judge::default();
        assert_eq!(judge.judge(&busy_since(1_000), 9_000 * MS, true), wait(30));
        assert_eq!(judge.judge(&busy_since(9_030), 9_030 * MS, false), wait(200));
    }

    #[test]
    fn a_stopped_task_is_no_less_stopped_for_a_late_look() {
        let mut judge = Judge::default();
        assert_eq!(judge.judge(&stopped(100), 0, true), wait(30));
        assert!(matches!(judge.judge(&stopped(100), 90 * MS, true), Verdict::Kill(_)));
    }

    #[test]
    fn a_traced_task_that_runs_between_the_looks_lives() {
        let mut judge = Judge::default();
        assert_eq!(judge.judge(&stopped(100), 0, false), wait(30));
        assert_eq!(judge.judge(&stopped(101), 30 * MS, false), wait(30));
        assert!(matches!(judge.judge(&stopped(101), 60 * MS, false), Verdict::Kill(_)));
    }

    #[test]
    fn a_worker_that_waits_for_a_processor_lives_until_it_has_run() {
        let ran = |ms: u64| Sight { runnable: vec![(WorkerId(1), ms * MS)], ..busy_since(1_000) };
        let mut judge = Judge::default();
        for (step, ms) in (0..).zip([70, 70, 71, 72, 84]) {
            assert_eq!(judge.judge(&ran(ms), (1_300 + 30 * step) * MS, false), wait(30), "{ms}");
        }
        assert!(matches!(judge.judge(&ran(85), 1_500 * MS, false), Verdict::Kill(_)));
        // One that sleeps wants no processor.
        let mut judge = Judge::default();
        assert_eq!(judge.judge(&ran(70), 1_300 * MS, false), wait(30));
        assert!(matches!(judge.judge(&busy_since(1_000), 1_330 * MS, false), Verdict::Kill(_)));
    }

    #[test]
    fn workers_are_known_by_the_names_of_their_threads() {
        assert_eq!(worker_of(b"12 (worker-3) R 1 12"), Some(WorkerId(3)));
        assert_eq!(worker_of(b"12 (worker-) R 1 12"), None);
        assert_eq!(worker_of(b"12 (monitor) R 1 12"), None);
        assert_eq!(worker_of(b""), None);
    }

    #[test]
    fn a_process_of_zombies_is_gone() {
        let sight = Sight { is_gone: true, ..stopped(1) };
        assert_eq!(Judge::default().judge(&sight, 0, true), Verdict::Gone);
    }

    #[test]
    fn the_state_is_read_past_any_name() {
        assert_eq!(state_of(b"12 (vipa) S 1 12"), Some(b'S'));
        assert_eq!(state_of(b"12 (a) T (b) t 1 12"), Some(b't'));
        for torn in [&b""[..], b"12 (vi", b"12 (vipa)", b"12 (vipa) "] {
            assert_eq!(state_of(torn), None);
        }
    }

    #[test]
    fn a_look_at_this_process_finds_nothing_wrong() {
        let page = HeartbeatPage::new().unwrap();
        let sight = Sight::of(std::process::id(), &page).unwrap();
        assert!(sight.busy.is_empty() && sight.stopped.is_empty() && !sight.is_gone);
    }
}
