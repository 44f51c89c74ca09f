//! The mesh's certificate authority, and how new devices become members.
//!
//! The node that ran `unamesh init` holds the CA ([`Ca`]) beside its own key. Everybody else
//! holds a certificate from it. A device joins in four steps: the owner runs `unamesh
//! invite` ([`Inviter`] opens an [`Invites`] entry and the joining endpoint), carries the
//! link to the device, the device sends the link's secret and the public half of its new key,
//! and gets a certificate back. Its private key never leaves it. The link pins the CA by its
//! SHA-256, so that neither side trusts the network in between.

mod authority;
mod invites;
mod join;

pub use authority::{BACKDATE, Ca, VALIDITY};
pub use invites::{Invites, OpenError, Refused};
pub use join::{InviteError, Inviter, Welcome};

use std::path::{Path, PathBuf};
use unamesh_client::identity::{Credentials, IdentityError, MemberError, NodeKey, verify_member};
use unamesh_proto::Wall;
use unamesh_proto::wire::Role;

/// The CA's directory within the state directory.
pub const CA_DIR: &str = "ca";

/// Why the CA did not do it. Nothing was written or issued.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is a CA already.
    #[error("{0} exists: this node founded a mesh already (another one needs its own --state)")]
    Exists(PathBuf),
    /// This node holds no CA.
    #[error("{0} does not exist: only the node that ran `unamesh init` can invite")]
    Absent(PathBuf),
    /// Key and certificate are of different CAs.
    #[error("ca.key and ca.crt in {0} do not belong together: restore both from one backup")]
    Mismatch(PathBuf),
    /// This node is a member already.
    #[error("{0} is a member of the mesh {1:?} already (another mesh needs its own --state)")]
    Paired(PathBuf, String),
    /// A role that this version does not know.
    #[error("no certificate can carry the role {0}")]
    Role(Role),
    /// The disk said no.
    #[error("{path}: {source}")]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
    /// A key or certificate could not be made or read.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The node's own papers could not be written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The CA issued what the node itself refuses: a bug, or memory errors.
    #[error(transparent)]
    Member(#[from] MemberError),
}

/// Founds a mesh in the state directory `state`: this node's key, the CA, and an admin
/// certificate of its own. An existing node key is kept, and so is a CA whose making was cut
/// off (by a full disk, say) before the node had its papers.
///
/// # Errors
/// The node is a member already, its papers are damaged, or the directory cannot be written.
pub fn init(
    state: &Path,
    mesh_name: &str,
    node_name: &str,
    now: Wall,
) -> Result<Credentials, CaError> {
    match Credentials::load(state) {
        Ok(existing) => return Err(CaError::Paired(state.to_owned(), existing.mesh_name)),
        Err(IdentityError::NotPaired { .. }) => {}
        Err(damaged) => return Err(damaged.into()),
    }
    let key = NodeKey::load_or_create(&state.join("node.key"))?;
    let dir = state.join(CA_DIR);
    let ca = match Ca::create(&dir, now) {
        Err(CaError::Exists(_)) => Ca::load(&dir)?,
        made => made?,
    };
    let certificate = ca.issue(key.id(), Role::Admin, node_name, now)?;
    let credentials = Credentials::new(
        key,
        certificate,
        ca.certificate().to_vec(),
        mesh_name.to_owned(),
    )?;
    credentials.save(state)?;
    Ok(credentials)
}

/// A clock before this (2026-01-01) was never set: what it dates is worth nothing.
const EARLIEST: Wall = Wall::from_millis(1_767_225_600_000);

/// A fresh certificate for the node that holds `ca` itself, in the last quarter of its present
/// one's life or after it; `None` while that is good. (Others get theirs by joining again.)
///
/// # Errors
/// It cannot be made.
pub fn renewed(
    ca: &Ca,
    present: &Credentials,
    node_name: &str,
    now: Wall,
) -> Result<Option<Credentials>, CaError> {
    let quarter = u64::try_from(VALIDITY.as_millis() / 4).unwrap_or(0);
    let soon = Wall::from_millis(now.as_millis().saturating_add(quarter));
    let fails = |at| verify_member(&present.certificate, &present.ca, at).err();
    let due = match (fails(now), fails(soon)) {
        (None, Some(MemberError::Expired)) | (Some(MemberError::Expired), _) => true,
        // Made while the clock was ahead.
        (Some(MemberError::NotYetValid), _) => true,
        _ => false,
    };
    if !due || now < EARLIEST || ca.mesh() != present.mesh {
        return Ok(None);
    }
    let certificate = ca.issue(present.node(), present.role, node_name, now)?;
    let (key, name) = (present.key.clone(), present.mesh_name.clone());
    Ok(Some(Credentials::new(
        key,
        certificate,
        present.ca.clone(),
        name,
    )?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use unamesh_client::clock;

    #[test]
    fn the_founder_renews_its_own_papers_in_time() {
        let day = |n: u64| Wall::from_millis(EARLIEST.as_millis() + n * 86_400_000);
        let dir = tempfile::tempdir().unwrap();
        let made = init(dir.path(), "home", "desk", day(100)).unwrap();
        let ca = Ca::load(&dir.path().join(CA_DIR)).unwrap();
        let at = |now| renewed(&ca, &made, "desk", now).unwrap();
        assert!(at(day(100)).is_none() && at(day(160)).is_none());
        assert!(
            at(Wall::from_millis(5)).is_none(),
            "a clock that was never set"
        );
        // In the last quarter; long after the end; made while the clock was ahead.
        for now in [day(170), day(900), day(50)] {
            let fresh = at(now).unwrap();
            let member = verify_member(&fresh.certificate, &made.ca, now).unwrap();
            assert_eq!((member.node, member.role), (made.node(), Role::Admin));
            assert!(renewed(&ca, &fresh, "desk", now).unwrap().is_none());
        }
        let elsewhere = tempfile::tempdir().unwrap();
        let theirs = Ca::create(&elsewhere.path().join(CA_DIR), day(100)).unwrap();
        assert!(renewed(&theirs, &made, "desk", day(170)).unwrap().is_none());
    }

    #[test]
    fn founds_once() {
        let dir = tempfile::tempdir().unwrap();
        let made = init(dir.path(), "home", "desk", clock::wall()).unwrap();
        let read = Credentials::load(dir.path()).unwrap();
        assert_eq!(read.key.id(), made.key.id());
        assert_eq!(
            read.mesh,
            Ca::load(&dir.path().join(CA_DIR)).unwrap().mesh()
        );
        let member = verify_member(&read.certificate, &read.ca, clock::wall()).unwrap();
        assert_eq!((member.node, member.role), (made.key.id(), Role::Admin));
        assert!(matches!(
            init(dir.path(), "home", "desk", clock::wall()),
            Err(CaError::Paired(_, name)) if name == "home"
        ));

        // Cut off before the last file was written.
        std::fs::remove_file(dir.path().join("mesh.json")).unwrap();
        let again = init(dir.path(), "home", "desk", clock::wall()).unwrap();
        assert_eq!((again.mesh, again.node()), (made.mesh, made.node()));
        // What is damaged is not overwritten.
        std::fs::write(dir.path().join("node.crt"), b"rubbish").unwrap();
        assert!(matches!(
            init(dir.path(), "home", "desk", clock::wall()),
            Err(CaError::Identity(_))
        ));
    }
}
