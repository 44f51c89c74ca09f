//! The token that opens the local mesh API to this user's own commands.

use super::{StateDir, StateError};
use data_encoding::BASE32_NOPAD;
use rand::TryRngCore;
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

const FILE: &str = "admin.token";
const BYTES: usize = 32;

/// 256 random bits as text. Whoever can read the state directory has it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct AdminToken(String);

impl AdminToken {
    /// The token of `state`; `None` if there is none yet.
    ///
    /// # Errors
    /// The file is unreadable or holds no token.
    pub fn load(state: &StateDir) -> Result<Option<Self>, StateError> {
        let Some(bytes) = state.read(FILE)? else {
            return Ok(None);
        };
        let text = String::from_utf8(bytes).unwrap_or_default();
        let token = text.trim();
        match BASE32_NOPAD.decode(token.to_ascii_uppercase().as_bytes()) {
            Ok(decoded) if decoded.len() == BYTES => Ok(Some(AdminToken(token.to_owned()))),
            _ => Err(StateError::Corrupt {
                path: state.file(FILE),
                reason: "it holds no token".into(),
            }),
        }
    }

    /// The token of `state`, made now if there is none.
    ///
    /// The second value says why a new one could not be written: other commands cannot reach
    /// the agent then, serving works.
    ///
    /// # Errors
    /// A token exists and is unreadable, or the system gives no random numbers.
    pub fn load_or_create(state: &StateDir) -> Result<(Self, Option<StateError>), StateError> {
        if let Some(token) = Self::load(state)? {
            return Ok((token, None));
        }
        let mut random = [0; BYTES];
        rand::rngs::OsRng
            .try_fill_bytes(&mut random)
            .map_err(|e| StateError::Io {
                path: state.file(FILE),
                reason: format!("no random numbers: {e}"),
            })?;
        let token = AdminToken(BASE32_NOPAD.encode(&random).to_ascii_lowercase());
        random.zeroize();
        let unwritten = state.write(FILE, token.0.as_bytes()).err();
        Ok((token, unwritten))
    }

    /// Whether `given` is it, in a time that does not depend on where they differ.
    pub fn matches(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }

    /// For an `Authorization: Bearer` header.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(..)")
    }
}
