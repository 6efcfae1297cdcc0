//! Canonical JSON: one byte string for each value, so that hashes and signatures can agree.
//! * Object keys sorted by code point, no insignificant white space, shortest escapes.
//! * Strict (room version 6 and later): integers within ±(2^53 − 1), no fractions, no `-0`.
//! * Lenient (before): larger integers and floats are written as the servers of the time write them: integers
//!   digit by digit, floats by their shortest digits. Numbers beyond those of a float (of 309 digits and more) are refused,
//!   integers too, though Python would take them up to 4,300 digits.
//! * Nesting is bounded by [`MAX_NESTING`]. Of a repeated key the last value holds.

use std::{
    borrow::Cow,
    cell::{Cell, OnceCell},
    fmt,
};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::limits::{MAX_NESTING, MAX_SAFE_INTEGER};

/// Why a text is not canonical JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCanonical {
    /// Not JSON at all.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// Nested past [`MAX_NESTING`].
    #[error("nested deeper than {MAX_NESTING} levels")]
    TooDeep,
    /// A number with a fraction, an exponent, or a negative zero.
    #[error("a number that is not an integer")]
    Float,
    /// An integer outside ±(2^53 − 1).
    #[error("an integer outside ±(2^53 - 1)")]
    IntegerOutOfRange,
    /// Something else than an object where one is needed.
    #[error("not an object")]
    NotAnObject,
}

/// A JSON value whose objects are sorted.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An integer that fits 64 bits with a sign.
    Integer(i64),
    /// An integer beyond that, as its digits; never in strict JSON.
    LargeInteger(Cow<'a, str>),
    /// Any other number; never in strict JSON.
    Float(f64),
    /// A string, borrowed from the text where it has no escapes.
    String(Cow<'a, str>),
    /// An array.
    Array(Vec<Value<'a>>),
    /// An object.
    Object(Object<'a>),
}

/// An object: pairs sorted by key, no key twice.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Object<'a>(Vec<(Cow<'a, str>, Value<'a>)>);

impl<'a> Value<'a> {
    /// Reads any JSON value.
    pub fn parse(json: &'a str, strict: bool) -> Result<Self, NotCanonical> {
        Self::parse_within(json, strict, MAX_NESTING)
    }

    fn parse_within(json: &'a str, strict: bool, levels: usize) -> Result<Self, NotCanonical> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let floats = Floats { json, strict, integers: OnceCell::new(), next: Cell::new(0) };
        let value = Seed { remaining: levels, floats: &floats }
            .deserialize(&mut deserializer)
            .and_then(|value| deserializer.end().map(|()| value))
            .map_err(|error| {
                let message = error.to_string();
                match message.starts_with(TOO_DEEP) || message.starts_with("recursion limit") {
                    true => NotCanonical::TooDeep,
                    false => NotCanonical::Syntax(message),
                }
            })?;
        if strict {
            value.check_numbers()?;
        }
        Ok(value)
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The pairs of an object.
    pub fn as_object(&self) -> Option<&Object<'a>> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    fn into_object(self) -> Result<Object<'a>, NotCanonical> {
        match self {
            Self::Object(object) => Ok(object),
            _ => Err(NotCanonical::NotAnObject),
        }
    }

    /// The items of an array.
    pub fn as_array(&self) -> Option<&[Value<'a>]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The value of an integer.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// Appends the canonical form.
    pub fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(true) => out.push_str("true"),
            Self::Bool(false) => out.push_str("false"),
            Self::Integer(number) => push_display(out, number),
            Self::LargeInteger(digits) => out.push_str(digits),
            Self::Float(number) => write_float(*number, out),
            Self::String(text) => write_string(text, out),
            Self::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Self::Object(object) => object.write(out),
        }
    }

    fn check_numbers(&self) -> Result<(), NotCanonical> {
        match self {
            Self::Float(_) => Err(NotCanonical::Float),
            Self::LargeInteger(_) => Err(NotCanonical::IntegerOutOfRange),
            Self::Integer(number) if number.unsigned_abs() > MAX_SAFE_INTEGER as u64 => {
                Err(NotCanonical::IntegerOutOfRange)
            }
            Self::Array(items) => items.iter().try_for_each(Self::check_numbers),
            Self::Object(object) => object.0.iter().try_for_each(|(_, value)| value.check_numbers()),
            _ => Ok(()),
        }
    }
}

impl<'a> Object<'a> {
    /// Reads a JSON object; anything else is refused.
    pub fn parse(json: &'a str, strict: bool) -> Result<Self, NotCanonical> {
        Value::parse(json, strict)?.into_object()
    }

    /// Reads what is to be an event's content: the event around it is one level of nesting too.
    pub fn parse_content(json: &'a str, strict: bool) -> Result<Self, NotCanonical> {
        Value::parse_within(json, strict, MAX_NESTING - 1)?.into_object()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|index| &self.0[index].1)
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &str) -> Option<Value<'a>> {
        self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|index| self.0.remove(index).1)
    }

    /// Sets a key, replacing what was there.
    pub fn insert(&mut self, key: impl Into<Cow<'a, str>>, value: Value<'a>) {
        let key = key.into();
        match self.0.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(index) => self.0[index].1 = value,
            Err(index) => self.0.insert(index, (key, value)),
        }
    }

    /// Keeps the keys for which `keep` says so; it may change their values.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &mut Value<'a>) -> bool) {
        self.0.retain_mut(|(key, value)| keep(key, value));
    }

    /// The pairs in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.0.iter().map(|(key, value)| (&**key, value))
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends the canonical form.
    pub fn write(&self, out: &mut String) {
        self.write_without(&[], out);
    }

    /// Appends the canonical form without some keys of this object.
    pub fn write_without(&self, without: &[&str], out: &mut String) {
        out.push('{');
        let mut first = true;
        for (key, value) in &self.0 {
            if without.contains(&&**key) {
                continue;
            }
            if !first {
                out.push(',');
            }
            first = false;
            write_string(key, out);
            out.push(':');
            value.write(out);
        }
        out.push('}');
    }

    /// The canonical form.
    pub fn to_canonical(&self) -> String {
        let mut out = String::with_capacity(256);
        self.write(&mut out);
        out
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        self.write(&mut out);
        f.write_str(&out)
    }
}

/// The canonical form of a JSON text.
pub fn to_canonical(json: &str, strict: bool) -> Result<String, NotCanonical> {
    let value = Value::parse(json, strict)?;
    let mut out = String::with_capacity(json.len());
    value.write(&mut out);
    Ok(out)
}

/// Appends `text` as a JSON string with the shortest escapes.
pub fn write_string(text: &str, out: &mut String) {
    out.push('"');
    let mut copied = 0;
    for (index, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(&text[copied..index]);
        copied = index + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            0x08 => out.push_str("\\b"),
            0x09 => out.push_str("\\t"),
            0x0a => out.push_str("\\n"),
            0x0c => out.push_str("\\f"),
            0x0d => out.push_str("\\r"),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.push_str("\\u00");
                out.push(char::from(HEX[usize::from(control >> 4)]));
                out.push(char::from(HEX[usize::from(control & 15)]));
            }
        }
    }
    out.push_str(&text[copied..]);
    out.push('"');
}

/// Appends an integer or anything else that displays as JSON.
pub(crate) fn push_display(out: &mut String, value: &impl fmt::Display) {
    use fmt::Write as _;
    let _ = write!(out, "{value}");
}

/// Floats of rooms before version 6, written as the servers that made such rooms write them (Python's `repr`):
/// the shortest digits that read back the same, an exponent below 1e-4 and from 1e16 on.
fn write_float(number: f64, out: &mut String) {
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        push_display(out, &format_args!("{digits}e{sign}{:02}", exponent.unsigned_abs()));
    } else {
        let plain = number.to_string();
        out.push_str(&plain);
        if !plain.contains('.') {
            out.push_str(".0");
        }
    }
}

const TOO_DEEP: &str = "nested too deeply";

/// The numbers of a text that are given as floats, though some of them are integers that no type of 64 bits holds. Looked
/// for when the first of them is met: hardly any text has one.
struct Floats<'de> {
    json: &'de str,
    /// None of them is good, whatever it is.
    strict: bool,
    /// In the order of the text; those that are integers with their digits.
    integers: OnceCell<Vec<Option<&'de str>>>,
    next: Cell<usize>,
}

impl<'de> Floats<'de> {
    /// Whether the next one is an integer.
    fn next(&self) -> Option<&'de str> {
        if self.strict {
            return None;
        }
        let integers = self.integers.get_or_init(|| given_as_floats(self.json));
        integers.get(self.next.replace(self.next.get() + 1)).copied().flatten()
    }
}

/// What of a JSON text does not fit into 64 bits, or is no integer.
fn given_as_floats(json: &str) -> Vec<Option<&str>> {
    let (bytes, mut found, mut at) = (json.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let of_number = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                let length = bytes[at..].iter().take_while(|byte| of_number(byte)).count();
                let number = &json[at..at + length];
                let is_integer = !number.contains(['.', 'e', 'E']);
                let fits = number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok();
                if !is_integer {
                    found.push(None);
                } else if !fits || number == "-0" {
                    found.push(Some(number));
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    found
}

#[derive(Clone, Copy)]
struct Seed<'s, 'de> {
    remaining: usize,
    floats: &'s Floats<'de>,
}

impl Seed<'_, '_> {
    fn inside<E: de::Error>(self) -> Result<Self, E> {
        match self.remaining.checked_sub(1) {
            Some(remaining) => Ok(Self { remaining, ..self }),
            None => Err(E::custom(TOO_DEEP)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_, 'de> {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, 'de> {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value<'de>, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value<'de>, E> {
        let large = |_| Value::LargeInteger(value.to_string().into());
        Ok(i64::try_from(value).map_or_else(large, Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value<'de>, E> {
        Ok(match self.floats.next() {
            // As those who wrote it read it.
            Some("-0") => Value::Integer(0),
            Some(digits) => Value::LargeInteger(digits.into()),
            None => Value::Float(value),
        })
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::String(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value<'de>, E> {
        Ok(Value::String(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value<'de>, A::Error> {
        let inside = self.inside()?;
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(inside)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Value<'de>, A::Error> {
        let inside = self.inside()?;
        let mut object: Vec<(Cow<'de, str>, Value<'de>)> = Vec::new();
        while let Some(key) = pairs.next_key_seed(KeySeed)? {
            object.push((key, pairs.next_value_seed(inside)?));
        }
        if !object.is_sorted_by(|(a, _), (b, _)| a < b) {
            // The sort is stable: of equal keys the last in the text comes last, and stays.
            object.sort_by(|(a, _), (b, _)| a.cmp(b));
            object.reverse();
            object.dedup_by(|(a, _), (b, _)| a == b);
            object.reverse();
        }
        Ok(Value::Object(Object(object)))
    }
}

struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeySeed {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(value.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict(json: &str) -> Result<String, NotCanonical> {
        to_canonical(json, true)
    }

    #[test]
    fn examples_of_the_specification() {
        for (input, output) in [
            ("{}", "{}"),
            (r#"{"one": 1, "two": "Two"}"#, r#"{"one":1,"two":"Two"}"#),
            (r#"{"b": "2", "a": "1"}"#, r#"{"a":"1","b":"2"}"#),
            (r#"{"a": "日本語"}"#, r#"{"a":"日本語"}"#),
            (r#"{"本": 2, "日": 1}"#, r#"{"日":1,"本":2}"#),
            (r#"{"a": "\u65E5"}"#, r#"{"a":"日"}"#),
            (r#"{"a": null}"#, r#"{"a":null}"#),
            (
                r#"{"auth": {"success": true, "mxid": "@john.doe:example.com", "profile": {"display_name": "John Doe", "three_pids": [{"medium": "email", "address": "john.doe@example.org"}, {"medium": "msisdn", "address": "123456789"}]}}}"#,
                r#"{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}"#,
            ),
            ("{\"a\":\"\\u0000\\u001F\\n\\t\\/\\u007f\"}", "{\"a\":\"\\u0000\\u001f\\n\\t/\u{7f}\"}"),
        ] {
            assert_eq!(strict(input).as_deref(), Ok(output), "{input}");
        }
    }

    #[test]
    fn numbers_that_strict_json_has_and_has_not() {
        for good in ["9007199254740991", "-9007199254740991", "0"] {
            assert_eq!(strict(good).as_deref(), Ok(good));
        }
        for bad in ["9007199254740992", "-9007199254740992", "18446744073709551615"] {
            assert_eq!(strict(&format!("[{{\"a\":{bad}}}]")), Err(NotCanonical::IntegerOutOfRange), "{bad}");
        }
        for bad in ["1.0", "1e3", "-0", "-0.0", "18446744073709551616"] {
            assert_eq!(strict(bad), Err(NotCanonical::Float), "{bad}");
        }
    }

    #[test]
    fn lenient_floats_are_written_as_python_does() {
        for (input, output) in [
            ("1.0", "1.0"),
            ("1e3", "1000.0"),
            ("1.10", "1.1"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("1e16", "1e+16"),
            ("1234567890123456.0", "1234567890123456.0"),
            ("1.5e300", "1.5e+300"),
            ("1.1111111111111111e+24", "1.1111111111111111e+24"),
            ("123456789012345.678", "123456789012345.67"),
            ("-0.0", "-0.0"),
            ("9223372036854775807", "9223372036854775807"),
            ("18446744073709551615", "18446744073709551615"),
            ("18446744073709551616", "18446744073709551616"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("-9223372036854775809", "-9223372036854775809"),
            ("10000000000000000000000000000000000000001", "10000000000000000000000000000000000000001"),
            ("1e22", "1e+22"),
            ("-0", "0"),
            // Beside others, behind text that looks like numbers, and under a key that comes twice.
            (
                r#"{"b":[1,1.5,99999999999999999999,-0,2E1],"a":"1e5 -0 \" 99999999999999999999 \\","c":1.0,"c":-99999999999999999999}"#,
                r#"{"a":"1e5 -0 \" 99999999999999999999 \\","b":[1,1.5,99999999999999999999,0,20.0],"c":-99999999999999999999}"#,
            ),
        ] {
            assert_eq!(to_canonical(input, false).as_deref(), Ok(output), "{input}");
        }
    }

    #[test]
    fn numbers_beyond_those_of_a_float_are_refused() {
        for number in ["1e400", "-1e400", &"9".repeat(400), &format!("-{}", "9".repeat(5_000))] {
            assert!(matches!(to_canonical(number, false), Err(NotCanonical::Syntax(_))), "{number}");
        }
    }

    #[test]
    fn nesting_at_the_limit_and_one_past() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(strict(&nested(MAX_NESTING)).is_ok());
        assert_eq!(strict(&nested(MAX_NESTING + 1)), Err(NotCanonical::TooDeep));
        assert_eq!(strict(&nested(100_000)), Err(NotCanonical::TooDeep));
        assert_eq!(strict(&"{\"a\":".repeat(100_000)), Err(NotCanonical::TooDeep));
    }

    #[test]
    fn bad_input_is_refused() {
        for bad in
            ["", "{", "{\"a\":1,}", "[1 2]", "{} x", "\"\\ud800\"", "nul", "{'a':1}", "{1:2}", "NaN", "01"]
        {
            assert!(matches!(strict(bad), Err(NotCanonical::Syntax(_))), "{bad}");
        }
        assert_eq!(Object::parse("[]", true), Err(NotCanonical::NotAnObject));
    }

    #[test]
    fn of_a_repeated_key_the_last_holds() {
        assert_eq!(strict(r#"{"b":1,"a":1,"b":2,"a":3}"#).as_deref(), Ok(r#"{"a":3,"b":2}"#));
    }

    #[test]
    fn objects_are_edited_in_order() {
        let mut object = Object::parse(r#"{"a":1,"c":3}"#, true).unwrap();
        object.insert("b", Value::Integer(2));
        object.insert("c", Value::Integer(4));
        assert_eq!(object.to_canonical(), r#"{"a":1,"b":2,"c":4}"#);
        assert_eq!(object.remove("a"), Some(Value::Integer(1)));
        let mut out = String::new();
        object.write_without(&["b"], &mut out);
        assert_eq!(out, r#"{"c":4}"#);
    }
}
