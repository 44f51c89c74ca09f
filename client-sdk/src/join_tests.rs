use super::*;
use crate::test_ca::TestCa;
use crate::test_net::{loopback, soon};
use quinn::crypto::rustls::QuicServerConfig;
use tokio::task::JoinSet;
use unamesh_proto::Wall;

/// What the test's inviter does with a request that it could read.
type Answer = Box<dyn Fn(&JoinRequest) -> Result<JoinAccepted, WireError> + Send>;

/// An inviter that shows `shown` and its CA.
fn inviter(shown: &Credentials, answer: Answer) -> (SocketAddr, JoinSet<()>) {
    let chain = vec![
        shown.certificate.clone().into(),
        CertificateDer::from(shown.ca.clone()),
    ];
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, shown.key.to_rustls())
        .unwrap();
    tls.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    let tls = QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let endpoint = Endpoint::server(config, loopback()).unwrap();
    let addr = endpoint.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let Ok(connection) = incoming.await else {
                continue;
            };
            let Ok((send, recv)) = connection.accept_bi().await else {
                continue;
            };
            let request = RecordReader::new(recv)
                .expect::<JoinRequest>()
                .await
                .unwrap();
            let mut writer = RecordWriter::new(send);
            match answer(&request) {
                Ok(accepted) => writer.write(&accepted).await.unwrap(),
                Err(e) => writer.write(&e).await.unwrap(),
            }
            writer.finish();
            connection.closed().await;
        }
    });
    (addr, task)
}

fn invite(ca: &TestCa, addrs: &[SocketAddr]) -> Invite {
    Invite {
        mesh: MeshId::of_ca(&ca.der),
        addrs: addrs.to_vec(),
        secret: [5; 32],
        expires: Wall::from_millis(clock::wall().as_millis() + 60_000),
        role: Role::Agent,
    }
}

/// An answer by the book, for `certified` (or who asks).
fn accept(ca: &Arc<TestCa>, certified: Option<NodeKey>, role: Role) -> Answer {
    let ca = ca.clone();
    Box::new(move |request| {
        let message = signed(&request.secret, &request.public_key);
        let key = ed25519_dalek::VerifyingKey::from_bytes(&request.public_key.0).unwrap();
        let proof = ed25519_dalek::Signature::from_bytes(&request.proof);
        key.verify_strict(&message, &proof).unwrap();
        assert_eq!(request.secret, [5; 32]);
        let certificate = match &certified {
            Some(key) => ca.issue(key, Role::Agent, 0),
            None => ca.issue_public(request.public_key, Role::Agent),
        };
        Ok(JoinAccepted {
            certificate,
            ca: ca.der.clone(),
            role,
            mesh_name: "home".into(),
            seeds: vec!["127.0.0.1:1".into(), "rubbish".into()],
        })
    })
}

#[tokio::test]
async fn a_device_with_the_link_becomes_a_member() {
    let ca = Arc::new(TestCa::new());
    let (addr, _task) = inviter(&ca.member(Role::Admin), accept(&ca, None, Role::Agent));
    // The first address is a dead one, as when the inviter has several networks.
    let hole = std::net::UdpSocket::bind(loopback()).unwrap();
    let link = invite(&ca, &[hole.local_addr().unwrap(), addr]);
    let key = NodeKey::generate();
    let (credentials, seeds) = soon(join(&link, key.clone(), &"ü".repeat(500)))
        .await
        .unwrap();
    assert_eq!(credentials.node(), key.id());
    assert_eq!(
        (credentials.role, credentials.mesh),
        (Role::Agent, link.mesh)
    );
    assert_eq!(credentials.mesh_name, "home");
    assert_eq!(seeds, ["127.0.0.1:1"]);
}

#[tokio::test]
async fn only_an_admin_of_the_links_mesh_gets_the_secret() {
    let (ca, other) = (Arc::new(TestCa::new()), TestCa::new());
    let never: fn() -> Answer = || Box::new(|_| panic!("the secret was sent"));
    // Another mesh; no admin of ours; our CA's certificate shown over a stranger's.
    let mixed = Credentials {
        ca: ca.der.clone(),
        ..other.member(Role::Admin)
    };
    for shown in [other.member(Role::Admin), ca.member(Role::Agent), mixed] {
        let (addr, mut task) = inviter(&shown, never());
        let link = invite(&ca, &[addr]);
        let error = soon(join(&link, NodeKey::generate(), "d"))
            .await
            .unwrap_err();
        assert!(matches!(error, JoinError::Impostor(_)), "{error}");
        assert!(
            task.try_join_next().is_none(),
            "the inviter never saw a request"
        );
    }
}

#[tokio::test]
async fn a_refusal_arrives_with_its_reason() {
    let ca = Arc::new(TestCa::new());
    let no = |_: &JoinRequest| Err(WireError::new(ErrorCode::InviteRefused, "used up"));
    let (addr, _task) = inviter(&ca.member(Role::Admin), Box::new(no));
    let link = invite(&ca, &[addr]);
    let error = soon(join(&link, NodeKey::generate(), "d"))
        .await
        .unwrap_err();
    assert!(error.needs_new_invite());
    assert!(error.to_string().contains("used up"), "{error}");
}

#[tokio::test]
async fn an_answer_is_checked_like_any_members_papers() {
    let ca = Arc::new(TestCa::new());
    let somebody = NodeKey::generate();
    for answer in [
        accept(&ca, Some(somebody), Role::Agent),
        accept(&ca, None, Role::Admin),
        accept(&Arc::new(TestCa::new()), None, Role::Agent),
    ] {
        let (addr, _task) = inviter(&ca.member(Role::Admin), answer);
        let link = invite(&ca, &[addr]);
        let error = soon(join(&link, NodeKey::generate(), "d"))
            .await
            .unwrap_err();
        assert!(matches!(error, JoinError::Answer(_)), "{error}");
    }
}

#[tokio::test]
async fn silence_names_the_addresses_and_an_expired_link() {
    let ca = TestCa::new();
    let hole = std::net::UdpSocket::bind(loopback()).unwrap();
    let addr = hole.local_addr().unwrap();
    let mut link = invite(&ca, &[addr]);
    link.expires = Wall::from_millis(1);
    let error = soon(join(&link, NodeKey::generate(), "d"))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&addr.to_string()) && text.contains("expired"),
        "{text}"
    );
    assert!(error.needs_new_invite());
}
