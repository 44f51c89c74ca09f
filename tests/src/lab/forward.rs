//! The cables of a lab: one thread that carries frames between pairs of TAP devices, each
//! direction through a [`Pipe`].
//!
//! The thread sleeps until a frame comes in at some end or the next one is due, so an idle lab
//! costs nothing. Who changes a cable takes the lock; the thread has it only while it moves
//! frames.

use super::tap::MAX_FRAME;
use crate::impair::{Counts, Impairment, Line, Pipe, Way};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Frames taken from one device before the others have their turn.
const BATCH: usize = 64;

/// The two files of a cable, the host's first, which stay the same while the thread runs.
pub type Ends = [File; 2];

/// Runs until dropped.
pub struct Forwarder {
    shared: Arc<Mutex<Vec<[Pipe; 2]>>>,
    /// Closing it ends the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// A cable between the ends of each pair. Its luck comes from `seed` and its place.
    ///
    /// # Panics
    /// If the system has no thread or pipe left.
    #[must_use]
    pub fn start(cables: Vec<Ends>, seed: u64) -> Self {
        let pipe = |n: usize| Pipe::new(Line::new(Impairment::default(), seed ^ (n as u64) << 32));
        let pipes = (0..cables.len()).map(|n| [pipe(2 * n), pipe(2 * n + 1)]);
        let shared = Arc::new(Mutex::new(pipes.collect()));
        let (stopped, stop) = std::io::pipe().unwrap();
        let run = Run {
            shared: Arc::clone(&shared),
            cables,
            stopped,
            origin: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("lab-cables".into())
            .spawn(move || run.run())
            .unwrap();
        Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Changes what happens to the frames of cable `number` from now on.
    pub fn impair(&self, number: usize, way: Way, impairment: Impairment) {
        for pipe in &mut self.lock()[number][way.range()] {
            pipe.line.set(impairment);
        }
    }

    /// Begins or ends a blackhole.
    pub fn blackhole(&self, number: usize, way: Way, on: bool) {
        for pipe in &mut self.lock()[number][way.range()] {
            pipe.blackhole(on);
        }
    }

    /// What the cable did so far: out, in.
    #[must_use]
    pub fn counts(&self, number: usize) -> [Counts; 2] {
        self.lock()[number].each_ref().map(Pipe::counts)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<[Pipe; 2]>> {
        self.shared.lock().unwrap()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// What the thread has.
struct Run {
    shared: Arc<Mutex<Vec<[Pipe; 2]>>>,
    cables: Vec<Ends>,
    stopped: PipeReader,
    origin: Instant,
}

impl Run {
    fn run(self) {
        let mut due = None;
        while self.wait(due) {
            let mut pipes = self.shared.lock().unwrap();
            for (ends, pipes) in self.cables.iter().zip(pipes.iter_mut()) {
                for (way, pipe) in pipes.iter_mut().enumerate() {
                    self.carry(&ends[way], &ends[1 - way], pipe);
                }
            }
            due = pipes.iter().flatten().filter_map(Pipe::next).min();
        }
    }

    /// Sleeps until frames came in or one is `due`; false if it is time to stop.
    fn wait(&self, due: Option<Duration>) -> bool {
        let left = due.map(|due| due.saturating_sub(self.origin.elapsed()));
        let timeout = left.map(|left| Timespec::try_from(left).unwrap());
        let mut fds = vec![PollFd::new(&self.stopped, PollFlags::IN)];
        let ends = self.cables.iter().flatten();
        fds.extend(ends.map(|end| PollFd::new(end, PollFlags::IN)));
        // Interrupted by a signal: nothing came, which is looked at all the same.
        poll(&mut fds, timeout.as_ref()).ok();
        fds[0].revents().is_empty()
    }

    /// Takes what came in at one end, and gives to the other what is due.
    fn carry(&self, mut from: &File, mut to: &File, pipe: &mut Pipe) {
        let mut frame = [0; MAX_FRAME];
        for _ in 0..BATCH {
            // Nothing more there, or the host set its interface down.
            let Ok(size) = from.read(&mut frame) else {
                break;
            };
            pipe.push(self.origin.elapsed(), &frame[..size]);
        }
        while let Some(frame) = pipe.pop(self.origin.elapsed()) {
            // An interface that is down takes none, which is what a real one does with frames.
            to.write_all(&frame).ok();
        }
    }
}
