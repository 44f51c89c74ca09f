//! The link that lets a device join: `unamesh:join?ca=..&a=..&s=..&x=..&r=..`.
//!
//! | key | value |
//! |---|---|
//! | `ca` | the mesh: SHA-256 of its CA certificate, 64 hexadecimal digits |
//! | `a` | addresses of the joining endpoint, `ip:port`, separated by commas, best first |
//! | `s` | the one-time secret, 32 bytes in base64url without padding |
//! | `x` | when it expires, seconds since 1970 |
//! | `r` | the role that it gives: `admin`, `agent` or `client` |
//!
//! Keys of later versions are ignored. Whoever holds the link can join, so it is printed for
//! one pair of eyes and never logged.

use data_encoding::BASE64URL_NOPAD;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use unamesh_proto::limits::{MAX_ADDRS, MAX_INVITE_LINK};
use unamesh_proto::wire::Role;
use unamesh_proto::{MeshId, Wall};
use url::form_urlencoded;

const PREFIX: &str = "unamesh:join?";

/// An invitation, as its link carries it.
#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    /// Which mesh: the fingerprint that the joining device checks everything against.
    pub mesh: MeshId,
    /// Where the joining endpoint listens, best first.
    pub addrs: Vec<SocketAddr>,
    /// Proves to the inviter that the device holds the link.
    pub secret: [u8; 32],
    /// When it ends, by the inviter's clock.
    pub expires: Wall,
    /// The role that it gives.
    pub role: Role,
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invite")
            .field("mesh", &self.mesh)
            .field("addrs", &self.addrs)
            .field("expires", &self.expires)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Invite {
    /// The link, secret included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = BASE64URL_NOPAD.encode(&self.secret);
        let expires = self.expires.as_millis() / 1000;
        write!(f, "{PREFIX}ca={}&a=", self.mesh)?;
        for (i, addr) in self.addrs.iter().enumerate() {
            write!(f, "{}{addr}", if i == 0 { "" } else { "," })?;
        }
        write!(f, "&s={secret}&x={expires}&r={}", self.role)
    }
}

/// Why a text is no invitation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseInviteError {
    /// It does not begin as one.
    #[error(
        "not an invitation: a link begins with `{PREFIX}` (was it cut off by the shell? put it in quotes)"
    )]
    Prefix,
    /// A part is missing, or there twice.
    #[error(
        "the invitation has no `{0}`, or more than one (was it cut off by the shell? put it in quotes)"
    )]
    Missing(&'static str),
    /// A part is wrong.
    #[error("the invitation's `{key}` is wrong: expected {expected}")]
    Part {
        /// Which.
        key: &'static str,
        /// What should stand there.
        expected: &'static str,
    },
    /// It is longer than any invitation.
    #[error("not an invitation: longer than {MAX_INVITE_LINK} bytes")]
    TooLong,
}

impl FromStr for Invite {
    type Err = ParseInviteError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.len() > MAX_INVITE_LINK {
            return Err(ParseInviteError::TooLong);
        }
        let query = text.strip_prefix(PREFIX).ok_or(ParseInviteError::Prefix)?;
        let part = |key: &'static str| {
            let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(k, _)| k == key);
            match (values.next(), values.next()) {
                (Some((_, value)), None) => Ok(value),
                _ => Err(ParseInviteError::Missing(key)),
            }
        };
        let wrong = |key, expected| ParseInviteError::Part { key, expected };
        let mesh = part("ca")?
            .parse()
            .map_err(|_| wrong("ca", "64 hexadecimal digits"))?;
        let secret = BASE64URL_NOPAD.decode(part("s")?.as_bytes()).ok();
        let secret = secret.and_then(|bytes| bytes.try_into().ok());
        let expires: u64 = part("x")?
            .parse()
            .map_err(|_| wrong("x", "seconds since 1970"))?;
        let role = part("r")?;
        let role = Role::KNOWN.iter().find(|r| r.name() == role);
        Ok(Invite {
            mesh,
            addrs: addrs(&part("a")?)?,
            secret: secret.ok_or(wrong("s", "43 characters of base64url"))?,
            expires: Wall::from_millis(expires.saturating_mul(1000)),
            role: *role.ok_or(wrong("r", "admin, agent or client"))?,
        })
    }
}

fn addrs(text: &str) -> Result<Vec<SocketAddr>, ParseInviteError> {
    let expected = "one to sixteen of ip:port, separated by commas";
    let parsed: Result<Vec<SocketAddr>, _> = text.split(',').map(str::parse).collect();
    match parsed {
        Ok(addrs) if addrs.len() <= MAX_ADDRS => Ok(addrs),
        _ => Err(ParseInviteError::Part { key: "a", expected }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn invite() -> Invite {
        Invite {
            mesh: MeshId([0xab; 32]),
            addrs: vec![
                "192.168.1.5:4711".parse().unwrap(),
                "[fd00::1]:4711".parse().unwrap(),
            ],
            secret: [0xfb; 32],
            expires: Wall::from_millis(1_790_000_000_000),
            role: Role::Agent,
        }
    }

    #[test]
    fn a_link_reads_as_written() {
        let link = invite().to_string();
        assert_eq!(link.parse::<Invite>().unwrap(), invite());
        assert_eq!(format!(" {link}\n").parse::<Invite>().unwrap(), invite());
        assert_eq!(format!("{link}&new=1").parse::<Invite>().unwrap(), invite());
        let encoded = link
            .replace('[', "%5B")
            .replace(']', "%5D")
            .replace(',', "%2C");
        assert_eq!(encoded.parse::<Invite>().unwrap(), invite());
        let golden = "unamesh:join?ca=abababababababababababababababababababababababababababababababab\
            &a=192.168.1.5:4711,[fd00::1]:4711&s=-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s\
            &x=1790000000&r=agent";
        assert_eq!(link, golden);
    }

    #[test]
    fn a_link_that_is_not_whole_says_what_is_wrong() {
        let link = invite().to_string();
        for end in 0..link.len() {
            // Cut within `r=agent`, or within the digits of `x`, at the latest.
            assert!(link[..end].parse::<Invite>().is_err(), "{}", &link[..end]);
        }
        let change = |from: &str, to: &str| link.replace(from, to).parse::<Invite>().unwrap_err();
        let part = |e| match e {
            ParseInviteError::Part { key, .. } => key,
            other => panic!("{other}"),
        };
        assert_eq!(part(change("ca=ab", "ca=xy")), "ca");
        assert_eq!(part(change("192.168.1.5:4711", "desk:4711")), "a");
        assert_eq!(part(change("s=-_", "s=-")), "s");
        assert_eq!(part(change("x=1", "x=y")), "x");
        assert_eq!(part(change("r=agent", "r=king")), "r");
        assert_eq!(change("&x=", "&y="), ParseInviteError::Missing("x"));
        assert_eq!(change("&x=", "&r=agent&x="), ParseInviteError::Missing("r"));
        assert_eq!(change("unamesh:join?", "https:"), ParseInviteError::Prefix);
        let long = format!("{link}&z={}", "z".repeat(MAX_INVITE_LINK));
        assert_eq!(long.parse::<Invite>(), Err(ParseInviteError::TooLong));
    }

    #[test]
    fn the_secret_is_not_printed_by_accident() {
        let text = format!("{:?}", invite());
        assert!(
            !text.contains("251") && !text.contains("fb") && !text.contains("-_v7"),
            "{text}"
        );
    }
}
