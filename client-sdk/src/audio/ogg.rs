//! Opus in Ogg files (RFC 7845), in and out.
//!
//! [`Writer`] takes samples at a profile's rate and writes a stream that every player reads:
//! `OpusHead` with the encoder's pre-skip, `OpusTags`, then packets in pages of a second.
//! Positions count 48 kHz samples whatever the rate is; the last page's position is where the
//! player cuts, so that the file lasts exactly as long as what went in.
//!
//! [`Reader`] takes the bytes of a file in pieces and hands out samples at one of Opus' rates: of
//! our files and of others' (stereo, other frames, a gain, a stream cut out of a longer one, one
//! stream behind another). Pages are parsed and checked by the [`ogg` crate](::ogg);
//! its `PacketReader` is not used since it wants to seek. Streams of another codec in the same
//! file are passed over.

use super::opus::{CodecError, Decoder, Encoder, Profile};
use ::ogg::reading::{BasePacketReader, OggReadError, PageParser};
use ::ogg::{PacketWriteEndInfo, PacketWriter};
use std::io::Write;
use unamesh_proto::limits::MAX_OGG_PACKET;

/// Positions in an Ogg file count samples at this rate.
const CLOCK: u32 = 48_000;
/// Packets in a page: one second.
const PAGE_PACKETS: u32 = 50;
const HEAD: &[u8; 8] = b"OpusHead";
const TAGS: &[u8; 8] = b"OpusTags";
const VENDOR: &[u8] = b"unamesh";
/// Bytes of a page's head before its segment table.
const PAGE_HEAD: usize = 27;
const CONTINUED: u8 = 1;
const FIRST: u8 = 2;
const LAST: u8 = 4;

/// Why a file was not read or written. Samples that were handed out before stay good.
#[derive(Debug, thiserror::Error)]
pub enum OggError {
    /// The bytes are something else, or damaged.
    #[error("this is not an Ogg file: {0}")]
    NotOgg(String),
    /// Ogg, but no Opus in it.
    #[error("no Opus stream in the Ogg file")]
    NoOpus,
    /// An `OpusHead` of a later version, or of several streams in one.
    #[error("an Opus stream of version {version}, mapping {mapping}, {channels} channels")]
    Unsupported {
        /// Of the encapsulation.
        version: u8,
        /// The channel mapping family.
        mapping: u8,
        /// Channels.
        channels: u8,
    },
    /// A packet is longer than [`MAX_OGG_PACKET`].
    #[error("an Ogg packet of more than {MAX_OGG_PACKET} bytes")]
    TooLong,
    /// The file ends before its stream does.
    #[error("the Ogg file ends early")]
    Truncated,
    /// A packet that is no Opus.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The file cannot be written.
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
}

impl From<OggReadError> for OggError {
    fn from(error: OggReadError) -> Self {
        OggError::NotOgg(error.to_string())
    }
}

/// Samples in, an Ogg/Opus file out.
pub struct Writer<W: Write> {
    pages: PacketWriter<'static, W>,
    encoder: Encoder,
    serial: u32,
    /// The packet that may be the last: only then is its position known.
    held: Option<Vec<u8>>,
    packets: u32,
}

impl<W: Write> Writer<W> {
    /// Starts a file. `serial` tells its stream from others in the same file: any number.
    ///
    /// # Errors
    /// The file cannot be written, or libopus has no memory.
    pub fn new(file: W, profile: Profile, serial: u32) -> Result<Self, OggError> {
        let encoder = Encoder::new(profile)?;
        let mut pages = PacketWriter::new(file);
        let pre_skip = encoder.pre_skip() * scale(profile) as usize;
        let mut head = HEAD.to_vec();
        head.extend_from_slice(&[1, 1]);
        head.extend_from_slice(&u16::try_from(pre_skip).unwrap_or(u16::MAX).to_le_bytes());
        head.extend_from_slice(&profile.rate().to_le_bytes());
        head.extend_from_slice(&[0, 0, 0]);
        pages.write_packet(head, serial, PacketWriteEndInfo::EndPage, 0)?;
        let mut tags = TAGS.to_vec();
        tags.extend_from_slice(&(VENDOR.len() as u32).to_le_bytes());
        tags.extend_from_slice(VENDOR);
        tags.extend_from_slice(&0u32.to_le_bytes());
        pages.write_packet(tags, serial, PacketWriteEndInfo::EndPage, 0)?;
        Ok(Writer {
            pages,
            encoder,
            serial,
            held: None,
            packets: 0,
        })
    }

    /// Appends samples at the profile's rate.
    ///
    /// # Errors
    /// The file cannot be written, or libopus failed.
    pub fn push(&mut self, pcm: &[f32]) -> Result<(), OggError> {
        let mut packets = Vec::new();
        self.encoder
            .push(pcm, |packet| packets.push(packet.to_vec()))?;
        self.write(packets)
    }

    /// Ends the file and returns what it was written to.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(mut self) -> Result<W, OggError> {
        let mut packets = Vec::new();
        let pre_skip = self.encoder.pre_skip() as u64;
        let length = self
            .encoder
            .finish(|packet| packets.push(packet.to_vec()))?;
        self.write(packets)?;
        let end = (length.samples + pre_skip) * u64::from(scale(self.encoder.profile()));
        let last = self.held.take().unwrap_or_default();
        // A file without a sample has no packet; its last page is empty then.
        self.pages
            .write_packet(last, self.serial, PacketWriteEndInfo::EndStream, end)?;
        let mut file = self.pages.into_inner();
        file.flush()?;
        Ok(file)
    }

    fn write(&mut self, packets: Vec<Vec<u8>>) -> Result<(), OggError> {
        let profile = self.encoder.profile();
        let frame = profile.frame() as u64 * u64::from(scale(profile));
        for packet in packets {
            let Some(before) = self.held.replace(packet) else {
                continue;
            };
            self.packets += 1;
            let info = match self.packets % PAGE_PACKETS {
                0 => PacketWriteEndInfo::EndPage,
                _ => PacketWriteEndInfo::NormalPacket,
            };
            let position = u64::from(self.packets) * frame;
            self.pages
                .write_packet(before, self.serial, info, position)?;
        }
        Ok(())
    }
}

/// 48 kHz samples for each of the profile's.
fn scale(profile: Profile) -> u32 {
    CLOCK / profile.rate()
}

/// The bytes of an Ogg/Opus file in, mono samples out.
pub struct Reader {
    rate: u32,
    /// Bytes of a page that is incomplete.
    page: Vec<u8>,
    stream: Option<Stream>,
    samples: u64,
}

/// One logical stream of the file.
struct Stream {
    serial: u32,
    packets: BasePacketReader,
    /// Bytes of a packet that goes on in the next page.
    open: usize,
    /// Where its first sample is, on the file's clock: the pre-skip, and what was cut off.
    origin: u64,
    gain: i16,
    step: Step,
    ended: bool,
}

enum Step {
    Head,
    Tags,
    Audio { decoder: Decoder, started: bool },
}

/// What the head of a page says.
struct Page {
    flags: u8,
    position: u64,
    serial: u32,
}

impl Reader {
    /// A reader that hands out samples at `rate`, one of Opus' (8, 12, 16, 24, 48 kHz).
    pub fn new(rate: u32) -> Self {
        Reader {
            rate,
            page: Vec::new(),
            stream: None,
            samples: 0,
        }
    }

    /// Samples handed out so far.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Takes the next bytes and appends the samples that they complete to `out`.
    ///
    /// # Errors
    /// The bytes are no Ogg file, or damaged. Nothing that follows can be understood.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<f32>) -> Result<(), OggError> {
        self.page.extend_from_slice(bytes);
        let before = out.len();
        let mut from = 0;
        while let Some(length) = page_length(&self.page[from..])? {
            let page = from..from + length;
            from += length;
            if let Err(error) = self.one_page(page, out) {
                self.samples += (out.len() - before) as u64;
                return Err(error);
            }
        }
        self.page.drain(..from);
        self.samples += (out.len() - before) as u64;
        Ok(())
    }

    /// The file has ended. Of one that ended early the packets that are whole are appended to
    /// `out`: a page lasts for seconds, a short file is but one.
    ///
    /// # Errors
    /// It ended early, or held no Opus.
    pub fn finish(&mut self, out: &mut Vec<f32>) -> Result<(), OggError> {
        match &self.stream {
            None if self.page.is_empty() => return Err(OggError::NoOpus),
            Some(stream) if stream.ended && self.page.is_empty() => return Ok(()),
            _ => {}
        }
        let before = out.len();
        self.half_page(out);
        self.samples += (out.len() - before) as u64;
        Err(OggError::Truncated)
    }

    /// Decodes what is whole of a page whose end is missing. Its checksum cannot be verified: the
    /// first packet that is no Opus ends it.
    fn half_page(&mut self, out: &mut Vec<f32>) {
        let Some((head, rest)) = self.page.split_first_chunk::<PAGE_HEAD>() else {
            return;
        };
        let page = Page::of(head);
        let Some((table, body)) = rest.split_at_checked(usize::from(head[26])) else {
            return;
        };
        let stream = self.stream.as_mut().filter(|s| s.serial == page.serial);
        let Some(Step::Audio { decoder, .. }) = stream.map(|s| &mut s.step) else {
            return;
        };
        // The first packet's beginning is in the page before.
        let mut skip = page.flags & CONTINUED != 0;
        for packet in packets(table, body) {
            if std::mem::take(&mut skip) || packet.is_empty() {
                continue;
            }
            let Ok(samples) = decoder.decode(packet) else {
                return;
            };
            out.extend_from_slice(samples);
        }
    }

    fn one_page(
        &mut self,
        range: std::ops::Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<(), OggError> {
        let bytes = &self.page[range];
        let Some((head, rest)) = bytes.split_first_chunk::<PAGE_HEAD>() else {
            return Ok(());
        };
        let page = Page::of(head);
        let (table, body) = rest.split_at(usize::from(head[26]));
        if page.flags & FIRST != 0 && body.starts_with(HEAD) && self.is_free() {
            self.stream = Some(Stream::new(page.serial));
        }
        let Some(stream) = self.stream.as_mut().filter(|s| s.serial == page.serial) else {
            return Ok(());
        };
        stream.bound(page.flags, table)?;
        let (mut parser, _) = PageParser::new(*head)?;
        parser.parse_segments(table.to_vec());
        stream
            .packets
            .push_page(parser.parse_packet_data(body.to_vec())?)?;
        stream.read(&page, self.rate, out)
    }

    fn is_free(&self) -> bool {
        self.stream.as_ref().is_none_or(|s| s.ended)
    }
}

impl Page {
    fn of(head: &[u8; PAGE_HEAD]) -> Self {
        let [_, _, _, _, _, flags, a, b, c, d, e, f, g, h, s, t, u, v, ..] = *head;
        Page {
            flags,
            position: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            serial: u32::from_le_bytes([s, t, u, v]),
        }
    }
}

/// The length of the page at the start of `bytes`, or `None` while it is incomplete.
fn page_length(bytes: &[u8]) -> Result<Option<usize>, OggError> {
    let magic = bytes.len().min(4);
    if bytes[..magic] != b"OggS"[..magic] {
        return Err(OggError::NotOgg(format!(
            "a page starts with {:02x?}",
            &bytes[..magic]
        )));
    }
    let Some(&segments) = bytes.get(PAGE_HEAD - 1) else {
        return Ok(None);
    };
    let table = bytes.get(PAGE_HEAD..PAGE_HEAD + usize::from(segments));
    let length = table.map(|table| {
        let body: usize = table.iter().copied().map(usize::from).sum();
        PAGE_HEAD + table.len() + body
    });
    Ok(length.filter(|length| *length <= bytes.len()))
}

impl Stream {
    fn new(serial: u32) -> Self {
        Stream {
            serial,
            packets: BasePacketReader::new(),
            open: 0,
            origin: 0,
            gain: 0,
            step: Step::Head,
            ended: false,
        }
    }

    /// Counts what the packet reader has to keep of a packet that spans pages.
    fn bound(&mut self, flags: u8, table: &[u8]) -> Result<(), OggError> {
        if flags & CONTINUED == 0 {
            self.open = 0;
        }
        for segment in table {
            self.open += usize::from(*segment);
            if self.open > MAX_OGG_PACKET {
                return Err(OggError::TooLong);
            }
            if *segment < 255 {
                self.open = 0;
            }
        }
        Ok(())
    }

    fn read(&mut self, page: &Page, rate: u32, out: &mut Vec<f32>) -> Result<(), OggError> {
        let mut audio = Vec::new();
        while let Some(packet) = self.packets.read_packet() {
            match &self.step {
                Step::Head => self.head(&packet.data)?,
                Step::Tags => {
                    let skip = self.origin * u64::from(rate) / u64::from(CLOCK);
                    let mut decoder = Decoder::of_file(rate, usize::try_from(skip).unwrap_or(0))?;
                    decoder.set_gain(self.gain)?;
                    self.step = Step::Audio {
                        decoder,
                        started: false,
                    };
                }
                Step::Audio { .. } => audio.push(packet.data),
            }
        }
        let last = page.flags & LAST != 0;
        self.ended |= last;
        if let Step::Audio { decoder, started } = &mut self.step {
            // An empty packet stands in a file without a sample.
            audio.retain(|packet| !packet.is_empty());
            let start = match *started || last || audio.is_empty() {
                true => 0,
                false => page.position.saturating_sub(lasting(&audio)),
            };
            // More than 0 in a stream that was cut out of a longer one.
            self.origin = self.origin.saturating_add(start);
            *started |= !audio.is_empty();
            if last {
                let end = page.position.saturating_sub(self.origin);
                decoder.set_end(end.saturating_mul(u64::from(rate)) / u64::from(CLOCK));
            }
            for packet in &audio {
                out.extend_from_slice(decoder.decode(packet)?);
            }
        }
        Ok(())
    }

    fn head(&mut self, head: &[u8]) -> Result<(), OggError> {
        let &[
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            version,
            channels,
            a,
            b,
            _,
            _,
            _,
            _,
            c,
            d,
            mapping,
            ..,
        ] = head
        else {
            return Err(OggError::NoOpus);
        };
        // The upper four bits are the major version.
        if version > 15 || mapping != 0 || !(1..=2).contains(&channels) {
            return Err(OggError::Unsupported {
                version,
                mapping,
                channels,
            });
        }
        self.origin = u64::from(u16::from_le_bytes([a, b]));
        self.gain = i16::from_le_bytes([c, d]);
        self.step = Step::Tags;
        Ok(())
    }
}

/// The packets of a page that end in what there is of its `body`.
fn packets<'a>(table: &'a [u8], body: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = body;
    table
        .split_inclusive(|segment| *segment < u8::MAX)
        .filter(|segments| segments.last().is_some_and(|last| *last < u8::MAX))
        .map_while(move |segments| {
            let length = segments.iter().copied().map(usize::from).sum();
            let (packet, behind) = rest.split_at_checked(length)?;
            rest = behind;
            Some(packet)
        })
}

/// What packets last, at 48 kHz.
fn lasting(packets: &[Vec<u8>]) -> u64 {
    let samples = |packet: &Vec<u8>| ::opus::packet::get_nb_samples(packet, CLOCK).unwrap_or(0);
    packets.iter().map(|packet| samples(packet) as u64).sum()
}

#[cfg(test)]
#[path = "ogg_tests.rs"]
mod tests;
