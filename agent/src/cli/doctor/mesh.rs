//! What the running agent knows of its peers, engines and clocks.

use super::Finding;
use super::machine::{clock_fix, no_engine};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::local::Local;
use crate::cli::mesh::Mesh;
use crate::cli::text::{Read, count};
use serde_json::{Value, json};
use std::time::Duration;
use unamesh_proto::timeouts;

/// Clocks further apart than this confuse logs.
const SKEW_WARN: Duration = Duration::from_secs(60);
/// Clocks further apart than this make adverts and certificates invalid.
const SKEW_FAIL: Duration = Duration::from_secs(20 * 3600);

/// `heard`: whether multicast works on this machine.
pub(super) async fn check(
    context: &Context,
    local: &Local,
    status: &Value,
    heard: Option<bool>,
    findings: &mut Vec<Finding>,
) -> Result<(), CliError> {
    for entry in status.at("findings").items() {
        findings.push(Finding::fail("agent", entry.at("text").text()));
    }
    let table = local.get("peers").await?;
    let others: Vec<&Value> = table
        .items()
        .iter()
        .filter(|p| p.at("me").as_bool() != Some(true))
        .collect();
    let alive: Vec<&&Value> = others
        .iter()
        .filter(|p| p.at("liveness").text() == "alive")
        .collect();
    if !alive.is_empty() {
        let names: Vec<&str> = alive.iter().map(|p| p.at("name").text()).collect();
        findings.push(Finding::fine(
            "peers",
            format!(
                "{} alive: {}",
                count(alive.len(), "other machine"),
                names.join(", ")
            ),
        ));
    } else if others.is_empty() {
        findings.push(alone(context, local, status, heard));
    }
    if !others.is_empty() {
        let answer = local.post("ping", &json!({})).await?;
        for peer in answer.items() {
            findings.extend(unreachable(peer, local.info.quic.port()));
            findings.extend(skewed(peer));
        }
    }
    engines(context, &local.get("engines").await?, findings);
    Ok(())
}

/// Whether a client without an agent reaches the mesh.
pub(super) async fn as_client(context: &Context) -> Finding {
    let reached = async {
        let mesh = Mesh::find(context).await?;
        let peers = mesh.peers().await;
        mesh.close().await;
        peers
    };
    match reached.await {
        Ok(peers) => Finding::fine(
            "peers",
            format!("{} answer", count(peers.items().len(), "machine")),
        ),
        Err(error) => {
            Finding::fail("peers", error.message).fix("on a machine of the mesh: unamesh doctor")
        }
    }
}

/// No other machine in the table. Hints without answers mean that UDP does not get through.
fn alone(context: &Context, local: &Local, status: &Value, heard: Option<bool>) -> Finding {
    let mdns = status.at("mdns");
    if mdns.at("hints").number() > 0 {
        let port = local.info.quic.port();
        let text = format!(
            "other machines announce themselves, and none answers: UDP port {port} is closed by a \
             firewall, here or there"
        );
        return firewall(Finding::fail("peers", text), port);
    }
    if mdns.at("other_meshes").number() > 0 {
        return Finding::warn("peers", "the machines in this network are of another mesh").fix(
            format!(
                "{}, and join with its link on the other",
                context.command("invite")
            ),
        );
    }
    let text = match heard {
        Some(false) => "no other machine is seen, since multicast does not get through",
        _ => "no other machine is seen: is its agent running, in the same network?",
    };
    Finding::warn("peers", text)
        .fix(format!(
            "{}, and `unamesh join` with its link on the other",
            context.command("invite")
        ))
        .fix(context.command("up --seed HOST:11400"))
}

/// A peer of which no path answers.
fn unreachable(peer: &Value, own_port: u16) -> Option<Finding> {
    let paths = peer.at("paths").items();
    if paths.iter().any(|p| p.at("rtt_ms").float().is_some()) {
        return None;
    }
    let name = peer.at("name").text();
    let text = match paths {
        [] => format!("{name} does not answer, and no address of it is known"),
        paths => format!("{name} does not answer ({})", tried(paths)),
    };
    let port = paths
        .first()
        .and_then(|p| p.at("addr").text().rsplit(':').next()?.parse().ok())
        .unwrap_or(own_port);
    let finding = Finding::warn("peers", text).fix(format!("on {name}: unamesh doctor"));
    Some(firewall(finding, port))
}

/// The addresses with what happened there; one reason for all is said once.
fn tried(paths: &[Value]) -> String {
    let addr = |p: &Value| p.at("addr").text().to_owned();
    let error = |p: &Value| p.at("error").text().to_owned();
    let first = paths.first().map(error).unwrap_or_default();
    if paths.iter().all(|p| error(p) == first) {
        let addrs: Vec<String> = paths.iter().map(addr).collect();
        return format!("{first}: {}", addrs.join(", "));
    }
    let each: Vec<String> = paths
        .iter()
        .map(|p| format!("{}: {}", addr(p), error(p)))
        .collect();
    each.join("; ")
}

fn firewall(finding: Finding, port: u16) -> Finding {
    if cfg!(target_os = "linux") {
        finding
            .fix(format!("sudo ufw allow {port}/udp"))
            .fix(format!(
                "sudo firewall-cmd --permanent --add-port={port}/udp && sudo firewall-cmd --reload"
            ))
    } else {
        finding.fix(format!("allow unamesh (UDP port {port}) in the firewall"))
    }
}

fn skewed(peer: &Value) -> Option<Finding> {
    let skew = peer.at("clock_skew_ms").as_i64()?;
    let off = Duration::from_millis(skew.unsigned_abs());
    if off < SKEW_WARN {
        return None;
    }
    let name = peer.at("name").text();
    let side = if skew > 0 { "ahead of" } else { "behind" };
    let text = format!("the clock of {name} is {} s {side} this one", off.as_secs());
    let finding = if off < SKEW_FAIL {
        Finding::warn("clock", text)
    } else {
        let hours = timeouts::ADVERT_WINDOW.as_secs() / 3600;
        Finding::fail(
            "clock",
            format!("{text}; beyond {hours} h it is not believed"),
        )
    };
    Some(finding.fix(format!("on the wrong one: {}", clock_fix())))
}

fn engines(context: &Context, answer: &Value, findings: &mut Vec<Finding>) {
    let engines = answer.items();
    if engines.is_empty() {
        findings.push(no_engine());
    }
    for engine in engines {
        let (name, models) = (engine.at("name").text(), engine.at("models").items().len());
        findings.push(match engine.at("health").text() {
            "down" => Finding::fail("engines", format!("the engine {name} does not answer"))
                .fix(format!("start it, then: {}", context.command("engines"))),
            _ if models == 0 => Finding::warn("engines", format!("the engine {name} has no model"))
                .fix(match engine.at("kind").text() {
                    "ollama" => "ollama pull mistral:7b",
                    _ => "load a model in it",
                }),
            health => Finding::fine(
                "engines",
                format!("{name} is {health}, {}", count(models, "model")),
            ),
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_peer_without_a_path_is_named_with_its_port() {
        let peer = json!({"name": "attic", "paths": [
            {"addr": "10.0.0.2:4444", "rtt_ms": null, "error": "timed out"},
        ]});
        let finding = unreachable(&peer, 1).unwrap();
        assert_eq!(finding.level, Level::Warn);
        assert!(
            finding.message.contains("timed out: 10.0.0.2:4444"),
            "{}",
            finding.message
        );
        assert!(
            finding.fix.iter().any(|f| f.contains("4444")),
            "{:?}",
            finding.fix
        );
        let reached = json!({"name": "attic", "paths": [
            {"addr": "10.0.0.2:4444", "rtt_ms": null, "error": "timed out"},
            {"addr": "100.64.0.2:4444", "rtt_ms": 3.0},
        ]});
        assert_eq!(unreachable(&reached, 1), None);
    }

    #[test]
    fn a_wrong_clock_is_told_by_how_much() {
        let skew = |ms: i64| skewed(&json!({"name": "attic", "clock_skew_ms": ms}));
        assert_eq!(skew(-900), None);
        assert_eq!(skewed(&json!({"name": "attic"})), None);
        let behind = skew(-120_000).unwrap();
        assert_eq!(behind.level, Level::Warn);
        assert!(
            behind.message.contains("120 s behind"),
            "{}",
            behind.message
        );
        assert_eq!(skew(86_400_000).unwrap().level, Level::Fail);
    }

    #[test]
    fn engines_that_cannot_answer_are_found() {
        let context = Context::new(crate::cli::args::Global::default());
        let mut findings = Vec::new();
        let answer = json!([
            {"name": "a", "kind": "ollama", "health": "ok", "models": []},
            {"name": "b", "kind": "llama.cpp", "health": "down", "models": []},
            {"name": "c", "kind": "llama.cpp", "health": "busy", "models": [{"name": "m"}]},
        ]);
        engines(&context, &answer, &mut findings);
        let levels: Vec<Level> = findings.iter().map(|f| f.level).collect();
        assert_eq!(levels, [Level::Warn, Level::Fail, Level::Fine]);
        assert_eq!(findings[0].fix, ["ollama pull mistral:7b"]);
    }
}
