#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use crate::table::Path;
use crate::table::{Liveness, Peer};
use crate::testing::{addr, advert_of, engine, model, node, unsigned};
use crate::wire::{Advert, Gpu, Health, NodeState, PathKind, Residency, Role, Stats};
use std::sync::Arc;

const NEED: Need<'static> = Need {
    model: "m",
    kind: ModelKind::Llm,
    prompt_tokens: 100,
    digest: None,
    sticky: None,
    prompt_at_least: 0,
    needs_token_ids: false,
};

/// An alive peer `n` whose model answers after `ttft` milliseconds over a 1 ms path.
pub(super) fn peer(n: u32, ttft: f32, change: impl FnOnce(&mut Peer, &mut Advert)) -> Arc<Peer> {
    let mut advert = advert_of(node(n), 1, 1);
    advert.models[0].stats.ttft_ms = ttft;
    advert.models[0].stats.ttft_per_ktok_ms = 0.0;
    let mut peer = Peer {
        advert: Arc::new(advert.clone()),
        signed: Arc::new(unsigned()),
        liveness: Liveness::Alive,
        paths: vec![Path {
            addr: addr(n),
            kind: PathKind::Lan,
            rtt: Some(Duration::from_millis(1)),
            ok_at: Some(Mono::ZERO),
        }],
        heard: Mono::ZERO,
    };
    change(&mut peer, &mut advert);
    peer.advert = Arc::new(advert);
    Arc::new(peer)
}

pub(super) fn mesh(peers: Vec<Arc<Peer>>) -> Snapshot {
    Snapshot {
        version: 1,
        peers,
        ..Snapshot::default()
    }
}

fn order(snapshot: &Snapshot, need: &Need<'_>) -> Vec<u32> {
    let first = |n: &NodeId| u32::from_be_bytes(n.0[..4].try_into().unwrap());
    rank(snapshot, need, Mono::ZERO)
        .ranked
        .iter()
        .map(|c| first(&c.node))
        .collect()
}

#[test]
fn the_fastest_to_first_output_is_first() {
    let mesh = mesh(vec![
        peer(1, 80.0, |_, _| {}),
        peer(2, 50.0, |p, _| {
            p.paths[0].rtt = Some(Duration::from_millis(100))
        }),
        peer(3, 60.0, |_, _| {}),
    ]);
    assert_eq!(order(&mesh, &NEED), [3, 1, 2]);
    let best = &rank(&mesh, &NEED, Mono::ZERO).ranked[0];
    assert_eq!(best.cost.total(), Duration::from_millis(61));
    assert!(
        best.reason.contains("61.0 ms") && best.reason.contains("measured 30"),
        "{best:?}"
    );
}

#[test]
fn longer_prompts_follow_the_slope() {
    let mesh = mesh(vec![
        peer(1, 20.0, |_, a| a.models[0].stats.ttft_per_ktok_ms = 500.0),
        peer(2, 200.0, |_, a| a.models[0].stats.ttft_per_ktok_ms = 10.0),
    ]);
    assert_eq!(order(&mesh, &NEED), [1, 2]);
    assert_eq!(
        order(
            &mesh,
            &Need {
                prompt_tokens: 4000,
                ..NEED
            }
        ),
        [2, 1]
    );
}

#[test]
fn a_full_engine_waits_for_a_slot() {
    let full = |busy, queue| {
        peer(1, 50.0, move |_, a| {
            a.engines[0].busy = busy;
            a.engines[0].queue = queue;
        })
    };
    let cost = |p: Arc<Peer>| rank(&mesh(vec![p]), &NEED, Mono::ZERO).ranked[0].cost.queue;
    assert_eq!(cost(full(3, 0)), Duration::ZERO);
    // An answer takes 50 + 200 * 20 ms; four slots.
    assert_eq!(cost(full(4, 0)), Duration::from_micros(1_012_500));
    assert_eq!(cost(full(4, 3)), Duration::from_millis(4050));
}

#[test]
fn a_cold_model_pays_for_loading() {
    let at = |residency| {
        let p = peer(1, 50.0, |_, a| {
            a.models[0].residency = residency;
            a.models[0].load_eta_ms = 700;
        });
        rank(&mesh(vec![p]), &NEED, Mono::ZERO).ranked[0].cost.load
    };
    assert_eq!(at(Residency::Pinned), Duration::ZERO);
    assert_eq!(at(Residency::Loading), Duration::from_millis(700));
    assert_eq!(at(Residency::OnDisk), Duration::from_millis(3000));
}

#[test]
fn unmeasured_speed_is_guessed_from_the_hardware() {
    let unmeasured = |n, gb: u64| {
        peer(n, 0.0, move |_, a| {
            a.models[0].stats = Stats::default();
            if gb > 0 {
                a.hardware.gpus = vec![Gpu {
                    memory_total: gb * 1_000_000_000,
                    ..Gpu::default()
                }];
            }
        })
    };
    let mesh = mesh(vec![unmeasured(1, 0), unmeasured(2, 12), unmeasured(3, 2)]);
    assert_eq!(order(&mesh, &NEED), [2, 1, 3]);
    assert!(
        rank(&mesh, &NEED, Mono::ZERO).ranked[0]
            .reason
            .contains("not measured yet")
    );
}

/// A peer with a card that took `ttft` milliseconds `age` seconds ago; its table value for 100
/// tokens is 145 ms.
fn aged(n: u32, ttft: f32, age: u32) -> Arc<Peer> {
    peer(n, ttft, |_, a| {
        a.models[0].stats.age_s = age;
        let memory_total = 12_000_000_000;
        a.hardware.gpus = vec![Gpu {
            memory_total,
            ..Gpu::default()
        }];
    })
}

#[test]
fn a_peer_that_was_slow_is_tried_again_after_a_while() {
    let after = |age| order(&mesh(vec![aged(1, 60.0, 0), aged(2, 900.0, age)]), &NEED);
    assert_eq!(after(0), [1, 2]);
    assert_eq!(after(4200), [1, 2], "a millisecond in five seconds");
    assert_eq!(after(4201), [2, 1]);
    assert_eq!(after(u32::MAX), [2, 1]);
    let mesh = mesh(vec![aged(1, 60.0, 0), aged(2, 900.0, 4300)]);
    let tried = &rank(&mesh, &NEED, Mono::ZERO).ranked[0];
    assert_eq!(tried.cost.ttft, Duration::from_millis(40));
    assert_eq!(
        tried.expected_ttft,
        Duration::from_millis(900),
        "stalls are judged by it"
    );
    assert_eq!(
        tried.reason,
        "first token in 41.0 ms: path 1.0 + prompt 40.0 (aged from 900.0: measured 30 times, \
         last 4300 s ago)"
    );
}

#[test]
fn who_is_slow_costs_a_bounded_share_of_the_time() {
    // One request a minute, for four days; the slow one stays as slow as it is.
    for slow in [100.0, 900.0, 5000.0, 20_000.0] {
        let (mut measured, mut lost) = ([0u32; 2], 0.0);
        for now in (0..4 * 86_400u32).step_by(60) {
            let [fast_age, slow_age] = measured.map(|at| now - at);
            let mesh = mesh(vec![aged(1, 60.0, fast_age), aged(2, slow, slow_age)]);
            let asked = order(&mesh, &NEED)[0];
            measured[asked as usize - 1] = now;
            lost += if asked == 2 { slow - 60.0 } else { 0.0 };
        }
        assert!(lost > 0.0, "{slow} ms: never tried");
        assert!(
            lost / 1000.0 <= 4.0 * 86_400.0 * 0.0002,
            "{slow} ms: {lost} ms lost"
        );
    }
}

#[test]
fn age_takes_no_more_than_the_hardware_allows_and_adds_nothing() {
    let ttft = |ttft, age, card: bool| {
        let mut peer = aged(1, ttft, age);
        if !card {
            let peer = Arc::make_mut(&mut peer);
            Arc::make_mut(&mut peer.advert).hardware.gpus.clear();
        }
        let best = rank(&mesh(vec![peer]), &NEED, Mono::ZERO).ranked[0].clone();
        best.cost.ttft.as_micros()
    };
    assert_eq!(
        ttft(900.0, 1_000_000, true),
        18_150,
        "an eighth of 79.2 + 66 ms"
    );
    assert_eq!(
        ttft(900.0, 1_000_000, false),
        412_500,
        "an eighth of 660 + 2,640 ms"
    );
    assert_eq!(
        ttft(10.0, 1_000_000, true),
        10_000,
        "better than the table: it stands"
    );
    // Never measured: the table value itself.
    let unmeasured = peer(1, 0.0, |_, a| a.models[0].stats = Stats::default());
    let best = &rank(&mesh(vec![unmeasured]), &NEED, Mono::ZERO).ranked[0];
    assert_eq!(best.cost.ttft, best.expected_ttft);
}

#[test]
fn what_has_begun_tries_nobody() {
    let mesh = mesh(vec![aged(1, 60.0, 0), aged(2, 900.0, 6000)]);
    assert_eq!(order(&mesh, &NEED), [2, 1]);
    for need in [
        Need {
            sticky: Some((node(1), 0)),
            ..NEED
        },
        Need {
            digest: Some("sha256:m"),
            ..NEED
        },
        Need {
            needs_token_ids: true,
            ..NEED
        },
    ] {
        assert_eq!(order(&mesh, &need), [1, 2], "{need:?}");
    }
}

#[test]
fn a_conversation_stays_unless_another_is_clearly_better() {
    let need = Need {
        sticky: Some((node(1), 0)),
        ..NEED
    };
    let against = |ttft| {
        order(
            &mesh(vec![peer(1, 199.0, |_, _| {}), peer(2, ttft, |_, _| {})]),
            &need,
        )[0]
    };
    assert_eq!(against(189.0), 1); // 10 ms better
    assert_eq!(against(169.0), 1); // 30 ms, but only 15 %
    assert_eq!(against(149.0), 2); // 50 ms, 25 %
    // 50 % better, which is 5 ms: not worth a cold cache.
    let near = mesh(vec![peer(1, 9.0, |_, _| {}), peer(2, 4.0, |_, _| {})]);
    assert_eq!(order(&near, &need)[0], 1);
    // A suspect one does not stay.
    let suspect = mesh(vec![
        peer(1, 9.0, |p, _| p.liveness = Liveness::Suspect),
        peer(2, 400.0, |_, _| {}),
    ]);
    assert_eq!(order(&suspect, &need), [2, 1]);
}

#[test]
fn a_migration_prefers_equal_weights_then_token_ids() {
    let mesh = mesh(vec![
        peer(1, 10.0, |_, a| a.models[0].digest = "sha256:other".into()),
        peer(2, 20.0, |_, a| a.models[0].token_ids = false),
        peer(3, 30.0, |_, _| {}),
        peer(4, 40.0, |_, a| a.models[0].name = "renamed".into()),
    ]);
    let need = Need {
        digest: Some("sha256:m"),
        needs_token_ids: true,
        ..NEED
    };
    assert_eq!(order(&mesh, &need), [3, 4, 2, 1]);
    assert_eq!(order(&mesh, &NEED), [1, 2, 3]);
    // Unknown weights say nothing.
    assert_eq!(
        order(
            &mesh,
            &Need {
                digest: Some(""),
                ..NEED
            }
        ),
        [1, 2, 3]
    );
}

#[test]
fn who_cannot_is_rejected_with_the_reason() {
    let mesh = mesh(vec![
        peer(1, 1.0, |p, _| p.liveness = Liveness::Down),
        peer(2, 1.0, |_, a| a.state = NodeState::Draining),
        peer(3, 1.0, |_, a| a.state = NodeState::Left),
        peer(4, 1.0, |_, a| a.models[0].context = 100),
        peer(5, 1.0, |_, a| a.engines[0].health = Health::Down),
        peer(6, 1.0, |_, a| a.models[0].residency = Residency::Absent),
        peer(7, 1.0, |_, a| a.models[0].kind = ModelKind::Embed),
        peer(8, 1.0, |_, a| a.models.clear()),
        peer(9, 1.0, |_, a| {
            a.models.clear();
            a.role = Role::Client;
        }),
    ]);
    let need = Need {
        prompt_at_least: 500,
        ..NEED
    };
    let ranking = rank(&mesh, &need, Mono::ZERO);
    assert_eq!(ranking.ranked, []);
    let reason = |n: u32| {
        ranking
            .rejected
            .iter()
            .find(|r| r.node == node(n))
            .map(|r| r.reason.to_string())
            .unwrap()
    };
    for (n, word) in [
        (1, "down"),
        (2, "draining"),
        (3, "left"),
        (4, "context of 100"),
        (5, "engine llama does not answer"),
        (6, "not on that machine"),
        (7, "kind embed"),
        (8, "does not have the model"),
        (9, "client"),
    ] {
        assert!(reason(n).contains(word), "{n}: {}", reason(n));
    }
    // The nearest misses come first.
    assert_eq!(ranking.rejected[0].node, node(4));
}

#[test]
fn each_engine_of_a_node_is_a_candidate() {
    let two = |n| {
        peer(n, 90.0, |_, a| {
            a.engines.push(engine("second"));
            for (name, engine, ttft) in [("m:latest", 1, 10.0), ("m", 1, 20.0)] {
                let mut fast = model(name, engine);
                (fast.stats.ttft_ms, fast.stats.ttft_per_ktok_ms) = (ttft, 0.0);
                a.models.push(fast);
            }
        })
    };
    let mesh = mesh(vec![two(1), peer(2, 40.0, |_, _| {})]);
    let ranked = |sticky| {
        let ranked = rank(&mesh, &Need { sticky, ..NEED }, Mono::ZERO).ranked;
        let all = ranked.into_iter().map(|c| (c.node, c.engine, c.model));
        all.collect::<Vec<_>>()
    };
    let m = || "m".to_owned();
    // One of two names of the model on one engine: the better one.
    let fast = (node(1), 1, "m:latest".to_owned());
    let others = [(node(2), 0, m()), (node(1), 0, m())];
    assert_eq!(ranked(None), [vec![fast.clone()], others.to_vec()].concat());
    assert_eq!(ranked(Some((node(1), 1)))[0], fast);
    assert_eq!(ranked(Some((node(1), 7)))[0], fast, "that engine is gone");
    let best = rank(
        &mesh,
        &Need {
            sticky: Some((node(1), 1)),
            ..NEED
        },
        Mono::ZERO,
    );
    let held = best
        .ranked
        .iter()
        .filter(|c| c.reason.contains("holds the conversation"));
    assert_eq!(held.map(|c| c.engine).collect::<Vec<_>>(), [1]);
}

#[test]
fn this_node_has_no_path_to_itself() {
    let p = peer(1, 90.0, |p, _| p.paths.clear());
    let mut mesh = mesh(vec![p]);
    assert!(rank(&mesh, &NEED, Mono::ZERO).ranked[0].cost.rtt > Duration::ZERO);
    mesh.me = Some(node(1));
    assert_eq!(
        rank(&mesh, &NEED, Mono::ZERO).ranked[0].cost.rtt,
        Duration::ZERO
    );
}

#[test]
fn a_long_list_is_cut_and_the_best_are_kept() {
    let peers = (0..1000)
        .map(|n| peer(n, 1000.0 - n as f32 / 2.0, |_, _| {}))
        .collect();
    let mesh = mesh(peers);
    let best = order(&mesh, &NEED);
    assert_eq!(
        best,
        (0..MAX_RANKED as u32).map(|i| 999 - i).collect::<Vec<_>>()
    );
    // 5 ms behind the best, yet far beyond the list: still first.
    let sticky = order(
        &mesh,
        &Need {
            sticky: Some((node(900), 0)),
            ..NEED
        },
    );
    assert_eq!((sticky[0], sticky[1], sticky.len()), (900, 999, MAX_RANKED));
}

#[test]
fn near_names_are_found_and_placed() {
    let named = |n, names: &[&str]| {
        peer(n, 1.0, |_, a| {
            a.models = names.iter().map(|m| model(m, 0)).collect()
        })
    };
    let mesh = mesh(vec![
        named(1, &["mistral:7b", "llama3.2:3b"]),
        named(2, &["mistral:7b", "qwen2.5:14b"]),
        peer(3, 1.0, |p, a| {
            p.liveness = Liveness::Down;
            a.models = vec![model("mistral:8x7b", 0)];
        }),
    ]);
    let near = near_names(&mesh, "Mistral");
    assert_eq!(near[0].0, "mistral:7b");
    assert_eq!(near[0].1.len(), 2);
    assert!(near.iter().all(|(name, _)| name != "mistral:8x7b"));
    assert_eq!(near_names(&mesh, "qwen2.5")[0].0, "qwen2.5:14b");
    assert_eq!(near_names(&mesh, "lama3.2:3b")[0].0, "llama3.2:3b");
    assert!(near_names(&Snapshot::default(), "x").is_empty());
}
