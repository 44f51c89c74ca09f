//! Recordings of every kind that can be read, in pieces of any size.
#![allow(clippy::unwrap_used)]

use super::*;
use unamesh_client::audio::opus::Profile;
use unamesh_client::audio::{ogg, wav};

/// A tone of half a second.
fn tone(rate: u32) -> Vec<f32> {
    let samples = (0..rate / 2).map(|at| at as f32 / rate as f32);
    samples
        .map(|t| 0.5 * (t * 440.0 * std::f32::consts::TAU).sin())
        .collect()
}

fn wav_of(rate: u32) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    let mut writer = wav::Writer::new(&mut file, rate).unwrap();
    writer.push(&tone(rate)).unwrap();
    writer.finish().unwrap();
    file.into_inner()
}

fn all(raw: Option<u32>, bytes: &[u8], piece: usize) -> Vec<i16> {
    let (mut recording, mut out) = (Recording::new(raw).unwrap(), Vec::new());
    for piece in bytes.chunks(piece) {
        recording.push(piece, &mut out).unwrap();
    }
    assert!(recording.finish(&mut out).unwrap().is_none());
    out
}

#[test]
fn every_rate_of_a_wav_becomes_16_khz() {
    for rate in [8_000, 16_000, 22_050, 24_000, 44_100, 48_000] {
        let bytes = wav_of(rate);
        let whole = all(None, &bytes, bytes.len());
        assert_eq!(whole.len(), 8_000, "{rate}");
        assert_eq!(whole, all(None, &bytes, 7), "{rate} in small pieces");
        let peak = whole.iter().map(|s| s.unsigned_abs()).max().unwrap();
        assert!((15_000..18_000).contains(&peak), "{rate}: peak {peak}");
    }
}

#[test]
fn ogg_is_told_by_its_beginning() {
    let mut writer = ogg::Writer::new(Vec::new(), Profile::Down, 7).unwrap();
    writer.push(&tone(24_000)).unwrap();
    let bytes = writer.finish().unwrap();
    assert_eq!(all(None, &bytes, 100).len(), 8_000);
}

#[test]
fn raw_is_raw_when_somebody_says_so() {
    let mut bytes = Vec::new();
    pcm_bytes(&tone(16_000), &mut bytes);
    assert_eq!(all(Some(16_000), &bytes, 33).len(), 8_000);
    let error = Recording::new(None).unwrap().push(&bytes, &mut Vec::new());
    assert!(matches!(error, Err(RecordingError::Other(_))), "{error:?}");
}

fn pcm_bytes(samples: &[f32], out: &mut Vec<u8>) {
    unamesh_client::audio::pcm::write_s16(samples, out);
}

/// What came is transcribed, and the user hears that there is more.
#[test]
fn a_wav_that_ends_early_gives_what_it_has() {
    let bytes = wav_of(16_000);
    let (mut recording, mut out) = (Recording::new(None).unwrap(), Vec::new());
    recording.push(&bytes[..bytes.len() / 2], &mut out).unwrap();
    let end = recording.finish(&mut out).unwrap();
    assert!(
        matches!(end, Some(RecordingError::Wav(WavError::Truncated { .. }))),
        "{end:?}"
    );
    assert!(out.len() > 3_900, "{}", out.len());
}

#[test]
fn an_ogg_that_ends_early_gives_what_it_has() {
    use unamesh_client::audio::{ogg::Writer, opus::Profile};
    let mut writer = Writer::new(Vec::new(), Profile::Up, 1).unwrap();
    writer.push(&[0.1; 16_000]).unwrap();
    let bytes = writer.finish().unwrap();
    let (mut recording, mut out) = (Recording::new(None).unwrap(), Vec::new());
    recording.push(&bytes[..bytes.len() - 9], &mut out).unwrap();
    let end = recording.finish(&mut out).unwrap();
    assert!(
        matches!(end, Some(RecordingError::Ogg(OggError::Truncated))),
        "{end:?}"
    );
    assert!(out.len() > 15_000, "{}", out.len());
}

#[test]
fn other_files_are_named_and_the_next_command_converts_them() {
    for (head, name) in [
        (&b"fLaC\0\0\0\x22\0\0\0\0"[..], "FLAC"),
        (b"ID3\x04\0\0\0\0\0\0\0\0", "MP3"),
        (b"\0\0\0\x20ftypM4A ", "MP4"),
        (b"{\"error\":\"no\"}", "no recording"),
        (b"hi", "no recording"),
    ] {
        let mut recording = Recording::new(None).unwrap();
        let mut out = Vec::new();
        let refused = recording
            .push(head, &mut out)
            .and_then(|()| recording.finish(&mut out).map(drop));
        let error = refusal("talk.x", &refused.unwrap_err());
        assert!(error.message.contains(name), "{error:?}");
        assert!(error.next.iter().any(|n| n.contains("ffmpeg")), "{error:?}");
    }
    let empty = Recording::new(None).unwrap().finish(&mut Vec::new());
    assert!(matches!(empty, Err(RecordingError::Empty)), "{empty:?}");
}

/// The limit is no surprise: the rest is not dropped without a word.
#[tokio::test]
async fn what_is_too_long_is_cut_and_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pcm");
    std::fs::write(&path, vec![0; (MAX_HEARD_SECONDS + 10) * 2 * 8_000]).unwrap();
    let (told, end) = std::sync::mpsc::channel();
    let mut pieces = read(&path, Some(8_000), move |e| told.send(e).unwrap()).unwrap();
    let mut samples = 0;
    while let Some(piece) = pieces.recv().await {
        samples += piece.unwrap().len();
    }
    assert_eq!(samples, MAX_HEARD_SECONDS * 16_000);
    let end = end.recv().unwrap();
    assert!(matches!(end, RecordingError::TooLong), "{end:?}");
}

#[tokio::test]
async fn a_file_is_read_as_fast_as_it_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.wav");
    std::fs::write(&path, wav_of(48_000)).unwrap();
    let mut pieces = read(&path, None, |e| unreachable!("{e}")).unwrap();
    let mut samples = 0;
    while let Some(piece) = pieces.recv().await {
        samples += piece.unwrap().len();
    }
    assert_eq!(samples, 8_000);
    let missing = read(&dir.path().join("none.wav"), None, |_| ()).unwrap_err();
    assert!(missing.message.contains("none.wav"), "{missing:?}");
}
