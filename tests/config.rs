//! The configuration as an operator meets it: the example file, overrides, and errors that help.

use hearth::config::{Config, LogFormat};

const EXAMPLE: &str = include_str!("../config.example.toml");

fn table(text: &str) -> toml::Table {
    text.parse().unwrap()
}

#[test]
fn the_example_holds_every_option_with_its_default() {
    let defaults = toml::Table::try_from(Config::default()).unwrap();
    assert_eq!(table(EXAMPLE), defaults);
    assert_eq!(Config::parse(EXAMPLE).unwrap(), Config::default());
}

#[test]
fn every_option_of_the_example_has_a_sentence() {
    let mut before = "";
    for line in EXAMPLE.lines() {
        let is_option = !line.starts_with('#') && (line.contains(" = ") || line.starts_with('['));
        assert!(!is_option || before.starts_with("# "), "no sentence above: {line}");
        before = line;
    }
}

fn error(text: &str) -> String {
    Config::parse(text).unwrap_err().to_string()
}

#[test]
fn an_unknown_key_is_named_and_the_right_one_suggested() {
    assert_eq!(
        error("server_nmae = \"a.test\""),
        "the configuration has an unknown key \"server_nmae\"; did you mean \"server_name\"?"
    );
    assert_eq!(
        error("[limits]\nuplod_size = \"1 MiB\""),
        "the configuration has an unknown key \"limits.uplod_size\"; did you mean \"limits.upload_size\"?"
    );
    // The right name in the wrong place.
    assert_eq!(
        error("upload_size = \"1 MiB\""),
        "the configuration has an unknown key \"upload_size\"; did you mean \"limits.upload_size\"?"
    );
    assert_eq!(error("xyzzy = 1"), "the configuration has an unknown key \"xyzzy\"");
}

#[test]
fn a_wrong_value_is_named_by_its_key() {
    for (text, key) in [
        ("presence = \"perhaps\"", "presence"),
        ("bind = [\"localhost\"]", "bind[0]"),
        ("server_name = \"not a name\"", "server_name"),
        ("[limits]\nupload_size = \"much\"", "limits.upload_size"),
        ("[limits]\nrequest_size = \"1 KiB\"", "limits.request_size"),
        ("[rate_limits]\nmessages = { per_second = \"a\", burst = 1.0 }", "rate_limits.messages.per_second"),
        ("[log]\nformat = \"xml\"", "log.format"),
        ("[password]\nmemory = \"1 MiB\"", "password.memory"),
        ("[password]\npasses = 1", "password.passes"),
        ("default_room_version = \"99\"", "default_room_version"),
        ("bind = []", "bind"),
        ("[tls]\nbind = [\"127.0.0.1:1\"]", "tls.certificate"),
        ("[federation]\ndenied_servers = [\"a\", \"b c\"]", "federation.denied_servers[1]"),
        ("[federation]\nallowed_servers = [\"\"]", "federation.allowed_servers[0]"),
        ("[federation]\ntrusted_key_servers = [\"no name\"]", "federation.trusted_key_servers[0]"),
        (
            "[federation]\nold_signing_keys = [{ key_id = \"a\", public_key = \"b\", expired_ts = 1 }]",
            "federation.old_signing_keys[0]",
        ),
    ] {
        let error = error(text);
        assert!(error.contains(&format!("\"{key}\" has a wrong value")), "{text}: {error}");
    }
}

#[test]
fn servers_and_old_keys_are_read() {
    let config = Config::parse(
        r#"
        [federation]
        denied_servers = ["*.evil.test", "[::1]:8448"]
        trusted_key_servers = ["matrix.org"]
        old_signing_keys = [
            { key_id = "ed25519:a_0", public_key = "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI", expired_ts = 5 },
        ]
        "#,
    )
    .unwrap();
    let federation = config.federation;
    assert_eq!(federation.denied_servers, ["*.evil.test", "[::1]:8448"]);
    assert_eq!(federation.trusted_key_servers, ["matrix.org"]);
    assert_eq!(federation.old_signing_keys[0].checked().unwrap().expired_ts(), 5);
}

fn with(variables: &[(&str, &str)]) -> Result<Config, String> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(None, variables).map_err(|error| error.to_string())
}

#[test]
fn the_environment_overrides() {
    let config = with(&[
        ("HEARTH_SERVER_NAME", "a.test"),
        ("HEARTH_BIND", "127.0.0.1:1,[::1]:2"),
        ("HEARTH_REGISTRATION__OPEN", "true"),
        ("HEARTH_LIMITS__UPLOAD_SIZE", "7 MiB"),
        ("HEARTH_RATE_LIMITS__MESSAGES__BURST", "3"),
        ("HEARTH_LOG__FORMAT", "json"),
        ("HEARTH_CONFIG", "elsewhere.toml"),
        ("PATH", "/bin"),
    ])
    .unwrap();
    assert_eq!(config.server_name, "a.test");
    assert_eq!(config.bind.len(), 2);
    assert!(config.registration.open);
    assert_eq!(config.limits.upload_size.get(), 7 << 20);
    assert_eq!(config.rate_limits.messages.burst, 3.0);
    assert_eq!(config.rate_limits.messages.per_second, 10.0);
    assert_eq!(config.log.format, LogFormat::Json);

    let unknown = with(&[("HEARTH_SERVERNAME", "a.test")]).unwrap_err();
    assert!(unknown.contains("did you mean \"HEARTH_SERVER_NAME\""), "{unknown}");
    let wrong = with(&[("HEARTH_PRESENCE", "maybe")]).unwrap_err();
    assert!(wrong.contains("HEARTH_PRESENCE"), "{wrong}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Some("/nowhere/hearth.toml".as_ref()), []).unwrap_err().to_string();
    assert!(error.contains("/nowhere/hearth.toml"), "{error}");
}
