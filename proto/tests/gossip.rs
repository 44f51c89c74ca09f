//! A thousand nodes on lossy links: how fast an advert reaches all, and that what left stays
//! away. `--nocapture` prints the figures.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::time::Duration;
use unamesh_proto::sim::gossip::{Config, Gossip};
use unamesh_proto::testing::node;
use unamesh_proto::wire::NodeState;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Times in milliseconds at which `message` reached the living nodes, sorted.
fn spread(net: &Gossip, message: usize) -> Vec<f64> {
    let mut times: Vec<f64> = net
        .arrivals(message)
        .into_iter()
        .map(|at| at.map_or(f64::INFINITY, |at| at.as_micros() as f64 / 1000.0))
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

#[test]
fn an_advert_reaches_a_thousand_nodes_within_two_seconds() {
    let mut worst = 0.0f64;
    for seed in 0..10 {
        let mut net = Gossip::new(Config::default(), seed);
        let message = net.publish(0, net.advert(0, 1, 1));
        net.run(ms(2000));
        let times = spread(&net, message);
        assert_eq!(times.len(), 1000);
        let (median, last) = (times[500], times[999]);
        println!(
            "seed {seed}: 1,000 nodes, 5 % loss: median {median:.0} ms, all after {last:.0} ms, \
             {:.1} messages a node",
            net.sent() as f64 / 1000.0
        );
        assert!(
            last <= 2000.0,
            "seed {seed}: {} nodes not reached",
            times.iter().filter(|t| **t > 2000.0).count()
        );
        worst = worst.max(last);
    }
    println!("an advert reaches all of 1,000 nodes within {worst:.0} simulated ms (10 seeds)");
}

#[test]
fn lazy_gossip_repairs_dropped_messages_and_dead_neighbours() {
    for seed in 0..5 {
        let config = Config {
            dropped: 0.10,
            dead: 0.20,
            loss: 0.15,
            ..Config::default()
        };
        let mut net = Gossip::new(config, seed);
        let message = net.publish(0, net.advert(0, 1, 1));
        net.run(ms(10_000));
        let times = spread(&net, message);
        let last = times.last().copied().unwrap();
        println!(
            "seed {seed}: {} living nodes, all after {last:.0} ms",
            times.len()
        );
        assert!(last.is_finite(), "seed {seed}");
    }
}

#[test]
fn the_newest_word_wins_everywhere_and_who_left_stays_away() {
    let config = Config {
        nodes: 200,
        loss: 0.2,
        jitter: ms(200),
        ..Config::default()
    };
    let mut net = Gossip::new(config, 7);
    // Faster than the links carry them: they overtake each other.
    for seq in 1..=20 {
        net.publish(0, net.advert(0, 1, seq));
        net.run(ms(5));
    }
    net.run(ms(10_000));
    for n in net.living() {
        let snapshot = net.snapshot(n);
        let advert = &snapshot.get(&node(0)).unwrap().advert;
        assert_eq!(advert.seq, 20, "node {n}");
    }
    // Goodbye while its last words are still under way.
    net.publish(0, net.advert(0, 1, 21));
    let mut left = net.advert(0, 1, 22);
    left.state = NodeState::Left;
    net.publish(0, left);
    net.run(ms(10_000));
    for n in net.living().into_iter().skip(1) {
        assert!(
            net.snapshot(n).get(&node(0)).is_none(),
            "a ghost at node {n}"
        );
    }
    // The next start is seen by all.
    net.publish(0, net.advert(0, 2, 0));
    net.run(ms(10_000));
    for n in net.living() {
        assert_eq!(
            net.snapshot(n).get(&node(0)).unwrap().advert.epoch,
            2,
            "node {n}"
        );
    }
}

#[test]
fn a_run_follows_from_its_seed() {
    let run = |seed| {
        let mut net = Gossip::new(
            Config {
                nodes: 100,
                ..Config::default()
            },
            seed,
        );
        let message = net.publish(0, net.advert(0, 1, 1));
        net.run(ms(1000));
        net.arrivals(message)
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}
