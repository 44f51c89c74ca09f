//! Text of anything, in tokens of any size: the chunks cover it, and do not depend on the tokens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unamesh_proto::speech::text::{Chunk, Splitter};

fn chunks<'a>(tokens: impl Iterator<Item = &'a str>) -> Vec<Chunk> {
    let (mut splitter, mut chunks) = (Splitter::new(), Vec::new());
    for token in tokens {
        splitter.push(token);
        chunks.extend(std::iter::from_fn(|| splitter.next()));
    }
    chunks.extend(std::iter::from_fn(|| splitter.finish()));
    chunks
}

fuzz_target!(|text: &str| {
    let whole = chunks(std::iter::once(text));
    let end = whole.iter().try_fold(0, |at, chunk| {
        (chunk.range.start == at).then_some(chunk.range.end)
    });
    assert_eq!(end, Some(text.chars().count() as u64));
    assert_eq!(
        chunks(text.split_inclusive(|c: char| c as u32 % 3 == 0)),
        whole
    );
});
