//! A fire drill: a node fails on purpose, for a moment.

use super::codec::{Record, open_enum};
use bincode::{Decode, Encode};

open_enum! {
    /// How a node fails. Whatever it is, nobody else asks this node's own applications to bear
    /// it: only what it serves to others is concerned.
    Fault {
        /// Its process ends without a goodbye and is started again: nothing comes from it, then its connections are gone.
        Kill = 1 "kill",
        /// Its process stops: nothing comes from it, then all goes on.
        Freeze = 2 "freeze",
        /// Its cable is out: the same to whoever waits for it.
        Cut = 3 "cut",
        /// Its engine makes no more tokens; progress goes on.
        Hang = 4 "hang",
        /// It leaves as planned, and comes back.
        Drain = 5 "drain",
    }
}

/// Asks a node to play a fault; on an admin stream. It ends by itself, whatever becomes of the
/// sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Drill {
    /// Which.
    pub fault: Fault,
    /// For so many milliseconds: at least 1, at most [`crate::timeouts::DRILL_MAX`].
    pub for_ms: u32,
}

impl Record for Drill {
    const KIND: u16 = 0x0070;
    const NAME: &'static str = "Drill";
}

/// Answers a [`Drill`]: it has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DrillStarted {
    /// It is over after so many milliseconds.
    pub for_ms: u32,
}

impl Record for DrillStarted {
    const KIND: u16 = 0x0071;
    const NAME: &'static str = "DrillStarted";
}
