//! What can be seen without an agent.

use super::Finding;
use crate::capacity::{Sampler, Sources};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::config::{self, Config, ConfigError};
use crate::engine::detect;
use crate::state::{StateDir, StateError};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use unamesh_client::clock;
use unamesh_client::identity::{Credentials, IdentityError, MemberError, verify_member};
use unamesh_proto::Wall;

/// A certificate that ends sooner is worth a word.
const SOON: Duration = Duration::from_secs(14 * 86_400);
/// What is written to try the directory: an empty file fits on a full disk.
const TRIAL: [u8; 4096] = [0; 4096];
/// An engine on this machine answers a connection at once.
const CONNECT: Duration = Duration::from_millis(500);

/// The directory, its permissions, and who this machine is in the mesh.
pub(super) fn state(context: &Context) -> Result<Vec<Finding>, CliError> {
    let path = context.state_path()?;
    let mut findings = Vec::new();
    if !path.is_dir() {
        findings.push(unpaired(context));
        return Ok(findings);
    }
    let state = StateDir::open(&path)?;
    findings.push(
        match state
            .write("doctor", &TRIAL)
            .and_then(|()| state.remove("doctor"))
        {
            Ok(()) => Finding::fine("state", format!("{} can be written", path.display())),
            Err(error) => {
                let disk = matches!(error, StateError::Full(_) | StateError::ReadOnly(_));
                Finding::fail("state", error.to_string()).fix(if disk {
                    format!("df -h {}", path.display())
                } else {
                    format!("ls -la {}", path.display())
                })
            }
        },
    );
    findings.extend(exposed(&path));
    findings.push(identity(context, &state));
    Ok(findings)
}

fn unpaired(context: &Context) -> Finding {
    Finding::fail("identity", "this machine is in no mesh")
        .fix(context.command("init"))
        .fix(context.command("join LINK"))
}

/// The directory holds keys: others have no business in it.
#[cfg(unix)]
fn exposed(path: &std::path::Path) -> Option<Finding> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    (mode & 0o077 != 0).then(|| {
        Finding::warn(
            "permissions",
            format!("other users can look into {}", path.display()),
        )
        .fix(format!("chmod 700 {}", path.display()))
    })
}

#[cfg(not(unix))]
fn exposed(_path: &std::path::Path) -> Option<Finding> {
    None
}

fn identity(context: &Context, state: &StateDir) -> Finding {
    let credentials = match Credentials::load(state.path()) {
        Ok(credentials) => credentials,
        Err(IdentityError::NotPaired { .. }) => return unpaired(context),
        Err(error) => return Finding::fail("identity", error.to_string()),
    };
    let now = clock::wall();
    let valid_at = |at: Wall| verify_member(&credentials.certificate, &credentials.ca, at);
    let later = Wall::from_millis(now.as_millis() + u64::try_from(SOON.as_millis()).unwrap_or(0));
    match (valid_at(now), valid_at(later)) {
        (Ok(member), Ok(_)) => Finding::fine(
            "identity",
            format!(
                "member of {:?} as {}, node {}",
                credentials.mesh_name,
                member.role,
                member.node.short()
            ),
        ),
        (Ok(_), Err(_)) => Finding::warn(
            "identity",
            "this machine's certificate ends within two weeks",
        )
        .fix("unamesh invite, on the machine that made the mesh, then join again here"),
        (Err(MemberError::NotYetValid), _) => Finding::fail(
            "clock",
            "this machine's certificate is not valid yet: the clock is behind",
        )
        .fix(clock_fix()),
        (Err(MemberError::Expired), _) => Finding::fail(
            "identity",
            "this machine's certificate has ended, or the clock is ahead",
        )
        .fix("unamesh invite, on the machine that made the mesh, then join again here")
        .fix(clock_fix()),
        (Err(error), _) => Finding::fail("identity", error.to_string()),
    }
}

/// How to set the clock.
pub(super) fn clock_fix() -> &'static str {
    if cfg!(target_os = "linux") {
        "sudo timedatectl set-ntp true"
    } else if cfg!(target_os = "macos") {
        "sudo sntp -sS time.apple.com"
    } else {
        "w32tm /resync"
    }
}

/// The configuration in effect, or the default where it is unusable.
pub(super) fn configuration(
    context: &Context,
    findings: &mut Vec<Finding>,
) -> Result<Config, CliError> {
    let sources = context.sources(Vec::new())?;
    let loaded = Config::load(&sources);
    findings.push(match (&loaded, &sources.file) {
        (Ok(_), Some(file)) => Finding::fine("config", format!("{} is valid", file.display())),
        (Ok(_), None) => Finding::fine("config", "no configuration file: defaults apply"),
        (Err(error), file) => {
            let finding = Finding::fail("config", error.to_string());
            match (error, file) {
                (ConfigError::Read { .. }, _) | (_, None) => finding,
                (_, Some(file)) => finding.fix(format!("${{EDITOR:-vi}} {}", file.display())),
            }
        }
    });
    Ok(loaded.unwrap_or_default())
}

/// Variables that do harm, or nothing.
pub(super) fn environment(findings: &mut Vec<Finding>) {
    if std::env::var_os("SSLKEYLOGFILE").is_some() {
        findings.push(
            Finding::warn(
                "environment",
                "SSLKEYLOGFILE is set: programs write session keys to a file (the agent does not)",
            )
            .fix("unset SSLKEYLOGFILE"),
        );
    }
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|n| n.starts_with("UNAMESH_")) else {
            continue;
        };
        if let Some(near) = config::unknown_variable(name) {
            let meant = near
                .map(|n| format!(" (did you mean {n}?)"))
                .unwrap_or_default();
            findings.push(
                Finding::warn("environment", format!("{name} is no setting{meant}"))
                    .fix(format!("unset {name}")),
            );
        }
    }
}

/// A GPU whose driver is there and does not work.
pub(super) fn gpu(findings: &mut Vec<Finding>) {
    let mut sampler = Sampler::new(Sources::default());
    sampler.sample();
    if let Some(reason) = sampler.driver_failure() {
        findings.push(
            Finding::fail(
                "gpu",
                format!("the NVIDIA driver does not answer: {reason}"),
            )
            .fix("nvidia-smi"),
        );
    }
    for gpu in &sampler.hardware().gpus {
        findings.push(Finding::fine("gpu", format!("{} is seen", gpu.name)));
    }
}

/// Whether the agent could open its ports.
pub(super) async fn ports(context: &Context, config: &Config, findings: &mut Vec<Finding>) {
    let gateway = config.gateway.listen;
    let data = config.mesh.listen;
    let opened = [
        (
            "gateway",
            gateway,
            "tcp",
            TcpListener::bind(gateway).await.err(),
        ),
        ("mesh", data, "udp", UdpSocket::bind(data).await.err()),
    ];
    for (section, addr, protocol, error) in opened {
        // Any free port: there always is one.
        if addr.port() == 0 && error.is_none() {
            continue;
        }
        findings.push(match error {
            None => Finding::fine("port", format!("{addr}/{protocol} is free")),
            Some(error) => port_taken(context, section, addr, protocol, &error),
        });
    }
}

fn port_taken(
    context: &Context,
    section: &str,
    addr: SocketAddr,
    protocol: &str,
    error: &std::io::Error,
) -> Finding {
    let other = SocketAddr::new(addr.ip(), addr.port().wrapping_add(1).max(1024));
    let flag = if section == "gateway" {
        "--gateway"
    } else {
        "--listen"
    };
    let finding = Finding::fail(
        "port",
        format!("{addr}/{protocol} cannot be opened: {error}"),
    )
    .fix(context.command(&format!("up {flag} {other}")));
    if cfg!(target_os = "linux") {
        let kind = if protocol == "tcp" { "t" } else { "u" };
        finding.fix(format!(
            "see who has it: sudo ss -l{kind}np 'sport = :{}'",
            addr.port()
        ))
    } else {
        finding
    }
}

/// Whether an engine is there, without an agent that would know.
pub(super) async fn engines(config: &Config, findings: &mut Vec<Finding>) {
    let mut found = Vec::new();
    if config.engines.detect {
        for (name, port) in detect::STANDARD {
            let connect = TcpStream::connect(("127.0.0.1", port));
            if let Ok(Ok(_)) = tokio::time::timeout(CONNECT, connect).await {
                found.push(format!("port {port} answers (usually {name})"));
            }
        }
    }
    for engine in &config.engine {
        found.push(format!("{} is configured", engine.name));
    }
    findings.push(match found.is_empty() {
        false => Finding::fine("engines", found.join(", ")),
        true => no_engine(),
    });
}

/// Nothing computes here: the mesh's other machines still can.
pub(super) fn no_engine() -> Finding {
    Finding::warn(
        "engines",
        "no engine answers on this machine; it can ask others, and not answer",
    )
    .fix("ollama serve")
    .fix("an [[engine]] in the configuration (see unamesh up --print-config)")
    .fix("unamesh demo, which installs a small one")
}
