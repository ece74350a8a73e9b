//! How many instructions each part of the switch takes: what `cargo xtask bench instructions` counts.
#![allow(
    missing_docs,
    unused_qualifications,
    reason = "the macros make public items of every group, and name what they make in full"
)]

use std::hint::black_box;

use benches::cases::{self, Case};
use gungraun::{
    Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};

fn prepared(name: &str) -> Box<dyn Case> {
    cases::prepared(name).expect("a case that can be set up")
}

// Ids are the names of cases; a test of `cases` sees to it that none is missing.
#[library_benchmark(setup = prepared)]
#[bench::pop_split_64("pop_split_64")]
#[bench::pop_split_1518("pop_split_1518")]
#[bench::pop_packed_64("pop_packed_64")]
#[bench::pop_packed_1518("pop_packed_1518")]
#[bench::push_split_64("push_split_64")]
#[bench::push_split_1518("push_split_1518")]
#[bench::push_packed_64("push_packed_64")]
#[bench::push_packed_1518("push_packed_1518")]
#[bench::parse_l2("parse_l2")]
#[bench::parse_udp4("parse_udp4")]
#[bench::parse_tcp6("parse_tcp6")]
#[bench::fdb_hit("fdb_hit")]
#[bench::fdb_miss("fdb_miss")]
#[bench::fdb_refresh("fdb_refresh")]
#[bench::spoof_bound("spoof_bound")]
#[bench::neighbour_none("neighbour_none")]
#[bench::neighbour_arp("neighbour_arp")]
#[bench::pipeline_split_64("pipeline_split_64")]
#[bench::pipeline_packed_64("pipeline_packed_64")]
#[bench::pipeline_bound_64("pipeline_bound_64")]
#[bench::pipeline_policy_64("pipeline_policy_64")]
#[bench::pipeline_split_1518("pipeline_split_1518")]
#[bench::pipeline_fan8_64("pipeline_fan8_64")]
fn stage(mut case: Box<dyn Case>) -> Box<dyn Case> {
    black_box(case.run().expect("frames are handled"));
    // Not dropped here: that is no work of the switch.
    case
}

library_benchmark_group!(name = stages, benchmarks = stage);

main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = stages
);
