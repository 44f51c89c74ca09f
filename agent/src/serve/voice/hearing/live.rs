//! The live order: who speaks now, who falls silent, and what follows from it. [`super`] has the
//! diagram.

use super::call::Call;
use super::ear::Listened;
use super::engine::works_live;
use super::{Hearing, Work, no_speech};
use std::task::Context;
use std::time::Duration;
use tokio::time::Instant;
use unamesh_client::clock;
use unamesh_proto::timeouts::{AUDIO_FRAME, SPECULATE, SPECULATE_MAX, SPECULATE_QUICK};
use unamesh_proto::wire::{HearFrame, SilenceFor, SpeechBegan};

/// Frames that the ear hears in one go: some milliseconds' work.
const BURST: usize = 200;

impl Hearing {
    /// Hears what is here, and asks for what is lost.
    pub(super) fn listen(&mut self, cx: &mut Context<'_>) {
        let now = clock::mono();
        let questions = std::iter::from_fn(|| self.repairs.next(&mut self.jitter, now));
        self.out.extend(questions.map(HearFrame::Missing));
        let mut due = self.repairs.due();
        for left in (0..BURST).rev() {
            if self.end.is_some_and(|end| self.ear.at() >= end) {
                break;
            }
            match self.ear.listen(&mut self.jitter, now) {
                Ok(Listened::Frame(began)) => self.judge(began),
                Ok(Listened::Wait(until)) => {
                    due = due.into_iter().chain(until).min();
                    self.at_the_edge();
                    break;
                }
                Err((frame, error)) => {
                    self.fault = Some(no_speech(frame, &error));
                    return;
                }
            }
            if left == 0 {
                cx.waker().wake_by_ref();
            }
        }
        if let Some(due) = due {
            self.alarm.as_mut().reset(clock::instant(due));
            if self.alarm.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
    }

    /// One frame more was heard.
    fn judge(&mut self, began: bool) {
        let frame = self.ear.at().saturating_sub(1);
        if began {
            self.began.get_or_insert(frame);
            self.out.push_back(HearFrame::Began(SpeechBegan { frame }));
            self.told = Duration::ZERO;
        }
        // Also after a gap that was too short for a pause, of which nobody was told.
        if began || (self.guessed && self.ear.silence().is_zero()) {
            self.guessed = false;
            self.goes_on();
        }
        let limit = Duration::from_millis(self.request.vad_ms.into());
        let silent = self.ear.silence() >= limit && !self.ear.is_rising();
        let over = !limit.is_zero() && self.began.is_some() && silent;
        if over && self.end.is_none() {
            self.end = Some(self.ear.at());
            self.heard = Instant::now();
        }
    }

    /// Everything that came was heard. A pause in the middle of what comes faster than it was
    /// said is none.
    fn at_the_edge(&mut self) {
        let silence = self.ear.silence();
        if self.end.is_some() {
            return;
        }
        if silence >= self.told + SPECULATE {
            self.told = silence;
            let ms = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
            self.out.push_back(HearFrame::Silence(SilenceFor { ms }));
        }
        let due = match self.is_quick() {
            true => SPECULATE_QUICK,
            false => SPECULATE,
        };
        // Nobody would hear of it, or the end is as near.
        let vad = Duration::from_millis(self.request.vad_ms.into());
        if silence < due || self.guessed || !(self.request.partials || vad > SPECULATE) {
            return;
        }
        match std::mem::replace(&mut self.work, Work::Idle) {
            Work::Listening(call) if !call.tells() && self.is_short(&call) => {
                self.guessed = true;
                self.work = Work::Asking(call, self.ear.at());
            }
            other => self.work = other,
        }
    }

    /// A guess about it costs little.
    fn is_short(&self, call: &Call) -> bool {
        let said = self.ear.at().saturating_sub(call.from());
        self.is_quick() || AUDIO_FRAME * said <= SPECULATE_MAX
    }

    /// Somebody speaks again: what the engine was asked for is worth nothing.
    fn goes_on(&mut self) {
        match std::mem::replace(&mut self.work, Work::Idle) {
            Work::Asking(call, _) if call.asked().is_none() => self.work = Work::Listening(call),
            Work::Asking(..) | Work::Answered(..) => self.let_go(),
            other => self.work = other,
        }
    }

    /// Lets the engine's call go; it is to hear everything anew.
    pub(super) fn let_go(&mut self) {
        self.work = Work::Idle;
        if !works_live(self.picked.engine.kind()) {
            self.seat = None;
        }
    }
}
