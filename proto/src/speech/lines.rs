//! What kind of line a character is in: Markdown's blocks, as far as they matter for speech.

/// What kind of line a character is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Prose,
    Heading,
    Item,
    Quote,
    Table,
    /// Only dashes and the like: a rule, or what separates a table's head.
    Rule,
    /// Opens or closes code.
    Fence(char),
    Code,
}

/// Where in its line, and in which, a character is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The line has not begun: white space at most was before.
    pub start: bool,
    /// What it is in.
    pub line: Line,
    /// Within code that this mark opened.
    pub fence: Option<char>,
}

impl Place {
    /// Where a text begins.
    pub const FIRST: Place = Place {
        start: true,
        line: Line::Prose,
        fence: None,
    };

    /// The start of a line knows its kind from its first characters.
    pub fn enter(&mut self, rest: &[char]) {
        if self.start {
            // A line of dashes is a rule only if that is all of it.
            let whole = rest.contains(&'\n');
            self.line = classify(rest, self.fence, whole);
            self.start = false;
        }
    }

    /// As [`enter`](Self::enter), of a line that is all there.
    pub fn enter_whole(&mut self, line: &[char]) {
        if self.start {
            self.line = classify(line, self.fence, true);
            self.start = false;
        }
    }

    /// After a line's end.
    pub fn newline(&mut self) {
        if let Line::Fence(mark) = self.line {
            self.fence = match self.fence {
                None => Some(mark),
                Some(_) => None,
            };
        }
        self.start = true;
    }
}

/// Digits of a list item's number.
const MAX_NUMBER: usize = 4;

/// Whether a new part begins with this line, which follows one of kind `line`; `None` while
/// more must come. Looks at a few characters only, so a line of text that begins like a rule
/// is taken for a part of its own.
pub(super) fn begins(rest: &[char], line: Line, ended: bool) -> Option<bool> {
    let rest = trimmed(rest);
    // Nothing more will come than a line's end.
    let at = |n: usize| rest.get(n).copied().or(ended.then_some('\n'));
    let first = at(0)?;
    Some(match first {
        '\n' | '\r' | '#' | '|' => true,
        '>' => line != Line::Quote,
        '-' | '*' | '+' | '•' | '_' | '`' | '~' => {
            let second = at(1)?;
            let item = second.is_whitespace() && !matches!(first, '_' | '`' | '~');
            item || (second == first && at(2)? == first)
        }
        '0'..='9' => {
            let digits = rest.iter().take_while(|c| c.is_ascii_digit()).count();
            digits <= MAX_NUMBER
                && matches!(at(digits)?, '.' | ')')
                && at(digits + 1)?.is_whitespace()
        }
        _ => false,
    })
}

/// The kind of the line that starts here, as far as its first characters tell, or all of them
/// if it is `whole`.
fn classify(line: &[char], fence: Option<char>, whole: bool) -> Line {
    let line = trimmed(line);
    let run = |c: char| line.iter().take_while(|x| **x == c).count();
    let first = line.first().copied().unwrap_or('\n');
    let mark = matches!(first, '`' | '~') && run(first) >= 3;
    match fence {
        Some(open) if mark && first == open => return Line::Fence(first),
        Some(_) => return Line::Code,
        None if mark => return Line::Fence(first),
        None => {}
    }
    let end = line.iter().position(|c| *c == '\n').unwrap_or(line.len());
    let dashes = line[..end]
        .iter()
        .filter(|c| matches!(c, '-' | '*' | '_' | '='))
        .count();
    if whole && dashes >= 3 && line[..end].iter().all(|c| " -*_=|:\t\r".contains(*c)) {
        return Line::Rule;
    }
    let blank_at = |n: usize| line.get(n).is_some_and(|c| c.is_whitespace());
    match first {
        '#' if blank_at(run('#')) && run('#') <= 6 => Line::Heading,
        '>' => Line::Quote,
        '|' => Line::Table,
        '-' | '*' | '+' | '•' if blank_at(1) => Line::Item,
        _ => {
            let digits = line.iter().take_while(|c| c.is_ascii_digit()).count();
            let dot = line.get(digits).is_some_and(|c| matches!(c, '.' | ')'));
            match (1..=MAX_NUMBER).contains(&digits) && dot && blank_at(digits + 1) {
                true => Line::Item,
                false => Line::Prose,
            }
        }
    }
}

/// Without the white space at its start.
fn trimmed(line: &[char]) -> &[char] {
    let blank = line.iter().take_while(|c| matches!(c, ' ' | '\t')).count();
    &line[blank..]
}
