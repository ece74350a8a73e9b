//! What each command asks of the switch, and how its answer is printed.

use std::{
    io::{self, Write},
    path::Path,
};

use clap::CommandFactory;
use kata_config::KataConfig;
use serde::Serialize;
use slipway_api::{Created, DEFAULT_SOCKET, HealthStatus, client::Client};

use crate::{
    Failure,
    cli::{
        AttachmentsCommand, Cli, Command, ConfigArgs, FdbCommand, PmdCommand, PolicyCommand,
        PortCommand, Shell, VniCommand,
    },
    node::{self, Node, check::Daemon},
    tables, watch,
};

/// Where answers go, and in which form.
pub struct Output<'a> {
    /// The stream.
    pub stream: &'a mut dyn Write,
    /// Whether a person looks at it, so that `--watch` may clear the screen.
    pub is_terminal: bool,
    /// JSON instead of tables.
    pub as_json: bool,
}

impl Output<'_> {
    /// Prints an answer in the form asked for.
    pub fn answer<T: Serialize>(
        &mut self,
        answer: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if self.as_json {
            // The API's types always serialise: what fails is the stream.
            serde_json::to_writer_pretty(&mut *self.stream, answer).map_err(io::Error::from)?;
            self.stream.write_all(b"\n")?;
        } else {
            self.stream.write_all(text(answer).as_bytes())?;
        }
        Ok(self.stream.flush()?)
    }

    /// Says in a word what was done; in JSON the exit code says it.
    fn done(&mut self, text: String) -> Result<(), Failure> {
        if !self.as_json {
            writeln!(self.stream, "{text}")?;
        }
        Ok(self.stream.flush()?)
    }
}

/// Does what the command line says.
///
/// # Errors
/// [`Failure`], which knows its exit code and its words.
pub async fn run(cli: Cli, stream: &mut dyn Write, is_terminal: bool) -> Result<(), Failure> {
    let client = Client::new(cli.socket);
    let mut out = Output { stream, is_terminal, as_json: cli.json };
    match cli.command {
        Command::Port(command) => port(command, &client, &mut out).await,
        Command::Vni(command) => vni(command, &client, &mut out).await,
        Command::Fdb(command) => fdb(command, &client, &mut out).await,
        Command::Networks => out.answer(&client.list_networks().await?, tables::networks),
        Command::Attachments(args) => attachments(args.command, &client, &mut out).await,
        Command::Stats(args) => match args.watch {
            Some(interval) if args.pmd => {
                watch::pmds(&client, interval, args.count, &mut out).await
            }
            Some(interval) => watch::ports(&client, interval, args.count, &mut out).await,
            None if args.pmd => watch::pmds(&client, args.interval, Some(1), &mut out).await,
            None => out.answer(&client.stats().await?, tables::stats),
        },
        Command::Pmd(PmdCommand::List) => out.answer(&client.pmds().await?, tables::pmd_rings),
        Command::Pmd(PmdCommand::Rebalance) => {
            out.answer(&client.rebalance().await?, tables::rebalanced)
        }
        Command::Explain(args) => {
            out.answer(&client.explain(&args.into()).await?, tables::explanation)
        }
        Command::Health => {
            let health = client.health().await?;
            out.answer(&health, tables::health)?;
            match health.status {
                HealthStatus::Ok => Ok(()),
                HealthStatus::Degraded => Err(Failure::Unwell),
            }
        }
        Command::Check(args) => check(args, client, &mut out).await,
        Command::Env(args) => environment(args, client, &mut out).await,
        Command::Version => version(&client, &mut out).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            let (mut command, name) = (Cli::command(), "slipwayctl");
            match shell {
                Shell::Bash => {
                    clap_complete::generate(
                        clap_complete::Shell::Bash,
                        &mut command,
                        name,
                        &mut script,
                    );
                }
                Shell::Zsh => {
                    clap_complete::generate(
                        clap_complete::Shell::Zsh,
                        &mut command,
                        name,
                        &mut script,
                    );
                }
                Shell::Fish => {
                    clap_complete::generate(
                        clap_complete::Shell::Fish,
                        &mut command,
                        name,
                        &mut script,
                    );
                }
            }
            Ok(out.stream.write_all(&script)?)
        }
    }
}

async fn port(command: PortCommand, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    match command {
        PortCommand::Add(args) => {
            let (port, created) = client.create_port(&args.into()).await?;
            out.answer(&port, |port| {
                let (name, socket) = (&port.spec.name, tables::far_side(port));
                match created {
                    Created::New => format!("Created port {name}: {socket}\n"),
                    Created::Existing => format!("Port {name} exists: {socket}\n"),
                }
            })
        }
        PortCommand::Del { name } => {
            client.delete_port(&name).await?;
            out.done(format!("Deleted port {name}"))
        }
        PortCommand::List { vni } => {
            let mut list = client.list_ports().await?;
            list.ports.retain(|port| vni.is_none_or(|vni| vni == port.spec.vni));
            out.answer(&list, tables::ports)
        }
        PortCommand::Policy(PolicyCommand::Set { name, policy }) => {
            let (port, _) = client.put_policy(&name, &policy.into()).await?;
            out.answer(&port, |port| format!("Port {name} has {}\n", tables::policy(port)))
        }
        PortCommand::Policy(PolicyCommand::Del { name }) => {
            client.delete_policy(&name).await?;
            out.done(format!("Port {name} has no policy"))
        }
        PortCommand::Show { name } => out.answer(&client.get_port(&name).await?, tables::port),
    }
}

async fn vni(command: VniCommand, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    match command {
        VniCommand::List => out.answer(&client.list_vnis().await?, tables::vnis),
        VniCommand::Set(args) => {
            let (vni, _) = client.put_vni(args.vni, &args.into()).await?;
            out.answer(&vni, |vni| {
                let fate = if vni.floods_unknown { "flooded" } else { "dropped" };
                format!("Set VNI {}: frames for unknown addresses are {fate}\n", vni.vni)
            })
        }
        VniCommand::Del { vni } => {
            client.delete_vni(vni).await?;
            out.done(format!("Forgot the settings of VNI {vni}"))
        }
    }
}

async fn fdb(command: FdbCommand, client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    match command {
        FdbCommand::List(args) => out.answer(&client.list_fdb(&args.into()).await?, tables::fdb),
        FdbCommand::Add { vni, mac, port } => {
            let (entry, created) = client.add_fdb(&FdbCommand::entry(vni, mac, port)).await?;
            out.answer(&entry, |entry| {
                let verb = match created {
                    Created::New => "is now",
                    Created::Existing => "was already",
                };
                format!("{} on VNI {} {verb} behind port {}\n", entry.mac, entry.vni, entry.port)
            })
        }
        FdbCommand::Del { vni, mac } => {
            client.delete_fdb(vni, mac).await?;
            out.done(format!("Removed {mac} from VNI {vni}"))
        }
    }
}

async fn attachments(
    command: Option<AttachmentsCommand>,
    client: &Client,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    match command.unwrap_or(AttachmentsCommand::List { owner: None }) {
        AttachmentsCommand::List { owner } => {
            let list = client.list_attachments(owner.as_deref()).await?;
            out.answer(&list, tables::attachments)
        }
        AttachmentsCommand::Show(name) => {
            let attachment = client.get_attachment(&name.owner, &name.interface).await?;
            out.answer(&attachment, tables::attachment)
        }
        AttachmentsCommand::Rm(name) => {
            client.detach(&name.owner, &name.interface).await?;
            out.done(format!("{} of {} is not attached", name.interface, name.owner))
        }
    }
}

/// The switch that pods use: the configuration's, unless the command line names another one.
async fn ask_daemon(config: Option<&KataConfig>, client: Client) -> Daemon {
    let is_default = client.socket() == Path::new(DEFAULT_SOCKET);
    let client = match config {
        Some(config) if is_default => Client::new(&config.slipway.socket),
        _ => client,
    };
    Daemon {
        socket: client.socket().to_owned(),
        version: client.version().await,
        networks: client.list_networks().await,
    }
}

async fn check(args: ConfigArgs, client: Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let loaded = kata_config::load(args.config.as_deref());
    let config = loaded.as_ref().ok().map(|loaded| &loaded.config);
    let daemon = ask_daemon(config, client).await;
    let report = node::check::check(&Node::here(), &loaded, &daemon).await;
    out.answer(&report, ToString::to_string)?;
    if report.ok { Ok(()) } else { Err(Failure::Unwell) }
}

async fn environment(
    args: ConfigArgs,
    client: Client,
    out: &mut Output<'_>,
) -> Result<(), Failure> {
    let loaded = kata_config::load(args.config.as_deref())?;
    let daemon = ask_daemon(Some(&loaded.config), client).await;
    let environment = node::env::environment(&Node::here(), loaded, &daemon).await;
    // What fails is a path that is no text: TOML has no word for it.
    let text = toml::to_string(&environment).map_err(io::Error::other)?;
    out.answer(&environment, |_| text)
}

async fn version(client: &Client, out: &mut Output<'_>) -> Result<(), Failure> {
    let own = env!("CARGO_PKG_VERSION");
    // Our own version is told even when there is nobody to ask.
    out.done(format!("slipwayctl {own}"))?;
    let server = client.version().await?;
    if out.as_json {
        let both = serde_json::json!({ "slipwayctl": own, "slipwayd": server });
        return out.answer(&both, ToString::to_string);
    }
    out.done(format!("{} {} (API {})", server.name, server.version, server.api))
}
