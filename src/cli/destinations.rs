//! `hearth destinations`: which servers cannot be reached, since when, and having them tried at once.

use hearth_federation::{sender::rooms_behind, tables::FailingRow};
use ruma::{OwnedServerName, ServerName};

use super::Failure;
use crate::{app::App, clock::now_ms};

/// Servers read at a time.
const BATCH: usize = 500;

/// A line for each server that cannot be reached.
pub async fn list(app: &App) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    for (name, row) in all_failing(app).await? {
        let rooms = rooms_behind(&app.store, &name).await?;
        lines.push(line(&name, &row, rooms, now_ms()));
    }
    if lines.is_empty() {
        lines.push("no server is known to be out of reach".to_owned());
    }
    Ok(lines)
}

/// Has a server tried at once, or all that failed.
pub async fn reset(app: &App, server: Option<&str>) -> Result<Vec<String>, Failure> {
    let servers: Vec<OwnedServerName> = match server {
        Some(server) => {
            let server = ServerName::parse(server).map_err(|_| format!("\"{server}\" is no server name"))?;
            if app.federation.destinations().failing(&server).await?.is_none() {
                return Err(format!("{server} is not known to be out of reach").into());
            }
            vec![server]
        }
        None => {
            let failing = all_failing(app).await?.into_iter();
            failing.filter_map(|(name, _)| OwnedServerName::try_from(name).ok()).collect()
        }
    };
    for server in &servers {
        app.federation.destinations().alive(server).await?;
    }
    Ok(servers.iter().map(|server| format!("{server} is tried again")).collect())
}

async fn all_failing(app: &App) -> Result<Vec<(String, FailingRow)>, Failure> {
    let mut all: Vec<(String, FailingRow)> = Vec::new();
    loop {
        let last = all.last().and_then(|(name, _)| <&ServerName>::try_from(name.as_str()).ok());
        let rows = app.federation.destinations().all_failing(last, BATCH).await?;
        let complete = rows.len() < BATCH;
        all.extend(rows);
        if complete {
            return Ok(all);
        }
    }
}

fn line(name: &str, row: &FailingRow, rooms: usize, now_ms: u64) -> String {
    let since = span(now_ms.saturating_sub(row.since_ms));
    let next = match row.next_try_ms.saturating_sub(now_ms) {
        0 => "when there is something to send".to_owned(),
        wait_ms => format!("in {}", span(wait_ms)),
    };
    let failures = row.failures;
    // The other server may have chosen the words.
    let problem: String = row.problem.chars().filter(|c| !c.is_control()).collect();
    format!("{name}  for {since}, failures: {failures}, rooms waiting: {rooms}, next try {next}: {problem}")
}

/// A length of time in its two largest units.
fn span(ms: u64) -> String {
    let seconds = ms / 1_000;
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let first = units.iter().position(|(length, _)| seconds >= *length).unwrap_or(units.len() - 1);
    let mut text = format!("{} {}", seconds / units[first].0, units[first].1);
    if let Some((length, unit)) = units.get(first + 1) {
        let rest = seconds % units[first].0 / length;
        if rest > 0 {
            text.push_str(&format!(" {rest} {unit}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_who_since_when_and_until_when() {
        let row = FailingRow {
            since_ms: 1_000_000,
            failures: 3,
            next_try_ms: 1_000_000 + 3_700_000,
            problem: "no\nanswer \u{1b}[31min time".to_owned(),
        };
        assert_eq!(
            line("a.test", &row, 2, 1_000_000 + 3_600_000),
            "a.test  for 1 h, failures: 3, rooms waiting: 2, next try in 1 min 40 s: noanswer [31min time"
        );
        assert!(line("a.test", &row, 0, 9_000_000).contains("next try when there is something to send"));
        for (ms, text) in [(0, "0 s"), (59_999, "59 s"), (61_000, "1 min 1 s"), (90_000_000, "1 d 1 h")] {
            assert_eq!(span(ms), text);
        }
    }
}
