//! Every wait, each with its reason. The tests and `PROTOCOL.md` quote these names.

use std::time::Duration;

/// While an engine is silent an agent sends a progress frame this often. Three fit into
/// [`SILENCE_MIN`], so that two may be late before a live agent looks dead.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(50);
/// In-stream silence that makes a peer suspect on a path that has shown no jitter.
pub const SILENCE_MIN: Duration = Duration::from_millis(150);
/// The most that a jittery path (Wi-Fi power save, 200 ms stalls) may stretch it.
pub const SILENCE_MAX: Duration = Duration::from_millis(400);
/// Opening a stream on a new connection: handshake 2 RTT, plus a resend of a lost Initial.
pub const DIAL: Duration = Duration::from_millis(1500);
/// A dial that has not opened by now makes the peer suspect: a backup is dialed beside it.
pub const DIAL_SUSPECT: Duration = Duration::from_millis(250);
/// What a new connection takes its round trip to be until it has measured it: a lost first
/// packet is sent again after three times this (QUIC's own default waits a second).
pub const INITIAL_RTT: Duration = Duration::from_millis(80);
/// The next path of a dial starts this long after the one before, unless that one failed: a
/// path on the home's own network answers within it, and only then is the only one tried.
pub const RACE_STEP: Duration = Duration::from_millis(20);
/// A reattachment that has not been answered by now is backed up by a migration: on a LAN
/// the answer takes one round trip.
pub const ATTACH_SUSPECT: Duration = Duration::from_millis(100);
/// While a peer stays silent, a fresh path to it is tried this often: a laptop that changes its
/// network has the new one a second or two after it lost the old.
pub const FRESH_PATH_EVERY: Duration = Duration::from_secs(1);
/// A silent attempt that nobody could stand in for is given up: the connection's own idle
/// time-out has passed, with a margin.
pub const SILENCE_GIVE_UP: Duration = Duration::from_secs(6);
/// After so much silence a backup is no hedge any more and needs no leave: the table doubts the
/// peer too ([`TABLE_SUSPECT`]), and a caller of many waits no longer because their hedges are
/// spent.
pub const SILENCE_SURE: Duration = Duration::from_millis(1500);
/// A stalled attempt that nobody could stand in for is given up after this at the earliest.
pub const STALL_GIVE_UP: Duration = Duration::from_secs(60);
/// No token although frames come: never before this, while too little is known of the engine,
/// and before its first token. With the backup's dispatch it stays below a second.
pub const STALL_MIN: Duration = Duration::from_millis(900);
/// The same between tokens of an engine of which enough was seen: never before this, however
/// steady it was. Another request's prompt, read in one batch beside it, may hold up the tokens
/// of a home engine for a third of a second, too seldom to be learned.
pub const STALL_GAP_MIN: Duration = Duration::from_millis(500);
/// So long a character of a text sounds about: speech has some fifteen of them a second. From it
/// is told how long an engine may work on a piece of speech.
pub const SPOKEN_CHARACTER: Duration = Duration::from_millis(66);
/// No token although frames come: always by this, unless the engine reports that its load
/// or its prefill advances.
pub const STALL_MAX: Duration = Duration::from_secs(20);
/// A cold model may load this long while it says so (a 70B from a slow disk).
pub const LOAD_MAX: Duration = Duration::from_secs(180);
/// With a broken answer in hand and no candidate left: wait this long for a peer to appear.
pub const WAIT_FOR_PEER: Duration = Duration::from_secs(3);
/// A caller that looks for the next event later than this had a pause of its own: what has come
/// meanwhile says nothing of its peer. Far below any bound that is learned from it.
pub const CALLER_PAUSE: Duration = Duration::from_millis(20);
/// Nothing delivered and no candidate: `no_peer` at once, so that the app can fall back.
pub const NO_PEER: Duration = Duration::from_millis(250);
/// An agent keeps a generation this long after its client's connection was lost.
pub const GRACE: Duration = Duration::from_secs(10);
/// A finished generation stays attachable this long.
pub const FINISHED_GRACE: Duration = Duration::from_secs(2);
/// An accepted connection has this long for its handshake: twice [`DIAL`], after which its
/// dialer has given up.
pub const HANDSHAKE: Duration = Duration::from_secs(3);
/// A stream's header and request must be here by now: 8 MB at 10 Mbit/s take 7 s.
pub const OPENING: Duration = Duration::from_secs(10);
/// A reader that takes nothing for this long loses its stream: longer than any Wi-Fi stall,
/// and longer than [`IDLE`], after which a dead one is known.
pub const READER_STALL: Duration = Duration::from_secs(10);
/// What is still sent to a request that is answered is taken in for so long: whoever reads its
/// answer has it by then.
pub const HTTP_DRAIN: Duration = Duration::from_secs(2);
/// A data-plane probe goes to each peer this often.
pub const PROBE_EVERY: Duration = Duration::from_secs(1);
/// An unanswered probe counts as failed after this.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(900);
/// After so many probes over a tailnet, say, the paths of a better kind are tried again.
pub const IMPROVE_PROBES: u64 = 10;
/// So many probes of a peer that is down may fail before the pauses between them grow.
pub const PROBE_PATIENCE: u32 = 5;
/// The longest pause between probes to a peer that does not answer.
pub const PROBE_MAX: Duration = Duration::from_secs(16);
/// A connection that nobody used for this long is closed, unless its peer is kept warm.
pub const POOL_IDLE: Duration = Duration::from_secs(60);
/// Unused connections are looked for this often.
pub const POOL_SWEEP: Duration = Duration::from_secs(10);
/// No sign of life for this long: suspect in the table (ranked last, not evicted).
pub const TABLE_SUSPECT: Duration = Duration::from_millis(1500);
/// No sign of life for this long, and none to another peer: down (not chosen at all).
pub const TABLE_DOWN: Duration = Duration::from_millis(2800);
/// The same while nobody could say whether others reach it: its connection's own idle time-out
/// ([`IDLE`]) has passed by then.
pub const TABLE_DOWN_ALONE: Duration = Duration::from_secs(4);
/// Others are asked about a silent peer this often while nothing is decided, and have this
/// long to answer: a helper's own probe ([`PROBE_TIMEOUT`]) is over by then, and said.
pub const DOUBT_EVERY: Duration = Duration::from_secs(1);
/// When all peers fell silent together they stay suspects this long: a router that restarts is
/// back, and a caller whom everybody left learns it.
pub const TABLE_CUT_OFF: Duration = Duration::from_secs(30);
/// A peer that was down for this long leaves the table.
pub const TABLE_FORGET: Duration = Duration::from_secs(600);
/// A node that said goodbye is remembered this long, so that late gossip cannot revive it.
pub const TOMBSTONE: Duration = Duration::from_secs(3600);
/// An advert whose wall clock is further off than this is dropped (certificates allow a day
/// of error too).
pub const ADVERT_WINDOW: Duration = Duration::from_secs(26 * 3600);
/// After a change the advert is repeated after this time, in case a message was lost.
pub const ADVERT_EVERY: Duration = Duration::from_secs(5);
/// While nothing changes, repeats thin out to this: liveness comes from probes, and every
/// repeat costs an idle mesh of three some 4 kB a node.
pub const ADVERT_EVERY_MAX: Duration = Duration::from_secs(20);
/// Changes are collected this long before an advert goes out.
pub const ADVERT_DEBOUNCE: Duration = Duration::from_millis(50);
/// QUIC keep-alive. Longer than [`PROBE_EVERY`] and its spread, so that a probed connection
/// sends none; two fit into [`IDLE`].
pub const KEEP_ALIVE: Duration = Duration::from_millis(1500);
/// QUIC idle time-out: longer than a Wi-Fi stall; liveness within a stream comes from frames.
pub const IDLE: Duration = Duration::from_secs(4);
/// A goodbye is repeated after this, twice, in case a datagram was lost.
pub const GOODBYE_REPEAT: Duration = Duration::from_millis(20);
/// One device's whole joining, handshake included: a phone on weak Wi-Fi makes it in one.
pub const JOIN: Duration = Duration::from_secs(5);
/// The longest that an invitation stays open: nobody should find one in a chat a week later.
pub const INVITE_MAX: Duration = Duration::from_secs(24 * 3600);
/// A fire drill on a machine of others lasts at most this long: longer than any bound on silence
/// or on a stall that it is to show, and over before anybody would look for the cause.
pub const DRILL_MAX: Duration = Duration::from_secs(10);
/// A shutdown waits this long for tasks and running streams before it gives up on them.
pub const SHUTDOWN: Duration = Duration::from_secs(5);
/// A warm slot: how often engines are asked for health and models.
pub const ENGINE_POLL: Duration = Duration::from_secs(2);
/// An engine that answers its health check later than this is unhealthy, unless it is busy.
pub const ENGINE_HEALTH: Duration = Duration::from_millis(1500);
/// Connecting to an engine (loopback, or the LAN at most).
pub const ENGINE_CONNECT: Duration = Duration::from_millis(1000);
/// What an engine does before it starts (rendering a template, counting tokens) takes no longer.
pub const ENGINE_PREPARE: Duration = Duration::from_secs(10);
/// An engine that has not sent its headers by now is asked what it is doing: loading, mostly.
pub const ENGINE_HEADERS: Duration = Duration::from_millis(50);
/// How often that is asked again.
pub const ENGINE_LOADING_POLL: Duration = Duration::from_millis(500);
/// How long Ollama keeps a model in memory after its last use: a lesson with its pauses. It is
/// sent with every request, since Ollama's own five minutes are shorter than a break.
pub const ENGINE_KEEP_ALIVE: Duration = Duration::from_secs(30 * 60);
/// A port that may hold an engine and answers nothing by now holds none of ours.
pub const DETECT: Duration = Duration::from_millis(500);
/// How often the standard ports are looked at for engines that were started later.
pub const DETECT_EVERY: Duration = Duration::from_secs(10);
/// An engine that failed ranks last for this long (spread by a quarter): by then the table
/// suspects a peer that fell silent with it.
pub const BREAKER_MIN: Duration = Duration::from_secs(2);
/// The longest that an engine ranks last because trial after trial failed.
pub const BREAKER_MAX: Duration = Duration::from_secs(60);
/// A trial of an engine that failed is over after this, whatever became of it (its caller may
/// have cancelled): the next request may try.
pub const BREAKER_TRIAL: Duration = Duration::from_secs(20);
/// A failure is held against an engine this long: longer than any backoff.
pub const BREAKER_FORGET: Duration = Duration::from_secs(600);
/// A session that may not start a backup on suspicion, because too many were in vain, asks
/// again after this.
pub const HEDGE_RETRY: Duration = Duration::from_millis(50);
/// The most that a planned leave keeps back to bridge the pause until the backup, whose cache
/// holds the prompt, goes on: a round trip, the engine's own start, a token or two.
pub const HANDOVER_LEAD: Duration = Duration::from_millis(200);
/// `retry_after` of a `busy` answer when nothing better is known.
pub const BUSY_RETRY: Duration = Duration::from_millis(500);
/// The first restart of a managed engine waits this long; doubles up to [`RESTART_MAX`].
pub const RESTART_MIN: Duration = Duration::from_millis(250);
/// The longest wait before a managed engine is started again.
pub const RESTART_MAX: Duration = Duration::from_secs(30);
/// A connection to the gateway may take this long for a request's head, and idle as long
/// between two requests; a client's pool forgets it before that (httpx after 5 s).
pub const HTTP_HEAD: Duration = Duration::from_secs(30);
/// A request's body must have arrived by then: 8 MiB over slow Wi-Fi.
pub const HTTP_BODY: Duration = Duration::from_secs(30);
/// A managed engine that ran this long is healthy: the next restart waits [`RESTART_MIN`] again.
pub const RESTART_RESET: Duration = Duration::from_secs(60);
/// A managed engine that was asked to stop (SIGTERM) is killed after this. Within [`SHUTDOWN`].
pub const STOP_ENGINE: Duration = Duration::from_secs(2);
/// An engine that takes connections and answers nothing for this long, while nothing of ours
/// runs there, is wedged: a managed one is restarted.
pub const ENGINE_WEDGED: Duration = Duration::from_secs(30);
/// A managed engine that is being started: how often its health is asked.
pub const ENGINE_START_POLL: Duration = Duration::from_millis(100);
/// What one Opus frame holds. Shorter frames cost more bytes, longer ones more delay.
pub const AUDIO_FRAME: Duration = Duration::from_millis(20);
/// A frame that is missing while later ones are here is waited for this long at least: its
/// second copy travels two frames behind it, one behind the frame that showed the gap.
pub const JITTER_MIN: Duration = Duration::from_millis(30);
/// The longest such wait, whatever the path has shown: enough for a repair over a path of 50 ms;
/// more would be heard as a slow answer.
pub const JITTER_MAX: Duration = Duration::from_millis(120);
/// How far ahead of the ear a speaking agent may be: it outlasts any failover, and a minute of
/// talk is not made in vain at a barge-in.
pub const SPEECH_LEAD: Duration = Duration::from_secs(10);
/// The least lead: the packet that is held back, a round trip for the next grant, and some sound
/// beside.
pub const SPEECH_LEAD_MIN: Duration = Duration::from_millis(200);
/// The lead is granted anew in steps of at least this (half of a shorter lead), so that few
/// records carry it.
pub const GRANT_STEP: Duration = Duration::from_millis(500);
/// How much sound a speaking agent has at most before the first of it goes to a listener far away:
/// with so much at once no lost packet is heard at the beginning, when there is no lead yet.
pub const SPEECH_START: Duration = Duration::from_millis(300);
/// Sound this close to the ear counts as played: the device may hold it already.
pub const PLAYOUT: Duration = Duration::from_millis(60);
/// After so much silence the recognizer says what it has, and the language model begins with it:
/// pauses within a sentence are mostly shorter, and the rest of the wait for the end hides most of
/// its first token.
pub const SPECULATE: Duration = Duration::from_millis(160);
/// A recognizer that is known to answer within [`QUICK_RECOGNIZER`] is asked after so much silence
/// already, so that its transcript is there at [`SPECULATE`]: many pauses between words are as long,
/// and for a slow engine most of its work would be in vain.
pub const SPECULATE_QUICK: Duration = Duration::from_millis(96);
/// A longer utterance is not guessed about by a recognizer that is not known to be quick: every
/// pause would have it transcribed anew from the start, and few servers stop when they are told.
/// Whisper's window: up to here its work hardly grows.
pub const SPECULATE_MAX: Duration = Duration::from_secs(30);
/// See [`SPECULATE_QUICK`].
pub const QUICK_RECOGNIZER: Duration = Duration::from_millis(120);
/// Silence after which an utterance is over, if the caller names none: pauses for thought are
/// longer, but a conversation with longer ones feels slow.
pub const END_SILENCE: Duration = Duration::from_millis(300);
/// The user's voice for so long ends an answer: longer than a cough or a knock, shorter than a
/// word.
pub const BARGE_IN: Duration = Duration::from_millis(120);
/// Sound before a hearing begins that it gets too: voice detection finds a word after it began.
pub const PREROLL: Duration = Duration::from_millis(200);
/// A hearing into which nobody has spoken is opened anew after this: what the engine and both sides
/// keep of it grows meanwhile.
pub const HEARING_IDLE: Duration = Duration::from_secs(60);
/// After a hearing failed, the next one is tried no sooner.
pub const HEARING_RETRY: Duration = Duration::from_secs(1);
/// A listener that has all that it granted and grants no more has paused its player; after this
/// its speech ends, and can be asked for again from any chunk on.
pub const LISTENER_PAUSE: Duration = Duration::from_secs(600);
/// Frames that an agent asked for, with the end of the utterance known, are waited for this long:
/// longer than [`IDLE`], after which a path that is dead is known.
pub const REPAIR: Duration = Duration::from_secs(6);
/// An utterance into which no frame came for so long is ended by the agent. A microphone that is
/// open sends silence too, and one into which nobody speaks is opened anew after
/// [`HEARING_IDLE`].
pub const NO_SOUND: Duration = Duration::from_secs(120);
/// A speech model that has answered within this is warm: servers that unload what nobody uses do
/// so after five minutes.
pub const WARM_FOR: Duration = Duration::from_secs(240);
/// A leased model that its engine has unloaded is asked again no sooner than this: whatever unloads
/// it so fast needs the memory.
pub const WARM_AGAIN: Duration = Duration::from_secs(30);
