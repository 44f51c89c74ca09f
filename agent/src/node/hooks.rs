//! What serving needs of the mesh around it.

use super::links::Met;
use super::presence::{Phase, Presence, Why};
use super::probe::Helper;
use super::table::{Input, TableHandle};
use super::verify::Verifier;
use crate::serve::Hooks;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::debug;
use unamesh_client::endpoint::canonical;
use unamesh_client::identity::Member;
use unamesh_client::transport::BoxFuture;
use unamesh_proto::NodeId;
use unamesh_proto::table::Snapshot;
use unamesh_proto::wire::{NodeState, ProbeFor, ProbedFor, SignedAdvert, WireError};

/// The node, as its service sees it.
pub struct NodeHooks {
    /// Where news goes.
    pub table: TableHandle,
    /// Who decides what to believe.
    pub verifier: Arc<Verifier>,
    /// This node's newest word.
    pub own: watch::Receiver<Arc<SignedAdvert>>,
    /// With whom words were exchanged.
    pub met: Met,
    /// Whether it takes requests.
    pub presence: Arc<Presence>,
    /// Who probes for others.
    pub helper: Arc<Helper>,
}

impl Hooks for NodeHooks {
    fn connected(&self, member: Member, connection: quinn::Connection) {
        // Nodes dial from the socket that they serve on, so that this is a candidate address
        // (behind a NAT perhaps the only one).
        if member.role.is_agent() {
            self.table.tell(Input::Hint(
                member.node,
                canonical(connection.remote_address()),
            ));
        }
    }

    fn advert(&self) -> Arc<SignedAdvert> {
        Arc::clone(&self.own.borrow())
    }

    fn received(&self, from: Member, signed: SignedAdvert, remote: SocketAddr) {
        let Ok(advert) = self.verifier.open(&signed) else {
            return;
        };
        if advert.node != from.node {
            debug!(from = %from.node.short(), of = %advert.node.short(), "a relayed advert in an exchange");
        }
        if advert.state != NodeState::Left {
            self.table.tell(Input::Hint(from.node, remote));
        }
        let direct = advert.node == from.node;
        if direct {
            self.verifier.spoke(&advert);
            // It gets our word as the answer.
            self.met.note(from.node, self.advert());
        }
        let (advert, signed) = (Box::new(advert), Box::new(signed));
        self.table.tell(Input::Advert {
            advert,
            signed,
            direct,
        });
    }

    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.table.snapshot()
    }

    fn state(&self) -> NodeState {
        self.presence.now().state
    }

    fn pause(&self, long: Duration) -> bool {
        // One that drains already has nothing to show.
        let up = self.presence.now() == Phase::UP;
        if up {
            self.presence.pause(Why::Drill, Some(long));
        }
        up
    }

    fn probe_for(
        &self,
        from: NodeId,
        question: ProbeFor,
    ) -> BoxFuture<Result<ProbedFor, WireError>> {
        let helper = Arc::clone(&self.helper);
        Box::pin(async move { helper.probe_for(from, question).await })
    }

    fn is_revoked(&self, _node: &NodeId) -> bool {
        // Revocation lists are part 4's; until then a certificate counts until it expires.
        false
    }
}
