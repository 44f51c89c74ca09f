//! Writing to standard output and error: coloured tables for people, plain columns for
//! pipes, JSON for scripts. A reader that goes away ends the command quietly.

use super::error::CliError;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use serde_json::Value;
use std::io::{ErrorKind, IsTerminal, Write};

/// Good.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Needs a look.
pub const WARN: Style = AnsiColor::Yellow.on_default();
/// Broken.
pub const BAD: Style = AnsiColor::Red.on_default();
/// Beside the point.
pub const DIM: Style = Style::new().dimmed();
/// The point.
pub const BOLD: Style = Style::new().bold();
/// As it comes.
pub const PLAIN: Style = Style::new();

/// How a command writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out {
    /// One JSON value instead of text.
    pub json: bool,
    /// No colours anywhere.
    pub plain: bool,
    /// Lines in tables, wrapping to the width of the terminal.
    pub rich: bool,
    stdout_color: ColorChoice,
    stderr_color: ColorChoice,
}

impl Out {
    /// Looks at both streams; `NO_COLOR` and `TERM=dumb` count.
    pub fn new(json: bool, plain: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = |terminal: bool| {
            if terminal && !plain && !dumb && std::env::var_os("NO_COLOR").is_none() {
                ColorChoice::Always
            } else {
                ColorChoice::Never
            }
        };
        Out {
            json,
            plain,
            rich: std::io::stdout().is_terminal() && !plain && !dumb && !json,
            stdout_color: color(std::io::stdout().is_terminal()),
            stderr_color: color(std::io::stderr().is_terminal()),
        }
    }

    /// As in a pipe.
    #[cfg(test)]
    pub(crate) fn piped() -> Self {
        Out {
            json: false,
            plain: true,
            rich: false,
            stdout_color: ColorChoice::Never,
            stderr_color: ColorChoice::Never,
        }
    }

    /// As on a terminal with colours.
    #[cfg(test)]
    pub(super) fn terminal() -> Self {
        Out {
            rich: true,
            stdout_color: ColorChoice::Always,
            ..Out::piped()
        }
    }

    /// Writes `text` as it is and flushes.
    ///
    /// # Errors
    /// The reader went away, or the disk behind a redirection is full.
    pub fn print(&self, text: &str) -> Result<(), CliError> {
        let mut stdout = AutoStream::new(std::io::stdout().lock(), self.stdout_color);
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
            .map_err(|e| match e.kind() {
                ErrorKind::BrokenPipe => CliError::closed_pipe(),
                _ => CliError::new("output", format!("cannot write the output: {e}")),
            })
    }

    /// Writes a line.
    ///
    /// # Errors
    /// As [`Out::print`].
    pub fn line(&self, text: &str) -> Result<(), CliError> {
        self.print(&format!("{text}\n"))
    }

    /// Writes one JSON value: on one line in a pipe, indented on a terminal.
    ///
    /// # Errors
    /// As [`Out::print`].
    pub fn value(&self, value: &Value) -> Result<(), CliError> {
        if std::io::stdout().is_terminal() {
            self.line(&format!("{value:#}"))
        } else {
            self.line(&value.to_string())
        }
    }

    /// Writes to standard error, where nobody who reads the output is disturbed.
    pub fn note(&self, text: &str) {
        let mut stderr = AutoStream::new(std::io::stderr().lock(), self.stderr_color);
        // There is no other place left to report that this failed.
        let _ = stderr
            .write_all(text.as_bytes())
            .and_then(|()| stderr.flush());
    }

    /// Reports why the command failed.
    pub fn error(&self, error: &CliError) {
        if error.silent {
            return;
        }
        if self.json {
            return self.note(&format!("{}\n", error.json()));
        }
        let mut text = format!("{BAD}error:{BAD:#} {}\n", printable(&error.message));
        for (at, command) in error.next.iter().enumerate() {
            let lead = if at == 0 { "  try:" } else { "   or:" };
            text.push_str(&format!("{DIM}{lead}{DIM:#} {BOLD}{command}{BOLD:#}\n"));
        }
        self.note(&text);
    }
}

/// One cell of a [`Table`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    style: Style,
}

/// A styled cell.
pub fn cell(text: impl Into<String>, style: Style) -> Cell {
    Cell {
        text: text.into(),
        style,
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        cell(text, PLAIN)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        cell(text, PLAIN)
    }
}

/// Rows under a header.
#[derive(Clone, Debug, Default)]
pub struct Table {
    header: Vec<&'static str>,
    /// Columns to be aligned to the right.
    numbers: Vec<usize>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub fn new(header: &[&'static str]) -> Self {
        Table {
            header: header.to_vec(),
            ..Table::default()
        }
    }

    /// Aligns the columns `at` to the right.
    pub fn numbers(mut self, at: &[usize]) -> Self {
        self.numbers = at.to_vec();
        self
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// As text with a line break at its end: for a terminal with a rule below the header and
    /// wrapped to its width, else plain columns of which each row is one line.
    pub fn render(&self, out: &Out) -> String {
        use comfy_table::{CellAlignment, ContentArrangement, TableComponent, presets};
        let mut table = comfy_table::Table::new();
        table.load_preset(presets::NOTHING);
        if out.rich {
            table.set_style(TableComponent::HeaderLines, '─');
            table.set_style(TableComponent::MiddleHeaderIntersections, '─');
        }
        table.set_content_arrangement(if wraps(out.rich, table.width()) {
            ContentArrangement::Dynamic
        } else {
            ContentArrangement::Disabled
        });
        match out.stdout_color {
            ColorChoice::Never => table.force_no_tty(),
            _ => table.enforce_styling(),
        };
        table.set_header(self.header.iter().map(|h| styled(h, BOLD)));
        for row in &self.rows {
            table.add_row(
                row.iter()
                    .map(|c| styled(one_line(&c.text).as_str(), c.style)),
            );
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for at in &self.numbers {
            if let Some(column) = table.column_mut(*at) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let text = table.to_string();
        text.lines()
            .map(|line| format!("{}\n", line.trim_end()))
            .collect()
    }
}

/// What another machine or a model wrote must not talk to the terminal: control characters
/// other than line breaks and tabs are dropped.
pub fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect()
}

/// Whether lines are wrapped: a terminal that does not know its width says 0.
fn wraps(rich: bool, width: Option<u16>) -> bool {
    rich && width != Some(0)
}

/// A peer's name must not break the table, or talk to the terminal.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn styled(text: &str, style: Style) -> comfy_table::Cell {
    use comfy_table::{Attribute, Cell, Color};
    let cell = Cell::new(text);
    match style {
        GOOD => cell.fg(Color::DarkGreen),
        WARN => cell.fg(Color::DarkYellow),
        BAD => cell.fg(Color::DarkRed),
        DIM => cell.add_attribute(Attribute::Dim),
        BOLD => cell.add_attribute(Attribute::Bold),
        _ => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_wrapped_only_to_a_width_that_is_known() {
        assert!(wraps(true, Some(80)));
        assert!(!wraps(true, Some(0)) && !wraps(false, Some(80)));
    }
}
