//! Reads the command line, runs it, and turns a failure into words and an exit code.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::Parser;
use slipwayctl::{cli::Cli, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let as_json = cli.json;
    let is_terminal = io::stdout().is_terminal();
    match run(cli, &mut io::stdout().lock(), is_terminal).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message(as_json) {
                eprintln!("{message}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}
