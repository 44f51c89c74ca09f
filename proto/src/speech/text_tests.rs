use super::*;
use proptest::prelude::*;

/// The chunks of `text` if it is pushed in these pieces.
fn pushed<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Vec<Chunk> {
    let (mut splitter, mut chunks) = (Splitter::new(), Vec::new());
    for piece in pieces {
        splitter.push(piece);
        chunks.extend(std::iter::from_fn(|| splitter.next()));
    }
    chunks.extend(std::iter::from_fn(|| splitter.finish()));
    chunks
}

/// The chunks, after checking all that must hold for any text.
fn split(text: &str) -> Vec<Chunk> {
    let chunks = pushed([text]);
    let mut at = 0;
    for (n, chunk) in chunks.iter().enumerate() {
        assert_eq!(chunk.range.start, at, "{text:?}: {chunks:?}");
        assert!(chunk.range.end > at);
        at = chunk.range.end;
        assert!(
            n + 1 == chunks.len() || !chunk.spoken.is_empty(),
            "{chunks:?}"
        );
        assert!(chunk.spoken.chars().count() <= MAX_SPOKEN_CHUNK + 20);
        assert_eq!(chunk.spoken.trim(), chunk.spoken);
    }
    assert_eq!(at, text.chars().count() as u64, "{text:?}: {chunks:?}");
    let mut buffer = [0; 4];
    let (mut splitter, mut single) = (Splitter::new(), Vec::new());
    for c in text.chars() {
        splitter.push(c.encode_utf8(&mut buffer));
        single.extend(std::iter::from_fn(|| splitter.next()));
    }
    single.extend(std::iter::from_fn(|| splitter.finish()));
    assert_eq!(single, chunks, "{text:?} by single characters");
    chunks
}

/// What is spoken, after a first chunk that is cut off here: it follows other rules.
fn sentences(text: &str) -> Vec<String> {
    let whole = format!("So.\n\n{text}");
    let spoken = split(&whole).into_iter().map(|chunk| chunk.spoken);
    let mut spoken: Vec<String> = spoken.filter(|s| !s.is_empty()).collect();
    assert_eq!(spoken.remove(0), "So.");
    spoken
}

const CASES: &[(&str, &[&str])] = &[
    // Plain sentences.
    ("One. Two! Three? Four", &["One.", "Two!", "Three?", "Four"]),
    ("Really?! Yes.", &["Really?!", "Yes."]),
    (
        "He said \"Stop.\" Then he left.",
        &["He said \"Stop.\"", "Then he left."],
    ),
    ("\"Stop!\" he said. Good.", &["\"Stop!\" he said.", "Good."]),
    ("(It rains.) We go.", &["(It rains.)", "We go."]),
    (
        "No caps here, friends. they go on.",
        &["No caps here, friends.", "they go on."],
    ),
    (
        "„Halt!“ Er ging. «Oui.» Bon.",
        &["„Halt!“", "Er ging.", "«Oui.»", "Bon."],
    ),
    // Abbreviations.
    (
        "Dr. Smith met Mr. Jones. They spoke.",
        &["Dr. Smith met Mr. Jones.", "They spoke."],
    ),
    (
        "Use nuts, e.g. almonds. Or i.e. This.",
        &["Use nuts, e.g. almonds.", "Or i.e. This."],
    ),
    (
        "The U.S. Army came. It won.",
        &["The U.S. Army came.", "It won."],
    ),
    (
        "It is in the U.S. The flag is there.",
        &["It is in the U.S.", "The flag is there."],
    ),
    (
        "At 5 p.m. He ate. At 6 a.m. sharp.",
        &["At 5 p.m.", "He ate.", "At 6 a.m. sharp."],
    ),
    (
        "Apples, pears, etc. are fruit. Good.",
        &["Apples, pears, etc. are fruit.", "Good."],
    ),
    (
        "Apples, pears, etc. The end.",
        &["Apples, pears, etc.", "The end."],
    ),
    (
        "J. R. R. Tolkien wrote it. Read it.",
        &["J. R. R. Tolkien wrote it.", "Read it."],
    ),
    ("So am I. We go.", &["So am I.", "We go."]),
    ("Take plan B. Then rest.", &["Take plan B.", "Then rest."]),
    (
        "See fig. 3 and no. 5. No. That is all.",
        &["See fig. 3 and no. 5.", "No.", "That is all."],
    ),
    ("Acme Inc. was sold. Why?", &["Acme Inc. was sold.", "Why?"]),
    (
        "Peter Ph.D. Miller came. Yes.",
        &["Peter Ph.D. Miller came.", "Yes."],
    ),
    (
        "Obst, z. B. Äpfel, ist gut. Ja.",
        &["Obst, z. B. Äpfel, ist gut.", "Ja."],
    ),
    (
        "Das ist z.B. Dein Haus. Ja.",
        &["Das ist z.B. Dein Haus.", "Ja."],
    ),
    (
        "Es ist d. h. Die Sache. Gut.",
        &["Es ist d. h. Die Sache.", "Gut."],
    ),
    (
        "Ca. 20 bzw. 30 Stück usw. Das reicht.",
        &["Ca. 20 bzw. 30 Stück usw.", "Das reicht."],
    ),
    (
        "Prof. Dr. Müller, St. Gallen. Er lehrt.",
        &["Prof. Dr. Müller, St. Gallen.", "Er lehrt."],
    ),
    // Numbers.
    (
        "Pi is 3.14 or so. It is 1,000.5 big.",
        &["Pi is 3.14 or so.", "It is 1,000.5 big."],
    ),
    (
        "Am 3. Mai um 10:30 Uhr. Dann nicht.",
        &["Am 3. Mai um 10:30 Uhr.", "Dann nicht."],
    ),
    (
        "Am 21. Juni 2024. Es war warm.",
        &["Am 21. Juni 2024.", "Es war warm."],
    ),
    (
        "Das war 1999. Danach kam er. Ja.",
        &["Das war 1999.", "Danach kam er.", "Ja."],
    ),
    (
        "Er war der 2. von hinten. Ja.",
        &["Er war der 2. von hinten.", "Ja."],
    ),
    (
        "It costs 3. The rest is free.",
        &["It costs 3.", "The rest is free."],
    ),
    (
        "On 2024-05-03 at 10.30. We meet.",
        &["On 2024-05-03 at 10.30.", "We meet."],
    ),
    (
        "Version 1.2.3 is out. Get it.",
        &["Version 1.2.3 is out.", "Get it."],
    ),
    // Ellipses.
    (
        "Well... maybe. Wait... Now go.",
        &["Well... maybe.", "Wait...", "Now go."],
    ),
    ("Hm… gut. Ach… Na ja.", &["Hm… gut.", "Ach…", "Na ja."]),
    // Addresses.
    (
        "See https://example.com/a.b?c=d. Then www.x.org, please.",
        &["See example.com/a.b?c=d.", "Then www.x.org, please."],
    ),
    (
        "Mail me at a.b@c.example. Thanks.",
        &["Mail me at a.b@c.example.", "Thanks."],
    ),
    (
        "Go to <https://www.x.org/> now. Or <me@x.org>.",
        &["Go to x.org/ now.", "Or me@x.org."],
    ),
    ("Run main.rs. It works.", &["Run main.rs.", "It works."]),
    // Emoji.
    (
        "Great! 😀 Let's go 🚀. Bye 👨‍👩‍👧‍👦!",
        &["Great!", "Let's go.", "Bye!"],
    ),
    (
        "Great!🎉 Next ❤️ one. 1️⃣ first.",
        &["Great!", "Next one.", "1 first."],
    ),
    ("🇩🇪 Germany. 👍🏽 Good.", &["Germany.", "Good."]),
    ("5 € or ½, ™ and → stay.", &["5 € or ½, ™ and → stay."]),
    // Inline Markdown.
    (
        "**Bold.** And *this* is __it__.",
        &["Bold.", "And this is it."],
    ),
    (
        "***All*** of ~~old~~ new `code.rs`. Ok.",
        &["All of old new code.rs.", "Ok."],
    ),
    (
        "2 * 3 is 6, 2*3 too. My_var_name stays.",
        &["2 * 3 is 6, 2*3 too.", "My_var_name stays."],
    ),
    (
        "A `Vec<String>` or ``a_`b`_c`` it is. Ok.",
        &["A Vec<String> or a_`b`_c it is.", "Ok."],
    ),
    (
        "Use `a. B` and `c? D` here. Ok.",
        &["Use a. B and c? D here.", "Ok."],
    ),
    (
        "Read [the book. Now](http://x.y/z) please. Ok.",
        &["Read the book. Now please.", "Ok."],
    ),
    (
        "![A cat.](cat.png) Nice. [Ref][1] it.",
        &["A cat. Nice.", "Ref it."],
    ),
    (
        "It is so[^1]. A [box] stays.",
        &["It is so.", "A [box] stays."],
    ),
    (
        r"A \*star\* and a<br>break. 3 < 5 > 2.",
        &["A *star* and a break.", "3 < 5 > 2."],
    ),
    // Blocks.
    (
        "# Title\nText. More.\n## Two ##\nEnd",
        &["Title", "Text.", "More.", "Two", "End"],
    ),
    (
        "Here:\n- one\n- two, really\n* three\n\nEnd.",
        &["Here:", "one", "two, really", "three", "End."],
    ),
    (
        "Do:\n1. First. Now.\n2. Second\n10) Last",
        &["Do:", "1. First.", "Now.", "2. Second", "10) Last"],
    ),
    ("- [ ] Open\n- [x] Done", &["Open", "Done"]),
    (
        "> Quoted text\n> goes on. Yes.\n\nEnd",
        &["Quoted text goes on.", "Yes.", "End"],
    ),
    (
        "| Name | Age |\n|---|:-:|\n| Ann | 30. |\n| **Bob** | |\n\nDone.",
        &["Name, Age", "Ann, 30.", "Bob", "Done."],
    ),
    ("A.\n\n---\n\nB.\n***\nC", &["A.", "B.", "C"]),
    (
        "Code:\n```rust\nlet x = 1.5; // hm. So\nf(x)\n```\nDone. Ok.",
        &["Code:", "let x = 1.5; // hm. So", "f(x)", "Done.", "Ok."],
    ),
    (
        "~~~\n# no heading\n- no item\n~~~\n# yes",
        &["# no heading", "- no item", "yes"],
    ),
    (
        "A line\nthat goes on\nhere. Next\n\nPart",
        &["A line that goes on here.", "Next", "Part"],
    ),
    (
        "First.\r\nSecond\r\n\r\nThird",
        &["First.", "Second", "Third"],
    ),
    // Chinese, Japanese.
    (
        "今天天气很好。我们去公园吧！好吗？",
        &["今天天气很好。", "我们去公园吧！", "好吗？"],
    ),
    (
        "彼は「はい。」と言った。終わり。",
        &["彼は「はい。」", "と言った。", "終わり。"],
    ),
    // Nothing to say.
    ("--- ... ?! 😀\n\n***", &[]),
    ("   \n\n \t\n", &[]),
];

#[test]
fn the_table() {
    assert!(CASES.len() >= 60, "{}", CASES.len());
    let wrong: Vec<String> = CASES
        .iter()
        .map(|(text, expected)| (text, sentences(text), expected))
        .filter(|(_, spoken, expected)| spoken != *expected)
        .map(|(text, spoken, expected)| format!("{text:?}\n  is {spoken:?}\n not {expected:?}"))
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_first_chunk_comes_early() {
    for (text, first) in [
        ("Sure. Here it is.", "Sure."),
        ("Well, I think so, and so do you.", "Well, I think so,"),
        (
            "The quick brown fox jumps over the lazy dog today.",
            "The quick brown fox jumps over the lazy",
        ),
        ("It costs 1,000 euros: a lot.", "It costs 1,000 euros:"),
        ("We know one thing – it works.", "We know one thing –"),
        ("We know one thing—it works.", "We know one thing—"),
        (
            "He asked and asked and then saw Dr. Who there.",
            "He asked and asked and then saw Dr. Who",
        ),
        ("今天天气很好，我们去公园吧。", "今天天气很好，"),
        (
            "Here are three things\n- one\n- two",
            "Here are three things",
        ),
        ("**Yes, that is right**, of course.", "Yes, that is right,"),
    ] {
        assert_eq!(split(text)[0].spoken, first, "{text:?}");
    }
    let chunks = split("Well, I think so, and so do you, my friend. Good, good, very good.");
    let spoken: Vec<&str> = chunks.iter().map(|c| c.spoken.as_str()).collect();
    let rest = [
        "Well, I think so,",
        "and so do you, my friend.",
        "Good, good, very good.",
    ];
    assert_eq!(spoken, rest, "whole sentences after the first chunk");
}

#[test]
fn ranges_are_characters_of_the_text() {
    let text = "Ä 😀 **bee.** Next one. ";
    let chunks = split(text);
    let of = |range: &Range<u64>| -> String {
        let (start, end) = (range.start as usize, range.end as usize);
        text.chars().skip(start).take(end - start).collect()
    };
    let parts: Vec<String> = chunks.iter().map(|c| of(&c.range)).collect();
    assert_eq!(parts, ["Ä 😀 **bee.** ", "Next one. "]);
    let silent = split("Yes.\n\n---\n");
    assert_eq!(silent[1].spoken, "");
    assert_eq!(silent[1].range, 5..10);
}

#[test]
fn long_sentences_are_cut_where_it_hurts_least() {
    let words = format!("So. {}", "word ".repeat(200));
    let clauses = format!("So. {}", "a few words, ".repeat(60));
    let cjk = format!("好。{}", "字".repeat(1000));
    let family = format!("So. {}", "e\u{301}".repeat(500));
    for text in [&words, &clauses, &cjk, &family] {
        let chunks = split(text);
        assert!(chunks.len() >= 3);
        assert!(
            chunks
                .iter()
                .all(|c| c.spoken.chars().count() <= MAX_SPOKEN_CHUNK)
        );
    }
    assert!(
        split(&words)
            .iter()
            .all(|c| c.spoken.ends_with("word") || c.spoken == "So.")
    );
    let ends = |c: &Chunk| c.spoken.ends_with("words,") || c.spoken == "So.";
    assert!(split(&clauses).iter().all(ends));
    assert!(
        split(&family)
            .iter()
            .skip(1)
            .all(|c| c.spoken.starts_with('e'))
    );
}

#[test]
fn a_long_answer_costs_little() {
    let text = "This is a sentence of some words, and it goes on. ".repeat(20_000);
    let chunks = pushed([text.as_str()]);
    assert_eq!(
        chunks.last().unwrap().range.end,
        text.chars().count() as u64
    );
    assert!(chunks.len() > 20_000);
}

/// Text that looks like an answer: words, marks, Markdown, white space.
fn answers() -> impl Strategy<Value = String> {
    let parts = proptest::sample::select(vec![
        "word",
        "Word",
        "The",
        "a",
        "I",
        "Dr",
        "z",
        "B",
        "U.S",
        "etc",
        "3",
        "14",
        "1999",
        "10)",
        ".",
        ".",
        ".",
        ",",
        "!",
        "?",
        "...",
        "…",
        ":",
        ";",
        " – ",
        "—",
        "\"",
        "'",
        "(",
        ")",
        " ",
        " ",
        " ",
        " ",
        " ",
        "\n",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "- ",
        "* ",
        "**",
        "*",
        "_",
        "`",
        "```",
        "```rust\n",
        "~~~\n",
        "#",
        "# ",
        "> ",
        "|",
        "|---|",
        "---",
        "[",
        "](",
        "]",
        "![",
        "<br>",
        "<",
        "https://a.b/c",
        "a@b.c",
        "😀",
        "❤️",
        "👨‍👩‍👧",
        "é",
        "e\u{301}",
        "字",
        "今天",
        "。",
        "，",
        "」",
        "\\",
        "x_y",
        "2*3",
        "\u{200d}",
        "\u{fe0f}",
    ]);
    proptest::collection::vec(parts, 0..120).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_tokens_change_nothing(
        text in answers(),
        cuts in proptest::collection::vec(1usize..9, 1..20),
    ) {
        let whole = split(&text);
        let chars: Vec<char> = text.chars().collect();
        let (mut pieces, mut at, mut n) = (Vec::new(), 0, 0);
        while at < chars.len() {
            let end = (at + cuts[n % cuts.len()]).min(chars.len());
            pieces.push(chars[at..end].iter().collect::<String>());
            (at, n) = (end, n + 1);
        }
        prop_assert_eq!(pushed(pieces.iter().map(String::as_str)), whole);
    }

    #[test]
    fn flushes_only_cut(one in answers(), two in answers()) {
        let (mut splitter, mut chunks) = (Splitter::new(), Vec::new());
        for part in [&one, &two] {
            splitter.push(part);
            chunks.extend(std::iter::from_fn(|| splitter.finish()));
        }
        let mut at = 0;
        for chunk in &chunks {
            prop_assert_eq!(chunk.range.start, at);
            at = chunk.range.end;
        }
        prop_assert_eq!(at as usize, one.chars().count() + two.chars().count());
    }

    #[test]
    fn anything_is_survived(text in "\\PC{0,400}") {
        split(&text);
    }
}

#[test]
fn what_has_no_words_is_not_spoken() {
    for silent in [
        "",
        " \n",
        "\u{1f389}\u{1f389}",
        "...",
        "***",
        "```",
        "---\n\n---",
    ] {
        assert!(!is_spoken(silent), "{silent:?}");
    }
    for text in ["a", "... 7", "\u{1f389} hurrah", "```\nx\n```", "\u{4f60}"] {
        assert!(is_spoken(text), "{text:?}");
    }
}
