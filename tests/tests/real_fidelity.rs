//! What is left of a spoken sentence at the end of its way: said by Piper, through the codec
//! down, through the codec up, and heard by Whisper: word for word what it was, as of Piper
//! directly. The whole is also compared by its samples and spectra.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

#[path = "../../client-sdk/src/audio/signal.rs"]
#[allow(missing_docs, reason = "shared test code")]
mod signal;

use signal::{lag, snr, spectral_distance};
use unamesh_agent::engine::hearing::HearCall;
use unamesh_client::audio::opus::{Decoder, Encoder, Profile};
use unamesh_client::audio::pcm::{from_s16, to_s16};
use unamesh_tests::cluster::turn;
use unamesh_tests::real::speech::{SENTENCES, Server, for_hearing, hear, resampled, say, words};

/// Through the codec and back.
fn coded(profile: Profile, pcm: &[f32]) -> Vec<f32> {
    let mut encoder = Encoder::new(profile).unwrap();
    let mut decoder = Decoder::new(profile, encoder.pre_skip()).unwrap();
    let (mut packets, mut out) = (Vec::new(), Vec::new());
    encoder.push(pcm, |p| packets.push(p.to_vec())).unwrap();
    let length = encoder.finish(|p| packets.push(p.to_vec())).unwrap();
    decoder.set_end(length.samples);
    for packet in &packets {
        out.extend_from_slice(decoder.decode(packet).unwrap());
    }
    assert_eq!(out.len(), pcm.len(), "not a sample more or less");
    out
}

/// How a signal came through a stage.
fn compare(before: &[f32], after: &[f32], rate: u32, top: f64) -> (f64, f64, f64) {
    (
        lag(before, after, 20),
        snr(before, after),
        spectral_distance(before, after, rate, top),
    )
}

#[tokio::test]
async fn a_sentence_arrives_word_for_word() {
    let _turn = turn().await;
    let (piper, whisper) = (Server::Piper.start().await, Server::Whisper.start().await);
    let mut sums = [0.0; 4];
    for sentence in SENTENCES {
        let spoken = say(&*piper.engine, sentence).await.unwrap();
        let direct = for_hearing(&spoken.pcm, spoken.rate);
        let said: Vec<f32> = spoken.pcm.iter().copied().map(from_s16).collect();

        let down = resampled(&said, spoken.rate, Profile::Down.rate());
        let played = coded(Profile::Down, &down);
        let up = resampled(&played, Profile::Down.rate(), Profile::Up.rate());
        let arrived = coded(Profile::Up, &up);

        let (late, noise, apart) = compare(&down, &played, Profile::Down.rate(), 10_000.0);
        let (late_up, noise_up, apart_up) = compare(&up, &arrived, Profile::Up.rate(), 6_700.0);
        // Voip turns the phase a little; a sample in the wrong place would be a whole one.
        assert!(
            late.abs() < 1.0 && late_up.abs() < 1.0,
            "{late} and {late_up} samples late"
        );
        let arrived: Vec<i16> = arrived.iter().copied().map(to_s16).collect();
        assert!(
            arrived.len().abs_diff(direct.len()) <= 1,
            "{} of {}",
            arrived.len(),
            direct.len()
        );

        let call = || HearCall {
            language: "en".to_owned(),
            ..HearCall::default()
        };
        let before = hear(&*whisper.engine, call(), &direct).await.unwrap();
        let after = hear(&*whisper.engine, call(), &arrived).await.unwrap();
        println!(
            "down SNR {noise:4.1} dB, spectra {apart:.2} dB apart; up {noise_up:4.1} dB, \
             {apart_up:.2} dB; confidence {:.2} -> {:.2}: {:?}",
            before.confidence.unwrap_or_default(),
            after.confidence.unwrap_or_default(),
            after.text
        );
        assert_eq!(words(&before.text), words(sentence), "of Piper itself");
        assert_eq!(words(&after.text), words(sentence), "what arrives");
        for (sum, value) in sums.iter_mut().zip([noise, apart, noise_up, apart_up]) {
            *sum += value / SENTENCES.len() as f64;
        }
    }
    let [noise, apart, noise_up, apart_up] = sums;
    println!(
        "mean of {}: down SNR {noise:.1} dB, spectra {apart:.2} dB apart; up {noise_up:.1} dB, \
         {apart_up:.2} dB",
        SENTENCES.len()
    );
    piper.stop().await;
    whisper.stop().await;
}
