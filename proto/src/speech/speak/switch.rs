//! Who goes on, and where.

use super::machine::Speak;
use super::stream::{Piece, Stream};
use super::{Effect, Output, millis, samples};
use crate::session::{AttemptId, Reason};
use crate::speech::crew::Member;
use crate::timeouts::PLAYOUT;

impl Speak {
    /// Lets a backup take over if it has what is needed, and asks it anew if it cannot get it.
    pub(super) fn switch(&mut self) {
        let others = |m: &&Member<Stream>| Some(m.base.id) != self.crew.current;
        let others = self.crew.members.iter().filter(others);
        let ready = others
            .clone()
            .find_map(|m| Some((m.base.id, self.place(m)?)));
        if let Some((id, at)) = ready {
            return self.take_over(id, at);
        }
        let resume = self.timeline.resume();
        let astray = others.clone().find(|m| !m.work.may_speak(resume));
        if self.is_in_need()
            && let Some(id) = astray.map(|m| m.base.id)
        {
            self.ask_again(id, resume);
        }
    }

    /// Nobody speaks, or whoever does is in doubt.
    fn is_in_need(&self) -> bool {
        let producer = self.crew.producer();
        producer.is_none_or(|m| m.base.suspect.is_some())
    }

    /// Where among what a backup has it may take over: a chunk that has sound, or the end.
    fn place(&self, backup: &Member<Stream>) -> Option<usize> {
        let (need, resume) = (self.is_in_need(), self.timeline.resume());
        let drains = self.crew.producer().is_some_and(|m| m.base.draining);
        let held = &backup.work.held;
        (0..held.len()).rev().find(|at| match held.get(*at) {
            Some(Piece::Begin { from, .. }) => {
                let has_sound = held.get(at + 1).is_some();
                let fits = match need {
                    true => *from == resume,
                    false => drains && self.is_free(*from),
                };
                has_sound && fits
            }
            Some(Piece::End) => need && backup.work.first == resume && held.len() == 1,
            _ => false,
        })
    }

    /// A boundary here at which nothing was played of what follows.
    fn is_free(&self, from: u32) -> bool {
        self.timeline.start_of(from).is_some() && !self.timeline.is_touched(from, samples(PLAYOUT))
    }

    fn take_over(&mut self, id: AttemptId, at: usize) {
        let Some(member) = self.crew.find(id) else {
            return;
        };
        member.work.held.drain(..at);
        let from = match member.work.held.front() {
            Some(Piece::Begin { from, .. }) => Some(*from),
            _ => None,
        };
        let (to, why) = (member.base.node(), member.base.candidate.reason.clone());
        let (voice, same_voice) = (member.work.voice.clone(), member.work.same);
        let followed = self.crew.take_over(id);
        match (self.voice.replace(voice.clone()), followed) {
            (Some(_), Some(loss)) => {
                let gap = self.crew.now.since(self.last_sound);
                let lead = self.lead();
                self.emit(Output::PeerChanged {
                    from: loss.from,
                    to,
                    voice,
                    same_voice,
                    reason: loss.reason,
                    gap,
                    lead,
                });
            }
            (None, _) => self.emit(Output::Started {
                node: to,
                voice,
                why,
            }),
            (Some(_), None) => {}
        }
        if let Some(from) = from {
            self.join_or_cut(from);
        }
        self.give_out(id);
    }

    fn join_or_cut(&mut self, from: u32) {
        if self.timeline.is_touched(from, samples(PLAYOUT)) {
            self.joining = true;
        } else if let Some(at) = self.timeline.start_of(from) {
            self.timeline.cut(from);
            self.emit(Output::Cut { at });
        }
    }

    /// The same peer from another chunk on.
    fn ask_again(&mut self, id: AttemptId, from: u32) {
        let Some(member) = self.crew.find(id) else {
            return;
        };
        let (voice, same) = (member.work.voice.clone(), member.work.same);
        let candidate = member.base.candidate.clone();
        let work = self.stream(voice.clone(), same, from);
        let grant_ms = millis(work.granted);
        let Some(attempt) = self.crew.renew(id, work) else {
            return self.crew.fail(id, Reason::Protocol);
        };
        self.crew.effects.push_back(Effect::Open {
            attempt,
            node: candidate.node,
            engine: candidate.engine,
            model: candidate.model,
            voice,
            from,
            grant_ms,
        });
    }
}
