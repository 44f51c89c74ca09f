#![allow(clippy::unwrap_used, clippy::panic)]

use super::keys::{ENGINE_KEYS, KEYS};
use super::*;
use std::path::Path;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("config.toml"))
}

#[test]
fn the_documented_file_is_the_default() {
    let text = documented_default();
    assert_eq!(parse(&text).unwrap(), Config::default(), "{text}");
    // The commented engine block is valid too.
    let (_, engine) = text.split_once("# [[engine]]\n").unwrap();
    let engine: String = engine
        .lines()
        .map(|l| format!("{}\n", l.trim_start_matches("# ")))
        .collect();
    let block: String = engine
        .lines()
        .filter(|l| l.contains(" = "))
        .map(|l| format!("{l}\n"))
        .collect();
    let config = parse(&format!("[[engine]]\n{block}")).unwrap();
    assert_eq!(config.engine.len(), 1);
    config.check().unwrap();
}

/// The list of keys and the structs name the same keys.
#[test]
fn the_list_of_keys_is_complete() {
    let mut config = Config::default();
    config.engine.push(EngineConfig {
        cwd: Some(".".into()),
        ..Default::default()
    });
    let toml::Value::Table(table) = toml::Value::try_from(&config).unwrap() else {
        panic!()
    };
    let mut of_structs = Vec::new();
    for (name, value) in &table {
        match value {
            toml::Value::Table(section) => {
                of_structs.extend(section.keys().map(|key| format!("{name}.{key}")));
            }
            toml::Value::Array(blocks) if name == "engine" => {
                let block = blocks[0].as_table().unwrap();
                let mut engine: Vec<&str> = ENGINE_KEYS.iter().map(|(name, ..)| *name).collect();
                engine.sort_unstable();
                let mut keys: Vec<&str> = block.keys().map(String::as_str).collect();
                keys.sort_unstable();
                assert_eq!(keys, engine);
            }
            _ => of_structs.push(name.clone()),
        }
    }
    of_structs.sort();
    let mut listed: Vec<&str> = KEYS.iter().map(|k| k.path).collect();
    listed.sort_unstable();
    assert_eq!(of_structs, listed);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_near_one() {
    for (text, line, key, near) in [
        (
            "name = \"x\"\n\n[gateway]\nlisten = \"127.0.0.1:1\"\nlisen = 1\n",
            5,
            "gateway.lisen",
            Some("gateway.listen"),
        ),
        ("[mesch]\nmdns = true\n", 1, "mesch", Some("mesh")),
        ("\nmdns = true\n", 2, "mdns", Some("mesh.mdns")),
        ("[serve]\nqqqqqq = 1\n", 2, "serve.qqqqqq", None),
        (
            "[[engine]]\nname = \"a\"\n[[engine]]\nur = \"b\"\n",
            4,
            "engine.ur",
            Some("engine.url"),
        ),
        (
            "gateway.lsten = \"x\"\n",
            1,
            "gateway.lsten",
            Some("gateway.listen"),
        ),
    ] {
        let expected = ConfigError::UnknownKey {
            file: "config.toml".into(),
            line,
            key: key.into(),
            near: near.map(Into::into),
        };
        assert_eq!(parse(text).unwrap_err(), expected, "{text}");
    }
    let text = parse("[gateway]\nlisen = 1").unwrap_err().to_string();
    assert!(
        text.starts_with(
            "config.toml:2: unknown key `gateway.lisen` (did you mean `gateway.listen`?)"
        ),
        "{text}"
    );
}

#[test]
fn a_wrong_type_and_broken_toml_name_the_place() {
    let wrong = parse("[mesh]\nmdns = \"yes\"\n").unwrap_err();
    assert!(
        matches!(
            wrong,
            ConfigError::Syntax {
                line: 2,
                column: 8,
                ..
            }
        ),
        "{wrong:?}"
    );
    let broken = parse("[mesh]\nmdns = \n").unwrap_err();
    assert!(
        matches!(broken, ConfigError::Syntax { line: 2, .. }),
        "{broken:?}"
    );
    let section = parse("gateway = 3\n").unwrap_err();
    assert!(
        matches!(section, ConfigError::Syntax { line: 1, .. }),
        "{section:?}"
    );
    let address = parse("[gateway]\nlisten = \"localhost\"\n").unwrap_err();
    assert!(
        matches!(address, ConfigError::Syntax { line: 2, .. }),
        "{address:?}"
    );
}

#[test]
fn flags_win_over_variables_and_both_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(
        &file,
        "name = \"file\"\n[serve]\nqueue = 3\n[mesh]\nmdns = false\n",
    )
    .unwrap();
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let config = Config::load(&Sources {
        file: Some(file),
        env: vec![
            pair("UNAMESH_NAME", "env"),
            pair("UNAMESH_SERVE_QUEUE", "4"),
            pair("UNAMESH_MESH_SEEDS", "10.0.0.1:1, [::1]:2"),
            pair("HOME", "/"),
        ],
        flags: vec![pair("name", "flag")],
    })
    .unwrap();
    assert_eq!(config.name, "flag");
    assert_eq!(config.serve.queue, 4);
    assert_eq!(config.mesh.seeds, ["10.0.0.1:1", "[::1]:2"]);
    assert!(!config.mesh.mdns);
}

#[test]
fn an_unusable_value_names_where_it_stands() {
    let load = |env: &[(&str, &str)], flags: &[(&str, &str)]| {
        let own = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect()
        };
        Config::load(&Sources {
            file: None,
            env: own(env),
            flags: own(flags),
        })
        .unwrap_err()
        .to_string()
    };
    let text = load(&[("UNAMESH_MESH_MDNS", "maybe")], &[]);
    assert_eq!(text, "UNAMESH_MESH_MDNS=maybe: expected true or false");
    let text = load(&[], &[("gateway.lsten", "x")]);
    assert!(text.contains("did you mean `gateway.listen`"), "{text}");
    let text = load(&[("UNAMESH_MESH_SEEDS", "attic")], &[]);
    assert!(
        text.starts_with("UNAMESH_MESH_SEEDS: ") && text.contains("host:port"),
        "{text}"
    );
    let text = load(&[], &[("mesh.seeds", "fe80::1")]);
    assert!(text.contains("is not host:port"), "{text}");
    let text = load(&[], &[("runtime.workers", "0")]);
    assert!(text.contains("must be 1 to"), "{text}");
}

#[test]
fn engines_are_checked() {
    let check = |text: &str| parse(text).unwrap().check();
    assert!(check("[[engine]]\nname=\"a\"\nurl=\"http://127.0.0.1:8080\"\n").is_ok());
    for (text, key) in [
        ("[[engine]]\nurl=\"http://h\"\n", "engine[0].name"),
        ("[[engine]]\nname=\"a\"\n", "engine[0].url"),
        (
            "[[engine]]\nname=\"a\"\nurl=\"localhost:1\"\n",
            "engine[0].url",
        ),
        (
            "[[engine]]\nname=\"a\"\nurl=\"http://h\"\n[[engine]]\nname=\"a\"\nurl=\"http://h\"\n",
            "engine[1].name",
        ),
        (
            "[[engine]]\nname=\"a\"\nurl=\"http://h\"\nhealth=\"x\"\n",
            "engine[0].health",
        ),
        (
            "[[engine]]\nname=\"a\"\nurl=\"http://me:secret@h\"\n",
            "engine[0].url",
        ),
        (
            "[[engine]]\nname=\"a\"\nurl=\"me:secret@h\"\n",
            "engine[0].url",
        ),
    ] {
        let (at, message) = check(text).unwrap_err();
        assert_eq!(at, key, "{text}");
        assert!(!message.contains("secret"), "{message}");
    }
}

#[test]
fn a_missing_file_says_how_to_write_one() {
    let sources = Sources {
        file: Some("/nonexistent/c.toml".into()),
        ..Default::default()
    };
    let text = Config::load(&sources).unwrap_err().to_string();
    assert!(text.contains("unamesh up --print-config"), "{text}");
}

#[test]
fn variables_that_set_nothing_are_known() {
    assert_eq!(unknown_variable("UNAMESH_GATEWAY_LISTEN"), None);
    assert_eq!(unknown_variable("UNAMESH_STATE"), None);
    let near = unknown_variable("UNAMESH_GATEWAY_LISEN").unwrap();
    assert_eq!(near.as_deref(), Some("UNAMESH_GATEWAY_LISTEN"));
    assert_eq!(unknown_variable("UNAMESH_QQQQQQQQQQQQQQQQQQQQ"), Some(None));
}
