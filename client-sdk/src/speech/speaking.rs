//! A text that is being spoken: performs what `unamesh_proto::speech::speak` decides.
//!
//! The caller takes the sound as it plays it, 20 ms at a time, and what it took counts as played:
//! by that the lead is granted, and by that it is decided what of a lost peer's sound is kept. All
//! that has come in is read before any sound is given out.

use super::client_error;
use super::playout::Playout;
use super::say::{Say, SayEvent};
use crate::activity::{Activity, RequestId};
use crate::client::ClientError;
use crate::clock;
use crate::memory::Shared;
use crate::outside::{Going, Happening, Outside, going};
use crate::transport::SpeakLink;
use futures_util::Stream;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use unamesh_proto::rank::speech::SpeechNeed;
use unamesh_proto::speech::speak::{Config, Effect, Input, Output, Speak, Speaker};
use unamesh_proto::table::Snapshot;
use unamesh_proto::timeouts::SPEECH_LEAD_MIN;
use unamesh_proto::wire::{Appended, ModelKind, SpeakFrame, SpeakRequest};
use unamesh_proto::{Mono, NodeId};

/// Frames that are taken in before sound that is there is given out: half a second of speech, so
/// that decoding a whole lead does not make the ear wait.
const AT_ONCE: usize = 25;

/// A text that is being spoken: a stream of [`SayEvent`]s.
pub struct Speech {
    shared: Arc<Shared>,
    id: RequestId,
    say: Arc<Say>,
    machine: Speak,
    outside: Outside<dyn SpeakLink>,
    playout: Playout,
    events: VecDeque<SayEvent>,
    /// How it ended; told once all sound was taken.
    outcome: Option<Result<(), ClientError>>,
    /// Who was asked for which model.
    asked: Vec<(NodeId, String)>,
    /// The model that speaks.
    model: Option<String>,
}

impl Speech {
    pub(crate) fn new(shared: Arc<Shared>, say: Say) -> Self {
        let config = Config {
            text: say.text.clone(),
            other_voice: say.other_voice,
            lead: say.lead.max(SPEECH_LEAD_MIN),
            silence: shared.begin(),
        };
        let id = RequestId::random();
        let mut speech = Speech {
            outside: Outside::new(id, &shared),
            machine: Speak::new(config, clock::mono()),
            id,
            say: Arc::new(say),
            playout: Playout::default(),
            events: VecDeque::new(),
            outcome: None,
            asked: Vec::new(),
            model: None,
            shared,
        };
        match speech
            .request(0, String::new(), String::new(), 0, 0)
            .check()
        {
            Ok(()) => speech.perform(),
            Err(error) => {
                speech.machine.handle(Input::Cancel, clock::mono());
                while speech.machine.poll().is_some() {}
                speech.outcome = Some(Err(ClientError::from(error)));
            }
        }
        speech
    }

    /// Names this request in logs and [`Activity`].
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Samples (24 kHz) that were taken, which counts as played.
    pub fn played(&self) -> u64 {
        self.playout.taken()
    }

    /// The character up to which the text was said with what was taken, in whole words: by the
    /// marks, and within a chunk in proportion.
    pub fn spoken_to(&self) -> u32 {
        self.spoken_at(self.playout.taken())
    }

    /// The same if only so many samples were heard: a player that drops what it holds knows.
    pub fn spoken_at(&self, played: u64) -> u32 {
        self.machine.spoken_until(played)
    }

    /// Stops at once, down to the engine, and drops what was not taken. The terminal event is
    /// [`ClientError::Cancelled`].
    pub fn cancel(&mut self) {
        self.input(Input::Cancel);
    }

    fn input(&mut self, input: Input) {
        self.machine.handle(input, clock::mono());
        self.perform();
    }

    fn perform(&mut self) {
        while let Some(effect) = self.machine.poll() {
            let now = clock::mono();
            match effect {
                Effect::Rank => {
                    let speakers = self.speakers();
                    self.machine.handle(Input::Candidates(speakers), now);
                }
                Effect::Hedge => {
                    if self.shared.may_hedge() {
                        self.machine.handle(Input::Hedge, now);
                    }
                }
                Effect::Open {
                    attempt,
                    node,
                    engine,
                    model,
                    voice,
                    from,
                    grant_ms,
                } => {
                    self.shared.dispatched(node, engine, now);
                    self.asked.push((node, model.clone()));
                    let request = self.request(engine, model, voice, from, grant_ms);
                    let dial = self.shared.transport.speak(node, Arc::new(request));
                    self.outside.dial(attempt, node, dial);
                }
                Effect::Grant(attempt, grant) => {
                    if let Some(link) = self.outside.link(attempt) {
                        link.grant(grant);
                    }
                }
                Effect::Reset(attempt) => self.outside.reset(attempt),
                Effect::Emit(output) => self.emit(output),
                Effect::Note(note) => self.shared.note(self.id, &note, now),
            }
        }
    }

    fn request(
        &self,
        engine: u16,
        model: String,
        voice: String,
        from: u32,
        grant_ms: u32,
    ) -> SpeakRequest {
        SpeakRequest {
            model,
            engine,
            voice,
            language: self.say.language.clone(),
            text: self.say.text.clone(),
            speed_percent: self.say.speed_percent,
            extra: self.say.extra.clone(),
            session: self.say.session,
            from,
            grant_ms,
            one_piece: Appended(self.say.one_piece),
        }
    }

    /// Who could speak (on): once somebody spoke, that voice is the one wanted.
    fn speakers(&self) -> Vec<Speaker> {
        let spoke = self.machine.voice();
        let need = SpeechNeed {
            model: &self.say.model,
            voice: spoke.unwrap_or(&self.say.voice),
            language: &self.say.language,
            like: self.model.as_deref().filter(|_| spoke == Some("")),
            sticky: self.shared.at_work(self.say.session, ModelKind::Tts),
        };
        self.shared.speakers(&need, clock::mono())
    }

    fn emit(&mut self, output: Output) {
        match output {
            Output::Started { node, voice, why } => {
                self.goes_on(node);
                let peer = self.shared.peer(node);
                self.events
                    .push_back(SayEvent::Started { peer, voice, why });
            }
            Output::Progress(phase) => self.events.push_back(SayEvent::Progress { phase }),
            Output::Chunk {
                from, to, pre_skip, ..
            } => {
                let at = self.playout.begin(pre_skip);
                self.events.push_back(SayEvent::Mark { from, to, at });
            }
            Output::Sound(opus) => {
                self.playout.sound(&opus);
                self.join(false);
            }
            Output::Whole { samples } => {
                self.playout.whole(samples);
                self.join(true);
            }
            Output::Cut { at } => self.playout.cut(at),
            Output::Join {
                start, pre_skip, ..
            } => self.playout.begin_anew(start, pre_skip),
            Output::PeerChanged {
                from,
                to,
                voice,
                same_voice,
                reason,
                gap,
                lead,
            } => {
                self.goes_on(to);
                let (from, to) = (self.shared.peer(from), self.shared.peer(to));
                self.shared.tell(Activity::SpeakerChanged {
                    request: self.id,
                    from: from.clone(),
                    to: to.clone(),
                    same_voice,
                    gap,
                    lead,
                    reason: reason.clone(),
                });
                self.events.push_back(SayEvent::PeerChanged {
                    from,
                    to,
                    voice,
                    same_voice,
                    reason: reason.to_string(),
                    gap,
                    lead,
                });
            }
            Output::Done { .. } => {
                self.playout.finish();
                self.outcome = Some(Ok(()));
            }
            Output::Failed { failure, whole } => {
                let (
                    shared,
                    Say {
                        model, voice, text, ..
                    },
                ) = (&self.shared, &*self.say);
                let voice = self.machine.voice().unwrap_or(voice);
                let said: String = text.chars().take(whole as usize).collect();
                let error = client_error(shared, failure, ModelKind::Tts, model, voice, &said);
                if matches!(error, ClientError::Cancelled) {
                    self.playout.clear();
                    self.events.clear();
                }
                self.join(true);
                self.playout.finish();
                self.outcome = Some(Err(error));
            }
        }
    }

    /// This peer speaks from now on.
    fn goes_on(&mut self, node: NodeId) {
        self.shared
            .stick(self.say.session, ModelKind::Tts, (node, u16::MAX));
        let asked = self.asked.iter().rfind(|(n, _)| *n == node);
        self.model = asked.map(|(_, model)| model.clone());
    }

    /// Looks for the place at which a chunk that was begun goes on from another peer; `now`: with
    /// what is there.
    fn join(&mut self, now: bool) {
        if let Some(shift) = self.playout.join(now) {
            self.machine.handle(Input::Joined { shift }, clock::mono());
        }
    }

    fn table(&mut self, snapshot: &Snapshot) {
        for (node, going) in going(snapshot, self.machine.peers()) {
            self.input(match going {
                Going::Leaves => Input::PeerGoing(node),
                Going::Down => Input::PeerDown(node),
            });
        }
        if self.machine.is_waiting() {
            let speakers = self.speakers();
            self.input(Input::Candidates(speakers));
        }
    }

    fn happened(&mut self, happening: Happening<SpeakFrame>) {
        match happening {
            Happening::Opened(attempt) => self.input(Input::Opened(attempt)),
            Happening::Frame(attempt, _, frame) => self.input(Input::Frame(attempt, frame)),
            Happening::Closed(attempt, closed) => self.input(Input::Closed(attempt, closed)),
            Happening::Late(late) => self.input(Input::Late(late)),
            Happening::Table(snapshot) => self.table(&snapshot),
            Happening::Time => self.input(Input::Wake),
            Happening::Leave => self.input(Input::Leave),
        }
    }

    /// Takes in what has come, up to a bound; true if that was all.
    fn take_in(&mut self, cx: &mut Context<'_>) -> bool {
        for _ in 0..AT_ONCE {
            if self.machine.is_ended() {
                return true;
            }
            let due = self.machine.next_wake();
            match self.outside.poll(due, cx, |link, cx| link.poll_frame(cx)) {
                Poll::Ready(happening) => self.happened(happening),
                Poll::Pending => return true,
            }
        }
        false
    }

    /// The next event that is neither sound nor the end: reads ahead and takes no sound.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<SayEvent> {
        if !self.take_in(cx) {
            cx.waker().wake_by_ref();
        }
        match self.events.pop_front() {
            Some(event) => {
                self.left(clock::mono());
                Poll::Ready(event)
            }
            None => Poll::Pending,
        }
    }

    /// The caller took something then and does not look before the next poll.
    pub(crate) fn left(&mut self, then: Mono) {
        self.outside.left(then);
    }

    fn next_sound(&mut self) -> Option<Vec<i16>> {
        // The ear has come nearer to a joint.
        self.join(self.playout.is_dry());
        self.perform();
        let pcm = self.playout.take()?;
        self.input(Input::Played(self.playout.taken()));
        Some(pcm)
    }
}

impl Drop for Speech {
    /// What speech that nobody wants any more has learned and spent is told all the same.
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Stream for Speech {
    type Item = SayEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SayEvent>> {
        loop {
            let all = self.take_in(cx);
            if let Some(event) = self.events.pop_front() {
                self.left(clock::mono());
                return Poll::Ready(Some(event));
            }
            if let Some(pcm) = self.next_sound() {
                self.left(clock::mono());
                return Poll::Ready(Some(SayEvent::Pcm(pcm)));
            }
            if self.machine.is_ended() {
                let samples = self.playout.taken();
                self.outside.over();
                return Poll::Ready(self.outcome.take().map(|outcome| match outcome {
                    Ok(()) => SayEvent::Done { samples },
                    Err(error) => SayEvent::Failed(error),
                }));
            }
            if all {
                return Poll::Pending;
            }
        }
    }
}
