//! A sound through the whole audio path, against the same sound computed at the other end: how
//! well it comes through, to the sample, and that the path of a frame allocates nothing.
//!
//! `UNAMESH_SPEECH_WAV=file.wav` adds a recording: it is compared under the settings of the codec
//! that were to be chosen from, and written beside the file as it comes out of each profile
//! (`file.down.wav`, `file.up.wav`, and `.opus` files), for listening and for a recognizer.
#![allow(
    missing_docs,
    unsafe_code,
    clippy::unwrap_used,
    clippy::disallowed_methods
)]

use opus::{Application, Bitrate, Channels, Signal};
use signal::{lag, sampled, snr, spectral_distance, sweep, voice};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use unamesh_client::audio::ogg;
use unamesh_client::audio::opus::{Decoder, Encoder, Profile};
use unamesh_client::audio::pcm::{Bytes, Format, write_s16};
use unamesh_client::audio::resample::Resampler;
use unamesh_client::audio::wav::{self, Parser};

#[path = "../src/audio/signal.rs"]
mod signal;

/// Counts a thread's allocations.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is handed to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as promised to us.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as promised to us.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Samples at `from` through a resampler, the codec and a resampler back.
fn through(profile: Profile, rate: u32, pcm: &[f32]) -> Vec<f32> {
    let mut there = Resampler::new(rate, profile.rate()).unwrap();
    let mut back = Resampler::new(profile.rate(), rate).unwrap();
    let mut encoder = Encoder::new(profile).unwrap();
    let mut decoder = Decoder::new(profile, encoder.pre_skip()).unwrap();
    let (mut middle, mut packets, mut out) = (Vec::new(), Vec::new(), Vec::new());
    pcm.chunks(700)
        .for_each(|part| there.push(part, &mut middle));
    there.finish(&mut middle);
    encoder.push(&middle, |p| packets.push(p.to_vec())).unwrap();
    let length = encoder.finish(|p| packets.push(p.to_vec())).unwrap();
    assert_eq!(length.samples, middle.len() as u64);
    decoder.set_end(length.samples);
    packets
        .iter()
        .for_each(|p| back.push(decoder.decode(p).unwrap(), &mut out));
    back.finish(&mut out);
    out
}

/// What a codec of this bitrate does to a voice-like sound, found by measuring; the bounds are a
/// little wider. Most of the SNR's noise is inaudible: the spectrum tells more.
#[test]
fn the_whole_path_keeps_the_sound_in_its_place() {
    for (profile, rate) in [
        (Profile::Down, 24_000),
        (Profile::Down, 22_050),
        (Profile::Down, 48_000),
        (Profile::Up, 16_000),
        (Profile::Up, 44_100),
        (Profile::Up, 48_000),
    ] {
        let top = 0.42 * f64::from(rate.min(profile.rate()));
        let voiced = sampled(rate, 1.0, voice(top));
        let swept = sampled(rate, 1.0, sweep(100.0, top, 1.0));
        for (name, pcm, least, most) in [("voice", voiced, 8.0, 6.0), ("sweep", swept, 5.0, 15.0)] {
            let out = through(profile, rate, &pcm);
            assert_eq!(out.len(), pcm.len(), "not a sample more or less");
            let (late, snr) = (lag(&pcm, &out, 20), snr(&pcm, &out));
            let spectrum = spectral_distance(&pcm, &out, rate, top);
            println!(
                "{profile:?} at {rate}, {name}: {late} samples late, SNR {snr:.1} dB, spectra \
                 {spectrum:.1} dB apart"
            );
            // Of the codec's samples.
            let late = late * f64::from(profile.rate()) / f64::from(rate);
            assert!(late.abs() <= 0.5, "{late} samples late");
            assert!(snr >= least, "SNR {snr:.1} dB");
            assert!(spectrum <= most, "{spectrum:.1} dB apart");
        }
    }
}

#[test]
fn the_path_of_a_frame_allocates_nothing() {
    let pcm = sampled(22_050, 2.0, voice(6_000.0));
    let mut bytes = Vec::new();
    write_s16(&pcm, &mut bytes);
    let mut raw = Bytes::new(Format::s16(22_050)).unwrap();
    let mut there = Resampler::new(22_050, 24_000).unwrap();
    let mut back = Resampler::new(24_000, 48_000).unwrap();
    let mut encoder = Encoder::new(Profile::Down).unwrap();
    let mut decoder = Decoder::new(Profile::Down, encoder.pre_skip()).unwrap();
    let (mut samples, mut middle, mut out) = (Vec::new(), Vec::new(), Vec::new());
    let (mut warm, mut frames) = (0, 0);
    for (n, part) in bytes.chunks(883).enumerate() {
        // Once the buffers have their sizes.
        if n == 10 {
            warm = ALLOCATIONS.get();
        }
        samples.clear();
        middle.clear();
        raw.push(part, &mut samples);
        there.push(&samples, &mut middle);
        encoder
            .push(&middle, |packet| {
                out.clear();
                back.push(decoder.decode(packet).unwrap(), &mut out);
                frames += 1;
            })
            .unwrap();
    }
    assert!(frames >= 95);
    assert_eq!(ALLOCATIONS.get() - warm, 0);
}

/// Prints what the settings of the codec that were to be chosen from cost and keep.
#[test]
fn choices() {
    let mut sounds = vec![("synthetic", sampled(24_000, 1.0, voice(9_000.0)))];
    if let Some((_, rate, pcm)) = recording() {
        sounds.push(("recording", through_resampler(rate, 24_000, &pcm)));
    }
    for (name, pcm) in &sounds {
        for application in [Application::LowDelay, Application::Audio, Application::Voip] {
            for complexity in [10, 5, 1] {
                let (distance, snr, cost, bytes) =
                    setting(24_000, 32_000, pcm, application, complexity);
                println!(
                    "{name} 24 kHz {application:?} {complexity}: spectra {distance:.2} dB apart, SNR \
                     {snr:.1} dB, {cost:.2} % of a core, {bytes} bytes a frame"
                );
                assert!(distance < 10.0);
            }
        }
        let at_16_khz = through_resampler(24_000, 16_000, pcm);
        for complexity in [10, 8, 5, 3, 1] {
            let (distance, snr, cost, bytes) =
                setting(16_000, 24_000, &at_16_khz, Application::Voip, complexity);
            println!(
                "{name} 16 kHz Voip+FEC {complexity}: spectra {distance:.2} dB apart, SNR {snr:.1} dB, \
                 {cost:.2} % of a core, {bytes} bytes a frame"
            );
        }
    }
}

/// The recording of the environment: its file, rate and samples.
fn recording() -> Option<(PathBuf, u32, Vec<f32>)> {
    let path = PathBuf::from(std::env::var_os("UNAMESH_SPEECH_WAV")?);
    let (mut parser, mut pcm) = (Parser::new(), Vec::new());
    parser
        .push(&std::fs::read(&path).unwrap(), &mut pcm)
        .unwrap();
    parser.finish().unwrap();
    Some((path, parser.format().unwrap().rate, pcm))
}

fn through_resampler(from: u32, to: u32, pcm: &[f32]) -> Vec<f32> {
    let (mut resampler, mut out) = (Resampler::new(from, to).unwrap(), Vec::new());
    resampler.push(pcm, &mut out);
    resampler.finish(&mut out);
    out
}

#[test]
fn a_recording_is_written_as_it_comes_out() {
    let Some((path, rate, pcm)) = recording() else {
        return;
    };
    for (profile, name) in [(Profile::Down, "down"), (Profile::Up, "up")] {
        let out = through(profile, rate, &pcm);
        // Half a sample of a lower rate in between may be one of the file's.
        assert!(out.len().abs_diff(pcm.len()) <= 1);
        let file = File::create(path.with_extension(format!("{name}.wav"))).unwrap();
        let mut writer = wav::Writer::new(file, rate).unwrap();
        writer.push(&out).unwrap();
        writer.finish().unwrap();
        let file = File::create(path.with_extension(format!("{name}.opus"))).unwrap();
        let mut writer = ogg::Writer::new(file, profile, 1).unwrap();
        writer
            .push(&through_resampler(rate, profile.rate(), &pcm))
            .unwrap();
        writer.finish().unwrap();
    }
}

/// Spectral distance, SNR, percent of a core, and bytes a frame.
fn setting(
    rate: u32,
    bitrate: i32,
    pcm: &[f32],
    application: Application,
    complexity: i32,
) -> (f64, f64, f64, usize) {
    let mut encoder = opus::Encoder::new(rate, Channels::Mono, application).unwrap();
    encoder.set_bitrate(Bitrate::Bits(bitrate)).unwrap();
    encoder.set_complexity(complexity).unwrap();
    encoder.set_signal(Signal::Voice).unwrap();
    if rate == 16_000 {
        encoder.set_inband_fec(true).unwrap();
        encoder.set_packet_loss_perc(10).unwrap();
    }
    let skip = encoder.get_lookahead().unwrap() as usize;
    let mut decoder = opus::Decoder::new(rate, Channels::Mono).unwrap();
    let (mut packet, mut frame, mut out) = ([0; 500], [0.0; 480], Vec::new());
    let (mut spent, mut bytes, mut frames) = (Vec::new(), 0, 0);
    let size = rate as usize / 50;
    for part in pcm.chunks_exact(size) {
        let started = Instant::now();
        let length = encoder.encode_float(part, &mut packet).unwrap();
        let samples = decoder
            .decode_float(&packet[..length], &mut frame, false)
            .unwrap();
        spent.push(started.elapsed());
        out.extend_from_slice(&frame[..samples]);
        (bytes, frames) = (bytes + length, frames + 1);
    }
    // The median: a busy machine takes the processor away now and then.
    spent.sort_unstable();
    let cost = spent[spent.len() / 2].as_secs_f64() / Duration::from_millis(20).as_secs_f64();
    let (reference, got) = (&pcm[..out.len() - skip], &out[skip..]);
    let distance = spectral_distance(reference, got, rate, 0.45 * f64::from(rate));
    (distance, snr(reference, got), 100.0 * cost, bytes / frames)
}
