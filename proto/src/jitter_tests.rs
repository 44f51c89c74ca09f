use super::*;
use crate::speech::uplink::{Datagram, Outgoing};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

fn ms(ms: u64) -> Mono {
    Mono::from_micros(ms * 1000)
}

fn frame(sequence: u32) -> [u8; 5] {
    let [a, b, c, d] = sequence.to_le_bytes();
    [a, b, c, d, 0xaa]
}

fn popped(jitter: &mut Jitter, now: Mono) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let one = match jitter.pop(now) {
            Pop::Frame {
                sequence,
                frame: bytes,
            } => {
                assert_eq!(bytes, frame(sequence));
                format!("{sequence}")
            }
            Pop::Conceal { sequence, next } => {
                assert!(next.is_none_or(|next| next == frame(sequence + 1)));
                format!("{sequence}{}", if next.is_some() { "f" } else { "c" })
            }
            Pop::Wait(_) | Pop::End => return all,
        };
        all.push(one);
    }
}

#[test]
fn what_is_in_order_waits_for_nothing() {
    let mut jitter = Jitter::new();
    assert_eq!(jitter.pop(ms(0)), Pop::Wait(None));
    for n in 0..3 {
        assert_eq!(jitter.insert(n, &frame(n), ms(20)), Inserted::New);
    }
    assert_eq!(popped(&mut jitter, ms(20)), ["0", "1", "2"]);
    assert_eq!(
        jitter.pop(ms(9000)),
        Pop::Wait(None),
        "a blackout is not silence"
    );
    jitter.end(3, ms(9000)).unwrap();
    assert_eq!(jitter.pop(ms(9000)), Pop::End);
    assert!(jitter.is_complete());
}

#[test]
fn a_gap_is_waited_for_then_concealed_and_still_filled_for_the_final_pass() {
    let mut jitter = Jitter::new();
    jitter.insert(0, &frame(0), ms(0));
    jitter.insert(3, &frame(3), ms(60));
    assert_eq!(popped(&mut jitter, ms(60)), ["0"]);
    let target = jitter.target();
    assert_eq!(jitter.pop(ms(60)), Pop::Wait(Some(ms(60) + target)));
    assert!(jitter.missing().eq(std::iter::once(1..3)));
    assert_eq!(popped(&mut jitter, ms(180)), ["1c", "2f", "3"]);
    assert_eq!(jitter.insert(1, &frame(1), ms(190)), Inserted::Late);
    assert_eq!(jitter.insert(1, &frame(1), ms(191)), Inserted::Copy);
    jitter.end(4, ms(200)).unwrap();
    assert!(jitter.missing().eq(std::iter::once(2..3)));
    assert!(!jitter.is_complete());
    jitter.insert(2, &frame(2), ms(210));
    assert!(jitter.is_complete());
    let whole: Vec<_> = (0..4).map(|n| jitter.frame(n).unwrap().to_vec()).collect();
    assert_eq!(whole, [0, 1, 2, 3].map(|n| frame(n).to_vec()));
    let stats = jitter.stats();
    assert_eq!((stats.received, stats.late, stats.concealed), (4, 2, 2));
}

#[test]
fn the_end_shows_what_its_tail_lacks() {
    let mut jitter = Jitter::new();
    jitter.insert(0, &frame(0), ms(0));
    jitter.end(2, ms(50)).unwrap();
    assert_eq!(popped(&mut jitter, ms(50)), ["0"]);
    let target = jitter.target();
    assert_eq!(jitter.pop(ms(50)), Pop::Wait(Some(ms(50) + target)));
    assert_eq!(
        jitter.insert(2, &frame(2), ms(51)),
        Inserted::Refused,
        "behind the end"
    );
    assert_eq!(popped(&mut jitter, ms(170)), ["1c"]);
    assert_eq!(jitter.pop(ms(170)), Pop::End);
    assert_eq!(jitter.end(2, ms(90)), Ok(()));
    let error = EndError {
        claimed: 3,
        here: 2,
    };
    assert_eq!(jitter.end(3, ms(90)), Err(error));
    let mut short = Jitter::new();
    short.insert(5, &frame(5), ms(0));
    assert!(short.end(5, ms(0)).is_err());
    assert!(short.end(MAX_UTTERANCE_FRAMES + 1, ms(0)).is_err());
    let mut none = Jitter::new();
    none.end(0, ms(0)).unwrap();
    assert_eq!(none.pop(ms(0)), Pop::End);
    assert!(none.is_complete());
}

#[test]
fn the_target_adapts_within_its_bounds() {
    let mut jitter = Jitter::new();
    assert_eq!(jitter.target(), JITTER_MAX);
    for n in 0..3000 {
        jitter.insert(n, &frame(n), ms(0));
    }
    assert!(jitter.target() < JITTER_MIN + Duration::from_millis(1));
    jitter.insert(3001, &frame(3001), ms(0));
    jitter.insert(3000, &frame(3000), ms(70));
    assert_eq!(
        jitter.target(),
        Duration::from_millis(80),
        "70 ms and the margin"
    );
    jitter.insert(3003, &frame(3003), ms(0));
    jitter.insert(3002, &frame(3002), ms(5000));
    assert_eq!(jitter.target(), JITTER_MAX);
}

#[test]
fn what_is_lost_twice_is_told_once() {
    let mut jitter = Jitter::new();
    for n in [1, 4, 5] {
        jitter.insert(n, &frame(n), ms(0));
    }
    assert_eq!(jitter.lost(), Some(0..1), "the copy of 0 comes with 2");
    assert_eq!(jitter.lost(), Some(2..3), "that of 3 comes with 5 or later");
    assert_eq!(jitter.lost(), None);
    jitter.insert(6, &frame(6), ms(0));
    assert_eq!(jitter.lost(), Some(3..4));
    jitter.end(9, ms(0)).unwrap();
    assert_eq!(jitter.lost(), Some(7..9));
    assert_eq!(jitter.lost(), None);
    assert!(jitter.missing().eq([0..1, 2..4, 7..9]));
}

#[test]
fn hostile_numbers_and_sizes_are_refused() {
    let mut jitter = Jitter::new();
    for sequence in [MAX_AUDIO_AHEAD, MAX_UTTERANCE_FRAMES, u32::MAX] {
        assert_eq!(jitter.insert(sequence, &[1], ms(0)), Inserted::Refused);
    }
    assert_eq!(jitter.insert(0, &[], ms(0)), Inserted::Refused);
    assert_eq!(
        jitter.insert(0, &[0; MAX_AUDIO_FRAME + 1], ms(0)),
        Inserted::Refused
    );
    assert_eq!((jitter.frames(), jitter.stats().refused), (0, 5));
    // As far ahead as allowed, again and again.
    let mut sequence = MAX_AUDIO_AHEAD - 1;
    while jitter.insert(sequence, &[1], ms(0)) == Inserted::New {
        sequence += MAX_AUDIO_AHEAD;
    }
    assert!(jitter.frames() <= MAX_UTTERANCE_FRAMES);
    let mut full = Jitter::new();
    let accepted = (0..MAX_UTTERANCE_FRAMES)
        .take_while(|n| full.insert(*n, &[0; MAX_AUDIO_FRAME], ms(0)) == Inserted::New)
        .count();
    assert_eq!(accepted, MAX_UTTERANCE_BYTES / MAX_AUDIO_FRAME);
}

/// A path: what it loses, delays and doubles.
#[derive(Clone, Copy, Debug)]
struct Path {
    /// The share that is lost, and how many in a row on average.
    loss: f64,
    burst: f64,
    delay_ms: f64,
    /// The most that a datagram is later or earlier than that.
    jitter_ms: f64,
    doubled: f64,
    /// What both copies lost is asked for.
    repair: bool,
}

enum Event {
    Datagram(Vec<u8>),
    Repair(Range<u32>),
    End,
}

/// Arrivals of the datagrams of `sent`, one each 20 ms, in the order of their arrival.
fn arrivals(sent: &Outgoing, path: Path, rng: &mut ChaCha8Rng) -> Vec<(Mono, Event)> {
    let mut all = Vec::new();
    // Two states: in the bad one everything is lost.
    let leave_bad = 1.0 / path.burst;
    let enter_bad = path.loss * leave_bad / (1.0 - path.loss).max(1e-9);
    let mut bad = false;
    for sequence in 0..sent.frames() {
        bad = rng.random_bool(if bad {
            1.0 - leave_bad
        } else {
            enter_bad.min(1.0)
        });
        let copies = 1 + u32::from(rng.random_bool(path.doubled));
        for _ in 0..copies {
            let off = rng.random_range(-1.0..=1.0) * path.jitter_ms;
            let at = f64::from(sequence) * 20.0 + (path.delay_ms + off).max(0.0);
            let mut bytes = Vec::new();
            sent.datagram(sequence, &mut bytes);
            if !bad {
                all.push((
                    Mono::from_micros((at * 1000.0) as u64),
                    Event::Datagram(bytes),
                ));
            }
        }
    }
    all.sort_by_key(|(at, _)| *at);
    all
}

#[derive(Default)]
struct Outcome {
    stats: JitterStats,
    /// Concealed with the next frame at hand.
    with_fec: u32,
    added: Vec<Duration>,
}

/// Plays an utterance over `path` and checks what must hold on any.
fn play(frames: u32, path: Path, seed: u64) -> Outcome {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut sent = Outgoing::new(1);
    for n in 0..frames {
        sent.push(&frame(n)).unwrap();
    }
    let mut events = arrivals(&sent, path, &mut rng);
    let told = events.last().map_or(Mono::ZERO, |(at, _)| *at) + Duration::from_millis(1);
    events.push((told, Event::End));
    let mut events: BTreeMap<(Mono, usize), Event> = events
        .into_iter()
        .enumerate()
        .map(|(n, (at, event))| ((at, n), event))
        .collect();

    let (mut jitter, mut outcome) = (Jitter::new(), Outcome::default());
    let mut arrived = vec![None; frames as usize];
    let (mut expected, mut last) = (0, told);
    let mut drain = |jitter: &mut Jitter, arrived: &[Option<Mono>], now: Mono| loop {
        match jitter.pop(now) {
            Pop::Frame {
                sequence,
                frame: bytes,
            } => {
                assert_eq!((sequence, bytes), (expected, &frame(sequence)[..]));
                let added = now.since(arrived[sequence as usize].unwrap());
                assert!(added <= JITTER_MAX, "frame {sequence} waited {added:?}");
                outcome.added.push(added);
            }
            Pop::Conceal { sequence, next } => {
                assert_eq!(sequence, expected);
                assert!(arrived[sequence as usize].is_none());
                outcome.with_fec += u32::from(next.is_some());
            }
            Pop::Wait(until) => break until,
            Pop::End => break None,
        }
        expected += 1;
    };
    while let Some(((at, _), event)) = events.pop_first() {
        // The gaps that are due before this arrival.
        let mut now = Mono::ZERO;
        while let Some(due) = drain(&mut jitter, &arrived, now).filter(|due| *due < at) {
            now = due;
        }
        let mut insert = |jitter: &mut Jitter, sequence: u32, bytes: &[u8]| {
            assert_ne!(jitter.insert(sequence, bytes, at), Inserted::Refused);
            arrived[sequence as usize].get_or_insert(at);
        };
        match event {
            Event::Datagram(bytes) => {
                let datagram = Datagram::parse(&bytes).unwrap();
                datagram
                    .frames()
                    .for_each(|(n, bytes)| insert(&mut jitter, n, bytes));
            }
            Event::Repair(range) => {
                range.for_each(|n| insert(&mut jitter, n, sent.frame(n).unwrap()));
            }
            Event::End => jitter.end(frames, at).unwrap(),
        }
        while let Some(range) = jitter.lost().filter(|_| path.repair) {
            // There and back, and once more if that is lost.
            let off = rng.random_range(-1.0..=1.0) * path.jitter_ms;
            let again = if rng.random_bool(path.loss.min(0.5)) {
                3.0
            } else {
                1.0
            };
            let wait = (2.0 * path.delay_ms * again + off).max(0.0) * 1000.0;
            let key = (
                at + Duration::from_micros(wait as u64),
                1_000_000 + events.len(),
            );
            events.insert(key, Event::Repair(range));
            last = last.max(key.0);
        }
        drain(&mut jitter, &arrived, at);
    }
    let mut now = last;
    while let Some(due) = drain(&mut jitter, &arrived, now) {
        now = due;
    }
    assert!(now <= last + JITTER_MAX);
    assert_eq!(jitter.pop(now), Pop::End);

    let stats = jitter.stats();
    let here = arrived.iter().flatten().count() as u32;
    assert_eq!(stats.received, here, "what came is kept");
    assert_eq!(
        stats.received - stats.late + stats.concealed,
        frames,
        "each is told once"
    );
    let lost: u32 = jitter.missing().map(|range| range.end - range.start).sum();
    assert_eq!(lost, frames - here);
    assert_eq!(jitter.is_complete(), lost == 0);
    // The tail and the gaps come reliably: then the final pass is whole.
    let gaps: Vec<u32> = jitter.missing().flatten().collect();
    for n in gaps {
        jitter.insert(n, sent.frame(n).unwrap(), last);
    }
    assert!(jitter.is_complete());
    outcome.stats = stats;
    outcome
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_is_told_once_in_order_and_in_time(
        frames in 0u32..300,
        loss in 0.0..0.6,
        burst in 1.0..8.0,
        jitter_ms in 0.0..200.0,
        doubled in 0.0..0.3,
        repair: bool,
        seed: u64,
    ) {
        let path = Path { loss, burst, delay_ms: 25.0, jitter_ms, doubled, repair };
        play(frames, path, seed);
    }
}

/// The figures of the link: 25 ms ± 5, 3 % loss in bursts.
#[test]
fn the_link_of_the_bar() {
    for (burst, repair) in [
        (1.0, false),
        (2.0, false),
        (3.0, false),
        (2.0, true),
        (3.0, true),
    ] {
        let path = Path {
            loss: 0.03,
            burst,
            delay_ms: 25.0,
            jitter_ms: 5.0,
            doubled: 0.0,
            repair,
        };
        let (mut frames, mut concealed, mut fec, mut late, mut added) = (0, 0, 0, 0, Vec::new());
        // Utterances of ten seconds.
        for seed in 0..120 {
            let outcome = play(500, path, seed);
            frames += 500;
            concealed += outcome.stats.concealed;
            late += outcome.stats.late;
            fec += outcome.with_fec;
            added.extend(outcome.added);
        }
        added.sort_unstable();
        let share = |n: u32| 100.0 * f64::from(n) / f64::from(frames);
        println!(
            "bursts of {burst}, repair {repair}: {:.2} % not there in time ({:.2} % late; {:.2} % \
             with FEC), added p50 {:?} p95 {:?} p99 {:?}",
            share(concealed),
            share(late),
            share(fec),
            added[added.len() / 2],
            added[added.len() * 95 / 100],
            added[added.len() * 99 / 100],
        );
        assert!(
            !repair || share(concealed) <= 0.2,
            "the bar for late and lost"
        );
        assert!(added[added.len() * 95 / 100] <= Duration::from_millis(60));
    }
}
