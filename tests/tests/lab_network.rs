//! The lab itself: hosts reach each other, cables do what they are told, nothing stays behind.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use unamesh_tests::http::Net;
use unamesh_tests::impair::{Impairment, LOSSY, NARROW, Way};
use unamesh_tests::lab::{Lab, Port};
use unamesh_tests::measure::Samples;

/// What does not come within this does not come.
const SOON: Duration = Duration::from_millis(300);

fn socket(lab: &Lab, port: impl Into<Port>) -> UdpSocket {
    let port = port.into();
    bound(&lab.net(port.host), lab.addr(port))
}

fn bound(net: &Net, addr: Ipv4Addr) -> UdpSocket {
    let addr = SocketAddr::from((addr, 0));
    let socket = net.inside(|| UdpSocket::bind(addr)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

/// How long a datagram takes from one to the other, if it comes.
fn travels(from: &UdpSocket, to: &UdpSocket) -> Option<Duration> {
    let sent = Instant::now();
    from.send_to(b"?", to.local_addr().unwrap()).ok()?;
    to.recv(&mut [0; 16]).ok()?;
    Some(sent.elapsed())
}

#[test]
fn hosts_talk_until_the_cable_is_cut() {
    let Some(lab) = Lab::new(3) else { return };
    let (a, b) = (socket(&lab, 0), socket(&lab, 2));
    assert!(travels(&a, &b).is_some());
    lab.cut(2);
    assert!(travels(&a, &b).is_none());
    lab.mend(2);
    assert!(travels(&a, &b).is_some());
}

#[test]
fn a_blackhole_may_work_one_way() {
    let Some(lab) = Lab::new(2) else { return };
    let (a, b) = (socket(&lab, 0), socket(&lab, 1));
    assert!(travels(&a, &b).is_some() && travels(&b, &a).is_some());
    lab.blackhole(1, Way::Out, true);
    assert!(travels(&a, &b).is_some());
    assert!(travels(&b, &a).is_none());
}

#[test]
fn a_partition_has_sides() {
    let Some(lab) = Lab::new(3) else { return };
    let sockets = [0, 1, 2].map(|host| socket(&lab, host));
    let talk = |a: usize, b: usize| {
        travels(&sockets[a], &sockets[b]).is_some() && travels(&sockets[b], &sockets[a]).is_some()
    };
    // First: who is looked for in vain is not looked for again for a second (ARP).
    assert!(talk(0, 1) && talk(1, 2) && talk(0, 2));
    lab.partition(&[&[0, 1], &[2]]);
    assert!(talk(0, 1) && !talk(0, 2) && !talk(1, 2));
    lab.partition(&[&[0], &[1, 2]]);
    assert!(talk(1, 2) && !talk(0, 1) && !talk(0, 2));
    lab.heal();
    assert!(talk(0, 1) && talk(1, 2) && talk(0, 2));
}

#[test]
fn a_host_notices_that_it_is_unplugged() {
    let Some(lab) = Lab::new(2) else { return };
    let (a, b) = (socket(&lab, 0), socket(&lab, 1));
    assert!(travels(&a, &b).is_some());
    lab.unplug(0);
    let refused = a.send_to(b"?", b.local_addr().unwrap()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::NetworkUnreachable);
    lab.plug(0);
    assert!(travels(&a, &b).is_some());
}

#[test]
fn a_host_may_change_its_address() {
    let Some(lab) = Lab::new(2) else { return };
    let (a, b) = (socket(&lab, 0), socket(&lab, 1));
    assert!(travels(&a, &b).is_some());
    let new = Ipv4Addr::new(10, 77, 0, 101);
    lab.readdress(1, new);
    assert!(travels(&a, &b).is_none());
    let b = bound(&lab.net(1), new);
    assert!(travels(&a, &b).is_some() && travels(&b, &a).is_some());
}

#[test]
fn a_second_network_is_another_path() {
    let Some(lab) = Lab::with(3, &[0, 2], 1) else {
        return;
    };
    let first = (socket(&lab, 0), socket(&lab, 2));
    let second = (socket(&lab, (0, 1)), socket(&lab, (2, 1)));
    // First: who is looked for in vain is not looked for again for a second (ARP).
    assert!(travels(&first.0, &first.1).is_some());
    assert!(travels(&second.0, &second.1).is_some());
    lab.cut(2);
    assert!(travels(&first.0, &first.1).is_none());
    assert!(travels(&second.0, &second.1).is_some());
    lab.mend(2);
    lab.cut((2, 1));
    assert!(travels(&first.0, &first.1).is_some());
    assert!(travels(&second.0, &second.1).is_none());
}

#[test]
fn a_cable_adds_little_and_a_bad_line_what_it_says() {
    let Some(lab) = Lab::new(2) else { return };
    let (a, b) = (socket(&lab, 0), socket(&lab, 1));
    let measure = || {
        let mut samples = Samples::default();
        (0..100)
            .filter_map(|_| travels(&a, &b))
            .for_each(|took| samples.push(took));
        samples
    };
    let cable = measure();
    println!("one way through two cables: {cable}");
    assert!(cable.percentile(0.5) < Duration::from_millis(2), "{cable}");

    lab.impair(
        0,
        Way::Out,
        Impairment {
            loss: None,
            ..LOSSY
        },
    );
    let late = measure();
    println!("25 ms +- 5 ms:              {late}");
    let (least, most) = (Duration::from_millis(20), Duration::from_millis(30));
    assert!(late.percentile(0.0) >= least, "{late}");
    assert!((least..most).contains(&late.percentile(0.5)), "{late}");

    lab.impair(0, Way::Out, NARROW);
    let started = Instant::now();
    let arrived = (0..50).filter(|_| {
        a.send_to(&[0; 1000], b.local_addr().unwrap()).unwrap();
        b.recv(&mut [0; 1500]).is_ok()
    });
    let arrived = arrived.count();
    let rate = arrived as f64 * 8.336e3 / started.elapsed().as_secs_f64();
    println!("1 Mbit/s:                   {:.2} Mbit/s", rate / 1e6);
    assert!(arrived == 50 && rate < 1.2e6, "{arrived}, {rate}");
}

#[test]
fn losses_have_their_share() {
    let Some(lab) = Lab::new(2) else { return };
    let (a, b) = (socket(&lab, 0), socket(&lab, 1));
    assert!(travels(&a, &b).is_some());
    b.set_nonblocking(true).unwrap();
    let heavy = Impairment {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        ..LOSSY
    };
    lab.impair(1, Way::In, heavy);
    let before = lab.counts(1)[1];
    for _ in 0..5000 {
        a.send_to(b"?", b.local_addr().unwrap()).unwrap();
        // Neither the kernel's queues nor the socket's overflow.
        while b.recv(&mut [0; 16]).is_ok() {}
        std::thread::yield_now();
    }
    let counts = || lab.counts(1)[1];
    let begun = Instant::now();
    while counts().arrived + counts().lost < before.arrived + 4900 && begun.elapsed() < SOON {
        std::thread::yield_now();
    }
    let lost = (counts().lost - before.lost) as f64 / 5000.0;
    println!("lost: {:.2} %", lost * 100.0);
    assert!((0.02..0.04).contains(&lost), "{lost}");
}

#[test]
fn labs_do_not_meet_and_leave_nothing() {
    let Some(one) = Lab::new(1) else { return };
    let Some(two) = Lab::new(1) else { return };
    assert_eq!(one.addr(0), two.addr(0));
    let hosts = [one.net(0), two.net(0)];
    let exists = |net: &Net| net.inside(|| Ok(())).is_ok();
    assert!(hosts.iter().all(exists));
    drop((one, two));
    assert!(!hosts.iter().any(exists));
}
