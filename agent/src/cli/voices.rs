//! `unamesh voices`: who can speak, and where.

use super::args::VoicesArgs;
use super::context::Context;
use super::error::CliError;
use super::mesh::Mesh;
use super::output::{Cell, Table, printable};
use super::text::Read;
use serde_json::Value;

pub(super) async fn run(context: &Context, args: &VoicesArgs) -> Result<(), CliError> {
    let mesh = Mesh::find(context).await?;
    let voices = mesh.voices().await;
    mesh.close().await;
    let mut voices = voices?;
    if let (Some(filter), Some(list)) = (&args.filter, voices.as_array_mut()) {
        let filter = filter.to_lowercase();
        list.retain(|voice| words(voice).any(|word| word.to_lowercase().contains(&filter)));
        if list.is_empty() {
            return Err(none(context, args.filter.as_deref()));
        }
    }
    if context.out.json {
        return context.out.value(&voices);
    }
    let mut table = Table::new(&["VOICE", "LANGUAGE", "MODEL", "WHERE"]);
    for voice in voices.items() {
        table.row(row(voice));
    }
    if table.is_empty() {
        return Err(none(context, args.filter.as_deref()));
    }
    context.out.print(&table.render(&context.out))
}

/// What a voice is looked for by.
fn words(voice: &Value) -> impl Iterator<Item = &str> {
    let models = voice
        .at("peers")
        .items()
        .iter()
        .map(|p| p.at("model").text());
    [voice.at("voice").text(), voice.at("language").text()]
        .into_iter()
        .chain(models)
}

fn row(voice: &Value) -> Vec<Cell> {
    let peers = voice.at("peers").items();
    let mut models: Vec<&str> = peers.iter().map(|p| p.at("model").text()).collect();
    models.sort_unstable();
    models.dedup();
    let places: Vec<String> = peers
        .iter()
        .map(|p| format!("{}/{}", p.at("name").text(), p.at("engine").text()))
        .collect();
    let or_dash = |text: String| match text.as_str() {
        "" => Cell::from("-"),
        _ => Cell::from(printable(&text)),
    };
    vec![
        voice.at("voice").text().into(),
        or_dash(voice.at("language").text().to_owned()),
        or_dash(models.join(", ")),
        or_dash(places.join(", ")),
    ]
}

fn none(context: &Context, filter: Option<&str>) -> CliError {
    match filter {
        Some(filter) => CliError::new(
            "no_voices",
            format!("no machine of the mesh has a voice like {filter:?}"),
        )
        .next(context.command("voices")),
        None => CliError::new("no_voices", "no machine of the mesh has a voice")
            .next(context.command("engines"))
            .next(context.command("doctor")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::Out;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_voice_is_one_row_with_all_its_places() {
        let voice = json!({"voice": "joe", "language": "en-US", "peers": [
            {"node": "a", "name": "desk", "engine": "piper", "model": "piper"},
            {"node": "b", "name": "attic", "engine": "piper", "model": "piper"},
        ]});
        let bare = json!({"voice": "default", "language": "", "peers": []});
        let mut table = Table::new(&["VOICE", "LANGUAGE", "MODEL", "WHERE"]);
        table.row(row(&voice));
        table.row(row(&bare));
        let text = table.render(&Out::piped());
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines,
            [
                vec!["VOICE", "LANGUAGE", "MODEL", "WHERE"],
                vec!["joe", "en-US", "piper", "desk/piper,", "attic/piper"],
                vec!["default", "-", "-", "-"],
            ]
        );
        assert!(words(&voice).any(|word| word.contains("en-US")));
    }
}
