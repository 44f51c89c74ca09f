//! macOS: IOKit's root power domain.
//!
//! `IORegisterForSystemPower` delivers `kIOMessageSystemWillSleep` (an idle sleep, a closed lid,
//! the menu) to a run loop, and waits up to 30 s for `IOAllowPowerChange`; after the wake comes
//! `kIOMessageSystemHasPoweredOn`. `kIOMessageCanSystemSleep` asks whether an idle sleep may
//! be: always, since whoever wants the machine awake holds an assertion
//! (`IOPMAssertionCreateWithName`).
//!
//! Written against objc2-io-kit 0.3 and type-checked for `aarch64-apple-darwin`, but never run:
//! no Mac was there.

#![allow(
    unsafe_code,
    reason = "IOKit is a C interface; each call says why it is sound"
)]

use super::{PowerEvent, Unavailable};
use objc2_core_foundation::{CFRunLoop, CFString, kCFRunLoopDefaultMode};
use objc2_io_kit::{
    IOAllowPowerChange, IODeregisterForSystemPower, IONotificationPort, IONotificationPortRef,
    IOPMAssertionCreateWithName, IOPMAssertionID, IOPMAssertionRelease, IORegisterForSystemPower,
    IOServiceClose, io_connect_t, io_object_t, io_service_t, kIOMessageCanSystemSleep,
    kIOMessageSystemHasPoweredOn, kIOMessageSystemWillSleep, kIOPMAssertionLevelOn,
    kIOReturnSuccess,
};
use std::cell::Cell;
use std::ffi::c_void;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// The run loop looks at the stop this often (s).
const TURN: f64 = 1.0;
/// `kIOPMAssertPreventUserIdleSystemSleep`, which the headers define as a string.
const NO_IDLE_SLEEP: &str = "PreventUserIdleSystemSleep";

/// The system waits until it is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    port: io_connect_t,
    notification: isize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Fails only if the system's patience is over, and it sleeps anyway.
        let _ = IOAllowPowerChange(self.port, self.notification);
    }
}

/// An assertion; released when dropped.
pub(super) struct Awake(IOPMAssertionID);

impl Awake {
    /// Makes one. Needs no privilege.
    pub async fn take() -> Result<Awake, Unavailable> {
        let kind = CFString::from_static_str(NO_IDLE_SLEEP);
        let name = CFString::from_static_str("UnaMesh answers");
        let mut id: IOPMAssertionID = 0;
        // SAFETY: both strings are there, and `id` outlives the call, which only writes to it.
        let result = unsafe {
            IOPMAssertionCreateWithName(Some(&kind), kIOPMAssertionLevelOn, Some(&name), &mut id)
        };
        if result == kIOReturnSuccess {
            Ok(Awake(id))
        } else {
            Err(Unavailable(format!(
                "IOPMAssertionCreateWithName: {result:#x}"
            )))
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        // An assertion that is not ours any more ends with the process.
        let _ = IOPMAssertionRelease(self.0);
    }
}

/// Tells of sleep and wake until `stop`.
pub(super) async fn watch(events: mpsc::Sender<PowerEvent>, stop: CancellationToken) {
    // A run loop belongs to its thread.
    let ended = tokio::task::spawn_blocking(move || run(events, &stop)).await;
    if let Ok(Err(reason)) = ended {
        info!(%reason, "no word of sleep before it happens: it is noticed afterwards");
    }
}

/// What the callback works with. It stays in `run`, on whose thread the callback is called.
struct Listener {
    events: mpsc::Sender<PowerEvent>,
    /// Known only after the registration.
    port: Cell<io_connect_t>,
}

fn run(events: mpsc::Sender<PowerEvent>, stop: &CancellationToken) -> Result<(), Unavailable> {
    let listener = Listener {
        events,
        port: Cell::new(0),
    };
    let mut notifications: IONotificationPortRef = std::ptr::null_mut();
    let mut notifier: io_object_t = 0;
    // SAFETY: the listener outlives the registration, which ends below; the two results are
    // written to during the call only; the callback has the signature that is asked for.
    let port = unsafe {
        IORegisterForSystemPower(
            (&raw const listener).cast_mut().cast(),
            &mut notifications,
            Some(told),
            &mut notifier,
        )
    };
    if port == 0 || notifications.is_null() {
        return Err(Unavailable("IORegisterForSystemPower failed".to_owned()));
    }
    listener.port.set(port);
    // SAFETY: the port is the one just made, and not destroyed yet.
    let source = unsafe { IONotificationPort::run_loop_source(notifications) };
    // SAFETY: a constant of the framework.
    let mode = unsafe { kCFRunLoopDefaultMode };
    if let Some(run_loop) = CFRunLoop::current() {
        run_loop.add_source(source.as_deref(), mode);
        while !stop.is_cancelled() {
            CFRunLoop::run_in_mode(mode, TURN, false);
        }
        run_loop.remove_source(source.as_deref(), mode);
    }
    // SAFETY: all three were made above and are used no more; the source is out of the run
    // loop, so that the callback is not called again.
    unsafe {
        IODeregisterForSystemPower(&mut notifier);
        IONotificationPort::destroy(notifications);
    }
    IOServiceClose(port);
    Ok(())
}

/// Called by the run loop.
///
/// # Safety
/// `listener` is the [`Listener`] of [`run`], on the same thread.
unsafe extern "C-unwind" fn told(
    listener: *mut c_void,
    _service: io_service_t,
    message: u32,
    argument: *mut c_void,
) {
    // SAFETY: see above; the registration ends before the listener does.
    let listener = unsafe { &*listener.cast::<Listener>() };
    let hold = || Hold {
        port: listener.port.get(),
        notification: argument as isize,
    };
    match message {
        #[allow(non_upper_case_globals, reason = "the framework's names")]
        kIOMessageCanSystemSleep => drop(hold()),
        #[allow(non_upper_case_globals, reason = "the framework's names")]
        kIOMessageSystemWillSleep => {
            let sleeping = PowerEvent::Sleeping(super::Hold { _os: Some(hold()) });
            // If nobody takes it, dropping it lets the machine sleep.
            let _ = listener.events.try_send(sleeping);
        }
        #[allow(non_upper_case_globals, reason = "the framework's names")]
        kIOMessageSystemHasPoweredOn => {
            let _ = listener.events.try_send(PowerEvent::Woke);
        }
        _ => {}
    }
}
