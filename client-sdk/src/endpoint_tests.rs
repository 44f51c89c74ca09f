use super::*;
use crate::framing;
use crate::test_ca::{DAY, TestCa};
use crate::test_net::{bind, loopback, pair, soon};
use unamesh_proto::wire::{Probe, ProbeReply, Role, StreamKind};

/// Dials `server` as `client` under `name`, and waits until the server has had its say: a
/// refused client learns of it only after its own half of the handshake.
async fn meet(client: &Credentials, server: &Credentials, name: &str) -> Result<(), LinkError> {
    let (dialer, acceptor) = (bind(client), bind(server));
    let addr = acceptor.local_addr().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        while let Some(incoming) = acceptor.accept().await {
            if let Ok(connection) = incoming.await {
                connection.close(CLOSE_NORMAL, b"hello");
                connection.closed().await;
            }
        }
    });
    let connected = soon(dialer.connect(addr, name).unwrap()).await;
    let connection = connected.map_err(|e| link_error(&e))?;
    match link_error(&soon(connection.closed()).await) {
        LinkError::Lost(text) if text.contains("hello") => Ok(()),
        other => Err(other),
    }
}

fn refusal(result: Result<(), LinkError>) -> WireError {
    match result {
        Err(LinkError::Refused(e)) => e,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn members_meet_and_know_each_other() {
    let ca = TestCa::new();
    let (a, b) = (ca.member(Role::Client), ca.member(Role::Agent));
    let (dialer, acceptor) = (bind(&a), bind(&b));
    let addr = acceptor.local_addr().unwrap();
    let dial = async {
        dialer
            .connect(addr, &b.node().dns_name())
            .unwrap()
            .await
            .unwrap()
    };
    let accept = async { acceptor.accept().await.unwrap().await.unwrap() };
    let (out, into) = soon(async { tokio::join!(dial, accept) }).await;
    let expect = |c: &Credentials| {
        Ok(Member {
            node: c.node(),
            role: c.role,
        })
    };
    assert_eq!(member_of(&out, &ca.der), expect(&b));
    assert_eq!(member_of(&into, &ca.der), expect(&a));
}

#[tokio::test]
async fn another_mesh_is_refused_by_either_side() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let (us, them) = (ours.member(Role::Agent), theirs.member(Role::Agent));
    let error = refusal(meet(&us, &them, &them.node().dns_name()).await);
    assert_eq!(error.code, ErrorCode::Forbidden);
    assert!(error.message.contains("two meshes"), "{error}");
    // A client that trusts the server's mesh, but holds papers of another.
    let spy = Credentials {
        ca: theirs.der.clone(),
        ..us
    };
    let error = refusal(meet(&spy, &them, &them.node().dns_name()).await);
    assert_eq!(error.code, ErrorCode::Forbidden);
    assert!(error.message.contains("our certificate"), "{error}");
}

#[tokio::test]
async fn a_member_cannot_stand_for_another() {
    let ca = TestCa::new();
    let (a, b, c) = (
        ca.member(Role::Agent),
        ca.member(Role::Agent),
        ca.member(Role::Agent),
    );
    let error = refusal(meet(&a, &b, &c.node().dns_name()).await);
    assert_eq!(error.code, ErrorCode::Forbidden);
    assert!(error.message.contains("wrong node"), "{error}");
}

#[tokio::test]
async fn dates_are_checked_with_a_day_of_tolerance() {
    let ca = TestCa::new();
    let good = ca.member(Role::Agent);
    let issued = |shift: i64| {
        let mut other = ca.member(Role::Agent);
        other.certificate = ca.issue(&other.key, Role::Agent, shift);
        other
    };
    for shift in [-DAY, DAY] {
        let other = issued(shift);
        let met = meet(&other, &good, &good.node().dns_name()).await;
        assert!(met.is_ok(), "issuer's clock off by {shift} s: {met:?}");
    }
    for shift in [-91 * DAY, 2 * DAY] {
        let other = issued(shift);
        for (client, server) in [(&other, &good), (&good, &other)] {
            let error = refusal(meet(client, server, &server.node().dns_name()).await);
            assert_eq!(error.code, ErrorCode::Forbidden);
            assert!(error.message.contains("check both clocks"), "{error}");
        }
    }
}

#[tokio::test]
async fn another_protocol_version_is_refused_by_name() {
    let ca = TestCa::new();
    let (a, b) = (ca.member(Role::Agent), ca.member(Role::Agent));
    let (dialer, acceptor) = (bind(&a), bind(&b));
    let tls = tls::client_config_with(&a, vec![b"unamesh/0".to_vec()]).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let addr = acceptor.local_addr().unwrap();
    let name = b.node().dns_name();
    let dial = async { dialer.connect_with(config, addr, &name).unwrap().await };
    let accept = async { acceptor.accept().await.unwrap().await };
    let (out, into) = soon(async { tokio::join!(dial, accept) }).await;
    for error in [out.unwrap_err(), into.unwrap_err()] {
        let error = refusal(Err(link_error(&error)));
        assert_eq!(error.code, ErrorCode::Unsupported);
        assert!(error.message.contains("update the older"), "{error}");
    }
}

#[tokio::test]
async fn a_taken_port_says_what_to_do() {
    let ca = TestCa::new();
    let first = bind(&ca.member(Role::Agent));
    let taken = first.local_addr().unwrap();
    let error = endpoint_error(bind_again(&ca, taken));
    assert!(matches!(error, EndpointError::PortTaken { .. }));
    assert!(error.to_string().contains("[mesh] listen"), "{error}");
    // An address that is not ours (TEST-NET-1, RFC 5737).
    let foreign = endpoint_error(bind_again(&ca, "192.0.2.1:0".parse().unwrap()));
    assert!(matches!(foreign, EndpointError::Socket { .. }));
}

fn bind_again(ca: &TestCa, addr: SocketAddr) -> Result<Endpoint, EndpointError> {
    super::bind(&ca.member(Role::Agent), addr)
}

fn endpoint_error(result: Result<Endpoint, EndpointError>) -> EndpointError {
    result.map(|_| ()).unwrap_err()
}

#[tokio::test]
async fn one_socket_serves_both_families() {
    let ca = TestCa::new();
    let (a, b) = (ca.member(Role::Agent), ca.member(Role::Agent));
    let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0));
    let (dialer, acceptor) = (super::bind(&a, any).unwrap(), super::bind(&b, any).unwrap());
    let port = acceptor.local_addr().unwrap().port();
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let dial = async {
        dialer
            .connect(v4, &b.node().dns_name())
            .unwrap()
            .await
            .unwrap()
    };
    let accept = async { acceptor.accept().await.unwrap().await.unwrap() };
    let (out, into) = soon(async { tokio::join!(dial, accept) }).await;
    assert_eq!(canonical(out.remote_address()), v4);
    assert_eq!(canonical(into.remote_address()).ip(), Ipv4Addr::LOCALHOST);
    assert_eq!(canonical(loopback()), loopback());
}

#[tokio::test]
async fn the_peers_reason_for_closing_is_kept() {
    let (out, into, _endpoints) = pair().await;
    let probe = Probe {
        nonce: 1,
        wall_ms: 0,
    };
    let (_writer, mut reader) = framing::open(&out, StreamKind::Probe, &probe)
        .await
        .unwrap();
    into.close(close_code(ErrorCode::Draining), b"going home");
    let error = soon(reader.expect::<ProbeReply>()).await.unwrap_err();
    let error = refusal(Err(error.into()));
    assert_eq!(
        (error.code, error.message.as_str()),
        (ErrorCode::Draining, "going home")
    );
}
