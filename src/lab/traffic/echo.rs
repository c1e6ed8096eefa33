//! A question a millisecond over UDP, each with its number, and who answers them.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::net::UdpSocket;

use super::progress::{Micros, Progress};

/// Datagrams taken at most before other work gets its turn.
const BATCH: usize = 64;
/// Questions sent at most to catch up after the sender was held up.
const CATCH_UP: u64 = 8;

/// What became of the questions.
#[derive(Debug)]
pub struct Asked {
    /// When question n was sent, and how long its first answer took.
    questions: Vec<(Micros, Option<Micros>)>,
    progress: Progress,
}

impl Asked {
    /// Questions sent in `from..to` that were never answered.
    pub fn lost(&self, from: Micros, to: Micros) -> u64 {
        self.sent_in(from, to).filter(|(_, took)| took.is_none()).count() as u64
    }

    /// Was any question that was sent in `from..to` answered?
    pub fn is_answered(&self, from: Micros, to: Micros) -> bool {
        self.sent_in(from, to).any(|(_, took)| took.is_some())
    }

    /// Round-trip times of the questions sent in `from..to` that were answered.
    pub fn round_trips(&self, from: Micros, to: Micros) -> Vec<Micros> {
        self.sent_in(from, to).filter_map(|&(_, took)| took).collect()
    }

    /// When new answers came.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    fn sent_in(&self, from: Micros, to: Micros) -> impl Iterator<Item = &(Micros, Option<Micros>)> {
        let begin = self.questions.partition_point(|&(sent, _)| sent < from);
        self.questions[begin..].iter().take_while(move |&&(sent, _)| sent < to)
    }
}

/// The record of the questions, shared by the asker and who watches.
#[derive(Clone, Debug)]
pub(super) struct SharedAsked(Arc<Mutex<Asked>>);

impl SharedAsked {
    pub(super) fn new(now: Micros) -> SharedAsked {
        let asked = Asked { questions: Vec::new(), progress: Progress::new(now) };
        SharedAsked(Arc::new(Mutex::new(asked)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Asked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One end of the echo.
#[derive(Debug)]
pub(super) enum Echo {
    /// Asks; its socket is connected to the answerer.
    Asker(UdpSocket, SharedAsked),
    /// Sends every datagram back.
    Answerer(UdpSocket),
}

impl Echo {
    pub(super) fn socket(&mut self) -> &mut UdpSocket {
        match self {
            Echo::Asker(socket, _) | Echo::Answerer(socket) => socket,
        }
    }

    /// So many milliseconds passed: as many questions go out. Errors are told by answers that lack.
    pub(super) fn tick(&mut self, ticks: u64, now: Micros) {
        let Echo::Asker(socket, asked) = self else { return };
        for _ in 0..ticks.min(CATCH_UP) {
            let mut asked = asked.lock();
            let number = asked.questions.len() as u64;
            asked.questions.push((now, None));
            drop(asked);
            let _ = socket.send(&number.to_be_bytes());
        }
    }

    /// Takes what arrived; `true` if there may be more.
    pub(super) fn receive(&mut self, now: Micros) -> bool {
        for _ in 0..BATCH {
            let result = match self {
                Echo::Asker(socket, asked) => {
                    let mut number = [0; 8];
                    socket.recv(&mut number).map(|_| {
                        let mut asked = asked.lock();
                        let number = u64::from_be_bytes(number) as usize;
                        if let Some((sent, took @ None)) = asked.questions.get_mut(number) {
                            *took = Some(now.saturating_sub(*sent));
                            asked.progress.mark(now);
                        }
                    })
                }
                Echo::Answerer(socket) => {
                    let mut datagram = [0; 64];
                    socket.recv_from(&mut datagram).and_then(|(length, from)| {
                        socket.send_to(&datagram[..length], from).map(|_| ())
                    })
                }
            };
            match result {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                _ => {} // an ICMP error of an earlier datagram, or a datagram
            }
        }
        true
    }
}
