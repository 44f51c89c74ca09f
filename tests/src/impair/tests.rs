use super::*;

const SIZE: usize = 1200;
const PACKETS: u64 = 100_000;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The fates of packets that leave a millisecond after one another.
fn fates(impairment: Impairment, seed: u64, packets: u64) -> Vec<(Duration, Fate)> {
    let mut line = Line::new(impairment, seed);
    (0..packets)
        .map(|n| (ms(n), line.send(ms(n), SIZE)))
        .collect()
}

fn arrivals(fates: &[(Duration, Fate)]) -> impl Iterator<Item = (Duration, Duration)> {
    fates.iter().filter_map(|&(sent, fate)| match fate {
        Fate::Arrives(at) => Some((sent, at)),
        Fate::Lost(_) => None,
    })
}

#[test]
fn a_cable_does_nothing() {
    assert!(
        fates(CABLE, 1, 100)
            .iter()
            .all(|&(sent, fate)| fate == Fate::Arrives(sent))
    );
}

#[test]
fn a_seed_repeats_and_another_does_not() {
    assert_eq!(fates(LOSSY, 7, 1000), fates(LOSSY, 7, 1000));
    assert_ne!(fates(LOSSY, 7, 1000), fates(LOSSY, 8, 1000));
}

#[test]
fn the_luck_of_a_packet_does_not_depend_on_those_before() {
    let mut held = Line::new(LOSSY, 3);
    held.blackhole = true;
    let mut free = Line::new(LOSSY, 3);
    for n in 0..500 {
        held.send(ms(n), 64);
        free.send(ms(n), SIZE);
    }
    held.blackhole = false;
    let after = |line: &mut Line| (1000..2000).map(|n| line.send(ms(n), SIZE)).collect();
    let (held, free): (Vec<Fate>, Vec<Fate>) = (after(&mut held), after(&mut free));
    assert_eq!(held, free);
}

#[test]
fn losses_have_their_rate_and_come_in_bursts() {
    let lost: Vec<bool> = fates(LOSSY, 5, PACKETS)
        .iter()
        .map(|(_, fate)| *fate == Fate::Lost(Reason::Loss))
        .collect();
    let total = lost.iter().filter(|&&lost| lost).count() as f64;
    let bursts = lost.chunk_by(|a, b| a == b).filter(|run| run[0]).count() as f64;
    let share = total / PACKETS as f64;
    assert!((0.027..0.033).contains(&share), "{share}");
    let burst = total / bursts;
    assert!((1.8..2.2).contains(&burst), "{burst}");
}

#[test]
fn delays_stay_in_bounds_and_in_order() {
    let fates = fates(LOSSY, 9, 10_000);
    let (mut least, mut most, mut before) = (ms(1000), ms(0), ms(0));
    for (sent, at) in arrivals(&fates) {
        (least, most) = (least.min(at - sent), most.max(at - sent));
        assert!(at >= before, "{sent:?} overtook the one before");
        before = at;
    }
    assert!(least >= ms(20) && least < ms(22), "{least:?}");
    assert!(most <= ms(30) && most > ms(29), "{most:?}");
}

#[test]
fn jitter_reorders_by_choice_only() {
    let wild = Impairment {
        reorder: true,
        ..LOSSY
    };
    let fates = fates(wild, 9, 1000);
    let at: Vec<Duration> = arrivals(&fates).map(|(_, at)| at).collect();
    assert!(!at.is_sorted());
}

#[test]
fn the_rate_holds_and_the_queue_is_bounded() {
    // 9.6 Mbit/s into 1 Mbit/s, for ten seconds.
    let fates = fates(NARROW, 1, 10_000);
    let bits = arrivals(&fates).filter(|&(_, at)| at <= ms(10_000)).count() * SIZE * 8;
    assert!((9_800_000..10_100_000).contains(&bits), "{bits}");
    // 32,000 bytes at 1 Mbit/s take 256 ms.
    let longest = arrivals(&fates).map(|(sent, at)| at - sent).max().unwrap();
    assert!(longest <= ms(256 + 5) && longest > ms(240), "{longest:?}");
    let full = fates
        .iter()
        .any(|(_, fate)| *fate == Fate::Lost(Reason::Queue));
    assert!(full);
}

#[test]
fn after_a_pause_a_burst_passes_at_once() {
    let mut line = Line::new(NARROW, 1);
    let now = ms(5000);
    let waits: Vec<bool> = (0..4)
        .map(|_| line.send(now, 1000) != Fate::Arrives(now + ms(5)))
        .collect();
    assert_eq!(waits, [false, false, false, true]);
}

#[test]
fn a_stall_keeps_packets_and_lets_them_go_together() {
    let stall = Impairment {
        stalls: Some(Trace {
            stalls: &[(1000, 300)],
            period: 10_000,
            compress: 1,
            shift: 0,
        }),
        ..CABLE
    };
    for round in [0, 10_000] {
        let mut line = Line::new(stall, 1);
        let mut at = |n: u64| line.send(ms(round + n), SIZE);
        assert_eq!(at(999), Fate::Arrives(ms(round + 999)));
        assert_eq!(at(1000), Fate::Arrives(ms(round + 1300)));
        assert_eq!(at(1299), Fate::Arrives(ms(round + 1300)));
        assert_eq!(at(1300), Fate::Arrives(ms(round + 1300)));
        assert_eq!(at(1301), Fate::Arrives(ms(round + 1301)));
    }
}

#[test]
fn the_wifi_trace_is_what_it_claims() {
    let long = |trace: Trace| trace.stalls.iter().filter(|(_, long)| *long > 200).count();
    assert_eq!(long(WIFI_TRACE), 12);
    assert!(WIFI_TRACE.stalls.is_sorted());
    // Compressed they still do not touch.
    let end = |&(begin, long): &(u64, u64)| begin / 15 + long;
    let apart = WIFI_TRACE
        .stalls
        .windows(2)
        .all(|pair| end(&pair[0]) < pair[1].0 / 15);
    assert!(apart);
    let fast = WIFI.compressed(10).stalls.unwrap();
    assert_eq!(fast.release(ms(3_170)), ms(3_170 + 240));
    assert_eq!(fast.release(ms(63_170)), ms(63_170 + 240));
    let later = WIFI.compressed(10).shifted(300_000).stalls.unwrap();
    assert_eq!(later.release(ms(33_170)), ms(33_170 + 240));
    assert_eq!(later.release(ms(3_170)), ms(3_170));
}

#[test]
fn a_blackhole_swallows_what_travels() {
    let mut pipe = Pipe::new(Line::new(
        Impairment {
            loss: None,
            ..LOSSY
        },
        1,
    ));
    pipe.push(ms(0), b"one");
    pipe.blackhole(true);
    pipe.push(ms(1), b"two");
    pipe.blackhole(false);
    pipe.push(ms(2), b"three");
    assert_eq!(pipe.pop(ms(2)), None);
    assert_eq!(pipe.pop(ms(100)).as_deref(), Some(&b"three"[..]));
    assert_eq!(pipe.next(), None);
    let counts = Counts {
        arrived: 1,
        lost: 2,
    };
    assert_eq!(pipe.counts(), counts);
}
