//! `containerd-shim-slipway-v2`: wiring only, see the library.

use std::io::{self, Write as _};
use std::process::ExitCode;

use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use shim::args::{Action, Args};
use shim::{bootstrap, delete, error, serve};

fn main() -> ExitCode {
    match run() {
        Ok(answer) => match io::stdout().write_all(&answer) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(failure) => {
            // containerd shows it to its user.
            drop(writeln!(io::stderr(), "{}", error::chain(&failure)));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<Vec<u8>> {
    let args = Args::parse(std::env::args().skip(1))?;
    match args.action {
        Action::Start => bootstrap::start(&args),
        Action::Delete => delete::delete(&args),
        Action::Serve => serve::serve(&args).map(|()| Vec::new()),
        Action::Version => Ok(version().into_bytes()),
        Action::Info => {
            let mut info = RuntimeInfo::new();
            info.name = "io.containerd.slipway.v2".to_owned();
            let version = info.version.mut_or_insert_default();
            version.version = env!("CARGO_PKG_VERSION").to_owned();
            Ok(info.write_to_bytes()?)
        }
    }
}

fn version() -> String {
    format!("containerd-shim-slipway-v2 {}\n", env!("CARGO_PKG_VERSION"))
}
