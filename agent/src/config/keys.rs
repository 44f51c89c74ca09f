//! The one list of keys: what each means, its default, and how text becomes its value.

use super::{Config, LogFormat, near};
use std::fmt::Write as _;
use std::net::SocketAddr;

/// One key of the file.
pub struct Key {
    /// `section.key`, or `key` alone at the top.
    pub path: &'static str,
    /// What it decides.
    pub doc: &'static str,
    /// Its value as a TOML literal.
    pub get: fn(&Config) -> String,
    /// Sets it from the text of a variable or flag; the error says what was expected.
    pub set: fn(&mut Config, &str) -> Result<(), String>,
}

impl Key {
    /// The environment variable over it: `gateway.listen` -> `UNAMESH_GATEWAY_LISTEN`.
    pub fn variable(&self) -> String {
        format!(
            "UNAMESH_{}",
            self.path.replace('.', "_").to_ascii_uppercase()
        )
    }

    /// `("gateway", "listen")`; the section is empty at the top.
    pub fn split(&self) -> (&'static str, &'static str) {
        self.path.split_once('.').unwrap_or(("", self.path))
    }
}

macro_rules! keys {
    ($($path:literal, $($field:ident).+, $doc:literal;)+) => {
        &[$(Key {
            path: $path,
            doc: $doc,
            get: |config| Setting::literal(&config.$($field).+),
            set: |config, text| Setting::parse(text).map(|value| config.$($field).+ = value),
        }),+]
    };
}

/// Every key but those of `[[engine]]`, in the order of the file.
pub const KEYS: &[Key] = keys! {
    "name", name,
        "This machine's name in tables and answers. Empty: the host's name.";
    "gateway.listen", gateway.listen,
        "Where the OpenAI-style HTTP API listens (TCP). Port 0: any free one. On an address that other machines reach, they need the token from the state directory.";
    "gateway.open", gateway.open,
        "Other machines may use the OpenAI endpoints without that token.";
    "mesh.listen", mesh.listen,
        "Where the data plane listens (UDP). Port 0: any free one.";
    "mesh.swarm_port", mesh.swarm_port,
        "UDP port of the gossip swarm. 0: any free one (it is advertised).";
    "mesh.join_port", mesh.join_port,
        "UDP port for joining, open only while an invitation is. 0: any free one.";
    "mesh.seeds", mesh.seeds,
        "Data planes to try besides those that are found: [\"192.168.1.20:11400\"].";
    "mesh.mdns", mesh.mdns,
        "Announce this machine and find others by multicast DNS.";
    "mesh.advertise", mesh.advertise,
        "Tell others these addresses of the data plane instead of this machine's own, behind a port forward or in a container: [\"192.168.1.20:11400\"].";
    "engines.detect", engines.detect,
        "Look for engines on their standard ports of this machine (Ollama 11434, llama.cpp 8080, LM Studio 1234, vLLM 8000).";
    "serve.grace_ms", serve.grace_ms,
        "Milliseconds that an answer is kept and continued after its client's connection was lost.";
    "serve.queue", serve.queue,
        "Requests that may wait for a slot of one engine; beyond it the answer is `busy`.";
    "serve.drain_ms", serve.drain_ms,
        "Milliseconds that running answers get at shutdown to move to another machine or end.";
    "serve.drill", serve.drill,
        "An administrator of the mesh may have this machine fail on purpose for up to 10 s (`unamesh drill`), while others ask it.";
    "power.drain_below", power.drain_below,
        "On battery with less than this many percent, this machine serves nobody: running answers move, new ones go elsewhere. It serves again 5 points above that, or on mains. 0: never mind.";
    "power.drain_above_c", power.drain_above_c,
        "The same above so many degrees Celsius of its processor or a graphics card; it serves again 8 degrees below that. 0: never mind.";
    "power.keep_awake", power.keep_awake,
        "Do not let the machine fall asleep by itself while it answers, and for 10 s after. A closed lid is stronger.";
    "log.level", log.level,
        "error, warn, info, debug or trace; per module: \"info,unamesh_client=debug\". Prompts, answers and keys are never logged.";
    "log.format", log.format,
        "\"text\", or \"json\" for one object a line.";
    "runtime.workers", runtime.workers,
        "Worker threads of the agent. Engines do the computing: one is enough for a home, and answers soonest.";
};

/// A key of `[[engine]]`: name, meaning, default as a TOML literal.
pub const ENGINE_KEYS: &[(&str, &str, &str)] = &[
    (
        "name",
        "Unique on this machine; appears in tables. Required.",
        "\"starter\"",
    ),
    (
        "kind",
        "The API: \"auto\" (ask the engine), \"llama.cpp\", \"ollama\", \"openai\", \"vllm\", \"lmstudio\"; \
         of speech: \"openai-speech\", \"piper\", \"chatterbox\", \"wyoming\", \"glm-asr\", \"whisper\", \"system\".",
        "\"auto\"",
    ),
    (
        "url",
        "Its base URL. Required.",
        "\"http://127.0.0.1:8080\"",
    ),
    (
        "command",
        "Program and arguments: the agent starts, watches, restarts and stops it. Empty: somebody else runs it.",
        "[]",
    ),
    (
        "cwd",
        "Working directory of the command. Absent: the agent's.",
        "\".\"",
    ),
    ("env", "Variables for the command.", "{}"),
    (
        "slots",
        "Requests at the same time. 0: what the engine says, else 1.",
        "0",
    ),
    (
        "api_key_env",
        "The environment variable that holds its API key. Empty: none.",
        "\"\"",
    ),
    (
        "health",
        "Path to ask for health. Empty: the API's own.",
        "\"\"",
    ),
];

/// The documented default file: every key with its meaning and default. It parses to
/// [`Config::default`].
pub fn documented_default() -> String {
    let config = Config::default();
    let mut out = String::from(
        "# UnaMesh configuration. Every key stands here with its default.\n\
         # UNAMESH_* variables override this file (gateway.listen: UNAMESH_GATEWAY_LISTEN),\n\
         # flags override both (--set gateway.listen=127.0.0.1:11500).\n",
    );
    let mut section = "";
    for key in KEYS {
        let (of, name) = key.split();
        if of != section {
            let _ = write!(out, "\n[{of}]");
            section = of;
        }
        let value = (key.get)(&config);
        let _ = writeln!(out, "\n{}{name} = {value}", comment(key.doc));
    }
    out.push_str("\n# One such block for each engine that is not found by itself.\n# [[engine]]\n");
    for (name, doc, value) in ENGINE_KEYS {
        let _ = writeln!(out, "{}# {name} = {value}", comment(doc));
    }
    out
}

/// Variables that are no keys of the file.
const OTHER_VARIABLES: [&str; 3] = ["UNAMESH_STATE", "UNAMESH_CONFIG", "UNAMESH_NVML_LIBRARY"];

/// `None` if the variable `name` sets something; else what was probably meant.
pub fn unknown_variable(name: &str) -> Option<Option<String>> {
    let known: Vec<String> = KEYS
        .iter()
        .map(Key::variable)
        .chain(OTHER_VARIABLES.map(str::to_owned))
        .collect();
    if known.iter().any(|k| k == name) {
        return None;
    }
    Some(near::nearest(name, known.iter().map(String::as_str)).map(str::to_owned))
}

/// `doc` as comment lines of at most 90 columns.
fn comment(doc: &str) -> String {
    const WIDTH: usize = 90;
    let mut out = String::from("#");
    let mut column = 1;
    for word in doc.split(' ') {
        if column + 1 + word.len() > WIDTH {
            out.push_str("\n#");
            column = 1;
        }
        out.push(' ');
        out.push_str(word);
        column += 1 + word.len();
    }
    out.push('\n');
    out
}

/// A value that can be written in a file, a variable and a flag.
trait Setting: Sized {
    fn literal(&self) -> String;
    fn parse(text: &str) -> Result<Self, String>;
}

impl Setting for String {
    fn literal(&self) -> String {
        toml::Value::String(self.clone()).to_string()
    }
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Setting for bool {
    fn literal(&self) -> String {
        self.to_string()
    }
    fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err("expected true or false".into()),
        }
    }
}

impl Setting for SocketAddr {
    fn literal(&self) -> String {
        format!("\"{self}\"")
    }
    fn parse(text: &str) -> Result<Self, String> {
        text.parse::<SocketAddr>()
            .map_err(|_| "expected address:port, for example 127.0.0.1:11400".into())
    }
}

impl Setting for Vec<String> {
    fn literal(&self) -> String {
        toml::Value::from(self.clone()).to_string()
    }
    /// Comma-separated.
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text
            .split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect())
    }
}

impl Setting for Vec<SocketAddr> {
    fn literal(&self) -> String {
        let texts: Vec<String> = self.iter().map(SocketAddr::to_string).collect();
        toml::Value::from(texts).to_string()
    }
    /// Comma-separated.
    fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|s| !s.is_empty());
        parts.map(<SocketAddr as Setting>::parse).collect()
    }
}

impl Setting for LogFormat {
    fn literal(&self) -> String {
        match self {
            LogFormat::Text => "\"text\"".into(),
            LogFormat::Json => "\"json\"".into(),
        }
    }
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("expected text or json".into()),
        }
    }
}

macro_rules! number {
    ($($type:ty),+) => {$(
        impl Setting for $type {
            fn literal(&self) -> String {
                self.to_string()
            }
            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("expected a number from 0 to {}", <$type>::MAX))
            }
        }
    )+};
}
number!(u8, u16, u64, usize);
