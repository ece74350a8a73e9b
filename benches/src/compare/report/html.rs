//! One page with all of it, which needs no other file.

use super::svg::escape;
use super::table::{self, Rows};
use super::{charts, flow_charts, flow_table};
use crate::compare::flows::experiment::Endpoints;
use crate::compare::samples::Samples;

const STYLE: &str = "body{font-family:sans-serif;max-width:75em;margin:2em auto;padding:0 1em;\
line-height:1.4}table{border-collapse:collapse;font-size:80%;margin:1em 0}td,th{border:1px solid \
#ccc;padding:.2em .5em;text-align:right}td:first-child,th:first-child{text-align:left}\
svg{max-width:100%;height:auto;margin:.5em 0}.MISSED{background:#f6d5d0}.met{background:#d5ecd8}";

/// How things are measured, a paragraph each.
const METHOD: &[&str] = &[
    "Everything happens on a host of its own: a mount and a network namespace that nobody else \
     sees and that are gone with the program. Arms take turns in each round, in an order that \
     gives every arm every place (a Williams design); for each burst the host is prepared anew \
     (bridge, uplink, daemon: not timed). One round with the fewest pods warms up and is thrown \
     away.",
    "A burst asks for all pods at once; worker threads take them one after the other, each \
     pod through the stages NetNS (a network namespace with a name), AddCNI (the interface in it, \
     with address and route) and AttachIf (a VM's end: a tap, a macvtap's file, or a vhost-user \
     handshake by a stub VMM). 'All ready' is the time until the last pod is ready, 'pod p50' \
     and 'pod p99' the times since the burst's begin until half and 99 % of them are, waiting for a \
     worker included; stages are the middle pod's own. 'Teardown' ends when the kernel has taken \
     back every network namespace.",
    "CPU is the user and system time of the set-up: this program with its workers and stub VMMs, \
     the plugins and tools that it ran, and the arm's daemons, polling included. Work that the \
     kernel does in threads of its own is not in it. Slab and memory are what /proc/meminfo grew by; \
     page cache and shared memory, thus guests' memory, are left out.",
    "The data plane of container endpoints: each client and each server is a thread of this program in its \
     pod's namespace, so that all of a window begin and end together; throughput is what arrived at the \
     servers in the window. In each round an arm is set up once and serves all points, those with the \
     fewest pairs first, pods being added as points need them. Flows of a fixed size have a connection \
     each, timed from connect to the server's end; clients send flow after flow until the slowest has \
     done its share, and each client's first ones count. Retransmissions are TCP_INFO's. CPU is the whole \
     machine's by /proc/stat, polling included: cycles are those of the time-stamp counter. A \
     window of which the hypervisor took more than 2 % is repeated twice at most, and left out if that does \
     not help; the column 'discarded' counts both.",
    "An interval is that of 95 % by a bootstrap of the median with a fixed seed. With few rounds it is \
     little more than the range of the samples.",
];

/// What to keep in mind.
const CAVEATS: &[&str] = &[
    "The kernel's arms are made by one lean process with the fewest messages: a lower bound of what \
     a runtime does. Only the cni- arms, ovs arms and slipway start programs for each pod.",
    "In every arm the pod's lo stays down: container engines set it up for every pod of any \
     network, at the same cost.",
    "These are pods without containers and VMs without guests: cgroups and the start of a VM come \
     on top, in every arm.",
    "tc-routing sends what the pod sends to the uplink, and what comes in there for the pod's \
     address to the pod, by u32 filters and without a bridge.",
    "Open vSwitch without its kernel module reads and writes the pods' veth devices as raw sockets do. It \
     does not fill checksums in, so its pods' kernels do, and with that segmentation offload is off.",
    "A polling thread of slipway has the last core for its own, as on a node that is set up for it, and \
     its pods the others; pods of the other arms have all cores. So all arms have the same cores \
     in all, and on few of them that is a large share. The figure of pinning shows what sharing does.",
    "On a machine that others use, memory and CPU of the kernel's threads are theirs, too; the \
     hypervisor's share is in samples.json for each burst (stolen_ms).",
];

/// The page.
pub fn page(samples: &Samples) -> String {
    let parameters = &samples.parameters;
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>slipway: comparison</title><style>{STYLE}</style></head><body>\n\
         <h1>Ways to connect pods: slipway and others</h1>\n<p>{}</p>\n\
         <p>{} rounds after one to warm up; {} worker threads; seed {}; measured {} ms after the begin of 1970, UTC.</p>\n",
        escape(&samples.machine.to_string()),
        parameters.rounds,
        parameters.parallel,
        parameters.seed,
        samples.machine.unix_ms
    );
    let targets = table::targets(samples);
    if targets.len() > 1 {
        html += "<h2>Targets</h2>\n";
        html += &table_of(&targets);
    }
    let claims = table::claims(samples);
    if claims.len() > 1 {
        html += "<h2>What the literature says</h2>\n";
        html += &table_of(&claims);
    }
    for kind in flow_table::kinds(samples) {
        html += &flows(samples, kind);
    }
    if !parameters.pods.is_empty() {
        html += &startup(samples);
    }
    html += &failures(samples);
    for (title, paragraphs) in [("Method", METHOD), ("Caveats", CAVEATS)] {
        html += &format!("<h2>{title}</h2>\n");
        for paragraph in paragraphs {
            html += &format!("<p>{}</p>\n", escape(paragraph));
        }
    }
    html + "</body></html>\n"
}

/// Figures of the data plane, each with its table and its pictures.
fn flows(samples: &Samples, kind: Endpoints) -> String {
    let mut html = format!("<h2>The data plane: {}</h2>\n", kind.words());
    let congestion = &samples.parameters.congestion_control;
    html += &format!("<p>Congestion control of the kernel's TCP: {}</p>\n", escape(congestion));
    for experiment in samples.experiments() {
        if experiment.endpoints != kind {
            continue;
        }
        html += &format!("<h3>{}</h3>\n", escape(experiment.title));
        html += &table_of(&flow_table::rows(samples, experiment));
        for chart in flow_charts::of(samples, experiment) {
            html += &format!("<figure>\n{}</figure>\n", chart.svg);
        }
    }
    html
}

fn startup(samples: &Samples) -> String {
    let mut html = "<h2>Start-up</h2>\n".to_owned();
    for &pods in &samples.parameters.pods {
        html += &format!("<h3>{pods} pods at once</h3>\n");
        html += &table_of(&table::figures(samples, pods));
    }
    for chart in charts::startup(samples) {
        html += &format!("<figure>\n{}</figure>\n", chart.svg);
    }
    html += "<h2>rtnetlink and RTNL, for a pod</h2>\n";
    html += &table_of(&table::counts(samples));
    html += "<ul>\n";
    let methods = &samples.methods;
    for (what, how) in [
        ("rtnetlink messages", &methods.messages),
        ("RTNL acquisitions and hold time", &methods.acquisitions),
        ("RTNL waits", &methods.waits),
    ] {
        html += &format!("<li>{what}: {}</li>\n", escape(how));
    }
    html += "</ul>\n<p>By thread, stage or program, for all pods of the pass:</p>\n<ul>\n";
    for arm in samples.arms() {
        let who = escape(&table::who(samples, arm));
        html += &format!(
            "<li>{}: {}</li>\n",
            arm.name(),
            if who.is_empty() { "nothing" } else { &who }
        );
    }
    html += "</ul>\n";
    html
}

/// The first of each arm, in the words of whoever refused.
fn failures(samples: &Samples) -> String {
    let mut html = "<h2>Failures and absences</h2>\n<ul>\n".to_owned();
    for (arm, reason) in &samples.absent {
        html += &format!("<li>{}: {}</li>\n", arm.name(), escape(reason));
    }
    for absence in &samples.absences {
        let (arm, of) = (absence.arm.name(), absence.endpoints.words());
        html += &format!("<li>{arm} ({of}): {}</li>\n", escape(&absence.reason));
    }
    for failure in samples.uncounted.iter().chain(&samples.failures) {
        html += &format!("<li>{}</li>\n", escape(failure));
    }
    for arm in samples.arms() {
        let count = samples.failures_of(arm);
        let of_arm = samples.bursts.iter().filter(|sample| sample.arm == arm);
        if let Some(first) = of_arm.flat_map(|sample| &sample.burst.failures).next() {
            html +=
                &format!("<li>{}: {count} failures; first: {}</li>\n", arm.name(), escape(first));
        }
    }
    for measurement in &samples.measurements {
        if let Some(first) = measurement.failures.first() {
            let (arm, id, x) = (measurement.arm.name(), &measurement.experiment, &measurement.x);
            let (round, count) = (measurement.round + 1, measurement.failures.len());
            html += &format!(
                "<li>{arm}, {id} at {x}, round {round}: {count} failures; first: {}</li>\n",
                escape(first)
            );
        }
    }
    if !html.contains("<li>") {
        html += "<li>none</li>\n";
    }
    html + "</ul>\n"
}

fn table_of(rows: &Rows) -> String {
    let mut html = "<table>\n".to_owned();
    for (index, row) in rows.iter().enumerate() {
        let tag = if index == 0 { "th" } else { "td" };
        html += "<tr>";
        for cell in row {
            let class = match cell.as_str() {
                "met" | "MISSED" => format!(" class=\"{cell}\""),
                _ => String::new(),
            };
            html += &format!("<{tag}{class}>{}</{tag}>", escape(cell));
        }
        html += "</tr>\n";
    }
    html + "</table>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::charts;
    use crate::compare::report::tests::{samples, with_flows};

    #[test]
    fn the_page_has_every_table_and_picture_and_needs_nothing_else() {
        // Too slow for one of the targets.
        let samples = Samples { bursts: samples(180).bursts, ..with_flows(30.0) };
        let charts = charts::all(&samples);
        let page = page(&samples);
        assert_eq!(page.matches("<svg").count(), charts.len());
        assert_eq!(page.matches("<table>").count(), 2 + samples.parameters.pods.len() + 3);
        assert!(page.contains("class=\"met\">met<") && page.contains("class=\"MISSED\">MISSED<"));
        assert!(page.contains("not on this kernel: ipvlan"));
        assert!(page.contains("kata was not counted: &lt;busy&gt;"));
        assert!(page.contains("1 failures; first: pod 0: &lt;refused&gt;"), "{page}");
        for outside in ["href=", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        for tag in ["table", "ul", "figure", "body", "p"] {
            let count = |text: &str| page.matches(text).count();
            let opened = count(&format!("<{tag}>")) + count(&format!("<{tag} "));
            assert_eq!(opened, count(&format!("</{tag}>")), "{tag}");
        }
    }
}
