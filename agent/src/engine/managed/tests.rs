//! Real processes (a shell that sleeps or exits) behind an adapter that reaches nothing.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::engine::{EngineSpec, adapter};

fn shell(script: &str) -> Command {
    let args = vec!["-c".to_owned(), script.to_owned()];
    Command {
        program: "sh".into(),
        args,
        ..Command::default()
    }
}

/// An adapter for a port where nobody listens.
async fn nobody() -> Arc<dyn Engine> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let kind = Some(EngineKind::LlamaCpp);
    adapter(&EngineSpec {
        name: "e".into(),
        kind,
        url,
        slots: None,
        api_key: None,
    })
    .unwrap()
}

struct Run {
    managed: Arc<Managed>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

async fn start(script: &str) -> Run {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let managed = Managed::start(shell(script), nobody().await, None, &tasks, stop.clone());
    Run {
        managed,
        tasks,
        stop,
    }
}

impl Run {
    async fn pid(&self) -> u32 {
        let mut states = self.managed.states();
        let state = states
            .wait_for(|s| matches!(s, State::Starting { .. }))
            .await
            .unwrap();
        match *state {
            State::Starting { pid, .. } => pid,
            _ => 0,
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        assert_eq!(self.managed.state(), State::Stopped);
    }
}

fn lives(pid: u32) -> bool {
    use rustix::process::{Pid, test_kill_process};
    test_kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()).is_ok()
}

#[tokio::test]
async fn a_process_that_exits_is_restarted_and_its_last_words_are_kept() {
    let run = start("echo 'port is taken' >&2; exit 3").await;
    let mut states = run.managed.states();
    for _ in 0..2 {
        let ended = |s: &State| matches!(s, State::Waiting { reason, .. } if !reason.is_empty());
        let state = states.wait_for(ended).await.unwrap().clone();
        let State::Waiting { reason, .. } = state else {
            unreachable!()
        };
        assert!(reason.contains("exit status: 3: port is taken"), "{reason}");
        let said = run.managed.describe().await.unwrap_err();
        assert!(matches!(&said, EngineError::Down { reason, .. } if reason.contains("taken")));
        states
            .wait_for(|s| matches!(s, State::Starting { .. }))
            .await
            .unwrap();
    }
    run.end().await;
}

#[tokio::test]
async fn stopping_ends_the_whole_group() {
    let mark = tempfile::tempdir().unwrap();
    let file = mark.path().join("child");
    let run = start(&format!("sleep 600 & echo $! > {}; wait", file.display())).await;
    let leader = run.pid().await;
    let child = loop {
        match std::fs::read_to_string(&file)
            .ok()
            .and_then(|t| t.trim().parse::<u32>().ok())
        {
            Some(pid) => break pid,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert!(lives(leader) && lives(child));
    run.end().await;
    assert!(!lives(leader));
    // The orphan is reaped by init, at its leisure.
    let state = format!("/proc/{child}/stat");
    let dead = || std::fs::read_to_string(&state).map_or(true, |s| s.contains(") Z "));
    while !dead() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_is_killed() {
    let mark = tempfile::tempdir().unwrap();
    let deaf = mark.path().join("deaf");
    let script = format!(
        "trap '' TERM; touch {}; while :; do sleep 0.05; done",
        deaf.display()
    );
    let run = start(&script).await;
    let pid = run.pid().await;
    while !deaf.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = Instant::now();
    run.end().await;
    assert!(before.elapsed() >= STOP_ENGINE);
    assert!(!lives(pid));
}

#[tokio::test]
async fn its_standard_input_ends_with_the_agents_hold_on_it() {
    let mut process = Process::spawn(&shell("cat; exit 7")).unwrap();
    process.close_stdin();
    assert!(process.ended().await.contains("exit status: 7"));
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_a_reason() {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let command = Command {
        program: "/no/such/engine".into(),
        ..Command::default()
    };
    let managed = Managed::start(command, nobody().await, None, &tasks, stop.clone());
    let mut states = managed.states();
    let ended = |s: &State| matches!(s, State::Waiting { reason, .. } if reason.contains("/no/such/engine"));
    states.wait_for(ended).await.unwrap();
    Run {
        managed,
        tasks,
        stop,
    }
    .end()
    .await;
}

#[test]
fn the_pause_doubles_up_to_its_limit() {
    assert!(backoff(1) <= RESTART_MIN && backoff(1) >= RESTART_MIN / 2);
    assert!(backoff(3) > RESTART_MIN);
    assert!(backoff(1000) <= RESTART_MAX && backoff(1000) >= RESTART_MAX / 2);
}

/// Only what is surely of an earlier life is ended, and with all that it started.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_engine_of_an_earlier_life_ends_with_this_one() {
    let dir = tempfile::tempdir().unwrap();
    let state = crate::state::StateDir::open(dir.path()).unwrap();
    let file = PidFile::new(&state, 0);
    assert!(file.earlier().is_none(), "nothing was written down");
    let mut process = Process::spawn(&shell("sleep 60 & wait")).unwrap();
    file.write(process.pid());
    let earlier = file.earlier().unwrap();
    // Its parent takes its exit status, as init does of an orphan.
    let (_, ended) = tokio::join!(earlier.stop(STOP_ENGINE), process.ended());
    assert!(ended.contains("15"), "{ended}");
    assert!(file.earlier().is_none());

    // The same id in another life.
    let process = Process::spawn(&shell("sleep 60")).unwrap();
    let other = format!("{} 1 another-boot", process.pid());
    state.write("engine-0.pid", other.as_bytes()).unwrap();
    assert!(file.earlier().is_none());
}
