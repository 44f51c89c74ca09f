//! Asks the mesh a question and prints the answer as it comes, whichever machines give it.
//!
//!     cargo run --release --package unamesh-examples --bin chat -- STATE_DIR MODEL QUESTION
//!
//! `unamesh --state STATE_DIR join LINK` makes STATE_DIR, with a link that `unamesh invite
//! --role client` printed.

use futures_util::StreamExt;
use serde_json::json;
use std::io::{Write, stdout};
use std::time::Duration;
use unamesh_client::client::{ClientConfig, Event, MeshClient, Request};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [state_dir, model, question] = arguments.as_slice() else {
        return Err("usage: chat STATE_DIR MODEL QUESTION".into());
    };
    let client = MeshClient::connect(ClientConfig {
        state_dir: state_dir.into(),
        seeds: Vec::new(),
        mdns: true,
    })?;
    if !client.ready(1, Duration::from_secs(5)).await {
        return Err("no agent answers: does `unamesh up` run on any machine?".into());
    }

    let messages = json!([{"role": "user", "content": question}]).to_string();
    let mut answer = client.generate(Request::chat(model, messages));
    while let Some(event) = answer.next().await {
        match event {
            Event::Started { peer, why } => eprintln!("[{}: {why}]", peer.name),
            Event::Progress { .. } => {}
            Event::Token { text, .. } => {
                print!("{text}");
                stdout().flush()?;
            }
            // Nothing to do: the answer goes on by itself.
            Event::PeerChanged { to, gap, .. } => eprintln!("[{} goes on after {gap:?}]", to.name),
            Event::Done { usage, .. } => println!("\n[{} tokens]", usage.completion_tokens),
            Event::Failed(error) => return Err(error.into()),
        }
    }
    client.shutdown().await;
    Ok(())
}
