//! What can happen to the agent that answers.

/// A case of the drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Case {
    /// It is killed, and its engine with it
    Kill,
    /// It stops, as a machine does that hangs
    Freeze,
    /// Its cable is out: nothing comes from it, and it knows nothing of it
    Cut,
    /// Its engine makes no more tokens, and the agent lives on
    Hang,
    /// It is told to leave
    Drain,
}

impl Case {
    /// All of them, in the order of the report.
    pub const ALL: [Case; 5] = [Case::Kill, Case::Freeze, Case::Cut, Case::Hang, Case::Drain];

    /// As scripts read it, and as the protocol calls the fault.
    pub const fn name(self) -> &'static str {
        match self {
            Case::Kill => "kill",
            Case::Freeze => "freeze",
            Case::Cut => "cut",
            Case::Hang => "hang",
            Case::Drain => "drain",
        }
    }

    /// What the machine is to do, after `made to`.
    pub const fn verb(self) -> &'static str {
        match self {
            Case::Kill => "die",
            Case::Freeze => "freeze",
            Case::Cut => "lose its cable",
            Case::Hang => "hang",
            Case::Drain => "leave",
        }
    }

    /// The most that the gap's 95th percentile may exceed the backup's own first token, in
    /// milliseconds. A drained agent has another bar: see [`super::report::CaseReport`].
    pub const fn bar_ms(self) -> Option<f64> {
        match self {
            Case::Kill => Some(200.0),
            Case::Freeze | Case::Cut => Some(450.0),
            Case::Hang => Some(1000.0),
            Case::Drain => None,
        }
    }
}
