//! Windows: suspend and resume notifications, and a thread's execution state.
//!
//! `PowerRegisterSuspendResumeNotification` calls back with `PBT_APMSUSPEND`; the machine
//! sleeps when the callback returns, or after some 2 s. Then comes `PBT_APMRESUMEAUTOMATIC`. No
//! window and no service are needed.
//!
//! Written against windows-sys 0.61 and type-checked for `x86_64-pc-windows-gnu`, but never run:
//! no Windows was there.

#![allow(
    unsafe_code,
    reason = "Win32 is a C interface; each call says why it is sound"
)]

use super::{PowerEvent, Unavailable};
use std::ffi::c_void;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::info;
use windows_sys::Win32::Foundation::ERROR_SUCCESS;
use windows_sys::Win32::System::Power::{
    DEVICE_NOTIFY_SUBSCRIBE_PARAMETERS, ES_CONTINUOUS, ES_SYSTEM_REQUIRED, HPOWERNOTIFY,
    PowerRegisterSuspendResumeNotification, PowerUnregisterSuspendResumeNotification,
    SetThreadExecutionState,
};
use windows_sys::Win32::UI::WindowsAndMessaging::{
    DEVICE_NOTIFY_CALLBACK, PBT_APMRESUMEAUTOMATIC, PBT_APMSUSPEND,
};

/// The callback holds the machine this long at most: Windows gives 2 s.
const HOLD_MAX: Duration = Duration::from_millis(1900);

/// The callback waits until it is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    _release: Sender<()>,
}

/// A thread that keeps the machine awake until it is dropped: the state belongs to the thread
/// that set it.
pub(super) struct Awake {
    release: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Awake {
    /// Starts the thread. Needs no privilege.
    pub async fn take() -> Result<Awake, Unavailable> {
        let (release, released) = channel::<()>();
        let keep = move || {
            // SAFETY: takes flags, touches no memory of ours.
            unsafe { SetThreadExecutionState(ES_CONTINUOUS | ES_SYSTEM_REQUIRED) };
            // An error says that the other end was dropped: the only thing that happens to it.
            let _ = released.recv();
            // SAFETY: as above.
            unsafe { SetThreadExecutionState(ES_CONTINUOUS) };
        };
        let thread = std::thread::Builder::new().name("awake".to_owned());
        let thread = thread.spawn(keep).map_err(|e| Unavailable(e.to_string()))?;
        Ok(Awake {
            release: Some(release),
            thread: Some(thread),
        })
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.release = None;
        if let Some(thread) = self.thread.take() {
            // It has one call left to make.
            let _ = thread.join();
        }
    }
}

/// Tells of sleep and wake until `stop`.
pub(super) async fn watch(events: mpsc::Sender<PowerEvent>, stop: CancellationToken) {
    match Registration::new(events) {
        Ok(_registration) => stop.cancelled().await,
        Err(reason) => {
            info!(%reason, "no word of sleep before it happens: it is noticed afterwards");
        }
    }
}

/// While it lives Windows calls [`told`].
struct Registration {
    handle: HPOWERNOTIFY,
    /// Windows holds its address.
    _events: Box<mpsc::Sender<PowerEvent>>,
}

impl Registration {
    fn new(events: mpsc::Sender<PowerEvent>) -> Result<Self, Unavailable> {
        let events = Box::new(events);
        let mut parameters = DEVICE_NOTIFY_SUBSCRIBE_PARAMETERS {
            Callback: Some(told),
            Context: (&raw const *events).cast_mut().cast(),
        };
        let mut handle: *mut c_void = std::ptr::null_mut();
        // SAFETY: the parameters are read during the call; the context is on the heap and is
        // dropped after the registration; the handle is written to during the call.
        let result = unsafe {
            PowerRegisterSuspendResumeNotification(
                DEVICE_NOTIFY_CALLBACK,
                (&raw mut parameters).cast(),
                &mut handle,
            )
        };
        if result != ERROR_SUCCESS {
            let text = format!("PowerRegisterSuspendResumeNotification: error {result}");
            return Err(Unavailable(text));
        }
        Ok(Registration {
            handle: handle as HPOWERNOTIFY,
            _events: events,
        })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: the handle is of the registration above, and this is the only end of it.
        // Returns when no callback runs any more.
        unsafe { PowerUnregisterSuspendResumeNotification(self.handle) };
    }
}

/// Called by Windows on a thread of its own.
///
/// # Safety
/// `context` is the sender of a live [`Registration`].
unsafe extern "system" fn told(context: *const c_void, kind: u32, _setting: *const c_void) -> u32 {
    // SAFETY: see above; a sender may be used from any thread.
    let events = unsafe { &*context.cast::<mpsc::Sender<PowerEvent>>() };
    match kind {
        PBT_APMSUSPEND => {
            let (release, released) = channel::<()>();
            let hold = Hold { _release: release };
            let sleeping = PowerEvent::Sleeping(super::Hold { _os: Some(hold) });
            if events.try_send(sleeping).is_ok()
                && released.recv_timeout(HOLD_MAX) == Err(RecvTimeoutError::Timeout)
            {
                info!("asleep before everything had moved");
            }
        }
        PBT_APMRESUMEAUTOMATIC => {
            let _ = events.try_send(PowerEvent::Woke);
        }
        _ => {}
    }
    ERROR_SUCCESS
}
