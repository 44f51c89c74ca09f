//! One line on a terminal that tells how it goes; nothing in a pipe, with `--plain` or `--json`.

use super::output::Out;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Characters of a long text's end that the line shows.
const TAIL: usize = 70;

/// The line, on standard error.
pub struct Live {
    out: Out,
    bar: ProgressBar,
}

impl Live {
    /// An empty line.
    pub fn new(out: Out) -> Self {
        let target = if out.json || out.plain {
            ProgressDrawTarget::hidden()
        } else {
            // Hidden by itself where standard error is no terminal.
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{wide_msg:.dim}") {
            bar.set_style(style);
        }
        Live { out, bar }
    }

    /// Whether anybody sees it.
    pub fn is_seen(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// Replaces the line, or shows it again; of a long text its end is shown.
    pub fn show(&self, text: &str) {
        if self.bar.is_finished() {
            self.bar.reset();
        }
        let length = text.chars().count();
        if length > TAIL {
            let end: String = text.chars().skip(length - TAIL + 1).collect();
            self.bar.set_message(format!("\u{2026}{end}"));
        } else {
            self.bar.set_message(text.to_owned());
        }
        self.bar.tick();
    }

    /// Writes a line to standard error that stays, above this one.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| self.out.note(&format!("{text}\n")));
    }

    /// Takes the line away: standard output is free for text.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.clear();
    }
}
