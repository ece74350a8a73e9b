//! TOML as it is merged and judged: values that know where they stand.
//!
//! ```text
//! configuration.toml --parse--> Table --merge--> Table --keys--> KataConfig
//! config.d/10-a.toml --parse--> Table ----^
//! ```
//! A value that a drop-in replaces takes the drop-in's place with it, so an error names the file that
//! is at fault. Tables are merged key by key, everything else is replaced as a whole.

use std::{collections::BTreeMap, fmt, ops::Range, path::Path};

use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, Place};

/// A TOML value. Dates have no use in Kata's files and are kept as text to be shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Self>),
    Table(Table),
    /// A date, or an integer beyond 64 bits.
    Other(String),
}

/// A value and where its key stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub place: Place,
    pub value: Value,
}

pub(crate) type Table = BTreeMap<String, Node>;

impl Value {
    /// Whether this says "nothing", "none" or "off".
    pub(crate) fn is_neutral(&self) -> bool {
        match self {
            Self::Bool(on) => !on,
            Self::Int(number) => *number == 0,
            Self::Float(number) => *number == 0.0,
            Self::Text(text) => text.is_empty(),
            Self::List(list) => list.is_empty(),
            Self::Table(table) => table.is_empty(),
            Self::Other(_) => false,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(on) => write!(f, "{on}"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::List(list) => {
                f.write_str("[")?;
                for (index, item) in list.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{item}")?;
                }
                f.write_str("]")
            }
            Self::Table(_) => f.write_str("{...}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// Reads the text of one file, whose name is `file` in errors.
pub(crate) fn parse(text: &str, file: &Path) -> Result<Table, ConfigError> {
    let place = |span: Range<usize>| {
        let upto = span.start.min(text.len());
        let line = text.as_bytes()[..upto].iter().filter(|byte| **byte == b'\n').count() + 1;
        Place::Line { file: file.to_owned(), line }
    };
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        place: place(error.span().unwrap_or_default()),
        language: "TOML",
        message: error.message().to_owned(),
    })?;
    Ok(convert_table(table.get_ref(), &place))
}

fn convert_table(table: &DeTable<'_>, place: &impl Fn(Range<usize>) -> Place) -> Table {
    let node = |(key, value): (&toml::Spanned<toml::de::DeString<'_>>, &toml::Spanned<_>)| {
        let value = convert(value.get_ref(), place);
        (key.get_ref().to_string(), Node { place: place(key.span()), value })
    };
    table.iter().map(node).collect()
}

fn convert(value: &DeValue<'_>, place: &impl Fn(Range<usize>) -> Place) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::Other(number.to_string()), Value::Int),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| Value::Other(number.to_string()), Value::Float)
        }
        DeValue::Boolean(on) => Value::Bool(*on),
        DeValue::Datetime(date) => Value::Other(date.to_string()),
        DeValue::Array(items) => {
            Value::List(items.iter().map(|item| convert(item.get_ref(), place)).collect())
        }
        DeValue::Table(table) => Value::Table(convert_table(table, place)),
    }
}

/// Puts what `over` says over what `base` says.
pub(crate) fn merge(base: &mut Table, over: Table) {
    for (key, node) in over {
        match (base.get_mut(&key).map(|old| &mut old.value), node) {
            (Some(Value::Table(old)), Node { value: Value::Table(new), .. }) => merge(old, new),
            (_, node) => {
                base.insert(key, node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(file: &str, text: &str) -> Table {
        parse(text, Path::new(file)).expect(text)
    }

    #[test]
    fn a_merge_replaces_values_and_lists_and_joins_tables() {
        let mut base = table("a", "x = 1\nl = [1, 2]\n[t]\na = 1\nb = 2\n[u]\nc = 3");
        merge(&mut base, table("b", "l = [3]\n\n[t]\nb = 5\n"));
        let Value::Table(t) = &base["t"].value else { panic!("{base:?}") };
        assert_eq!((&t["a"].value, &t["b"].value), (&Value::Int(1), &Value::Int(5)));
        assert_eq!(base["l"].value, Value::List(vec![Value::Int(3)]));
        assert_eq!(base["x"].place.to_string(), "a:1");
        assert_eq!(t["b"].place.to_string(), "b:4");
        assert_eq!(t["a"].place.to_string(), "a:4");
        assert!(base.contains_key("u"));
    }

    #[test]
    fn values_are_shown_as_they_are_written() {
        let shown = |text: &str| table("a", &format!("v = {text}"))["v"].value.to_string();
        for text in ["true", "7", "\"a b\"", "[\"a\", 2]", "0.5", "1979-05-27"] {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown("0xff"), "255");
    }

    #[test]
    fn what_is_no_toml_is_refused_with_its_line() {
        let error = parse("a = 1\nb = [", Path::new("x.toml")).expect_err("no TOML");
        assert!(error.to_string().starts_with("x.toml:2: this is not TOML"), "{error}");
    }
}
