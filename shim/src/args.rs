//! containerd's way to call a shim: Go flags, then an action.
//!
//! `containerd-shim-slipway-v2 -namespace NS -address SOCK -publish-binary BIN -id ID start`

use std::path::PathBuf;

/// What this process was started for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Serve the sandbox on the socket that is standard input.
    #[default]
    Serve,
    /// Start a server, or find the pod's, and print its address.
    Start,
    /// Clean up after a server that is gone.
    Delete,
    /// Print the version.
    Version,
    /// Print what the runtime is, as protobuf.
    Info,
}

/// A command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// What to do.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's gRPC socket.
    pub address: String,
    /// containerd's binary; events go over ttrpc, so it is not run.
    pub publish_binary: String,
    /// The container.
    pub id: String,
    /// The container's bundle; the working directory otherwise.
    pub bundle: Option<PathBuf>,
    /// containerd logs at debug level.
    pub debug: bool,
}

/// A command line that is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// A flag without its value.
    #[error("The flag -{0} needs a value")]
    NoValue(String),
    /// A flag that is not known.
    #[error("There is no flag '{0}'; containerd starts this program, people do not need to")]
    UnknownFlag(String),
    /// An action that is not known.
    #[error("There is no action '{0}'; use start or delete, or none to serve")]
    UnknownAction(String),
    /// An action that needs more.
    #[error("{action:?} needs the flag -{flag}")]
    Missing {
        /// The action.
        action: Action,
        /// The flag it needs.
        flag: &'static str,
    },
}

impl Args {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The first argument that is not understood, or a missing one.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, ArgsError> {
        let mut args = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            // Go takes one dash or two; the first word without one ends the flags.
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                args.action = match word.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    _ => return Err(ArgsError::UnknownAction(word)),
                };
                break;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let mut value =
                || inline.clone().or_else(|| words.next()).ok_or(ArgsError::NoValue(name.into()));
            match name {
                "namespace" => args.namespace = value()?,
                "address" => args.address = value()?,
                "publish-binary" => args.publish_binary = value()?,
                "id" => args.id = value()?,
                "bundle" => {
                    args.bundle =
                        Some(value()?.into()).filter(|b: &PathBuf| !b.as_os_str().is_empty());
                }
                // A socket of containerd's choice is what older shims were given; ours is inherited.
                "socket" => drop(value()?),
                "debug" => args.debug = inline.is_none_or(|value| value == "true"),
                "v" | "version" => args.action = Action::Version,
                "info" => args.action = Action::Info,
                _ => return Err(ArgsError::UnknownFlag(word)),
            }
            if matches!(args.action, Action::Version | Action::Info) {
                return Ok(args);
            }
        }
        args.check()?;
        Ok(args)
    }

    fn check(&self) -> Result<(), ArgsError> {
        let needs = [("id", &self.id), ("namespace", &self.namespace), ("address", &self.address)];
        match needs.into_iter().find(|(_, value)| value.is_empty()) {
            Some((flag, _)) => Err(ArgsError::Missing { action: self.action, flag }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split_ascii_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_start_as_containerd_writes_it_is_read() {
        let args = parse(
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id abc \
             -bundle /run/b -debug start",
        )
        .unwrap();
        assert_eq!(args.action, Action::Start);
        assert_eq!((args.namespace.as_str(), args.id.as_str()), ("k8s.io", "abc"));
        assert_eq!(args.bundle, Some("/run/b".into()));
        assert!(args.debug);
    }

    #[test]
    fn two_dashes_and_equal_signs_are_the_same() {
        let args = parse("--namespace=n --address=a --id=i delete").unwrap();
        assert_eq!((args.action, args.id.as_str()), (Action::Delete, "i"));
    }

    #[test]
    fn without_an_action_the_pod_is_served() {
        assert_eq!(parse("-namespace n -address a -id i").unwrap().action, Action::Serve);
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let missing = |flag| Err(ArgsError::Missing { action: Action::Start, flag });
        assert_eq!(parse("-namespace n -address a start"), missing("id"));
        assert_eq!(parse("-id i -address a start"), missing("namespace"));
        assert_eq!(parse("-id"), Err(ArgsError::NoValue("id".into())));
        assert_eq!(parse("-ids 1"), Err(ArgsError::UnknownFlag("-ids".into())));
        assert_eq!(parse("stop"), Err(ArgsError::UnknownAction("stop".into())));
    }

    #[test]
    fn version_and_info_need_nothing_else() {
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-version").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
    }
}
