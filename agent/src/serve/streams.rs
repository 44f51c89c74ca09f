//! One stream, from its header to whoever serves it.

use super::Service;
use super::client::Client;
use super::gate;
use super::generation::Generation;
use super::generations::Newcomer;
use super::listener::{Guest, Listener};
use super::{leases, voice, watch};
use quinn::{RecvStream, SendStream};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::either::Either;
use tracing::Instrument;
use unamesh_client::clock;
use unamesh_client::endpoint::canonical;
use unamesh_client::framing::{ReadError, RecordReader, RecordWriter};
use unamesh_client::transport::LinkError;
use unamesh_proto::timeouts;
use unamesh_proto::wire::{
    Attach, Drill, DrillStarted, ErrorCode, GenerateRequest, HearRequest, Probe, ProbeFor,
    ProbeReply, Record, SignedAdvert, SpeakRequest, StreamHeader, StreamKind, VERSION, WarmRequest,
    WireError,
};

/// What a stream asks for.
enum Opening {
    Probe(Probe),
    ProbeFor(ProbeFor),
    Exchange(SignedAdvert),
    Watch,
    Generate(GenerateRequest),
    Speak(SpeakRequest),
    Hear(HearRequest),
    Warm(WarmRequest),
    Attach(Attach),
    Drill(Drill),
}

/// Serves one stream to its end.
pub(super) async fn serve(
    listener: Arc<Listener>,
    guest: Arc<Guest>,
    send: SendStream,
    recv: RecvStream,
) {
    let mut reader = RecordReader::new(recv);
    let service = Arc::clone(&listener.service);
    let opening = tokio::select! {
        opening = tokio::time::timeout(timeouts::OPENING, read(&guest, &mut reader)) => {
            opening.unwrap_or_else(|_| Err(late()))
        }
        // A peer that opens a stream and says nothing does not hold up the end.
        () = service.leaving().stopped() => Err(stopped()),
    };
    if service.drills().is_silent() && !matches!(opening, Ok(Opening::Drill(_))) {
        tokio::select! {
            () = service.drills().over() => {}
            () = service.leaving().stopped() => return,
        }
    }
    match opening {
        Ok(Opening::Probe(probe)) => {
            let state = listener.hooks.state();
            let wall_ms = clock::wall().as_millis();
            reply(
                &service,
                send,
                &ProbeReply {
                    nonce: probe.nonce,
                    wall_ms,
                    state,
                },
            )
            .await;
        }
        Ok(Opening::ProbeFor(question)) => {
            let answered = listener.hooks.probe_for(guest.member.node, question);
            let answered = service.stop().run_until_cancelled(answered).await;
            match answered.unwrap_or_else(|| Err(stopped())) {
                Ok(answer) => reply(&service, send, &answer).await,
                Err(error) => reply(&service, send, &error).await,
            }
        }
        Ok(Opening::Exchange(theirs)) => {
            let remote = canonical(guest.line.connection.remote_address());
            listener.hooks.received(guest.member, theirs, remote);
            // Not before: it may get a newer word than is noted, never an older one.
            let ours = listener.hooks.advert();
            reply(&service, send, &*ours).await;
        }
        Ok(Opening::Watch) => {
            let client = client(&service, &guest, send, reader);
            watch::serve(&service, listener.hooks.snapshot(), client).await;
        }
        Ok(Opening::Generate(request)) => generate(service, &guest, request, send, reader).await,
        Ok(Opening::Speak(request)) => speak(service, &guest, request, send, reader).await,
        Ok(Opening::Hear(request)) => hear(service, &guest, request, send, reader).await,
        Ok(Opening::Warm(request)) => match service.admit_lease(&request) {
            Ok(lease) => {
                let client = client(&service, &guest, send, reader);
                leases::serve(&service, lease, client).await;
            }
            Err(error) => reply(&service, send, &error).await,
        },
        Ok(Opening::Attach(request)) => attach(&service, &guest, request, send, reader).await,
        Ok(Opening::Drill(request)) => {
            let pause = |long| listener.hooks.pause(long);
            drill(&service, &guest, request, pause, send).await;
        }
        Err(error) => {
            tracing::debug!(peer = %guest.member.node.short(), %error, "stream refused");
            reply(&service, send, &error).await;
        }
    }
}

/// Reads what opens a stream, and checks whether this member may.
async fn read(guest: &Guest, reader: &mut RecordReader) -> Result<Opening, WireError> {
    let header: StreamHeader = reader.expect().await.map_err(refusal)?;
    if header.version != VERSION {
        let message = format!(
            "this agent speaks version {VERSION} of the protocol, the stream says {}: update \
             the older of the two",
            header.version
        );
        return Err(WireError::new(ErrorCode::Unsupported, message));
    }
    gate::check(guest.member.role, header.kind)?;
    match header.kind {
        StreamKind::Probe => match reader.expect_either().await {
            Ok(Either::Left(probe)) => Ok(Opening::Probe(probe)),
            Ok(Either::Right(question)) => {
                gate::agents(guest.member.role, ProbeFor::NAME)?;
                Ok(Opening::ProbeFor(question))
            }
            Err(e) => Err(e),
        },
        StreamKind::Exchange => reader.expect().await.map(Opening::Exchange),
        StreamKind::Attach => reader.expect().await.map(Opening::Attach),
        StreamKind::Speak => reader.expect().await.map(Opening::Speak),
        StreamKind::Transcribe => reader.expect().await.map(Opening::Hear),
        StreamKind::Warm => reader.expect().await.map(Opening::Warm),
        StreamKind::Admin => reader.expect().await.map(Opening::Drill),
        StreamKind::Watch => return Ok(Opening::Watch),
        StreamKind::Generate => {
            // Large requests are read a few at a time. The semaphore is never closed.
            let _permit = guest.reads.acquire().await;
            reader.expect().await.map(Opening::Generate)
        }
        other => {
            let message = format!("this agent serves no {other} streams");
            return Err(WireError::new(ErrorCode::Unsupported, message));
        }
    }
    .map_err(refusal)
}

async fn generate(
    service: Arc<Service>,
    guest: &Guest,
    request: GenerateRequest,
    send: SendStream,
    reader: RecordReader,
) {
    let first = u32::try_from(request.prefix.len()).unwrap_or(u32::MAX);
    let run = match service.admit(Arc::new(request)) {
        Ok(run) => run.for_another(),
        Err(error) => return reply(&service, send, &error).await,
    };
    let client = client(&service, guest, send, reader);
    let owner = guest.member.node;
    let span = tracing::debug_span!("generation", id = ?run.id(), peer = owner.short());
    let generation = Generation::new(service, run, client, owner, first);
    Box::pin(generation.serve().instrument(span)).await;
}

async fn speak(
    service: Arc<Service>,
    guest: &Guest,
    request: SpeakRequest,
    send: SendStream,
    reader: RecordReader,
) {
    let speaking = match service.admit_speech(Arc::new(request)) {
        Ok(speaking) => speaking.for_another(guest.line.connection.rtt()),
        Err(error) => return reply(&service, send, &error).await,
    };
    let client = talking(&service, guest, send);
    let span = tracing::debug_span!("speech", peer = guest.member.node.short());
    let served = voice::serve(&service, speaking, client, reader);
    Box::pin(served.instrument(span)).await;
}

async fn hear(
    service: Arc<Service>,
    guest: &Guest,
    request: HearRequest,
    send: SendStream,
    reader: RecordReader,
) {
    // First: from now on its datagrams are kept for it.
    let mic = guest.mics.open(request.utterance);
    let hearing = match service.admit_hearing(request) {
        Ok(hearing) => hearing.for_another(mic),
        Err(error) => return reply(&service, send, &error).await,
    };
    let client = talking(&service, guest, send);
    let span = tracing::debug_span!("hearing", peer = guest.member.node.short());
    let served = voice::serve(&service, hearing, client, reader);
    Box::pin(served.instrument(span)).await;
}

/// Hands the stream over to the task of the generation.
async fn attach(
    service: &Service,
    guest: &Guest,
    request: Attach,
    send: SendStream,
    reader: RecordReader,
) {
    let client = client(service, guest, send, reader);
    let newcomer = Newcomer {
        client,
        have: request.have,
    };
    let handed = service
        .generations()
        .attach(request.generation, guest.member.node, newcomer);
    if let Err(refused) = handed {
        let (newcomer, error) = *refused;
        newcomer
            .client
            .refuse(error, service.config().reader_stall)
            .await;
    }
}

/// Plays a fault to its end, which does not depend on who asked.
async fn drill(
    service: &Service,
    guest: &Guest,
    request: Drill,
    pause: impl FnOnce(Duration) -> bool,
    send: SendStream,
) {
    let playing = match service.drills().begin(request, pause) {
        Ok(playing) => playing,
        Err(error) => return reply(service, send, &error).await,
    };
    let (fault, ms) = (request.fault, request.for_ms);
    tracing::warn!(peer = %guest.member.node.short(), %fault, ms, "fire drill: it begins");
    let whole = async {
        reply(service, send, &DrillStarted { for_ms: ms }).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = tokio::time::timeout(Duration::from_millis(u64::from(ms)), whole) => {}
        () = service.leaving().stopped() => {}
    }
    drop(playing);
    tracing::info!(%fault, "fire drill: it is over");
}

fn client(service: &Service, guest: &Guest, send: SendStream, reader: RecordReader) -> Client {
    let drills = Arc::clone(service.drills());
    Client::new(Arc::clone(&guest.line), send, reader, drills)
}

/// The client of a stream on which it goes on talking.
fn talking(service: &Service, guest: &Guest, send: SendStream) -> Client {
    let drills = Arc::clone(service.drills());
    Client::talking(Arc::clone(&guest.line), send, drills)
}

/// Answers with one record and ends the stream.
async fn reply<R: Record>(service: &Service, send: SendStream, record: &R) {
    let mut writer = RecordWriter::new(send);
    let written = async {
        writer.write(record).await?;
        writer.finish();
        Ok::<(), LinkError>(())
    };
    // A peer that takes no answer gets none.
    drop(tokio::time::timeout(service.config().reader_stall, written).await);
}

fn refusal(error: ReadError) -> WireError {
    match error {
        ReadError::Refused(error) => error,
        other => WireError::new(ErrorCode::Protocol, other.to_string()),
    }
}

fn stopped() -> WireError {
    WireError::new(ErrorCode::Draining, "this agent has stopped: ask another")
}

fn late() -> WireError {
    let message = format!("the request did not arrive within {:?}", timeouts::OPENING);
    WireError::new(ErrorCode::Protocol, message)
}
