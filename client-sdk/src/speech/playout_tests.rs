#![allow(clippy::unwrap_used)]
use super::*;
use crate::audio::opus::Encoder;
use crate::audio::pcm::from_s16;
use crate::audio::signal::{sampled, snr, voice};

/// A chunk's packets, its length and pre-skip.
fn packets(sound: &[f32]) -> (Vec<Vec<u8>>, u64, u16) {
    let mut encoder = Encoder::new(Profile::Down).unwrap();
    let mut packets = Vec::new();
    encoder.push(sound, |p| packets.push(p.to_vec())).unwrap();
    let length = encoder.finish(|p| packets.push(p.to_vec())).unwrap();
    (packets, length.samples, encoder.pre_skip() as u16)
}

fn take_all(playout: &mut Playout, out: &mut Vec<f32>) {
    while let Some(pcm) = playout.take() {
        assert!(pcm.len() <= PACKET as usize);
        out.extend(pcm.iter().copied().map(from_s16));
    }
}

#[test]
fn chunks_follow_each_other_to_the_sample_however_they_are_taken() {
    let sound = sampled(24_000, 3.0, voice(8000.0));
    let (mut playout, mut got) = (Playout::default(), Vec::new());
    for part in [&sound[..20_001], &sound[20_001..20_050], &sound[20_050..]] {
        let (packets, samples, pre_skip) = packets(part);
        assert_eq!(
            playout.begin(pre_skip),
            (part.as_ptr() as u64 - sound.as_ptr() as u64) / 4
        );
        for packet in packets {
            playout.sound(&packet);
            // A listener that takes whatever there is hears no filling.
            take_all(&mut playout, &mut got);
        }
        playout.whole(samples);
        take_all(&mut playout, &mut got);
    }
    assert_eq!(got.len(), sound.len());
    assert!(snr(&sound, &got) > 10.0);
    assert_eq!(playout.taken(), sound.len() as u64);
}

#[test]
fn a_chunk_that_breaks_off_is_joined_to_the_sample() {
    let sound = sampled(24_000, 6.0, voice(8000.0));
    let (packets, samples, pre_skip) = packets(&sound);
    for (broke, taken) in [
        (100, 20_000),
        (100, u64::MAX),
        (3, 200),
        (250, 100_000),
        (40, 0),
    ] {
        let mut playout = Playout::default();
        let mut got = Vec::new();
        playout.begin(pre_skip);
        packets[..broke].iter().for_each(|p| playout.sound(p));
        while playout.taken() < taken {
            let Some(pcm) = playout.take() else { break };
            got.extend(pcm.iter().copied().map(from_s16));
        }
        let mut shift = None;
        playout.begin_anew(0, pre_skip);
        for packet in &packets {
            playout.sound(packet);
            if shift.is_none() {
                shift = playout.join(false);
            }
            if shift.is_none() && taken > 0 {
                // The ear goes on.
                let pcm = playout.take().into_iter().flatten();
                got.extend(pcm.map(from_s16));
            }
        }
        playout.whole(samples);
        assert_eq!(
            shift.or_else(|| playout.join(true)),
            Some(0),
            "broke at {broke}"
        );
        take_all(&mut playout, &mut got);
        assert_eq!(got.len(), sound.len(), "broke at {broke}");
        assert!(
            snr(&sound, &got) > 10.0,
            "broke at {broke}: {}",
            snr(&sound, &got)
        );
    }
}

#[test]
fn a_cut_takes_what_was_not_heard_and_nothing_else() {
    let sound = sampled(24_000, 2.0, voice(8000.0));
    let (packets, ..) = packets(&sound);
    let mut playout = Playout::default();
    playout.begin(0);
    packets.iter().for_each(|p| playout.sound(p));
    playout.take();
    playout.cut(100);
    assert_eq!((playout.taken(), playout.end()), (480, 480));
    playout.clear();
    assert!(playout.is_dry() && playout.take().is_none());
}

#[test]
fn what_is_no_opus_takes_its_time() {
    let mut playout = Playout::default();
    playout.begin(0);
    playout.sound(&[0xff; 40]);
    playout.sound(&[]);
    playout.finish();
    assert_eq!(playout.end(), 2 * PACKET);
}

#[test]
fn little_is_kept_of_what_was_heard() {
    let second = sampled(24_000, 1.0, voice(8000.0));
    let (packets, samples, pre_skip) = packets(&second);
    let (mut playout, mut got) = (Playout::default(), Vec::new());
    for _ in 0..30 {
        playout.begin(pre_skip);
        packets.iter().for_each(|p| playout.sound(p));
        playout.whole(samples);
        take_all(&mut playout, &mut got);
    }
    assert_eq!(got.len(), 30 * 24_000);
    assert!(playout.sound.len() <= 2 * HISTORY + 24_000);
}
