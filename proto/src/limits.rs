//! Every bound on what a peer, a file or a user can make us hold, each with its reason.

/// One record on a stream, header excluded: a 128 k-token prompt is ~600 kB of text, and a
/// handful of base64 pictures still fit.
pub const MAX_RECORD: usize = 8 * 1024 * 1024;
/// Records that carry a table entry or a signed advert.
pub const MAX_MEDIUM_RECORD: usize = 64 * 1024;
/// Control records: headers, progress, tokens, errors.
pub const MAX_SMALL_RECORD: usize = 16 * 1024;
/// A signed advert, certificate included: what gossip carries in one message.
pub const MAX_ADVERT: usize = 48 * 1024;
/// Models in one advert: an Ollama host with everything pulled stays below.
pub const MAX_MODELS: usize = 256;
/// Engines in one advert.
pub const MAX_ENGINES: usize = 64;
/// GPUs in one advert.
pub const MAX_GPUS: usize = 32;
/// Addresses in one advert: LAN v4 and v6, tailnet, WireGuard, a few of each.
pub const MAX_ADDRS: usize = 16;
/// Voices in one advert: Wyoming Piper alone lists 174.
pub const MAX_VOICES: usize = 512;
/// A name (node, model, voice, engine) in bytes.
pub const MAX_NAME: usize = 256;
/// Nodes in a peer table. A home has ten; a thousand is the tested ceiling.
pub const MAX_PEERS: usize = 1024;
/// Tombstones of nodes that left: as many as peers, so that no ghost comes back.
pub const MAX_TOMBSTONES: usize = 1024;
/// Signed goodbyes kept for watchers that were not told, at most [`MAX_ADVERT`] each (a goodbye
/// says little: 1 kB): as many as any home has machines.
pub const MAX_GOODBYES: usize = 32;
/// Nodes of which only an unauthenticated hint is known (mDNS, seeds).
pub const MAX_STRANGERS: usize = 256;
/// Events of the peer table that nobody has taken yet; then the oldest go.
pub const MAX_TABLE_EVENTS: usize = 4096;
/// Candidates, and rejected peers, that one ranking lists: far more than [`MAX_ATTEMPTS`].
pub const MAX_RANKED: usize = 32;
/// Engines that failed lately, as many as peers: home machines have one or two each.
pub const MAX_BREAKERS: usize = 1024;
/// Models at nodes whose speed a client has learned, 4 kB each: a home's few, many times over.
pub const MAX_LEARNED: usize = 256;
/// Backups against silence and stalls that were in vain: one in so many requests.
pub const HEDGE_SHARE: u32 = 10;
/// Such backups at once: the sixteen streams of a machine that froze, and a few.
pub const HEDGE_BURST: u32 = 20;
/// Peers that are asked about a silent one: two may be behind the same bad switch.
pub const MAX_HELPERS: usize = 3;
/// Questions about silent peers that an agent has out at once: twenty peers that fell silent
/// together, [`MAX_HELPERS`] each. Who is not asked about now is a second later.
pub const MAX_QUESTIONS: usize = 64;
/// Probes that an agent makes at once for others who asked it.
pub const MAX_PROBES_FOR: usize = 64;
/// The same for one that asked: a quarter, so that none keeps the others from asking.
pub const MAX_PROBES_FOR_ONE: usize = 16;
/// Paths kept per peer.
pub const MAX_PATHS: usize = 8;
/// Attempts of one request over its life, the first included; then it fails with what it has.
/// A backup whose original went on does not count, nor a reattachment that was answered: a long
/// answer over a jittery path sees dozens of both, and nothing failed.
pub const MAX_ATTEMPTS: u32 = 12;
/// Of [`MAX_ATTEMPTS`], kept for failures: what only saves time (a hedge, a smoother handover)
/// takes none of them.
pub const MIN_ATTEMPTS_LEFT: u32 = 4;
/// Fresh paths to a silent peer that one request tries until it is heard again: a second for
/// each, and four cover the time until its connection is known to be lost
/// ([`IDLE`](crate::timeouts::IDLE)).
pub const MAX_FRESH_PATHS: u32 = 4;
/// Times that an answer is asked for again as a whole, of which its caller has seen nothing and
/// which must not be spliced: two machines that die on one answer are a rare evening.
pub const MAX_ASKED_AGAIN: u32 = 2;
/// Attempts of one request at the same time: the original and one backup.
pub const MAX_PARALLEL_ATTEMPTS: usize = 2;
/// Tokens of one generation: beyond any context of a home model.
pub const MAX_TOKENS: u32 = 1 << 20;
/// Bytes of one generation's journal; 64 k tokens of text at ~16 bytes a frame.
pub const MAX_JOURNAL_BYTES: usize = 1024 * 1024;
/// Bytes of all journals of one agent.
pub const MAX_JOURNALS_BYTES: usize = 64 * 1024 * 1024;
/// Stop sequences of one request (OpenAI allows 4, llama.cpp more).
pub const MAX_STOPS: usize = 16;
/// Bytes of one stop sequence: what an agent may have to hold back of an answer.
pub const MAX_STOP_BYTES: usize = 1024;
/// Streams that one peer may hold open on a connection.
pub const MAX_STREAMS_PER_PEER: u32 = 1024;
/// Connections that one peer (one certificate) may hold; one more closes its oldest, of those
/// without a listener if there is one.
pub const MAX_CONNECTIONS_PER_PEER: usize = 8;
/// Connections of members in all.
pub const MAX_CONNECTIONS: usize = 512;
/// Bytes that one stream may have in flight towards us: a large prompt flows through it.
pub const STREAM_WINDOW: u32 = 1024 * 1024;
/// Bytes that all streams of one connection may have in flight towards us, or wait for its
/// peer: two of the largest records.
pub const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Bytes kept of a connection that was not accepted yet: a handshake needs a tenth.
pub const MAX_INCOMING_BYTES: u64 = 64 * 1024;
/// The same for all of them.
pub const MAX_INCOMING_BYTES_TOTAL: u64 = 4 * 1024 * 1024;
/// Invitations open at once: more means that somebody left a script running.
pub const MAX_INVITES: usize = 16;
/// Devices that one invitation may admit.
pub const MAX_INVITE_USES: u32 = 64;
/// Handshakes and requests at the joining endpoint at once; more are refused unanswered.
pub const MAX_JOINS: usize = 8;
/// Handshakes at once from addresses that have not proved themselves; beyond it they must
/// answer a Retry first, so that forged addresses take no place.
pub const MAX_UNPROVEN_HANDSHAKES: usize = 32;
/// Handshakes at once, which last seconds at most; more are ignored. They take no place of
/// [`MAX_CONNECTIONS`], so that a flood of them ends no member's connection and uses up none.
pub const MAX_HANDSHAKES: usize = 256;
/// Handshakes at once from one address: many machines behind one router, or agents on one
/// machine, that start together; and a quarter of what all may have. Above
/// [`MAX_UNPROVEN_HANDSHAKES`]: packets forged in a member's name never use up its share.
pub const MAX_HANDSHAKES_PER_ADDRESS: usize = 64;
/// Large requests of one peer that are read at the same time: times [`MAX_RECORD`], what it
/// can make us buffer.
pub const MAX_READS_PER_PEER: usize = 16;
/// Generations that an agent runs or keeps for reattachment at once.
pub const MAX_GENERATIONS: usize = 2048;
/// Requests that wait for a slot of one engine; beyond it the answer is `busy`.
pub const MAX_QUEUE: usize = 32;
/// A body at the HTTP gateway.
pub const MAX_HTTP_BODY: usize = MAX_RECORD;
/// A whole (not streamed) answer at the HTTP gateway.
pub const MAX_HTTP_ANSWER: usize = 16 * 1024 * 1024;
/// Connections at the HTTP gateway: an application's pool of 128 and then some.
pub const MAX_HTTP_CONNECTIONS: usize = 512;
/// Header fields of a request at the gateway; browsers send about 20.
pub const MAX_HTTP_HEADERS: usize = 64;
/// Bytes of one message of a conversation's WebSocket: a second of sound, or a page of text.
pub const MAX_SOCKET_MESSAGE: usize = 64 * 1024;
/// Levels of brackets in one field of a request: tool schemas reach ten. Below the 128 at
/// which serde_json gives up, so that no engine adapter or peer ever meets that.
pub const MAX_JSON_DEPTH: usize = 64;
/// Fields of one JSON object of a request.
pub const MAX_JSON_FIELDS: usize = 128;
/// One line of an engine's reply (SSE or NDJSON).
pub const MAX_ENGINE_LINE: usize = 1024 * 1024;
/// A whole reply of an engine that is not a stream (model lists, properties).
pub const MAX_ENGINE_BODY: usize = 16 * 1024 * 1024;
/// The text of an error that travels.
pub const MAX_ERROR_TEXT: usize = 2048;
/// Idle connections kept to one engine. llama.cpp is given one (its server blocks a thread of
/// a small pool for each).
pub const MAX_ENGINE_IDLE: usize = 8;
/// The node's name in an mDNS record, in bytes: the whole must fit one small packet.
pub const MAX_MDNS_NAME: usize = 63;
/// An invitation's link: sixteen addresses and some room for later versions' parts.
pub const MAX_INVITE_LINK: usize = 2048;
/// One Opus frame on the wire, in bytes. 20 ms of speech take 40 to 200; two frames and their
/// heads fit into [`MAX_AUDIO_DATAGRAM`].
pub const MAX_AUDIO_FRAME: usize = 500;
/// A datagram of the uplink: fits the 1,200 bytes that every QUIC path carries, with QUIC's own
/// head and any tunnel's.
pub const MAX_AUDIO_DATAGRAM: usize = 1100;
/// Frames of one utterance, which both sides keep until its final transcript: fifteen minutes.
pub const MAX_UTTERANCE_FRAMES: u32 = 45_000;
/// Bytes of those frames: fifteen minutes at 24 kbit/s are 2.7 MB.
pub const MAX_UTTERANCE_BYTES: usize = 4 * 1024 * 1024;
/// Frames by which a datagram may be ahead of the newest one so far: ten seconds, after which
/// the connection that lost so many is gone too (`timeouts::IDLE`).
pub const MAX_AUDIO_AHEAD: u32 = 512;
/// Channels of PCM that an engine or a file may have; they are mixed to one.
pub const MAX_PCM_CHANNELS: u16 = 8;
/// Bytes of a WAV file before its samples: engines send 44, editors add pictures and notes.
pub const MAX_WAV_HEAD: usize = 1024 * 1024;
/// Bytes of an Ogg packet, comments with a cover picture included.
pub const MAX_OGG_PACKET: usize = 1024 * 1024;
/// Characters of text that go to a speech engine at once: about 20 seconds of speech, after
/// which even a slow engine's first byte is late.
pub const MAX_SPOKEN_CHUNK: usize = 300;
/// Bytes of one text to be spoken: half an hour of speech, and it fits a medium record with the
/// fields beside it.
pub const MAX_SPEECH_TEXT: usize = 32 * 1024;
/// Bytes of the other fields of a request to speak.
pub const MAX_SPEECH_EXTRA: usize = 8 * 1024;
/// Bytes of what a recognizer is told beforehand: Whisper reads 224 tokens of it.
pub const MAX_HEAR_PROMPT: usize = 4 * 1024;
/// Bytes of a transcript: fifteen minutes ([`MAX_UTTERANCE_FRAMES`]) of fast speech are 20 kB.
pub const MAX_TRANSCRIPT: usize = 48 * 1024;
/// Words of a transcript with their times: fifteen minutes at nine a second.
pub const MAX_WORDS: usize = 8192;
/// Frames at an utterance's end that are repeated on the stream: those whose second copy no
/// later datagram carries ([`crate::speech::uplink::DISTANCE`]), and a burst before them.
pub const TAIL_FRAMES: u32 = 8;
/// Frames that one recognizer may ask for again, in all: the utterance twice.
pub const MAX_RESENT_FRAMES: u32 = 2 * MAX_UTTERANCE_FRAMES;
/// Seconds of speech that any text may take, pauses and breaths of a short one included.
pub const MAX_SPEECH_SECONDS: u64 = 15;
/// Seconds of speech more for every character. The slowest real speech (digits that are read out,
/// ideographs) takes a third of it; an engine beyond this speaks without end.
pub const MAX_SPEECH_SECONDS_PER_CHAR: u64 = 1;
/// Models of one lease: what speaks and what transcribes, each with whatever stands in for it.
pub const MAX_WARM_MODELS: usize = 4;
/// Leases that one agent holds: a conversation of every member of a large home, twice.
pub const MAX_LEASES: usize = 64;
/// Seconds of sound that are transcribed as one utterance: those of [`MAX_UTTERANCE_FRAMES`].
pub const MAX_HEARD_SECONDS: usize = 900;
/// Bytes of one header line, data block or payload of a Wyoming event: a list of all voices is
/// 150 kB, a second of studio sound 200 kB.
pub const MAX_WYOMING_PART: usize = 1024 * 1024;
/// Bytes of one message of a speech engine's WebSocket: a transcript with its words.
pub const MAX_ENGINE_MESSAGE: usize = 1024 * 1024;
/// Pieces of an answer that wait to be spoken before no more of it is read: minutes of speech.
pub const MAX_WAITING_PIECES: usize = 64;
/// Messages of a conversation's history; the oldest beside the system's go: a school day of turns.
pub const MAX_MESSAGES: usize = 4096;
/// Samples (16 kHz) of the newest sound that a conversation keeps for a hearing that opens later: a
/// minute, longer than any recognizer takes for an utterance.
pub const MAX_KEPT_SOUND: usize = 960_000;
/// Bytes of datagrams that wait on one connection to be sent, or to be read: seven seconds of a
/// microphone and of its copies. Beyond it the oldest are dropped; what an agent misses of them
/// goes on the stream.
pub const DATAGRAM_BUFFER: usize = 48 * 1024;
/// Datagrams that wait for the stream that listens to their utterance: a second, which is longer
/// than a stall of Wi-Fi that lets all go at once.
pub const MAX_WAITING_DATAGRAMS: usize = 64;
/// Datagrams kept on one connection because they overtook the requests that they belong to, and
/// utterances that ended of which late ones are dropped. At most [`MAX_WAITING_DATAGRAMS`].
pub const MAX_EARLY_DATAGRAMS: usize = 64;
