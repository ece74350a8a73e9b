//! `slipwayctl port`: ports and their policies.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use slipway_api::{
    DEFAULT_INTERFACE, Mac, NetnsSpec, Policy, PolicyAction, PolicyRule, PortMode, PortSpec,
};

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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

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
}
