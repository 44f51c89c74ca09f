//! The peer table against a model that keeps only what the rules name, under random merges,
//! probes, goodbyes and jumps of time.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use unamesh_proto::table::{Liveness, Merged, Peer, Table, TableEvent, Verdict};
use unamesh_proto::testing::{WALL_MS, addr, advert_of, node, unsigned};
use unamesh_proto::timeouts::{
    PROBE_EVERY, TABLE_DOWN, TABLE_DOWN_ALONE, TABLE_FORGET, TABLE_SUSPECT, TOMBSTONE,
};
use unamesh_proto::wire::NodeState;
use unamesh_proto::{Mono, NodeId, Wall, limits};

const WALL: Wall = Wall::from_millis(WALL_MS);
const NODES: u32 = 4;

#[derive(Clone, Debug)]
enum Op {
    Word {
        n: u32,
        epoch: u64,
        seq: u64,
        direct: bool,
        left: bool,
    },
    Goodbye {
        n: u32,
        epoch: u64,
    },
    Hint {
        n: u32,
        a: u32,
    },
    ProbeOk {
        n: u32,
        a: u32,
        rtt_us: u64,
    },
    ProbeFailed {
        n: u32,
        a: u32,
    },
    Indirect {
        n: u32,
        by: u32,
        alive: bool,
    },
    HintSilent {
        n: u32,
    },
    Woke,
    Wait(Duration),
}

fn op() -> impl Strategy<Value = Op> {
    let n = 1..=NODES;
    let a = 1u32..5;
    let wait = prop_oneof![
        4 => 1u64..700,
        3 => 700u64..3000,
        1 => Just(600_000u64),
        1 => Just(3_600_000u64),
    ];
    prop_oneof![
        8 => (n.clone(), 1u64..5, 0u64..4, any::<bool>(), prop::bool::weighted(0.1)).prop_map(
            |(n, epoch, seq, direct, left)| Op::Word { n, epoch, seq, direct, left }
        ),
        1 => (n.clone(), 1u64..5).prop_map(|(n, epoch)| Op::Goodbye { n, epoch }),
        1 => (n.clone(), a.clone()).prop_map(|(n, a)| Op::Hint { n, a }),
        3 => (n.clone(), a.clone(), 100u64..50_000)
            .prop_map(|(n, a, rtt_us)| Op::ProbeOk { n, a, rtt_us }),
        2 => (n.clone(), a).prop_map(|(n, a)| Op::ProbeFailed { n, a }),
        2 => (n.clone(), 10u32..15, any::<bool>())
            .prop_map(|(n, by, alive)| Op::Indirect { n, by, alive }),
        1 => n.prop_map(|n| Op::HintSilent { n }),
        1 => Just(Op::Woke),
        6 => wait.prop_map(|ms| Op::Wait(Duration::from_millis(ms))),
    ]
}

type Mark = (u64, u64);

/// What the rules say of one node.
#[derive(Clone, Debug, Default)]
struct Model {
    word: Option<Mark>,
    /// When it entered the table or last gave a sign of life.
    heard: Mono,
    ever_alive: bool,
    /// A probe failed since, or another found it silent: suspect is allowed.
    doubted: bool,
    /// Another reached it then; its end is counted from there.
    vouched: Mono,
    /// This machine woke then and had not heard it since; nobody is evicted for the time before.
    woke: Mono,
    /// Who could not reach it either, since then; nobody any more once somebody could.
    denied: BTreeSet<NodeId>,
    buried: Option<(Mark, Mono)>,
    /// Answered a probe before its first word.
    answered: Option<Mono>,
}

impl Model {
    fn word(&mut self, mark: Mark, direct: bool, now: Mono) -> Merged {
        if self
            .buried
            .is_some_and(|(buried, until)| mark <= buried && now < until)
        {
            return Merged::Tombstoned;
        }
        let merged = match self.word {
            None => {
                let answered = self.answered.take();
                *self = Model {
                    word: Some(mark),
                    heard: now,
                    ..Model::default()
                };
                if let Some(at) = answered.filter(|at| now.since(*at) < TABLE_SUSPECT) {
                    self.alive(at);
                }
                Merged::New
            }
            Some(known) if mark < known => Merged::Stale,
            Some(known) if mark == known => Merged::Unchanged,
            Some(_) => {
                self.word = Some(mark);
                Merged::Updated
            }
        };
        if direct {
            self.alive(now);
        }
        merged
    }

    fn goodbye(&mut self, epoch: u64, now: Mono) -> Merged {
        let mark = (epoch, u64::MAX);
        if self.word.is_some_and(|(known, _)| known > epoch) {
            return Merged::Stale;
        }
        let earlier = self
            .buried
            .filter(|(_, until)| now < *until)
            .map_or((0, 0), |(m, _)| m);
        *self = Model {
            buried: Some((mark.max(earlier), now + TOMBSTONE)),
            ..Model::default()
        };
        Merged::Updated
    }

    fn alive(&mut self, now: Mono) {
        (self.heard, self.ever_alive, self.doubted) = (now, true, false);
        self.vouched = Mono::ZERO;
        self.denied.clear();
    }

    fn pass_time(&mut self, now: Mono) {
        let over = TABLE_DOWN + TABLE_FORGET;
        let last = self.heard.max(self.vouched).max(self.woke);
        if let Some(mark) = self.word.filter(|_| now.since(last) >= over) {
            *self = Model {
                buried: Some((mark, now + TOMBSTONE)),
                ..Model::default()
            };
        }
        self.buried = self.buried.filter(|(_, until)| now < *until);
    }

    fn allows(&self, liveness: Liveness, now: Mono) -> bool {
        let silent = now.since(self.heard);
        match liveness {
            Liveness::Down => now.since(self.heard.max(self.woke)) >= TABLE_DOWN,
            Liveness::Suspect => {
                // How long others' words and our own absence may put it off is not modelled.
                let excused = self.ever_alive || silent < TABLE_DOWN;
                excused && (silent >= TABLE_SUSPECT || !self.ever_alive || self.doubted)
            }
            Liveness::Alive => silent < TABLE_SUSPECT && self.ever_alive,
        }
    }
}

struct Run {
    table: Table,
    model: BTreeMap<NodeId, Model>,
    now: Mono,
    version: u64,
    /// What events have told so far.
    told: BTreeMap<NodeId, TableEvent>,
}

impl Run {
    fn new() -> Self {
        Run {
            table: Table::new(Some(node(0))),
            model: BTreeMap::new(),
            now: Mono::from_micros(1),
            version: 0,
            told: BTreeMap::new(),
        }
    }

    fn step(&mut self, op: &Op) {
        let now = self.now;
        match *op {
            Op::Word {
                n,
                epoch,
                seq,
                direct,
                left,
            } => {
                let mut advert = advert_of(node(n), epoch, seq);
                let model = self.model.entry(node(n)).or_default();
                let buried = model
                    .buried
                    .is_some_and(|(b, until)| (epoch, seq) <= b && now < until);
                let expected = match (left, buried) {
                    (_, true) => Merged::Tombstoned,
                    (true, false) => model.goodbye(epoch, now),
                    (false, false) => model.word((epoch, seq), direct, now),
                };
                if left {
                    advert.state = NodeState::Left;
                }
                let merged = self.table.merge(advert, unsigned(), direct, now, WALL);
                assert_eq!(merged, expected);
            }
            Op::Goodbye { n, epoch } => {
                self.model.entry(node(n)).or_default().goodbye(epoch, now);
                self.table.goodbye(node(n), epoch, now);
            }
            Op::Hint { n, a } => self.table.hint(node(n), addr(100 * n + a), now),
            Op::ProbeOk { n, a, rtt_us } => {
                let model = self.model.entry(node(n)).or_default();
                if model.word.is_some() {
                    model.alive(now);
                } else {
                    model.answered = Some(now);
                }
                let rtt = Duration::from_micros(rtt_us);
                self.table.probe_ok(node(n), addr(100 * n + a), rtt, now);
            }
            Op::ProbeFailed { n, a } => {
                self.model.entry(node(n)).or_default().doubted = true;
                self.table.probe_failed(node(n), addr(100 * n + a), now);
            }
            Op::Indirect { n, by, alive } => {
                let used = self.table.indirect(node(n), node(by), alive, now);
                let model = self.model.entry(node(n)).or_default();
                assert!(!used || model.ever_alive);
                if used && alive {
                    model.vouched = now;
                    model.denied.clear();
                } else if used {
                    model.denied.insert(node(by));
                }
            }
            Op::HintSilent { n } => {
                let model = self.model.entry(node(n)).or_default();
                model.doubted |= now.since(model.heard) >= PROBE_EVERY;
                self.table.hint_silent(node(n), now);
            }
            Op::Woke => self.wake(),
            Op::Wait(span) => self.wait(now + span),
        }
        self.check();
    }

    /// Everybody who was there is a suspect, unless just heard.
    fn wake(&mut self) {
        let before = self.table.snapshot();
        self.table.woke(self.now, self.now);
        self.table.changed();
        let after = self.table.snapshot();
        for (id, model) in &mut self.model {
            let was_there = |p: &Peer| p.liveness != Liveness::Down;
            let there = model.ever_alive && before.get(id).is_some_and(|p| was_there(p));
            if there && model.heard < self.now {
                (model.doubted, model.woke) = (true, self.now);
                model.denied.clear();
                assert_eq!(after.get(id).unwrap().liveness, Liveness::Suspect);
            }
        }
    }

    /// Goes from wake-up to wake-up, as the owner of a table does.
    fn wait(&mut self, end: Mono) {
        while let Some(at) = self.table.next_wakeup().filter(|at| *at <= end) {
            assert!(at >= self.now, "a wake-up in the past");
            self.now = at;
            self.table.tick(at);
            self.table.changed();
            assert!(self.table.next_wakeup() > Some(at) || self.table.next_wakeup().is_none());
            self.model.values_mut().for_each(|m| m.pass_time(at));
        }
        self.now = end;
    }

    fn check(&mut self) {
        self.model.values_mut().for_each(|m| m.pass_time(self.now));
        if let Some(changed) = self.table.changed() {
            assert!(changed.version > self.version);
            self.version = changed.version;
        }
        let snapshot = self.table.snapshot();
        assert!(
            snapshot
                .peers
                .windows(2)
                .all(|w| w[0].advert.node < w[1].advert.node)
        );
        for (id, model) in &self.model {
            let peer = snapshot.get(id);
            assert_eq!(
                peer.map(|p| (p.advert.epoch, p.advert.seq)),
                model.word,
                "{id:?}"
            );
            let Some(peer) = peer else { continue };
            assert!(
                model.allows(peer.liveness, self.now),
                "{peer:?} against {model:?}"
            );
            assert!(peer.paths.len() <= limits::MAX_PATHS);
            let mut addrs: Vec<_> = peer.paths.iter().map(|p| p.addr).collect();
            addrs.sort();
            addrs.dedup();
            assert_eq!(addrs.len(), peer.paths.len(), "a path is listed twice");
        }
        self.check_events();
    }

    /// Events alternate as people expect, say how and why, and their last word fits the table.
    fn check_events(&mut self) {
        use TableEvent::{Back, Down, Forgotten, Joined, Left, Suspect, Vouched};
        while let Some(event) = self.table.poll() {
            let n = match &event {
                Joined(n) | Left(n) | Forgotten(n) => *n,
                Suspect { node, .. } | Down { node, .. } | Back { node, .. } => *node,
                Vouched { node, by } => {
                    // Somebody else's word about one that is a suspect now.
                    assert!(matches!(self.told.get(node), Some(Suspect { .. })) && node != by);
                    continue;
                }
                TableEvent::CutOff { peers } => {
                    assert!(*peers >= 2);
                    continue;
                }
                _ => continue,
            };
            self.check_reason(&event);
            let before = self.told.get(&n);
            let fits = match event {
                Joined(_) => matches!(before, None | Some(Left(_) | Forgotten(_))),
                Suspect { .. } => matches!(before, Some(Joined(_) | Back { .. })),
                Down { .. } => {
                    matches!(before, Some(Joined(_) | Back { .. } | Suspect { .. }))
                }
                Back { .. } => matches!(before, Some(Suspect { .. } | Down { .. })),
                Left(_) => !matches!(before, None | Some(Left(_) | Forgotten(_))),
                Forgotten(_) => matches!(before, Some(Down { .. })),
                _ => false,
            };
            assert!(fits, "{before:?} then {event:?}");
            self.told.insert(n, event);
        }
        for peer in &self.table.snapshot().peers {
            let told = self.told.get(&peer.advert.node);
            let fits = match peer.liveness {
                Liveness::Alive => matches!(told, Some(Joined(_) | Back { .. })),
                Liveness::Suspect => !matches!(told, Some(Joined(_) | Back { .. } | Down { .. })),
                Liveness::Down => !matches!(told, Some(Joined(_) | Back { .. } | Suspect { .. })),
            };
            assert!(fits, "{:?}, but told {told:?}", peer.liveness);
        }
    }

    /// What an event says of silence and of others' words is what was said.
    fn check_reason(&self, event: &TableEvent) {
        let TableEvent::Down {
            node,
            silent,
            verdict,
        } = event
        else {
            return;
        };
        let model = &self.model[node];
        assert!(*silent >= TABLE_DOWN);
        match verdict {
            // One that was forgotten meanwhile has no history any more.
            _ if model.word.is_none() => {}
            Verdict::Confirmed(by) => {
                assert!(!by.is_empty() && by.len() <= limits::MAX_HELPERS);
                assert!(by.iter().all(|n| model.denied.contains(n)));
            }
            Verdict::NoAnswer | Verdict::NobodyToAsk => assert!(*silent >= TABLE_DOWN_ALONE),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(4000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_table_follows_its_rules(ops in prop::collection::vec(op(), 1..80)) {
        let mut run = Run::new();
        for op in &ops {
            run.step(op);
        }
    }

    /// What was said decides, not the order in which it came.
    #[test]
    fn tables_converge_whatever_the_order(
        words in prop::collection::vec((1..=NODES, 1u64..5, 0u64..4, prop::bool::weighted(0.2)), 1..40)
            .prop_flat_map(|w| (Just(w.clone()), Just(w).prop_shuffle())),
    ) {
        let believe = |words: &[(u32, u64, u64, bool)]| {
            let mut table = Table::new(None);
            for (n, epoch, seq, left) in words {
                let mut advert = advert_of(node(*n), *epoch, *seq);
                if *left {
                    advert.state = NodeState::Left;
                }
                table.merge(advert, unsigned(), false, Mono::ZERO, WALL);
            }
            table.changed();
            let mark = |p: &std::sync::Arc<unamesh_proto::table::Peer>| {
                (p.advert.node, p.advert.epoch, p.advert.seq)
            };
            table.snapshot().peers.iter().map(mark).collect::<Vec<_>>()
        };
        let (one, other) = words;
        prop_assert_eq!(believe(&one), believe(&other));
    }
}

/// Bounds hold under floods of strangers, words and goodbyes.
#[test]
fn bounds_hold() {
    let mut table = Table::new(None);
    let mut x = 0x2545_f491_4f6c_dd1du64;
    for step in 0..30_000u64 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let (n, now) = ((x >> 20) as u32 % 8000, Mono::from_micros(step * 1000));
        let address = addr((x >> 8) as u32);
        match x % 5 {
            0 => table.hint(node(n), address, now),
            1 => table.goodbye(node(n), 1, now),
            2 => table.probe_ok(node(n), address, Duration::from_micros(x >> 50), now),
            _ => {
                let advert = advert_of(node(n), 1 + x % 3, x % 7);
                table.merge(advert, unsigned(), x & 64 == 0, now, WALL);
            }
        }
    }
    table.changed();
    assert!(table.snapshot().peers.len() <= limits::MAX_PEERS);
    assert!(table.tombstones() <= limits::MAX_TOMBSTONES);
    assert!(table.strangers().count() <= limits::MAX_STRANGERS);
    assert!(std::iter::from_fn(|| table.poll()).count() <= limits::MAX_TABLE_EVENTS);
}

/// `PROPTEST_CASES` goes before the default, which fits a debug build.
fn cases(default: u32) -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}
