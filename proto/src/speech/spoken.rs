//! How a piece of text sounds without its marks.
//!
//! Markdown's marks go: emphasis, code's backticks (what is between them stays as it is) and
//! fences, headings' signs, bullets (a list's numbers stay), quotes' signs. A link is its text, an
//! image its description, a bare URL is spoken without `https://`; a table's row is its cells.
//! Emoji, HTML tags, rules and footnotes are not spoken. What is left is one line with single
//! spaces; without a letter or a digit it is nothing.

use super::lines::{Line, Place};
use unicode_segmentation::UnicodeSegmentation;

/// Characters of an HTML tag at most; a longer one is a comparison.
const MAX_TAG: usize = 80;

/// What is spoken of `piece`, which begins at `place`.
pub(super) fn of(piece: &[char], mut place: Place) -> String {
    let mut out = String::with_capacity(piece.len());
    for line in piece.split(|c| *c == '\n') {
        let begins = place.start;
        place.enter_whole(line);
        one_line(line, place.line, begins, &mut out);
        out.push(' ');
        place.newline();
    }
    let spoken = tidy(&out);
    match spoken.chars().any(char::is_alphanumeric) {
        true => spoken,
        false => String::new(),
    }
}

fn one_line(line: &[char], kind: Line, begins: bool, out: &mut String) {
    let text = match begins {
        true => without_mark(line, kind),
        false => line,
    };
    match kind {
        Line::Fence(_) | Line::Rule => {}
        Line::Code => out.extend(text),
        Line::Table => {
            let mut any = false;
            for cell in text.split(|c| *c == '|').filter(|c| !blank(c)) {
                out.push_str(if any { ", " } else { "" });
                let mut one = String::new();
                inline(cell, &mut one);
                out.push_str(one.trim());
                any = true;
            }
        }
        Line::Prose | Line::Heading | Line::Item | Line::Quote => inline(text, out),
    }
}

/// A line without what makes it a heading, an item or a quote.
fn without_mark(line: &[char], kind: Line) -> &[char] {
    let drop = |line: &'_ [char], mark: &dyn Fn(char) -> bool| {
        line.iter()
            .take_while(|c| c.is_whitespace() || mark(**c))
            .count()
    };
    match kind {
        Line::Heading => {
            let line = &line[drop(line, &|c| c == '#')..];
            let closing = line
                .iter()
                .rev()
                .take_while(|c| c.is_whitespace() || **c == '#');
            &line[..line.len() - closing.count()]
        }
        Line::Quote => &line[drop(line, &|c| c == '>')..],
        Line::Item => {
            let start = line.iter().position(|c| !c.is_whitespace()).unwrap_or(0);
            let bullet = matches!(line.get(start), Some('-' | '*' | '+' | '•'));
            let text = &line[start + usize::from(bullet)..];
            // A task's box.
            match text {
                [' ', '[', ' ' | 'x' | 'X', ']', text @ ..] => text,
                _ => text,
            }
        }
        _ => line,
    }
}

fn blank(text: &[char]) -> bool {
    text.iter().all(|c| c.is_whitespace())
}

/// Appends a line without its inline marks.
fn inline(text: &[char], out: &mut String) {
    let mut at = 0;
    while let Some(&c) = text.get(at) {
        let before = at.checked_sub(1).and_then(|b| text.get(b)).copied();
        let rest = &text[at..];
        at += match (c, rest.get(1)) {
            ('\\', Some(escaped)) if escaped.is_ascii_punctuation() => {
                out.push(*escaped);
                2
            }
            ('`', _) => code(rest, out),
            ('!', Some('[')) if link(&rest[1..]).is_some() => 1,
            ('[', _) => bracket(rest, out),
            ('<', _) => angle(rest, out),
            ('*' | '_', _) => emphasis(rest, c, before, out),
            ('~', Some('~')) => 2,
            ('h', _) if !before.is_some_and(char::is_alphanumeric) && scheme(rest) > 0 => {
                scheme(rest)
            }
            _ => {
                out.push(c);
                1
            }
        };
    }
}

/// Code is spoken as it stands: its `<T>` is no tag. A tick without its partner is nothing.
fn code(rest: &[char], out: &mut String) -> usize {
    let ticks = rest.iter().take_while(|c| **c == '`').count();
    let after = rest.get(ticks..).unwrap_or_default();
    let close = |part: &[char]| part.iter().all(|c| *c == '`');
    match after.windows(ticks).position(close) {
        Some(end) => {
            out.extend(&after[..end]);
            end + 2 * ticks
        }
        None => ticks,
    }
}

/// `https://` and the like.
fn scheme(rest: &[char]) -> usize {
    let starts = |scheme: &str| {
        let length = scheme.chars().count();
        rest.len() > length && scheme.chars().zip(rest).all(|(a, b)| a == *b)
    };
    ["https://www.", "http://www.", "https://", "http://"]
        .into_iter()
        .find(|scheme| starts(scheme))
        .map_or(0, str::len)
}

/// The text and the whole length of a link that starts with `rest`.
fn link(rest: &[char]) -> Option<(&[char], usize)> {
    let close = rest.iter().position(|c| *c == ']')?;
    let ends = match rest.get(close + 1)? {
        '(' => ')',
        '[' => ']',
        _ => return None,
    };
    let length = rest[close + 1..].iter().position(|c| *c == ends)?;
    Some((&rest[1..close], close + 1 + length + 1))
}

/// What starts with a square bracket: a link's text, a footnote's nothing.
fn bracket(rest: &[char], out: &mut String) -> usize {
    if let Some((text, length)) = link(rest) {
        inline(text, out);
        return length;
    }
    if rest.get(1) == Some(&'^')
        && let Some(close) = rest.iter().position(|c| *c == ']')
    {
        return close + 1;
    }
    out.push('[');
    1
}

/// What starts with `<`: an address' text, a tag's nothing.
fn angle(rest: &[char], out: &mut String) -> usize {
    let close = rest.iter().take(MAX_TAG).position(|c| *c == '>');
    let Some(inner) = close.and_then(|close| rest.get(1..close)) else {
        out.push('<');
        return 1;
    };
    let length = inner.len() + 2;
    let address = scheme(inner) > 0 || inner.contains(&'@');
    let tag = inner
        .first()
        .is_some_and(|c| c.is_ascii_alphabetic() || *c == '/');
    if address && !inner.contains(&' ') {
        out.extend(&inner[scheme(inner)..]);
        length
    } else if tag {
        out.push(' ');
        length
    } else {
        out.push('<');
        1
    }
}

/// A run of `*` or `_`: a mark, or a sign between numbers or within a name.
fn emphasis(rest: &[char], mark: char, before: Option<char>, out: &mut String) -> usize {
    let run = rest.iter().take_while(|c| **c == mark).count();
    let after = rest.get(run).copied();
    let space = |c: Option<char>| c.is_none_or(char::is_whitespace);
    let word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let sign = match mark {
        '*' => (space(before) && space(after)) || (run == 1 && digit(before) && digit(after)),
        _ => word(before) && word(after),
    };
    if sign {
        out.extend(&rest[..run]);
    }
    run
}

/// Without emoji, and with single spaces.
fn tidy(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut dropped = false;
    for grapheme in text.graphemes(true) {
        if grapheme.chars().any(is_emoji) {
            // A digit in a box is a digit.
            out.extend(grapheme.chars().filter(char::is_ascii_digit));
            dropped = true;
            continue;
        }
        for c in grapheme.chars() {
            if !c.is_whitespace() {
                if dropped && out.ends_with(' ') && matches!(c, '.' | ',' | '!' | '?' | ':') {
                    out.pop();
                }
                out.push(c);
                dropped = false;
            } else if !out.is_empty() && !out.ends_with(' ') {
                out.push(' ');
            }
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// A picture, or what makes one of the character before it.
pub(super) fn is_emoji(c: char) -> bool {
    matches!(c,
        '\u{fe0f}' | '\u{20e3}' | '\u{231a}' | '\u{231b}' | '\u{23e9}'..='\u{23fa}'
        | '\u{2600}'..='\u{27bf}' | '\u{2b00}'..='\u{2bff}' | '\u{1f000}'..='\u{1faff}'
        | '\u{e0020}'..='\u{e007f}')
}
