//! Things that happen to the machine that answers, in the middle of its answer, in the lab: the
//! answer is whole, and the pause is the backup's time to its first token and little more.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use unamesh_tests::doubles::script_engine::Script;
use unamesh_tests::home::{Answer, Home};
use unamesh_tests::impair::Way;
use unamesh_tests::measure::Samples;

const TRIALS: u64 = 5;
/// Beyond the backup's own time to first token: a process that is gone is noticed at once,
const GONE: Duration = Duration::from_millis(200);
/// one that is silent by its silence.
const SILENT: Duration = Duration::from_millis(450);

fn script() -> Script {
    Script {
        tokens: 80,
        ..Script::default()
    }
}

/// Asks [`TRIALS`] times, does `fault` to the host that answers and `repair` afterwards, and
/// tells the pauses beyond the backups' time to first token.
async fn trials(
    what: &str,
    fault: fn(&Home, usize),
    repair: impl AsyncFn(&mut Home, usize),
) -> Option<Samples> {
    let mut home = Home::lab(3).script(script()).start().await?;
    let (mut beyond, mut back) = (Samples::default(), Samples::default());
    for trial in 0..TRIALS {
        let (answer, victim) = broken(&home, trial, fault).await;
        beyond.push(answer.beyond_backup().expect("another machine went on"));
        let repaired = Instant::now();
        repair(&mut home, victim).await;
        home.whole().await;
        back.push(repaired.elapsed());
    }
    println!("{what}: beyond the backup's time to first token: {beyond}");
    println!("{what}: repaired, everybody reaches everybody: {back}");
    Some(beyond)
}

/// A whole answer to whose machine `fault` was done, at another token each trial, and that host.
async fn broken(home: &Home, trial: u64, fault: fn(&Home, usize)) -> (Answer, usize) {
    let mut victim = None;
    let answer = home
        .ask(0)
        .at_token(5 + 12 * trial, |peer| {
            victim = Some(peer);
            fault(home, peer);
        })
        .await;
    answer.is_whole();
    (answer, victim.unwrap())
}

#[tokio::test]
async fn a_killed_agent() {
    let beyond = trials("killed", Home::kill, Home::restart).await;
    assert!(beyond.is_none_or(|beyond| beyond.percentile(0.95) <= GONE));
}

#[tokio::test]
async fn a_frozen_host() {
    let thaw = async |home: &mut Home, host| home.thaw(host);
    let beyond = trials("frozen", Home::freeze, thaw).await;
    assert!(beyond.is_none_or(|beyond| beyond.percentile(0.95) <= SILENT));
}

#[tokio::test]
async fn a_cut_cable() {
    let mend = async |home: &mut Home, host| home.mend(host);
    let beyond = trials("cut", |home, host| home.cut(host), mend).await;
    assert!(beyond.is_none_or(|beyond| beyond.percentile(0.95) <= SILENT));
}

#[tokio::test]
async fn an_unplugged_host() {
    let plug = async |home: &mut Home, host| home.plug(host);
    let beyond = trials("unplugged", |home, host| home.unplug(host), plug).await;
    assert!(beyond.is_none_or(|beyond| beyond.percentile(0.95) <= SILENT));
}

#[tokio::test]
async fn a_host_that_is_heard_by_nobody() {
    let mute = |home: &Home, host| home.network().blackhole(host, Way::Out, true);
    let mend = async |home: &mut Home, host| home.mend(host);
    let beyond = trials("mute", mute, mend).await;
    assert!(beyond.is_none_or(|beyond| beyond.percentile(0.95) <= SILENT));
}

#[tokio::test]
async fn a_host_that_hears_nobody() {
    let Some(home) = Home::lab(3).script(script()).start().await else {
        return;
    };
    for trial in 0..TRIALS {
        let deaf = |home: &Home, host| home.network().blackhole(host, Way::In, true);
        let (answer, victim) = broken(&home, trial, deaf).await;
        // Its tokens arrive, until it misses the acknowledgements.
        let (longest, changes) = (answer.pauses().percentile(1.0), answer.changes.len());
        println!("deaf: longest pause {longest:?}, {changes} changes of the peer");
        assert!(longest <= SILENT, "{longest:?}");
        home.mend(victim);
        home.whole().await;
    }
}

/// The address that a host gets: not one that any host of a lab begins with.
fn lease(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 100 + u8::try_from(host).unwrap())
}

#[tokio::test]
async fn a_host_that_gets_another_address() {
    let Some(home) = Home::lab(3).script(script()).start().await else {
        return;
    };
    for trial in [1, 3] {
        let renumber = |home: &Home, host| home.network().readdress(host, lease(host));
        let (answer, host) = broken(&home, trial, renumber).await;
        let (longest, changes) = (answer.pauses().percentile(1.0), answer.changes.len());
        println!("new address: longest pause {longest:?}, {changes} changes of the peer");
        assert!(longest <= SILENT, "{longest:?}");
        println!(
            "new address: reached there {:?} after the answer",
            home.whole().await
        );
        home.network().readdress(host, home.network().addr(host));
        println!("old address: reached there after {:?}", home.whole().await);
    }
}
