//! [`MeshClient`]: the public API.

use crate::activity::Activity;
use crate::clock;
use crate::driver::Generation;
use crate::endpoint::{self, EndpointError};
use crate::identity::{Credentials, IdentityError};
use crate::memory::Shared;
use crate::pool::{Pool, QuicTransport};
use crate::transport::Transport;
use crate::watch::Watcher;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use unamesh_proto::NodeId;
use unamesh_proto::breaker::Standing;
use unamesh_proto::hedge::Counts;
use unamesh_proto::learned::Learned;
use unamesh_proto::rank::{Need, Ranking};
use unamesh_proto::session::Seam;
use unamesh_proto::table::Snapshot;
use unamesh_proto::timeouts;
use unamesh_proto::wire::{
    ErrorCode, FinishReason, InputKind, ModelKind, Phase, Sampling, Usage, WireError,
};

/// English text has about four bytes a token; used where the caller knows no better.
const BYTES_PER_TOKEN: usize = 4;

/// No text makes longer tokens than this on average.
const MAX_BYTES_PER_TOKEN: usize = 12;
/// So many times too high may an estimate by [`BYTES_PER_TOKEN`] be.
const ESTIMATE_IS_AT_MOST: u32 = (MAX_BYTES_PER_TOKEN / BYTES_PER_TOKEN) as u32;

/// A request for text.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model's name.
    pub model: String,
    /// What `input` is.
    pub kind: InputKind,
    /// A JSON array of chat messages, or a prompt.
    pub input: String,
    /// How to sample.
    pub sampling: Sampling,
    /// A JSON object of other fields for the engine; empty = none.
    pub extra: String,
    /// The conversation, so that it returns to the peer with its KV cache; 0 = none.
    pub session: u64,
    /// About how many tokens the prompt has; 0 = estimate from the input's length. It ranks
    /// peers; only a prompt that exceeds every context however it is counted is refused.
    pub prompt_tokens: u32,
    /// Another engine may continue a broken answer. False for structured output and tools.
    pub spliceable: bool,
    /// If nobody with the same model can continue it, a model of another name may.
    pub other_model: bool,
    /// Who is to begin the answer, however it ranks, if it can; who goes on is ranked as ever.
    pub first: Option<NodeId>,
}

impl Request {
    /// A chat request with default sampling. `messages` is a JSON array of OpenAI messages.
    pub fn chat(model: impl Into<String>, messages: impl Into<String>) -> Self {
        Request {
            model: model.into(),
            kind: InputKind::Chat,
            input: messages.into(),
            sampling: Sampling::default(),
            extra: String::new(),
            session: 0,
            prompt_tokens: 0,
            spliceable: true,
            other_model: false,
            first: None,
        }
    }

    pub(crate) fn need(&self, sticky: Option<(NodeId, u16)>) -> Need<'_> {
        Need {
            model: &self.model,
            kind: ModelKind::Llm,
            prompt_tokens: match self.prompt_tokens {
                0 => u32::try_from(self.input.len() / BYTES_PER_TOKEN).unwrap_or(u32::MAX),
                tokens => tokens,
            },
            digest: None,
            sticky,
            prompt_at_least: self.prompt_at_least(),
            needs_token_ids: false,
        }
    }

    /// What the prompt surely has: pictures count for few tokens however long their text is.
    fn prompt_at_least(&self) -> u32 {
        match self.prompt_tokens {
            0 if self.input.contains(";base64,") => 0,
            0 => u32::try_from(self.input.len() / MAX_BYTES_PER_TOKEN).unwrap_or(u32::MAX),
            // An estimate too (a gateway counts bytes): it may be as much too high.
            tokens => tokens / ESTIMATE_IS_AT_MOST,
        }
    }
}

/// A peer as people know it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PeerRef {
    /// Its identity.
    pub node: NodeId,
    /// Its name.
    pub name: String,
}

/// What a [`Generation`] yields. Exactly one of `Done` and `Failed` comes, last.
#[derive(Clone, Debug)]
pub enum Event {
    /// The first output is about to come.
    Started {
        /// From whom.
        peer: PeerRef,
        /// Why it was chosen.
        why: String,
    },
    /// Nothing to deliver yet.
    Progress {
        /// What the engine does.
        phase: Phase,
        /// Of `total`.
        done: u32,
        /// 0 = unknown.
        total: u32,
    },
    /// The next piece of the answer.
    Token {
        /// 0, 1, 2, ...
        index: u32,
        /// May be empty when `extra` is not.
        text: String,
        /// Tokens behind it.
        tokens: u32,
        /// JSON of the engine's other delta fields, or empty.
        extra: String,
    },
    /// Another peer goes on.
    PeerChanged {
        /// Who answered until now.
        from: PeerRef,
        /// Who goes on.
        to: PeerRef,
        /// How well the parts fit.
        seam: Seam,
        /// From the last token before to the first after.
        gap: Duration,
        /// Of it, from the backup's dispatch to its first token.
        backup_ttft: Duration,
        /// Why.
        reason: String,
    },
    /// The answer is complete.
    Done {
        /// Why it ended.
        finish: FinishReason,
        /// Tokens.
        usage: Usage,
    },
    /// It will not be completed; the error carries what was delivered.
    Failed(ClientError),
}

/// What the app can do now.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// Nobody in the mesh can serve this model now; nothing was delivered. Fall back.
    #[error("no peer can serve {model:?} now{}", hint(near))]
    NoPeer {
        /// What was asked for.
        model: String,
        /// Near model names, each with the peers that have it.
        near: Vec<(String, Vec<String>)>,
    },
    /// No peer has such a model; nothing was delivered. Ask for another.
    #[error("no peer has a model {model:?}{}", hint(near))]
    UnknownModel {
        /// What was asked for.
        model: String,
        /// Near model names, each with the peers that have it.
        near: Vec<(String, Vec<String>)>,
    },
    /// Everybody who could is busy; nothing was delivered. Retry.
    #[error("every peer that could serve this is busy; try again in {} ms", retry_after.as_millis())]
    Busy {
        /// When to retry.
        retry_after: Duration,
    },
    /// The request is wrong; nothing was delivered. Do not retry.
    #[error("{message}")]
    Invalid {
        /// The field to blame.
        field: Option<String>,
        /// What is wrong with it.
        message: String,
    },
    /// The prompt exceeds every context; nothing was delivered. Shorten it.
    #[error("{message}")]
    ContextExceeded {
        /// How far.
        message: String,
    },
    /// The answer broke off and nobody could go on. Retry with what was delivered, or whole.
    #[error("the answer broke off after {tokens} tokens: {reason}")]
    Interrupted {
        /// The text so far.
        delivered: String,
        /// Its tokens.
        tokens: u32,
        /// The last reason.
        reason: String,
    },
    /// Structured output or a tool call broke off and must not be spliced. Retry whole.
    #[error("the structured answer broke off after {tokens} tokens: {reason}")]
    Incomplete {
        /// The text so far.
        delivered: String,
        /// Its tokens.
        tokens: u32,
        /// The last reason.
        reason: String,
    },
    /// This program left the mesh ([`MeshClient::leave`]) before the answer was whole. Others could
    /// have gone on.
    #[error("this program left the mesh before the answer was whole")]
    Left {
        /// The text so far; of speech: what was said whole, or understood.
        delivered: String,
        /// Its tokens; 0 of speech.
        tokens: u32,
    },
    /// Nobody who could speak (on) has the voice. Ask for another, or allow one.
    #[error("no peer has the voice {voice:?}{}", hint(near))]
    NoVoice {
        /// The voice that was asked for, or spoke until then.
        voice: String,
        /// Near voices, each with a peer that has it.
        near: Vec<(String, Vec<String>)>,
    },
    /// Speech broke off and nobody could go on. The caller has what was delivered.
    #[error("speech broke off: {reason}")]
    BrokenOff {
        /// The last reason.
        reason: String,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The peers refused it for a reason that a retry does not mend.
    #[error("{0}")]
    Refused(WireError),
    /// This device is no member of a mesh yet: `unamesh join LINK`.
    #[error("this device has not joined a mesh: {0}")]
    NotPaired(#[from] Arc<IdentityError>),
    /// The network could not be opened at all.
    #[error("cannot open the network: {0}")]
    Offline(#[from] Arc<EndpointError>),
}

fn hint(near: &[(String, Vec<String>)]) -> String {
    if near.is_empty() {
        return String::new();
    }
    let names = near
        .iter()
        .map(|(model, peers)| format!("{model} (on {})", peers.join(", ")));
    format!("; near: {}", names.collect::<Vec<_>>().join(", "))
}

impl From<WireError> for ClientError {
    fn from(error: WireError) -> Self {
        match error.code {
            ErrorCode::Invalid => ClientError::Invalid {
                field: error.field,
                message: error.message,
            },
            ErrorCode::ContextExceeded => ClientError::ContextExceeded {
                message: error.message,
            },
            _ => ClientError::Refused(error),
        }
    }
}

/// Where a stand-alone client finds its papers and its mesh.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The directory that `unamesh join` filled.
    pub state_dir: PathBuf,
    /// Agents to ask first: `ip:port`.
    pub seeds: Vec<String>,
    /// Browse by multicast DNS as well.
    pub mdns: bool,
}

/// A member's view of the mesh, and the way to put requests to it. Cheap to clone.
///
/// ```no_run
/// use futures_util::StreamExt;
/// use std::time::Duration;
/// use unamesh_client::client::{ClientConfig, Event, MeshClient, Request};
///
/// # async fn ask() -> Result<(), Box<dyn std::error::Error>> {
/// let client = MeshClient::connect(ClientConfig {
///     state_dir: "papers".into(), // what `unamesh join` made
///     seeds: Vec::new(),
///     mdns: true,
/// })?;
/// client.ready(1, Duration::from_secs(3)).await;
/// let messages = r#"[{"role": "user", "content": "Hello"}]"#;
/// let mut answer = client.generate(Request::chat("mistral:7b", messages));
/// while let Some(event) = answer.next().await {
///     match event {
///         Event::Token { text, .. } => print!("{text}"),
///         Event::PeerChanged { from, to, .. } => eprintln!("[{} -> {}]", from.name, to.name),
///         Event::Failed(error) => return Err(error.into()),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MeshClient {
    pub(crate) shared: Arc<Shared>,
    /// Present on a stand-alone client, which owns its network.
    owned: Option<Arc<Owned>>,
}

struct Owned {
    endpoint: quinn::Endpoint,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
        self.endpoint.close(0u32.into(), b"client closed");
    }
}

impl MeshClient {
    /// A client of its own: loads its certificate, finds an agent, follows its peer table.
    ///
    /// Returns at once; [`MeshClient::ready`] waits for the table.
    ///
    /// # Errors
    /// [`ClientError::NotPaired`] without papers in `state_dir`, [`ClientError::Offline`] if
    /// no socket can be opened.
    pub fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let credentials = Credentials::load(&config.state_dir).map_err(Arc::new)?;
        let credentials = Arc::new(credentials);
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let any4 = SocketAddr::from(([0, 0, 0, 0], 0));
        let endpoint = endpoint::bind(&credentials, any)
            .or_else(|_| endpoint::bind(&credentials, any4))
            .map_err(Arc::new)?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (publish, table) = watch::channel(Arc::new(Snapshot::default()));
        // A thousand reports are ten seconds of probes to a hundred peers.
        let (reports, heard) = mpsc::channel(1024);
        let pool = Pool::new(
            endpoint.clone(),
            credentials.clone(),
            table.clone(),
            reports,
            tasks.clone(),
            stop.clone(),
        );
        let watcher = Watcher::new(config, credentials, pool.clone(), publish, heard);
        tasks.spawn(watcher.run(tasks.clone(), stop.clone()));
        let mut client = MeshClient::over(table, Arc::new(QuicTransport(pool)));
        client.owned = Some(Arc::new(Owned {
            endpoint,
            tasks,
            stop,
        }));
        Ok(client)
    }

    /// A client over a peer table and a transport that somebody else owns (an agent).
    pub fn over(table: watch::Receiver<Arc<Snapshot>>, transport: Arc<dyn Transport>) -> Self {
        MeshClient {
            shared: Arc::new(Shared::new(table, transport)),
            owned: None,
        }
    }

    /// The peer table as of now.
    pub fn peers(&self) -> Arc<Snapshot> {
        self.shared.table.borrow().clone()
    }

    /// The peer table as it changes.
    pub fn peer_changes(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.table.clone()
    }

    /// Waits until at least `peers` peers are in the table, at most for `limit`. True if so.
    pub async fn ready(&self, peers: usize, limit: Duration) -> bool {
        let mut table = self.shared.table.clone();
        let enough = table.wait_for(|t| t.peers.len() >= peers);
        matches!(tokio::time::timeout(limit, enough).await, Ok(Ok(_)))
    }

    /// Starts a request. Nothing happens until the stream is polled.
    pub fn generate(&self, request: Request) -> Generation {
        Generation::new(self.shared.clone(), request)
    }

    /// Starts a request again whose answer of `tokens` tokens ended as
    /// [`ClientError::Incomplete`] and was shown to nobody; `again` is the how manieth time.
    pub fn generate_again(&self, request: Request, tokens: u32, again: u32) -> Generation {
        self.shared.tell(Activity::AskedAgain {
            model: request.model.clone(),
            tokens,
            again,
        });
        self.generate(request)
    }

    /// How the peers rank for a prompt of `prompt_tokens` tokens, with the reasons.
    pub fn why(&self, model: &str, prompt_tokens: u32) -> Ranking {
        let request = Request {
            prompt_tokens,
            ..Request::chat(model, "")
        };
        let need = Need {
            // Whoever asks this way means just this many.
            prompt_at_least: prompt_tokens,
            ..request.need(None)
        };
        self.shared.rank(&need, clock::mono())
    }

    /// What happens behind the answers from now on. A listener that is more than
    /// [`BACKLOG`](crate::activity::BACKLOG) behind misses the oldest and is told so
    /// ([`RecvError::Lagged`](broadcast::error::RecvError::Lagged)).
    pub fn activity(&self) -> broadcast::Receiver<Activity> {
        self.shared.activity.subscribe()
    }

    /// What came of the hedges so far, and how many may start now.
    pub fn hedges(&self) -> (Counts, u32) {
        self.shared.hedges()
    }

    /// The engines that failed lately, with whose they are and how they are called: their
    /// breakers are open or half-open.
    pub fn breakers(&self) -> Vec<(PeerRef, String, Standing)> {
        let standing = self.shared.breakers(clock::mono()).into_iter();
        let named = standing.map(|s| {
            let engine = self.shared.engine(s.node, s.engine);
            (self.shared.peer(s.node), engine, s)
        });
        named.collect()
    }

    /// What was learned of paths and engines, to be kept for the next start; `None` if nothing is
    /// new since the last call.
    pub fn learned(&self) -> Option<Learned> {
        self.shared.learned()
    }

    /// Adds what [`MeshClient::learned`] gave out in an earlier life.
    pub fn recall(&self, learned: Learned) {
        self.shared.recall(learned);
    }

    /// Resolves when no request runs: each has come to its terminal event, or was dropped.
    pub async fn idle(&self) {
        self.shared.running.wait().await;
    }

    /// Requests that run.
    pub fn running(&self) -> usize {
        self.shared.running.len()
    }

    /// For a program that ends: every request that runs, and each that comes, ends with an error
    /// that carries what was delivered.
    pub fn leave(&self) {
        self.shared.leaving.cancel();
    }

    /// Closes a stand-alone client and waits for its tasks, at most
    /// [`timeouts::SHUTDOWN`]. Running generations end with an error.
    pub async fn shutdown(self) {
        let Some(owned) = &self.owned else { return };
        self.leave();
        owned.stop.cancel();
        owned.tasks.close();
        owned.endpoint.close(0u32.into(), b"client closed");
        let all = async {
            owned.tasks.wait().await;
            owned.endpoint.wait_idle().await;
        };
        if tokio::time::timeout(timeouts::SHUTDOWN, all).await.is_err() {
            tracing::warn!("tasks of the client did not end in time");
        }
    }
}
