use super::*;
use crate::audio::signal::{lag, noise, sampled, voice};

fn written(profile: Profile, pcm: &[f32]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), profile, 0x1234).unwrap();
    pcm.chunks(999).for_each(|part| writer.push(part).unwrap());
    writer.finish().unwrap()
}

fn read(bytes: &[u8], rate: u32, piece: usize) -> (Result<(), OggError>, Vec<f32>) {
    let (mut reader, mut out) = (Reader::new(rate), Vec::new());
    let mut result = Ok(());
    for part in bytes.chunks(piece.max(1)) {
        result = reader.push(part, &mut out);
        if result.is_err() {
            break;
        }
    }
    assert_eq!(reader.samples(), out.len() as u64);
    let ended = result.and_then(|()| reader.finish(&mut out));
    (ended, out)
}

/// The flags and positions of all pages.
fn pages(bytes: &[u8]) -> Vec<(u8, u64)> {
    let (mut rest, mut all) = (bytes, Vec::new());
    while let Some(length) = page_length(rest).unwrap() {
        let page = Page::of(rest.first_chunk().unwrap());
        all.push((page.flags, page.position));
        rest = &rest[length..];
    }
    assert!(rest.is_empty());
    all
}

#[test]
fn a_file_lasts_as_long_as_what_went_in() {
    for profile in [Profile::Down, Profile::Up] {
        let pcm = sampled(profile.rate(), 2.2, voice(6_000.0));
        for samples in [0, 1, 319, 480, 24_000, 35_123] {
            let file = written(profile, &pcm[..samples]);
            let (result, out) = read(&file, profile.rate(), file.len());
            result.unwrap();
            assert_eq!(out.len(), samples);
            for piece in [1, 27, 1000] {
                assert_eq!(read(&file, profile.rate(), piece).1, out);
            }
            if samples > 20_000 {
                assert_eq!(lag(&pcm[..samples], &out, 20).round(), 0.0);
            }
        }
    }
}

#[test]
fn pages_are_as_the_rfc_wants_them() {
    let pcm = sampled(24_000, 2.5, voice(6_000.0));
    let file = written(Profile::Down, &pcm);
    let pre_skip = u64::from(u16::from_le_bytes([file[38], file[39]]));
    assert_eq!(pre_skip, 120, "2.5 ms at 48 kHz");
    let all = pages(&file);
    assert_eq!(
        all[..2],
        [(FIRST, 0), (0, 0)],
        "the two heads have pages of their own"
    );
    assert_eq!(all[2], (0, 48_000), "a page a second");
    assert_eq!(all.last(), Some(&(LAST, 120_000 + pre_skip)));
    assert!(all.windows(2).all(|w| w[0].1 <= w[1].1));
}

#[test]
fn other_rates_and_chained_streams_are_read() {
    let pcm = sampled(24_000, 1.0, voice(3_000.0));
    let file = written(Profile::Down, &pcm);
    for rate in [8_000, 16_000, 48_000] {
        let (result, out) = read(&file, rate, 100);
        result.unwrap();
        assert_eq!(out.len(), rate as usize);
        assert_eq!(
            lag(&sampled(rate, 1.0, voice(3_000.0)), &out, 20).round(),
            0.0
        );
    }
    let chained = [file.clone(), written(Profile::Up, &[0.0; 1600])].concat();
    let (result, out) = read(&chained, 24_000, 333);
    result.unwrap();
    assert_eq!(out.len(), 24_000 + 2400);
}

#[test]
fn a_stream_cut_out_of_a_longer_one_ends_in_its_place() {
    let pcm = sampled(24_000, 3.0, voice(6_000.0));
    let file = written(Profile::Down, &pcm);
    // Without its first page of audio.
    let mut starts = vec![0];
    while let Some(length) = page_length(&file[*starts.last().unwrap()..]).unwrap() {
        starts.push(starts.last().unwrap() + length);
    }
    let cut = [&file[..starts[2]], &file[starts[3]..]].concat();
    let (result, out) = read(&cut, 24_000, cut.len());
    result.unwrap();
    // What the pre-skip drops is of the second second now.
    assert_eq!(out.len(), 48_000);
}

/// Also of a file that is but one page: only the packet that was cut is missing, 20 ms.
#[test]
fn what_is_there_of_a_file_that_ends_early_is_heard() {
    for samples in [16_000, 160_000] {
        let file = written(Profile::Up, &vec![0.1; samples]);
        let (ended, whole) = read(&file, 16_000, 50);
        ended.unwrap();
        let (ended, heard) = read(&file[..file.len() - 9], 16_000, 50);
        assert!(matches!(ended, Err(OggError::Truncated)), "{ended:?}");
        assert!(heard.len() + 640 >= samples, "{} of {samples}", heard.len());
        let same = heard.len().min(whole.len());
        assert_eq!(heard[..same], whole[..same]);
        let (_, half) = read(&file[..file.len() / 2], 16_000, 50);
        assert!(half.len() > samples / 5, "{} of {samples}", half.len());
    }
}

#[test]
fn what_is_no_opus_says_so() {
    assert!(matches!(read(b"", 24_000, 1).0, Err(OggError::NoOpus)));
    assert!(matches!(
        read(b"RIFF....WAVE", 24_000, 1).0,
        Err(OggError::NotOgg(_))
    ));
    let file = written(Profile::Up, &[0.1; 40_000]);
    assert!(matches!(
        read(&file[..file.len() - 9], 16_000, 50).0,
        Err(OggError::Truncated)
    ));
    let mut damaged = file.clone();
    let at = file.len() - 20;
    damaged[at] ^= 1;
    assert!(
        matches!(read(&damaged, 16_000, 50).0, Err(OggError::NotOgg(_))),
        "checksum"
    );
    let mut vorbis = PacketWriter::new(Vec::new());
    vorbis
        .write_packet(&b"\x01vorbis"[..], 1, PacketWriteEndInfo::EndStream, 0)
        .unwrap();
    assert!(matches!(
        read(&vorbis.into_inner(), 24_000, 9).0,
        Err(OggError::NoOpus)
    ));
    let mut surround = PacketWriter::new(Vec::new());
    let head = b"OpusHead\x01\x06\0\0\x80\xbb\0\0\0\0\x01";
    surround
        .write_packet(&head[..], 1, PacketWriteEndInfo::EndPage, 0)
        .unwrap();
    let error = read(&surround.into_inner(), 24_000, 9).0;
    assert!(matches!(
        error,
        Err(OggError::Unsupported { channels: 6, .. })
    ));
}

#[test]
fn a_packet_without_end_is_refused() {
    let mut pages = PacketWriter::new(Vec::new());
    let head = b"OpusHead\x01\x01\0\0\x80\xbb\0\0\0\0\0";
    pages
        .write_packet(&head[..], 1, PacketWriteEndInfo::EndPage, 0)
        .unwrap();
    let tags = vec![0; MAX_OGG_PACKET + 255];
    pages
        .write_packet(tags, 1, PacketWriteEndInfo::EndPage, 0)
        .unwrap();
    let error = read(&pages.into_inner(), 24_000, 4096).0;
    assert!(matches!(error, Err(OggError::TooLong)));
}

#[test]
fn damaged_files_are_survived() {
    let file = written(Profile::Down, &sampled(24_000, 0.5, voice(6_000.0)));
    let mut random = noise(3);
    let mut below = move |n: usize| ((random() + 1.0) / 2.0 * n as f32) as usize % n;
    for _ in 0..2000 {
        let mut bytes = file.clone();
        for _ in 0..=below(4) {
            let at = below(bytes.len());
            bytes[at] = below(256) as u8;
        }
        bytes.truncate(below(file.len()).max(1));
        let _ = read(&bytes, 24_000, 500);
    }
}
