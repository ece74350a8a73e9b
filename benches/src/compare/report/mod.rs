//! What a comparison gave: for a terminal ([`table`]), for programs ([`csv`]), as pictures ([`charts`]),
//! as one page with all of it ([`html`]), against what was aimed at ([`targets`]), and against another
//! one ([`diff`]).

pub mod charts;
pub mod csv;
pub mod diff;
pub mod html;
pub mod svg;
pub mod table;
pub mod targets;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::samples::Samples;

/// The file that all others are drawn from.
pub const SAMPLES: &str = "samples.json";

/// Writes everything but the samples into the folder `out`, which is made if need be.
///
/// # Errors
/// A file cannot be written.
pub fn draw(samples: &Samples, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("Failed to make {}", out.display()))?;
    let charts = charts::all(samples);
    for chart in &charts {
        write(out, &format!("{}.svg", chart.name), &chart.svg)?;
    }
    write(out, "samples.csv", &csv::text(samples))?;
    write(out, "report.html", &html::page(samples, &charts))
}

/// Writes the samples.
///
/// # Errors
/// The file cannot be written.
pub fn store(samples: &Samples, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("Failed to make {}", out.display()))?;
    write(out, SAMPLES, &(serde_json::to_string(samples)? + "\n"))
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("Failed to write {}", path.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::compare::arms::ArmKind::{self, CniBridge, Ipvlan, Kata, Netns, Slipway};
    use crate::compare::burst::{Burst, Times};
    use crate::compare::count::{Count, Methods};
    use crate::compare::samples::{FORMAT, Parameters, Sample};
    use crate::machine::Machine;

    fn burst(pods: usize, pod_us: u64, failures: usize) -> Burst {
        let times = |at: usize| Times {
            waited_us: at as u64 * pod_us,
            stages_us: [pod_us / 4, pod_us / 2, pod_us / 4],
        };
        Burst {
            pods,
            times: (0..pods - failures).map(times).collect(),
            failures: (0..failures).map(|n| format!("pod {n}: <refused>")).collect(),
            ready_s: pods as f64 * pod_us as f64 / 1e6,
            teardown_s: 0.25,
            cpu_s: 0.1,
            slab_kib: 100 * pods as i64,
            memory_kib: 200 * pods as i64,
            stolen_ms: 0,
        }
    }

    /// Three rounds of four arms with 50 and 400 pods; ours takes `slipway_us` for a pod, the stock
    /// bridge 1000, Kata's way 400.
    pub(crate) fn samples(slipway_us: u64) -> Samples {
        let arms = vec![Slipway, Netns, Kata, CniBridge, Ipvlan];
        let pods = vec![50, 400];
        let mut bursts = Vec::new();
        for &pods in &pods {
            for round in 0..3 {
                let each = [(Slipway, slipway_us), (Netns, 20), (Kata, 400), (CniBridge, 1000)];
                for (place, (arm, us)) in each.into_iter().enumerate() {
                    let failures = usize::from(arm == CniBridge && pods == 50 && round == 0);
                    let burst = burst(pods, us + 4 * round as u64, failures);
                    bursts.push(Sample { arm, round, place, burst });
                }
            }
        }
        let count = |arm: ArmKind, by: &[(&str, u64)]| {
            let by = || Some(by.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect());
            let none = Some([("NetNS".to_owned(), 100)].into());
            Count {
                arm,
                pods: 50,
                messages: by(),
                acquisitions: if arm == Slipway { none } else { by() },
                hold_ns: by(),
                wait_ns: None,
            }
        };
        let how = |text: &str| text.to_owned();
        Samples {
            format: FORMAT,
            machine: Machine::here(),
            parameters: Parameters { arms, pods, rounds: 3, parallel: 32, seed: 1 },
            absent: vec![(Ipvlan, how("not on this kernel: ipvlan"))],
            failures: vec![],
            bursts,
            methods: Methods {
                messages: how("by tracepoints"),
                acquisitions: how("by a watchpoint"),
                waits: how("not counted: no such tracepoint"),
            },
            counts: vec![count(Slipway, &[]), count(CniBridge, &[("NetNS", 50), ("bridge", 1000)])],
        }
    }

    #[test]
    fn every_file_is_drawn_from_what_was_stored() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        let samples = samples(100);
        store(&samples, &first).unwrap();
        draw(&samples, &first).unwrap();
        let read = Samples::read(&first.join(SAMPLES)).unwrap();
        assert_eq!(read, samples);
        draw(&read, &second).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(&second).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert!(names.len() > 5 && names.contains(&"report.html".into()), "{names:?}");
        for name in names {
            let [a, b] = [&first, &second].map(|folder| fs::read(folder.join(&name)).unwrap());
            assert_eq!(a, b, "{name:?}");
        }
    }

    #[test]
    fn a_file_of_another_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        store(&Samples { format: FORMAT + 1, ..samples(100) }, folder.path()).unwrap();
        let error = Samples::read(&folder.path().join(SAMPLES)).unwrap_err();
        assert!(format!("{error:#}").contains("format 2, not 1"), "{error:#}");
    }
}
