//! `/metrics`: the switch's counters as OpenMetrics text, read when Prometheus asks.
//!
//! Nothing is counted twice: a scrape takes the same snapshot as `/v1/stats` and writes it down. Only
//! what the API server itself does (requests, refused peers) is counted here.
//!
//! # Bounds
//! Labels are names of ports and networks, drop reasons and small numbers, all bounded by the configuration; no label
//! comes from a guest.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};
use slipway_api::{
    Direction, HealthStatus, LinkState, Network, PmdList, PmdRing, PortStats, Version, Vni,
};

use super::Control;

/// The media type of the reply.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the API server counts of its own work.
#[derive(Debug, Default)]
pub struct ApiCounters {
    peers_refused: AtomicU64,
    /// By HTTP status: at most the dozen or so that the server sends.
    requests: Mutex<BTreeMap<u16, u64>>,
}

impl ApiCounters {
    /// A peer was refused for who it is.
    pub fn peer_refused(&self) {
        self.peers_refused.fetch_add(1, Relaxed);
    }

    /// How many peers were refused.
    pub fn peers_refused(&self) -> u64 {
        self.peers_refused.load(Relaxed)
    }

    /// A request was answered with this HTTP status.
    pub fn request_answered(&self, status: u16) {
        // A count is a count even if another holder of the lock died.
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() +=
            1;
    }

    fn requests(&self) -> BTreeMap<u16, u64> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All metrics, as text.
pub fn render(control: &dyn Control, counters: &ApiCounters) -> String {
    let mut registry = Registry::with_prefix("slipway");
    registry.register_collector(Box::new(Snapshot::take(control, counters)));
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("writing to a String cannot fail");
    text
}

#[derive(Debug)]
struct Snapshot {
    ports: Vec<PortStats>,
    links: Vec<(String, LinkState)>,
    vnis: Vec<Vni>,
    networks: Vec<Network>,
    pmds: PmdList,
    is_healthy: bool,
    uptime_s: u64,
    version: Version,
    peers_refused: u64,
    requests: BTreeMap<u16, u64>,
}

impl Snapshot {
    fn take(control: &dyn Control, counters: &ApiCounters) -> Self {
        let health = control.health();
        let ports = control.list_ports().ports;
        Self {
            ports: control.stats().ports,
            links: ports.into_iter().map(|port| (port.spec.name, port.link)).collect(),
            vnis: control.list_vnis().vnis,
            networks: control.list_networks().networks,
            pmds: control.pmds(),
            is_healthy: health.status == HealthStatus::Ok,
            uptime_s: health.uptime_s,
            version: control.version(),
            peers_refused: counters.peers_refused(),
            requests: counters.requests(),
        }
    }
}

type Labels = Vec<(&'static str, String)>;

/// Writes one metric with a sample for each item.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn counters(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                metric.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            } else {
                metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            }
        }
        Ok(())
    }

    fn gauges<V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                metric.encode_gauge(&value)?;
            } else {
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.vports(&mut writer)?;
        self.pmds(&mut writer)?;
        self.daemon(&mut writer)
    }
}

impl Snapshot {
    fn vports(&self, writer: &mut Writer<'_>) -> fmt::Result {
        type Field = fn(&PortStats) -> u64;
        let counters: [(&str, &str, Field); 7] = [
            ("vport_received_frames", "Frames taken from the guest", |p| p.ingress.received_frames),
            ("vport_received_bytes", "Bytes taken from the guest", |p| p.ingress.received_bytes),
            ("vport_forwarded_frames", "Frames that went on", |p| p.ingress.forwarded_frames),
            ("vport_answered_frames", "Frames answered by us", |p| p.ingress.answered_frames),
            ("vport_offered_frames", "Frames meant for the guest", |p| p.egress.offered_frames),
            ("vport_delivered_frames", "Frames given to the guest", |p| p.egress.delivered_frames),
            ("vport_delivered_bytes", "Bytes given to the guest", |p| p.egress.delivered_bytes),
        ];
        for (name, help, field) in counters {
            let samples = self.ports.iter().map(|port| (vport(port), field(port)));
            writer.counters(name, help, samples)?;
        }
        let drops = self.ports.iter().flat_map(|port| {
            let directions = [("ingress", &port.ingress.drops), ("egress", &port.egress.drops)];
            directions.into_iter().flat_map(move |(direction, drops)| {
                drops.iter().map(move |(reason, count)| {
                    let direction = ("direction", direction.to_owned());
                    ([vport(port), vec![direction, ("reason", reason.clone())]].concat(), *count)
                })
            })
        });
        writer.counters("vport_drops", "Frames dropped, by reason", drops)?;
        let faults = self.ports.iter().flat_map(|port| {
            let labels = |fault: &str| [vport(port), vec![("fault", fault.to_owned())]].concat();
            port.ring_faults.iter().map(move |(fault, count)| (labels(fault), *count))
        });
        writer.counters("vport_ring_faults", "Vrings stopped for a violation, by fault", faults)?;
        let in_hand = self.ports.iter().map(|port| (vport(port), port.in_hand_frames));
        writer.gauges("vport_in_hand_frames", "Frames whose fate is not settled", in_hand)?;
        let links = self
            .links
            .iter()
            .map(|(name, link)| (vec![("vport", name.clone())], u64::from(*link == LinkState::Up)));
        writer.gauges("vport_up", "Whether frames can flow", links)?;
        let entries = self
            .vnis
            .iter()
            .map(|vni| (vec![("vni", vni.vni.to_string())], u64::from(vni.fdb_entries)));
        writer.gauges("fdb_entries", "Forwarding entries of a segment", entries)?;
        let addresses = self.networks.iter().flat_map(|network| {
            let Network { name, used, capacity, .. } = network;
            [("used", *used), ("free", capacity.saturating_sub(*used))]
                .map(|(state, n)| (vec![("network", name.clone()), ("state", state.into())], n))
        });
        let help = "Addresses of a network, of its range with the fewest free";
        writer.gauges("network_addresses", help, addresses)
    }

    fn pmds(&self, writer: &mut Writer<'_>) -> fmt::Result {
        type Field = fn(&slipway_api::Pmd) -> u64;
        let counters: [(&str, &str, Field); 13] = [
            ("pmd_busy_cycles", "Clock ticks in rounds that found frames", |p| p.busy_cycles),
            ("pmd_idle_cycles", "Clock ticks in rounds that found none", |p| p.idle_cycles),
            ("pmd_polls", "Looks at a vring", |p| p.polls),
            ("pmd_bursts", "Looks that found frames", |p| p.bursts),
            ("pmd_frames", "Frames taken", |p| p.frames),
            ("pmd_sleeps", "Times the thread went to sleep", |p| p.sleeps),
            ("pmd_wakeups", "Times it was woken", |p| p.wakeups),
            ("pmd_kick_check_cycles", "Clock ticks looking for kicks", |p| p.kick_check_cycles),
            ("pmd_sleep_cycles", "Clock ticks slept", |p| p.sleep_cycles),
            ("pmd_sampled_bursts", "Bursts measured by stage", |p| p.samples.bursts),
            ("pmd_sampled_frames", "Frames of those", |p| p.samples.frames),
            ("pmd_sampled_empty_looks", "Empty looks measured", |p| p.samples.empty_looks),
            ("pmd_sampled_empty_cycles", "Clock ticks of those", |p| p.samples.empty_cycles),
        ];
        for (name, help, field) in counters {
            let samples = self.pmds.pmds.iter().map(|pmd| (vec![pmd_label(pmd)], field(pmd)));
            writer.counters(name, help, samples)?;
        }
        let stages = self.pmds.pmds.iter().flat_map(|pmd| {
            let s = &pmd.samples;
            let cycles = [s.take_cycles, s.judge_cycles, s.deliver_cycles, s.settle_cycles];
            let label = |stage: &str| vec![pmd_label(pmd), ("stage", stage.to_owned())];
            ["take", "judge", "deliver", "settle"].map(label).into_iter().zip(cycles)
        });
        let help = "Clock ticks of each stage in the sampled bursts";
        writer.counters("pmd_sampled_stage_cycles", help, stages)?;
        let rings = self.pmds.pmds.iter().map(|pmd| (vec![pmd_label(pmd)], pmd.rings.len() as u64));
        writer.gauges("pmd_rings", "Vrings the thread polls", rings)?;
        let states = self.pmds.pmds.iter().flat_map(|pmd| {
            [("polled", pmd.polled_rings), ("armed", pmd.armed_rings)]
                .map(|(state, n)| (vec![pmd_label(pmd), ("state", state.to_owned())], n))
        });
        writer.gauges("pmd_ring_states", "Vrings polled and vrings armed now", states)?;
        let loads = self.pmds.pmds.iter().flat_map(|pmd| {
            let load =
                |ring: &PmdRing| (ring_labels(pmd, ring), f64::from(ring.load_permille) / 1000.0);
            pmd.rings.iter().map(load)
        });
        let help = "Share of a core's time that a vring took of late, of those that threads poll";
        writer.gauges("vring_load_ratio", help, loads)?;
        let hz = [(Labels::new(), self.pmds.cycles_hz)];
        writer.gauges("clock_hertz", "Ticks per second of the clock behind *_cycles", hz)
    }

    fn daemon(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let requests = self
            .requests
            .iter()
            .map(|(status, count)| (vec![("status", status.to_string())], *count));
        writer.counters("api_requests", "Requests answered, by HTTP status", requests)?;
        let refused = [(Labels::new(), self.peers_refused)];
        writer.counters("api_peers_refused", "Peers refused for who they are", refused)?;
        let healthy = [(Labels::new(), u64::from(self.is_healthy))];
        writer.gauges("healthy", "Whether the switch does its work", healthy)?;
        let uptime = [(Labels::new(), self.uptime_s)];
        writer.gauges("uptime_seconds", "Time since the daemon started", uptime)?;
        let build = [(vec![("version", self.version.version.clone())], 1)];
        writer.gauges("build", "Which release runs; always 1", build)
    }
}

fn vport(port: &PortStats) -> Labels {
    vec![("vport", port.port.clone())]
}

/// A vring has the number of its queue pair and its direction as its guest sees it.
fn ring_labels(pmd: &slipway_api::Pmd, ring: &PmdRing) -> Labels {
    let is_receive = ring.ring.is_multiple_of(2);
    let direction = if is_receive { Direction::Rx } else { Direction::Tx };
    vec![
        pmd_label(pmd),
        ("vport", ring.port.clone()),
        ("queue", (ring.ring / 2).to_string()),
        ("direction", direction.to_string()),
    ]
}

fn pmd_label(pmd: &slipway_api::Pmd) -> (&'static str, String) {
    ("pmd", pmd.id.to_string())
}
