#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use crate::testing::{WALL_MS, addr, advert_of, node, unsigned};

const WALL: Wall = Wall::from_millis(WALL_MS);

/// `ms` milliseconds after the start; the start is far from zero.
fn at(ms: u64) -> Mono {
    Mono::from_micros(1_000_000_000 + ms * 1000)
}

fn rtt(us: u64) -> Duration {
    Duration::from_micros(us)
}

struct T(Table);

impl T {
    fn new() -> Self {
        T(Table::new(Some(node(0))))
    }
    fn say(&mut self, n: u32, epoch: u64, seq: u64, direct: bool, ms: u64) -> Merged {
        self.0.merge(
            advert_of(node(n), epoch, seq),
            unsigned(),
            direct,
            at(ms),
            WALL,
        )
    }
    fn left(&mut self, n: u32, epoch: u64, ms: u64) -> Merged {
        let mut advert = advert_of(node(n), epoch, 99);
        advert.state = NodeState::Left;
        self.0.merge(advert, unsigned(), false, at(ms), WALL)
    }
    fn liveness(&mut self, n: u32, ms: u64) -> Option<Liveness> {
        self.0.tick(at(ms));
        self.0.changed();
        self.0.snapshot().get(&node(n)).map(|p| p.liveness)
    }
    fn events(&mut self) -> Vec<TableEvent> {
        std::iter::from_fn(|| self.0.poll()).collect()
    }
    fn paths(&mut self, n: u32) -> Vec<SocketAddr> {
        self.0.changed();
        self.0
            .snapshot()
            .get(&node(n))
            .unwrap()
            .paths
            .iter()
            .map(|p| p.addr)
            .collect()
    }
}

#[test]
fn the_newest_word_wins_whatever_the_order() {
    let mut t = T::new();
    assert_eq!(t.say(1, 5, 1, true, 0), Merged::New);
    assert_eq!(t.say(1, 5, 3, true, 0), Merged::Updated);
    assert_eq!(t.say(1, 5, 2, true, 0), Merged::Stale);
    assert_eq!(t.say(1, 5, 3, true, 0), Merged::Unchanged);
    assert_eq!(t.say(1, 6, 0, true, 0), Merged::Updated);
    assert_eq!(t.say(1, 5, 9, true, 0), Merged::Stale);
    t.0.changed();
    let snapshot = t.0.snapshot();
    let advert = &snapshot.get(&node(1)).unwrap().advert;
    assert_eq!((advert.epoch, advert.seq), (6, 0));
    let c = t.0.counters();
    assert_eq!((c.new, c.updated, c.unchanged, c.stale), (1, 2, 1, 2));
}

#[test]
fn silence_ages_and_a_probe_revives() {
    let mut t = T::new();
    t.say(1, 1, 1, true, 0);
    assert_eq!(t.liveness(1, 1499), Some(Liveness::Alive));
    assert_eq!(t.0.next_wakeup(), Some(at(1500)));
    assert_eq!(t.liveness(1, 1500), Some(Liveness::Suspect));
    assert_eq!(t.0.next_wakeup(), Some(at(4000))); // nobody to ask
    assert_eq!(t.liveness(1, 4000), Some(Liveness::Down));
    t.0.probe_ok(node(1), addr(1), rtt(300), at(4100));
    assert_eq!(t.liveness(1, 4100), Some(Liveness::Alive));
    let n = node(1);
    let expected = [
        TableEvent::Joined(n),
        suspect(1, 1500),
        down(1, 4000, Verdict::NobodyToAsk),
        back(1, 4100),
    ];
    assert_eq!(t.events(), expected);
}

fn suspect(n: u32, ms: u64) -> TableEvent {
    let silent = Duration::from_millis(ms);
    TableEvent::Suspect {
        node: node(n),
        silent,
    }
}

fn down(n: u32, ms: u64, verdict: Verdict) -> TableEvent {
    let silent = Duration::from_millis(ms);
    TableEvent::Down {
        node: node(n),
        silent,
        verdict,
    }
}

fn back(n: u32, ms: u64) -> TableEvent {
    let after = Duration::from_millis(ms);
    TableEvent::Back {
        node: node(n),
        after,
    }
}

/// `n` speaks at `ms`.
fn speaks(t: &mut T, n: u32, ms: u64) {
    t.0.tick(at(ms));
    t.0.probe_ok(node(n), addr(n), rtt(100 * u64::from(n)), at(ms));
}

/// Peers 1 to `count`, all heard of at 0; their joining is not told.
fn meshed(count: u32) -> T {
    let mut t = T::new();
    for n in 1..=count {
        t.say(n, 1, 1, true, 0);
        speaks(&mut t, n, 0);
    }
    t.events();
    t
}

#[test]
fn who_is_silent_is_asked_about_and_goes_down_when_that_is_confirmed() {
    let mut t = meshed(3);
    speaks(&mut t, 2, 1000);
    speaks(&mut t, 3, 1000);
    assert_eq!(t.liveness(1, 1500), Some(Liveness::Suspect));
    let n = node(1);
    assert_eq!(t.events(), [suspect(1, 1500), TableEvent::Doubt(n)]);
    assert_eq!(t.0.helpers(n), [node(2), node(3)], "the nearest first");
    for by in [3, 2, 3] {
        assert!(t.0.indirect(n, node(by), false, at(2400)));
    }
    speaks(&mut t, 2, 2400);
    assert_eq!(t.liveness(1, 2799), Some(Liveness::Suspect));
    assert_eq!(t.liveness(1, 2800), Some(Liveness::Down));
    let verdict = Verdict::Confirmed(vec![node(3), node(2)]);
    assert!(t.events().contains(&down(1, 2800, verdict)));
    assert!(!t.0.indirect(n, node(2), true, at(2900)), "too late");
    assert_eq!(t.liveness(1, 2900), Some(Liveness::Down));
}

#[test]
fn who_is_vouched_for_stays_a_suspect() {
    let mut t = meshed(2);
    let n = node(1);
    let (mut doubts, mut vouched) = (0, 0);
    for ms in (500..=20_000).step_by(500) {
        speaks(&mut t, 2, ms);
        let events = t.events();
        assert!(!events.iter().any(|e| matches!(e, TableEvent::Down { .. })));
        if events.contains(&TableEvent::Doubt(n)) {
            doubts += 1;
            assert!(t.0.indirect(n, node(2), true, at(ms + 300)));
            assert!(
                !t.0.indirect(n, node(3), false, at(ms + 310)),
                "whoever reaches it is right"
            );
        }
        let by = node(2);
        vouched += t
            .events()
            .iter()
            .filter(|e| **e == TableEvent::Vouched { node: n, by })
            .count();
    }
    assert_eq!(vouched, 1, "told once");
    assert_eq!(t.liveness(1, 20_000), Some(Liveness::Suspect));
    assert!((10..=20).contains(&doubts), "{doubts}");
    // The vouching ends: it goes down in the end.
    for ms in (20_500..24_500).step_by(500) {
        speaks(&mut t, 2, ms);
    }
    assert_eq!(t.liveness(1, 24_500), Some(Liveness::Down));
}

#[test]
fn a_doubt_that_nobody_answers_is_repeated_and_ends() {
    let mut t = meshed(2);
    for ms in [1000, 2000, 3000] {
        speaks(&mut t, 2, ms);
    }
    assert_eq!(t.liveness(1, 3999), Some(Liveness::Suspect));
    assert_eq!(t.liveness(1, 4000), Some(Liveness::Down));
    let n = node(1);
    let doubt = TableEvent::Doubt(n);
    let expected = [
        suspect(1, 2000),
        doubt.clone(),
        doubt,
        down(1, 4000, Verdict::NoAnswer),
    ];
    assert_eq!(t.events(), expected);
}

#[test]
fn when_all_fall_silent_together_it_is_us() {
    let mut t = meshed(3);
    speaks(&mut t, 3, 400);
    assert_eq!(t.liveness(1, 1899), Some(Liveness::Suspect));
    assert!(!t.0.is_cut_off());
    t.events();
    assert_eq!(t.0.next_wakeup(), Some(at(1900)));
    assert_eq!(t.liveness(3, 1900), Some(Liveness::Suspect));
    assert!(t.0.is_cut_off());
    assert_eq!(t.events()[0], TableEvent::CutOff { peers: 3 });
    for n in 1..=3 {
        assert_eq!(t.liveness(n, 25_000), Some(Liveness::Suspect));
    }
    assert_eq!(t.events(), [], "nobody is asked and nobody goes");
    // We are back; the others have their time to say so.
    speaks(&mut t, 1, 26_000);
    let after = Duration::from_millis(26_000 - 1900);
    assert_eq!(t.events(), [back(1, 26_000), TableEvent::Online { after }]);
    speaks(&mut t, 2, 26_500);
    for ms in [27_000, 28_000, 29_000] {
        speaks(&mut t, 1, ms);
    }
    assert_eq!(t.liveness(3, 29_999), Some(Liveness::Suspect));
    assert_eq!(t.liveness(3, 30_000), Some(Liveness::Down));
}

#[test]
fn a_node_that_stays_cut_off_says_so_in_the_end() {
    let mut t = meshed(2);
    assert_eq!(t.liveness(1, 1500), Some(Liveness::Suspect));
    assert_eq!(t.liveness(1, 31_499), Some(Liveness::Suspect));
    for n in 1..=2 {
        assert_eq!(t.liveness(n, 31_500), Some(Liveness::Down));
    }
    assert_eq!(t.liveness(1, 602_800), None, "and forgets");
}

#[test]
fn after_a_sleep_all_are_suspects_until_they_speak_and_nobody_is_evicted_for_it() {
    const WAKE: u64 = 3_600_000;
    let mut t = meshed(3);
    // One was quicker than the table.
    t.0.probe_ok(node(3), addr(3), rtt(300), at(WAKE + 5));
    t.0.woke(at(WAKE), at(WAKE + 10));
    assert_eq!(t.events(), [suspect(1, WAKE + 10), suspect(2, WAKE + 10)]);
    assert_eq!(t.liveness(1, WAKE + 10), Some(Liveness::Suspect));
    assert_eq!(t.liveness(3, WAKE + 10), Some(Liveness::Alive));
    speaks(&mut t, 1, WAKE + 400);
    assert_eq!(t.events(), [back(1, WAKE + 400)]);
    for ms in [1000, 2000, 3000] {
        speaks(&mut t, 1, WAKE + ms);
    }
    assert_eq!(t.liveness(2, WAKE + 3999), Some(Liveness::Suspect));
    assert_eq!(t.events()[0], TableEvent::Doubt(node(2)));
    assert_eq!(t.liveness(2, WAKE + 4000), Some(Liveness::Down));
    assert!(
        t.events()
            .contains(&down(2, WAKE + 4000, Verdict::NoAnswer))
    );
}

#[test]
fn a_node_that_wakes_without_a_network_is_cut_off_once_that_shows() {
    const WAKE: u64 = 3_600_000;
    let mut t = meshed(2);
    t.0.woke(at(WAKE), at(WAKE));
    assert_eq!(t.liveness(1, WAKE + 1499), Some(Liveness::Suspect));
    assert!(!t.0.is_cut_off());
    assert_eq!(t.liveness(1, WAKE + 1500), Some(Liveness::Suspect));
    assert!(t.0.is_cut_off());
}

#[test]
fn what_another_says_of_silence_ranks_a_peer_last_and_no_more() {
    let mut t = meshed(2);
    t.0.hint_silent(node(1), at(999));
    assert_eq!(t.liveness(1, 999), Some(Liveness::Alive), "heard ourselves");
    t.0.hint_silent(node(1), at(1000));
    t.0.hint_silent(node(7), at(1000));
    assert_eq!(t.liveness(1, 1000), Some(Liveness::Suspect));
    assert_eq!(
        t.events(),
        [suspect(1, 1000), TableEvent::Doubt(node(1))],
        "and others are asked at once"
    );
    speaks(&mut t, 1, 1100);
    assert_eq!(t.liveness(1, 1100), Some(Liveness::Alive));
}

#[test]
fn goodbyes_are_kept_as_proof_while_they_hold() {
    let mut t = meshed(2);
    let word = |mark| SignedAdvert {
        certificate: vec![mark],
        ..unsigned()
    };
    let leave = |t: &mut T, n: u32, mark, ms| {
        let mut advert = advert_of(node(n), 1, 99);
        advert.state = NodeState::Left;
        t.0.merge(advert, word(mark), false, at(ms), WALL)
    };
    let kept = |t: &mut T| -> Vec<u8> {
        t.0.changed();
        let left = t.0.snapshot().left.clone();
        left.iter().map(|w| w.certificate[0]).collect()
    };
    assert_eq!(leave(&mut t, 1, 1, 0), Merged::Updated);
    assert_eq!(leave(&mut t, 1, 9, 20), Merged::Tombstoned, "said thrice");
    leave(&mut t, 2, 2, 30);
    assert_eq!(kept(&mut t), [1, 2]);
    t.say(1, 2, 1, true, 40);
    assert_eq!(kept(&mut t), [2], "who is back has not left");
    for n in 0..limits::MAX_GOODBYES as u32 {
        leave(&mut t, 100 + n, 3, 50);
    }
    t.say(1, 2, 2, true, 60);
    assert_eq!(kept(&mut t), [3; limits::MAX_GOODBYES], "the latest");
    t.0.tick(at(3_600_050));
    t.say(3, 1, 1, true, 3_600_050);
    assert!(kept(&mut t).is_empty());
}

#[test]
fn a_relayed_word_never_makes_a_peer_look_alive() {
    let mut t = T::new();
    t.say(1, 1, 1, false, 0);
    assert_eq!(t.liveness(1, 0), Some(Liveness::Suspect));
    t.say(1, 1, 2, false, 2000);
    assert_eq!(t.liveness(1, 2800), Some(Liveness::Down));
    t.say(1, 2, 0, false, 3000);
    assert_eq!(t.liveness(1, 3000), Some(Liveness::Down));
    assert_eq!(t.events(), []); // to people it never was there
    t.0.probe_ok(node(1), addr(1), rtt(300), at(3100));
    assert_eq!(t.liveness(1, 3100), Some(Liveness::Alive));
    assert_eq!(t.events(), [TableEvent::Joined(node(1))]);
}

#[test]
fn an_answered_probe_before_the_advert_counts() {
    let mut t = T::new();
    t.0.hint(node(1), addr(9), at(0));
    t.0.probe_ok(node(1), addr(9), rtt(300), at(10));
    t.say(1, 1, 1, false, 20);
    assert_eq!(t.liveness(1, 20), Some(Liveness::Alive));
    assert_eq!(t.paths(1), [addr(9), addr(1)]);
    assert_eq!(t.0.strangers().count(), 0);
}

#[test]
fn who_left_does_not_come_back_by_late_gossip() {
    let mut t = T::new();
    t.say(1, 5, 1, true, 0);
    assert_eq!(t.left(1, 5, 10), Merged::Updated);
    assert_eq!(t.liveness(1, 10), None);
    for (epoch, seq, direct) in [(5, 1, false), (5, 100, false), (4, 7, true), (5, 2, true)] {
        assert_eq!(t.say(1, epoch, seq, direct, 20), Merged::Tombstoned);
    }
    assert_eq!(
        t.events(),
        [TableEvent::Joined(node(1)), TableEvent::Left(node(1))]
    );
    // A new start does bring it back.
    assert_eq!(t.say(1, 6, 0, true, 30), Merged::New);
    assert_eq!(t.liveness(1, 30), Some(Liveness::Alive));
    // And a late goodbye of its last life does not end the new one.
    assert_eq!(t.left(1, 5, 40), Merged::Stale);
    t.0.goodbye(node(1), 5, at(40));
    assert_eq!(t.liveness(1, 40), Some(Liveness::Alive));
}

#[test]
fn a_goodbye_before_the_first_advert_holds() {
    let mut t = T::new();
    t.left(1, 5, 0);
    assert_eq!(t.say(1, 5, 1, true, 1), Merged::Tombstoned);
    assert_eq!(t.events(), []);
}

#[test]
fn who_was_forgotten_comes_back_only_with_something_newer() {
    let mut t = T::new();
    t.say(1, 5, 7, true, 0);
    let forgotten = 2800 + 600_000;
    assert_eq!(t.liveness(1, forgotten - 1), Some(Liveness::Down));
    assert_eq!(t.liveness(1, forgotten), None);
    assert_eq!(t.events().last(), Some(&TableEvent::Forgotten(node(1))));
    assert_eq!(t.say(1, 5, 7, false, forgotten), Merged::Tombstoned);
    // The same process after a long partition: its numbers went on.
    assert_eq!(t.say(1, 5, 8, true, forgotten), Merged::New);
    assert_eq!(t.0.tombstones(), 0);
}

#[test]
fn tombstones_end() {
    let mut t = T::new();
    t.left(1, 5, 0);
    let over = 3_600_000;
    assert_eq!(t.0.next_wakeup(), Some(at(over)));
    assert_eq!(t.say(1, 5, 1, false, over - 1), Merged::Tombstoned);
    t.0.tick(at(over));
    assert_eq!((t.0.tombstones(), t.0.next_wakeup()), (0, None));
}

#[test]
fn a_clock_more_than_a_day_off_is_refused() {
    let mut t = T::new();
    let hour = 3_600_000i64;
    for (off, merged) in [
        (25 * hour, Merged::New),
        (27 * hour, Merged::OutsideWindow),
        (-27 * hour, Merged::OutsideWindow),
    ] {
        let mut advert = advert_of(node(1), 1, 1);
        advert.wall_ms = WALL_MS.saturating_add_signed(off);
        assert_eq!(t.0.merge(advert, unsigned(), true, at(0), WALL), merged);
    }
}

#[test]
fn our_own_entry_never_ages_and_a_twin_is_noticed() {
    let mut t = T::new();
    assert_eq!(t.say(0, 3, 1, false, 0), Merged::Stale); // an echo of our last life
    t.0.publish(advert_of(node(0), 5, 1), unsigned(), at(0));
    assert_eq!(t.liveness(0, 10_000_000), Some(Liveness::Alive));
    assert_eq!(t.0.next_wakeup(), None);
    assert_eq!(t.say(0, 5, 1, false, 0), Merged::Unchanged);
    assert_eq!(t.say(0, 6, 1, true, 0), Merged::Twin);
    assert_eq!(t.events(), [TableEvent::Twin(node(0))]);
    let own = t.0.snapshot().get(&node(0)).unwrap().advert.epoch;
    assert_eq!(own, 5);
}

#[test]
fn failed_probes_on_every_path_make_suspect_at_once() {
    let mut t = T::new();
    t.say(1, 1, 1, true, 0);
    t.0.probe_ok(node(1), addr(1), rtt(300), at(10));
    t.0.probe_ok(node(1), addr(2), rtt(900), at(10));
    t.0.probe_failed(node(1), addr(1), at(20));
    assert_eq!(t.liveness(1, 20), Some(Liveness::Alive));
    assert_eq!(t.paths(1), [addr(2), addr(1)]);
    t.0.probe_failed(node(1), addr(2), at(30));
    assert_eq!(t.liveness(1, 30), Some(Liveness::Suspect));
    t.0.probe_ok(node(1), addr(2), rtt(900), at(40));
    assert_eq!(t.liveness(1, 40), Some(Liveness::Alive));
}

#[test]
fn paths_prefer_the_home_network_and_do_not_flap() {
    let tailnet: SocketAddr = "100.64.0.7:11400".parse().unwrap();
    let mut t = T::new();
    t.say(1, 1, 1, true, 0);
    t.0.hint(node(1), tailnet, at(0));
    t.0.probe_ok(node(1), tailnet, rtt(400), at(1));
    assert_eq!(t.paths(1), [tailnet, addr(1)]);
    t.0.probe_ok(node(1), addr(1), rtt(500), at(2));
    assert_eq!(t.paths(1), [addr(1), tailnet]);
    // A second home address that is a little faster does not take over; a much faster does.
    t.0.probe_ok(node(1), addr(2), rtt(450), at(3));
    assert_eq!(t.paths(1)[0], addr(1));
    t.0.probe_ok(node(1), addr(1), rtt(40_000), at(4));
    assert_eq!(t.paths(1)[0], addr(2));
}

#[test]
fn an_advert_replaces_addresses_that_do_not_work() {
    let mut t = T::new();
    t.say(1, 1, 1, true, 0);
    t.0.hint(node(1), addr(5), at(0));
    t.0.probe_ok(node(1), addr(6), rtt(300), at(0));
    let mut moved = advert_of(node(1), 1, 2);
    moved.addrs[0] = crate::wire::Addr::new(addr(7));
    t.0.merge(moved, unsigned(), true, at(1), WALL);
    let paths = t.paths(1);
    assert_eq!(paths[0], addr(6)); // works
    assert!(paths.contains(&addr(7)) && paths.contains(&addr(5)) && !paths.contains(&addr(1)));
}

#[test]
fn paths_are_bounded_and_hints_displace_nothing_that_works() {
    let mut t = T::new();
    t.say(1, 1, 1, true, 0);
    for n in 1..=8 {
        t.0.probe_ok(node(1), addr(n), rtt(300), at(0));
    }
    for n in 100..200 {
        t.0.hint(node(1), addr(n), at(1));
    }
    let mut paths = t.paths(1);
    paths.sort();
    assert_eq!(paths, (1..=8).map(addr).collect::<Vec<_>>());
    for bad in [
        "0.0.0.0:1",
        "224.0.0.251:5353",
        "255.255.255.255:9",
        "10.0.0.1:0",
    ] {
        t.0.hint(node(2), bad.parse().unwrap(), at(1));
    }
    assert_eq!(t.0.strangers().count(), 0);
}

#[test]
fn everything_is_bounded() {
    let mut t = T::new();
    for n in 1..=limits::MAX_PEERS as u32 {
        assert_eq!(t.say(n, 1, 1, true, 0), Merged::New);
    }
    assert_eq!(t.say(5000, 1, 1, true, 0), Merged::Full);
    for n in 0..5000 {
        t.0.hint(node(10_000 + n), addr(n), at(u64::from(n)));
        t.left(20_000 + n, 1, u64::from(n));
    }
    assert_eq!(t.0.strangers().count(), limits::MAX_STRANGERS);
    assert_eq!(t.0.tombstones(), limits::MAX_TOMBSTONES);
    // The latest hints and tombstones are the ones kept.
    assert!(t.0.strangers().any(|(n, _)| n == node(14_999)));
    assert_eq!(t.say(24_999, 1, 1, true, 5000), Merged::Tombstoned);
    // A peer that is down makes room.
    t.0.tick(at(10_000)); // all at once: as if we were cut off
    t.0.tick(at(40_000));
    assert_eq!(t.say(5000, 1, 1, true, 40_000), Merged::New);
    t.0.changed();
    assert_eq!(t.0.snapshot().peers.len(), limits::MAX_PEERS);
    assert!(t.events().len() <= limits::MAX_TABLE_EVENTS);
}

#[test]
fn snapshots_appear_only_when_something_matters() {
    let mut t = T::new();
    assert!(t.0.changed().is_none());
    t.say(1, 1, 1, true, 0);
    t.say(2, 1, 1, true, 0);
    let first = t.0.changed().unwrap();
    assert!(t.0.changed().is_none());
    t.0.probe_ok(node(1), addr(1), rtt(300), at(10));
    let second = t.0.changed().unwrap();
    assert!(second.version > first.version);
    // Untouched entries are shared, not copied.
    assert!(Arc::ptr_eq(
        second.get(&node(2)).unwrap(),
        first.get(&node(2)).unwrap()
    ));
    // A sign of life alone is gathered...
    t.0.probe_ok(node(1), addr(1), rtt(310), at(20));
    assert!(t.0.changed().is_none());
    // ...and told after a while.
    t.say(2, 1, 1, true, 1100);
    t.0.tick(at(1100));
    let third = t.0.changed().unwrap();
    assert_eq!(third.get(&node(1)).unwrap().heard, at(20));
}
