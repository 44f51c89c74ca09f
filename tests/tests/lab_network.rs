//! The lab itself: hosts reach each other, a pulled cable cuts one off, nothing stays behind.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;
use unamesh_tests::http::Net;
use unamesh_tests::lab::Lab;

#[test]
fn hosts_talk_until_the_cable_is_pulled() {
    let Some(lab) = Lab::new(3) else { return };
    let socket = |host: usize| {
        let addr = SocketAddr::from((lab.addr(host), 0));
        let socket = lab.net(host).inside(|| UdpSocket::bind(addr)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        socket
    };
    let (a, b) = (socket(0), socket(2));
    let arrives = |data: &[u8]| {
        a.send_to(data, b.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 16];
        b.recv_from(&mut buffer).is_ok_and(|(size, from)| {
            assert_eq!(from, a.local_addr().unwrap());
            &buffer[..size] == data
        })
    };
    assert!(arrives(b"one"));
    lab.unplug(2);
    assert!(!arrives(b"two"));
    lab.plug(2);
    assert!(arrives(b"three"));
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
