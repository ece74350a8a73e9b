//! Forwarding between two in-process guests on one PMD core, over real vhost-user rings.
//!
//! Time per frame as the guests see it: the generator runs on one core, the PMD on another.

use std::time::Duration;

use benches::rig::{Rig, mac};
use benches::traffic;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dataplane::clock;
use dataplane::pmd::PmdConfig;
use dataplane::testing::GuestConfig;

fn forwarding(c: &mut Criterion) {
    let rig = Rig::start(PmdConfig::default()).expect("a switch and two cores");
    let config = GuestConfig::default().ring_size(1024);
    let mut sender = rig.guest(1, config.clone()).expect("first guest");
    let mut receiver = rig.guest(2, config).expect("second guest");
    let mut group = c.benchmark_group("forward");
    for wire_bytes in [64, 256, 1518] {
        let template = traffic::frame(mac(2).0, mac(1).0, wire_bytes - 4);
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(wire_bytes), |b| {
            b.iter_custom(|frames| {
                let begin = clock::ticks();
                traffic::exactly(&mut sender, &mut receiver, &template, frames)
                    .expect("frames come through");
                let ns = (clock::ticks() - begin) * 1000 / clock::ticks_per_us();
                Duration::from_nanos(ns)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, forwarding);
criterion_main!(benches);
