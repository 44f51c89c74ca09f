//! `PROTOCOL.md` says what the code does: its tables are made from the sources here and
//! compared. `UNAMESH_BLESS=1` rewrites them.
//!
//! The reader of sources below knows the shapes in which this crate writes records, enums and
//! constants (as rustfmt leaves them), and fails loudly on any other.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use unamesh_proto::wire::{ErrorCode, RECORDS, StreamKind};
use unamesh_proto::{limits, timeouts};

const DOCUMENT: &str = include_str!("../PROTOCOL.md");
const WIRE: [&str; 8] = [
    include_str!("../src/wire/stream.rs"),
    include_str!("../src/wire/drill.rs"),
    include_str!("../src/wire/generate.rs"),
    include_str!("../src/wire/speak.rs"),
    include_str!("../src/wire/transcribe.rs"),
    include_str!("../src/wire/warm.rs"),
    include_str!("../src/wire/node.rs"),
    include_str!("../src/wire/error.rs"),
];
const LIMITS: &str = include_str!("../src/limits.rs");
const TIMEOUTS: &str = include_str!("../src/timeouts.rs");

#[test]
fn the_document_is_what_the_code_is() {
    let types = Types::read();
    let mut document = DOCUMENT.to_owned();
    for (block, text) in [
        ("records", records()),
        ("StreamKind", types.enum_table("StreamKind")),
        ("messages", types.messages()),
        ("parts", types.parts()),
        ("enums", types.other_enums()),
        ("ErrorCode", types.enum_table("ErrorCode")),
        ("limits", constants(LIMITS)),
        ("timeouts", constants(TIMEOUTS)),
    ] {
        document = with_block(&document, block, &text);
    }
    if std::env::var_os("UNAMESH_BLESS").is_some() {
        std::fs::write(
            concat!(env!("CARGO_MANIFEST_DIR"), "/PROTOCOL.md"),
            &document,
        )
        .unwrap();
        return;
    }
    let differs = DOCUMENT.lines().zip(document.lines()).find(|(a, b)| a != b);
    assert!(
        DOCUMENT == document,
        "PROTOCOL.md differs from the code at {differs:?}: run `UNAMESH_BLESS=1 cargo test -p \
         unamesh-proto --test protocol` and look at the diff"
    );
}

/// What the reader of sources found is what was compiled.
#[test]
fn the_reader_of_sources_reads_right() {
    let types = Types::read();
    let names: BTreeSet<&str> = RECORDS.iter().map(|(_, name, _)| *name).collect();
    assert_eq!(
        types
            .records
            .keys()
            .map(String::as_str)
            .collect::<BTreeSet<_>>(),
        names
    );
    let codes = |name: &str| -> Vec<(u8, String)> {
        types.enums[name]
            .variants
            .iter()
            .map(|v| (v.code, v.text.clone()))
            .collect()
    };
    let kinds = StreamKind::KNOWN
        .iter()
        .map(|k| (k.code(), k.name().to_owned()));
    assert_eq!(codes("StreamKind"), kinds.collect::<Vec<_>>());
    let errors = ErrorCode::KNOWN
        .iter()
        .map(|e| (e.code(), e.name().to_owned()));
    assert_eq!(codes("ErrorCode"), errors.collect::<Vec<_>>());

    let limit = |name| values(LIMITS)[name].clone();
    assert_eq!(limit("MAX_RECORD"), Value::Count(limits::MAX_RECORD as u64));
    assert_eq!(limit("MAX_ADVERT"), Value::Count(limits::MAX_ADVERT as u64));
    assert_eq!(
        limit("MAX_TOKENS"),
        Value::Count(u64::from(limits::MAX_TOKENS))
    );
    assert_eq!(
        limit("MAX_HTTP_BODY"),
        Value::Count(limits::MAX_HTTP_BODY as u64)
    );
    let wait = |name| values(TIMEOUTS)[name].clone();
    for (name, compiled) in [
        ("SILENCE_MIN", timeouts::SILENCE_MIN),
        ("TABLE_DOWN", timeouts::TABLE_DOWN),
        ("TOMBSTONE", timeouts::TOMBSTONE),
        ("ADVERT_WINDOW", timeouts::ADVERT_WINDOW),
    ] {
        assert_eq!(
            wait(name),
            Value::Millis(u64::try_from(compiled.as_millis()).unwrap())
        );
    }
}

/// Every constant that the hand-written part names exists.
#[test]
fn the_prose_names_constants_that_exist() {
    let known: BTreeSet<String> = values(LIMITS)
        .into_keys()
        .chain(values(TIMEOUTS).into_keys())
        .collect();
    let by_hand = DOCUMENT.split("<!-- begin ").map(|part| {
        part.split_once("<!-- end ")
            .map_or(part, |(_, after)| after)
    });
    let words = by_hand.flat_map(|part| part.split('`').skip(1).step_by(2));
    let shouted = words.filter(|w| {
        w.contains('_')
            && w.chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    });
    for word in shouted.filter(|w| !w.starts_with("UNAMESH_")) {
        assert!(
            known.contains(word),
            "PROTOCOL.md names `{word}`, which the code does not have"
        );
    }
    for word in ["unamesh/1", "unamesh-join/1", "unamesh advert v1"] {
        assert!(DOCUMENT.contains(word));
    }
}

fn with_block(document: &str, block: &str, text: &str) -> String {
    let (begin, end) = (
        format!("<!-- begin {block} -->\n"),
        format!("<!-- end {block} -->"),
    );
    let (head, rest) = document
        .split_once(&begin)
        .unwrap_or_else(|| panic!("no {begin}"));
    let (_, tail) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    format!("{head}{begin}{text}{end}{tail}")
}

fn records() -> String {
    let mut text = "| kind | record | limit in bytes |\n|---|---|---|\n".to_owned();
    for (kind, name, limit) in RECORDS {
        let anchor = name.to_lowercase();
        writeln!(
            text,
            "| `{kind:#06x}` | [`{name}`](#{anchor}) | {} |",
            grouped(*limit as u64)
        )
        .unwrap();
    }
    text
}

/// The records, structs and enums in the sources of `wire`.
#[derive(Default)]
struct Types {
    structs: BTreeMap<String, Struct>,
    enums: BTreeMap<String, Enum>,
    /// Record name to the name of its struct.
    records: BTreeMap<String, String>,
    /// Names of structs and enums in the order of the sources.
    order: Vec<String>,
}

struct Struct {
    docs: String,
    fields: Vec<(String, String, String)>,
}

struct Enum {
    docs: String,
    variants: Vec<Variant>,
}

struct Variant {
    docs: String,
    code: u8,
    text: String,
}

impl Types {
    fn read() -> Types {
        let mut types = Types::default();
        for source in WIRE {
            types.read_source(source);
        }
        types
    }

    fn read_source(&mut self, source: &str) {
        let mut docs = Vec::new();
        let mut lines = source.lines().map(str::trim);
        while let Some(line) = lines.next() {
            if let Some(doc) = line.strip_prefix("///") {
                docs.push(doc.trim());
            } else if let Some(name) = block_name(line, "pub struct ") {
                let found = Struct {
                    docs: prose(&docs),
                    fields: fields(&mut lines),
                };
                self.structs.insert(name.to_owned(), found);
                self.order.push(name.to_owned());
                docs.clear();
            } else if line == "open_enum! {" {
                let (name, found) = open_enum(&mut lines);
                self.order.push(name.clone());
                self.enums.insert(name, found);
            } else if let Some(owner) = block_name(line, "impl Record for ") {
                let named = lines.find(|l| l.starts_with("const NAME")).expect("a NAME");
                let name = named.split('"').nth(1).expect("a quoted name");
                self.records.insert(name.to_owned(), owner.to_owned());
            } else if !line.starts_with("#[") {
                docs.clear();
            }
        }
    }

    fn messages(&self) -> String {
        let mut text = String::new();
        for (kind, name, limit) in RECORDS {
            let found = &self.structs[&self.records[*name]];
            writeln!(text, "### {name}\n").unwrap();
            let limit = grouped(*limit as u64);
            writeln!(
                text,
                "Kind `{kind:#06x}`, at most {limit} bytes. {}\n",
                found.docs
            )
            .unwrap();
            text += &found.table();
        }
        text
    }

    fn parts(&self) -> String {
        let mut text = String::new();
        let records: BTreeSet<&String> = self.records.values().collect();
        for name in self.order.iter().filter(|n| !records.contains(n)) {
            if let Some(found) = self.structs.get(name) {
                writeln!(text, "### {name}\n\n{}\n", found.docs).unwrap();
                text += &found.table();
            }
        }
        text
    }

    fn other_enums(&self) -> String {
        let mut text = String::new();
        let shown_apart = ["StreamKind", "ErrorCode"];
        for name in self
            .order
            .iter()
            .filter(|n| !shown_apart.contains(&n.as_str()))
        {
            if let Some(found) = self.enums.get(name) {
                writeln!(text, "### {name}\n\n{}\n", found.docs).unwrap();
                text += &self.enum_table(name);
                text.push('\n');
            }
        }
        text
    }

    fn enum_table(&self, name: &str) -> String {
        let mut text = "| code | name | meaning |\n|---|---|---|\n".to_owned();
        for v in &self.enums[name].variants {
            writeln!(text, "| {} | `{}` | {} |", v.code, v.text, v.docs).unwrap();
        }
        text
    }
}

impl Struct {
    fn table(&self) -> String {
        let mut text = "| field | type | meaning |\n|---|---|---|\n".to_owned();
        for (name, kind, docs) in &self.fields {
            writeln!(text, "| `{name}` | `{kind}` | {docs} |").unwrap();
        }
        text.push('\n');
        text
    }
}

fn block_name<'a>(line: &'a str, before: &str) -> Option<&'a str> {
    line.strip_prefix(before)?.strip_suffix(" {")
}

fn fields<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Vec<(String, String, String)> {
    let (mut fields, mut docs) = (Vec::new(), Vec::new());
    for line in lines.take_while(|line| *line != "}") {
        if let Some(doc) = line.strip_prefix("///") {
            docs.push(doc.trim());
        } else if let Some(field) = line.strip_prefix("pub ") {
            let (name, kind) = field
                .trim_end_matches(',')
                .split_once(": ")
                .expect("name: type");
            fields.push((name.to_owned(), kind.to_owned(), prose(&docs)));
            docs.clear();
        } else {
            panic!("not a field of a record: {line}");
        }
    }
    fields
}

fn open_enum<'a>(lines: &mut impl Iterator<Item = &'a str>) -> (String, Enum) {
    let (mut docs, mut outer) = (Vec::new(), None);
    let mut variants = Vec::new();
    for line in lines {
        if let Some(doc) = line.strip_prefix("///") {
            docs.push(doc.trim());
        } else if let Some(name) = line.strip_suffix(" {") {
            outer = Some((name.to_owned(), prose(&docs)));
            docs.clear();
        } else if line == "}" {
            break;
        } else {
            let (head, text) = line
                .trim_end_matches(',')
                .split_once(" \"")
                .expect("a name");
            let (_, code) = head.split_once(" = ").expect("a code");
            let text = text.trim_end_matches('"').to_owned();
            variants.push(Variant {
                docs: prose(&docs),
                code: code.parse().unwrap(),
                text,
            });
            docs.clear();
        }
    }
    let (name, docs) = outer.expect("an enum's name");
    (name, Enum { docs, variants })
}

/// Documentation as a paragraph of Markdown: links of rustdoc become their last name.
fn prose(docs: &[&str]) -> String {
    let text = docs.join(" ").replace('|', "\\|");
    let mut parts = text.split("[`");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (link, rest) = part.split_once("`]").expect("a closed link");
        let name = link.rsplit("::").next().unwrap_or(link);
        write!(out, "`{name}`{rest}").unwrap();
    }
    out
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Count(u64),
    Millis(u64),
}

/// The table of a file of constants.
fn constants(source: &str) -> String {
    let values = values(source);
    let mut text = "| name | value | why |\n|---|---|---|\n".to_owned();
    for (name, _, docs) in declarations(source) {
        let value = match values[&name] {
            Value::Count(n) => grouped(n),
            Value::Millis(ms) if ms % 1000 == 0 => format!("{} s", grouped(ms / 1000)),
            Value::Millis(ms) => format!("{} ms", grouped(ms)),
        };
        writeln!(text, "| `{name}` | {value} | {docs} |").unwrap();
    }
    text
}

fn values(source: &str) -> BTreeMap<String, Value> {
    let mut known = BTreeMap::new();
    for (name, expression, _) in declarations(source) {
        let inner = |unit: &str| {
            expression
                .strip_prefix(unit)?
                .strip_prefix('(')?
                .strip_suffix(')')
                .map(str::to_owned)
        };
        let value = if let Some(ms) = inner("Duration::from_millis") {
            Value::Millis(number(&ms, &known))
        } else if let Some(s) = inner("Duration::from_secs") {
            Value::Millis(1000 * number(&s, &known))
        } else {
            Value::Count(number(&expression, &known))
        };
        known.insert(name, value);
    }
    known
}

/// Name, expression and documentation of every constant.
fn declarations(source: &str) -> Vec<(String, String, String)> {
    let (mut found, mut docs) = (Vec::new(), Vec::new());
    let mut lines = source.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if let Some(doc) = line.strip_prefix("///") {
            docs.push(doc.trim());
        } else if let Some(rest) = line.strip_prefix("pub const ") {
            let mut whole = rest.to_owned();
            while !whole.ends_with(';') {
                whole = format!("{whole} {}", lines.next().expect("a semicolon"));
            }
            let (head, expression) = whole.split_once(" = ").expect("a value");
            let name = head.split(':').next().unwrap_or_default();
            let expression = expression.trim_end_matches(';').trim();
            found.push((name.to_owned(), expression.to_owned(), prose(&docs)));
            docs.clear();
        }
    }
    found
}

/// A product, a shift, a number or the name of an earlier constant.
fn number(expression: &str, known: &BTreeMap<String, Value>) -> u64 {
    if let Some((left, right)) = expression.split_once(" << ") {
        return number(left, known) << number(right, known);
    }
    if let Some((left, right)) = expression.split_once(" * ") {
        return number(left, known) * number(right, known);
    }
    let text = expression.trim().replace('_', "");
    if let Ok(n) = text.parse() {
        return n;
    }
    match known.get(expression.trim()) {
        Some(Value::Count(n)) => *n,
        other => panic!("teach this test to read `{expression}` ({other:?})"),
    }
}

/// 1234567 as 1,234,567.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
