//! From files to a [`KataConfig`], or to the line that is wrong and how to right it.
//!
//! ```text
//! which file:  ConfigPath option > $KATA_CONF_FILE > the first of DEFAULT_FILES that exists
//! its values:  the file, then config.d/*.toml beside it in lexical order, each over the last
//! ```
//! Without any file the defaults hold, and a warning says so: they name no kernel, so a pod fails with
//! that as its reason, while `slipwayctl check` can still say everything else.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::{
    Host, KataConfig,
    error::{ConfigError, Warning},
    judge::judge,
    value::{self, Table},
};

/// Where a configuration is looked for, first to last: our own place, then those of Kata's Rust
/// runtime, then those of its Go runtime.
pub const DEFAULT_FILES: [&str; 6] = [
    "/etc/slipway/configuration.toml",
    "/etc/kata-containers/runtime-rs/configuration.toml",
    "/usr/share/defaults/kata-containers/runtime-rs/configuration.toml",
    "/opt/kata/share/defaults/kata-containers/runtime-rs/configuration.toml",
    "/etc/kata-containers/configuration.toml",
    "/usr/share/defaults/kata-containers/configuration.toml",
];

/// Names a file, as it does for Kata.
pub const FILE_VARIABLE: &str = "KATA_CONF_FILE";

/// The longest file that is read, in bytes; Kata's have about thirty thousand.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A configuration and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What holds.
    pub config: KataConfig,
    /// What does not stop a pod, and that an operator may want to know.
    pub warnings: Vec<Warning>,
    /// What is accepted and has no effect.
    pub ignored: Vec<Warning>,
    /// The file and its drop-ins, in the order in which they were read.
    pub files: Vec<PathBuf>,
}

/// Reads the configuration: `path` is the `ConfigPath` option of the runtime class, if it has one.
///
/// # Errors
/// [`ConfigError`], with the line to look at.
pub fn load(path: Option<&Path>) -> Result<Loaded, ConfigError> {
    let variable = env::var_os(FILE_VARIABLE);
    load_among(path, variable.as_deref(), &DEFAULT_FILES.map(Path::new), Host::read())
}

/// The order of who names the file. One that is named has to be there: another in its place would be a
/// surprise.
fn load_among(
    option: Option<&Path>,
    variable: Option<&OsStr>,
    places: &[&Path],
    host: Host,
) -> Result<Loaded, ConfigError> {
    let variable = variable.filter(|name| !name.is_empty()).map(Path::new);
    match option.filter(|path| !path.as_os_str().is_empty()).or(variable) {
        Some(file) => load_file(file, host),
        None => load_first(places, host),
    }
}

/// Reads the first of these files that exists.
fn load_first(places: &[&Path], host: Host) -> Result<Loaded, ConfigError> {
    if let Some(file) = places.iter().find(|file| file.exists()) {
        return load_file(file, host);
    }
    let places: Vec<_> = places.iter().map(|file| file.display().to_string()).collect();
    let mut loaded = judge(Table::new(), Vec::new(), host)?;
    let message = format!(
        "there is no configuration file, so defaults hold, without kernel and image; looked for {}",
        places.join(", ")
    );
    loaded.warnings.push(Warning { place: None, message });
    Ok(loaded)
}

/// Reads this file and its drop-ins.
fn load_file(file: &Path, host: Host) -> Result<Loaded, ConfigError> {
    let mut table = value::parse(&read(file)?, file)?;
    let mut files = vec![file.to_owned()];
    for drop_in in drop_ins(file)? {
        value::merge(&mut table, value::parse(&read(&drop_in)?, &drop_in)?);
        files.push(drop_in);
    }
    judge(table, files, host)
}

/// Judges a text as the configuration file `file`, without drop-ins.
///
/// # Errors
/// See [`load`].
pub fn parse(text: &str, file: &Path, host: Host) -> Result<Loaded, ConfigError> {
    judge(value::parse(text, file)?, vec![file.to_owned()], host)
}

fn read(file: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Read { file: file.to_owned(), source };
    let mut text = String::new();
    fs::File::open(file)
        .and_then(|opened| opened.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let why = format!("it is longer than {MAX_FILE_BYTES} bytes");
        return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, why)));
    }
    Ok(text)
}

/// `config.d/*.toml` beside the file. Installers link to the file, so the link is followed first, as
/// Kata does.
fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let real = fs::canonicalize(file)
        .map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
    let folder = real.parent().unwrap_or(Path::new("/")).join("config.d");
    let unreadable = |source| ConfigError::Read { file: folder.clone(), source };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|end| end == "toml") && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { cpus: 2, memory_mib: 4096 };

    #[test]
    fn the_option_goes_before_the_variable_and_that_before_the_places() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| folder.path().join(name);
        for name in ["option", "variable", "second"] {
            fs::write(path(name), format!("[runtime]\ndan_conf = \"/{name}\"")).expect("writes");
        }
        let (option, variable) = (path("option"), path("variable"));
        let (first, second) = (path("first"), path("second"));
        let dan_conf = |option: Option<&Path>, variable: Option<&OsStr>| {
            let loaded = load_among(option, variable, &[&first, &second], HOST).expect("loads");
            assert_eq!(loaded.warnings, []);
            loaded.config.runtime.dan_conf
        };
        let variable = variable.as_os_str();
        assert_eq!(dan_conf(Some(&option), Some(variable)), Path::new("/option"));
        assert_eq!(dan_conf(None, Some(variable)), Path::new("/variable"));
        assert_eq!(dan_conf(None, None), Path::new("/second"));
        assert_eq!(dan_conf(Some(Path::new("")), Some(OsStr::new(""))), Path::new("/second"));
        let missing = load_among(Some(&first), Some(variable), &[&second], HOST);
        assert!(matches!(missing, Err(ConfigError::Read { file, .. }) if file == first));
    }

    #[test]
    fn without_any_file_the_defaults_hold_and_a_warning_says_so() {
        let loaded = load_first(&[Path::new("/nowhere/a.toml")], HOST).expect("defaults");
        assert_eq!((&loaded.config.file, loaded.files.len()), (&None, 0));
        assert_eq!(loaded.config.hypervisor.default_maxvcpus, 2);
        let [warning] = &loaded.warnings[..] else { panic!("{loaded:?}") };
        assert!(warning.message.contains("/nowhere/a.toml"), "{warning}");
    }

    #[test]
    fn our_own_place_comes_first_and_the_rust_runtimes_before_the_go_runtimes() {
        assert!(DEFAULT_FILES[0].starts_with("/etc/slipway/"));
        let is_rs: Vec<_> =
            DEFAULT_FILES[1..].iter().map(|file| file.contains("runtime-rs")).collect();
        assert_eq!(is_rs, [true, true, true, false, false]);
    }
}
