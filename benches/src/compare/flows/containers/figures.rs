//! The figures of container endpoints.

use crate::compare::flows::experiment::{Curve, Endpoints, Experiment, Point, Quantity};

const RATE: Quantity = Quantity::new("gbit_per_s", "throughput", "Gbit/s", 2);
const JAIN: Quantity = Quantity::new("jain", "Jain", "", 3);
const SPREAD: Quantity = Quantity::new("max_over_min", "max/min", "", 2);
const STARVED: Quantity = Quantity::new("starved", "got nothing", "", 0);
const RETRANSMITTED: Quantity =
    Quantity::new("retransmitted_per_gbyte", "retransmitted", "segments/GB", 1);
const USER: Quantity = Quantity::new("cpu_user_s", "user", "s", 2);
const SYS: Quantity = Quantity::new("cpu_sys_s", "sys", "s", 2);
const SOFTIRQ: Quantity = Quantity::new("cpu_softirq_s", "softirq", "s", 2);
const CYCLES: Quantity = Quantity::new("cycles_per_byte", "cycles", "per byte", 2);
const BUSY: Quantity = Quantity::new("pmd_busy", "PMD busy", "%", 0);
const P50: Quantity = Quantity::new("p50_ms", "p50", "ms", 1);
const P90: Quantity = Quantity::new("p90_ms", "p90", "ms", 1);
const P99: Quantity = Quantity::new("p99_ms", "p99", "ms", 1);
const P50_US: Quantity = Quantity::new("p50_us", "p50", "us", 1);
const P99_US: Quantity = Quantity::new("p99_us", "p99", "us", 1);
const P999_US: Quantity = Quantity::new("p999_us", "p99.9", "us", 1);
const LOST: Quantity = Quantity::new("lost_percent", "lost", "%", 1);

/// One without curves and scatter.
const PLAIN: Experiment = Experiment {
    id: "",
    title: "",
    endpoints: Endpoints::Container,
    axis: "",
    points: &[],
    table: &[],
    lines: &[],
    curves: &[],
    scatter: None,
};

const SIZES: &[Point] = &[
    Point::always("64", 1),
    Point::full("256", 1),
    Point::full("1024", 1),
    Point::always("1400", 1),
    Point::full("4096", 1),
    Point::full("16384", 1),
    Point::always("65507", 1),
];
const SIZES_PLAIN: &[Point] = &[
    Point::full("64", 1),
    Point::full("1400", 1),
    Point::full("16384", 1),
    Point::full("65507", 1),
];

/// All of them, in the order of the report.
pub const EXPERIMENTS: &[Experiment] = &[
    Experiment {
        id: "throughput",
        title: "Total throughput of TCP",
        axis: "pairs",
        points: &[
            Point::always("1", 1),
            Point::full("5", 5),
            Point::always("10", 10),
            Point::full("20", 20),
            Point::full("30", 30),
            Point::full("40", 40),
            Point::always("50", 50),
        ],
        table: &[RATE, JAIN, SPREAD, STARVED, RETRANSMITTED, USER, SYS, SOFTIRQ, CYCLES, BUSY],
        lines: &[RATE, SPREAD, CYCLES],
        curves: &[Curve {
            key: "per_client_gbit_per_s",
            x: "50",
            name: "Throughput of a client, 50 pairs",
            unit: "Gbit/s",
            of: "clients",
        }],
        scatter: Some((RATE, RETRANSMITTED)),
        ..PLAIN
    },
    Experiment {
        id: "completion",
        title: "Completion of flows of 5 MB",
        axis: "pairs",
        points: &[Point::always("10", 10), Point::always("50", 50)],
        table: &[P50, P90, P99],
        lines: &[P99],
        curves: &[
            Curve {
                key: "completion_ms",
                x: "10",
                name: "Completion of flows of 5 MB, 10 pairs",
                unit: "ms",
                of: "flows",
            },
            Curve {
                key: "completion_ms",
                x: "50",
                name: "Completion of flows of 5 MB, 50 pairs",
                unit: "ms",
                of: "flows",
            },
        ],
        ..PLAIN
    },
    Experiment {
        id: "mice",
        title: "Mice (5 MB) among elephants (50 MB, one client of five), 50 pairs",
        axis: "beside the mice",
        points: &[
            Point::full("nothing", 50),
            Point::full("elephants", 50),
            Point::full("elephants, mice with priority", 50),
        ],
        table: &[P50, P90, P99],
        lines: &[P99],
        curves: &[Curve {
            key: "completion_ms",
            x: "elephants",
            name: "Completion of mice beside elephants",
            unit: "ms",
            of: "mice",
        }],
        ..PLAIN
    },
    Experiment {
        id: "round-trips",
        title: "Request and response of 64 B",
        axis: "protocol",
        points: &[Point::always("TCP", 1), Point::full("UDP", 1)],
        table: &[P50_US, P99_US, P999_US],
        lines: &[P50_US, P99_US],
        ..PLAIN
    },
    Experiment {
        id: "inter-node",
        title: "TCP between pods of one node, and of two that VXLAN joins",
        axis: "pods on",
        points: &[
            Point::always("one node", 1),
            Point::always("two nodes", 1),
            Point::full("one node, 10 pairs", 10),
            Point::full("two nodes, 10 pairs", 10),
        ],
        table: &[RATE, JAIN, RETRANSMITTED, USER, SYS, SOFTIRQ, CYCLES],
        lines: &[RATE, CYCLES],
        ..PLAIN
    },
    Experiment {
        id: "inter-node-round-trips",
        title: "Request and response of 64 B (TCP) on one node, and between two",
        axis: "pods on",
        points: &[Point::full("one node", 1), Point::always("two nodes", 1)],
        table: &[P50_US, P99_US, P999_US],
        lines: &[P50_US, P99_US],
        ..PLAIN
    },
    Experiment {
        id: "messages-tcp",
        title: "TCP by the size of writes",
        axis: "bytes",
        points: SIZES,
        table: &[RATE, CYCLES],
        lines: &[RATE],
        ..PLAIN
    },
    Experiment {
        id: "messages-udp",
        title: "UDP by the size of datagrams",
        axis: "bytes",
        points: SIZES,
        table: &[RATE, LOST, CYCLES],
        lines: &[RATE],
        ..PLAIN
    },
    Experiment {
        id: "messages-tcp-plain",
        title: "TCP by the size of writes, no offloads",
        axis: "bytes",
        points: SIZES_PLAIN,
        table: &[RATE, CYCLES],
        lines: &[RATE],
        ..PLAIN
    },
    Experiment {
        id: "messages-udp-plain",
        title: "UDP by the size of datagrams, no offloads",
        axis: "bytes",
        points: SIZES_PLAIN,
        table: &[RATE, LOST, CYCLES],
        lines: &[RATE],
        ..PLAIN
    },
    Experiment {
        id: "pinning",
        title: "TCP of one pair by where its two ends run; a PMD has the last core",
        axis: "cores",
        points: &[
            Point::always("any", 1),
            Point::always("both on the first", 1),
            Point::always("first and last", 1),
            Point::full("both on the last", 1),
        ],
        table: &[RATE, CYCLES],
        lines: &[RATE],
        ..PLAIN
    },
    Experiment {
        id: "ratio",
        title: "Containers on one core, the switch's threads included",
        axis: "containers per core",
        points: &[Point::full("2", 1), Point::full("10", 5), Point::full("50", 25)],
        table: &[RATE, SPREAD, P50, P99],
        lines: &[RATE, P99],
        ..PLAIN
    },
    Experiment {
        id: "flows",
        title: "TCP of one pair with many flows",
        axis: "flows",
        points: &[Point::full("1", 1), Point::full("10", 1), Point::full("100", 1)],
        table: &[RATE, SPREAD, RETRANSMITTED, CYCLES],
        lines: &[RATE],
        ..PLAIN
    },
    Experiment {
        id: "iperf3",
        title: "Total throughput by iperf3, beside our own flows",
        axis: "pairs",
        points: &[Point::full("1", 1), Point::full("5", 5)],
        table: &[RATE],
        lines: &[RATE],
        ..PLAIN
    },
];
