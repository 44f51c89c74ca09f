use super::*;
use crate::audio::signal::{lag, noise, sampled, snr, voice};

fn packets(profile: Profile, pcm: &[f32], piece: usize) -> (Vec<Vec<u8>>, Length, usize) {
    let mut encoder = Encoder::new(profile).unwrap();
    let mut packets = Vec::new();
    for part in pcm.chunks(piece) {
        encoder.push(part, |p| packets.push(p.to_vec())).unwrap();
    }
    let length = encoder.finish(|p| packets.push(p.to_vec())).unwrap();
    assert_eq!(length.frames as usize, packets.len());
    assert_eq!(encoder.length(), Length::default());
    (packets, length, encoder.pre_skip())
}

fn decoded(profile: Profile, packets: &[Vec<u8>], length: Length, pre_skip: usize) -> Vec<f32> {
    let mut decoder = Decoder::new(profile, pre_skip).unwrap();
    decoder.set_end(length.samples);
    let mut out = Vec::new();
    packets
        .iter()
        .for_each(|p| out.extend_from_slice(decoder.decode(p).unwrap()));
    assert_eq!(decoder.position(), out.len() as u64);
    out
}

#[test]
fn a_round_trip_has_the_length_of_what_went_in() {
    for profile in [Profile::Down, Profile::Up] {
        let frame = profile.frame();
        let pre_skip = Encoder::new(profile).unwrap().pre_skip();
        println!("{profile:?}: pre-skip {pre_skip} samples");
        assert!(pre_skip > 0 && pre_skip < frame);
        for samples in [
            0,
            1,
            frame - pre_skip,
            frame - pre_skip + 1,
            frame,
            7 * frame + 13,
        ] {
            let pcm = sampled(profile.rate(), 1.0, voice(6000.0));
            let (packets, length, pre_skip) = packets(profile, &pcm[..samples], 100);
            assert_eq!(length.samples, samples as u64);
            let least = if samples == 0 {
                0
            } else {
                (samples + pre_skip).div_ceil(frame)
            };
            assert_eq!(packets.len(), least, "no frame for nothing");
            assert_eq!(decoded(profile, &packets, length, pre_skip).len(), samples);
        }
    }
}

#[test]
fn every_sample_comes_out_in_its_place() {
    for profile in [Profile::Down, Profile::Up] {
        let pcm = sampled(profile.rate(), 3.0, voice(6000.0));
        let (packets, length, pre_skip) = packets(profile, &pcm, 777);
        let out = decoded(profile, &packets, length, pre_skip);
        let late = lag(&pcm, &out, 40);
        println!(
            "{profile:?}: {late} samples late, SNR {:.1} dB",
            snr(&pcm, &out)
        );
        assert_eq!(late.round(), 0.0, "{profile:?}");
    }
}

#[test]
fn the_cut_of_the_input_changes_nothing() {
    let pcm = sampled(24_000, 0.5, voice(6000.0));
    let whole = packets(Profile::Down, &pcm, pcm.len());
    assert_eq!(packets(Profile::Down, &pcm, 1), whole);
    assert_eq!(packets(Profile::Down, &pcm, 481), whole);
}

#[test]
fn an_encoder_starts_anew_after_the_end() {
    let pcm = sampled(16_000, 0.3, voice(6000.0));
    let mut encoder = Encoder::new(Profile::Up).unwrap();
    let mut runs = Vec::new();
    for _ in 0..2 {
        let mut packets = Vec::new();
        encoder.push(&pcm, |p| packets.push(p.to_vec())).unwrap();
        encoder.finish(|p| packets.push(p.to_vec())).unwrap();
        runs.push(packets);
    }
    assert_eq!(runs[0], runs[1]);
}

#[test]
fn silence_is_sent_too_and_noise_fits() {
    let mut random = noise(7);
    let loud: Vec<f32> = (0..16_000).map(|_| random() * 40.0).collect();
    for profile in [Profile::Down, Profile::Up] {
        let (silence, ..) = packets(profile, &[0.0; 24_000], 24_000);
        assert!(silence.len() >= 50, "a frame for each 20 ms");
        assert!(silence.iter().all(|p| p.len() > 2), "no DTX");
        let (noise, ..) = packets(profile, &loud, 999);
        let largest = noise.iter().map(Vec::len).max().unwrap();
        println!("{profile:?}: the largest packet of noise has {largest} bytes");
        assert!(largest <= MAX_AUDIO_FRAME);
        // What is no number must not reach the codec.
        packets(
            profile,
            &[f32::NAN, f32::INFINITY, -f32::INFINITY].repeat(400),
            400,
        );
    }
}

#[test]
fn fec_restores_more_than_concealment() {
    let pcm = sampled(16_000, 4.0, voice(6000.0));
    let (packets, length, pre_skip) = packets(Profile::Up, &pcm, 320);
    let clean = decoded(Profile::Up, &packets, length, pre_skip);
    let with_losses = |fec: bool| {
        let mut decoder = Decoder::new(Profile::Up, pre_skip).unwrap();
        decoder.set_end(length.samples);
        let (mut out, mut lost) = (Vec::new(), Vec::new());
        for (n, packet) in packets.iter().enumerate() {
            let is_lost = n % 10 == 5 && n + 1 < packets.len();
            let samples = match (is_lost, fec) {
                (true, true) => decoder.recover(&packets[n + 1]).unwrap(),
                (true, false) => decoder.conceal().unwrap(),
                (false, _) => decoder.decode(packet).unwrap(),
            };
            if is_lost {
                lost.push(out.len()..out.len() + samples.len());
            }
            out.extend_from_slice(samples);
        }
        assert_eq!(out.len(), clean.len(), "later frames stay in place");
        let of = |from: &[f32]| -> Vec<f32> {
            lost.iter()
                .flat_map(|range| from[range.clone()].to_vec())
                .collect()
        };
        snr(&of(&clean), &of(&out))
    };
    let (fec, plc) = (with_losses(true), with_losses(false));
    println!("lost frames against the undisturbed ones: FEC {fec:.1} dB, concealed {plc:.1} dB");
    assert!(fec > plc + 3.0);
}

#[test]
fn the_first_frames_may_be_lost() {
    let mut decoder = Decoder::new(Profile::Up, 104).unwrap();
    assert_eq!(decoder.conceal().unwrap().len(), 320 - 104);
    assert_eq!(decoder.conceal().unwrap().len(), 320);
    assert_eq!(decoder.set_end(600), 0);
    assert_eq!(decoder.conceal().unwrap().len(), 64);
    assert_eq!(decoder.conceal().unwrap().len(), 0);
    assert_eq!(
        decoder.set_end(500),
        100,
        "what was handed out too early is told"
    );
}

#[test]
fn hostile_packets_are_errors() {
    let mut decoder = Decoder::new(Profile::Down, 0).unwrap();
    assert_eq!(decoder.decode(&[]), Err(CodecError::Size(0)));
    assert_eq!(decoder.decode(&[0; 1276]), Err(CodecError::Size(1276)));
    assert_eq!(decoder.recover(&[]), Err(CodecError::Size(0)));
    // Code 3 with no frames, and with 63.
    assert!(decoder.decode(&[0xfb, 0]).is_err());
    assert!(decoder.decode(&[0xfb, 63]).is_err());
    // CELT, 10 ms.
    let short = CodecError::Duration {
        got: 240,
        expected: 480,
    };
    assert_eq!(decoder.decode(&[30 << 3, 1, 2]), Err(short));
    let (good, ..) = packets(Profile::Down, &sampled(24_000, 0.1, voice(6000.0)), 480);
    let mut random = noise(11);
    let mut byte = move || ((random() + 1.0) * 128.0) as u8;
    let mut decoded = 0;
    for _ in 0..20_000 {
        let mut packet = good[usize::from(byte()) % good.len()].clone();
        for _ in 0..=byte() % 4 {
            let at = usize::from(byte()) % packet.len();
            packet[at] = byte();
        }
        packet.truncate(usize::from(byte()).max(1));
        let results = [
            decoder.decode(&packet).cloned_len(),
            decoder.recover(&packet).cloned_len(),
        ];
        for samples in results.into_iter().flatten() {
            assert_eq!(samples, 480);
            decoded += 1;
        }
    }
    println!("{decoded} of 40,000 damaged packets decoded");
    assert_eq!(decoder.decode(&good[0]).unwrap().len(), 480);
}

trait ClonedLen {
    fn cloned_len(self) -> Result<usize, CodecError>;
}

impl ClonedLen for Result<&[f32], CodecError> {
    fn cloned_len(self) -> Result<usize, CodecError> {
        self.map(|samples| {
            assert!(samples.iter().all(|s| s.is_finite()));
            samples.len()
        })
    }
}
