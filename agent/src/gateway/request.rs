//! Reads an OpenAI request into a mesh request.
//!
//! Strict in what it understands (types, ranges, roles: a wrong field is named instead of
//! ignored), complete in what it does not: every other field travels to the engine unchanged
//! in `extra`, and messages stay the JSON they came as.

use super::error::ApiError;
use super::json::{self, Field};
use super::source::Request;
use serde_json::value::RawValue;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use unamesh_proto::limits;
use unamesh_proto::wire::{InputKind, Sampling};

/// A request as it was understood.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// For the mesh.
    pub request: Request,
    /// The answer is wanted as server-sent events.
    pub stream: bool,
    /// The last event is to carry the token counts.
    pub include_usage: bool,
}

/// Which API a body belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/v1/chat/completions`: `messages`.
    Chat,
    /// `/v1/completions`: `prompt`.
    Completion,
}

/// Roles that a message may have.
const ROLES: [&str; 6] = [
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "function",
];

/// Reads a body.
///
/// # Errors
/// 400 with the field to blame.
pub fn parse(api: Api, bytes: &[u8]) -> Result<Parsed, ApiError> {
    let members = json::body(bytes)?;
    let mut reader = Reader::default();
    for (name, value) in &members.0 {
        reader.take(api, Field { name, value })?;
    }
    reader.finish(api)
}

/// What was read so far.
#[derive(Default)]
struct Reader {
    model: Option<String>,
    input: Option<Input>,
    sampling: Sampling,
    extra: String,
    stream: bool,
    include_usage: bool,
    structured: bool,
    tools: bool,
    /// The answer is to be a tool call, not the model's choice.
    must_call: bool,
}

/// The messages or the prompt.
struct Input {
    text: String,
    /// Bytes of text in it, pictures excluded: a measure of the prompt's length.
    weight: usize,
    /// The same for every turn of a conversation.
    session: u64,
}

impl Reader {
    fn take(&mut self, api: Api, field: Field<'_, '_>) -> Result<(), ApiError> {
        if field.is_null() {
            return Ok(());
        }
        match (field.name, api) {
            ("model", _) => self.model = Some(model(&field)?),
            ("messages", Api::Chat) => self.input = Some(messages(&field)?),
            ("prompt", Api::Completion) => self.input = Some(prompt(&field)?),
            ("stream", _) => self.stream = field.boolean()?,
            ("stream_options", _) => self.include_usage = include_usage(&field)?,
            ("n" | "best_of", _) => {
                if field.integer(1, i64::MAX)? != 1 {
                    return Err(unsupported(&field, "only one answer a request is made"));
                }
            }
            ("echo", Api::Completion) => {
                if field.boolean()? {
                    return Err(unsupported(&field, "the prompt is not echoed"));
                }
            }
            _ => return self.sampling(field),
        }
        Ok(())
    }

    fn sampling(&mut self, field: Field<'_, '_>) -> Result<(), ApiError> {
        let s = &mut self.sampling;
        match field.name {
            "temperature" => s.temperature = Some(field.number(0.0, 2.0)?),
            "top_p" => s.top_p = Some(field.number(0.0, 1.0)?),
            "min_p" => s.min_p = Some(field.number(0.0, 1.0)?),
            // -1 is vLLM's way to say off, 0 llama.cpp's.
            "top_k" => s.top_k = u32::try_from(field.integer(-1, i64::from(i32::MAX))?.max(0)).ok(),
            "seed" => s.seed = Some(field.integer(i64::MIN, i64::MAX)?),
            // `n_predict` is llama.cpp's; unread, it would not be reduced by what was delivered.
            "max_tokens" | "max_completion_tokens" | "n_predict" => {
                // -1 is LM Studio's and llama.cpp's way to say no limit.
                let most = field.integer(-1, i64::from(limits::MAX_TOKENS))?;
                if most == 0 {
                    return Err(field.error(format!("{} must be at least 1", field.name)));
                }
                s.max_tokens = u32::try_from(most).ok();
            }
            "stop" => s.stop = stop(&field)?,
            "presence_penalty" => s.presence_penalty = Some(field.number(-2.0, 2.0)?),
            "frequency_penalty" => s.frequency_penalty = Some(field.number(-2.0, 2.0)?),
            "repeat_penalty" => s.repeat_penalty = Some(field.number(0.0, 10.0)?),
            _ => return self.extra(field),
        }
        Ok(())
    }

    /// Passes a field on; notes what forbids a splice.
    fn extra(&mut self, field: Field<'_, '_>) -> Result<(), ApiError> {
        match field.name {
            "tools" | "functions" => self.tools |= !field.array()?.is_empty(),
            "tool_choice" | "function_call" => {
                self.must_call = !matches!(field.value.get(), "\"none\"" | "\"auto\"");
            }
            "response_format" => self.structured |= is_structured(&field)?,
            "grammar" | "json_schema" | "guided_json" | "guided_regex" | "guided_choice"
            | "guided_grammar" | "structured_outputs" => self.structured = true,
            _ => {}
        }
        self.extra
            .push(if self.extra.is_empty() { '{' } else { ',' });
        let key = serde_json::to_string(field.name)
            .map_err(|e| ApiError::invalid("invalid_json", e.to_string()))?;
        self.extra.push_str(&key);
        self.extra.push(':');
        self.extra.push_str(field.value.get());
        Ok(())
    }

    fn finish(mut self, api: Api) -> Result<Parsed, ApiError> {
        let missing = |name: &str| {
            ApiError::invalid("missing_required_parameter", format!("{name} is required"))
                .param(name)
        };
        let model = self.model.ok_or_else(|| missing("model"))?;
        let (kind, field) = match api {
            Api::Chat => (InputKind::Chat, "messages"),
            Api::Completion => (InputKind::Text, "prompt"),
        };
        let input = self.input.ok_or_else(|| missing(field))?;
        if !self.extra.is_empty() {
            self.extra.push('}');
        }
        let request = Request {
            model,
            kind,
            input: input.text,
            sampling: self.sampling,
            extra: self.extra,
            session: input.session,
            // About four bytes of English a token; the ranking needs no better.
            prompt_tokens: u32::try_from(input.weight / 4 + 1).unwrap_or(u32::MAX),
            // With tools to choose from, the session looks at what comes.
            spliceable: !(self.structured || (self.tools && self.must_call)),
            other_model: false,
            first: None,
        };
        Ok(Parsed {
            request,
            stream: self.stream,
            include_usage: self.include_usage,
        })
    }
}

fn model(field: &Field<'_, '_>) -> Result<String, ApiError> {
    let name = field.string()?;
    if name.trim().is_empty() {
        return Err(field.error("model must name a model; GET /v1/models lists them"));
    }
    if name.len() > limits::MAX_NAME {
        return Err(field.error(format!("model is longer than {} bytes", limits::MAX_NAME)));
    }
    Ok(name.into_owned())
}

fn messages(field: &Field<'_, '_>) -> Result<Input, ApiError> {
    let all = field.array()?;
    if all.is_empty() {
        return Err(field.error("messages must hold at least one message"));
    }
    let mut weight = 0;
    let mut conversation = Some(DefaultHasher::new());
    let mut session = 0;
    for (at, value) in all.iter().enumerate() {
        let message = message(at, value)?;
        // A little for the role and the template around it.
        weight += message.text + 16;
        // The turns up to the first question stay the same while a conversation grows.
        if let Some(mut hasher) = conversation.take() {
            value.get().hash(&mut hasher);
            session = hasher.finish().max(1);
            conversation = (!message.is_user).then_some(hasher);
        }
    }
    Ok(Input {
        text: field.value.get().to_owned(),
        weight,
        session,
    })
}

/// What a message is, as far as it matters here.
struct Message {
    is_user: bool,
    /// Bytes of its text.
    text: usize,
}

fn message(at: usize, value: &RawValue) -> Result<Message, ApiError> {
    let name = format!("messages[{at}]");
    let mut role = None;
    let mut text = None;
    let mut calls = false;
    for (key, value) in &(Field { name: &name, value }).object()?.0 {
        let path = format!("{name}.{key}");
        let field = Field { name: &path, value };
        match key.as_ref() {
            "role" => role = Some(field.string()?),
            "content" if !field.is_null() => text = Some(content(&field)?),
            "tool_calls" | "function_call" | "reasoning_content" => calls |= !field.is_null(),
            _ => {}
        }
    }
    let role = role.ok_or_else(|| {
        let param = format!("{name}.role");
        ApiError::invalid("missing_required_parameter", format!("{param} is required")).param(param)
    })?;
    if !ROLES.contains(&role.as_ref()) {
        let message = format!(
            "{name}.role must be one of {}, got {role:?}",
            ROLES.join(", ")
        );
        return Err(ApiError::field(format!("{name}.role"), message));
    }
    if text.is_none() && !(role == "assistant" && calls) {
        let param = format!("{name}.content");
        let message = format!("{param} is required: a string or an array of parts");
        return Err(ApiError::invalid("missing_required_parameter", message).param(param));
    }
    Ok(Message {
        is_user: role == "user",
        text: text.unwrap_or(0),
    })
}

/// Bytes of text in a message's content: a string, or an array of typed parts.
fn content(field: &Field<'_, '_>) -> Result<usize, ApiError> {
    match field.kind() {
        "a string" => field.string().map(|text| text.len()),
        "an array" => {
            let mut total = 0;
            for (at, value) in field.array()?.into_iter().enumerate() {
                let name = format!("{}[{at}]", field.name);
                total += part(&Field { name: &name, value })?;
            }
            Ok(total)
        }
        other => Err(ApiError::invalid(
            "invalid_type",
            format!(
                "{} must be a string or an array of parts, got {other}",
                field.name
            ),
        )
        .param(field.name)),
    }
}

fn part(part: &Field<'_, '_>) -> Result<usize, ApiError> {
    let mut typed = false;
    let mut text = 0;
    for (key, value) in &part.object()?.0 {
        let path = format!("{}.{key}", part.name);
        let field = Field { name: &path, value };
        match key.as_ref() {
            "type" => typed = !field.string()?.is_empty(),
            "text" => text = field.string()?.len(),
            _ => {}
        }
    }
    if !typed {
        let param = format!("{}.type", part.name);
        return Err(ApiError::invalid(
            "missing_required_parameter",
            format!("{param} is required"),
        )
        .param(param));
    }
    Ok(text)
}

fn prompt(field: &Field<'_, '_>) -> Result<Input, ApiError> {
    let text = match field.kind() {
        "an array" => {
            let all = field.array()?;
            let [only] = all.as_slice() else {
                return Err(unsupported(field, "prompt must be one string"));
            };
            (Field {
                name: "prompt[0]",
                value: only,
            })
            .string()?
        }
        _ => field.string()?,
    };
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    Ok(Input {
        weight: text.len(),
        session: hasher.finish().max(1),
        text: text.into_owned(),
    })
}

fn include_usage(field: &Field<'_, '_>) -> Result<bool, ApiError> {
    let mut wanted = false;
    for (key, value) in &field.object()?.0 {
        if key == "include_usage" {
            let name = "stream_options.include_usage";
            let field = Field { name, value };
            wanted = !field.is_null() && field.boolean()?;
        }
    }
    Ok(wanted)
}

fn stop(field: &Field<'_, '_>) -> Result<Vec<String>, ApiError> {
    if field.kind() == "a string" {
        return Ok(vec![field.string()?.into_owned()]);
    }
    let all = field.array()?;
    if all.len() > limits::MAX_STOPS {
        return Err(field.error(format!(
            "stop takes at most {} sequences",
            limits::MAX_STOPS
        )));
    }
    let text = |(at, value)| {
        let name = format!("stop[{at}]");
        Field { name: &name, value }
            .string()
            .map(|text| text.into_owned())
    };
    all.into_iter().enumerate().map(text).collect()
}

/// Whether an answer must have a form that a splice could break.
fn is_structured(field: &Field<'_, '_>) -> Result<bool, ApiError> {
    let mut structured = true;
    for (key, value) in &field.object()?.0 {
        if key == "type" {
            structured = Field {
                name: "response_format.type",
                value,
            }
            .string()?
                != "text";
        }
    }
    Ok(structured)
}

fn unsupported(field: &Field<'_, '_>, message: &str) -> ApiError {
    ApiError::invalid("unsupported_value", format!("{}: {message}", field.name)).param(field.name)
}
