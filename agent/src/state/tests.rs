#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use unamesh_proto::{NodeId, Wall, limits};

fn state() -> (tempfile::TempDir, StateDir) {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(&dir.path().join("a/b")).unwrap();
    (dir, state)
}

#[test]
fn a_write_replaces_all_or_nothing() {
    let (_dir, state) = state();
    assert_eq!(state.read("x").unwrap(), None);
    state.write("x", b"one").unwrap();
    state.write("x", b"two").unwrap();
    assert_eq!(state.read("x").unwrap().unwrap(), b"two");
    let names: Vec<_> = std::fs::read_dir(state.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "no temporary file stays");
    state.remove("x").unwrap();
    state.remove("x").unwrap();
}

#[cfg(unix)]
#[test]
fn files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, state) = state();
    state.write("x", b"one").unwrap();
    let mode = |p: &std::path::Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(state.path()), 0o700);
    assert_eq!(mode(&state.file("x")), 0o600);
}

#[test]
fn one_agent_a_directory() {
    let (_dir, state) = state();
    assert!(!state.is_locked());
    let lock = state.lock().unwrap().unwrap();
    assert!(state.is_locked());
    let info = AgentInfo {
        pid: 4711,
        node: "n".into(),
        name: "desk".into(),
        version: "0".into(),
        gateway: "127.0.0.1:1".parse().unwrap(),
        quic: "[::]:2".parse().unwrap(),
        started_ms: 3,
    };
    info.write(&state).unwrap();
    assert_eq!(AgentInfo::read(&state).unwrap().unwrap(), info);
    let refused = state.lock().unwrap_err();
    let expected = StateError::Locked {
        dir: state.path().to_owned(),
        pid: Some(4711),
    };
    assert_eq!(refused, expected);
    assert!(refused.to_string().contains("process 4711"), "{refused}");
    drop(lock);
    assert!(!state.is_locked());
    state.lock().unwrap().unwrap();
    AgentInfo::remove(&state).unwrap();
    assert_eq!(AgentInfo::read(&state).unwrap(), None);
}

#[test]
fn the_epoch_rises_even_if_the_clock_is_set_back() {
    let (_dir, state) = state();
    assert_eq!(state.next_epoch(Wall::from_millis(1000)), (1000, None));
    assert_eq!(state.next_epoch(Wall::from_millis(5)), (1001, None));
    assert_eq!(state.next_epoch(Wall::from_millis(2000)), (2000, None));
    state.write("epoch", b"rubbish").unwrap();
    assert_eq!(state.next_epoch(Wall::from_millis(7)), (7, None));
}

#[test]
fn the_token_is_made_once_and_never_shown() {
    let (_dir, state) = state();
    assert!(AdminToken::load(&state).unwrap().is_none());
    let (token, unwritten) = AdminToken::load_or_create(&state).unwrap();
    assert_eq!(unwritten, None);
    let (again, _) = AdminToken::load_or_create(&state).unwrap();
    assert!(again.matches(token.reveal()));
    assert!(
        !again.matches("") && !again.matches(&token.reveal().replace(&token.reveal()[..1], "_"))
    );
    assert!(!format!("{token:?}").contains(token.reveal()));
    state.write("admin.token", b"short").unwrap();
    assert!(matches!(
        AdminToken::load(&state),
        Err(StateError::Corrupt { .. })
    ));
}

/// `/dev/full` refuses every byte with ENOSPC, as a full disk does.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_says_what_to_do() {
    use std::io::Write;
    let mut full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let error = full.write_all(b"x").unwrap_err();
    let error = StateError::of(std::path::Path::new("/s/speeds.json"), &error);
    assert_eq!(error, StateError::Full("/s/speeds.json".into()));
    assert!(error.to_string().contains("free some space"), "{error}");
}

/// A directory in which nothing can be made (a file stands in its place: root ignores modes)
/// still yields an epoch, a token and a cache.
#[test]
fn without_a_writable_directory_the_agent_goes_on() {
    let (_dir, state) = state();
    std::fs::remove_dir(state.path()).unwrap();
    std::fs::write(state.path(), b"").unwrap();
    let (epoch, error) = state.next_epoch(Wall::from_millis(9));
    assert_eq!(epoch, 9);
    assert!(error.is_some());
    let mut good = LastGood::load(&state);
    good.worked(
        NodeId([1; 32]),
        "10.0.0.1:1".parse().unwrap(),
        Wall::from_millis(1),
    );
    assert!(good.save().is_err());
    assert_eq!(good.candidates().len(), 1);
}

#[test]
fn read_only_and_forbidden_are_told_apart() {
    use std::io::{Error, ErrorKind};
    let path = std::path::Path::new("/s/x");
    let of = |kind: ErrorKind| StateError::of(path, &Error::from(kind));
    assert_eq!(
        of(ErrorKind::ReadOnlyFilesystem),
        StateError::ReadOnly(path.into())
    );
    assert_eq!(
        of(ErrorKind::PermissionDenied),
        StateError::Denied(path.into())
    );
    assert!(
        of(ErrorKind::PermissionDenied)
            .to_string()
            .contains("chown")
    );
}

#[test]
fn last_good_addresses_come_back_newest_first() {
    let (_dir, state) = state();
    let (a, b) = (NodeId([1; 32]), NodeId([2; 32]));
    let addr = |n: u16| std::net::SocketAddr::from(([10, 0, 0, 1], n));
    let mut good = LastGood::load(&state);
    good.worked(a, addr(1), Wall::from_millis(1));
    good.worked(a, addr(2), Wall::from_millis(2));
    good.worked(b, addr(3), Wall::from_millis(3));
    for n in 0..20 {
        good.worked(b, addr(100 + n), Wall::from_millis(4));
    }
    good.save().unwrap();
    let good = LastGood::load(&state);
    let candidates = good.candidates();
    assert_eq!(candidates.len(), 2 + limits::MAX_PATHS);
    assert_eq!(candidates[0], (b, addr(119)));
    assert_eq!(
        candidates[limits::MAX_PATHS..],
        [(a, addr(2)), (a, addr(1))]
    );

    state.write("peers.json", b"{rubbish").unwrap();
    assert!(LastGood::load(&state).candidates().is_empty());
    assert!(state.read("peers.json.damaged").unwrap().is_some());
}

#[test]
fn speeds_survive_a_restart_and_stay_bounded() {
    use std::time::Duration;
    let (_dir, state) = state();
    let now = Wall::from_millis(1_000_000);
    let store = SpeedStore::load(&state);
    assert_eq!(store.stats("e", "m", now).samples, 0);
    store.observe("e", "m", now, |s| {
        s.observe_ttft(100, Duration::from_millis(80), now)
    });
    store.observe("e", "m", now, |s| {
        s.observe_itl(Duration::from_millis(20), now)
    });
    let before = store.stats("e", "m", now);
    assert!(before.samples > 0 && before.itl_ms > 0.0);
    store.save().unwrap();

    let store = SpeedStore::load(&state);
    assert_eq!(store.stats("e", "m", now), before);
    let later = Wall::from_millis(1_060_000);
    assert_eq!(store.stats("e", "m", later).age_s, 60);

    for n in 0..3000 {
        store.observe("e", &format!("m{n}"), later, |s| {
            s.observe_itl(Duration::from_millis(1), later);
        });
    }
    store.save().unwrap();
    assert_eq!(
        store.stats("e", "m", later).samples,
        0,
        "the oldest made room"
    );
    assert!(state.read("speeds.json").unwrap().unwrap().len() < 1 << 20);

    state.write("speeds.json", b"[{]").unwrap();
    assert_eq!(
        SpeedStore::load(&state).stats("e", "m2999", later).samples,
        0
    );
}

#[tokio::test]
async fn speeds_are_saved_when_the_agent_ends() {
    let (_dir, state) = state();
    let now = Wall::from_millis(1);
    let store = SpeedStore::load(&state);
    let stop = tokio_util::sync::CancellationToken::new();
    let saver = std::sync::Arc::clone(&store).keep_saved(stop.clone());
    let agent = async {
        store.observe("e", "m", now, |s| {
            s.observe_itl(std::time::Duration::from_millis(3), now)
        });
        stop.cancel();
    };
    tokio::join!(saver, agent);
    assert!(SpeedStore::load(&state).stats("e", "m", now).samples > 0);
}
