//! What a client remembers from request to request: which peer holds which conversation, which
//! engines failed, how long paths and engines take, how many hedges are left.
//!
//! The rules are all in `unamesh_proto` (`breaker`, `stalls`, `hedge`, `session`); here they
//! share one lock, taken when a request starts, is dispatched or ends, never per token.

use crate::activity::{self, Activity, RequestId};
use crate::client::{ClientError, PeerRef, Request};
use crate::clock;
use crate::transport::Transport;
use std::borrow::BorrowMut;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_proto::breaker::{Breakers, Standing};
use unamesh_proto::hedge::{Counts, Hedges};
use unamesh_proto::learned::Learned;
use unamesh_proto::rank::speech::{SpeechNeed, listeners, speakers};
use unamesh_proto::rank::{Candidate, Need, Ranking, near_names, rank, same_name};
use unamesh_proto::session::{Note, Silence};
use unamesh_proto::speech::speak::Speaker;
use unamesh_proto::stalls::Stalls;
use unamesh_proto::table::Snapshot;
use unamesh_proto::wire::ModelKind;
use unamesh_proto::{Mono, NodeId, limits};

/// Conversations whose peer is remembered; the oldest half goes when it is full.
const MAX_SESSIONS: usize = 1024;

/// What all requests of one client share.
pub(crate) struct Shared {
    pub table: watch::Receiver<Arc<Snapshot>>,
    pub transport: Arc<dyn Transport>,
    /// Who wants to know what happens; nobody has to.
    pub activity: broadcast::Sender<Activity>,
    /// The requests that run.
    pub running: TaskTracker,
    /// The program ends, and every request with it.
    pub leaving: CancellationToken,
    memory: Mutex<Memory>,
    utterances: AtomicU32,
}

/// The node, and its engine, that holds a conversation.
pub(crate) type Held = (NodeId, u16);

/// What outlives a request. Locked at its start and end, never per token.
#[derive(Default)]
struct Memory {
    silences: HashMap<NodeId, Silence>,
    /// By conversation and what is done there: its model and its voice are two peers'.
    sessions: HashMap<(u64, ModelKind), (Held, Mono)>,
    breakers: Breakers,
    stalls: Stalls,
    hedges: Hedges,
    /// Something was learned that [`Shared::learned`] has not given out.
    news: bool,
}

impl Shared {
    pub fn new(table: watch::Receiver<Arc<Snapshot>>, transport: Arc<dyn Transport>) -> Self {
        let running = TaskTracker::new();
        // So that waiting for it is waiting until it is empty.
        running.close();
        Shared {
            table,
            transport,
            activity: broadcast::Sender::new(activity::BACKLOG),
            running,
            leaving: CancellationToken::new(),
            memory: Mutex::default(),
            // Of several clients on one connection (an agent's) each has its own.
            utterances: AtomicU32::new(rand::random()),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Plain maps: a panic elsewhere cannot leave them half-changed.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins: what was learned of the paths.
    pub fn begin(&self) -> Vec<(NodeId, Silence)> {
        let mut memory = self.memory();
        memory.hedges.request();
        memory.silences.iter().map(|(n, s)| (*n, *s)).collect()
    }

    /// Whether a backup may work beside an engine that only looks hung.
    pub fn may_hedge(&self) -> bool {
        self.memory().hedges.take()
    }

    pub fn sticky(&self, session: u64, kind: ModelKind) -> Option<Held> {
        if session == 0 {
            return None;
        }
        let memory = self.memory();
        let sticky = memory.sessions.get(&(session, kind)).map(|(held, _)| *held);
        // Its cache is worth less than an answer.
        sticky.filter(|(node, engine)| memory.breakers.trusts(*node, *engine, clock::mono()))
    }

    /// The peer at work, whatever engine of it.
    pub fn at_work(&self, session: u64, kind: ModelKind) -> Option<NodeId> {
        self.sticky(session, kind).map(|(node, _)| node)
    }

    pub fn stick(&self, session: u64, kind: ModelKind, held: Held) {
        if session == 0 {
            return;
        }
        let mut memory = self.memory();
        memory
            .sessions
            .insert((session, kind), (held, clock::mono()));
        if memory.sessions.len() > MAX_SESSIONS {
            let mut times: Vec<Mono> = memory.sessions.values().map(|(_, at)| *at).collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let median = *median;
            memory.sessions.retain(|_, (_, at)| *at > median);
        }
    }

    /// What was learned, if anything is new since the last call.
    pub fn learned(&self) -> Option<Learned> {
        let mut memory = self.memory();
        let news = std::mem::take(&mut memory.news);
        news.then(|| {
            let paths = memory.silences.iter().map(|(n, s)| (*n, *s)).collect();
            Learned::new(paths, memory.stalls.save(clock::mono()), clock::wall())
        })
    }

    /// Adds what was learned in an earlier life; what was learned since stands.
    pub fn recall(&self, learned: Learned) {
        let (paths, models, away) = learned.parts(clock::wall());
        let mut memory = self.memory();
        for (node, silence) in paths {
            memory.silences.entry(node).or_insert(silence);
        }
        memory.stalls.restore(models, away, clock::mono());
    }

    /// Logs `activity` and tells whoever listens.
    pub fn tell(&self, activity: Activity) {
        activity.log();
        if self.activity.receiver_count() > 0 {
            // Fails only if the last listener went in this moment.
            let _ = self.activity.send(activity);
        }
    }

    /// `node` as people know it.
    pub fn peer(&self, node: NodeId) -> PeerRef {
        let snapshot = self.table.borrow();
        let name = snapshot.get(&node).map(|p| p.advert.name.clone());
        PeerRef {
            node,
            name: name.unwrap_or_else(|| node.short()),
        }
    }

    /// The name of an engine of `node`.
    pub fn engine(&self, node: NodeId, engine: u16) -> String {
        let snapshot = self.table.borrow();
        let peer = snapshot.get(&node);
        let known = peer.and_then(|p| p.advert.engines.get(usize::from(engine)));
        known.map_or_else(|| format!("engine {engine}"), |e| e.name.clone())
    }

    /// What came of the hedges so far, and how many may start now.
    pub fn hedges(&self) -> (Counts, u32) {
        let hedges = &self.memory().hedges;
        (hedges.counts(), hedges.left())
    }

    /// The breakers that are not closed.
    pub fn breakers(&self, now: Mono) -> Vec<Standing> {
        self.memory().breakers.standing(now).collect()
    }

    /// Takes in what the session of `request` found out.
    pub fn note(&self, request: RequestId, note: &Note, now: Mono) {
        let changed = self.take_in(note, now);
        if let Some(activity) = self.activity_of(request, note) {
            self.tell(activity);
        }
        if let Some(standing) = changed {
            self.tell_breaker(standing);
        }
    }

    fn tell_breaker(&self, standing: Standing) {
        self.tell(Activity::Breaker {
            peer: self.peer(standing.node),
            engine: self.engine(standing.node, standing.engine),
            state: standing.state,
            reason: standing.reason,
        });
    }

    /// What a note says to people; `None` for statistics.
    fn activity_of(&self, request: RequestId, note: &Note) -> Option<Activity> {
        Some(match note {
            Note::Suspect {
                node,
                reason,
                silent,
            } => Activity::Suspect {
                request,
                peer: self.peer(*node),
                reason: reason.clone(),
                silent: *silent,
            },
            Note::Backup { node, after, hedge } => Activity::Backup {
                request,
                peer: self.peer(*node),
                after: *after,
                hedge: *hedge,
            },
            Note::Reattached { node, after } => Activity::Reattached {
                request,
                peer: self.peer(*node),
                gap: *after,
            },
            Note::AttemptFailed {
                node,
                engine,
                reason,
            } => Activity::AttemptFailed {
                request,
                peer: self.peer(*node),
                engine: self.engine(*node, *engine),
                reason: reason.clone(),
            },
            Note::HedgeInVain { node } => {
                let (counts, left) = self.hedges();
                Activity::HedgeInVain {
                    request,
                    peer: self.peer(*node),
                    counts,
                    left,
                }
            }
            Note::Succeeded { .. }
            | Note::HedgeRefund
            | Note::Observed { .. }
            | Note::Learned { .. } => return None,
        })
    }

    /// Keeps what a note teaches. Returns the breaker that it changed.
    fn take_in(&self, note: &Note, now: Mono) -> Option<Standing> {
        let mut memory = self.memory();
        memory.hedges.note(note);
        match note {
            Note::Learned { node, silence } => {
                memory.silences.insert(*node, *silence);
                memory.news = true;
                if memory.silences.len() > limits::MAX_PEERS {
                    let snapshot = self.table.borrow().clone();
                    memory.silences.retain(|n, _| snapshot.get(n).is_some());
                }
            }
            Note::Observed {
                node,
                model,
                observed,
            } => {
                memory.stalls.learn(*node, model, observed, now);
                memory.news = true;
            }
            _ => {}
        }
        memory.breakers.note(note, &mut rand::rng(), now)
    }

    /// A request goes out to an engine.
    pub fn dispatched(&self, node: NodeId, engine: u16, now: Mono) {
        let trial = self.memory().breakers.dispatched(node, engine, now);
        if let Some(standing) = trial {
            self.tell_breaker(standing);
        }
    }

    /// The peers that can serve `need`, those that failed lately last, each with what was
    /// learned of it.
    pub fn rank(&self, need: &Need<'_>, now: Mono) -> Ranking {
        let snapshot = self.table.borrow().clone();
        let mut ranking = rank(&snapshot, need, now);
        self.judge(&mut ranking.ranked, need.prompt_tokens, now);
        ranking
    }

    /// As [`Shared::rank`], of those who speak.
    pub fn speakers(&self, need: &SpeechNeed<'_>, now: Mono) -> Vec<Speaker> {
        let snapshot = self.table.borrow().clone();
        let mut ranked = speakers(&snapshot, need, now).ranked;
        self.judge(&mut ranked, 0, now);
        ranked
    }

    /// As [`Shared::rank`], of those who listen.
    pub fn listeners(&self, model: &str, sticky: Option<NodeId>, now: Mono) -> Vec<Candidate> {
        let snapshot = self.table.borrow().clone();
        let mut ranked = listeners(&snapshot, model, sticky, now).ranked;
        self.judge(&mut ranked, 0, now);
        ranked
    }

    fn judge<C: BorrowMut<Candidate>>(&self, ranked: &mut [C], prompt_tokens: u32, now: Mono) {
        let memory = self.memory();
        memory.breakers.order(ranked, now);
        memory.stalls.fill(ranked, prompt_tokens);
    }

    /// Names an utterance on this client's connections.
    pub fn next_utterance(&self) -> u32 {
        self.utterances.fetch_add(1, Ordering::Relaxed)
    }

    /// The peers that could go on with a model of another name, the nearest names first.
    pub fn others(&self, need: &Need<'_>, now: Mono) -> Vec<Candidate> {
        let snapshot = self.table.borrow().clone();
        let near = near_names(&snapshot, need.model);
        let others = near.iter().filter(|(name, _)| !same_name(name, need.model));
        let ranked = others.flat_map(|(name, _)| {
            let other = Need {
                model: name,
                digest: None,
                ..*need
            };
            self.rank(&other, now).ranked
        });
        ranked.collect()
    }

    pub fn nobody_has(&self, request: &Request) -> ClientError {
        let snapshot = self.table.borrow().clone();
        let model = request.model.clone();
        let models = || snapshot.peers.iter().flat_map(|p| &p.advert.models);
        let fits = request.need(None);
        let any = Need {
            prompt_at_least: 0,
            ..fits
        };
        let ranked = |need| rank(&snapshot, need, clock::mono()).ranked;
        if ranked(&fits).is_empty()
            && let Some(best) = ranked(&any).first()
        {
            let tokens = fits.prompt_at_least;
            let contexts = models().filter(|m| m.name == best.model).map(|m| m.context);
            let largest = contexts.max().unwrap_or_default();
            let message = format!(
                "the prompt has at least {tokens} tokens, the largest context of {model:?} in \
                 the mesh is {largest}: shorten the prompt or ask a model with a larger context"
            );
            return ClientError::ContextExceeded { message };
        }
        let known = models().any(|m| m.name == model);
        let near = near_names(&snapshot, &model);
        if known || snapshot.peers.is_empty() {
            ClientError::NoPeer { model, near }
        } else {
            ClientError::UnknownModel { model, near }
        }
    }
}
