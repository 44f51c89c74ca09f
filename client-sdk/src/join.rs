//! (being written) Joining a mesh by an invitation.

/// The TLS server name that a joining device asks for: the inviter answers with its own node
/// certificate, chain [node, CA], and must be an admin of the mesh. Stock webpki checks both.
pub const JOIN_SERVER_NAME: &str = "admin.role.unamesh.internal";
