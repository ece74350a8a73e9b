//! virtiofsd as a child process: a directory of the host as a vhost-user-fs device.
//!
//! ```text
//!  we                                  virtiofsd                       QEMU
//!  bind and listen on the socket
//!  start, the socket is its input ---> "Waiting for ... connection"
//!  spawn() returns <------------------
//!                                      accept <----------------------- connects as it boots
//!                                      serves, ends when QEMU closes
//! ```
//!
//! We bind the socket, so it listens before the program runs, and it refuses connections as soon as
//! the program is gone. Nobody may connect to it for a test: virtiofsd takes the first connection
//! for its VMM's, and ends with it.
//!
//! There are two programs of this name. Debian 12 has the one in C that came with QEMU until 8.0;
//! the one in Rust is what all others ship, and what Kata's options are written for. They are told
//! apart by `--version`.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use tokio::process::Command;

use crate::exit::ExitReport;
use crate::helper::{self, HelperError, Sockets};
use crate::process::{Child, Launch, Stuck};
use crate::rundir::make_way;

/// The program's name, looked up in PATH.
pub const PROGRAM: &str = "virtiofsd";
/// Where packages put it: the one in Rust, then the one in C.
const PLACES: [&str; 3] =
    ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"];
const INSTALL: &str = "install it (Debian 12: apt-get install --no-install-recommends \
                       qemu-system-common; later: virtiofsd)";
const VERSION_LIMIT: Duration = Duration::from_secs(10);
/// What both print, at their level `info`, once they are about to accept.
const READY: &str = "Waiting for vhost-user socket connection";

/// How much the guest may keep in its caches, as virtiofsd calls it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheMode {
    /// Nothing; the C program calls it `none`.
    Never,
    /// Attributes and names, but no content. Not known to the C program.
    Metadata,
    /// For a short while.
    #[default]
    Auto,
    /// As if nobody else changed the directory.
    Always,
}

impl fmt::Display for CacheMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never => "never",
            Self::Metadata => "metadata",
            Self::Auto => "auto",
            Self::Always => "always",
        })
    }
}

/// A text that is no cache mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no cache mode of virtiofsd; write never, metadata, auto or always")]
pub struct CacheModeError(String);

impl FromStr for CacheMode {
    type Err = CacheModeError;

    /// Kata's `virtio_fs_cache`; `none` is the old name of `never`.
    fn from_str(text: &str) -> Result<Self, CacheModeError> {
        match text {
            "never" | "none" => Ok(Self::Never),
            "metadata" => Ok(Self::Metadata),
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            _ => Err(CacheModeError(text.to_owned())),
        }
    }
}

/// Which virtiofsd it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// In Rust, from the virtio-fs project.
    Rust,
    /// In C, part of QEMU until 8.0.
    C,
}

impl Flavour {
    /// `virtiofsd 1.13.2`, or `virtiofsd version 7.2.22 (Debian ...)` and more lines.
    fn parse(text: &str) -> Option<Self> {
        let rest = text.trim_start().strip_prefix("virtiofsd ")?;
        match rest.strip_prefix("version ").map(str::as_bytes) {
            Some([b'0'..=b'9', ..]) => Some(Self::C),
            Some(_) => None,
            None => rest.starts_with(|c: char| c.is_ascii_digit()).then_some(Self::Rust),
        }
    }
}

/// One shared directory.
#[derive(Clone, Debug)]
pub struct VirtiofsdSpec {
    /// What people call it; shown in errors.
    pub name: String,
    /// The program; see [`Virtiofsd::find`].
    pub program: PathBuf,
    /// The directory. The guest can do with it whatever virtiofsd's user can.
    pub shared_dir: PathBuf,
    /// The vhost-user socket, bound by us: [`ShareSpec::socket`](crate::ShareSpec::socket).
    pub socket: PathBuf,
    /// How much the guest may cache.
    pub cache: CacheMode,
    /// More arguments, Kata's `virtio_fs_extra_args`, in the words of the Rust program. For the C
    /// program those that it has by another name are translated.
    pub extra_args: Vec<String>,
    /// See [`Launch::cgroup_procs`].
    pub cgroup_procs: Vec<PathBuf>,
}

impl VirtiofsdSpec {
    /// The default cache mode, no more arguments, our own cgroups.
    pub fn new(
        name: impl Into<String>,
        program: impl Into<PathBuf>,
        shared_dir: impl Into<PathBuf>,
        socket: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            shared_dir: shared_dir.into(),
            socket: socket.into(),
            cache: CacheMode::default(),
            extra_args: Vec::new(),
            cgroup_procs: Vec::new(),
        }
    }

    fn refuse(&self, what: String, remedy: &'static str) -> HelperError {
        let (name, program) = (self.name.clone(), self.program.clone());
        HelperError::Unsupported { name, what, program, remedy }
    }

    /// The arguments after the program's name; the socket is its standard input.
    fn arguments(&self, flavour: Flavour) -> Result<Vec<OsString>, HelperError> {
        let extra = self.extra_args.join(" ").replace("log-level", "log_level");
        let level =
            extra.split_once("log_level").map(|(_, level)| level.trim_start_matches(['=', ' ']));
        if level.is_some_and(|l| !["info", "debug", "trace"].iter().any(|ok| l.starts_with(ok))) {
            let remedy = "leave it out, or take info or debug: we wait for a line of level info";
            return Err(self.refuse("its log level".to_owned(), remedy));
        }
        let mut args: Vec<OsString> = Vec::new();
        match flavour {
            Flavour::Rust => {
                args.extend(["--fd=0", "--shared-dir"].map(Into::into));
                args.push(self.shared_dir.clone().into());
                args.push(format!("--cache={}", self.cache).into());
                args.extend(self.extra_args.iter().map(Into::into));
            }
            Flavour::C => {
                let cache = match self.cache {
                    CacheMode::Never => "none".to_owned(),
                    CacheMode::Metadata => {
                        let remedy = "take never, auto or always, or install the Rust virtiofsd";
                        return Err(self.refuse("the cache mode 'metadata'".to_owned(), remedy));
                    }
                    other => other.to_string(),
                };
                // It splits the value of -o at commas, and has an escape for them.
                let dir = self.shared_dir.display().to_string();
                let dir = dir.replace('\\', r"\\").replace(',', r"\,");
                args.extend(["-f", "--fd=0", "-o"].map(Into::into));
                args.push(format!("source={dir},cache={cache}").into());
                args.extend(self.extra_args.iter().flat_map(|arg| for_c(arg)));
            }
        }
        Ok(args)
    }
}

/// An argument of the Rust program in the words of the C one.
fn for_c(arg: &str) -> Vec<OsString> {
    let option = |text: String| vec!["-o".into(), text.into()];
    let (name, value) = arg.split_once('=').unwrap_or((arg, ""));
    match name {
        "--announce-submounts"
        | "--xattr"
        | "--posix-acl"
        | "--writeback"
        | "--killpriv-v2"
        | "--allow-direct-io"
            if value.is_empty() =>
        {
            option(name.trim_start_matches('-').replace('-', "_"))
        }
        "--sandbox" | "--modcaps" | "--xattrmap" | "--log-level" if !value.is_empty() => {
            option(format!("{}={value}", name.trim_start_matches('-').replace('-', "_")))
        }
        _ => vec![arg.into()],
    }
}

/// A running virtiofsd. Dropping it kills it and removes its socket.
#[derive(Debug)]
pub struct Virtiofsd {
    child: Child,
    sockets: Sockets,
    flavour: Flavour,
}

impl Virtiofsd {
    /// The virtiofsd of this host: in PATH, else where packages put the Rust one, else the C one.
    ///
    /// # Errors
    /// [`HelperError::NotFound`] says what to install.
    pub fn find() -> Result<PathBuf, HelperError> {
        helper::find(PROGRAM, &PLACES).ok_or_else(|| HelperError::NotFound {
            program: PROGRAM,
            places: format!("PATH, {}", PLACES.join(", ")),
            remedy: INSTALL,
        })
    }

    /// Which virtiofsd `program` is.
    ///
    /// # Errors
    /// [`HelperError::Program`]: it is not there, or none of them.
    pub async fn flavour_of(program: &Path) -> Result<Flavour, HelperError> {
        let failed =
            |source| HelperError::Program { program: program.to_owned(), remedy: INSTALL, source };
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(VERSION_LIMIT, command.output()).await;
        let output = output.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
        let text = String::from_utf8_lossy(&output.stdout);
        Flavour::parse(&text).ok_or_else(|| {
            let text: String = text.trim().chars().take(200).collect();
            failed(io::Error::other(format!("its answer '{text}' is no virtiofsd's")))
        })
    }

    /// Starts it, and returns when it waits for its VMM.
    ///
    /// # Errors
    /// See [`HelperError`]; one that died carries the last lines of its standard error. Nothing is
    /// left behind.
    pub async fn spawn(spec: VirtiofsdSpec) -> Result<Self, HelperError> {
        let flavour = Self::flavour_of(&spec.program).await?;
        let args = spec.arguments(flavour)?;
        make_way(&spec.socket, || spec.name.clone())?;
        let bind = |source| HelperError::Bind {
            name: spec.name.clone(),
            path: spec.socket.clone(),
            source,
        };
        let listener = UnixListener::bind(&spec.socket).map_err(bind)?;
        let sockets = Sockets(vec![spec.socket.clone()]);
        let child = Child::spawn(Launch {
            name: spec.name.clone(),
            program: spec.program.clone(),
            args,
            stdin: Some(listener.into()),
            cgroup_procs: spec.cgroup_procs.clone(),
            ..Launch::default()
        })
        .await?;
        let stderr = child.stderr().clone();
        let ready = async {
            if stderr.wait_for(READY).await.is_err() {
                // It closed its standard error: the report of its end follows.
                std::future::pending::<()>().await;
            }
        };
        helper::await_ready(&spec.name, &child, &spec.socket, ready).await?;
        tracing::info!(name = spec.name, pid = child.pid(), ?flavour, "virtiofsd serves");
        Ok(Self { child, sockets, flavour })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Which virtiofsd it is.
    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// Returns when it has ended, as it does in order when its VMM ends. Any number of waiters;
    /// cancel safe.
    pub async fn wait(&self) -> ExitReport {
        self.child.wait().await
    }

    /// Kills it, and returns when it is gone with its socket.
    ///
    /// # Errors
    /// It is stuck in the kernel.
    pub async fn stop(&self) -> Result<ExitReport, Stuck> {
        let report = self.child.end().await?;
        self.sockets.remove();
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(spec: &VirtiofsdSpec, flavour: Flavour) -> Result<String, HelperError> {
        let args = spec.arguments(flavour)?;
        Ok(args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" "))
    }

    fn spec() -> VirtiofsdSpec {
        VirtiofsdSpec::new("fs", PROGRAM, "/srv/a,b", "/run/fs.sock")
    }

    #[test]
    fn the_two_programs_are_told_apart_by_what_they_answer() {
        let debian = "virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c) 2003-2022\n";
        assert_eq!(Flavour::parse(debian), Some(Flavour::C));
        assert_eq!(Flavour::parse("virtiofsd 1.14.0\n"), Some(Flavour::Rust));
        for other in ["", "virtiofsd", "virtiofsd version x", "GNU bash, version 5.2"] {
            assert_eq!(Flavour::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn each_program_is_spoken_to_in_its_own_words() {
        let mut spec = spec();
        spec.cache = CacheMode::Never;
        let extra = ["--thread-pool-size=1", "-o", "announce_submounts", "--announce-submounts"];
        spec.extra_args = extra.map(str::to_owned).to_vec();
        spec.extra_args.push("--sandbox=chroot".to_owned());
        let expected = "--fd=0 --shared-dir /srv/a,b --cache=never --thread-pool-size=1 \
                        -o announce_submounts --announce-submounts --sandbox=chroot";
        assert_eq!(line_of(&spec, Flavour::Rust).unwrap(), expected);
        let expected = r"-f --fd=0 -o source=/srv/a\,b,cache=none --thread-pool-size=1 \
                         -o announce_submounts -o announce_submounts -o sandbox=chroot";
        let expected = expected.replace("\\\n                         ", "");
        assert_eq!(line_of(&spec, Flavour::C).unwrap(), expected);
    }

    #[test]
    fn what_a_program_cannot_do_is_refused_before_it_starts() {
        let mut spec = spec();
        spec.cache = CacheMode::Metadata;
        assert!(line_of(&spec, Flavour::Rust).is_ok());
        let error = line_of(&spec, Flavour::C).unwrap_err().to_string();
        assert!(error.contains("metadata") && error.contains("install"), "{error}");
        for quiet in [["--log-level=error", ""], ["-o", "log_level=warn"], ["--log-level", "off"]] {
            let mut spec = self::spec();
            spec.extra_args = quiet.map(str::to_owned).to_vec();
            let error = line_of(&spec, Flavour::Rust).unwrap_err().to_string();
            assert!(error.contains("log level"), "{error}");
        }
        spec.extra_args = vec!["--log-level=debug".to_owned()];
        assert!(line_of(&spec, Flavour::Rust).is_ok());
    }

    #[test]
    fn a_cache_mode_reads_what_it_writes_and_the_old_name() {
        for mode in [CacheMode::Never, CacheMode::Metadata, CacheMode::Auto, CacheMode::Always] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!("none".parse(), Ok(CacheMode::Never));
        assert_eq!("Auto".parse::<CacheMode>(), Err(CacheModeError("Auto".into())));
    }
}
