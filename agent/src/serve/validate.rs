//! What a request must satisfy before anything is done for it: the bounds of the protocol.
//! What a model or engine accepts beyond them, the engine says.

use std::ops::RangeInclusive;
use unamesh_proto::limits;
use unamesh_proto::wire::{ErrorCode, GenerateRequest, InputKind, Sampling, WireError};

/// Checks the bounds of `request`.
///
/// # Errors
/// `Invalid` with the field to blame; `Unsupported` for an input of a later version.
pub(super) fn request(request: &GenerateRequest) -> Result<(), WireError> {
    if request.model.is_empty() || request.model.len() > limits::MAX_NAME {
        let message = format!("a model's name has 1 to {} bytes", limits::MAX_NAME);
        return Err(invalid("model", message));
    }
    if let InputKind::Unknown(code) = request.kind {
        let message = format!("this agent knows no input of kind {code}: update it");
        return Err(WireError::new(ErrorCode::Unsupported, message).field("kind"));
    }
    if request.prefix.len() > limits::MAX_TOKENS as usize {
        let message = format!("a prefix has at most {} pieces", limits::MAX_TOKENS);
        return Err(invalid("prefix", message));
    }
    sampling(&request.sampling)
}

fn sampling(s: &Sampling) -> Result<(), WireError> {
    within("temperature", s.temperature, 0.0..=f32::MAX)?;
    within("top_p", s.top_p, 0.0..=1.0)?;
    within("min_p", s.min_p, 0.0..=1.0)?;
    within("presence_penalty", s.presence_penalty, -2.0..=2.0)?;
    within("frequency_penalty", s.frequency_penalty, -2.0..=2.0)?;
    within("repeat_penalty", s.repeat_penalty, 0.0..=f32::MAX)?;
    if s.max_tokens.is_some_and(|n| n > limits::MAX_TOKENS) {
        let message = format!("max_tokens must be at most {}", limits::MAX_TOKENS);
        return Err(invalid("max_tokens", message));
    }
    if s.stop.len() > limits::MAX_STOPS {
        let message = format!("at most {} stop sequences are allowed", limits::MAX_STOPS);
        return Err(invalid("stop", message));
    }
    if s.stop
        .iter()
        .any(|stop| stop.len() > limits::MAX_STOP_BYTES)
    {
        let most = limits::MAX_STOP_BYTES;
        return Err(invalid(
            "stop",
            format!("a stop sequence has at most {most} bytes"),
        ));
    }
    Ok(())
}

fn within(
    field: &'static str,
    value: Option<f32>,
    range: RangeInclusive<f32>,
) -> Result<(), WireError> {
    match value {
        // NaN is in no range.
        Some(v) if !range.contains(&v) => {
            let (low, high) = range.into_inner();
            let bounds = match high {
                f32::MAX => format!("at least {low}"),
                _ => format!("between {low} and {high}"),
            };
            Err(invalid(field, format!("{field} must be {bounds}")))
        }
        _ => Ok(()),
    }
}

fn invalid(field: &'static str, message: String) -> WireError {
    WireError::new(ErrorCode::Invalid, message).field(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> GenerateRequest {
        GenerateRequest {
            model: "m".to_owned(),
            engine: u16::MAX,
            kind: InputKind::Text,
            input: "hello".to_owned(),
            sampling: Sampling::default(),
            extra: String::new(),
            prefix: Vec::new(),
            session: 0,
        }
    }

    fn blamed(change: impl FnOnce(&mut GenerateRequest)) -> Option<String> {
        let mut r = sample();
        change(&mut r);
        request(&r).err().and_then(|e| e.field)
    }

    #[test]
    fn names_the_field_to_blame() {
        assert_eq!(blamed(|_| ()), None);
        assert_eq!(blamed(|r| r.model.clear()), Some("model".to_owned()));
        assert_eq!(
            blamed(|r| r.model = "m".repeat(257)),
            Some("model".to_owned())
        );
        assert_eq!(
            blamed(|r| r.kind = InputKind::Unknown(7)),
            Some("kind".to_owned())
        );
        let bad = [f32::NAN, f32::INFINITY, -0.5];
        for value in bad {
            let field = blamed(|r| r.sampling.temperature = Some(value));
            assert_eq!(field, Some("temperature".to_owned()), "{value}");
        }
        assert_eq!(
            blamed(|r| r.sampling.top_p = Some(1.5)),
            Some("top_p".to_owned())
        );
        assert_eq!(
            blamed(|r| r.sampling.max_tokens = Some(u32::MAX)),
            Some("max_tokens".to_owned())
        );
        assert_eq!(
            blamed(|r| r.sampling.stop = vec![String::new(); 17]),
            Some("stop".to_owned())
        );
        assert_eq!(
            blamed(|r| r.sampling.stop = vec!["x".repeat(limits::MAX_STOP_BYTES + 1)]),
            Some("stop".to_owned())
        );
    }
}
