//! A signed advert from anywhere: opened, and if its payload is an advert, signed with a key
//! of ours, opened and merged into a table.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unamesh_proto::table::Table;
use unamesh_proto::wire::codec::{self, HEADER};
use unamesh_proto::wire::{Advert, SignedAdvert};
use unamesh_proto::{Mono, Wall, advert};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(signed) = codec::body::<SignedAdvert>(bytes) {
        let _ = advert::open(&signed);
    }
    let body = bytes.get(HEADER..).unwrap_or_default();
    let Ok(word) = codec::body::<Advert>(body) else { return };
    // Whoever is a member can sign anything: what passes the bounds goes into a table.
    if let Ok(signed) = advert::sign(&word, Vec::new(), |_| [0; 64]) {
        let mut table = Table::new(None);
        let wall = Wall::from_millis(word.wall_ms);
        table.merge(word, signed, true, Mono::ZERO, wall);
        table.tick(Mono::from_micros(u64::MAX));
        table.changed();
    }
});
