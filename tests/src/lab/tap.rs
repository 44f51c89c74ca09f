//! TAP devices: network interfaces whose other end is a file of ours.
//!
//! They ask for no offloads, so every frame that the kernel hands over is complete (checksums,
//! no segment larger than the link) and can be delayed or dropped by itself. A device lives as
//! long as its file.

use crate::http::Net;
use std::fs::File;
use std::io;

/// The largest Ethernet frame: 1500 bytes and a header.
pub const MAX_FRAME: usize = 1514;

/// Makes a device called `name` in `net`; it is down. The file never blocks.
///
/// # Errors
/// What the system says: no `/dev/net/tun`, no permission, the name is taken.
pub fn open(net: &Net, name: &str) -> io::Result<File> {
    // A device belongs to the namespace in which its file was opened.
    net.inside(|| attach(name))
        .map_err(|e| io::Error::new(e.kind(), format!("TAP device {name}: {e}")))
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "this one call has no safe wrapper")]
fn attach(name: &str) -> io::Result<File> {
    use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
    use std::os::unix::fs::OpenOptionsExt;

    /// `struct ifreq`: the name, then a union of which this call reads the flags.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: i16,
        unused: [u8; 22],
    }
    const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
    const IFF_TAP: i16 = 0x0002;
    const IFF_NO_PI: i16 = 0x1000;
    const O_NONBLOCK: i32 = 0o4000;

    let mut request = Request {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI,
        unused: [0; 22],
    };
    // The last byte stays zero.
    for (to, from) in request.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: `TUNSETIFF` reads a `struct ifreq`, which `Request` is laid out as, and keeps no
    // pointer to it.
    unsafe { ioctl(&file, Setter::<TUNSETIFF, Request>::new(request)) }?;
    Ok(file)
}

#[cfg(not(target_os = "linux"))]
fn attach(_name: &str) -> io::Result<File> {
    Err(io::Error::other("only Linux has them"))
}
