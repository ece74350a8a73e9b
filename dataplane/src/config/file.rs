//! From a file to a [`Config`], or to the line that is wrong and how to right it.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use toml::de::{DeTable, DeValue, Deserializer};

use super::{BadValue, Config};

/// The longest configuration file that is read, in bytes; the commented example has a few thousand.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read, or is not text.
    #[error("Failed to read the configuration {}", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{place}: this is not TOML: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What is wrong.
        message: String,
    },
    /// A key that does not exist.
    #[error("{place}: there is no key `{key}`{}", .remedy.as_ref().map(|r| format!("; {r}")).unwrap_or_default())]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key with its section.
        key: String,
        /// What was perhaps meant.
        remedy: Option<String>,
    },
    /// A value of the wrong type.
    #[error("{place}: `{key}` does not take this value: {message}")]
    WrongType {
        /// Where.
        place: Place,
        /// The key with its section.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// A value out of its range, or in contradiction to another.
    #[error("{place}: {bad}")]
    BadValue {
        /// Where.
        place: Place,
        /// Which and why.
        bad: Box<BadValue>,
    },
}

impl Config {
    /// Reads and judges a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`], with the line to look at.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Read { file: file.to_owned(), source };
        let mut text = String::new();
        File::open(file)
            .and_then(|opened| opened.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
            .map_err(unreadable)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            let why = format!("it is longer than {MAX_FILE_BYTES} bytes");
            return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, why)));
        }
        Self::parse(&text, file)
    }

    /// Judges the text of a configuration file; `file` is its name in errors.
    ///
    /// # Errors
    /// [`ConfigError`], with the line to look at.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let place = |span: Option<Range<usize>>| {
            let upto = span.map_or(0, |span| span.start).min(text.len());
            let line = text.as_bytes()[..upto].iter().filter(|b| **b == b'\n').count() + 1;
            Place { file: file.to_owned(), line }
        };
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            place: place(error.span()),
            message: error.message().to_owned(),
        })?;
        let lines = lines_of_keys(table.get_ref(), &place)?;
        let config: Self =
            serde_path_to_error::deserialize(Deserializer::from(table)).map_err(|error| {
                let key = error.path().to_string();
                let inner = error.into_inner();
                let message = inner.message().to_owned();
                ConfigError::WrongType { place: place(inner.span()), key, message }
            })?;
        config.check().map_err(|bad| {
            // A default can be at fault too, when another key contradicts it: then its section is
            // the place to look at.
            let section = bad.key.split(['.', '[']).next().unwrap_or_default();
            let place = lines.get(&bad.key).or_else(|| lines.get(section)).cloned();
            let place = place.unwrap_or(Place { file: file.to_owned(), line: 1 });
            ConfigError::BadValue { place, bad: Box::new(bad) }
        })?;
        Ok(config)
    }
}

/// Where each key and section stands; refuses those that do not exist.
fn lines_of_keys(
    table: &DeTable<'_>,
    place: &impl Fn(Option<Range<usize>>) -> Place,
) -> Result<BTreeMap<String, Place>, ConfigError> {
    let mut lines = BTreeMap::new();
    for (section, value) in table {
        let at = place(Some(section.span()));
        let section = section.get_ref().as_ref();
        let Some(known) = KEYS.get(section) else {
            return Err(unknown_at_top(section, at));
        };
        lines.insert(section.to_owned(), at);
        let is_list = LISTS.contains(&section);
        match value.get_ref() {
            DeValue::Table(_) if is_list => {
                return Err(not_a_list(section, lines[section].clone()));
            }
            DeValue::Table(keys) => lines_in(section, section, keys, known, place, &mut lines)?,
            DeValue::Array(items) if is_list => {
                for (index, item) in items.iter().enumerate() {
                    let DeValue::Table(keys) = item.get_ref() else { continue };
                    let name = format!("{section}[{index}]");
                    lines_in(section, &name, keys, known, place, &mut lines)?;
                }
            }
            _ => {} // refused by its type later
        }
    }
    Ok(lines)
}

/// Sections that may be repeated.
const LISTS: [&str; 1] = ["networks"];

/// [`lines_of_keys`] of one section, which is called `name` where a value is to blame.
fn lines_in(
    section: &str,
    name: &str,
    keys: &DeTable<'_>,
    known: &[String],
    place: &impl Fn(Option<Range<usize>>) -> Place,
    lines: &mut BTreeMap<String, Place>,
) -> Result<(), ConfigError> {
    for key in keys.keys() {
        let at = place(Some(key.span()));
        let key = key.get_ref().as_ref();
        if !known.iter().any(|known| known == key) {
            return Err(unknown_in(section, known, key, at));
        }
        lines.insert(format!("{name}.{key}"), at);
    }
    Ok(())
}

fn not_a_list(section: &str, place: Place) -> ConfigError {
    let message = format!("there may be several; write [[{section}]]");
    ConfigError::WrongType { place, key: section.to_owned(), message }
}

/// The keys of each section, as the types have them.
static KEYS: LazyLock<BTreeMap<String, Vec<String>>> = LazyLock::new(|| {
    let defaults = serde_json::to_value(Config::default()).expect("the defaults are plain data");
    let sections = defaults.as_object().into_iter().flatten();
    sections
        .map(|(section, value)| {
            // A section that may be repeated has one example among the defaults.
            let keys = value.as_object().or_else(|| value.as_array()?.first()?.as_object());
            (section.clone(), keys.into_iter().flatten().map(|(key, _)| key.clone()).collect())
        })
        .collect()
});

fn unknown_at_top(name: &str, place: Place) -> ConfigError {
    let home = KEYS.iter().find(|(_, keys)| keys.iter().any(|key| key == name));
    let remedy = match home {
        Some((section, _)) => Some(format!("it belongs under [{section}]")),
        None => nearest(name, KEYS.keys()).map(|near| format!("did you mean [{near}]?")),
    };
    let sections: Vec<_> = KEYS.keys().map(|section| format!("[{section}]")).collect();
    let remedy = remedy.or_else(|| Some(format!("the sections are {}", sections.join(", "))));
    ConfigError::UnknownKey { place, key: name.to_owned(), remedy }
}

fn unknown_in(section: &str, known: &[String], key: &str, place: Place) -> ConfigError {
    let home = KEYS.iter().find(|(_, keys)| keys.iter().any(|other| other == key));
    let remedy = match (nearest(key, known), home) {
        (_, Some((home, _))) => format!("it belongs under [{home}]"),
        (Some(near), None) => format!("did you mean `{near}`?"),
        (None, None) => format!("[{section}] has {}", known.join(", ")),
    };
    ConfigError::UnknownKey { place, key: format!("{section}.{key}"), remedy: Some(remedy) }
}

/// The known name most like `name`, if one is like it at all.
fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a String>) -> Option<&'a str> {
    let near = known.into_iter().map(|known| (edits(name, known), known)).min()?;
    (near.0 <= near.1.len() / 2).then_some(near.1)
}

/// How many single characters must be put in, taken out or changed to make `from` into `to`
/// (Levenshtein's distance), row by row.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (taken, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], taken + 1);
        for (put, b) in to.chars().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[put + 1];
            row[put + 1] = changed.min(row[put] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Config::parse(text, Path::new("x.toml")).expect_err(text).to_string()
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = Config::parse("", Path::new("x.toml")).expect("loads");
        assert_eq!(config, Config::default());
    }

    #[test]
    fn what_is_set_is_set_and_the_rest_keeps_its_default() {
        let text = "[pmd]\ncores = [2, 3]\n[api]\ngroup = \"kvm\"\nsocket = \"/run/x.sock\"";
        let config = Config::parse(text, Path::new("x.toml")).expect("loads");
        assert_eq!(config.pmd.cores, [2, 3]);
        assert_eq!(config.api.group.as_deref(), Some("kvm"));
        assert_eq!(config.pmd.burst_frames, 32);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
        assert_eq!(
            refusal("# why\n\n[pmd]\ncores = [1]\nburst_frame = 32\n"),
            "x.toml:5: there is no key `pmd.burst_frame`; did you mean `burst_frames`?"
        );
        assert_eq!(
            refusal("[pmb]\ncores = [1]\n"),
            "x.toml:1: there is no key `pmb`; did you mean [pmd]?"
        );
        assert_eq!(
            refusal("log.lvl = \"info\""),
            "x.toml:1: there is no key `log.lvl`; did you mean `level`?"
        );
    }

    #[test]
    fn a_key_of_another_section_is_sent_there() {
        assert_eq!(
            refusal("cores = [1]"),
            "x.toml:1: there is no key `cores`; it belongs under [pmd]"
        );
        assert_eq!(
            refusal("[fdb]\nmax_ports = 7"),
            "x.toml:2: there is no key `fdb.max_ports`; it belongs under [ports]"
        );
    }

    #[test]
    fn a_key_like_no_other_is_told_what_there_is() {
        let text = refusal("[log]\nzzzzzzzzzzzz = 1");
        assert_eq!(text, "x.toml:2: there is no key `log.zzzzzzzzzzzz`; [log] has format, level");
    }

    #[test]
    fn wrong_types_are_refused_with_line_and_key() {
        let text = refusal("[pmd]\n\nburst_frames = \"many\"");
        assert!(
            text.starts_with("x.toml:3: `pmd.burst_frames` does not take this value"),
            "{text}"
        );
        let text = refusal("[ports]\nmax_ports = -1");
        assert!(text.starts_with("x.toml:2: `ports.max_ports`"), "{text}");
        let text = refusal("\npmd = 7");
        assert!(text.starts_with("x.toml:2: `pmd`"), "{text}");
        let text = refusal("[log]\nlevel = \"loud\"");
        assert!(text.contains("x.toml:2") && text.contains("trace"), "{text}");
    }

    #[test]
    fn values_out_of_range_are_refused_with_line_and_remedy() {
        assert_eq!(
            refusal("[pmd]\ncores = [1]\nburst_frames = 0\n"),
            "x.toml:3: pmd.burst_frames = 0 cannot be used: it is 1 to 32; 32 is usual"
        );
    }

    #[test]
    fn a_default_that_a_key_contradicts_is_placed_at_its_section() {
        let text = refusal("\n[fdb]\ncapacity = 32");
        assert!(text.starts_with("x.toml:2: fdb.mac_quota = 64"), "{text}");
    }

    #[test]
    fn what_is_no_toml_is_refused_with_its_line() {
        let text = refusal("[pmd]\ncores = [1\nburst_frames = 3");
        assert!(text.starts_with("x.toml:") && text.contains("not TOML"), "{text}");
        let text = refusal("[pmd]\ncores = [1]\ncores = [2]");
        assert!(text.starts_with("x.toml:3: "), "{text}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().expect("tempdir");
        let missing = folder.path().join("none.toml");
        let error = Config::load(&missing).expect_err("missing");
        assert!(error.to_string().contains("none.toml"), "{error}");
        let long = folder.path().join("long.toml");
        std::fs::write(&long, "#".repeat((1 << 20) + 1)).expect("writes");
        assert!(matches!(Config::load(&long), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("abc", "abc"), 0);
        assert_eq!(edits("kitten", "sitting"), 3);
    }
}
