//! How a value that is honoured is judged, and where it is put.

use std::path::{Path, PathBuf};

use crate::{KataConfig, value::Value};

/// A place in the configuration, and what may be put there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Set {
    Flag(fn(&mut KataConfig) -> &mut bool),
    Text(fn(&mut KataConfig) -> &mut String),
    /// Text that a pod's annotation is added to, not put in the place of.
    Words(fn(&mut KataConfig) -> &mut String),
    /// Text; the empty one means "none".
    Name(fn(&mut KataConfig, Option<String>)),
    /// An absolute path; the empty one means "none".
    Path(fn(&mut KataConfig, Option<PathBuf>)),
    /// A whole number in a range.
    Whole(i64, i64, fn(&mut KataConfig, u32)),
    /// A power of two in a range.
    PowerOfTwo(i64, i64, fn(&mut KataConfig, u32)),
    /// A number in a range.
    Number(f32, f32, fn(&mut KataConfig, f32)),
    List(ListRule, fn(&mut KataConfig) -> &mut Vec<String>),
    /// One of these names; the function has all of them.
    Choice(&'static [&'static str], fn(&mut KataConfig, &str) -> Option<()>),
}

/// What the texts of a list have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListRule {
    Any,
    /// In an annotation they are separated by `;`, elsewhere by `,`.
    Semicolons,
    Paths,
    Globs,
    Regexes,
}

impl Set {
    /// Judges the value and puts it into its place.
    ///
    /// # Errors
    /// What the value would have to be.
    pub(crate) fn put(self, config: &mut KataConfig, value: &Value) -> Result<(), String> {
        match (self, value) {
            (Self::Flag(at), Value::Bool(on)) => *at(config) = *on,
            (Self::Flag(_), _) => return Err("it is true or false".into()),
            (Self::Text(at) | Self::Words(at), Value::Text(text)) if is_text(text) => {
                text.clone_into(at(config));
            }
            (Self::Name(put), Value::Text(text)) if is_text(text) => {
                put(config, (!text.is_empty()).then(|| text.clone()));
            }
            (Self::Text(_) | Self::Words(_) | Self::Name(_), _) => {
                return Err("it is a line of text".into());
            }
            (Self::Path(put), Value::Text(text)) if text.is_empty() => put(config, None),
            (Self::Path(put), Value::Text(text)) if is_path(text) => {
                put(config, Some(text.into()));
            }
            (Self::Path(_), _) => return Err("it is an absolute path, or \"\" for none".into()),
            (Self::Whole(min, max, put), Value::Int(number)) if (min..=max).contains(number) => {
                put(config, u32::try_from(*number).map_err(|_| range(min, max))?);
            }
            (Self::Whole(min, max, _), _) => return Err(range(min, max)),
            (Self::PowerOfTwo(min, max, put), Value::Int(number))
                if (min..=max).contains(number) && number.count_ones() == 1 =>
            {
                put(config, u32::try_from(*number).map_err(|_| range(min, max))?);
            }
            (Self::PowerOfTwo(min, max, _), _) => {
                return Err(format!("it is a power of two from {min} to {max}"));
            }
            (Self::Number(min, max, put), Value::Int(_) | Value::Float(_)) => {
                let number = match value {
                    Value::Int(number) => *number as f32,
                    Value::Float(number) => *number as f32,
                    _ => unreachable!("the outer pattern has two kinds"),
                };
                if !(min..=max).contains(&number) {
                    return Err(range(min, max));
                }
                put(config, number);
            }
            (Self::Number(min, max, _), _) => return Err(range(min, max)),
            (Self::List(rule, at), Value::List(items)) => *at(config) = texts(items, rule)?,
            (Self::List(..), _) => return Err("it is a list of texts".into()),
            (Self::Choice(names, put), Value::Text(name)) => {
                put(config, name).ok_or_else(|| one_of(names))?;
            }
            (Self::Choice(names, _), _) => return Err(one_of(names)),
        }
        Ok(())
    }

    /// An annotation's text as the value that a file would have.
    ///
    /// # Errors
    /// What the text would have to be.
    pub(crate) fn read(self, text: &str) -> Result<Value, String> {
        Ok(match self {
            // The words that Kata's Go runtime reads.
            Self::Flag(_) => match text {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Value::Bool(true),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Value::Bool(false),
                _ => return Err("it is true or false".into()),
            },
            Self::Whole(min, max, _) | Self::PowerOfTwo(min, max, _) => {
                Value::Int(text.parse().map_err(|_| range(min, max))?)
            }
            Self::Number(min, max, _) => Value::Float(text.parse().map_err(|_| range(min, max))?),
            Self::List(..) if text.starts_with('[') => {
                let items: Vec<String> = serde_json::from_str(text)
                    .map_err(|error| format!("it is a JSON list of texts ({error})"))?;
                Value::List(items.into_iter().map(Value::Text).collect())
            }
            Self::List(rule, _) => {
                let separator = if rule == ListRule::Semicolons { ';' } else { ',' };
                let items = text.split(separator).map(str::trim).filter(|item| !item.is_empty());
                Value::List(items.map(|item| Value::Text(item.to_owned())).collect())
            }
            Self::Text(_) | Self::Words(_) | Self::Name(_) | Self::Path(_) | Self::Choice(..) => {
                Value::Text(text.to_owned())
            }
        })
    }
}

/// Neither line breaks nor zeros: these texts become arguments and kernel parameters.
fn is_text(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

fn is_path(text: &str) -> bool {
    is_text(text) && Path::new(text).is_absolute()
}

fn range(min: impl std::fmt::Display, max: impl std::fmt::Display) -> String {
    format!("it is a number from {min} to {max}")
}

fn one_of(names: &[&str]) -> String {
    format!("it is one of {}", names.join(", "))
}

fn texts(items: &[Value], rule: ListRule) -> Result<Vec<String>, String> {
    let text = |item: &Value| {
        let Value::Text(text) = item else { return Err("it is a list of texts".to_owned()) };
        match rule {
            ListRule::Any | ListRule::Semicolons if is_text(text) => {}
            ListRule::Any | ListRule::Semicolons => return Err(format!("{item} is no text")),
            ListRule::Paths if is_path(text) => {}
            ListRule::Paths => return Err(format!("{item} is no absolute path")),
            ListRule::Globs => {
                glob::Pattern::new(text).map_err(|e| format!("{item} is no glob: {}", e.msg))?;
            }
            ListRule::Regexes => {
                regex::Regex::new(text)
                    .map_err(|error| format!("{item} is no regular expression: {error}"))?;
            }
        }
        Ok(text.clone())
    };
    items.iter().map(text).collect()
}
