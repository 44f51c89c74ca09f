//! Open invitations: what a secret is worth right now.
//!
//! A secret is 32 random bytes that only the link carries. Here its SHA-256 is kept, in
//! memory alone: a restart closes every invitation, and a core dump gives none away. An
//! invitation ends by time or by use; a device whose reply got lost may ask again with the
//! same key without costing another use.

use rand::TryRngCore;
use sha2::{Digest, Sha256};
use std::time::Duration;
use subtle::ConstantTimeEq;
use unamesh_proto::limits::{MAX_INVITE_USES, MAX_INVITES};
use unamesh_proto::timeouts::{INVITE_MAX, JOIN};
use unamesh_proto::wire::Role;
use unamesh_proto::{Mono, NodeId};

/// Why no invitation was opened. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// [`MAX_INVITES`] are open.
    #[error("{MAX_INVITES} invitations are open already; wait until one expires")]
    TooMany,
    /// Validity out of range.
    #[error("an invitation is valid for 1 second to 24 hours")]
    Validity,
    /// Uses out of range.
    #[error("an invitation admits 1 to {MAX_INVITE_USES} devices")]
    Uses,
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
}

/// The secret opens nothing: wrong, used up or expired. Which of these is not told, since
/// only somebody who guesses would want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the invitation is wrong, used up or expired: ask for a new one (unamesh invite)")]
pub struct Refused;

struct Entry {
    digest: [u8; 32],
    role: Role,
    expires: Mono,
    uses: u32,
    admitted: Vec<NodeId>,
}

/// The invitations of this node.
#[derive(Default)]
pub struct Invites {
    entries: Vec<Entry>,
}

impl Invites {
    /// Opens an invitation and returns its secret, which exists nowhere else.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        &mut self,
        role: Role,
        valid_for: Duration,
        uses: u32,
        now: Mono,
    ) -> Result<[u8; 32], OpenError> {
        self.expire(now);
        if valid_for < Duration::from_secs(1) || valid_for > INVITE_MAX {
            return Err(OpenError::Validity);
        }
        if uses == 0 || uses > MAX_INVITE_USES {
            return Err(OpenError::Uses);
        }
        if self.entries.len() >= MAX_INVITES {
            return Err(OpenError::TooMany);
        }
        let mut secret = [0; 32];
        rand::rngs::OsRng
            .try_fill_bytes(&mut secret)
            .map_err(|_| OpenError::Random)?;
        let digest = Sha256::digest(secret).into();
        let admitted = Vec::new();
        self.entries.push(Entry {
            digest,
            role,
            expires: now + valid_for,
            uses,
            admitted,
        });
        Ok(secret)
    }

    /// Takes back the invitation that was opened last: nobody has its secret.
    pub(super) fn take_back(&mut self) {
        self.entries.pop();
    }

    /// Spends one use of the invitation of `secret` on `node` and tells the role it gives.
    ///
    /// # Errors
    /// It opens nothing. All entries are compared, in constant time.
    pub fn redeem(&mut self, secret: &[u8; 32], node: NodeId, now: Mono) -> Result<Role, Refused> {
        self.expire(now);
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let mut found = None;
        for entry in &mut self.entries {
            if bool::from(entry.digest.ct_eq(&digest)) {
                found = Some(entry);
            }
        }
        let entry = found.ok_or(Refused)?;
        if !entry.admitted.contains(&node) {
            entry.uses = entry.uses.checked_sub(1).ok_or(Refused)?;
            entry.admitted.push(node);
            if entry.uses == 0 {
                entry.expires = entry.expires.min(now + 2 * JOIN);
            }
        }
        Ok(entry.role)
    }

    /// When the next one expires; `None` if none is open.
    pub fn next_expiry(&self) -> Option<Mono> {
        self.entries.iter().map(|e| e.expires).min()
    }

    /// Forgets what has expired and tells whether any is left. A used-up invitation stays
    /// for two times [`JOIN`], for a device that lost its reply.
    pub fn any_open(&mut self, now: Mono) -> bool {
        self.expire(now);
        !self.entries.is_empty()
    }

    fn expire(&mut self, now: Mono) {
        self.entries.retain(|e| e.expires > now);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn node(n: u8) -> NodeId {
        NodeId([n; 32])
    }

    #[test]
    fn admits_as_often_as_agreed() {
        let (mut invites, now) = (Invites::default(), Mono::ZERO);
        let secret = invites.open(Role::Client, MINUTE, 2, now).unwrap();
        assert_eq!(invites.redeem(&secret, node(1), now), Ok(Role::Client));
        assert_eq!(invites.redeem(&secret, node(2), now), Ok(Role::Client));
        assert_eq!(invites.redeem(&secret, node(3), now), Err(Refused));
        assert_eq!(
            invites.redeem(&secret, node(1), now),
            Ok(Role::Client),
            "lost its reply"
        );
        assert!(
            !invites.any_open(now + 2 * JOIN),
            "used up: closes long before its time"
        );
    }

    #[test]
    fn what_is_taken_back_was_never_open() {
        let (mut invites, now) = (Invites::default(), Mono::ZERO);
        let kept = invites.open(Role::Agent, MINUTE, 1, now).unwrap();
        let gone = invites.open(Role::Agent, MINUTE, 1, now).unwrap();
        invites.take_back();
        assert_eq!(invites.redeem(&gone, node(1), now), Err(Refused));
        assert_eq!(invites.redeem(&kept, node(1), now), Ok(Role::Agent));
    }

    #[test]
    fn wrong_and_expired_secrets_open_nothing() {
        let (mut invites, now) = (Invites::default(), Mono::ZERO);
        let secret = invites.open(Role::Agent, MINUTE, 1, now).unwrap();
        assert_eq!(invites.redeem(&[0; 32], node(1), now), Err(Refused));
        assert_eq!(invites.redeem(&secret, node(1), now + MINUTE), Err(Refused));
        assert!(!invites.any_open(now + MINUTE));
        assert_eq!(invites.next_expiry(), None);
    }

    #[test]
    fn bounds_hold() {
        let (mut invites, now) = (Invites::default(), Mono::ZERO);
        for (valid, uses, error) in [
            (Duration::ZERO, 1, OpenError::Validity),
            (INVITE_MAX + MINUTE, 1, OpenError::Validity),
            (MINUTE, 0, OpenError::Uses),
            (MINUTE, MAX_INVITE_USES + 1, OpenError::Uses),
        ] {
            assert_eq!(invites.open(Role::Agent, valid, uses, now), Err(error));
        }
        for _ in 0..MAX_INVITES {
            invites.open(Role::Agent, MINUTE, 1, now).unwrap();
        }
        assert_eq!(
            invites.open(Role::Agent, MINUTE, 1, now),
            Err(OpenError::TooMany)
        );
        invites.open(Role::Agent, MINUTE, 1, now + MINUTE).unwrap();
    }
}
