//! Whether a mark ends a sentence: abbreviations, initials, numbers, quotes.

/// Followed by a name or a number, never by a new sentence.
const NEVER: &[&str] = &[
    "adr", "approx", "bzw", "ca", "capt", "cf", "col", "dh", "dipl", "dr", "eg", "evtl", "exkl",
    "fa", "fr", "frl", "geb", "gem", "gen", "ggf", "gov", "herr", "hl", "hr", "ie", "ing", "inkl",
    "lt", "mag", "messrs", "mgr", "mio", "mme", "mr", "mrd", "mrs", "ms", "mt", "mx", "od", "pres",
    "prof", "rep", "resp", "rev", "sen", "sgt", "sog", "st", "str", "tel", "ua", "vgl", "vs", "za",
    "zb", "zt", "zz",
];
/// An abbreviation before a number, else a word or a letter.
const BEFORE_NUMBER: &[&str] = &[
    "abb", "abs", "art", "bd", "ch", "eq", "fig", "figs", "kap", "no", "nos", "nr", "p", "par",
    "pp", "sec", "tab", "vol", "ziff",
];
/// May end a sentence or stand within one.
const MAYBE: &[&str] = &[
    "apr", "assn", "aug", "ave", "blvd", "bros", "co", "corp", "dec", "dept", "dez", "est", "etc",
    "feb", "inc", "jan", "jr", "jul", "jun", "ltd", "nov", "oct", "okt", "sept", "sep", "sr",
    "univ", "usf", "usw",
];
/// Words that often begin a sentence, and with a capital hardly stand elsewhere.
const STARTERS: &[&str] = &[
    "a", "aber", "after", "all", "also", "although", "an", "and", "are", "as", "at", "auch",
    "because", "both", "but", "can", "could", "danach", "dann", "das", "dem", "den", "der", "did",
    "die", "dies", "diese", "dieser", "dieses", "do", "does", "doch", "dort", "du", "each", "ein",
    "eine", "er", "es", "every", "for", "from", "hat", "he", "her", "here", "heute", "hier", "his",
    "how", "however", "i", "ich", "if", "ihr", "im", "in", "is", "ist", "it", "its", "ja", "jetzt",
    "let", "man", "many", "mit", "most", "my", "nein", "no", "not", "now", "nun", "oder", "on",
    "one", "or", "our", "seine", "she", "should", "sie", "since", "so", "some", "that", "the",
    "their", "then", "there", "these", "they", "this", "those", "to", "trotzdem", "und", "was",
    "wenn", "wer", "we", "what", "when", "where", "which", "while", "who", "why", "wie", "will",
    "wir", "with", "would", "yes", "you", "your", "zum", "zur",
];
/// Letters of the longest word that has to be known.
const MAX_WORD: usize = 12;
/// Marks that may stand before a sentence's first word.
const MAX_OPENERS: usize = 4;

/// A mark and what is around it.
pub(super) struct Ends<'a> {
    /// The text before it, from its chunk's start.
    pub before: &'a [char],
    /// One or several marks.
    pub marks: &'a [char],
    /// Quotes and brackets behind them.
    pub closers: &'a [char],
    /// It is in a list's item.
    pub item: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Sentence,
    Clause,
    Nothing,
    Unknown,
}

/// How what follows begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Starter,
    Capital,
    Lower,
    Digit,
    /// A sign, a script without capitals, or the end.
    Other,
}

impl Ends<'_> {
    /// Nothing has to follow.
    pub fn wide(&self) -> bool {
        self.marks
            .iter()
            .any(|c| matches!(c, '。' | '！' | '？' | '．'))
    }

    /// The number of a list's item: `1.`
    pub fn is_item_number(&self) -> bool {
        let start = self
            .before
            .iter()
            .rposition(|c| *c == '\n')
            .map_or(0, |at| at + 1);
        let line: String = self.before[start..].iter().collect();
        let number = line.trim();
        self.item && !number.is_empty() && number.chars().all(|c| c.is_ascii_digit())
    }

    /// Whether a sentence ends, if `rest` follows the white space behind it.
    pub fn verdict(&self, rest: &[char], ended: bool) -> Verdict {
        if self.is_item_number() {
            return Verdict::Nothing;
        }
        let Some(next) = Next::of(rest, ended) else {
            return Verdict::Unknown;
        };
        if self.marks != ['.'] {
            let dots = self.marks.iter().all(|c| matches!(c, '.' | '…'));
            let quoted = self.closers.iter().any(|c| is_quote(*c));
            return match next {
                // "Well... maybe", "'Stop!' he said"
                Next::Lower if dots || quoted => Verdict::Clause,
                _ => Verdict::Sentence,
            };
        }
        self.dot(next)
    }

    fn dot(&self, next: Next) -> Verdict {
        let sentence_if = |yes: bool| match yes {
            true => Verdict::Sentence,
            false => Verdict::Nothing,
        };
        let token = last_token(self.before);
        let letters: String = token
            .iter()
            .filter(|c| **c != '.')
            .flat_map(|c| c.to_lowercase())
            .collect();
        let known = |list: &[&str]| list.contains(&letters.as_str());
        if token.iter().all(char::is_ascii_digit) && !token.is_empty() {
            // An ordinal, mostly; a year or an amount if it is long.
            let long = token.len() > 2 && next == Next::Capital;
            return sentence_if(long || matches!(next, Next::Starter | Next::Other));
        }
        if known(NEVER) && next != Next::Other {
            return Verdict::Nothing;
        }
        if known(BEFORE_NUMBER) && next == Next::Digit {
            return Verdict::Nothing;
        }
        if letters.chars().count() == 1 && letters != "i" {
            // "J. R. R.", "z. B."; "Plan B. Then"
            let chain = ends_with_initial(&self.before[..self.before.len() - token.len()]);
            return sentence_if(!chain && matches!(next, Next::Starter | Next::Other));
        }
        if is_acronym(token) || known(MAYBE) {
            return sentence_if(matches!(next, Next::Starter | Next::Other));
        }
        match next {
            // An abbreviation that is not in the lists, or a writer without capitals.
            Next::Lower if letters.chars().count() < 5 => Verdict::Clause,
            _ => Verdict::Sentence,
        }
    }
}

impl Next {
    /// `None` while the word goes on.
    fn of(rest: &[char], ended: bool) -> Option<Self> {
        let openers = rest
            .iter()
            .take(MAX_OPENERS)
            .take_while(|c| is_opener(**c))
            .count();
        let rest = &rest[openers..];
        let Some(&first) = rest.first() else {
            return ended.then_some(Next::Other);
        };
        if first.is_numeric() {
            return Some(Next::Digit);
        }
        if first.is_lowercase() {
            return Some(Next::Lower);
        }
        if !first.is_uppercase() {
            return Some(Next::Other);
        }
        let word: String = rest
            .iter()
            .take_while(|c| c.is_alphabetic())
            .take(MAX_WORD + 1)
            .collect();
        let whole = word.chars().count();
        if whole == rest.len() && whole <= MAX_WORD && !ended {
            return None;
        }
        let word = word.to_lowercase();
        Some(match STARTERS.contains(&word.as_str()) {
            true => Next::Starter,
            false => Next::Capital,
        })
    }
}

/// The word before a mark, without the brackets and quotes before it.
fn last_token(before: &[char]) -> &[char] {
    let inside = |c: &char| c.is_alphanumeric() || matches!(c, '.' | '-' | '@' | '/' | '_');
    let start = before
        .iter()
        .rposition(|c| !inside(c))
        .map_or(0, |at| at + 1);
    &before[start..]
}

/// The text ends with a single letter, a dot and white space.
fn ends_with_initial(before: &[char]) -> bool {
    let blank = before
        .iter()
        .rev()
        .take_while(|c| c.is_whitespace())
        .count();
    let [.., letter, '.'] = before[..before.len() - blank] else {
        return false;
    };
    let start = before.len() - blank - 2;
    letter.is_alphabetic() && (start == 0 || !before[start - 1].is_alphanumeric())
}

/// `U.S`, `p.m`, `Ph.D`.
fn is_acronym(token: &[char]) -> bool {
    let mut parts = token.split(|c| *c == '.');
    token.contains(&'.')
        && parts.all(|part| (1..=2).contains(&part.len()) && part.iter().all(|c| c.is_alphabetic()))
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'' | '”' | '’' | '“' | '»' | '«' | '」' | '』')
}

/// Belongs to the sentence whose mark is before it.
pub(super) fn is_closer(c: char) -> bool {
    is_quote(c)
        || matches!(c, ')' | ']' | '}' | '*' | '_' | '~' | '）' | '】' | '》')
        || crate::speech::spoken::is_emoji(c)
}

fn is_opener(c: char) -> bool {
    is_quote(c)
        || matches!(
            c,
            '(' | '[' | '{' | '*' | '_' | '~' | '`' | '„' | '‘' | '¿' | '¡'
        )
}

/// Chinese and Japanese characters, which no spaces part.
pub(super) fn is_wide(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}
