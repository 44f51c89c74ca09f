//! Names like one that nobody has: what to say instead of "unknown model".

use super::offer::usable;
use crate::table::Snapshot;
use crate::wire::ModelAdvert;
use std::collections::BTreeMap;

/// Names like `model` that the mesh has, best match first, and the names of the nodes that
/// have each: what to say to somebody who asked for a model that nobody has.
pub fn near_names(snapshot: &Snapshot, model: &str) -> Vec<(String, Vec<String>)> {
    near_models(snapshot, model, |_| true)
}

/// The same, among those models alone.
pub fn near_models(
    snapshot: &Snapshot,
    model: &str,
    among: impl Fn(&ModelAdvert) -> bool,
) -> Vec<(String, Vec<String>)> {
    const SHOWN: usize = 5;
    const COMPARED: usize = 4096;
    let mut by_name: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for peer in snapshot.peers.iter().filter(|p| usable(p).is_ok()) {
        for m in peer.advert.models.iter().filter(|m| among(m)) {
            if by_name.len() >= COMPARED && !by_name.contains_key(m.name.as_str()) {
                continue;
            }
            let nodes = by_name.entry(&m.name).or_default();
            if !nodes.contains(&peer.advert.name) {
                nodes.push(peer.advert.name.clone());
            }
        }
    }
    let mut near: Vec<_> = by_name
        .into_iter()
        .map(|(n, at)| (distance(model, n), n, at))
        .collect();
    near.sort();
    near.into_iter()
        .take(SHOWN)
        .map(|(_, name, at)| (name.to_owned(), at))
        .collect()
}

/// How unlike two model names are: edit distance, less if one begins like the other (a tag, a
/// size left out). Only the first 64 characters count, so that hostile names cost little.
pub fn distance(asked: &str, name: &str) -> usize {
    let fold = |s: &str| -> Vec<char> { s.chars().take(64).flat_map(char::to_lowercase).collect() };
    let (a, b) = (fold(asked), fold(name));
    let shared = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()] + 64 - shared.min(64)
}
