//! How long each part of the switch takes for a frame, in one thread: the cases of
//! [`benches::cases`].

use std::hint::black_box;
use std::time::Duration;

use benches::cases::{self, FRAMES};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dataplane::clock;

/// One group for each stage, which is the first word of a case's name.
fn stages(c: &mut Criterion) {
    let stage = |name: &'static str| name.split_once('_').map_or(name, |(stage, _)| stage);
    for cases in cases::ALL.chunk_by(|(a, _), (b, _)| stage(a) == stage(b)) {
        let group = stage(cases[0].0);
        let mut group = c.benchmark_group(group);
        group.throughput(Throughput::Elements(FRAMES as u64));
        for (name, _) in cases {
            let mut case = cases::prepared(name).expect("a case that can be set up");
            let mut is_prepared = true;
            group.bench_function(name.split_once('_').map_or(*name, |(_, rest)| rest), |b| {
                b.iter_custom(|runs| {
                    let mut ticks = 0;
                    for _ in 0..runs {
                        if !is_prepared {
                            case.prepare().expect("the run before left all in order");
                        }
                        is_prepared = false;
                        let begin = clock::ticks();
                        black_box(case.run().expect("frames are handled"));
                        ticks += clock::ticks() - begin;
                    }
                    Duration::from_nanos(ticks * 1000 / clock::ticks_per_us())
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, stages);
criterion_main!(benches);
