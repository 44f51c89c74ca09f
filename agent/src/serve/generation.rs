//! One generation for a client elsewhere: its run, its journal and the client, in one task.
//!
//! ```text
//!                 connection lost
//!   attached ─────────────────────► detached ── grace is over, journal full ──► gone
//!    │   ▲ ◄──────────────────────────┘ Attach                                   ▲
//!    │   └── Attach on a new path: it supersedes the old one                     │
//!    └── reset, stop, close, a reader that stalls, delivered to the end ─────────┘
//! ```
//! The task polls the engine's stream itself: between the engine's socket and the client's
//! stream there is no other task and no channel. What is ready at the same time is written in
//! one piece; the records written are the ones kept (the same [`Bytes`]). A client that reads
//! slowly holds the task in its write, and by that the engine.
//!
//! A client that cancels takes the task with it, and so the engine's stream at once. One whose
//! connection broke has [`super::ServeConfig::grace`] to come back; until then the generation
//! goes on into the journal. After its end a generation lingers, without engine and seat, for
//! [`timeouts::FINISHED_GRACE`], in case the end did not arrive.

use super::Service;
use super::client::{Client, Gone};
use super::encoder::Encoder;
use super::generations::{Newcomer, Registration};
use super::journals::Kept;
use super::run::Run;
use bytes::Bytes;
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use unamesh_proto::wire::{Draining, ErrorCode, GenFrame, WireError};
use unamesh_proto::{NodeId, timeouts};

/// Frames that are written in one piece, if the engine has so many ready.
const BATCH: usize = 32;

/// A generation with a client elsewhere.
pub(super) struct Generation {
    service: Arc<Service>,
    /// `None` once the terminal frame is out.
    run: Option<Run>,
    client: Option<Client>,
    registration: Registration,
    tape: Tape,
    /// While detached or over: when it is forgotten.
    expires: Option<Instant>,
}

/// The frames that came out of the run, as records.
struct Tape {
    encoder: Encoder,
    kept: Kept,
    /// To be written to the client now.
    batch: Vec<Bytes>,
    /// The latest `Accepted`, for those who reattach.
    accepted: Bytes,
    /// The index after the last token's.
    next: u32,
}

/// What a generation waits for.
enum Happened {
    /// The run made frames; they are on the tape.
    Made,
    /// The batch was written.
    Written,
    /// A client wants the rest.
    Newcomer(Newcomer),
    /// Nobody listens any more.
    Gone(Gone),
    /// The agent stops, and the client does not even read.
    Stopped,
    /// Nobody came back in time, or the journal is full without a reader.
    Expired,
}

impl Generation {
    /// `run` for `client`, which is `owner`'s; the first token has the index `first`.
    pub fn new(service: Arc<Service>, run: Run, client: Client, owner: NodeId, first: u32) -> Self {
        Generation {
            registration: service.generations().register(run.id(), owner),
            tape: Tape {
                encoder: Encoder::default(),
                kept: service.journals().journal(),
                batch: Vec::with_capacity(BATCH),
                accepted: Bytes::new(),
                next: first,
            },
            run: Some(run),
            client: Some(client),
            expires: None,
            service,
        }
    }

    /// Serves it to its end.
    pub async fn serve(mut self) {
        loop {
            let happened = self.next().await;
            let flow = match happened {
                Happened::Made => self.made(),
                Happened::Written => self.written(),
                Happened::Newcomer(newcomer) => self.attach(newcomer),
                Happened::Gone(gone) => self.gone(gone),
                Happened::Stopped => self.stopped(),
                Happened::Expired => ControlFlow::Break(()),
            };
            if flow.is_break() {
                return;
            }
            // An engine that is never silent must not keep the thread.
            tokio::task::coop::consume_budget().await;
        }
    }

    async fn next(&mut self) -> Happened {
        match &mut self.client {
            Some(client) if !self.tape.batch.is_empty() => {
                let began = Instant::now();
                let stall = self.service.config().reader_stall;
                let happened = tokio::select! {
                    biased;
                    written = client.write(&mut self.tape.batch, stall) => match written {
                        Ok(()) => Happened::Written,
                        Err(gone) => Happened::Gone(gone),
                    },
                    Some(newcomer) = self.registration.newcomers.recv() => {
                        Happened::Newcomer(newcomer)
                    }
                    () = self.service.leaving().stopped() => Happened::Stopped,
                };
                self.account(began.elapsed());
                happened
            }
            client => {
                let attached = client.is_some();
                let (run, tape) = (&mut self.run, &mut self.tape);
                let left_behind = !attached && run.is_none();
                let expires = self.expires;
                tokio::select! {
                    // The engine first: what it has ready is worth more than a look around.
                    biased;
                    kept = poll_fn(|cx| tape.poll_fill(run, attached, cx)) => match kept {
                        true => Happened::Made,
                        false => Happened::Expired,
                    },
                    Some(newcomer) = self.registration.newcomers.recv() => {
                        Happened::Newcomer(newcomer)
                    }
                    gone = gone(client) => Happened::Gone(gone),
                    () = until(expires) => Happened::Expired,
                    // Whoever comes back now finds the agent gone: it need not wait for them.
                    () = self.service.leaving().stopped(), if left_behind => Happened::Expired,
                }
            }
        }
    }

    /// Time in a write that the engine had to wait is not the engine's.
    fn account(&mut self, wrote: Duration) {
        if wrote >= timeouts::PROGRESS_EVERY
            && let Some(run) = &mut self.run
        {
            run.held_up(wrote);
        }
    }

    /// Frames were made. If nobody listens, nothing will be written, and the end is here.
    fn made(&mut self) -> ControlFlow<()> {
        if self.client.is_some() || self.run.is_some() {
            return ControlFlow::Continue(());
        }
        let linger = Instant::now() + timeouts::FINISHED_GRACE;
        self.expires = Some(self.expires.map_or(linger, |grace| grace.max(linger)));
        self.linger()
    }

    /// Whether to stay after the end, in case it did not arrive. Without, what was written is
    /// still delivered, but cannot be asked for again.
    fn linger(&self) -> ControlFlow<()> {
        let crowded = self.service.generations().len() > self.service.config().generations;
        let alone = self.client.is_none() && self.service.stop().is_cancelled();
        if crowded || alone {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn stopped(&mut self) -> ControlFlow<()> {
        if let Some(client) = self.client.take() {
            client.reset(ErrorCode::Draining);
        }
        ControlFlow::Break(())
    }

    fn written(&mut self) -> ControlFlow<()> {
        self.tape.batch.clear();
        match &mut self.client {
            Some(client) if self.run.is_none() => client.finish(),
            _ => return ControlFlow::Continue(()),
        }
        self.expires = Some(Instant::now() + timeouts::FINISHED_GRACE);
        self.linger()
    }

    /// Replaces the client, if what it misses is still here.
    fn attach(&mut self, newcomer: Newcomer) -> ControlFlow<()> {
        let Newcomer { client, have } = newcomer;
        let over = self.run.is_none();
        let missing = match self.tape.kept.from(have) {
            _ if have == self.tape.next && !over => Vec::new(),
            Ok(rest) => rest.cloned().collect(),
            Err(gap) => {
                let error = WireError::new(ErrorCode::UnknownGeneration, gap.to_string());
                let stall = self.service.config().reader_stall;
                self.service.tasks().spawn(client.refuse(error, stall));
                return ControlFlow::Continue(());
            }
        };
        let left = self.service.leaving().left().filter(|_| !over);
        self.tape.replay(missing, left);
        if let Some(old) = self.client.replace(client) {
            old.cancel();
        }
        self.expires = None;
        ControlFlow::Continue(())
    }

    fn gone(&mut self, gone: Gone) -> ControlFlow<()> {
        let Some(client) = self.client.take() else {
            return ControlFlow::Break(());
        };
        match gone {
            Gone::Delivered => return ControlFlow::Break(()),
            Gone::Cancelled => {
                client.cancel();
                return ControlFlow::Break(());
            }
            Gone::Stalled => {
                client.reset(ErrorCode::Limit);
                return ControlFlow::Break(());
            }
            Gone::Lost => drop(client),
        }
        self.tape.batch.clear();
        let grace = match self.run {
            Some(_) => self.service.config().grace,
            None => timeouts::FINISHED_GRACE,
        };
        self.expires = Some(Instant::now() + grace);
        ControlFlow::Continue(())
    }
}

impl Tape {
    /// Takes what `run` has ready, and drops the run with its terminal frame. Pending while
    /// there is nothing; false if a frame could be neither delivered nor kept.
    fn poll_fill(
        &mut self,
        run: &mut Option<Run>,
        attached: bool,
        cx: &mut Context<'_>,
    ) -> Poll<bool> {
        let mut taken = 0;
        while taken < BATCH
            && let Some(running) = run
        {
            match running.poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => *run = None,
                Poll::Ready(Some(frame)) => {
                    taken += 1;
                    if frame.is_terminal() {
                        *run = None;
                    }
                    if !self.take(frame, attached) {
                        return Poll::Ready(false);
                    }
                }
            }
        }
        if taken == 0 {
            Poll::Pending
        } else {
            Poll::Ready(true)
        }
    }

    /// Keeps `frame` and puts it into the batch, each if it is of use there. False if nobody
    /// listens and it could not be kept.
    fn take(&mut self, frame: GenFrame, attached: bool) -> bool {
        let record = match self.encoder.record(&frame) {
            Ok(record) => record,
            Err(e) => {
                // Only an engine's own words can be that long; the error must get through.
                let error = WireError::new(ErrorCode::EngineFailed, e.to_string());
                match self.encoder.record(&GenFrame::Error(error)) {
                    Ok(record) => record,
                    Err(_) => return false,
                }
            }
        };
        match frame {
            GenFrame::Token(token) => {
                self.next = token.index.saturating_add(1);
                if !self.keep(token.index, &record, attached) {
                    return false;
                }
            }
            GenFrame::Done(_) | GenFrame::Error(_) => {
                if !self.keep(self.next, &record, attached) {
                    return false;
                }
            }
            GenFrame::Accepted(_) => self.accepted = record.clone(),
            GenFrame::Progress(_) | GenFrame::Draining(_) => {}
        }
        if attached {
            self.batch.push(record);
        }
        true
    }

    fn keep(&mut self, index: u32, record: &Bytes, attached: bool) -> bool {
        if self.kept.push(index, record.clone()).is_ok() {
            return true;
        }
        if attached {
            self.kept.restart(index, record.clone());
        }
        attached
    }

    /// Puts into the batch what a client that reattaches gets first.
    fn replay(&mut self, missing: Vec<Bytes>, leaving: Option<Duration>) {
        self.batch.clear();
        if !self.accepted.is_empty() {
            self.batch.push(self.accepted.clone());
        }
        if let Some(left) = leaving {
            let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
            self.batch.extend(
                self.encoder
                    .record(&GenFrame::Draining(Draining { deadline_ms })),
            );
        }
        self.batch.extend(missing);
    }
}

async fn gone(client: &mut Option<Client>) -> Gone {
    match client {
        Some(client) => client.gone().await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
