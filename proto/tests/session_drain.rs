//! A planned leave, over many seeds: what the caller sees of it.
//!
//! The same answer is run with and without its peer leaving in the middle. The engines' KV
//! caches are modelled: a prompt that was read before costs only what is new in it. The bar:
//! the largest gap between two outputs is at most twice the 99th percentile of the undisturbed
//! runs, and nothing is lost or doubled (the simulator checks that on the way).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;
use unamesh_proto::session::{Output, Reason};
use unamesh_proto::sim::session::{Fault, Node, Report, Scenario, WHOLE, run};
use unamesh_proto::stalls::Bounds;

const SEEDS: u64 = 400;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Two equal machines; the first says farewell in the middle of the answer.
fn scenario(seed: u64, drain: bool) -> Scenario {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let itl = ms(rng.random_range(6..=50));
    let node = Node {
        ttft: ms(rng.random_range(40..=2500)),
        itl,
        delay: Duration::from_micros(rng.random_range(100..=3000)),
        jitter: itl.mul_f64(rng.random_range(0.05..0.5)),
        faults: Vec::new(),
    };
    let at = node.ttft + itl * rng.random_range(5..60);
    let mut nodes = vec![node.clone(), node];
    if drain {
        nodes[0].faults.push((at, Fault::Drain(ms(10_000))));
    }
    Scenario {
        seed: seed | WHOLE,
        nodes,
        frames: 600,
        stop: Vec::new(),
        deterministic: seed.is_multiple_of(2),
        spliceable: true,
        cancel_at: None,
        hedges: 0,
        learned: Bounds::default(),
    }
}

/// The gaps between pieces of output after the first.
fn gaps(report: &Report) -> Vec<Duration> {
    let tokens = report.outputs.iter().filter_map(|(at, o)| match o {
        Output::Token { .. } => Some(*at),
        _ => None,
    });
    let tokens: Vec<_> = tokens.collect();
    tokens.windows(2).map(|w| w[1].since(w[0])).collect()
}

fn checked(scenario: &Scenario) -> Report {
    let report = run(scenario);
    assert_eq!(report.violation, None, "{scenario:#?}");
    let last = &report.outputs.last().unwrap().1;
    assert!(matches!(last, Output::Done { .. }), "{last:?}");
    report
}

#[test]
fn nobody_notices_that_a_machine_leaves() {
    let (mut worst, mut over, mut asked, mut ratios) = (0.0f64, 0, 0, Vec::new());
    for seed in 0..SEEDS {
        let mut normal = gaps(&checked(&scenario(seed, false)));
        normal.sort();
        let p99 = normal[normal.len() * 99 / 100];
        let report = checked(&scenario(seed, true));
        let changes = report.outputs.iter().filter_map(|(_, o)| match o {
            Output::PeerChanged { reason, .. } => Some(reason.clone()),
            _ => None,
        });
        assert_eq!(
            changes.collect::<Vec<_>>(),
            [Reason::Draining],
            "seed {seed}"
        );
        let largest = *gaps(&report).iter().max().unwrap();
        let ratio = largest.as_secs_f64() / p99.as_secs_f64();
        ratios.push(ratio);
        worst = worst.max(ratio);
        over += u64::from(ratio > 2.0);
        asked += report.attempts;
    }
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios[(ratios.len() as f64 * share) as usize];
    println!(
        "{SEEDS} planned leaves: largest gap / normal p99: p50 {:.2}, p95 {:.2}, max {worst:.2}; \
         over 2: {over}; {:.1} streams an answer",
        at(0.5),
        at(0.95),
        asked as f64 / SEEDS as f64
    );
    assert_eq!(over, 0);
}
