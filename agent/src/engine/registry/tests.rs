//! The registry against an engine that says what the test tells it.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::engine::speech::Voice;
use crate::engine::{EngineError, EngineEvent, EngineInfo, EngineStream};
use futures_util::{StreamExt, stream};
use unamesh_proto::wire::{
    EngineKind, ErrorCode, GenerateRequest, InputKind, ModelKind, Residency,
};

/// A double: answers from what was put into it.
struct Puppet {
    says: Mutex<Result<EngineInfo, EngineError>>,
    asked: watch::Sender<u32>,
    wedged: watch::Sender<u32>,
}

impl Puppet {
    fn new() -> Arc<Puppet> {
        Arc::new(Puppet {
            says: Mutex::new(Ok(info(Health::Ok))),
            asked: watch::Sender::new(0),
            wedged: watch::Sender::new(0),
        })
    }

    fn say(&self, what: Result<EngineInfo, EngineError>) {
        *self.says.lock().unwrap() = what;
    }
}

fn model(name: &str) -> ModelAdvert {
    ModelAdvert {
        engine: 0,
        name: name.into(),
        digest: String::new(),
        family: String::new(),
        quantization: String::new(),
        size: 0,
        context: 0,
        kind: ModelKind::Llm,
        residency: Residency::Loaded,
        load_eta_ms: 0,
        token_ids: false,
        stats: Stats::default(),
    }
}

fn info(health: Health) -> EngineInfo {
    let models = vec![model("smollm2:latest"), model("qwen2.5:14b")];
    EngineInfo {
        health,
        slots: 1,
        models,
        version: String::new(),
        voices: Vec::new(),
    }
}

fn late() -> EngineError {
    EngineError::Busy {
        engine: "puppet".into(),
    }
}

#[async_trait::async_trait]
impl Engine for Puppet {
    fn name(&self) -> &str {
        "puppet"
    }
    fn kind(&self) -> EngineKind {
        EngineKind::OpenAi
    }
    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        self.asked.send_modify(|n| *n += 1);
        self.says.lock().unwrap().clone()
    }
    /// A generation that starts and then fails if the prompt says so, else runs for ever.
    async fn generate(&self, request: Arc<GenerateRequest>) -> Result<EngineStream, EngineError> {
        let started = stream::iter([Ok(EngineEvent::Started { exact: true })]);
        let failed = EngineError::Failed {
            engine: "puppet".into(),
            reason: "told so".into(),
        };
        Ok(match request.input.as_str() {
            "fail" => started.chain(stream::iter([Err(failed)])).boxed(),
            _ => started.chain(stream::pending()).boxed(),
        })
    }
    fn wedged(&self) {
        self.wedged.send_modify(|n| *n += 1);
    }
}

fn start(puppet: &Arc<Puppet>) -> Arc<Registry> {
    const FAST: Pace = Pace {
        poll: Duration::from_millis(10),
        starting: Duration::from_millis(5),
        wedged: Duration::from_millis(60),
    };
    start_with(puppet, FAST)
}

fn start_with(puppet: &Arc<Puppet>, pace: Pace) -> Arc<Registry> {
    Registry::start_at(
        pace,
        vec![Arc::clone(puppet) as Arc<dyn Engine>],
        false,
        SpeedStore::in_memory(),
        TaskTracker::new(),
        CancellationToken::new(),
    )
}

async fn health(changes: &mut watch::Receiver<Arc<Catalog>>, wanted: Health) {
    changes
        .wait_for(|c| c.engines[0].health == wanted)
        .await
        .unwrap();
}

fn request(input: &str) -> Arc<GenerateRequest> {
    Arc::new(crate::engine::request::tests::request(
        InputKind::Text,
        input,
    ))
}

#[tokio::test]
async fn the_catalog_changes_only_when_something_did() {
    let puppet = Puppet::new();
    let registry = start(&puppet);
    let mut changes = registry.changes();
    health(&mut changes, Health::Ok).await;
    let mut asked = puppet.asked.subscribe();
    asked.wait_for(|n| *n > 5).await.unwrap();
    assert!(!changes.has_changed().unwrap());
    registry.observe(
        0,
        "smollm2:latest",
        Sample {
            ttft: Some(Duration::from_millis(80)),
            ..Sample::default()
        },
    );
    assert!(changes.has_changed().unwrap());
    assert_eq!(registry.catalog().models[0].stats.samples, 1);
}

#[tokio::test]
async fn silence_is_busy_while_a_generation_runs_and_down_otherwise() {
    let puppet = Puppet::new();
    let registry = start(&puppet);
    let mut changes = registry.changes();
    health(&mut changes, Health::Ok).await;
    let picked = registry.pick("smollm2", u16::MAX).unwrap();
    let running = picked.engine.generate(request("run")).await.unwrap();
    puppet.say(Err(late()));
    health(&mut changes, Health::Busy).await;
    drop(running);
    health(&mut changes, Health::Down).await;
    let error = registry.pick("smollm2", u16::MAX).err().unwrap();
    assert_eq!(error.code, ErrorCode::EngineDown);
    assert!(error.message.contains("hangs"), "{}", error.message);
    // Silent for long: whoever runs it is told to restart it.
    puppet
        .wedged
        .subscribe()
        .wait_for(|n| *n == 1)
        .await
        .unwrap();
    puppet.say(Ok(info(Health::Ok)));
    health(&mut changes, Health::Ok).await;
}

#[tokio::test]
async fn full_with_our_own_requests_is_no_news() {
    let puppet = Puppet::new();
    let registry = start(&puppet);
    let mut changes = registry.changes();
    health(&mut changes, Health::Ok).await;
    let picked = registry.pick("smollm2", u16::MAX).unwrap();
    let running = picked.engine.generate(request("run")).await.unwrap();
    puppet.say(Ok(info(Health::Busy)));
    let mut asked = puppet.asked.subscribe();
    let seen = *asked.borrow_and_update();
    asked.wait_for(|n| *n > seen + 1).await.unwrap();
    assert_eq!(registry.catalog().engines[0].health, Health::Ok);
    drop(running);
    health(&mut changes, Health::Busy).await;
}

#[tokio::test]
async fn a_failed_generation_has_the_engine_asked_at_once() {
    let puppet = Puppet::new();
    // So slow a poll that the test would not end by it.
    let slow = Duration::from_secs(3600);
    let registry = start_with(
        &puppet,
        Pace {
            poll: slow,
            starting: slow,
            wedged: slow,
        },
    );
    let mut changes = registry.changes();
    health(&mut changes, Health::Ok).await;
    let picked = registry.pick("smollm2", u16::MAX).unwrap();
    let reason = "connection refused".to_owned();
    puppet.say(Err(EngineError::Down {
        engine: "puppet".into(),
        reason,
    }));
    let stream = picked.engine.generate(request("fail")).await.unwrap();
    assert_eq!(stream.count().await, 2);
    health(&mut changes, Health::Down).await;
}

#[tokio::test]
async fn an_unknown_model_names_the_near_ones() {
    let puppet = Puppet::new();
    let registry = start(&puppet);
    health(&mut registry.changes(), Health::Ok).await;
    let error = registry.pick("qwen2.5", u16::MAX).err().unwrap();
    assert_eq!(error.code, ErrorCode::UnknownModel);
    assert!(
        error.message.contains("near names: qwen2.5:14b"),
        "{}",
        error.message
    );
    assert!(registry.pick("smollm2", 7).is_err());
    assert_eq!(registry.pick("qwen2.5:14b", 0).unwrap().index, 0);
}

#[tokio::test]
async fn an_engine_that_loads_keeps_its_models() {
    let puppet = Puppet::new();
    let registry = start(&puppet);
    let mut changes = registry.changes();
    health(&mut changes, Health::Ok).await;
    puppet.say(Ok(EngineInfo {
        models: Vec::new(),
        ..info(Health::Starting)
    }));
    health(&mut changes, Health::Starting).await;
    assert_eq!(registry.catalog().models[0].residency, Residency::Loading);
    assert!(registry.pick("smollm2", u16::MAX).is_ok());
}

#[tokio::test]
async fn voices_are_in_the_catalog_and_their_changes_are_news() {
    let puppet = Puppet::new();
    let registry = start(&puppet);
    let mut changes = registry.changes();
    health(&mut changes, Health::Ok).await;
    let voices = vec![Voice::named("en_US-joe-medium"), Voice::named("")];
    puppet.say(Ok(EngineInfo {
        voices,
        ..info(Health::Ok)
    }));
    changes.wait_for(|c| !c.voices.is_empty()).await.unwrap();
    let joe = [VoiceAdvert {
        engine: 0,
        name: "en_US-joe-medium".into(),
        language: "en-US".into(),
    }];
    assert_eq!(registry.catalog().voices, joe);
    // One that loads has not lost them.
    puppet.say(Ok(info(Health::Starting)));
    health(&mut changes, Health::Starting).await;
    assert_eq!(registry.catalog().voices, joe);
    puppet.say(Ok(info(Health::Ok)));
    changes.wait_for(|c| c.voices.is_empty()).await.unwrap();
}

#[tokio::test]
async fn a_voice_is_the_one_asked_for_or_none() {
    let puppet = Puppet::new();
    let registry = start(&puppet);
    let mut changes = registry.changes();
    let tts = |name| ModelAdvert {
        kind: ModelKind::Tts,
        ..model(name)
    };
    let mut says = info(Health::Ok);
    says.models.push(tts("kokoro"));
    puppet.say(Ok(says.clone()));
    changes
        .wait_for(|c| c.models.iter().any(|m| m.name == "kokoro"))
        .await
        .unwrap();
    let voice = |model, voice| {
        let picked = registry.pick_speech(model, voice, u16::MAX);
        picked
            .map(|p| p.voice)
            .map_err(|e| (e.code, e.field.unwrap()))
    };
    let unknown = |field: &str| Err((ErrorCode::UnknownModel, field.to_owned()));
    // It lists none: it may have any.
    assert_eq!(voice("Kokoro", "af_sky"), Ok("af_sky".to_owned()));
    assert_eq!(voice("smollm2", ""), unknown("model"), "a text model");
    assert_eq!(voice("vibevoice", ""), unknown("model"));

    says.voices = vec![Voice::named("af_bella")];
    puppet.say(Ok(says.clone()));
    changes.wait_for(|c| c.voices.len() == 1).await.unwrap();
    assert_eq!(voice("", ""), Ok("af_bella".to_owned()), "its only one");
    assert_eq!(voice("", "AF_Bella"), Ok("af_bella".to_owned()));
    assert_eq!(voice("kokoro", "af_sky"), unknown("voice"));
    assert_eq!(voice("", "af_bella+af_sky"), unknown("voice"), "half of it");
    let error = registry.pick_speech("", "af_bela", 0).err().unwrap();
    assert!(error.message.contains("near names: af_bella"), "{error}");
    assert!(registry.pick_speech("", "", 7).is_err());

    says.voices.push(Voice::named("af_sky"));
    puppet.say(Ok(says));
    changes.wait_for(|c| c.voices.len() == 2).await.unwrap();
    assert_eq!(
        voice("", ""),
        Ok(String::new()),
        "its default, which it does not tell"
    );
    let mix = "af_bella+af_sky";
    assert_eq!(voice("", mix), Ok(mix.to_owned()));
    puppet.say(Err(late()));
    health(&mut changes, Health::Down).await;
    let error = registry.pick_speech("", "", u16::MAX).err().unwrap();
    assert_eq!(error.code, ErrorCode::EngineDown);
}
