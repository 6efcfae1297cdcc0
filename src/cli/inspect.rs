//! `hearth inspect`: the tables of the store, and their rows in words.

use hearth_store::{KeyPart, Order, Scan, Space, Store, StoreError, Table, Value};
use serde::{Deserialize, Serialize};

use super::Failure;

/// What is asked about the store.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// Which table; none: a list of all.
    pub table: Option<String>,
    /// Only keys that begin with these bytes, in hexadecimal digits.
    pub prefix: Option<String>,
    /// Rows at most.
    pub limit: usize,
}

/// A table that can be read without knowing its types.
pub struct Readable {
    name: &'static str,
    space: Space,
    /// A row in words; `None` where it cannot be read.
    decode: Box<dyn Fn(&[u8], &[u8]) -> Result<String, StoreError> + Send + Sync>,
}

impl Readable {
    /// A table whose rows may be shown.
    pub fn of<K, V>(table: Table<K, V>) -> Self
    where
        K: KeyPart + std::fmt::Debug + 'static,
        V: Value + std::fmt::Debug + 'static,
    {
        let decode = move |key: &[u8], value: &[u8]| {
            let (key, value) = table.decode_row(key, value)?;
            Ok(format!("{key:?} => {value:?}"))
        };
        Self { name: table.name(), space: table.space(), decode: Box::new(decode) }
    }

    /// A table whose values are nobody's business.
    pub fn secret<K, V>(table: Table<K, V>) -> Self
    where
        K: KeyPart + std::fmt::Debug + 'static,
        V: Value + 'static,
    {
        let decode = move |key: &[u8], value: &[u8]| {
            let (key, _) = table.decode_row(key, value)?;
            Ok(format!("{key:?} => (secret)"))
        };
        Self { name: table.name(), space: table.space(), decode: Box::new(decode) }
    }
}

/// All tables, in the order of their parts of the keyspace. A test finds those that are missing.
fn tables() -> Vec<Readable> {
    use hearth_federation::tables as federation;
    use hearth_rooms::tables as rooms;
    use hearth_users::tables as users;

    use crate::{media::tables as media, tables as server};
    vec![
        Readable::of(rooms::ROOM_NUMBERS),
        Readable::of(rooms::NEXT_ROOM),
        Readable::of(rooms::EVENT_NUMBERS),
        Readable::of(rooms::STREAM),
        Readable::of(rooms::MEMBERSHIPS),
        Readable::of(rooms::MEMBERSHIP_CHANGES),
        Readable::of(rooms::OUT_OF_BAND),
        Readable::of(rooms::ALIASES),
        Readable::of(rooms::PUBLIC_ROOMS),
        Readable::of(rooms::TRANSACTIONS),
        Readable::of(rooms::ROOMS),
        Readable::of(rooms::HEAD_VERSIONS),
        Readable::of(rooms::HEADS),
        Readable::of(rooms::HEAD_SNAPSHOTS),
        Readable::of(rooms::EVENTS),
        Readable::of(rooms::LARGE_BODIES),
        Readable::of(rooms::EVENT_STATUS),
        Readable::of(rooms::TIMELINE),
        Readable::of(rooms::GAPS),
        Readable::of(rooms::MISSING),
        Readable::of(rooms::QUEUE),
        Readable::of(rooms::STATE_KEYS),
        Readable::of(rooms::STATE_KEY_NAMES),
        Readable::of(rooms::STATE_NODES),
        Readable::of(rooms::MEMBERS),
        Readable::of(rooms::ROOM_ALIASES),
        Readable::of(rooms::REDACTIONS),
        Readable::of(rooms::REDACTIONS_WAITING),
        Readable::of(rooms::RELATIONS),
        Readable::of(rooms::RELATIONS_WAITING),
        Readable::of(rooms::ANNOTATIONS),
        Readable::of(rooms::THREADS),
        Readable::of(rooms::THREAD_ORDER),
        Readable::of(rooms::THREAD_PARTICIPANTS),
        Readable::of(rooms::TO_REDACT),
        Readable::of(rooms::MINUTES),
        Readable::of(rooms::AUTH_CHAINS),
        Readable::of(rooms::AUTH_CHAIN_EVENTS),
        Readable::of(rooms::AUTH_CHAIN_LINKS),
        Readable::of(rooms::PARTIAL_ROOMS),
        Readable::of(rooms::PARTIAL_EVENTS),
        Readable::of(rooms::MERGED_FORKS),
        Readable::of(rooms::LATE_MEMBERS),
        Readable::of(users::ACCOUNTS),
        Readable::secret(users::PASSWORDS),
        Readable::of(users::ACCESS_TOKENS),
        Readable::of(users::REFRESH_TOKENS),
        Readable::of(users::DEVICES),
        Readable::of(users::LAST_SEEN),
        Readable::of(users::LOGIN_TOKENS),
        Readable::secret(users::REGISTRATION_TOKENS),
        Readable::of(users::DEACTIVATIONS),
        Readable::of(users::PROFILES),
        Readable::of(users::DIRECTORY_WORDS),
        Readable::of(users::ACCOUNT_DATA),
        Readable::of(users::ACCOUNT_DATA_CHANGES),
        Readable::of(users::FILTERS),
        Readable::of(users::FILTER_IDS),
        Readable::of(users::RECEIPTS),
        Readable::of(users::RECEIPT_CHANGES),
        Readable::of(users::TO_DEVICE),
        Readable::of(users::TO_DEVICE_SEEN),
        Readable::of(users::TO_DEVICE_SEEN_AT),
        Readable::of(users::REMOTE_DEVICE_LISTS),
        Readable::of(users::REMOTE_DEVICES),
        Readable::of(users::REMOTE_SIGNING_KEYS),
        Readable::of(users::REMOTE_KEPT),
        Readable::of(media::MEDIA),
        Readable::of(media::RESERVED),
        Readable::of(media::OWNED),
        Readable::of(media::USAGE),
        Readable::of(server::SERVER),
        Readable::of(federation::SERVER_KEYS),
        Readable::of(federation::KEY_RESPONSES),
        Readable::of(federation::DESTINATIONS),
        Readable::of(federation::SENT_UP_TO),
        Readable::of(federation::BEHIND),
        Readable::secret(federation::MUST_ARRIVE),
    ]
}

/// The answer, a line for each table or row.
pub async fn answer(store: &Store, question: &Question) -> Result<Vec<String>, Failure> {
    let tables = tables();
    let Some(name) = &question.table else { return list(store, &tables).await };
    let table = tables.iter().find(|table| table.name == name).ok_or_else(|| {
        let nearest = tables
            .iter()
            .max_by(|a, b| strsim::jaro_winkler(a.name, name).total_cmp(&strsim::jaro_winkler(b.name, name)));
        let nearest = nearest.map_or("", |table| table.name);
        format!("there is no table \"{name}\"; did you mean \"{nearest}\"?")
    })?;
    let mut start = vec![table.space.0];
    start.extend(bytes(question.prefix.as_deref().unwrap_or_default())?);
    let end = after_all(&start);
    let scan = Scan { start: &start, end: &end, order: Order::Forward, limit: question.limit };
    let rows = store.scan(scan).await?;
    Ok(rows.iter().map(|(key, value)| row(table, key, value)).collect())
}

fn row(table: &Readable, key: &[u8], value: &[u8]) -> String {
    let words = match (table.decode)(key, value) {
        Ok(words) => words,
        // A long value in pieces, or a damaged row: at least its bytes.
        Err(_) => format!("{} bytes: {}", value.len(), hex(value)),
    };
    format!("{}  {words}", hex(&key[1.min(key.len())..]))
}

/// More rows than these are not counted.
const COUNTED: usize = 100_000;

async fn list(store: &Store, tables: &[Readable]) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    for table in tables {
        let (start, end) = ([table.space.0], [table.space.0 + 1]);
        let scan = Scan { start: &start, end: &end, order: Order::Forward, limit: COUNTED };
        let rows = store.scan(scan).await?;
        let bytes: usize = rows.iter().map(|(key, value)| key.len() + value.len()).sum();
        let more = if rows.len() == COUNTED { " and more" } else { "" };
        lines.push(format!("{:28} {:>8} rows {:>12} bytes{more}", table.name, rows.len(), bytes));
    }
    Ok(lines)
}

fn after_all(prefix: &[u8]) -> Vec<u8> {
    let kept = prefix.iter().rposition(|&byte| byte != 0xff).map_or(0, |at| at + 1);
    let mut end = prefix[..kept].to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Result<Vec<u8>, Failure> {
    let wrong = || Failure::from(format!("\"{hex}\" is not a row of hexadecimal digits"));
    if !hex.is_ascii() || hex.len() % 2 == 1 {
        return Err(wrong());
    }
    let digits = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
    digits.collect::<Result<_, _>>().map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the tables that a crate declares.
    fn declared(source: &str) -> Vec<&str> {
        let declarations = source.split("Table::").skip(1);
        declarations
            .filter_map(|rest| rest.split_once("(\"")?.1.split_once('"').map(|(name, _)| name))
            .collect()
    }

    #[test]
    fn every_declared_table_can_be_shown_and_has_its_own_space() {
        let sources = [
            include_str!("../../rooms/src/tables.rs"),
            include_str!("../../users/src/tables.rs"),
            include_str!("../media/tables.rs"),
            include_str!("../tables.rs"),
        ];
        let shown = tables();
        for name in sources.iter().flat_map(|source| declared(source)) {
            assert!(shown.iter().any(|table| table.name == name), "inspect does not know {name}");
        }
        let mut spaces: Vec<_> = shown.iter().map(|table| table.space).collect();
        spaces.sort();
        spaces.dedup();
        assert_eq!(spaces.len(), shown.len());
    }
}
