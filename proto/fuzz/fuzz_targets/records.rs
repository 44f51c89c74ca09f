//! One byte chooses a record, the rest is its body: every decoder. What decodes must encode,
//! and the result must be stable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unamesh_proto::testing::records::recode;
use unamesh_proto::wire::RECORDS;
use unamesh_proto::wire::codec::HEADER;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, body)) = bytes.split_first() else { return };
    let (kind, name, _) = RECORDS[usize::from(*choice) % RECORDS.len()];
    if let Some(Ok(again)) = recode(kind, body) {
        assert_eq!(recode(kind, &again[HEADER..]), Some(Ok(again.clone())), "{name}");
    }
});
