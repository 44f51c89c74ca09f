//! The driver over a transport double: streams are channels that the test writes to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(
    clippy::disallowed_methods,
    reason = "a test ends with its runtime, and every task with it"
)]

use futures_util::StreamExt;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use unamesh_client::client::{ClientError, Event, MeshClient, Request};
use unamesh_client::clock;
use unamesh_client::driver::Generation;
use unamesh_client::transport::{BoxFuture, FrameStream, LinkError, Open, Transport};
use unamesh_proto::table::{Liveness, Path, Peer, Snapshot};
use unamesh_proto::timeouts::{SILENCE_MAX, SILENCE_MIN};
use unamesh_proto::wire::{
    Accepted, Advert, Chunk, Done, EngineAdvert, EngineKind, FinishReason, GenFrame, Hardware,
    Health, ModelAdvert, ModelKind, NodeState, PathKind, Residency, Role, SignedAdvert, Stats,
    Token, Usage,
};
use unamesh_proto::{GenerationId, NodeId};

type Frames = mpsc::UnboundedSender<Result<GenFrame, LinkError>>;

/// Hands every opened stream to the test.
struct TransportDouble {
    opened: mpsc::UnboundedSender<(NodeId, Open, Frames)>,
    closed: Arc<Mutex<Vec<NodeId>>>,
}

struct FrameStreamDouble {
    node: NodeId,
    frames: mpsc::UnboundedReceiver<Result<GenFrame, LinkError>>,
    closed: Arc<Mutex<Vec<NodeId>>>,
}

impl FrameStream for FrameStreamDouble {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<GenFrame, LinkError>>> {
        self.frames.poll_recv(cx)
    }
}

impl Drop for FrameStreamDouble {
    fn drop(&mut self) {
        self.closed.lock().unwrap().push(self.node);
    }
}

impl Transport for TransportDouble {
    fn open(&self, node: NodeId, open: Open) -> BoxFuture<Result<Box<dyn FrameStream>, LinkError>> {
        let (tx, frames) = mpsc::unbounded_channel();
        self.opened.send((node, open, tx)).unwrap();
        let stream = FrameStreamDouble {
            node,
            frames,
            closed: self.closed.clone(),
        };
        Box::pin(async move { Ok(Box::new(stream) as Box<dyn FrameStream>) })
    }

    fn warm(&self, _: &[NodeId]) {}
}

struct Home {
    client: MeshClient,
    table: watch::Sender<Arc<Snapshot>>,
    opened: mpsc::UnboundedReceiver<(NodeId, Open, Frames)>,
    closed: Arc<Mutex<Vec<NodeId>>>,
}

fn home() -> Home {
    let (table, seen) = watch::channel(Arc::new(snapshot(NodeState::Up)));
    let (tx, opened) = mpsc::unbounded_channel();
    let closed = Arc::default();
    let transport = TransportDouble {
        opened: tx,
        closed: Arc::clone(&closed),
    };
    Home {
        client: MeshClient::over(seen, Arc::new(transport)),
        table,
        opened,
        closed,
    }
}

fn id(n: u8) -> NodeId {
    NodeId([n; 32])
}

/// Two peers that have the model; the first is closer, its state is given.
fn snapshot(first: NodeState) -> Snapshot {
    let peers = [(1, first, 1), (2, NodeState::Up, 9)].map(|(n, state, rtt_ms)| {
        let advert = Advert {
            node: id(n),
            name: format!("host{n}"),
            version: "1".into(),
            epoch: 1,
            seq: 1,
            wall_ms: clock::wall().as_millis(),
            state,
            drain_ms: 0,
            role: Role::Agent,
            addrs: Vec::new(),
            swarm_port: 0,
            hardware: Hardware::default(),
            engines: vec![EngineAdvert {
                name: "e".into(),
                kind: EngineKind::OpenAi,
                health: Health::Ok,
                slots: 4,
                busy: 0,
                queue: 0,
            }],
            models: vec![ModelAdvert {
                engine: 0,
                name: "m".into(),
                digest: "d".into(),
                family: String::new(),
                quantization: String::new(),
                size: 0,
                context: 4096,
                kind: ModelKind::Llm,
                residency: Residency::Loaded,
                load_eta_ms: 0,
                token_ids: true,
                stats: Stats {
                    ttft_ms: 20.0,
                    itl_ms: 10.0,
                    samples: 5,
                    ..Stats::default()
                },
            }],
            voices: Vec::new(),
        };
        let path = Path {
            addr: ([127, 0, 0, 1], 1).into(),
            kind: PathKind::Loopback,
            rtt: Some(Duration::from_millis(rtt_ms)),
            ok_at: Some(clock::mono()),
        };
        Arc::new(Peer {
            advert: Arc::new(advert),
            signed: Arc::new(SignedAdvert {
                certificate: Vec::new(),
                payload: Vec::new(),
                signature: [0; 64],
            }),
            liveness: Liveness::Alive,
            paths: vec![path],
            heard: clock::mono(),
        })
    });
    Snapshot {
        version: 1,
        peers: peers.to_vec(),
        ..Snapshot::default()
    }
}

fn accepted() -> Result<GenFrame, LinkError> {
    let generation = GenerationId([1; 16]);
    Ok(GenFrame::Accepted(Accepted {
        generation,
        engine: 0,
        digest: "d".into(),
        exact: true,
    }))
}

fn token(index: u32, text: &str) -> Result<GenFrame, LinkError> {
    let chunk = Chunk {
        text: text.into(),
        ids: vec![index],
        tokens: 1,
    };
    Ok(GenFrame::Token(Token {
        index,
        chunk,
        extra: String::new(),
    }))
}

fn done(frames: u32) -> Result<GenFrame, LinkError> {
    let usage = Usage {
        prompt_tokens: 1,
        completion_tokens: frames,
    };
    Ok(GenFrame::Done(Done {
        finish: FinishReason::Stop,
        usage,
        frames,
    }))
}

async fn next(generation: &mut Generation) -> Event {
    let next = tokio::time::timeout(Duration::from_secs(5), generation.next());
    next.await
        .expect("an event in time")
        .expect("an event before the end")
}

#[tokio::test]
async fn a_silent_peer_is_replaced_and_the_change_is_told() {
    let mut home = home();
    let mut generation = home.client.generate(Request::chat("m", "[]"));
    let (node, _, frames) = home.opened.recv().await.unwrap();
    assert_eq!(node, id(1));
    frames.send(accepted()).unwrap();
    frames.send(token(0, "one ")).unwrap();
    assert!(
        matches!(next(&mut generation).await, Event::Started { peer, .. } if peer.name == "host1")
    );
    assert!(matches!(
        next(&mut generation).await,
        Event::Token { index: 0, .. }
    ));

    // Nothing more comes; the stream stays open as that of a frozen peer does.
    let waiting = tokio::spawn(async move {
        let event = next(&mut generation).await;
        (generation, event)
    });
    // Its generation is asked for over a fresh path, which is as dead, and a backup is begun.
    let (mut fresh, mut backup) = (None, None);
    while fresh.is_none() || backup.is_none() {
        match home.opened.recv().await.unwrap() {
            (node, Open::Reattach { .. }, frames) => fresh = Some((node, frames)),
            (node, Open::Generate(request), frames) => backup = Some((node, request, frames)),
            (_, open, _) => panic!("{open:?}"),
        }
    }
    let (fresh, _silent) = fresh.unwrap();
    let (node, request, backup) = backup.unwrap();
    assert_eq!((fresh, node), (id(1), id(2)));
    assert_eq!(request.prefix.len(), 1);
    backup.send(accepted()).unwrap();
    backup.send(token(1, "two")).unwrap();
    backup.send(done(2)).unwrap();
    let (mut generation, event) = waiting.await.unwrap();
    let Event::PeerChanged { from, to, gap, .. } = event else {
        panic!("{event:?}")
    };
    assert_eq!((from.name.as_str(), to.name.as_str()), ("host1", "host2"));
    assert!(
        gap >= Duration::from_millis(150) && gap < Duration::from_millis(400),
        "{gap:?}"
    );
    assert_eq!(
        *home.closed.lock().unwrap(),
        [id(1), id(1)],
        "both streams to the frozen peer were reset"
    );
    assert!(matches!(
        next(&mut generation).await,
        Event::Token { index: 1, .. }
    ));
    assert!(matches!(next(&mut generation).await, Event::Done { .. }));
    assert!(generation.next().await.is_none());
}

#[tokio::test]
async fn a_callers_own_pause_is_not_taken_for_a_peers_silence() {
    let mut home = home();
    let mut generation = home.client.generate(Request::chat("m", "[]"));
    let (_, _, frames) = home.opened.recv().await.unwrap();
    frames.send(accepted()).unwrap();
    frames.send(token(0, "one ")).unwrap();
    next(&mut generation).await;
    next(&mut generation).await;
    // The peer goes on while the caller does something else for longer than any bound.
    frames.send(token(1, "two")).unwrap();
    frames.send(done(2)).unwrap();
    tokio::time::sleep(SILENCE_MAX * 2).await;
    assert!(matches!(
        next(&mut generation).await,
        Event::Token { index: 1, .. }
    ));
    assert!(matches!(next(&mut generation).await, Event::Done { .. }));
    assert!(home.opened.try_recv().is_err(), "no backup");
}

#[tokio::test]
async fn dropping_and_cancelling_reset_the_stream() {
    let mut home = home();
    let mut generation = home.client.generate(Request::chat("m", "[]"));
    let (_, _, frames) = home.opened.recv().await.unwrap();
    frames.send(accepted()).unwrap();
    frames.send(token(0, "one ")).unwrap();
    next(&mut generation).await;
    generation.cancel();
    assert_eq!(
        *home.closed.lock().unwrap(),
        [id(1)],
        "at once, without another poll"
    );
    while let Some(event) = generation.next().await {
        if let Event::Failed(error) = event {
            assert!(matches!(error, ClientError::Cancelled));
        }
    }
    let mut generation = home.client.generate(Request::chat("m", "[]"));
    let (_, _, frames) = home.opened.recv().await.unwrap();
    frames.send(accepted()).unwrap();
    frames.send(token(0, "one ")).unwrap();
    next(&mut generation).await;
    drop(generation);
    assert_eq!(home.closed.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_dropped_answer_tells_what_it_learned_and_spent() {
    let mut home = home();
    let mut generation = home.client.generate(Request::chat("m", "[]"));
    let (_, _, frames) = home.opened.recv().await.unwrap();
    frames.send(accepted()).unwrap();
    frames.send(token(0, "one ")).unwrap();
    next(&mut generation).await;
    next(&mut generation).await;
    // It falls silent: a hedge begins, and the caller has enough.
    tokio::select! {
        event = next(&mut generation) => panic!("{event:?}"),
        _ = async {
            while home.opened.recv().await.unwrap().0 != id(2) {}
        } => {}
    }
    assert!(home.client.learned().is_none(), "not yet");
    drop(generation);
    let (counts, _) = home.client.hedges();
    assert_eq!((counts.started, counts.in_vain), (1, 1));
    let (paths, ..) = home.client.learned().unwrap().parts(clock::wall());
    assert_eq!(paths.len(), 1, "of the one that was heard");
}

#[tokio::test]
async fn a_caller_that_pauses_teaches_no_silence() {
    let mut home = home();
    let mut generation = home.client.generate(Request::chat("m", "[]"));
    let (_, _, frames) = home.opened.recv().await.unwrap();
    frames.send(accepted()).unwrap();
    frames.send(token(0, "one ")).unwrap();
    next(&mut generation).await;
    next(&mut generation).await;
    for index in 1..5 {
        frames.send(token(index, "more ")).unwrap();
        tokio::time::sleep(SILENCE_MAX).await;
        next(&mut generation).await;
    }
    drop(generation);
    let (paths, ..) = home.client.learned().unwrap().parts(clock::wall());
    assert_eq!(paths[0].1.bound(), SILENCE_MIN);
}

#[tokio::test]
async fn a_peer_that_drains_hands_over_before_it_leaves() {
    let mut home = home();
    let mut generation = home.client.generate(Request::chat("m", "[]"));
    let (_, _, first) = home.opened.recv().await.unwrap();
    first.send(accepted()).unwrap();
    first.send(token(0, "one ")).unwrap();
    next(&mut generation).await;
    next(&mut generation).await;
    home.table
        .send_replace(Arc::new(snapshot(NodeState::Draining)));
    let waiting = tokio::spawn(async move { next(&mut generation).await });
    let (node, _, backup) = home.opened.recv().await.unwrap();
    assert_eq!(node, id(2));
    backup.send(accepted()).unwrap();
    backup.send(token(1, "two")).unwrap();
    let event = waiting.await.unwrap();
    assert!(
        matches!(&event, Event::PeerChanged { reason, .. } if reason == "it is leaving"),
        "{event:?}"
    );
}

#[tokio::test]
async fn an_unknown_model_names_what_is_near_and_a_broken_answer_keeps_its_text() {
    let mut home = home();
    let mut generation = home.client.generate(Request::chat("mm", "[]"));
    let Event::Failed(ClientError::UnknownModel { model, near }) = next(&mut generation).await
    else {
        panic!("a typed error")
    };
    assert_eq!(model, "mm");
    assert_eq!(near[0].0, "m");

    let request = Request {
        spliceable: false,
        ..Request::chat("m", "[]")
    };
    let mut generation = home.client.generate(request);
    let (_, _, frames) = home.opened.recv().await.unwrap();
    frames.send(accepted()).unwrap();
    frames.send(token(0, "{\"a\":")).unwrap();
    drop(frames);
    next(&mut generation).await;
    next(&mut generation).await;
    let Event::Failed(ClientError::Incomplete {
        delivered, tokens, ..
    }) = next(&mut generation).await
    else {
        panic!("a typed error")
    };
    assert_eq!((delivered.as_str(), tokens), ("{\"a\":", 1));
}

#[tokio::test]
async fn a_prompt_beyond_every_context_is_refused_by_name_of_the_limit() {
    let home = home();
    let request = Request {
        prompt_tokens: 15_000,
        ..Request::chat("m", "[]")
    };
    let mut generation = home.client.generate(request);
    let Event::Failed(ClientError::ContextExceeded { message }) = next(&mut generation).await
    else {
        panic!("a typed error")
    };
    assert!(
        message.contains("5000") && message.contains("4096"),
        "{message}"
    );
}

/// The gateway estimates four bytes a token; prose has more of them. The engine knows best.
#[tokio::test]
async fn an_estimate_beyond_the_context_is_left_to_the_engine() {
    let mut home = home();
    let request = Request {
        prompt_tokens: 5000,
        ..Request::chat("m", "[]")
    };
    let _generation = home.client.generate(request);
    let (node, ..) = home.opened.try_recv().expect("somebody is asked");
    assert_eq!(node, id(1));
}

/// The caller names who is to begin: it is asked, and the others if it is not there.
#[tokio::test]
async fn who_is_wanted_first_begins_if_it_can() {
    for (first, asked) in [(id(2), id(2)), (id(9), id(1))] {
        let mut home = home();
        let request = Request {
            first: Some(first),
            ..Request::chat("m", "[]")
        };
        let _generation = home.client.generate(request);
        let (node, ..) = home.opened.try_recv().expect("somebody is asked");
        assert_eq!(node, asked);
    }
}

/// Nobody with the same model is left: another one goes on if the caller allowed it.
#[tokio::test]
async fn another_model_goes_on_only_if_allowed() {
    for allowed in [false, true] {
        let mut home = home();
        let mut table = snapshot(NodeState::Up);
        let mut third = Peer::clone(&table.peers[1]);
        let mut advert = Advert::clone(&third.advert);
        advert.node = id(3);
        advert.models[0].name = "mx".into();
        advert.models[0].digest = "x".into();
        third.advert = Arc::new(advert);
        table.peers.push(Arc::new(third));
        home.table.send_replace(Arc::new(table));

        let request = Request {
            other_model: allowed,
            ..Request::chat("m", "[]")
        };
        let mut generation = home.client.generate(request);
        let (_, _, frames) = home.opened.recv().await.unwrap();
        frames.send(accepted()).unwrap();
        frames.send(token(0, "one ")).unwrap();
        drop(frames);
        next(&mut generation).await;
        next(&mut generation).await;
        // The second one with the model comes before any other.
        let reading = next(&mut generation);
        tokio::pin!(reading);
        let (second, _, frames) = tokio::select! {
            opened = home.opened.recv() => opened.unwrap(),
            event = &mut reading => panic!("{event:?}"),
        };
        assert_eq!(second, id(2));
        drop(frames);
        let (third, open, frames) = tokio::select! {
            opened = home.opened.recv() => opened.unwrap(),
            event = &mut reading => panic!("{event:?}"),
        };
        assert_eq!(third == id(3), allowed, "{third}");
        if !allowed {
            continue;
        }
        let Open::Generate(request) = open else {
            panic!("a new generation")
        };
        assert_eq!((request.model.as_str(), request.prefix.len()), ("mx", 1));
        frames.send(token(1, "two")).unwrap();
        let Event::PeerChanged { seam, .. } = reading.await else {
            panic!("a change of peer")
        };
        assert_eq!(seam.name(), "other_model");
    }
}
