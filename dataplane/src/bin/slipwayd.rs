//! The daemon's command line: which configuration, and what differs from it.
//!
//! Everything is judged before anything is started, so a bad file or option changes nothing.

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;
use dataplane::config::{Config, DEFAULT_PATH, LogConfig, LogFormat};
use dataplane::daemon;

/// The slipway switch: vhost-user ports for microVMs, served by polling threads.
///
/// Runs until SIGTERM or SIGINT. Exit codes: 0 stopped as asked (or the configuration is good), 1 it
/// failed, 2 the command line is wrong.
#[derive(Debug, Parser)]
#[command(name = "slipwayd", version, max_term_width = 100)]
struct Cli {
    /// The configuration file [default: /etc/slipway/slipwayd.toml if it exists, else all defaults]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Say whether FILE can be used, and exit
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "run_dir", "socket", "cores"])]
    check_config: Option<PathBuf>,

    /// Use this folder in place of `ports.run_dir`, and for the API's socket too unless --socket is
    /// given; lets an unprivileged user run a switch of its own
    #[arg(long, value_name = "FOLDER")]
    run_dir: Option<PathBuf>,

    /// Use this in place of `api.socket`
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Use these in place of `pmd.cores`
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    cores: Option<Vec<usize>>,
}

impl Cli {
    /// The configuration to run with.
    fn config(self) -> anyhow::Result<Config> {
        let file = match self.config {
            Some(file) => Some(file),
            None => Some(PathBuf::from(DEFAULT_PATH)).filter(|file| file.exists()),
        };
        let mut config = match &file {
            Some(file) => Config::load(file)?,
            None => Config::default(),
        };
        if let Some(folder) = self.run_dir {
            let folder = std::path::absolute(&folder).context("Failed to resolve --run-dir")?;
            config.api.socket = folder.join("slipwayd.sock");
            config.ports.run_dir = folder;
        }
        if let Some(socket) = self.socket {
            config.api.socket =
                std::path::absolute(&socket).context("Failed to resolve --socket")?;
        }
        if let Some(cores) = self.cores {
            config.pmd.cores = cores;
        }
        config.check().context("An option on the command line cannot be used")?;
        Ok(config)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.check_config {
        Some(file) => check(file),
        None => cli.config().and_then(run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slipwayd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: &Path) -> anyhow::Result<()> {
    Config::load(file)?;
    println!("{}: good", file.display());
    Ok(())
}

fn run(config: Config) -> anyhow::Result<()> {
    start_logging(&config.log);
    daemon::run(&config)
}

fn start_logging(log: &LogConfig) {
    let lines = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::from(log.level))
        // Colours are for people: a journal or a file would keep the escape codes.
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match log.format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_of(arguments: &[&str]) -> anyhow::Result<Config> {
        let words = ["slipwayd", "--config", "/dev/null"].iter().chain(arguments);
        Cli::try_parse_from(words)?.config()
    }

    #[test]
    fn a_run_dir_moves_the_api_socket_too_unless_that_is_given() {
        let config = config_of(&["--run-dir", "/tmp/mine"]).expect("good");
        assert_eq!(config.ports.run_dir, Path::new("/tmp/mine"));
        assert_eq!(config.api.socket, Path::new("/tmp/mine/slipwayd.sock"));
        let config = config_of(&["--run-dir", "/tmp/mine", "--socket", "/tmp/s"]).expect("good");
        assert_eq!(config.api.socket, Path::new("/tmp/s"));
    }

    #[test]
    fn relative_folders_are_made_absolute() {
        let config = config_of(&["--run-dir", "mine"]).expect("good");
        assert!(config.ports.run_dir.is_absolute() && config.ports.run_dir.ends_with("mine"));
    }

    #[test]
    fn cores_on_the_command_line_are_judged_like_those_in_the_file() {
        assert_eq!(config_of(&["--cores", "0,2"]).expect("good").pmd.cores, [0, 2]);
        let error = config_of(&["--cores", "2,2"]).expect_err("twice");
        assert!(format!("{error:#}").contains("core 2 is named twice"), "{error:#}");
        assert!(config_of(&["--cores", "x"]).is_err());
    }

    #[test]
    fn checking_a_file_goes_with_no_other_option() {
        let error = Cli::try_parse_from(["slipwayd", "--check-config", "x", "--cores", "1"]);
        assert_eq!(error.expect_err("conflict").kind(), clap::error::ErrorKind::ArgumentConflict);
    }
}
