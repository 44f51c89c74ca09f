use super::*;
use crate::test_net::{accepted, pair, progress, request, soon, token};
use unamesh_proto::limits::MAX_MEDIUM_RECORD;
use unamesh_proto::wire::{Accepted, GenerateRequest, Probe, Progress, Token};

/// A stream into which the test writes bytes, and its reader at the other side.
async fn stream() -> (SendStream, RecvStream, RecordReader, impl Sized) {
    let (out, into, endpoints) = pair().await;
    let (mut send, recv) = out.open_bi().await.unwrap();
    // A stream exists for the peer from its first byte on: this one is skipped below.
    send.write_all(&unknown(0)).await.unwrap();
    let (_, incoming) = soon(into.accept_bi()).await.unwrap();
    (
        send,
        recv,
        RecordReader::new(incoming),
        (out, into, endpoints),
    )
}

/// A record of a later version's kind.
fn unknown(len: usize) -> Vec<u8> {
    let mut bytes = 0x7fffu16.to_le_bytes().to_vec();
    bytes.extend_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
    bytes.resize(HEADER + len, 0xab);
    bytes
}

fn header(kind: u16, len: usize) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
    bytes
}

async fn next<R: Record>(reader: &mut RecordReader) -> R {
    let (kind, body) = soon(reader.next()).await.unwrap().unwrap();
    assert_eq!(kind, R::KIND);
    codec::body(&body).unwrap()
}

#[tokio::test]
async fn records_arrive_whole_however_they_are_cut() {
    let (mut send, _recv, mut reader, _keep) = stream().await;
    let mut big = request("m");
    big.input = "x".repeat(300_000);
    let mut bytes = codec::to_vec(&token(1)).unwrap();
    bytes.extend(unknown(70_000));
    codec::encode(&big, &mut bytes).unwrap();
    bytes.extend(unknown(0));
    codec::encode(&progress(), &mut bytes).unwrap();
    let write = async {
        // One byte at a time through the headers, then in odd pieces.
        for byte in &bytes[..40] {
            send.write_all(std::slice::from_ref(byte)).await.unwrap();
            tokio::task::yield_now().await;
        }
        for piece in bytes[40..].chunks(7777) {
            send.write_all(piece).await.unwrap();
        }
        send.finish().unwrap();
    };
    let read = async {
        assert_eq!(next::<Token>(&mut reader).await, token(1));
        assert_eq!(next::<GenerateRequest>(&mut reader).await, big);
        assert_eq!(next::<Progress>(&mut reader).await, progress());
        assert!(soon(reader.next()).await.unwrap().is_none());
        assert!(
            soon(reader.next()).await.unwrap().is_none(),
            "the end is lasting"
        );
    };
    tokio::join!(write, read);
}

#[tokio::test]
async fn a_record_larger_than_its_class_stops_the_sender_unbuffered() {
    for (kind, len) in [
        (Accepted::KIND, MAX_SMALL_RECORD + 1),
        (Token::KIND, MAX_MEDIUM_RECORD + 1),
        (GenerateRequest::KIND, MAX_RECORD + 1),
        (0x7fff, MAX_RECORD + 1),
    ] {
        let (mut send, _recv, mut reader, _keep) = stream().await;
        send.write_all(&header(kind, len)).await.unwrap();
        let error = soon(reader.next()).await.unwrap_err();
        assert!(
            matches!(&error, ReadError::Decode(DecodeError::TooLarge { len: l, .. }) if *l == len),
            "{error}"
        );
        assert_eq!(reader.buffer.capacity(), 0, "nothing is kept");
        let stopped = soon(send.stopped()).await.unwrap();
        assert_eq!(stopped, Some(close_code(ErrorCode::Protocol)));
        assert!(soon(reader.next()).await.is_err(), "the error is lasting");
    }
}

#[tokio::test]
async fn a_claimed_length_is_not_believed_with_memory() {
    let (mut send, _recv, mut reader, _keep) = stream().await;
    let mut bytes = header(GenerateRequest::KIND, MAX_RECORD);
    bytes.resize(HEADER + 10_000, 0);
    send.write_all(&bytes).await.unwrap();
    // Everything that was sent arrives, and then nothing more.
    let waited = tokio::time::timeout(std::time::Duration::from_millis(200), reader.next()).await;
    assert!(waited.is_err());
    assert!(
        reader.buffer.capacity() < 64 * 1024,
        "{}",
        reader.buffer.capacity()
    );
}

#[tokio::test]
async fn unknown_records_are_skipped_unbuffered() {
    let (mut send, _recv, mut reader, _keep) = stream().await;
    let write = async {
        send.write_all(&unknown(2_000_000)).await.unwrap();
        send.write_all(&codec::to_vec(&token(0)).unwrap())
            .await
            .unwrap();
    };
    let (_, read) = tokio::join!(write, next::<Token>(&mut reader));
    assert_eq!(read, token(0));
    assert!(
        reader.buffer.capacity() < 64 * 1024,
        "{}",
        reader.buffer.capacity()
    );
}

#[tokio::test]
async fn the_token_path_reuses_its_buffer() {
    let (mut send, _recv, mut reader, _keep) = stream().await;
    let record = codec::to_vec(&token(0)).unwrap();
    let mut places = std::collections::HashSet::new();
    for _ in 0..500 {
        send.write_all(&record).await.unwrap();
        let (_, body) = soon(reader.next()).await.unwrap().unwrap();
        places.insert(body.as_ptr() as usize / (2 * READ_ROOM));
    }
    assert!(places.len() <= 6, "bodies were in {} places", places.len());
}

#[tokio::test]
async fn an_end_within_a_record_is_an_error() {
    let (mut send, _recv, mut reader, _keep) = stream().await;
    let record = codec::to_vec(&token(0)).unwrap();
    send.write_all(&record[..record.len() - 1]).await.unwrap();
    send.finish().unwrap();
    assert!(matches!(
        soon(reader.next()).await,
        Err(ReadError::Truncated)
    ));
}

#[tokio::test]
async fn expect_takes_the_record_a_refusal_or_nothing() {
    let (mut send, _recv, mut reader, _keep) = stream().await;
    send.write_all(&codec::to_vec(&accepted()).unwrap())
        .await
        .unwrap();
    assert_eq!(soon(reader.expect::<Accepted>()).await.unwrap(), accepted());
    let no = WireError::new(ErrorCode::Busy, "full");
    send.write_all(&codec::to_vec(&no).unwrap()).await.unwrap();
    let refused = soon(reader.expect::<Accepted>()).await;
    assert!(matches!(refused, Err(ReadError::Refused(e)) if e == no));
    // A large record where a small one belongs is refused by its header alone.
    send.write_all(&header(GenerateRequest::KIND, MAX_RECORD))
        .await
        .unwrap();
    let wrong = soon(reader.expect::<Probe>()).await;
    assert!(matches!(
        wrong,
        Err(ReadError::Decode(DecodeError::Unexpected { .. }))
    ));
}

#[tokio::test]
async fn rubbish_is_a_protocol_error() {
    let (mut send, _recv, mut reader, _keep) = stream().await;
    let mut bytes = header(Accepted::KIND, 3);
    bytes.extend_from_slice(&[1, 2, 3]);
    send.write_all(&bytes).await.unwrap();
    let error = soon(reader.expect::<Accepted>()).await.unwrap_err();
    assert!(matches!(
        error.into(),
        LinkError::Protocol(DecodeError::Malformed { .. })
    ));
    assert_eq!(
        soon(send.stopped()).await.unwrap(),
        Some(close_code(ErrorCode::Protocol))
    );
}

#[tokio::test]
async fn cancelling_reaches_the_other_side() {
    let (out, into, _endpoints) = pair().await;
    let probe = Probe {
        nonce: 1,
        wall_ms: 0,
    };
    let (mut writer, mut reader) = open(&out, StreamKind::Probe, &probe).await.unwrap();
    let (send, recv) = soon(into.accept_bi()).await.unwrap();
    let (there, mut here) = (RecordWriter::new(send), RecordReader::new(recv));
    let header: StreamHeader = soon(here.expect()).await.unwrap();
    assert_eq!(
        header,
        StreamHeader {
            version: VERSION,
            kind: StreamKind::Probe
        }
    );
    assert_eq!(soon(here.expect::<Probe>()).await.unwrap(), probe);
    writer.cancel();
    reader.stop(CLOSE_NORMAL);
    soon(there.stopped()).await;
    assert!(soon(here.ended()).await.is_err());
}

#[tokio::test]
async fn nothing_is_buffered_where_nothing_more_may_come() {
    let (mut send, _recv, mut reader, _keep) = stream().await;
    // A later version's records are skipped; a known one is refused by its header alone.
    send.write_all(&unknown(70_000)).await.unwrap();
    send.write_all(&header(GenerateRequest::KIND, MAX_RECORD))
        .await
        .unwrap();
    let error = soon(reader.ended()).await.unwrap_err();
    let kind = GenerateRequest::KIND;
    assert!(
        matches!(error, ReadError::Decode(DecodeError::Unexpected { kind: k, .. }) if k == kind),
        "{error}"
    );

    let (mut send, _recv, mut reader, _keep) = stream().await;
    send.finish().unwrap();
    soon(reader.ended()).await.unwrap();
}

#[tokio::test]
async fn a_reset_with_a_code_says_why() {
    let (mut send, _recv, mut reader, _keep) = stream().await;
    send.reset(close_code(ErrorCode::Limit)).unwrap();
    let error = soon(reader.next()).await.unwrap_err();
    assert!(matches!(error.into(), LinkError::Refused(e) if e.code == ErrorCode::Limit));
}
