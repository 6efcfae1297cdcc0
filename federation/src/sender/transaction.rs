//! A transaction as text: events are put in as they are stored, none is serialised again.

use ruma::ServerName;

/// The body of a transaction.
pub(super) fn transaction<'a>(
    origin: &ServerName,
    now_ms: u64,
    pdus: impl ExactSizeIterator<Item = &'a str> + Clone,
    edus: impl ExactSizeIterator<Item = &'a str> + Clone,
) -> String {
    let bytes = pdus.clone().map(|pdu| pdu.len() + 1).sum::<usize>()
        + edus.clone().map(|edu| edu.len() + 1).sum::<usize>();
    let mut text = String::with_capacity(bytes + origin.as_str().len() + 100);
    text.push('{');
    if edus.len() > 0 {
        list(&mut text, "edus", edus);
        text.push(',');
    }
    text.push_str("\"origin\":\"");
    // A server name has no character that JSON escapes.
    text.push_str(origin.as_str());
    text.push_str("\",\"origin_server_ts\":");
    text.push_str(&now_ms.to_string());
    text.push(',');
    list(&mut text, "pdus", pdus);
    text.push('}');
    text
}

fn list<'a>(text: &mut String, name: &str, items: impl Iterator<Item = &'a str>) {
    text.push('"');
    text.push_str(name);
    text.push_str("\":[");
    for (index, item) in items.enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(item);
    }
    text.push(']');
}

#[cfg(test)]
mod tests {
    use hearth_dag::canonical::Value;
    use ruma::server_name;

    use super::*;

    #[test]
    fn a_transaction_is_canonical_json() {
        let origin = server_name!("a.test:8448");
        let with = transaction(origin, 5, [r#"{"a":1}"#, "{}"].into_iter(), [r#"{"b":2}"#].into_iter());
        assert_eq!(
            with,
            r#"{"edus":[{"b":2}],"origin":"a.test:8448","origin_server_ts":5,"pdus":[{"a":1},{}]}"#
        );
        let without = transaction(origin, 5, std::iter::empty(), std::iter::empty());
        assert_eq!(without, r#"{"origin":"a.test:8448","origin_server_ts":5,"pdus":[]}"#);
        for text in [with, without] {
            let Value::Object(object) = Value::parse(&text, false).unwrap() else { panic!("{text}") };
            assert_eq!(object.to_canonical(), text);
        }
    }
}
