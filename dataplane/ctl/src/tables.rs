//! Answers as people read them: aligned columns, no borders, numbers to the right.

use comfy_table::{Cell, CellAlignment, Table, presets};
use slipway_api::{
    Attachment, AttachmentList, Decision, ExplainReply, FdbList, Health, NetworkList, PmdList,
    Port, PortList, PortStats, Rebalanced, Stats, VniList,
};

use crate::pmd_rates::{PmdRates, StageCost};

/// A table whose columns marked `>` are aligned to the right; empty ones say so in words.
fn table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>, none: &str) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(heads.iter().map(|head| head.trim_start_matches('>')));
    for row in rows {
        table.add_row(row.into_iter().map(Cell::new));
    }
    if table.is_empty() {
        return format!("{none}\n");
    }
    for (index, head) in heads.iter().enumerate() {
        let column = table.column_mut(index).expect("a column for each head");
        column.set_padding(if index == 0 { (0, 1) } else { (1, 1) });
        if head.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

fn or_dash<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".to_owned(), T::to_string)
}

pub fn ports(list: &PortList) -> String {
    let row = |port: &Port| {
        let pairs = port.spec.queue_pairs;
        vec![
            port.spec.name.clone(),
            port.spec.vni.to_string(),
            or_dash(port.spec.mac.as_ref()),
            port.link.to_string(),
            pairs.to_string(),
            port.spec.mode.to_string(),
            far_side(port),
        ]
    };
    let heads = ["PORT", ">VNI", "MAC", "LINK", ">PAIRS", "MODE", "SOCKET"];
    table(&heads, list.ports.iter().map(row), "There are no ports.")
}

/// Where its guest is: a socket, or an interface in a namespace.
pub fn far_side(port: &Port) -> String {
    let netns = port.spec.netns.as_ref();
    netns.map_or_else(|| port.spec.socket.display().to_string(), ToString::to_string)
}

pub fn port(port: &Port) -> String {
    let spec = &port.spec;
    let link = match &port.reason {
        Some(reason) => format!("{}: {reason}", port.link),
        None => port.link.to_string(),
    };
    let facts = [
        ("Port", format!("{} (id {})", spec.name, port.id)),
        ("Link", link),
        ("VNI", spec.vni.to_string()),
        ("MAC", or_dash(spec.mac.as_ref())),
        ("Socket", format!("{} ({})", far_side(port), spec.mode)),
        ("Queue pairs", spec.queue_pairs.to_string()),
        ("Learning", learning(port)),
        ("Anti-spoof", yes_no(spec.anti_spoof).to_owned()),
        ("MTU", or_dash(spec.mtu.as_ref())),
        ("Addresses", all_or_dash(&spec.addresses)),
        ("Policy", policy(port)),
        ("Pinned to", all_or_dash(&spec.pmds)),
        ("Features", if port.features.is_empty() { "-".into() } else { port.features.join(" ") }),
    ];
    let mut text: String =
        facts.iter().map(|(key, value)| format!("{key:<12} {value}\n")).collect();
    for region in &port.memory {
        let (size, at) = (bytes(region.size_bytes), region.guest_address);
        text.push_str(&format!("{:<12} {size} at {at:#x}\n", "Memory"));
    }
    if !port.rings.is_empty() {
        let rows = port.rings.iter().map(|ring| {
            vec![
                ring.index.to_string(),
                ring.direction.to_string(),
                ring.size.to_string(),
                ring.state.to_string(),
                yes_no(ring.enabled).to_owned(),
                or_dash(ring.pmd.as_ref()),
            ]
        });
        text.push('\n');
        text.push_str(&table(&[">RING", "WAY", ">SIZE", "STATE", "ENABLED", ">PMD"], rows, ""));
    }
    if let Some(policy) = port.spec.policy.as_ref().filter(|policy| !policy.rules.is_empty()) {
        let rows = policy.rules.iter().zip(1..).map(|(rule, number)| {
            let number: u32 = number;
            vec![number.to_string(), rule.to_string()]
        });
        text.push('\n');
        text.push_str(&table(&[">RULE", "WHAT IT SAYS"], rows, ""));
    }
    text
}

/// How many rules, and what becomes of the rest.
pub fn policy(port: &Port) -> String {
    port.spec.policy.as_ref().map_or_else(
        || "-".to_owned(),
        |policy| {
            let (rules, from, to) =
                (policy.rules.len(), policy.egress_default, policy.ingress_default);
            format!("{rules} rules, then {from} from the guest, {to} to it")
        },
    )
}

fn learning(port: &Port) -> String {
    if port.spec.learning { format!("yes, up to {}", port.spec.mac_quota) } else { "no".to_owned() }
}

fn all_or_dash<T: ToString>(items: &[T]) -> String {
    let texts: Vec<_> = items.iter().map(ToString::to_string).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(" ") }
}

const fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

pub fn vnis(list: &VniList) -> String {
    let rows = list.vnis.iter().map(|vni| {
        let comes_to = if vni.floods_unknown { "flood" } else { "drop" };
        let unknown = vni.unknown_unicast.to_string();
        vec![
            vni.vni.to_string(),
            vni.ports.to_string(),
            if unknown == comes_to { unknown } else { format!("{unknown} ({comes_to})") },
            vni.fdb_entries.to_string(),
            format!("{} s", vni.ageing_s),
        ]
    });
    let heads = [">VNI", ">PORTS", "UNKNOWN UNICAST", ">FDB", ">AGEING"];
    table(&heads, rows, "There are no segments.")
}

pub fn fdb(list: &FdbList) -> String {
    let rows = list.entries.iter().map(|entry| {
        vec![
            entry.vni.to_string(),
            entry.mac.to_string(),
            entry.port.clone(),
            entry.kind.to_string(),
            entry.age_s.map_or_else(|| "-".to_owned(), |age| format!("{age} s")),
        ]
    });
    let mut text = table(&[">VNI", "MAC", "PORT", "KIND", ">AGE"], rows, "There are no entries.");
    let shown = list.entries.len() as u64;
    if shown < list.matching {
        text.push_str(&format!("({shown} of {}; see --limit)\n", list.matching));
    }
    text
}

pub fn networks(list: &NetworkList) -> String {
    let rows = list.networks.iter().map(|network| {
        vec![
            network.name.clone(),
            network.vni.to_string(),
            joined(&network.ranges),
            joined(&network.gateways),
            yes_no(network.host_gateway).to_owned(),
            network.mtu.to_string(),
            network.used.to_string(),
            network.capacity.saturating_sub(network.used).to_string(),
        ]
    });
    let heads = ["NETWORK", ">VNI", "RANGES", "GATEWAYS", "HOST", ">MTU", ">USED", ">FREE"];
    table(&heads, rows, "There are no networks.")
}

pub fn attachments(list: &AttachmentList) -> String {
    let rows = list.attachments.iter().map(|attachment| {
        vec![
            attachment.owner.clone(),
            attachment.interface.clone(),
            attachment.network.clone(),
            joined(&attachment.addresses),
            attachment.mac.to_string(),
            attachment.link.to_string(),
            pod(attachment),
        ]
    });
    let heads = ["OWNER", "INTERFACE", "NETWORK", "ADDRESSES", "MAC", "LINK", "POD"];
    table(&heads, rows, "Nothing is attached.")
}

/// NAMESPACE/NAME, as Kubernetes told the CNI plugin.
fn pod(attachment: &Attachment) -> String {
    let label = |key: &str| attachment.labels.get(&format!("io.kubernetes.pod.{key}"));
    match (label("namespace"), label("name")) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, name) => or_dash(name),
        (Some(_), None) => "-".to_owned(),
    }
}

pub fn attachment(attachment: &Attachment) -> String {
    let Attachment { dns, .. } = attachment;
    let route = |route: &slipway_api::AttachmentRoute| match route.gateway {
        Some(gateway) => format!("{} via {gateway}", route.destination),
        None => route.destination.to_string(),
    };
    let facts = [
        ("Attachment", format!("{} of {}", attachment.interface, attachment.owner)),
        ("Pod", pod(attachment)),
        ("Network", format!("{} (VNI {})", attachment.network, attachment.vni)),
        ("Addresses", joined(&attachment.addresses)),
        ("MAC", attachment.mac.to_string()),
        ("MTU", attachment.mtu.to_string()),
        ("Routes", joined(&attachment.routes.iter().map(route).collect::<Vec<_>>())),
        ("Nameservers", joined(&dns.nameservers)),
        ("Search", joined(&dns.search)),
        ("Port", attachment.port.clone()),
        ("Socket", format!("{} ({})", attachment.socket.display(), attachment.mode)),
        ("Queue pairs", attachment.queue_pairs.to_string()),
        ("Pinned to", all_or_dash(&attachment.pmds)),
        ("Link", attachment.link.to_string()),
    ];
    let labels = attachment.labels.iter().map(|(key, value)| ("Label", format!("{key}={value}")));
    facts.into_iter().chain(labels).map(|(key, value)| format!("{key:<12} {value}\n")).collect()
}

fn joined<T: ToString>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    if items.is_empty() { "-".to_owned() } else { items.join(", ") }
}

pub fn stats(stats: &Stats) -> String {
    let rows = stats.ports.iter().map(|port| {
        vec![
            port.port.clone(),
            port.vni.to_string(),
            port.ingress.received_frames.to_string(),
            port.ingress.forwarded_frames.to_string(),
            port.ingress.answered_frames.to_string(),
            port.ingress.drops.values().sum::<u64>().to_string(),
            port.in_hand_frames.to_string(),
            port.egress.offered_frames.to_string(),
            port.egress.delivered_frames.to_string(),
            port.egress.drops.values().sum::<u64>().to_string(),
        ]
    });
    let heads = [
        "PORT",
        ">VNI",
        ">RECEIVED",
        ">FORWARDED",
        ">ANSWERED",
        ">IN DROPS",
        ">IN HAND",
        ">OFFERED",
        ">DELIVERED",
        ">OUT DROPS",
    ];
    let faults = ring_faults(&stats.ports);
    table(&heads, rows, "There are no ports.") + &drops(&stats.ports) + &faults
}

/// Vrings that were stopped for a violation, where there are any.
fn ring_faults(ports: &[PortStats]) -> String {
    let of_port = |port: &PortStats| {
        let name = port.port.clone();
        let row = move |(fault, count): (&String, &u64)| {
            vec![name.clone(), fault.clone(), count.to_string()]
        };
        port.ring_faults.iter().map(row).collect::<Vec<_>>()
    };
    let rows: Vec<_> = ports.iter().flat_map(of_port).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("\n{}", table(&["PORT", "RING FAULT", ">TIMES"], rows, ""))
}

/// Drops by reason, where there are any.
fn drops(ports: &[PortStats]) -> String {
    let rows: Vec<_> = ports
        .iter()
        .flat_map(|port| {
            let ways = [("from guest", &port.ingress.drops), ("to guest", &port.egress.drops)];
            ways.into_iter().flat_map(move |(way, drops)| {
                drops.iter().filter(|(_, count)| **count > 0).map(move |(reason, count)| {
                    vec![port.port.clone(), way.to_owned(), reason.clone(), count.to_string()]
                })
            })
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("\n{}", table(&["PORT", "DROPPED", "REASON", ">FRAMES"], rows, ""))
}

pub fn pmds(rates: &PmdRates) -> String {
    let rows = rates.pmds.iter().map(|pmd| {
        let percent = |share: f64| format!("{share:.1} %");
        vec![
            pmd.id.to_string(),
            or_dash(pmd.core.as_ref()),
            pmd.polled_rings.to_string(),
            pmd.armed_rings.to_string(),
            percent(pmd.busy_percent),
            percent(pmd.polling_percent),
            percent(pmd.kick_check_percent),
            percent(pmd.asleep_percent),
            scaled(pmd.frames_per_s),
            tenths(pmd.frames_per_burst),
            scaled(pmd.sleeps_per_s),
            scaled(pmd.wakeups_per_s),
            some_of(&pmd.rings),
        ]
    });
    let heads = [
        ">PMD",
        ">CORE",
        ">POLLED",
        ">ARMED",
        ">BUSY",
        ">POLLING",
        ">KICKS",
        ">ASLEEP",
        ">FRAMES/s",
        ">FRAMES/BURST",
        ">SLEEPS/s",
        ">WAKEUPS/s",
        "VRINGS",
    ];
    let text = table(&heads, rows, "There are no PMD threads.");
    if rates.pmds.is_empty() { text } else { text + "\n" + &frame_costs(rates) }
}

/// Where the busy time went, by stage.
fn frame_costs(rates: &PmdRates) -> String {
    let rows = rates.pmds.iter().map(|pmd| {
        let cost = pmd.cycles_per_frame;
        let stages = cost.and_then(|cost| cost.stages);
        let stage = |of: fn(&StageCost) -> f64| tenths(stages.as_ref().map(of));
        let other = cost.and_then(|cost| Some((cost.total - cost.stages?.sum()).max(0.0)));
        vec![
            pmd.id.to_string(),
            tenths(pmd.ns_per_frame.map(|cost| cost.total)),
            tenths(cost.map(|cost| cost.total)),
            stage(|of| of.take),
            stage(|of| of.judge),
            stage(|of| of.deliver),
            stage(|of| of.settle),
            tenths(other),
            tenths(pmd.cycles_per_empty_look),
        ]
    });
    let heads = [
        ">PMD",
        ">NS/FRAME",
        ">CYCLES/FRAME",
        ">TAKE",
        ">JUDGE",
        ">DELIVER",
        ">SETTLE",
        ">OTHER",
        ">CYCLES/EMPTY LOOK",
    ];
    table(&heads, rows, "")
}

/// The vrings by PMD.
pub fn pmd_rings(list: &PmdList) -> String {
    let rows = list.pmds.iter().flat_map(|pmd| {
        pmd.rings.iter().map(|ring| {
            vec![
                pmd.id.to_string(),
                or_dash(pmd.core.as_ref()),
                ring.port.clone(),
                ring.ring.to_string(),
                format!("{:.1} %", f64::from(ring.load_permille) / 10.0),
                yes_no(ring.is_pinned).to_owned(),
            ]
        })
    });
    let heads = [">PMD", ">CORE", "PORT", ">RING", ">LOAD", "PINNED"];
    table(&heads, rows, "No vring is polled.")
}

/// The vrings that were moved.
pub fn rebalanced(outcome: &Rebalanced) -> String {
    let rows = outcome.moves.iter().map(|moved| {
        let (ring, from, to) = (moved.ring, moved.from, moved.to);
        vec![moved.port.clone(), ring.to_string(), from.to_string(), to.to_string()]
    });
    let nothing = "No vring was moved: it would not have paid.";
    table(&["PORT", ">RING", ">FROM PMD", ">TO PMD"], rows, nothing)
}

/// The first few names; a PMD may poll hundreds of vrings.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 4;
    match names {
        [] => "-".to_owned(),
        few if few.len() <= SHOWN => few.join(" "),
        many => format!("{} and {} more", many[..SHOWN].join(" "), many.len() - SHOWN),
    }
}

pub fn explanation(reply: &ExplainReply) -> String {
    let rows = reply.stages.iter().map(|stage| {
        vec![stage.stage.clone(), stage.answer.clone(), stage.detail.clone().unwrap_or_default()]
    });
    let decision = match &reply.decision {
        Decision::Output { port } => format!("leaves by port {port}"),
        Decision::Flood { ports } if ports.is_empty() => "is flooded to no port".to_owned(),
        Decision::Flood { ports } => format!("is flooded to {}", ports.join(", ")),
        Decision::Answer { mac } => format!("is answered to its sender: at {mac}"),
        Decision::Drop { reason } => format!("is dropped: {reason}"),
    };
    table(&["STAGE", "ANSWER", "DETAIL"], rows, "No stage was asked.")
        + &format!("\nThe frame {decision}.\n")
}

pub fn health(health: &Health) -> String {
    let Health { status, problems, uptime_s, ports, ports_up, ports_broken, pmds } = health;
    let mut text = format!(
        "{status}: up for {uptime_s} s, {ports} ports ({ports_up} up, {ports_broken} broken), \
         {pmds} PMD threads\n"
    );
    for problem in problems {
        text.push_str(&format!("  {problem}\n"));
    }
    text
}

/// What happened between two readings, per second.
pub fn port_rates(before: &Stats, after: &Stats, seconds: f64) -> String {
    let changes: Vec<PortStats> = after
        .ports
        .iter()
        .map(|now| {
            let then = before.ports.iter().find(|then| then.port == now.port);
            then.map_or_else(|| now.clone(), |then| difference(now, then))
        })
        .collect();
    let per_second = |count: u64| scaled(count as f64 / seconds);
    let rows = changes.iter().map(|port| {
        let dropped = port.ingress.drops.values().chain(port.egress.drops.values()).sum();
        vec![
            port.port.clone(),
            port.vni.to_string(),
            per_second(port.ingress.received_frames),
            per_second(port.ingress.received_bytes * 8),
            per_second(port.egress.delivered_frames),
            per_second(port.egress.delivered_bytes * 8),
            per_second(dropped),
        ]
    });
    let heads = ["PORT", ">VNI", ">RECEIVED/s", ">BIT/s", ">DELIVERED/s", ">BIT/s", ">DROPPED/s"];
    table(&heads, rows, "There are no ports.") + &drops(&changes)
}

/// A port that was deleted and made again starts over: its counters are below the old ones.
fn difference(now: &PortStats, then: &PortStats) -> PortStats {
    let drops = |now: &slipway_api::Drops, then: &slipway_api::Drops| {
        let change = |(reason, count): (&String, &u64)| {
            (reason.clone(), count.saturating_sub(then.get(reason).copied().unwrap_or(0)))
        };
        now.iter().map(change).collect()
    };
    let mut change = now.clone();
    let (ingress, egress) = (&mut change.ingress, &mut change.egress);
    for (count, before) in [
        (&mut ingress.received_frames, then.ingress.received_frames),
        (&mut ingress.received_bytes, then.ingress.received_bytes),
        (&mut ingress.forwarded_frames, then.ingress.forwarded_frames),
        (&mut ingress.answered_frames, then.ingress.answered_frames),
        (&mut egress.offered_frames, then.egress.offered_frames),
        (&mut egress.delivered_frames, then.egress.delivered_frames),
        (&mut egress.delivered_bytes, then.egress.delivered_bytes),
    ] {
        *count = count.saturating_sub(before);
    }
    ingress.drops = drops(&now.ingress.drops, &then.ingress.drops);
    egress.drops = drops(&now.egress.drops, &then.egress.drops);
    change
}

fn tenths(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

/// Three digits and a decimal prefix: 950, 1.25k, 14.9M.
fn scaled(value: f64) -> String {
    const PREFIXES: [&str; 5] = ["", "k", "M", "G", "T"];
    let (mut value, mut prefix) = (value, 0);
    while value >= 999.5 && prefix + 1 < PREFIXES.len() {
        value /= 1000.0;
        prefix += 1;
    }
    let digits = match value {
        _ if prefix == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}", PREFIXES[prefix])
}

/// A size in the largest binary unit that divides it.
fn bytes(value: u64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fitting = UNITS.iter().find(|(shift, _)| value > 0 && value.is_multiple_of(1 << shift));
    fitting
        .map_or_else(|| format!("{value} B"), |(shift, unit)| format!("{} {unit}", value >> shift))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use slipway_api::PmdList;

    use super::*;
    use crate::pmd_rates::rates;

    #[test]
    fn rates_have_three_digits_and_a_prefix() {
        let cases = [
            (0.0, "0"),
            (950.4, "950"),
            (999.6, "1.00k"),
            (1250.0, "1.25k"),
            (14_880_952.0, "14.9M"),
            (999_600.0, "1.00M"),
            (2.5e15, "2500T"),
        ];
        for (value, text) in cases {
            assert_eq!(scaled(value), text, "{value}");
        }
    }

    #[test]
    fn sizes_are_told_in_the_unit_that_divides_them() {
        for (value, text) in
            [(0, "0 B"), (1000, "1000 B"), (4096, "4 KiB"), (3 << 20, "3 MiB"), (1 << 32, "4 GiB")]
        {
            assert_eq!(bytes(value), text);
        }
    }

    fn port(frames: u64, dropped: u64) -> PortStats {
        let mut port = PortStats { port: "a".into(), ..PortStats::default() };
        port.ingress.received_frames = frames;
        port.ingress.received_bytes = frames * 125;
        port.ingress.drops = BTreeMap::from([("spoofed".into(), dropped)]);
        port
    }

    #[test]
    fn rates_are_the_change_over_the_time() {
        let before = Stats { ports: vec![port(1000, 5)] };
        let after = Stats { ports: vec![port(5000, 9)] };
        let text = port_rates(&before, &after, 2.0);
        let row: Vec<_> = text.lines().nth(1).expect("a row").split_whitespace().collect();
        assert_eq!(row, ["a", "0", "2.00k", "2.00M", "0", "0", "2"]);
        assert!(text.ends_with("spoofed       4\n"), "{text}");
    }

    #[test]
    fn a_port_that_was_made_anew_has_no_negative_rate() {
        let before = Stats { ports: vec![port(1000, 5)] };
        let after = Stats { ports: vec![port(10, 0)] };
        let text = port_rates(&before, &after, 1.0);
        let row: Vec<_> = text.lines().nth(1).expect("a row").split_whitespace().collect();
        assert_eq!(row, ["a", "0", "0", "0", "0", "0", "0"]);
    }

    #[test]
    fn a_pmd_that_did_nothing_has_no_ratios() {
        let list = PmdList { cycles_hz: 1000, pmds: vec![slipway_api::Pmd::default()] };
        let text = pmds(&rates(&list, &list, 1.0));
        let row: Vec<_> = text.lines().nth(1).expect("a row").split_whitespace().collect();
        let asleep = ["0", "-", "0", "0", "0.0", "%", "0.0", "%", "0.0", "%", "100.0", "%"];
        assert_eq!(row, [&asleep[..], &["0", "-", "0", "0", "-"]].concat());
        let costs: Vec<_> = text.lines().nth(4).expect("a row").split_whitespace().collect();
        assert_eq!(costs, ["0", "-", "-", "-", "-", "-", "-", "-", "-"]);
    }
}
