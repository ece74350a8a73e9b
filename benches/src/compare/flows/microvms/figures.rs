//! The figures of microVM endpoints.

use crate::compare::flows::experiment::{Curve, Endpoints, Experiment, Point, Quantity};

const RATE: Quantity = Quantity::new("gbit_per_s", "throughput", "Gbit/s", 2);
const JAIN: Quantity = Quantity::new("jain", "Jain", "", 3);
const SPREAD: Quantity = Quantity::new("max_over_min", "max/min", "", 2);
const CYCLES: Quantity =
    Quantity::new("switch_cycles_per_byte", "switch's work", "cycles per byte", 2);
const BUSY: Quantity = Quantity::new("pmd_busy", "switch busy", "%", 0);
const WAITED: Quantity = Quantity::new("generator_waited", "generator waited", "%", 0);
const USER: Quantity = Quantity::new("cpu_user_s", "user", "s", 2);
const SYS: Quantity = Quantity::new("cpu_sys_s", "sys", "s", 2);
const SOFTIRQ: Quantity = Quantity::new("cpu_softirq_s", "softirq", "s", 2);
const P50: Quantity = Quantity::new("p50_ms", "p50", "ms", 1);
const P90: Quantity = Quantity::new("p90_ms", "p90", "ms", 1);
const P99: Quantity = Quantity::new("p99_ms", "p99", "ms", 1);
const P50_US: Quantity = Quantity::new("p50_us", "p50", "us", 2);
const P99_US: Quantity = Quantity::new("p99_us", "p99", "us", 1);
const P999_US: Quantity = Quantity::new("p999_us", "p99.9", "us", 1);

const MPPS: Quantity = Quantity::new("mpps", "received", "Mpps", 2);
const LOST: Quantity = Quantity::new("lost_percent", "lost", "%", 3);
const PER_FRAME: Quantity =
    Quantity::new("switch_cycles_per_frame", "switch's work", "cycles per frame", 0);

/// Total throughput.
pub const THROUGHPUT: &str = "vm-throughput";
/// Completion of flows.
pub const COMPLETION: &str = "vm-completion";
/// Mice, with and without elephants.
pub const MICE: &str = "vm-mice";
/// Round trips.
pub const ROUND_TRIPS: &str = "vm-round-trips";
/// Packet rates.
pub const PACKETS: &str = "vm-packets";
/// Where [`MICE`] have mice in the elephants' place.
pub const MICE_ALONE: &str = "mice";
/// Where they have elephants.
pub const ELEPHANTS: &str = "elephants";

const PLAIN: Experiment = Experiment {
    id: "",
    title: "",
    endpoints: Endpoints::Microvm,
    axis: "",
    points: &[],
    table: &[],
    lines: &[],
    curves: &[],
    scatter: None,
};

const fn completion(x: &'static str, name: &'static str, of: &'static str) -> Curve {
    Curve { key: "completion_ms", x, name, unit: "ms", of }
}

/// All of them, in the order of the report.
pub const EXPERIMENTS: &[Experiment] = &[
    Experiment {
        id: THROUGHPUT,
        title: "Total throughput of TCP between guests",
        axis: "pairs",
        points: &[Point::always("1", 1), Point::always("10", 10), Point::always("50", 50)],
        table: &[RATE, JAIN, SPREAD, CYCLES, BUSY, WAITED, USER, SYS, SOFTIRQ],
        lines: &[RATE, SPREAD, CYCLES],
        curves: &[Curve {
            key: "per_client_gbit_per_s",
            x: "50",
            name: "Throughput of a guest, 50 pairs",
            unit: "Gbit/s",
            of: "guests",
        }],
        ..PLAIN
    },
    Experiment {
        id: COMPLETION,
        title: "Completion of flows of 5 MB between guests",
        axis: "pairs",
        points: &[Point::always("10", 10), Point::always("50", 50)],
        table: &[P50, P90, P99, BUSY],
        lines: &[P99],
        curves: &[
            completion("10", "Completion of flows of 5 MB, 10 pairs", "flows"),
            completion("50", "Completion of flows of 5 MB, 50 pairs", "flows"),
        ],
        ..PLAIN
    },
    Experiment {
        id: MICE,
        title: "Mice (5 MB) of 40 pairs while 10 others send",
        axis: "the others send",
        points: &[Point::always(MICE_ALONE, 50), Point::always(ELEPHANTS, 50)],
        table: &[P50, P90, P99, BUSY],
        lines: &[P99],
        curves: &[
            completion(MICE_ALONE, "Completion of mice among mice", "mice"),
            completion(ELEPHANTS, "Completion of mice among elephants", "mice"),
        ],
        ..PLAIN
    },
    Experiment {
        id: ROUND_TRIPS,
        title: "Request and response of 64 B between two guests, TCP",
        axis: "guests connected",
        points: &[Point::always("2", 1), Point::always("100", 50)],
        table: &[P50_US, P99_US, P999_US],
        lines: &[P50_US, P99_US],
        ..PLAIN
    },
    Experiment {
        id: PACKETS,
        title: "Frames that circle between two ports of DPDK's testpmd",
        axis: "bytes of a frame",
        points: &[Point::always("64", 1), Point::full("256", 1), Point::full("1518", 1)],
        table: &[MPPS, LOST, PER_FRAME, BUSY],
        lines: &[MPPS, PER_FRAME],
        ..PLAIN
    },
];
