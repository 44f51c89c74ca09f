//! Things that happen to the machine that answers, in the middle of its answer, in the lab: the
//! answer is whole, and the pause is the backup's time to its first token and little more.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::net::Ipv4Addr;
use std::time::Duration;
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

/// The pauses of [`TRIALS`] answers beyond their backups' time to first token. `fault` is done
/// to the host that answers, `repair` afterwards.
async fn trials(
    home: &mut Home,
    fault: fn(&Home, usize),
    repair: impl AsyncFn(&mut Home, usize),
) -> Samples {
    let mut beyond = Samples::default();
    for trial in 0..TRIALS {
        let mut victim = None;
        let answer = home
            .ask(0)
            .at_token(5 + 12 * trial, |peer| {
                victim = Some(peer);
                fault(home, peer);
            })
            .await;
        answer.is_whole();
        beyond.push(answer.beyond_backup().expect("another machine went on"));
        repair(home, victim.unwrap()).await;
        home.whole().await;
    }
    beyond
}

#[tokio::test]
async fn a_killed_agent() {
    let Some(mut home) = Home::lab(3).script(script()).start().await else {
        return;
    };
    let beyond = trials(&mut home, Home::kill, Home::restart).await;
    println!("killed: beyond the backup's time to first token: {beyond}");
    assert!(beyond.percentile(0.95) <= GONE, "{beyond}");
}

#[tokio::test]
async fn a_frozen_host() {
    let Some(mut home) = Home::lab(3).script(script()).start().await else {
        return;
    };
    let beyond = trials(&mut home, Home::freeze, async |home, host| home.thaw(host)).await;
    println!("frozen: beyond the backup's time to first token: {beyond}");
    assert!(beyond.percentile(0.95) <= SILENT, "{beyond}");
}

#[tokio::test]
async fn a_cut_cable() {
    let Some(mut home) = Home::lab(3).script(script()).start().await else {
        return;
    };
    let cut = |home: &Home, host| home.cut(host);
    let beyond = trials(&mut home, cut, async |home, host| home.mend(host)).await;
    println!("cut: beyond the backup's time to first token: {beyond}");
    assert!(beyond.percentile(0.95) <= SILENT, "{beyond}");
}

#[tokio::test]
async fn an_unplugged_host() {
    let Some(mut home) = Home::lab(3).script(script()).start().await else {
        return;
    };
    let unplug = |home: &Home, host| home.unplug(host);
    let beyond = trials(&mut home, unplug, async |home, host| home.plug(host)).await;
    println!("unplugged: beyond the backup's time to first token: {beyond}");
    assert!(beyond.percentile(0.95) <= SILENT, "{beyond}");
}

#[tokio::test]
async fn a_path_that_works_one_way_only() {
    let Some(mut home) = Home::lab(3).script(script()).start().await else {
        return;
    };
    let mend = async |home: &mut Home, host| home.mend(host);
    let deaf = |home: &Home, host| home.network().blackhole(host, Way::In, true);
    let mute = |home: &Home, host| home.network().blackhole(host, Way::Out, true);
    let beyond = trials(&mut home, mute, mend).await;
    println!("mute: beyond the backup's time to first token: {beyond}");
    assert!(beyond.percentile(0.95) <= SILENT, "{beyond}");
    // Its tokens arrive, as long as its peer's acknowledgements are not missed.
    for trial in 0..TRIALS {
        let mut victim = None;
        let answer = home
            .ask(0)
            .at_token(5 + 12 * trial, |peer| {
                victim = Some(peer);
                deaf(&home, peer);
            })
            .await;
        answer.is_whole();
        let pause = answer.pauses().percentile(1.0);
        println!(
            "deaf: {} changes, longest pause {pause:?}",
            answer.changes.len()
        );
        home.mend(victim.unwrap());
        home.whole().await;
    }
}

/// The address that a host gets: not one that any host of a lab begins with.
fn lease(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 100 + u8::try_from(host).unwrap())
}

#[tokio::test]
async fn a_host_that_gets_another_address() {
    let Some(mut home) = Home::lab(3).script(script()).start().await else {
        return;
    };
    let readdress = |home: &Home, host| {
        home.network().readdress(host, lease(host));
    };
    let back = async |home: &mut Home, host| {
        let addr = home.network().addr(host);
        home.network().readdress(host, addr);
    };
    let told = |answer: &Answer| {
        let longest = answer.pauses().percentile(1.0);
        println!(
            "new address: longest pause {longest:?}, changes {:?}",
            answer.changes
        );
    };
    for trial in 0..2 {
        let mut victim = None;
        let answer = home
            .ask(0)
            .at_token(5 + 12 * trial, |peer| {
                victim = Some(peer);
                readdress(&home, peer);
            })
            .await;
        answer.is_whole();
        told(&answer);
        let found = home.whole().await;
        println!("new address: all know each other {found:?} after the answer");
        back(&mut home, victim.unwrap()).await;
        home.whole().await;
    }
}
