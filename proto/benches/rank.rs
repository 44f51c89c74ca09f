//! What the core costs where it is called often: `cargo bench -p unamesh-proto`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;
use unamesh_proto::rank::{Need, rank};
use unamesh_proto::table::{Snapshot, Table};
use unamesh_proto::testing::{WALL_MS, addr, advert_of, model, node, unsigned};
use unamesh_proto::wire::codec::{self, HEADER};
use unamesh_proto::wire::{Chunk, ModelKind, Token};
use unamesh_proto::{Mono, Wall};

fn main() {
    divan::main();
}

const NEED: Need<'static> = Need {
    model: "m",
    kind: ModelKind::Llm,
    prompt_tokens: 800,
    digest: Some("sha256:m"),
    sticky: None,
    prompt_at_least: 0,
    needs_token_ids: true,
};

fn table(peers: u32) -> Table {
    let mut table = Table::new(Some(node(0)));
    let wall = Wall::from_millis(WALL_MS);
    for n in 0..peers {
        let mut advert = advert_of(node(n), 1, 1);
        advert.models = ["llama3.2:3b", "mistral:7b", "m", "qwen2.5:14b"]
            .map(|name| model(name, 0))
            .into();
        for m in &mut advert.models {
            m.stats.ttft_ms = 20.0 + (n * 7919 % 1000) as f32;
        }
        table.merge(advert, unsigned(), true, Mono::ZERO, wall);
        table.probe_ok(
            node(n),
            addr(n),
            Duration::from_micros(u64::from(200 + n)),
            Mono::ZERO,
        );
    }
    table.changed();
    table
}

/// A thousand peers, each with four models; the bar is 100 microseconds.
#[divan::bench]
fn rank_1000(bencher: divan::Bencher<'_, '_>) {
    let snapshot = table(1001).snapshot();
    assert_eq!(snapshot.peers.len(), 1000);
    bencher.bench(|| rank(divan::black_box(&snapshot), &NEED, Mono::ZERO));
}

/// The same where nobody holds the conversation: old measurements are aged.
#[divan::bench]
fn rank_1000_to_begin(bencher: divan::Bencher<'_, '_>) {
    let snapshot = table(1001).snapshot();
    let need = Need {
        digest: None,
        needs_token_ids: false,
        ..NEED
    };
    bencher.bench(|| rank(divan::black_box(&snapshot), &need, Mono::ZERO));
}

/// The same where nobody has the model.
#[divan::bench]
fn rank_1000_without_candidates(bencher: divan::Bencher<'_, '_>) {
    let snapshot = table(1001).snapshot();
    let need = Need {
        model: "nothing",
        digest: None,
        ..NEED
    };
    bencher.bench(|| rank(divan::black_box(&snapshot), &need, Mono::ZERO));
}

/// A home.
#[divan::bench]
fn rank_10(bencher: divan::Bencher<'_, '_>) {
    let snapshot: Arc<Snapshot> = table(11).snapshot();
    bencher.bench(|| rank(divan::black_box(&snapshot), &NEED, Mono::ZERO));
}

/// A new advert in a table of a thousand, and the snapshot after it.
#[divan::bench]
fn merge_and_publish_1000(bencher: divan::Bencher<'_, '_>) {
    let mut table = table(1001);
    let (mut seq, wall) = (1, Wall::from_millis(WALL_MS));
    bencher.bench_local(|| {
        seq += 1;
        table.merge(
            advert_of(node(500), 1, seq),
            unsigned(),
            true,
            Mono::ZERO,
            wall,
        );
        table.changed()
    });
}

/// One token frame there and back.
#[divan::bench]
fn token_encode_and_decode(bencher: divan::Bencher<'_, '_>) {
    let chunk = Chunk {
        text: " tutor".to_owned(),
        ids: vec![12345],
        tokens: 1,
    };
    let token = Token {
        index: 100,
        chunk,
        extra: String::new(),
    };
    let mut buffer = Vec::with_capacity(64);
    bencher.bench_local(|| {
        buffer.clear();
        codec::encode(divan::black_box(&token), &mut buffer).unwrap();
        codec::body::<Token>(&buffer[HEADER..]).unwrap()
    });
}
