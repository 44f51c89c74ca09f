//! Engines: when they are given a seat, what they tell, how they fail.

use crate::serve_support::hearer::{Home, partial, silence};
use crate::serve_support::mouth::hear;
use std::time::Duration;
use unamesh_agent::engine::EngineError;
use unamesh_proto::limits::MAX_TRANSCRIPT;
use unamesh_proto::wire::{EngineKind, ErrorCode, HearFrame, Phase};
use unamesh_tests::doubles::ear_double::{EarFailure, EarScript};
use unamesh_tests::doubles::talk::{hush, talk};

#[tokio::test]
async fn an_engine_that_tells_by_itself_is_not_asked() {
    let script = EarScript {
        partial_every: 3200,
        kind: EngineKind::GlmAsr,
        ..EarScript::default()
    };
    let home = Home::new(script).await;
    let mut mouth = home.local(hear(1));
    mouth.accepted().await;
    for part in talk(800, 120.0).chunks(3200) {
        mouth.say(part);
        mouth.until(partial).await;
    }
    mouth.say(&hush(400));
    mouth.until(silence).await;
    mouth.say(&talk(400, 120.0));
    mouth.end();
    assert_eq!(mouth.last().await.unwrap().text, mouth.whole());
    assert_eq!(home.ear.seen().asked, 1);
    let mut partials = mouth.partials();
    assert!(partials.len() >= 6, "{partials:?}");
    partials.dedup();
    assert_eq!(partials.len(), mouth.partials().len());
    home.server.shutdown().await;
}

#[tokio::test]
async fn a_seat_is_taken_when_the_engine_works() {
    let slow = EarScript {
        slots: 1,
        residue: Duration::from_millis(250),
        ..EarScript::default()
    };
    for (kind, waits) in [(EngineKind::Whisper, false), (EngineKind::GlmAsr, true)] {
        let home = Home::new(EarScript {
            kind,
            ..slow.clone()
        })
        .await;
        let mut first = home.local(hear(1));
        first.say(&talk(300, 120.0));
        first.accepted().await;
        let busy = home.server.service.load()[0].busy;
        assert_eq!(busy, u16::from(waits), "while {kind} listens");
        let mut second = home.local(hear(2));
        second.say(&talk(300, 120.0));
        second.accepted().await;
        let queued =
            |f: &HearFrame| matches!(f, HearFrame::Progress(p) if p.phase == Phase::Queued);
        if waits {
            second.until(queued).await;
        } else {
            let both = home.ear.until(|seen| seen.running == 2);
            first.during(second.during(both)).await;
        }
        first.end();
        second.end();
        // Whoever waits for the engine's one slot is told so.
        let (first, transcript) = tokio::join!(first.last(), second.last());
        assert!(first.is_ok() && transcript.is_ok());
        assert!(
            second.progress.iter().any(|p| p.phase == Phase::Queued),
            "{kind}"
        );
        home.idle().await;
        home.server.shutdown().await;
    }
}

#[tokio::test]
async fn while_the_engine_works_there_is_progress() {
    let home = Home::new(EarScript {
        residue: Duration::from_millis(500),
        ..EarScript::default()
    })
    .await;
    let mut mouth = home.local(hear(1));
    mouth.say(&talk(300, 120.0));
    mouth.end();
    mouth.last().await.unwrap();
    let working = mouth
        .progress
        .iter()
        .filter(|p| p.phase == Phase::Generating);
    assert!(working.count() >= 5, "{:?}", mouth.progress);
    home.server.shutdown().await;
}

#[tokio::test]
async fn the_faults_of_an_engine_are_typed() {
    let home = Home::new(EarScript::default()).await;
    let busy = EngineError::Busy {
        engine: "ear".to_owned(),
    };
    let faults = [
        (EarFailure::Error(busy), ErrorCode::Busy),
        (EarFailure::EndEarly, ErrorCode::EngineFailed),
        (
            EarFailure::Oversize(MAX_TRANSCRIPT + 1),
            ErrorCode::EngineFailed,
        ),
        (EarFailure::Hasty, ErrorCode::EngineFailed),
    ];
    for (failure, code) in faults {
        let asked = home.ear.seen().asked;
        home.ear
            .change(|script| script.fail = Some((asked, failure.clone())));
        let mut mouth = home.local(hear(1));
        mouth.accepted().await;
        mouth.say(&talk(300, 120.0));
        if failure != EarFailure::Hasty {
            mouth.end();
        }
        assert_eq!(mouth.last().await.unwrap_err().code, code, "{failure:?}");
        home.idle().await;
    }
    home.ear.change(|script| {
        script.refuse = Some(EngineError::Down {
            engine: "ear".to_owned(),
            reason: "gone".to_owned(),
        });
    });
    let mut mouth = home.local(hear(1));
    assert_eq!(mouth.last().await.unwrap_err().code, ErrorCode::EngineDown);
    home.server.shutdown().await;
}
