//! Whether to believe an advert: structure and signature (`proto`), membership of the signer
//! (its certificate against our CA), and that both speak of the same node and role. Everything
//! that reaches the table passes here, whether it came over a connection or by gossip.

use super::findings::{Finding, Findings};
use super::life::Life;
use crate::swarm::{Judge, Verdict};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, watch};
use tracing::debug;
use unamesh_client::clock;
use unamesh_client::identity::{MemberError, verify_member};
use unamesh_proto::Wall;
use unamesh_proto::advert::{self, AdvertError};
use unamesh_proto::table::Snapshot;
use unamesh_proto::timeouts::ADVERT_WINDOW;
use unamesh_proto::wire::codec;
use unamesh_proto::wire::{Advert, NodeState, Record, SignedAdvert};

/// Reports of twins that may wait.
const TWINS: usize = 4;
/// Milliseconds that two lives of one node may overlap without being twins.
const OVERLAP_MS: u64 = 1_000;

/// Why an advert was not believed. Nothing of it was used.
#[derive(Debug, thiserror::Error)]
pub enum Disbelief {
    /// Malformed, out of bounds or not signed by its node.
    #[error(transparent)]
    Advert(#[from] AdvertError),
    /// The signer is no member of this mesh now.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// The certificate is of another node, or of another role than the advert says.
    #[error("the certificate does not belong to the advert's node and role")]
    Other,
    /// Clients neither serve nor gossip.
    #[error("a client has no advert")]
    Client,
}

/// Checks adverts against one mesh.
pub struct Verifier {
    ca: Vec<u8>,
    life: Arc<Life>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    findings: Findings,
    disbelieved: AtomicU64,
    twins: mpsc::Sender<Twins>,
}

/// Two agents that run with one key: what each said last.
#[derive(Debug)]
pub struct Twins {
    /// Of the one that started first, and that the mesh no longer listens to.
    pub older: Advert,
    /// Of the other.
    pub newer: Arc<SignedAdvert>,
}

impl Verifier {
    /// A verifier of the mesh of `ca` (DER), run by the node of `life`; and the twins that it
    /// finds among the others.
    pub fn new(
        ca: Vec<u8>,
        life: Arc<Life>,
        snapshot: watch::Receiver<Arc<Snapshot>>,
        findings: Findings,
    ) -> (Verifier, mpsc::Receiver<Twins>) {
        let (twins, found) = mpsc::channel(TWINS);
        let disbelieved = AtomicU64::new(0);
        (
            Verifier {
                ca,
                life,
                snapshot,
                findings,
                disbelieved,
                twins,
            },
            found,
        )
    }

    /// Opens `signed`.
    ///
    /// # Errors
    /// It is not to be believed; it was counted.
    pub fn open(&self, signed: &SignedAdvert) -> Result<Advert, Disbelief> {
        if let Some(advert) = self.known(signed) {
            return Ok(advert);
        }
        let opened = self.try_open(signed);
        if let Err(reason) = &opened {
            self.disbelieved.fetch_add(1, Ordering::Relaxed);
            debug!(%reason, "an advert was dropped");
        }
        opened
    }

    /// What comes both directly and by gossip is checked once: to the byte it is what stands in
    /// the table.
    fn known(&self, signed: &SignedAdvert) -> Option<Advert> {
        let snapshot = self.snapshot.borrow();
        let same = snapshot
            .peers
            .iter()
            .find(|p| p.signed.signature == signed.signature)?;
        (*same.signed == *signed).then(|| Advert::clone(&same.advert))
    }

    /// Adverts dropped so far.
    pub fn disbelieved(&self) -> u64 {
        self.disbelieved.load(Ordering::Relaxed)
    }

    /// Somebody else proved to hold our key.
    pub fn raise_twin(&self, evidence: &str) {
        let node = self.life.node;
        self.findings.raise(
            Finding::TwinKey,
            format!(
                "another agent runs with the same key as this node ({node}): {evidence}. Requests \
                 reach one or the other by chance. Stop one of them, delete node.key and \
                 node.crt in its state directory, and let it join again (unamesh join)"
            ),
        );
    }

    fn try_open(&self, signed: &SignedAdvert) -> Result<Advert, Disbelief> {
        let advert = advert::open(signed)?;
        let member = verify_member(&signed.certificate, &self.ca, clock::wall())?;
        if member.node != advert.node || member.role != advert.role {
            return Err(Disbelief::Other);
        }
        if !member.role.is_agent() {
            return Err(Disbelief::Client);
        }
        if advert.node == self.life.node {
            self.look_for_own_twin(&advert);
        } else {
            self.look_for_twins(&advert, false);
        }
        Ok(advert)
    }

    /// Our own word comes back all the time. It is a twin's if it is of a later start than
    /// ours, or of an earlier one and was signed after ours began. (An equal epoch with a
    /// number that we never used is what the table finds.)
    fn look_for_own_twin(&self, advert: &Advert) {
        let epoch = self.life.epoch();
        let later = advert.epoch > epoch;
        let survived = advert.epoch < epoch
            && advert.state != NodeState::Left
            && advert.wall_ms > self.life.since().as_millis();
        if later || survived {
            let addrs: Vec<_> = advert
                .addrs
                .iter()
                .map(|a| a.socket().to_string())
                .collect();
            let named = format!("one named {:?} at {}", advert.name, addrs.join(", "));
            self.raise_twin(&named);
            self.life.claimed(advert.epoch);
        }
    }
}

impl Verifier {
    /// `advert` came over its node's own connection just now. If that node has started anew in
    /// the meantime as far as the mesh knows, two agents run with one key, and neither hears
    /// of the other by itself: it falls to us to tell.
    pub fn spoke(&self, advert: &Advert) {
        self.look_for_twins(advert, true);
    }

    /// `live`: it surely spoke just now. Else an old word that goes round may be older than
    /// the new start (an epoch is the wall clock of a start), and a stopping agent has some
    /// time to go.
    fn look_for_twins(&self, advert: &Advert, live: bool) {
        let Some(known) = self.snapshot.borrow().get(&advert.node).cloned() else {
            return;
        };
        let overlap = advert.wall_ms.saturating_sub(known.advert.epoch);
        let both = advert.epoch < known.advert.epoch
            && advert.state == NodeState::Up
            && (live || overlap > OVERLAP_MS);
        if both && advert.node != self.life.node {
            let newer = Arc::clone(&known.signed);
            let older = advert.clone();
            // Full: several reports wait already, and this one comes again.
            let _ = self.twins.try_send(Twins { older, newer });
        }
    }
}

impl Judge for Verifier {
    fn judge(&self, message: &[u8]) -> Verdict {
        let Some(signed) = decode(message) else {
            return Verdict::Reject;
        };
        match self.open(&signed) {
            Err(_) => Verdict::Reject,
            Ok(advert) if advert.node == self.life.node => Verdict::Ignore,
            // No table takes it: it goes no further. Nor is it held against the sender, whose
            // clock may be right where ours is wrong.
            Ok(advert) if outside_window(&advert) => Verdict::Ignore,
            Ok(advert) => {
                let known = self
                    .snapshot
                    .borrow()
                    .get(&advert.node)
                    .map(|p| mark(&p.advert));
                if known.is_some_and(|known| known > mark(&advert)) {
                    return Verdict::Ignore;
                }
                Verdict::Accept(Box::new((advert, signed)))
            }
        }
    }
}

/// The gossip message of an advert: its record, header included.
pub fn decode(message: &[u8]) -> Option<SignedAdvert> {
    match codec::split(message) {
        Ok(Some((SignedAdvert::KIND, body, []))) => codec::body(body).ok(),
        _ => None,
    }
}

fn outside_window(advert: &Advert) -> bool {
    clock::wall().abs_diff(Wall::from_millis(advert.wall_ms)) > ADVERT_WINDOW
}

fn mark(advert: &Advert) -> (u64, u64) {
    (advert.epoch, advert.seq)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::test_support::{Mesh, advert};
    use super::*;
    use unamesh_proto::NodeId;
    use unamesh_proto::wire::Role;

    fn verifier(mesh: &Mesh, me: NodeId) -> (Verifier, Findings) {
        let life = Life::new(me, 100, Wall::from_millis(1_000));
        let (_, snapshot) = watch::channel(Arc::default());
        let findings = Findings::default();
        (
            Verifier::new(mesh.ca(), life, snapshot, findings.clone()).0,
            findings,
        )
    }

    #[test]
    fn believes_members_alone() {
        let (mesh, other) = (Mesh::new(), Mesh::new());
        let (node, stranger) = (mesh.member(Role::Agent), other.member(Role::Agent));
        let (verifier, _) = verifier(&mesh, NodeId([9; 32]));
        let good = node.sign(advert(node.node(), 1));
        assert_eq!(verifier.open(&good).unwrap().node, node.node());
        let foreign = stranger.sign(advert(stranger.node(), 1));
        assert!(matches!(
            verifier.open(&foreign),
            Err(Disbelief::Member(MemberError::OtherMesh))
        ));
        // A member that signs for itself under another member's certificate.
        let second = mesh.member(Role::Agent);
        let mut borrowed = node.sign(advert(node.node(), 2));
        borrowed.certificate.clone_from(&second.0.certificate);
        assert!(matches!(verifier.open(&borrowed), Err(Disbelief::Other)));
        let mut forged = node.sign(advert(node.node(), 3));
        forged.payload[20] ^= 1;
        assert!(verifier.open(&forged).is_err());
        assert_eq!(verifier.disbelieved(), 3);
    }

    #[test]
    fn roles_are_the_certificates() {
        let mesh = Mesh::new();
        let (agent, client) = (mesh.member(Role::Agent), mesh.member(Role::Client));
        let (verifier, _) = verifier(&mesh, NodeId([9; 32]));
        let mut promoted = advert(agent.node(), 1);
        promoted.role = Role::Admin;
        assert!(matches!(
            verifier.open(&agent.sign(promoted)),
            Err(Disbelief::Other)
        ));
        let mut word = advert(client.node(), 1);
        word.role = Role::Client;
        assert!(matches!(
            verifier.open(&client.sign(word)),
            Err(Disbelief::Client)
        ));
    }

    #[test]
    fn tells_echoes_from_twins() {
        let mesh = Mesh::new();
        let me = mesh.member(Role::Agent);
        let word = |epoch, wall_ms| {
            let mut word = advert(me.node(), 1);
            (word.epoch, word.wall_ms) = (epoch, wall_ms);
            me.sign(word)
        };
        for (epoch, wall_ms, twin) in [
            (100, 2_000, false),
            (99, 900, false),
            (99, 1_001, true),
            (101, 0, true),
        ] {
            let (verifier, findings) = verifier(&mesh, me.node());
            let bytes = codec::to_vec(&word(epoch, wall_ms)).unwrap();
            assert!(matches!(verifier.judge(&bytes), Verdict::Ignore));
            assert_eq!(
                !findings.list().is_empty(),
                twin,
                "epoch {epoch} at {wall_ms}"
            );
        }
    }

    #[test]
    fn what_no_table_takes_is_not_passed_on() {
        let mesh = Mesh::new();
        let node = mesh.member(Role::Agent);
        let (verifier, _) = verifier(&mesh, NodeId([9; 32]));
        let judge = |wall_ms: u64| {
            let mut word = advert(node.node(), 1);
            word.wall_ms = wall_ms;
            verifier.judge(&codec::to_vec(&node.sign(word)).unwrap())
        };
        let now = clock::wall().as_millis();
        let off = u64::try_from(ADVERT_WINDOW.as_millis()).unwrap() + 60_000;
        assert!(matches!(judge(now), Verdict::Accept(_)));
        assert!(matches!(judge(now - off), Verdict::Ignore));
        assert!(matches!(judge(now + off), Verdict::Ignore));
    }

    #[test]
    fn rubbish_is_rejected() {
        let mesh = Mesh::new();
        let (verifier, _) = verifier(&mesh, NodeId([9; 32]));
        for bytes in [&b""[..], b"rubbish", &[0xff; 70_000]] {
            assert!(matches!(verifier.judge(bytes), Verdict::Reject));
        }
    }
}
