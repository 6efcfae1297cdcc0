//! Reading the configuration: a file, then the environment over it, then every value checked.
//! The default configuration, written as TOML, is the list of all keys: what it lacks does not exist.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, Password};

/// What is wrong with a configuration. Names the key, and the right one where a slip is likely.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {} cannot be read: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration is not TOML: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A key that does not exist.
    #[error("the configuration has an unknown key \"{key}\"{}", hint(.nearest))]
    UnknownKey {
        /// The key as it was given.
        key: String,
        /// The key that was perhaps meant.
        nearest: Option<String>,
    },
    /// A value that its key cannot have.
    #[error("the configuration key \"{key}\" has a wrong value: {problem}")]
    Value {
        /// Which key.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|key| format!("; did you mean \"{key}\"?")).unwrap_or_default()
}

const PREFIX: &str = "HEARTH_";
/// Variables with our prefix that are not configuration keys.
const OTHER_VARIABLES: [&str; 1] = ["HEARTH_CONFIG"];

pub(super) fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let mut table = match file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|source| ConfigError::File { path: path.to_owned(), source })?
            .parse::<Table>()?,
        None => Table::new(),
    };
    let keys = all_keys();
    for (name, text) in environment {
        let Some(key) = name.strip_prefix(PREFIX) else { continue };
        if OTHER_VARIABLES.contains(&name.as_str()) {
            continue;
        }
        override_key(&mut table, &keys, &name, key, &text)?;
    }
    check(table, &keys)
}

pub(super) fn parse(text: &str) -> Result<Config, ConfigError> {
    check(text.parse::<Table>()?, &all_keys())
}

/// Every key with its default value.
fn all_keys() -> Table {
    Table::try_from(Config::default()).expect("the default configuration has a TOML form; a test writes it")
}

fn override_key(
    table: &mut Table,
    keys: &Table,
    name: &str,
    key: &str,
    text: &str,
) -> Result<(), ConfigError> {
    let path: Vec<String> = key.split("__").map(str::to_ascii_lowercase).collect();
    let unknown = || {
        let dotted = path.join(".");
        let nearest = nearest(&dotted, &dotted_keys(keys, ""));
        let nearest = nearest.map(|key| format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase()));
        ConfigError::UnknownKey { key: name.to_owned(), nearest }
    };
    let mut default = None;
    let mut level = Some(keys);
    for part in &path {
        default = Some(level.and_then(|level| level.get(part)).ok_or_else(unknown)?);
        level = default.and_then(Value::as_table);
    }
    let value = read_as(default.ok_or_else(unknown)?, text)
        .map_err(|problem| ConfigError::Value { key: name.to_owned(), problem })?;
    let (last, sections) = path.split_last().ok_or_else(unknown)?;
    let mut level = table;
    for section in sections {
        let entry = level.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        level = entry.as_table_mut().ok_or_else(unknown)?;
    }
    level.insert(last.clone(), value);
    Ok(())
}

/// The text of a variable as a value of the same kind as the key's default.
fn read_as(default: &Value, text: &str) -> Result<Value, String> {
    let as_toml = || {
        let line = format!("value = {text}").parse::<Table>().map_err(|error| error.message().to_owned())?;
        line.get("value").cloned().ok_or_else(|| "is not a value".to_owned())
    };
    match default {
        Value::String(_) => Ok(Value::String(text.to_owned())),
        Value::Array(_) if !text.trim_start().starts_with('[') => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        _ => as_toml(),
    }
}

fn check(table: Table, keys: &Table) -> Result<Config, ConfigError> {
    refuse_unknown(&table, keys, "", keys)?;
    let mut whole = keys.clone();
    lay_over(&mut whole, table);
    let config: Config = serde_path_to_error::deserialize(Value::Table(whole)).map_err(|error| {
        ConfigError::Value { key: error.path().to_string(), problem: error.into_inner().message().to_owned() }
    })?;
    check_values(&config)?;
    Ok(config)
}

/// What is given replaces the defaults; what is not given of a section stays.
fn lay_over(below: &mut Table, above: Table) {
    for (name, value) in above {
        match (below.get_mut(&name), value) {
            (Some(Value::Table(below)), Value::Table(above)) => lay_over(below, above),
            (_, value) => {
                below.insert(name, value);
            }
        }
    }
}

fn refuse_unknown(table: &Table, keys: &Table, above: &str, all: &Table) -> Result<(), ConfigError> {
    for (name, value) in table {
        let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        match (keys.get(name), value) {
            (None, _) => {
                let nearest = nearest(&key, &dotted_keys(all, ""));
                return Err(ConfigError::UnknownKey { key, nearest });
            }
            (Some(Value::Table(keys)), Value::Table(table)) => refuse_unknown(table, keys, &key, all)?,
            (Some(_), _) => {}
        }
    }
    Ok(())
}

fn dotted_keys(table: &Table, above: &str) -> Vec<String> {
    let mut keys = Vec::new();
    for (name, value) in table {
        let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        if let Value::Table(below) = value {
            keys.extend(dotted_keys(below, &key));
        }
        keys.push(key);
    }
    keys
}

/// The most similar key: in full, or by its last part, since people forget the section more often than the name.
fn nearest(wrong: &str, keys: &[String]) -> Option<String> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let similarity = |key: &String| {
        let whole = strsim::jaro_winkler(wrong, key);
        let end = strsim::jaro_winkler(&last(wrong), &last(key)) - 0.02;
        whole.max(end)
    };
    let best = keys.iter().map(|key| (similarity(key), key)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.75).then(|| best.1.clone())
}

/// What types cannot say.
fn check_values(config: &Config) -> Result<(), ConfigError> {
    let wrong = |key: &str, problem: &str| {
        Err(ConfigError::Value { key: key.to_owned(), problem: problem.to_owned() })
    };
    if config.bind.is_empty() && config.tls.bind.is_empty() {
        return wrong("bind", "there must be an address that clients can connect to");
    }
    let default = Password::default();
    let password = &config.password;
    if password.memory < default.memory {
        return wrong("password.memory", "it can be raised, not lowered below 19 MiB");
    }
    if password.passes < default.passes {
        return wrong("password.passes", "it can be raised, not lowered below 2");
    }
    if password.lanes < default.lanes || password.lanes > 16 {
        return wrong("password.lanes", "it must be 1 to 16");
    }
    if !config.tls.bind.is_empty() && (config.tls.certificate.is_none() || config.tls.key.is_none()) {
        return wrong("tls.certificate", "a listener with TLS needs tls.certificate and tls.key");
    }
    if config.federation.certificate.is_some() != config.federation.key.is_some() {
        return wrong("federation.key", "federation.certificate and federation.key belong together");
    }
    for (index, old) in config.federation.old_signing_keys.iter().enumerate() {
        if let Err(error) = old.checked() {
            return wrong(&format!("federation.old_signing_keys[{index}]"), &error.to_string());
        }
    }
    for (key, list) in [
        ("federation.allowed_servers", &config.federation.allowed_servers),
        ("federation.denied_servers", &config.federation.denied_servers),
    ] {
        let server = |pattern: &String| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.*?:[]".contains(&byte);
            !pattern.is_empty() && pattern.bytes().all(plain)
        };
        if let Some(index) = list.iter().position(|pattern| !server(pattern)) {
            return wrong(&format!("{key}[{index}]"), "it must be a server name, perhaps with * and ?");
        }
    }
    if config.default_room_version.rules().is_none() {
        return wrong("default_room_version", "this server cannot make rooms of that version");
    }
    if let Some(url) = &config.public_base_url
        && !(url.starts_with("https://") || url.starts_with("http://"))
    {
        return wrong("public_base_url", "it must begin with https:// or http://");
    }
    for (key, size) in [
        ("limits.request_size", config.limits.request_size),
        ("limits.event_request_size", config.limits.event_request_size),
    ] {
        if size.get() < 65_536 {
            return wrong(key, "one event alone may have 64 KiB");
        }
    }
    Ok(())
}
