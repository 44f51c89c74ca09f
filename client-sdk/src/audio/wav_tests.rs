use super::*;
use crate::audio::pcm::{from_s16, write_s16};
use std::io::Cursor;

fn parsed(bytes: &[u8], piece: usize) -> (Result<(), WavError>, Vec<f32>, Option<Format>) {
    let (mut parser, mut out) = (Parser::new(), Vec::new());
    let mut result = Ok(());
    for part in bytes.chunks(piece) {
        result = parser.push(part, &mut out);
        if result.is_err() {
            break;
        }
    }
    let result = result.and_then(|()| parser.finish());
    assert_eq!(parser.samples(), out.len() as u64);
    (result, out, parser.format())
}

/// The result, which must not depend on how the bytes are cut.
fn parse(bytes: &[u8]) -> (Result<(), WavError>, Vec<f32>) {
    let (result, out, format) = parsed(bytes, bytes.len().max(1));
    for piece in [1, 2, 3, 7, 44, 1000] {
        assert_eq!(parsed(bytes, piece), (result.clone(), out.clone(), format));
    }
    (result, out)
}

fn chunk(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut out = name.to_vec();
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(body);
    out.resize(out.len() + body.len() % 2, 0);
    out
}

fn fmt(format: u16, channels: u16, rate: u32, bits: u16) -> Vec<u8> {
    let frame = channels * bits.div_ceil(8);
    let mut out = format.to_le_bytes().to_vec();
    out.extend_from_slice(&channels.to_le_bytes());
    out.extend_from_slice(&rate.to_le_bytes());
    out.extend_from_slice(&rate.wrapping_mul(u32::from(frame)).to_le_bytes());
    out.extend_from_slice(&frame.to_le_bytes());
    out.extend_from_slice(&bits.to_le_bytes());
    out
}

fn wav(chunks: &[Vec<u8>]) -> Vec<u8> {
    let body = chunks.concat();
    let mut out = b"RIFF".to_vec();
    out.extend_from_slice(&(body.len() as u32 + 4).to_le_bytes());
    out.extend_from_slice(b"WAVE");
    out.extend(body);
    out
}

fn plain(data: &[u8]) -> Vec<u8> {
    wav(&[chunk(b"fmt ", &fmt(1, 1, 16_000, 16)), chunk(b"data", data)])
}

/// A plain WAV whose data claims another length.
fn claiming(data: &[u8], len: u32) -> Vec<u8> {
    let mut out = plain(data);
    out[40..44].copy_from_slice(&len.to_le_bytes());
    out
}

const HALF: [u8; 4] = [0, 0x40, 0, 0xc0];

#[test]
fn everything_that_hound_writes_is_read() {
    for (bits, sample_format) in [
        (8, SampleFormat::Int),
        (16, SampleFormat::Int),
        (24, SampleFormat::Int),
        (32, SampleFormat::Int),
        (32, SampleFormat::Float),
    ] {
        for channels in [1, 2, 6] {
            let spec = WavSpec {
                channels,
                sample_rate: 44_100,
                bits_per_sample: bits,
                sample_format,
            };
            let mut file = Cursor::new(Vec::new());
            let mut writer = WavWriter::new(&mut file, spec).unwrap();
            for level in [0.0, 0.25, -0.5] {
                for _ in 0..channels {
                    match sample_format {
                        SampleFormat::Float => writer.write_sample(level as f32).unwrap(),
                        SampleFormat::Int => {
                            let full = f64::from(bits - 1).exp2();
                            writer.write_sample((level * full) as i32).unwrap();
                        }
                    }
                }
            }
            writer.finalize().unwrap();
            let (result, out) = parse(&file.into_inner());
            assert_eq!(result, Ok(()), "{bits} bits, {channels} channels");
            assert_eq!(out, [0.0, 0.25, -0.5], "{bits} bits, {channels} channels");
        }
    }
}

#[test]
fn our_files_are_read_by_hound_and_by_us() {
    let pcm: Vec<f32> = (-50..50).map(|n| from_s16(n * 300)).collect();
    let mut file = Cursor::new(Vec::new());
    let mut writer = Writer::new(&mut file, 22_050).unwrap();
    pcm.chunks(7).for_each(|part| writer.push(part).unwrap());
    writer.finish().unwrap();
    let bytes = file.into_inner();
    assert_eq!(parse(&bytes), (Ok(()), pcm.clone()));
    let mut reader = hound::WavReader::new(&bytes[..]).unwrap();
    assert_eq!(reader.spec().sample_rate, 22_050);
    let read: Vec<f32> = reader
        .samples::<i16>()
        .map(|s| from_s16(s.unwrap()))
        .collect();
    assert_eq!(read, pcm);
}

#[test]
fn a_streamed_wav_goes_on_to_its_end() {
    let mut streamed = stream_header(24_000);
    write_s16(&[0.5, -0.5, 0.25], &mut streamed);
    assert_eq!(parse(&streamed), (Ok(()), vec![0.5, -0.5, 0.25]));
    for len in [0, 0xffff_ffff, 0x7fff_ffff, 0x7fff_0000, 0x8000_0000] {
        assert_eq!(
            parse(&claiming(&HALF, len)),
            (Ok(()), vec![0.5, -0.5]),
            "{len:#x}"
        );
    }
    // In the middle of a sample.
    let cut = claiming(&HALF, 0);
    let (result, out) = parse(&cut[..cut.len() - 1]);
    assert_eq!(
        (result, out),
        (Err(WavError::Truncated { missing: 1 }), vec![0.5])
    );
}

#[test]
fn other_chunks_are_passed_over() {
    let bytes = wav(&[
        chunk(b"JUNK", &[7; 28]),
        chunk(b"LIST", b"INFOISFT\x05\0\0\0Lavf\0"),
        chunk(b"fmt ", &[fmt(1, 1, 16_000, 16), vec![0, 0]].concat()),
        chunk(b"fact", &[2, 0, 0, 0]),
        chunk(b"odd ", &[1]),
        chunk(b"none", &[]),
        chunk(b"data", &HALF),
        chunk(b"LIST", &[9; 5000]),
    ]);
    assert_eq!(parse(&bytes), (Ok(()), vec![0.5, -0.5]));
    // The pad byte of an odd data chunk is no sample.
    let eight = wav(&[
        chunk(b"fmt ", &fmt(1, 1, 16_000, 8)),
        chunk(b"data", &[192, 64, 192]),
        chunk(b"LIST", &[0; 4]),
    ]);
    assert_eq!(parse(&eight), (Ok(()), vec![0.5, -0.5, 0.5]));
    // A chunk behind the samples that is cut off takes nothing of the sound.
    assert_eq!(parse(&bytes[..bytes.len() - 99]).0, Ok(()));
}

#[test]
fn extensible_formats_tell_what_they_extend() {
    let mut long = fmt(0xfffe, 2, 48_000, 32);
    long.extend_from_slice(&[22, 0, 32, 0, 3, 0, 0, 0, 3, 0]);
    long.extend_from_slice(&GUID_TAIL);
    let data = [0.5f32, 0.25].map(f32::to_le_bytes).concat();
    let bytes = wav(&[chunk(b"fmt ", &long), chunk(b"data", &data)]);
    assert_eq!(parse(&bytes), (Ok(()), vec![0.375]));
    long[30] = 9;
    let bytes = wav(&[chunk(b"fmt ", &long), chunk(b"data", &data)]);
    let unsupported = WavError::Unsupported {
        format: 0xfffe,
        bits: 32,
    };
    assert_eq!(parse(&bytes).0, Err(unsupported));
}

#[test]
fn one_wav_behind_another_is_joined() {
    let two = [plain(&HALF), plain(&HALF)].concat();
    assert_eq!(parse(&two), (Ok(()), vec![0.5, -0.5, 0.5, -0.5]));
    let other = wav(&[
        chunk(b"fmt ", &fmt(1, 1, 24_000, 16)),
        chunk(b"data", &HALF),
    ]);
    let (result, out) = parse(&[plain(&HALF), other].concat());
    assert_eq!(
        (result, out),
        (Err(WavError::FormatChanged), vec![0.5, -0.5])
    );
    let cut = [plain(&HALF), plain(&HALF)[..30].to_vec()].concat();
    assert!(matches!(parse(&cut).0, Err(WavError::Truncated { .. })));
}

#[test]
fn samples_beyond_the_promised_length_are_not_lost_silently() {
    let first = plain(&HALF);
    let more = [first.clone(), [0x12, 0xfe].repeat(50)].concat();
    let (result, out) = parse(&more);
    assert_eq!(out, [0.5, -0.5]);
    assert_eq!(result, Err(WavError::Stray([0x12, 0xfe, 0x12, 0xfe])));
    // Zeros that fill a file up, and the line's end of a sloppy server.
    for harmless in [&[0; 512][..], b"\r\n"] {
        let filled = [&first[..], harmless].concat();
        assert_eq!(parse(&filled), (Ok(()), vec![0.5, -0.5]));
    }
}

#[test]
fn half_a_sample_shifts_nothing_behind_it() {
    let odd = wav(&[
        chunk(b"fmt ", &fmt(1, 1, 16_000, 16)),
        chunk(b"data", &[&HALF[..], &[0x55]].concat()),
    ]);
    let two = [odd, plain(&HALF)].concat();
    assert_eq!(parse(&two), (Ok(()), vec![0.5, -0.5, 0.5, -0.5]));
}

#[test]
fn what_is_no_wav_says_so() {
    assert_eq!(parse(b""), (Err(WavError::Empty), vec![]));
    assert_eq!(
        parse(b"{\"error\": \"no such voice\"}").0,
        Err(WavError::NotWav(*b"{\"er"))
    );
    assert_eq!(
        parse(b"RIFF\x04\0\0\0AVI LIST").0,
        Err(WavError::NotWav(*b"AVI "))
    );
    assert_eq!(parse(&plain(&[])).0, Err(WavError::Empty));
    assert_eq!(parse(b"RIF").0, Err(WavError::Truncated { missing: 1 }));
    assert_eq!(
        parse(&wav(&[chunk(b"data", &HALF)])).0,
        Err(WavError::NoFormat)
    );
    let (result, out) = parse(&claiming(&HALF, 100));
    assert_eq!(
        (result, out.len()),
        (Err(WavError::Truncated { missing: 96 }), 2)
    );
    let endless = [plain(&[])[..12].to_vec(), vec![b' '; MAX_WAV_HEAD + 20]].concat();
    let (mut parser, mut out) = (Parser::new(), Vec::new());
    assert_eq!(parser.push(&endless, &mut out), Err(WavError::HeadTooLong));
}

#[test]
fn formats_that_contradict_themselves_are_refused() {
    let with = |fmt: Vec<u8>| parse(&wav(&[chunk(b"fmt ", &fmt), chunk(b"data", &HALF)])).0;
    assert_eq!(with(fmt(1, 1, 0, 16)), Err(FormatError::Rate(0).into()));
    assert_eq!(
        with(fmt(1, 1, 4_000_000, 16)),
        Err(FormatError::Rate(4_000_000).into())
    );
    assert_eq!(
        with(fmt(1, 0, 16_000, 16)),
        Err(FormatError::Channels(0).into())
    );
    assert_eq!(
        with(fmt(1, 99, 16_000, 16)),
        Err(FormatError::Channels(99).into())
    );
    for (format, bits) in [(1, 12), (1, 64), (3, 16), (7, 8), (85, 0)] {
        let unsupported = WavError::Unsupported { format, bits };
        assert_eq!(with(fmt(format, 1, 16_000, bits)), Err(unsupported));
    }
    let mut wrong = fmt(1, 1, 16_000, 16);
    wrong[4..8].copy_from_slice(&24_000u32.to_le_bytes());
    let contradiction = WavError::Contradiction {
        field: "bytes a second",
        claimed: 32_000,
        actual: 48_000,
    };
    assert_eq!(with(wrong), Err(contradiction));
    let mut sloppy = fmt(1, 1, 16_000, 16);
    sloppy[8..14].fill(0);
    assert_eq!(with(sloppy), Ok(()));
}

proptest::proptest! {
    #[test]
    fn anything_is_survived(
        cut in 0usize..60,
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
    ) {
        let mut file = plain(&HALF);
        file.truncate(cut);
        file.extend(bytes);
        let _ = parse(&file);
    }
}
