//! JSON objects whose values stay as they came, with errors that name the field.
//!
//! A body is split into its top-level members once; each value is then read as the type its
//! field has. What the gateway does not know is passed on byte for byte, so nothing of a
//! request is lost on its way to the engine.

use super::error::ApiError;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use unamesh_proto::limits;

/// The members of a JSON object in their order, values unparsed.
#[derive(Debug)]
pub struct Members<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(8);
                while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &RawValue>()? {
                    if members.len() == limits::MAX_JSON_FIELDS {
                        return Err(serde::de::Error::custom(format_args!(
                            "an object may have at most {} fields",
                            limits::MAX_JSON_FIELDS
                        )));
                    }
                    members.push((key, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// Splits a request body into its fields.
///
/// # Errors
/// 400: not UTF-8, not JSON, not an object, a field twice, nested too deeply; names the field
/// where one is to blame.
pub fn body(bytes: &[u8]) -> Result<Members<'_>, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|e| not_utf8(bytes, e.valid_up_to()))?;
    let members: Members<'_> = serde_json::from_str(text).map_err(|e| {
        let message = if text.trim().is_empty() {
            "the body is empty; send a JSON object".to_owned()
        } else {
            format!("the body is not a valid JSON object: {e}")
        };
        ApiError::invalid("invalid_json", message)
    })?;
    for (at, (key, value)) in members.0.iter().enumerate() {
        if members.0[..at].iter().any(|(earlier, _)| earlier == key) {
            return Err(ApiError::field(
                key.as_ref(),
                format!("{key} is given twice"),
            ));
        }
        if depth(value.get()) > limits::MAX_JSON_DEPTH {
            let message = format!(
                "{key} is nested deeper than {} levels",
                limits::MAX_JSON_DEPTH
            );
            return Err(ApiError::field(key.as_ref(), message));
        }
    }
    Ok(members)
}

/// Blames the top-level field that holds the first bad byte, if the rest is JSON.
fn not_utf8(bytes: &[u8], at: usize) -> ApiError {
    let error = ApiError::invalid(
        "invalid_json",
        format!("byte {at} of the body is not UTF-8"),
    );
    let lossy = String::from_utf8_lossy(bytes);
    let Ok(members) = serde_json::from_str::<Members<'_>>(&lossy) else {
        return error;
    };
    let bad = |text: &str| text.contains('\u{fffd}');
    match members
        .0
        .iter()
        .find(|(key, value)| bad(key) || bad(value.get()))
    {
        Some((key, _)) => error.param(key.as_ref()),
        None => error,
    }
}

/// How deep brackets nest in valid JSON.
pub fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// One field: its name (for errors) and its value.
#[derive(Clone, Copy, Debug)]
pub struct Field<'n, 'a> {
    /// As errors call it, `messages[2].role`.
    pub name: &'n str,
    /// Unparsed.
    pub value: &'a RawValue,
}

impl<'a> Field<'_, 'a> {
    /// Whether it is `null`, which means the same as absent.
    pub fn is_null(&self) -> bool {
        self.value.get() == "null"
    }

    /// A string.
    ///
    /// # Errors
    /// 400: another type, or an escape that is no character.
    pub fn string(&self) -> Result<Cow<'a, str>, ApiError> {
        self.parse::<Key<'a>>("a string").map(|key| key.0)
    }

    /// A boolean.
    ///
    /// # Errors
    /// 400: another type.
    pub fn boolean(&self) -> Result<bool, ApiError> {
        self.parse("a boolean")
    }

    /// A whole number within `min..=max`.
    ///
    /// # Errors
    /// 400: another type, a fraction, or out of range.
    pub fn integer(&self, min: i64, max: i64) -> Result<i64, ApiError> {
        let value: i64 = self.parse("an integer")?;
        if (min..=max).contains(&value) {
            return Ok(value);
        }
        Err(self.error(format!(
            "{} must be between {min} and {max}, got {value}",
            self.name
        )))
    }

    /// A number within `min..=max`.
    ///
    /// # Errors
    /// 400: another type, or out of range.
    pub fn number(&self, min: f64, max: f64) -> Result<f32, ApiError> {
        let value: f64 = self.parse("a number")?;
        if (min..=max).contains(&value) {
            return Ok(value as f32);
        }
        Err(self.error(format!(
            "{} must be between {min} and {max}, got {value}",
            self.name
        )))
    }

    /// The elements of an array, unparsed.
    ///
    /// # Errors
    /// 400: another type.
    pub fn array(&self) -> Result<Vec<&'a RawValue>, ApiError> {
        self.parse("an array")
    }

    /// The members of an object, unparsed.
    ///
    /// # Errors
    /// 400: another type, or too many fields.
    pub fn object(&self) -> Result<Members<'a>, ApiError> {
        self.parse("an object")
    }

    /// An error that blames this field.
    pub fn error(&self, message: impl Into<String>) -> ApiError {
        ApiError::field(self.name, message)
    }

    /// What JSON type it has.
    pub fn kind(&self) -> &'static str {
        match self.value.get().as_bytes().first() {
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            _ => "a number",
        }
    }

    fn parse<T: Deserialize<'a>>(&self, expected: &'static str) -> Result<T, ApiError> {
        serde_json::from_str(self.value.get()).map_err(|e| {
            let (name, kind) = (self.name, self.kind());
            if kind == expected || (kind == "a number" && expected == "an integer") {
                return self.error(format!("{name} is no valid value for {expected}: {e}"));
            }
            ApiError::invalid(
                "invalid_type",
                format!("{name} must be {expected}, got {kind}"),
            )
            .param(name)
        })
    }
}

/// Appends `json` to `out` on one line: the line breaks that JSON allows between its tokens
/// would end an SSE or NDJSON record.
pub fn push_line(json: &str, out: &mut impl Extend<u8>) {
    out.extend(
        json.bytes()
            .map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { b }),
    );
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn depth_ignores_brackets_in_strings() {
        assert_eq!(depth(r#"{"a":["[[[\"[[", 1]}"#), 2);
        assert_eq!(depth("1"), 0);
    }

    #[test]
    fn a_body_is_split_and_bad_ones_name_the_field() {
        let members = body(br#"{"a":1,"b\u0041":[1, 2]}"#).unwrap();
        assert_eq!(members.0[1].0, "bA");
        assert_eq!(members.0[1].1.get(), "[1, 2]");

        assert_eq!(
            body(br#"{"a":1,"a":2}"#).unwrap_err().param.as_deref(),
            Some("a")
        );
        assert_eq!(
            body(b"{\"x\":1,\"y\":\"\xff\"}")
                .unwrap_err()
                .param
                .as_deref(),
            Some("y")
        );
        assert_eq!(body(b"[1]").unwrap_err().code, "invalid_json");
        assert!(body(b" ").unwrap_err().message.contains("empty"));

        let deep = format!(
            "{{\"deep\":{}{}}}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        assert_eq!(
            body(deep.as_bytes()).unwrap_err().param.as_deref(),
            Some("deep")
        );
    }

    #[test]
    fn wrong_types_say_what_came() {
        let raw = RawValue::from_string("[1]".to_owned()).unwrap();
        let field = Field {
            name: "temperature",
            value: &raw,
        };
        let error = field.number(0.0, 2.0).unwrap_err();
        assert_eq!(error.message, "temperature must be a number, got an array");
        assert_eq!(error.code, "invalid_type");
        let raw = RawValue::from_string("1.5".to_owned()).unwrap();
        let field = Field {
            name: "max_tokens",
            value: &raw,
        };
        assert!(field.integer(1, 5).unwrap_err().message.contains("integer"));
    }
}
