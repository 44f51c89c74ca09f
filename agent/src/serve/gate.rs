//! Who may open what: the one table of roles and stream kinds.

use unamesh_proto::wire::{ErrorCode, Role, StreamKind, WireError};

/// Who may open streams of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    /// Every member of the mesh.
    Members,
    /// Those who serve and gossip.
    Agents,
    /// Those who may change settings of others.
    Admins,
    /// Nobody: this build does not serve the kind.
    Nobody,
}

/// The table. A kind without a line here does not compile; one of a later version is nobody's.
const fn audience(kind: StreamKind) -> Audience {
    match kind {
        StreamKind::Probe => Audience::Members,
        StreamKind::Watch => Audience::Members,
        StreamKind::Generate => Audience::Members,
        StreamKind::Attach => Audience::Members,
        StreamKind::Exchange => Audience::Agents,
        StreamKind::Embed => Audience::Nobody,
        StreamKind::Speak => Audience::Members,
        StreamKind::Transcribe => Audience::Members,
        StreamKind::Warm => Audience::Members,
        StreamKind::Converse => Audience::Nobody,
        StreamKind::Tunnel => Audience::Nobody,
        StreamKind::Admin => Audience::Admins,
        StreamKind::Unknown(_) => Audience::Nobody,
    }
}

/// Whether a member with `role` may open a stream of `kind`.
///
/// # Errors
/// `Unsupported` for a kind that nobody may open here, `Forbidden` for a role that may not.
pub(super) fn check(role: Role, kind: StreamKind) -> Result<(), WireError> {
    let allowed = match audience(kind) {
        Audience::Members => matches!(role, Role::Admin | Role::Agent | Role::Client),
        Audience::Agents => role.is_agent(),
        Audience::Admins => role == Role::Admin,
        Audience::Nobody => {
            let message = format!("this agent serves no {kind} streams (code {})", kind.code());
            return Err(WireError::new(ErrorCode::Unsupported, message));
        }
    };
    if allowed {
        return Ok(());
    }
    Err(forbidden(role, kind.name()))
}

/// Whether a member with `role` may open a stream of `what`, which is for those who serve and
/// gossip.
///
/// # Errors
/// `Forbidden`.
pub(super) fn agents(role: Role, what: &str) -> Result<(), WireError> {
    match role.is_agent() {
        true => Ok(()),
        false => Err(forbidden(role, what)),
    }
}

fn forbidden(role: Role, what: &str) -> WireError {
    let message = format!("a member with the role {role} may not open {what} streams");
    WireError::new(ErrorCode::Forbidden, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(role: Role, kind: StreamKind) -> Option<ErrorCode> {
        check(role, kind).err().map(|e| e.code)
    }

    #[test]
    fn every_role_and_kind_has_its_answer() {
        use StreamKind::{
            Admin, Attach, Exchange, Generate, Probe, Speak, Transcribe, Warm, Watch,
        };
        for &role in Role::KNOWN {
            for &kind in StreamKind::KNOWN {
                let expected = match (role, kind) {
                    (_, Probe | Watch | Generate | Attach) => None,
                    (_, Speak | Transcribe | Warm) => None,
                    (Role::Admin | Role::Agent, Exchange) => None,
                    (Role::Admin, Admin) => None,
                    (_, Exchange | Admin) => Some(ErrorCode::Forbidden),
                    _ => Some(ErrorCode::Unsupported),
                };
                assert_eq!(refusal(role, kind), expected, "{role} {kind}");
            }
        }
    }

    #[test]
    fn what_a_later_version_added_is_refused() {
        let probe = StreamKind::Probe;
        assert_eq!(refusal(Role::Unknown(9), probe), Some(ErrorCode::Forbidden));
        assert_eq!(
            refusal(Role::Admin, StreamKind::Unknown(99)),
            Some(ErrorCode::Unsupported)
        );
    }
}
