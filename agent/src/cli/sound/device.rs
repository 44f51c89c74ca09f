//! The speaker and the microphone, through cpal.
//!
//! The audio thread of the system calls back for samples and must not wait: samples go through a
//! ring buffer that needs no lock ([`rtrb`]). Where the speaker finds none it plays silence; where
//! the microphone finds no room it drops. The other end waits by looking again after [`LOOK`].

use super::super::error::CliError;
use super::{DOWN, UP};
use cpal::traits::{DeviceTrait, HostTrait, StreamTrait};
use cpal::{
    Device, ErrorKind, FromSample, Sample, SampleFormat, SizedSample, Stream, StreamConfig,
    SupportedStreamConfig,
};
use rtrb::{Consumer, Producer, RingBuffer};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use unamesh_client::audio::pcm::{from_s16, to_s16};
use unamesh_client::audio::resample::Resampler;

/// How often a full or an empty buffer is looked at: one frame.
const LOOK: Duration = Duration::from_millis(20);
/// What a buffer holds: enough for a busy machine, little enough that an answer's end is near
/// when the last of it was taken.
const BUFFERED: Duration = Duration::from_secs(1);
/// Samples wait in the device itself after the buffer is empty.
const DEVICE_TAIL: Duration = Duration::from_millis(150);

/// Why a device stopped, as its thread said.
type Broken = Arc<OnceLock<String>>;

/// Plays 24 kHz speech on the default device.
pub struct Speaker {
    samples: Producer<f32>,
    resampler: Resampler,
    resampled: Vec<f32>,
    /// Set to have the audio thread throw away what is queued.
    hush: Arc<AtomicBool>,
    broken: Broken,
    _stream: Stream,
}

impl Speaker {
    /// Opens the default speaker.
    ///
    /// # Errors
    /// There is none, or another program holds it.
    pub fn open() -> Result<Self, CliError> {
        let device = cpal::default_host().default_output_device();
        let device = device.ok_or_else(|| unusable("speaker", "there is none"))?;
        let found = device.default_output_config();
        let found = found.map_err(|e| unusable("speaker", e))?;
        let rate = found.sample_rate();
        let resampler = Resampler::new(DOWN, rate).map_err(|e| unusable("speaker", e))?;
        let (samples, queue) = RingBuffer::new(samples_in(BUFFERED, rate));
        let (hush, broken) = (Arc::new(AtomicBool::new(false)), Broken::default());
        let play = Play {
            queue,
            hush: Arc::clone(&hush),
            broken: Arc::clone(&broken),
        };
        let stream = play.start(&device, &found)?;
        Ok(Speaker {
            samples,
            resampler,
            resampled: Vec::new(),
            hush,
            broken,
            _stream: stream,
        })
    }

    /// Queues samples; waits while a second of sound is queued.
    ///
    /// # Errors
    /// The speaker went away.
    pub async fn push(&mut self, pcm: &[i16]) -> Result<(), CliError> {
        let floats: Vec<f32> = pcm.iter().copied().map(from_s16).collect();
        self.resampler.push(&floats, &mut self.resampled);
        self.queue().await
    }

    /// Waits until everything was played.
    ///
    /// # Errors
    /// The speaker went away.
    pub async fn finish(&mut self) -> Result<(), CliError> {
        self.resampler.finish(&mut self.resampled);
        self.queue().await?;
        while self.samples.slots() < self.samples.buffer().capacity() {
            intact("speaker", &self.broken)?;
            tokio::time::sleep(LOOK).await;
        }
        tokio::time::sleep(DEVICE_TAIL).await;
        Ok(())
    }

    /// Is silent from the device's next callback on: what is queued is thrown away.
    pub fn hush(&mut self) {
        self.resampled.clear();
        self.hush.store(true, Ordering::Release);
    }

    async fn queue(&mut self) -> Result<(), CliError> {
        for mut sample in self.resampled.drain(..) {
            while let Err(rtrb::PushError::Full(back)) = self.samples.push(sample) {
                intact("speaker", &self.broken)?;
                sample = back;
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }
}

/// The audio thread's side of a speaker.
struct Play {
    queue: Consumer<f32>,
    hush: Arc<AtomicBool>,
    broken: Broken,
}

impl Play {
    fn start(self, device: &Device, found: &SupportedStreamConfig) -> Result<Stream, CliError> {
        let config = found.config();
        let stream = match found.sample_format() {
            SampleFormat::F32 => self.build::<f32>(device, config),
            SampleFormat::I16 => self.build::<i16>(device, config),
            SampleFormat::I32 => self.build::<i32>(device, config),
            SampleFormat::U16 => self.build::<u16>(device, config),
            SampleFormat::U8 => self.build::<u8>(device, config),
            other => Err(unusable("speaker", format!("it wants samples as {other}"))),
        }?;
        stream.play().map_err(|e| unusable("speaker", e))?;
        Ok(stream)
    }

    fn build<T: SizedSample + FromSample<f32>>(
        mut self,
        device: &Device,
        config: StreamConfig,
    ) -> Result<Stream, CliError> {
        let channels = usize::from(config.channels).max(1);
        let broken = Arc::clone(&self.broken);
        let fill = move |out: &mut [T], _: &cpal::OutputCallbackInfo| {
            if self.hush.swap(false, Ordering::AcqRel) {
                while self.queue.pop().is_ok() {}
            }
            for frame in out.chunks_mut(channels) {
                frame.fill(T::from_sample(self.queue.pop().unwrap_or_default()));
            }
        };
        device
            .build_output_stream(config, fill, note(broken), None)
            .map_err(|e| unusable("speaker", e))
    }
}

/// Hears the default microphone as 16 kHz mono.
pub struct Microphone {
    samples: Consumer<f32>,
    resampler: Resampler,
    broken: Broken,
    _stream: Stream,
}

impl Microphone {
    /// Opens the default microphone.
    ///
    /// # Errors
    /// There is none, or the system does not let this program hear it.
    pub fn open() -> Result<Self, CliError> {
        let device = cpal::default_host().default_input_device();
        let device = device.ok_or_else(|| unusable("microphone", "there is none"))?;
        let found = device.default_input_config();
        let found = found.map_err(|e| unusable("microphone", e))?;
        let rate = found.sample_rate();
        let resampler = Resampler::new(rate, UP).map_err(|e| unusable("microphone", e))?;
        let (queue, samples) = RingBuffer::new(samples_in(BUFFERED, rate));
        let broken = Broken::default();
        let config = found.config();
        let stream = match found.sample_format() {
            SampleFormat::F32 => listen::<f32>(&device, config, queue, &broken),
            SampleFormat::I16 => listen::<i16>(&device, config, queue, &broken),
            SampleFormat::I32 => listen::<i32>(&device, config, queue, &broken),
            SampleFormat::U16 => listen::<u16>(&device, config, queue, &broken),
            SampleFormat::U8 => listen::<u8>(&device, config, queue, &broken),
            other => Err(unusable(
                "microphone",
                format!("it gives samples as {other}"),
            )),
        }?;
        stream.play().map_err(|e| unusable("microphone", e))?;
        Ok(Microphone {
            samples,
            resampler,
            broken,
            _stream: stream,
        })
    }

    /// What was heard since the last call; waits for some.
    ///
    /// # Errors
    /// The microphone went away.
    pub async fn next(&mut self) -> Result<Vec<i16>, CliError> {
        loop {
            let heard: Vec<f32> = std::iter::from_fn(|| self.samples.pop().ok()).collect();
            let mut resampled = Vec::new();
            self.resampler.push(&heard, &mut resampled);
            if !resampled.is_empty() {
                return Ok(resampled.into_iter().map(to_s16).collect());
            }
            intact("microphone", &self.broken)?;
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn listen<T: SizedSample>(
    device: &Device,
    config: StreamConfig,
    mut queue: Producer<f32>,
    broken: &Broken,
) -> Result<Stream, CliError>
where
    f32: FromSample<T>,
{
    let channels = config.channels.max(1);
    let take = move |heard: &[T], _: &cpal::InputCallbackInfo| {
        for frame in heard.chunks_exact(usize::from(channels)) {
            let sum: f32 = frame.iter().map(|s| f32::from_sample(*s)).sum();
            // Without room nobody listens any more.
            let _ = queue.push(sum / f32::from(channels));
        }
    };
    device
        .build_input_stream(config, take, note(Arc::clone(broken)), None)
        .map_err(|e| unusable("microphone", e))
}

/// Keeps what ends a stream. A hiccup and a change of the default device do not.
fn note(broken: Broken) -> impl FnMut(cpal::Error) + Send + 'static {
    move |error| {
        let passing = matches!(
            error.kind(),
            ErrorKind::Xrun | ErrorKind::DeviceChanged | ErrorKind::RealtimeDenied
        );
        if !passing {
            // The first reason is the one that counts.
            let _ = broken.set(error.to_string());
        }
    }
}

fn intact(what: &str, broken: &Broken) -> Result<(), CliError> {
    match broken.get() {
        Some(reason) => Err(unusable(what, reason)),
        None => Ok(()),
    }
}

fn unusable(what: &str, reason: impl std::fmt::Display) -> CliError {
    CliError::new("no_sound", format!("the {what} cannot be used: {reason}"))
}

fn samples_in(time: Duration, rate: u32) -> usize {
    (time.as_secs_f64() * f64::from(rate)) as usize
}
