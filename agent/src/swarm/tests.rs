#![allow(clippy::unwrap_used)]

use super::*;
use std::net::Ipv4Addr;
use std::time::Duration;
use unamesh_proto::wire::codec;

/// Accepts whatever has the structure; the real check is `node::verify`'s.
struct Structure;

impl Judge for Structure {
    fn judge(&self, message: &[u8]) -> Verdict {
        let decoded = codec::body::<SignedAdvert>(message)
            .ok()
            .and_then(|signed| {
                codec::body::<Advert>(&signed.payload)
                    .ok()
                    .map(|advert| (advert, signed))
            });
        decoded.map_or(Verdict::Reject, |pair| Verdict::Accept(Box::new(pair)))
    }
}

struct Node {
    key: NodeKey,
    swarm: Swarm,
    received: mpsc::Receiver<(Advert, SignedAdvert)>,
}

struct Lab {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Lab {
    fn new() -> Lab {
        Lab {
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    fn node(&self) -> Node {
        let key = NodeKey::generate();
        let judge = Arc::new(Structure);
        let (swarm, received) = Swarm::start(
            &key,
            &MeshId([7; 32]),
            0,
            judge,
            &self.tasks,
            self.stop.clone(),
        )
        .unwrap();
        Node {
            key,
            swarm,
            received,
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn members<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> BTreeMap<NodeId, Vec<SocketAddr>> {
    let addr = |n: &Node| SocketAddr::from((Ipv4Addr::LOCALHOST, n.swarm.port()));
    nodes
        .into_iter()
        .map(|n| (n.key.id(), vec![addr(n)]))
        .collect()
}

fn advert(node: &Node, seq: u64) -> Vec<u8> {
    let advert = crate::node::test_support::advert(node.key.id(), seq);
    let payload = codec::to_vec(&advert).unwrap()[codec::HEADER..].to_vec();
    let signed = SignedAdvert {
        certificate: vec![1; 400],
        payload,
        signature: [0; 64],
    };
    codec::to_vec(&signed).unwrap()[codec::HEADER..].to_vec()
}

async fn next(node: &mut Node) -> (NodeId, u64) {
    let received = tokio::time::timeout(Duration::from_secs(10), node.received.recv());
    let (advert, _) = received.await.unwrap().unwrap();
    (advert.node, advert.seq)
}

#[tokio::test]
async fn an_advert_reaches_all_members_and_nobody_else() {
    let lab = Lab::new();
    let (mut a, mut b, mut c, mut stranger) = (lab.node(), lab.node(), lab.node(), lab.node());
    let all = members([&a, &b, &c]);
    for node in [&a, &b, &c] {
        node.swarm.set_members(all.clone());
    }
    // The stranger knows everybody, but nobody knows it.
    stranger.swarm.set_members(members([&a, &b, &c, &stranger]));
    stranger.swarm.publish(advert(&stranger, 1));
    // Published before anybody is connected: goes out with the first link.
    a.swarm.publish(advert(&a, 1));
    assert_eq!(next(&mut b).await, (a.key.id(), 1));
    // To the third one perhaps over the second, perhaps only the next one.
    a.swarm.publish(advert(&a, 2));
    while next(&mut c).await != (a.key.id(), 2) {}
    b.swarm.publish(advert(&b, 9));
    while next(&mut a).await != (b.key.id(), 9) {}
    while next(&mut c).await != (b.key.id(), 9) {}
    assert!(stranger.received.try_recv().is_err());
    for node in [&mut a, &mut b, &mut c] {
        while let Ok((advert, _)) = node.received.try_recv() {
            assert_ne!(advert.node, stranger.key.id());
        }
    }
    lab.end().await;
}

#[tokio::test]
async fn a_removed_member_is_cut_off() {
    let lab = Lab::new();
    let (mut a, b) = (lab.node(), lab.node());
    let all = members([&a, &b]);
    a.swarm.set_members(all.clone());
    b.swarm.set_members(all.clone());
    b.swarm.publish(advert(&b, 1));
    assert_eq!(next(&mut a).await, (b.key.id(), 1));
    a.swarm.set_members(members([&a]));
    b.swarm.publish(advert(&b, 2));
    let late = tokio::time::timeout(Duration::from_millis(300), a.received.recv()).await;
    if let Ok(Some((advert, _))) = late {
        // It may have been under way when the door closed.
        assert_eq!(advert.seq, 2);
    }
    b.swarm.publish(advert(&b, 3));
    let cut = tokio::time::timeout(Duration::from_millis(300), a.received.recv()).await;
    assert!(cut.is_err(), "{cut:?}");
    lab.end().await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let lab = Lab::new();
    let a = lab.node();
    let key = NodeKey::generate();
    let port = a.swarm.port();
    let judge = Arc::new(Structure);
    let again = Swarm::start(
        &key,
        &MeshId([7; 32]),
        port,
        judge,
        &lab.tasks,
        lab.stop.clone(),
    );
    assert!(matches!(again, Err(SwarmError::Bind { port: p, .. }) if p == port));
    lab.end().await;
}

#[test]
fn links_stay_few_and_mutual() {
    let nodes: Vec<NodeId> = (0..200u8).map(|n| NodeId([n; 32])).collect();
    for node in &nodes {
        let near = neighbours(node, nodes.iter());
        assert!(near.len() <= 16, "{}", near.len());
        for other in near {
            assert!(neighbours(&other, nodes.iter()).contains(node));
        }
    }
    let home = &nodes[..10];
    assert_eq!(neighbours(&home[3], home.iter()).len(), 9);
}

#[test]
fn peer_ids_come_from_the_same_key() {
    let key = NodeKey::generate();
    let pair = identity::Keypair::ed25519_from_bytes(&mut *key.secret()).unwrap();
    assert_eq!(peer_id(&key.id()), Some(pair.public().to_peer_id()));
}
