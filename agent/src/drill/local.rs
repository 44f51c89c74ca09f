//! A mesh of the drill's own: three agents on this machine. The first has no engine and is
//! asked; the other two have one each and fail in turn.
//!
//! Nothing needs root: a cable is cut in the relay between the agents
//! ([`crate::local_mesh::relay`]), the rest are signals to processes of our own.

use super::answer::{Answer, Fault, Question};
use super::case::Case;
use super::trial::Stage;
use crate::bench::engine;
use crate::local_mesh::process::{self, Signal, TestEngine, until};
use crate::local_mesh::{Agent, LocalError, Mesh, Setup};
use crate::starter::{self, Starter};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Between tokens of the test engine: 50 tokens a second, a home's usual speed.
const ITL_US: u32 = 20_000;
/// Before its first token.
pub const TTFT_US: u32 = 30_000;
/// Answers before the first trial: the agents learn how fast the engines are, as they have
/// after an hour of use.
const WARM: usize = 12;
/// A thawed agent answers again within this.
const THAW: Duration = Duration::from_secs(20);

/// The agents, their engines and what they are asked.
pub struct LocalStage {
    mesh: Mesh,
    engines: Vec<Computes>,
    model: &'static str,
    request: Value,
    /// The uninterrupted answer.
    expected: String,
    victim: Option<usize>,
}

/// What computes behind one agent.
enum Computes {
    /// A test engine, of which every token is known.
    Test(TestEngine),
    /// llama.cpp, which its agent manages; the file with its process id.
    Starter(PathBuf),
}

impl LocalStage {
    /// Starts agents before `peers` engines (on `starter`'s, if there is one), and asks for
    /// answers of `tokens` tokens.
    ///
    /// # Errors
    /// Something does not start.
    pub fn start(
        peers: usize,
        tokens: usize,
        starter: Option<&Starter>,
    ) -> Result<Self, LocalError> {
        let mut setups = vec![Setup::default()];
        let mut engines = Vec::new();
        for at in 0..peers {
            let (setup, engine) = match starter {
                Some(starter) => real(starter, at)?,
                None => {
                    let engine = TestEngine::start()?;
                    (Setup::openai(engine.addr), Computes::Test(engine))
                }
            };
            setups.push(setup);
            engines.push(engine);
        }
        let model = match starter {
            Some(_) => starter::MODEL,
            None => engine::MODEL,
        };
        let mesh = Mesh::start_relayed(&setups, model)?;
        let request = json!({
            "model": model,
            "messages": [{"role": "user", "content": "Tell me about the sea."}],
            "max_tokens": tokens,
            "temperature": 0,
            "bench_ttft_us": TTFT_US,
            "bench_itl_us": ITL_US,
        });
        let mut stage = LocalStage {
            mesh,
            engines,
            model,
            request,
            expected: String::new(),
            victim: None,
        };
        for _ in 0..WARM {
            stage.expected = stage.uninterrupted()?;
        }
        Ok(stage)
    }

    /// Adds what the asked agent logged: it decided what was done.
    pub fn explain(&self, error: LocalError) -> LocalError {
        let log = self.mesh.agents.first().map(Agent::log_tail);
        LocalError::new(error, log.unwrap_or_default())
    }

    /// The peers' node ids, in the order in which the asked agent would choose them.
    ///
    /// # Errors
    /// It does not answer.
    pub fn ranked(&self) -> Result<Vec<String>, LocalError> {
        self.first()?.ranked(self.model)
    }

    fn first(&self) -> Result<&Agent, LocalError> {
        let first = self.mesh.agents.first();
        first.ok_or_else(|| LocalError::new("drill", "no agent"))
    }

    fn asked(&self) -> Result<Question, LocalError> {
        Ok(Question {
            door: self.first()?.door(),
            body: self.request.clone(),
            first: None,
        })
    }

    fn uninterrupted(&self) -> Result<String, LocalError> {
        let answer = Answer::read(&self.asked()?, &Fault::default(), |_, _| {});
        match answer.failed {
            Some(why) => Err(LocalError::new("the answer to compare with", why)),
            None => Ok(answer.text),
        }
    }

    /// Agent `at`, and its engine.
    fn parts(&mut self, at: usize) -> Result<(&mut Agent, &mut Computes), LocalError> {
        let engine = at.checked_sub(1).and_then(|at| self.engines.get_mut(at));
        match (self.mesh.agents.get_mut(at), engine) {
            (Some(agent), Some(engine)) => Ok((agent, engine)),
            _ => Err(LocalError::new("drill", "no such agent")),
        }
    }

    fn cut(&self, at: usize, off: bool) {
        if let Some(relay) = &self.mesh.relay {
            relay.cut(at, off);
        }
    }

    /// Waits until the asked agent reaches agent `at` again, however long its packets back
    /// off.
    fn reaches(&self, at: usize) -> Result<(), LocalError> {
        let node = self.mesh.agents.get(at).map(|agent| agent.node.as_str());
        let door = self.first()?.door();
        until("the agent is reached again", THAW, || {
            let answer = door.call("ping", Some(&json!({"node": node})))?;
            let paths = answer[0]["paths"].as_array().into_iter().flatten();
            let alive = answer[0]["liveness"] == "alive";
            let reached = paths.filter(|path| path["error"].is_null()).count();
            Ok((alive && reached > 0).then_some(()))
        })
    }
}

impl Stage for LocalStage {
    fn question(&mut self) -> Result<Question, LocalError> {
        self.asked()
    }

    fn expected(&self) -> Option<&str> {
        Some(&self.expected)
    }

    fn strike(&mut self, case: Case, node: &str) -> Result<bool, LocalError> {
        let at = self.mesh.agents.iter().position(|agent| agent.node == node);
        let at = at.ok_or_else(|| LocalError::new("drill", "nobody answers"))?;
        self.victim = Some(at);
        let (agent, engine) = self.parts(at)?;
        match case {
            Case::Kill => {
                agent.kill();
                engine.kill();
            }
            Case::Freeze => agent.process()?.signal(Signal::Freeze)?,
            Case::Cut => self.cut(at, true),
            Case::Hang => engine.hang(true)?,
            Case::Drain => agent.process()?.signal(Signal::Terminate)?,
        }
        Ok(true)
    }

    fn mend(&mut self, case: Case) -> Result<(), LocalError> {
        let Some(at) = self.victim.take() else {
            return Ok(());
        };
        let (agent, engine) = self.parts(at)?;
        match case {
            Case::Kill => engine.restart()?,
            Case::Freeze => agent.process()?.signal(Signal::Thaw)?,
            Case::Cut => self.cut(at, false),
            Case::Hang => engine.hang(false)?,
            Case::Drain => agent.process()?.ended()?,
        }
        match case {
            Case::Kill | Case::Drain => {
                self.parts(at)?.0.start()?;
                self.mesh.knows(at)?;
            }
            Case::Freeze | Case::Cut => self.reaches(at)?,
            Case::Hang => {}
        }
        self.mesh.chooses(self.model, self.engines.len())
    }
}

impl Computes {
    fn kill(&mut self) {
        // The starter engine's life hangs on its agent's.
        if let Computes::Test(engine) = self {
            engine.kill();
        }
    }

    fn restart(&mut self) -> Result<(), LocalError> {
        match self {
            Computes::Test(engine) => engine.restart(),
            Computes::Starter(_) => Ok(()),
        }
    }

    fn hang(&mut self, hung: bool) -> Result<(), LocalError> {
        let pid_file = match self {
            Computes::Test(engine) => return engine.hang(hung),
            Computes::Starter(pid_file) => pid_file,
        };
        let text = fs::read_to_string(pid_file).map_err(LocalError::during("the engine"))?;
        let pid = text.trim().parse();
        let pid = pid.map_err(LocalError::during("the engine's process id"))?;
        process::send(pid, if hung { Signal::Freeze } else { Signal::Thaw })
    }
}

/// An agent's starter engine.
fn real(starter: &Starter, at: usize) -> Result<(Setup, Computes), LocalError> {
    let port = starter::free_port().map_err(LocalError::during("a port"))?;
    let name = format!("unamesh-drill-{}-{at}.pid", std::process::id());
    let pid_file = std::env::temp_dir().join(name);
    let extra = ["--pid-file".to_owned(), pid_file.display().to_string()];
    let config = starter
        .config_with("starter", port, &extra)
        .map_err(LocalError::during("the starter engine's configuration"))?;
    let setup = Setup {
        config,
        mdns: false,
    };
    Ok((setup, Computes::Starter(pid_file)))
}

impl Drop for Computes {
    fn drop(&mut self) {
        if let Computes::Starter(pid_file) = self {
            // It lies among temporary files.
            let _ = fs::remove_file(pid_file);
        }
    }
}
