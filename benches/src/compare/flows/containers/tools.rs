//! The tools of the literature, in the pods' namespaces: sockperf for round trips, iperf3 for a check of our
//! own streams, ethtool for offloads.

use std::ffi::OsString;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::streams::push;
use crate::compare::flows::measurement::Reading;
use crate::compare::pod::{INTERFACE, Pod};
use crate::peer::program::{Service, find, output};

const PORT: &str = "11111";
/// For a server to listen. It says when it does, but into a pipe and late.
const PAUSE: Duration = Duration::from_millis(200);

/// The program, or what to do without it.
fn installed(program: &'static str) -> Result<std::path::PathBuf> {
    find(program).with_context(|| format!("{program} is not installed; apt-get install {program}"))
}

/// `program` in a pod's namespace.
fn within(pod: &Pod, program: &'static str) -> Result<(std::path::PathBuf, Vec<OsString>)> {
    let mut net = OsString::from("--net=");
    net.push(pod.path());
    Ok((installed("nsenter")?, vec![net, installed(program)?.into()]))
}

fn service(pod: &Pod, program: &'static str, args: &[&str], cores: &[usize]) -> Result<Service> {
    let (nsenter, mut words) = within(pod, program)?;
    words.extend(args.iter().map(OsString::from));
    let service = Service::start(program, &nsenter, words, &[], cores, None)?;
    thread::sleep(PAUSE);
    Ok(service)
}

fn run(pod: &Pod, program: &'static str, args: &[&str]) -> Result<String> {
    let (nsenter, words) = within(pod, program)?;
    output(Command::new(nsenter).args(words).args(args))
}

/// The same on `cores`.
fn run_on(cores: &[usize], pod: &Pod, program: &'static str, args: &[&str]) -> Result<String> {
    let (nsenter, words) = within(pod, program)?;
    let list: Vec<_> = cores.iter().map(usize::to_string).collect();
    let mut command = Command::new(installed("taskset")?);
    output(command.args(["-c", &list.join(",")]).arg(nsenter).args(words).args(args))
}

/// Requests of 64 B and their responses, one after the other, for a second.
pub fn round_trips(client: &Pod, server: &Pod, tcp: bool, cores: &[usize]) -> Result<Reading> {
    let address = std::net::Ipv4Addr::from(server.address()).to_string();
    let mut at = vec!["-i", address.as_str(), "-p", PORT];
    if tcp {
        at.push("--tcp");
    }
    let listening = service(server, "sockperf", &[&["server"], at.as_slice()].concat(), cores)?;
    let rest = ["-t", "1", "-m", "64", "--full-rtt"];
    let printed =
        run_on(cores, client, "sockperf", &[&["ping-pong"], at.as_slice(), &rest].concat());
    listening.stop()?;
    let printed = printed?;
    let mut reading = Reading::default();
    for (key, percentile) in [("p50_us", "50.000"), ("p99_us", "99.000"), ("p999_us", "99.900")] {
        let us = percentile_of(&printed, percentile);
        reading
            .value(key, us.with_context(|| format!("sockperf told no p{percentile}:\n{printed}"))?);
    }
    Ok(reading)
}

/// From a line as `sockperf: ---> percentile 99.900 =   52.310`.
fn percentile_of(printed: &str, percentile: &str) -> Option<f64> {
    let name = format!("percentile {percentile} =");
    let line = printed.lines().find_map(|line| Some(line.split_once(&name)?.1))?;
    line.trim().parse().ok()
}

/// iperf3 between each pair at once, for a second; the sum of what the receivers say.
pub fn iperf3(pairs: &[(&Pod, &Pod)], cores: &[usize]) -> Result<Reading> {
    let mut servers = Vec::new();
    for (_, server) in pairs {
        servers.push(service(server, "iperf3", &["-s", "-p", PORT], cores)?);
    }
    let (rates, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for (client, server) in pairs {
            let (rates, failures) = (&rates, &failures);
            scope.spawn(move || match iperf3_client(client, server, cores) {
                Ok(rate) => push(rates, rate),
                Err(error) => push(failures, format!("{error:#}")),
            });
        }
    });
    for server in servers {
        server.stop()?;
    }
    let failures = failures.into_inner().unwrap_or_default();
    let mut reading = Reading { failures, ..Reading::default() };
    let rates = rates.into_inner().unwrap_or_default();
    if rates.len() == pairs.len() {
        reading.value("gbit_per_s", rates.iter().sum());
    }
    Ok(reading)
}

fn iperf3_client(client: &Pod, server: &Pod, cores: &[usize]) -> Result<f64> {
    let address = std::net::Ipv4Addr::from(server.address()).to_string();
    let printed = run_on(cores, client, "iperf3", &["-c", &address, "-p", PORT, "-t", "1", "-J"])?;
    let report: Value = serde_json::from_str(&printed).context("iperf3 told no JSON")?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.with_context(|| format!("iperf3 told no rate: {}", report["error"]))? / 1e9)
}

/// Turns the offloads of a pod's interface off, or on again, one by one: not every device has each.
pub fn set_offloads(pod: &Pod, on: bool) -> Result<()> {
    let word = if on { "on" } else { "off" };
    // Segmentation first when off: it needs checksums.
    let names =
        if on { ["tx", "sg", "tso", "gso", "gro"] } else { ["gro", "gso", "tso", "sg", "tx"] };
    let refused: Vec<_> = names
        .iter()
        .filter(|name| run(pod, "ethtool", &["-K", INTERFACE, name, word]).is_err())
        .collect();
    if refused.contains(&&"gso") {
        bail!("ethtool could not turn segmentation {word} at {INTERFACE} of {}", pod.name);
    }
    Ok(())
}

/// Lets a pod's kernel fill checksums in. veth leaves them to whoever takes a frame from it, and Open
/// vSwitch's userspace datapath hands frames on as they are.
pub fn fill_checksums(pod: &Pod) -> Result<()> {
    run(pod, "ethtool", &["-K", INTERFACE, "tx", "off"]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_read_as_sockperf_prints_them() {
        let printed = "sockperf: Round trip is 25.1 usec\nsockperf: ---> percentile 99.990 =  100.5\n\
                       sockperf: ---> percentile 99.900 =   52.310\nsockperf: ---> percentile 50.000 =   21.0\n";
        assert_eq!(percentile_of(printed, "99.900"), Some(52.31));
        assert_eq!(percentile_of(printed, "50.000"), Some(21.0));
        assert_eq!(percentile_of(printed, "99.000"), None);
    }
}
