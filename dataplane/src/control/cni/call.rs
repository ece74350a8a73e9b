//! What is asked, from the environment (CNI specification 1.1, section 2, "Parameters").

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use slipway_api::{Mac, check_interface, check_owner};
use slipway_cni::{CniError, Code, STARTED_MS};

/// What is to be done; VERSION is answered by the plugin itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it; again and again, if need be.
    Del,
    /// Say whether it is still attached as it was.
    Check,
    /// Detach all that are not named.
    Gc,
    /// Say whether an ADD could be served.
    Status,
}

impl Command {
    /// The first version of the specification that has it.
    pub const fn since(self) -> &'static str {
        match self {
            Self::Add | Self::Del => "0.3.1",
            Self::Check => "0.4.0",
            Self::Gc | Self::Status => "1.1.0",
        }
    }
}

/// A container's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The container, which for a pod is its sandbox.
    pub container: String,
    /// The name of the interface in it.
    pub interface: String,
    /// Its network namespace, told back and not entered.
    pub netns: Option<PathBuf>,
}

/// What `CNI_ARGS` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// Addresses asked for (`IP`).
    pub addresses: Vec<IpAddr>,
    /// MAC address asked for (`MAC`).
    pub mac: Option<Mac>,
    /// Who the pod is, as labels of its attachment.
    pub labels: BTreeMap<String, String>,
}

/// The environment, by name.
pub type Environment = BTreeMap<String, Vec<u8>>;

/// Keys of `CNI_ARGS` that become labels; the labels are those that container engines give pods.
const LABELS: [(&str, &str); 4] = [
    ("K8S_POD_NAME", "io.kubernetes.pod.name"),
    ("K8S_POD_NAMESPACE", "io.kubernetes.pod.namespace"),
    ("K8S_POD_UID", "io.kubernetes.pod.uid"),
    ("K8S_POD_INFRA_CONTAINER_ID", "io.kubernetes.pod.infra-container-id"),
];

fn bad(name: &str, value: &str, rule: &str) -> CniError {
    CniError::new(Code::BadEnvironment, format!("{name}={value:?} cannot be used"), rule)
}

fn get<'a>(environment: &'a Environment, name: &str) -> Result<Option<&'a str>, CniError> {
    match environment.get(name) {
        None => Ok(None),
        Some(value) => match std::str::from_utf8(value) {
            Ok("") => Ok(None),
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(bad(name, &String::from_utf8_lossy(value), "It must be UTF-8")),
        },
    }
}

fn require<'a>(environment: &'a Environment, name: &str) -> Result<&'a str, CniError> {
    get(environment, name)?.ok_or_else(|| {
        CniError::new(
            Code::BadEnvironment,
            format!("{name} is not set"),
            "slipway-cni is a CNI plugin: container engines run it",
        )
    })
}

/// What is to be done.
pub fn command(environment: &Environment) -> Result<Command, CniError> {
    match require(environment, "CNI_COMMAND")? {
        "ADD" => Ok(Command::Add),
        "DEL" => Ok(Command::Del),
        "CHECK" => Ok(Command::Check),
        "GC" => Ok(Command::Gc),
        "STATUS" => Ok(Command::Status),
        other => Err(bad("CNI_COMMAND", other, "It is ADD, DEL, CHECK, GC, STATUS or VERSION")),
    }
}

/// When the plugin was started, in milliseconds since 1970, as it says itself.
pub fn started_ms(environment: &Environment) -> Result<u64, CniError> {
    let value = require(environment, STARTED_MS)?;
    value.parse().map_err(|_| bad(STARTED_MS, value, "It is milliseconds since 1970"))
}

/// Whose interface it is about. Only a DEL may lack the namespace: it may be gone.
pub fn target(environment: &Environment, command: Command) -> Result<Target, CniError> {
    let container = require(environment, "CNI_CONTAINERID")?;
    check_owner(container).map_err(|error| bad("CNI_CONTAINERID", container, &error.message))?;
    let interface = require(environment, "CNI_IFNAME")?;
    check_interface(interface).map_err(|error| bad("CNI_IFNAME", interface, &error.message))?;
    let netns = match command {
        Command::Del => get(environment, "CNI_NETNS")?,
        _ => Some(require(environment, "CNI_NETNS")?),
    };
    if let Some(netns) = netns.filter(|netns| !Path::new(netns).is_absolute()) {
        return Err(bad("CNI_NETNS", netns, "It is an absolute path"));
    }
    Ok(Target {
        container: container.to_owned(),
        interface: interface.to_owned(),
        netns: netns.map(PathBuf::from),
    })
}

/// What the container engine adds: `KEY=VALUE;KEY=VALUE`. A key that is not known is refused unless
/// `IgnoreUnknown` says otherwise, as other plugins do.
pub fn arguments(environment: &Environment) -> Result<Arguments, CniError> {
    let mut arguments = Arguments::default();
    let Some(text) = get(environment, "CNI_ARGS")? else { return Ok(arguments) };
    let mut pairs = Vec::new();
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let split = pair.split_once('=');
        pairs.push(split.ok_or_else(|| bad("CNI_ARGS", pair, "It is made of KEY=VALUE; pairs"))?);
    }
    let ignores_unknown = pairs.iter().any(|(key, value)| {
        *key == "IgnoreUnknown" && matches!(value.to_ascii_lowercase().as_str(), "1" | "true")
    });
    for (key, value) in pairs {
        match key {
            "IgnoreUnknown" => {}
            _ if value.is_empty() => {}
            "IP" => {
                let addresses = value.split(',').map(address).collect::<Option<_>>();
                arguments.addresses = addresses
                    .ok_or_else(|| bad("CNI_ARGS IP", value, "Write addresses, as in 10.88.0.7"))?;
            }
            "MAC" => {
                let mac = value.parse();
                let rule = "Write it as 52:54:00:12:34:56";
                arguments.mac = Some(mac.map_err(|_| bad("CNI_ARGS MAC", value, rule))?);
            }
            _ => match LABELS.iter().find(|(known, _)| *known == key) {
                Some((_, label)) => {
                    arguments.labels.insert((*label).to_owned(), value.to_owned());
                }
                None if ignores_unknown => {}
                None => {
                    return Err(bad(
                        "CNI_ARGS",
                        key,
                        "This key is not known; IgnoreUnknown=1 has such keys ignored",
                    ));
                }
            },
        }
    }
    Ok(arguments)
}

/// An address, with or without the length of its prefix, which slipwayd knows.
pub fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    text.parse().ok().or_else(|| text.parse::<IpNet>().ok().map(|net| net.addr()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect()
    }

    fn arguments_of(text: &str) -> Result<Arguments, CniError> {
        arguments(&environment(&[("CNI_ARGS", text)]))
    }

    #[test]
    fn a_pod_s_arguments_become_labels_and_requests() {
        let got = arguments_of(
            "IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop;K8S_POD_UID=;Color=red;\
             IP=10.88.0.7/16,fd00::7;MAC=02:00:00:00:00:07",
        )
        .expect("good");
        let labels = [("io.kubernetes.pod.name", "web"), ("io.kubernetes.pod.namespace", "shop")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(got.labels, BTreeMap::from(labels));
        assert_eq!(got.mac, Some(Mac([2, 0, 0, 0, 0, 7])));
        assert_eq!(
            got.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.88.0.7", "fd00::7"]
        );
    }

    #[test]
    fn arguments_that_make_no_sense_are_refused() {
        for text in ["Color=red", "IP=here", "IP=10.0.0.1,", "MAC=02:00", "nothing"] {
            let error = arguments_of(text).expect_err(text);
            assert_eq!(error.code, Code::BadEnvironment, "{text}: {error:?}");
            assert!(error.message.contains("CNI_ARGS"), "{error:?}");
        }
        assert_eq!(arguments_of("").expect("nothing"), Arguments::default());
    }

    #[test]
    fn what_a_command_needs_is_asked_for_by_name() {
        let all =
            [("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/var/run/netns/x")];
        for missing in 0..all.len() {
            let mut some = all.to_vec();
            let (name, _) = some.remove(missing);
            let error = target(&environment(&some), Command::Add).expect_err(name);
            assert_eq!(
                (error.code, error.message),
                (Code::BadEnvironment, format!("{name} is not set"))
            );
        }
        target(&environment(&all[..2]), Command::Del).expect("the namespace may be gone");
        for (name, value) in [
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_IFNAME", "an-interface-name"),
            ("CNI_IFNAME", "a b"),
            ("CNI_NETNS", "netns/x"),
        ] {
            let mut changed = environment(&all);
            changed.insert(name.to_owned(), value.into());
            let error = target(&changed, Command::Add).expect_err(value);
            assert!(error.message.starts_with(name), "{error:?}");
        }
    }

    #[test]
    fn commands_are_spelled_as_in_the_specification() {
        let of = |text| command(&environment(&[("CNI_COMMAND", text)]));
        assert_eq!(of("ADD"), Ok(Command::Add));
        assert_eq!(of("add").expect_err("refused").code, Code::BadEnvironment);
        assert_eq!(
            command(&environment(&[])).expect_err("refused").message,
            "CNI_COMMAND is not set"
        );
    }
}
