//! Leases: models that conversations keep warm, over QUIC and in process. The engines are doubles.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod serve_support;

use futures_util::future::poll_fn;
use serve_support::listener::{Listener, say};
use serve_support::{Answer, Caller, Mesh, PATIENCE, Server, open};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use unamesh_agent::engine::{Engine, EngineError};
use unamesh_agent::serve::ServeConfig;
use unamesh_client::transport::{LeaseLink, LinkError};
use unamesh_proto::limits::{MAX_LEASES, MAX_WARM_MODELS};
use unamesh_proto::timeouts::ENGINE_POLL;
use unamesh_proto::wire::{
    ErrorCode, ModelKind, Residency, Role, StreamKind, WarmFrame, WarmModel, WarmRequest, Warmed,
    Warmth, WireError,
};
use unamesh_tests::doubles::{EarDouble, EarScript, VoiceDouble, VoiceScript};

fn model(kind: ModelKind) -> WarmModel {
    WarmModel {
        kind,
        model: String::new(),
        engine: u16::MAX,
        voice: String::new(),
        language: "en".to_owned(),
    }
}

/// A lease of a voice and an ear.
fn both() -> WarmRequest {
    WarmRequest {
        session: 7,
        models: vec![model(ModelKind::Tts), model(ModelKind::Stt)],
    }
}

fn voice_alone() -> WarmRequest {
    WarmRequest {
        session: 8,
        models: vec![model(ModelKind::Tts)],
    }
}

struct Home {
    voice: VoiceDouble,
    ear: EarDouble,
    server: Server,
    connection: quinn::Connection,
    _mesh: Mesh,
}

impl Home {
    async fn new(script: VoiceScript) -> Home {
        Home::with(script, ServeConfig::default()).await
    }

    async fn with(script: VoiceScript, config: ServeConfig) -> Home {
        let mesh = Mesh::new();
        let voice = VoiceDouble::new("voice", script);
        let ear = EarDouble::new("ear", EarScript::default());
        let engines: Vec<Arc<dyn Engine>> = vec![Arc::new(voice.clone()), Arc::new(ear.clone())];
        let server = Server::with(mesh.member(Role::Agent), engines, config).await;
        let connection = Caller::new(&mesh, Role::Client).connect(&server).await;
        Home {
            voice,
            ear,
            server,
            connection,
            _mesh: mesh,
        }
    }

    async fn lease(&self, request: &WarmRequest) -> Answer {
        open(&self.connection, StreamKind::Warm, request).await
    }
}

async fn next(lease: &mut Answer) -> WarmFrame {
    let next = timeout(PATIENCE, lease.reader.next()).await;
    let (kind, body) = next.expect("a frame comes in time").unwrap().unwrap();
    WarmFrame::decode(kind, &body).unwrap().unwrap()
}

/// How warm its models are, in the request's order.
async fn warmth(lease: &mut Answer, models: usize) -> Vec<Warmth> {
    let mut told = vec![None; models];
    for _ in 0..models {
        match next(lease).await {
            WarmFrame::Warmed(Warmed { at, how }) => told[usize::from(at)] = Some(how),
            other => panic!("{other:?}"),
        }
    }
    told.into_iter().map(Option::unwrap).collect()
}

async fn refused(lease: &mut Answer) -> WireError {
    match next(lease).await {
        WarmFrame::Error(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn cold_models_are_asked_once_for_next_to_nothing() {
    let home = Home::new(VoiceScript::default()).await;
    let mut first = home.lease(&both()).await;
    assert_eq!(warmth(&mut first, 2).await, [Warmth::Asked, Warmth::Asked]);
    // Other conversations, and this one again after it ended, find them warm.
    let mut second = home.lease(&both()).await;
    assert_eq!(warmth(&mut second, 2).await, [Warmth::Already; 2]);
    drop(first);
    let mut third = home.lease(&voice_alone()).await;
    assert_eq!(warmth(&mut third, 1).await, [Warmth::Already]);
    let (said, heard) = (home.voice.seen(), home.ear.seen());
    assert_eq!((said.asked, said.finished, said.dropped), (1, 1, 0));
    assert_eq!((heard.asked, heard.finished), (1, 1));
    assert!(heard.samples <= 16_000 / 3, "{heard:?}");
    assert!(home.voice.calls()[0].text.len() <= 3);
    let measured = home.server.registry.catalog();
    assert!(measured.models.iter().all(|m| m.stats.samples == 0));
    assert_eq!(
        home.server.service.active(),
        0,
        "no drain waits for a lease"
    );
    home.server.shutdown().await;
}

#[tokio::test]
async fn who_was_asked_anyway_is_not_asked_for_a_lease() {
    let home = Home::new(VoiceScript::default()).await;
    let mut listener = Listener::open(&home.connection, &say("Well then.")).await;
    listener.end().await.unwrap();
    let mut lease = home.lease(&voice_alone()).await;
    assert_eq!(warmth(&mut lease, 1).await, [Warmth::Already]);
    assert_eq!(home.voice.calls().len(), 1);
    home.server.shutdown().await;
}

#[tokio::test]
async fn who_is_at_work_is_not_disturbed() {
    let home = Home::new(VoiceScript {
        slots: 1,
        first_delay: Duration::from_secs(600),
        ..VoiceScript::default()
    })
    .await;
    let mut first = home.lease(&voice_alone()).await;
    home.voice.until(|seen| seen.running == 1).await;
    let mut second = home.lease(&voice_alone()).await;
    assert_eq!(warmth(&mut second, 1).await, [Warmth::Busy]);
    assert_eq!(home.voice.seen().asked, 1);
    // Whoever ends it ends what was asked for it.
    first.writer.cancel();
    first.reader.stop(0u32.into());
    home.voice.until(|seen| seen.dropped == 1).await;
    let mut third = home.lease(&voice_alone()).await;
    home.voice.until(|seen| seen.asked == 2).await;
    // So does the end of the connection.
    home.connection.close(0u32.into(), b"");
    home.voice.until(|seen| seen.dropped == 2).await;
    assert!(third.reader.next().await.is_err());
    home.server.shutdown().await;
}

#[tokio::test]
async fn who_leaves_says_so_and_takes_no_more() {
    let home = Home::new(VoiceScript::default()).await;
    let mut lease = home.lease(&voice_alone()).await;
    warmth(&mut lease, 1).await;
    home.server.service.drain(Duration::from_secs(60));
    assert_eq!(refused(&mut lease).await.code, ErrorCode::Draining);
    let mut late = home.lease(&voice_alone()).await;
    assert_eq!(refused(&mut late).await.code, ErrorCode::Draining);
    home.server.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_kept_is_told() {
    let home = Home::new(VoiceScript {
        refuse: Some(EngineError::Failed {
            engine: "voice".to_owned(),
            reason: "out of memory".to_owned(),
        }),
        ..VoiceScript::default()
    })
    .await;
    let mut lease = home.lease(&both()).await;
    assert_eq!(warmth(&mut lease, 2).await, [Warmth::Failed, Warmth::Asked]);
    let wrong = |models| WarmRequest { session: 1, models };
    let unknown = WarmModel {
        model: "other".to_owned(),
        ..model(ModelKind::Stt)
    };
    let many = vec![model(ModelKind::Tts); MAX_WARM_MODELS + 1];
    for (models, code) in [
        (vec![], ErrorCode::Invalid),
        (vec![model(ModelKind::Llm)], ErrorCode::Invalid),
        (many, ErrorCode::Invalid),
        (vec![unknown], ErrorCode::UnknownModel),
    ] {
        let mut lease = home.lease(&wrong(models)).await;
        assert_eq!(refused(&mut lease).await.code, code);
    }
    assert_eq!(home.voice.seen().asked, 1);
    home.server.shutdown().await;
}

/// Links of this agent itself.
async fn told(lease: &mut Box<dyn LeaseLink>) -> Warmth {
    match poll_fn(|cx| lease.poll_frame(cx)).await.unwrap().unwrap() {
        WarmFrame::Warmed(warmed) => warmed.how,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_model_that_is_unloaded_meanwhile_is_asked_again() {
    let config = ServeConfig {
        warm_again: Duration::ZERO,
        ..ServeConfig::default()
    };
    let home = Home::with(VoiceScript::default(), config).await;
    let mut lease = home.server.service.lease_local(&voice_alone()).unwrap();
    assert_eq!(told(&mut lease).await, Warmth::Asked);
    home.voice
        .change(|script| script.residency = Residency::OnDisk);
    let again = timeout(PATIENCE, told(&mut lease)).await;
    assert_eq!(again.expect("the engine is looked at"), Warmth::Asked);
    // An engine that says so all the same is not asked for ever.
    let quiet = timeout(ENGINE_POLL * 3 / 2, told(&mut lease)).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_eq!(home.voice.seen().asked, 2);
    home.server.shutdown().await;
}

#[tokio::test]
async fn leases_are_bounded() {
    let home = Home::new(VoiceScript::default()).await;
    let lease = || home.server.service.lease_local(&voice_alone());
    let mut held: Vec<_> = (0..MAX_LEASES).map(|_| lease().unwrap()).collect();
    let Err(LinkError::Refused(error)) = lease().map(drop) else {
        panic!("one too many");
    };
    assert_eq!(error.code, ErrorCode::Busy);
    held.pop();
    assert!(lease().is_ok());
    drop(held);
    home.server.shutdown().await;
}
