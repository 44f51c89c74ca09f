//! Who answers a question about the mesh: the agent of this machine, or, on a machine that
//! joined as a client and runs none, the mesh itself.

use super::context::Context;
use super::error::CliError;
use super::local::{CLIENT_ONLY, Lines, Local};
use crate::gateway::mesh::event_json;
use crate::gateway::request::{Api, parse};
use crate::gateway::view;
use futures_util::StreamExt;
use serde_json::Value;
use std::time::Duration;
use unamesh_client::client::{ClientConfig, MeshClient};
use unamesh_client::clock;
use unamesh_client::driver::Generation;
use unamesh_proto::rank::near_names;

/// A client hears of its first peer within this, or there is none.
const MEET: Duration = Duration::from_secs(5);
/// The others follow within this of the first: their table comes in one piece.
const SETTLE: Duration = Duration::from_millis(100);

/// The way to the mesh.
pub(super) enum Mesh {
    /// Over this machine's agent.
    Agent(Box<Local>),
    /// As a member that only asks.
    Client(Box<MeshClient>),
}

impl Mesh {
    /// This machine's agent if one runs, else the mesh itself where this machine is a client.
    ///
    /// # Errors
    /// Neither can be reached.
    pub(super) async fn find(context: &Context) -> Result<Self, CliError> {
        match Local::find(context) {
            Ok(local) => return Ok(Mesh::Agent(Box::new(local))),
            Err(error) if error.code != CLIENT_ONLY => return Err(error),
            Err(_) => {}
        }
        let state_dir = context.state_path()?;
        let client = MeshClient::connect(ClientConfig {
            state_dir,
            seeds: Vec::new(),
            mdns: true,
        })
        .map_err(|e| CliError::new("offline", e.to_string()).next(context.command("doctor")))?;
        if !client.ready(1, MEET).await {
            client.shutdown().await;
            return Err(CliError::new(
                "offline",
                "no machine of the mesh answers: is one of them on, in this network?",
            )
            .next(context.command("doctor")));
        }
        tokio::time::sleep(SETTLE).await;
        Ok(Mesh::Client(Box::new(client)))
    }

    /// The machines.
    ///
    /// # Errors
    /// The agent does not answer.
    pub(super) async fn peers(&self) -> Result<Value, CliError> {
        match self {
            Mesh::Agent(local) => local.get("peers").await,
            Mesh::Client(client) => Ok(view::peers(&client.peers(), clock::mono())),
        }
    }

    /// The models.
    ///
    /// # Errors
    /// The agent does not answer.
    pub(super) async fn models(&self) -> Result<Value, CliError> {
        match self {
            Mesh::Agent(local) => local.get("models").await,
            Mesh::Client(client) => Ok(view::models(&client.peers())),
        }
    }

    /// The ranking.
    ///
    /// # Errors
    /// The agent does not answer.
    pub(super) async fn why(&self, model: &str, prompt_tokens: u32) -> Result<Value, CliError> {
        match self {
            Mesh::Agent(local) => {
                let query: String = url::form_urlencoded::Serializer::new(String::new())
                    .append_pair("model", model)
                    .append_pair("prompt_tokens", &prompt_tokens.to_string())
                    .finish();
                local.get(&format!("why?{query}")).await
            }
            Mesh::Client(client) => {
                let (ranking, peers) = (client.why(model, prompt_tokens), client.peers());
                let near = match ranking.ranked.is_empty() {
                    true => near_names(&peers, model),
                    false => Vec::new(),
                };
                Ok(view::why(model, &ranking, &near, &peers))
            }
        }
    }

    /// Starts an answer to an OpenAI chat body. Dropping it cancels.
    ///
    /// # Errors
    /// The agent does not answer, or the body is wrong.
    pub(super) async fn generate(&self, body: &Value) -> Result<Events, CliError> {
        match self {
            Mesh::Agent(local) => Ok(Events::Agent(local.lines("generate", body).await?)),
            Mesh::Client(client) => {
                let parsed = parse(Api::Chat, body.to_string().as_bytes())
                    .map_err(|e| CliError::new(e.code, e.message))?;
                Ok(Events::Client(Box::new(client.generate(parsed.request))))
            }
        }
    }

    /// Ends a client in order; its peers need not wait for its silence.
    pub(super) async fn close(self) {
        if let Mesh::Client(client) = self {
            client.shutdown().await;
        }
    }
}

/// A running answer.
pub(super) enum Events {
    /// From the agent.
    Agent(Lines),
    /// From the mesh.
    Client(Box<Generation>),
}

impl Events {
    /// The next event as the mesh API writes it; `None` after the last.
    ///
    /// # Errors
    /// The agent went away.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, CliError> {
        match self {
            Events::Agent(lines) => lines.next().await,
            Events::Client(generation) => {
                Ok(generation.next().await.map(|event| event_json(&event)))
            }
        }
    }
}
