//! The command line: words to types, and the help text.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use slipway_api::{
    DEFAULT_INTERFACE, DEFAULT_SOCKET, ExplainRequest, FdbFilter, FdbKind, Mac, NetnsSpec, Policy,
    PolicyAction, PolicyRule, PortMode, PortSpec, StaticEntry, UnknownUnicast, VniSpec,
};

/// Shows and changes a running slipwayd.
#[derive(Debug, Parser)]
#[command(
    name = "slipwayctl",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done; 1 the switch refused, or is not well, or the node is not; \
                  2 the command line is wrong; 3 the switch cannot be reached; 4 there is no such \
                  port, VNI, entry or attachment."
)]
pub struct Cli {
    /// The socket of slipwayd's API
    #[arg(long, global = true, value_name = "PATH", env = "SLIPWAY_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// Print the API's JSON instead of tables
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ports: create, delete, look at
    #[command(subcommand)]
    Port(PortCommand),
    /// Segments and their settings
    #[command(subcommand)]
    Vni(VniCommand),
    /// The forwarding database: which port an address is behind
    #[command(subcommand)]
    Fdb(FdbCommand),
    /// The networks that pods may join, and how many of their addresses are in use
    Networks,
    /// Interfaces of pods: list, look at, remove
    Attachments(AttachmentsArgs),
    /// Counters of ports, or of PMD threads
    Stats(StatsArgs),
    /// PMD threads: which polls which vring, and moving vrings between them
    #[command(subcommand)]
    Pmd(PmdCommand),
    /// Ask each stage of the pipeline what it would do with a frame; nothing is sent or counted
    Explain(ExplainArgs),
    /// Whether the switch does its work
    Health,
    /// Whether pods can start on this node: CPU, KVM, VMM, guest, switch, containerd
    Check(ConfigArgs),
    /// What pods on this node run with: configuration, programs, host; TOML, or JSON with --json
    Env(ConfigArgs),
    /// The versions of slipwayctl and slipwayd
    Version,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// `slipwayctl check` and `slipwayctl env`
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Kata's configuration.toml that pods use [default: KATA_CONF_FILE, then the usual places]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `slipwayctl port ...`
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// Create a port; asking again for the same port is fine
    Add(PortAddArgs),
    /// Delete a port, its socket and its addresses
    Del {
        /// The port's name
        name: String,
    },
    /// List the ports
    List {
        /// Only those of this segment
        #[arg(long)]
        vni: Option<u32>,
    },
    /// Show one port: settings, link, features, vrings, memory, policy
    Show {
        /// The port's name
        name: String,
    },
    /// Change what the guest of a port may send and receive; its link stays as it is
    #[command(subcommand)]
    Policy(PolicyCommand),
}

/// `slipwayctl port policy ...`
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Set all rules and default actions of a port; what is left out goes back to its default
    Set {
        /// The port's name
        name: String,
        /// The policy
        #[command(flatten)]
        policy: PolicyArgs,
    },
    /// Take the policy off a port: its guest may send and receive everything
    Del {
        /// The port's name
        name: String,
    },
}

/// A policy in words.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// A rule; may be given several times, and the first that matches a frame decides. It is `allow` or
    /// `deny`, `egress` (from the guest) or `ingress` (to it), and conditions: `ip ipv4|ipv6`, `protocol
    /// tcp|udp|icmp|icmpv6|N`, `remote PREFIX`, `ports N[-M]` (destination), `source-ports N[-M]`,
    /// `icmp-type N`. ARP and neighbour discovery always pass; later fragments have no ports
    #[arg(long = "rule", value_name = "RULE")]
    rules: Vec<PolicyRule>,
    /// What becomes of frames from the guest that no rule matches [default with a policy: deny]
    #[arg(long, value_enum, value_name = "ACTION")]
    egress_default: Option<Action>,
    /// What becomes of frames to the guest that no rule matches [default with a policy: deny]
    #[arg(long, value_enum, value_name = "ACTION")]
    ingress_default: Option<Action>,
}

impl PolicyArgs {
    /// The policy; `None` if no word of it was given.
    fn given(self) -> Option<Policy> {
        let is_given = !self.rules.is_empty()
            || self.egress_default.is_some()
            || self.ingress_default.is_some();
        is_given.then(|| self.into())
    }
}

impl From<PolicyArgs> for Policy {
    fn from(args: PolicyArgs) -> Self {
        let action = |action: Option<Action>| match action {
            Some(Action::Allow) => PolicyAction::Allow,
            Some(Action::Deny) | None => PolicyAction::Deny,
        };
        Self {
            egress_default: action(args.egress_default),
            ingress_default: action(args.ingress_default),
            rules: args.rules,
        }
    }
}

/// See [`PolicyAction`].
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Action {
    /// They go on
    Allow,
    /// They are dropped and counted
    Deny,
}

/// `slipwayctl port add ...`
#[derive(Debug, Args)]
pub struct PortAddArgs {
    /// 1 to 64 characters of A-Z a-z 0-9 . _ -
    name: String,
    /// The segment
    #[arg(long, default_value_t = 0)]
    vni: u32,
    /// The one address of the guest; without it the port learns
    #[arg(long)]
    mac: Option<Mac>,
    /// Absolute path of the vhost-user socket [default: ports/NAME.sock in slipwayd's run_dir]
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,
    /// Who listens on that socket
    #[arg(long, value_enum, default_value_t = Mode::Listen)]
    mode: Mode,
    /// Receive and transmit vring pairs, 1 to 128
    #[arg(long, value_name = "N", default_value_t = 1)]
    queue_pairs: u16,
    /// Whether source addresses are learned [default: when no --mac is given]
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    learning: Option<bool>,
    /// The most addresses the port may learn [default: from slipwayd.toml]
    #[arg(long, value_name = "N")]
    mac_quota: Option<u32>,
    /// Whether frames from another address than --mac are dropped [default: with --mac, unless the
    /// port learns]
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    anti_spoof: Option<bool>,
    /// The largest IP packet the guest may send, in bytes [default: no limit]
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u16>,
    /// An IP address of the guest, which the switch answers for; may be given several times, and
    /// with --mac only [default: any may be used]
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<IpAddr>,
    /// What the guest may send and receive [default: everything]
    #[command(flatten)]
    policy: PolicyArgs,
    /// The network namespace of a container, as in /run/netns/blue: the port is an interface there, a tap
    /// that slipwayd makes and takes away with the port, and not a vhost-user socket. --mtu is the
    /// interface's [default: 1500], --mac too [default: it follows from the first --ip]
    #[arg(long, value_name = "PATH", conflicts_with_all = ["socket_path", "mode", "queue_pairs", "addresses"])]
    netns: Option<PathBuf>,
    /// With --netns: the name of the interface
    #[arg(long, value_name = "NAME", requires = "netns", default_value = DEFAULT_INTERFACE)]
    ifname: String,
    /// With --netns: an address of the interface with the length of its prefix, as in 10.0.0.2/24; may be
    /// given several times [default: none, and any may be used]
    #[arg(long = "ip", value_name = "IP/LENGTH", requires = "netns")]
    ips: Vec<IpNet>,
    /// The PMD that all transmit vrings stay on, or one for each queue pair in turn, as in 0,1
    /// [default: where there is least load]
    #[arg(long = "pmd", value_name = "N", value_delimiter = ',')]
    pmds: Vec<u32>,
}

impl From<PortAddArgs> for PortSpec {
    fn from(args: PortAddArgs) -> Self {
        Self {
            name: args.name,
            vni: args.vni,
            mac: args.mac,
            socket: args.socket_path,
            mode: match args.mode {
                Mode::Listen => PortMode::Listen,
                Mode::Connect => PortMode::Connect,
            },
            queue_pairs: args.queue_pairs,
            learning: args.learning,
            mac_quota: args.mac_quota,
            anti_spoof: args.anti_spoof,
            mtu: args.mtu,
            addresses: args.addresses,
            policy: args.policy.given(),
            pmds: args.pmds,
            netns: args.netns.map(|path| NetnsSpec {
                path,
                interface: args.ifname,
                addresses: args.ips,
            }),
        }
    }
}

/// See [`PortMode`].
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// The switch listens, the VMM connects
    Listen,
    /// The VMM listens, the switch connects
    Connect,
}

/// `slipwayctl vni ...`
#[derive(Debug, Subcommand)]
pub enum VniCommand {
    /// List the segments that have settings or ports
    List,
    /// Set all settings of a segment; what is left out goes back to its default
    Set(VniSetArgs),
    /// Forget the settings of a segment
    Del {
        /// The segment
        vni: u32,
    },
}

/// `slipwayctl vni set ...`
#[derive(Debug, Args)]
pub struct VniSetArgs {
    /// The segment
    pub vni: u32,
    /// What happens to frames for addresses that are not in the FDB
    #[arg(long, value_enum, default_value_t = Unknown::Auto)]
    unknown_unicast: Unknown,
    /// How long a learned entry lives without traffic [default: from slipwayd.toml]
    #[arg(long, value_name = "SECONDS")]
    ageing: Option<u32>,
}

impl From<VniSetArgs> for VniSpec {
    fn from(args: VniSetArgs) -> Self {
        Self {
            vni: Some(args.vni),
            unknown_unicast: match args.unknown_unicast {
                Unknown::Auto => UnknownUnicast::Auto,
                Unknown::Drop => UnknownUnicast::Drop,
                Unknown::Flood => UnknownUnicast::Flood,
            },
            ageing_s: args.ageing,
        }
    }
}

/// See [`UnknownUnicast`].
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Unknown {
    /// Drop when all addresses are known, flood otherwise
    Auto,
    /// Drop and count
    Drop,
    /// Send to every other port of the segment
    Flood,
}

/// `slipwayctl fdb ...`
#[derive(Debug, Subcommand)]
pub enum FdbCommand {
    /// List entries by segment and address
    List(FdbListArgs),
    /// Add a static entry; asking again for the same entry is fine
    Add {
        /// The segment
        vni: u32,
        /// The address
        mac: Mac,
        /// The port it is behind
        port: String,
    },
    /// Remove an entry, static or learned
    Del {
        /// The segment
        vni: u32,
        /// The address
        mac: Mac,
    },
}

impl FdbCommand {
    /// The entry of `fdb add`.
    pub(crate) fn entry(vni: u32, mac: Mac, port: String) -> StaticEntry {
        StaticEntry { vni, mac, port }
    }
}

/// `slipwayctl fdb list ...`
#[derive(Debug, Args)]
pub struct FdbListArgs {
    /// Only this segment
    #[arg(long)]
    vni: Option<u32>,
    /// Only this address
    #[arg(long)]
    mac: Option<Mac>,
    /// Only this port
    #[arg(long)]
    port: Option<String>,
    /// Only entries of this kind
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// The most entries to list, 1 to 65536
    #[arg(long, value_name = "N", default_value_t = slipway_api::DEFAULT_FDB_LIST)]
    limit: u32,
}

impl From<FdbListArgs> for FdbFilter {
    fn from(args: FdbListArgs) -> Self {
        Self {
            vni: args.vni,
            mac: args.mac,
            port: args.port,
            kind: args.kind.map(|kind| match kind {
                Kind::Static => FdbKind::Static,
                Kind::Learned => FdbKind::Learned,
            }),
            limit: Some(args.limit),
        }
    }
}

/// See [`FdbKind`].
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// From the API or from a port's own address
    Static,
    /// From a frame's source address
    Learned,
}

/// `slipwayctl attachments ...`
#[derive(Debug, Args)]
pub struct AttachmentsArgs {
    /// What to do; lists all of them if it is left out
    #[command(subcommand)]
    pub command: Option<AttachmentsCommand>,
}

/// See [`AttachmentsArgs`].
#[derive(Debug, Subcommand)]
pub enum AttachmentsCommand {
    /// List attachments in the order in which they were made
    List {
        /// Only those of this sandbox
        #[arg(long)]
        owner: Option<String>,
    },
    /// Show one attachment: addresses, routes, port, labels
    Show(AttachmentName),
    /// Give back the addresses and the port of an interface; its pod has no network any more
    Rm(AttachmentName),
}

/// An interface of a pod.
#[derive(Debug, Args)]
pub struct AttachmentName {
    /// The sandbox
    pub owner: String,
    /// The interface in it
    #[arg(default_value = "eth0")]
    pub interface: String,
}

/// `slipwayctl pmd ...`
#[derive(Debug, Subcommand)]
pub enum PmdCommand {
    /// List the vrings by PMD: how much of a core each takes, and whether it is pinned
    List,
    /// Move vrings from PMDs with much load to those with little, where that pays
    Rebalance,
}

/// `slipwayctl stats ...`
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Show rates, again and again; every second unless another interval is given
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          require_equals = false, value_parser = parse_interval)]
    pub watch: Option<std::time::Duration>,
    /// With --watch: stop after this many times
    #[arg(long, value_name = "N", requires = "watch")]
    pub count: Option<u64>,
    /// Show PMD threads instead of ports: what they did within an interval, and what a frame cost in
    /// each stage of the pipeline, by bursts that were sampled
    #[arg(long)]
    pub pmd: bool,
    /// With --pmd and without --watch: how long to look
    #[arg(long, value_name = "SECONDS", requires = "pmd", conflicts_with = "watch",
          default_value = "1", value_parser = parse_interval)]
    pub interval: std::time::Duration,
}

/// `slipwayctl explain ...`
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The port that the frame would come from
    #[arg(long)]
    port: String,
    /// The whole frame in hex, from the destination address on
    #[arg(long, value_name = "FRAME", conflicts_with_all = ["src", "dst", "ethertype", "src_ip"])]
    hex: Option<String>,
    /// Source address
    #[arg(long, value_name = "MAC", required_unless_present = "hex")]
    src: Option<Mac>,
    /// Destination address
    #[arg(long, value_name = "MAC", required_unless_present = "hex")]
    dst: Option<Mac>,
    /// EtherType, as in 0x0806 [default: that of the IP addresses, or 0x88b5]
    #[arg(long, value_name = "N", value_parser = parse_u16, conflicts_with = "src_ip")]
    ethertype: Option<u16>,
    /// Source address of an IPv4 or IPv6 header
    #[arg(long, value_name = "IP", requires = "dst_ip")]
    src_ip: Option<IpAddr>,
    /// Destination address of that header
    #[arg(long, value_name = "IP", requires = "src_ip")]
    dst_ip: Option<IpAddr>,
    /// IP protocol: tcp, udp, icmp or a number [default: udp when a port is given]
    #[arg(long, value_name = "NAME|N", value_parser = parse_protocol, requires = "src_ip")]
    ip_protocol: Option<u8>,
    /// Source port of TCP or UDP
    #[arg(long, value_name = "N", requires = "src_ip")]
    src_port: Option<u16>,
    /// Destination port of TCP or UDP
    #[arg(long, value_name = "N", requires = "src_ip")]
    dst_port: Option<u16>,
}

impl From<ExplainArgs> for ExplainRequest {
    fn from(args: ExplainArgs) -> Self {
        Self {
            port: args.port,
            hex: args.hex,
            src: args.src,
            dst: args.dst,
            ethertype: args.ethertype,
            src_ip: args.src_ip,
            dst_ip: args.dst_ip,
            ip_protocol: args.ip_protocol,
            src_port: args.src_port,
            dst_port: args.dst_port,
        }
    }
}

/// Shells with a completion script.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// Bourne-again shell
    Bash,
    /// Z shell
    Zsh,
    /// Friendly interactive shell
    Fish,
}

fn parse_interval(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "write seconds, as in 0.5".to_owned())?;
    if !(0.01..=3600.0).contains(&seconds) {
        return Err("an interval is 0.01 to 3600 seconds".to_owned());
    }
    Ok(std::time::Duration::from_secs_f64(seconds))
}

fn parse_u16(text: &str) -> Result<u16, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "write 0 to 65535, or hex as in 0x0806".to_owned())
}

fn parse_protocol(text: &str) -> Result<u8, String> {
    match text {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        other => other.parse().map_err(|_| "write tcp, udp, icmp or 0 to 255".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bare_name_asks_for_a_port_with_every_default() {
        let cli = Cli::try_parse_from(["slipwayctl", "port", "add", "vm1"]).expect("parses");
        let Command::Port(PortCommand::Add(args)) = cli.command else { panic!("{cli:?}") };
        assert_eq!(PortSpec::from(args), PortSpec::named("vm1"));
    }

    #[test]
    fn a_namespace_takes_the_place_of_a_socket() {
        let words = ["slipwayctl", "port", "add", "c1", "--netns", "/run/netns/c1"];
        let parse = |more: &[&str]| Cli::try_parse_from([&words[..], more].concat());
        let cli = parse(&["--ip", "10.0.0.2/24", "--ip", "fd00::2/64"]).expect("parses");
        let Command::Port(PortCommand::Add(args)) = cli.command else { panic!("{cli:?}") };
        let netns = PortSpec::from(args).netns.expect("is given");
        assert_eq!(netns.to_string(), "eth0 in /run/netns/c1 10.0.0.2/24 fd00::2/64");
        for socket in
            [&["--mode", "connect"][..], &["--socket-path", "/a"], &["--queue-pairs", "2"]]
        {
            let kind = parse(socket).expect_err("there is no socket").kind();
            assert_eq!(kind, clap::error::ErrorKind::ArgumentConflict, "{socket:?}");
        }
        let alone = Cli::try_parse_from(["slipwayctl", "port", "add", "c1", "--ip", "10.0.0.2/24"]);
        let kind = alone.expect_err("of which interface?").kind();
        assert_eq!(kind, clap::error::ErrorKind::MissingRequiredArgument);
    }

    #[test]
    fn rules_and_defaults_make_a_policy() {
        let words = ["slipwayctl", "port", "add", "vm1", "--egress-default", "allow", "--rule"];
        let rule = "deny egress protocol tcp ports 25";
        let cli = Cli::try_parse_from([&words[..], &[rule]].concat()).expect("parses");
        let Command::Port(PortCommand::Add(args)) = cli.command else { panic!("{cli:?}") };
        let policy = PortSpec::from(args).policy.expect("is given");
        assert_eq!(policy.to_string(), format!("{rule}; default egress allow, ingress deny"));
        let error = Cli::try_parse_from([&words[..], &["deny egress port 25"]].concat());
        assert!(error.expect_err("no such condition").to_string().contains("\"port\" is not"));
    }

    #[test]
    fn watch_takes_an_interval_or_none() {
        let watch = |words: &[&str]| {
            let words = ["slipwayctl", "stats"].iter().chain(words);
            match Cli::try_parse_from(words).map(|cli| cli.command) {
                Ok(Command::Stats(args)) => args.watch.map(|interval| interval.as_millis()),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(watch(&[]), None);
        assert_eq!(watch(&["--watch"]), Some(1000));
        assert_eq!(watch(&["--watch", "0.25"]), Some(250));
        assert!(Cli::try_parse_from(["slipwayctl", "stats", "--watch", "0"]).is_err());
    }

    #[test]
    fn numbers_are_read_as_people_write_them() {
        assert_eq!(parse_u16("0x0806"), Ok(0x0806));
        assert_eq!(parse_u16("2054"), Ok(0x0806));
        assert!(parse_u16("0x10000").is_err());
        assert_eq!(parse_protocol("tcp"), Ok(6));
        assert_eq!(parse_protocol("89"), Ok(89));
        assert!(parse_protocol("quic").is_err());
    }
}
