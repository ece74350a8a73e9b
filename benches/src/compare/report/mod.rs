//! What a comparison gave: for a terminal ([`table`]), for programs ([`csv`]), as pictures ([`charts`]),
//! as one page with all of it ([`html`]), against what was aimed at ([`targets`]), and against another
//! one ([`diff`]).

pub mod charts;
pub mod csv;
pub mod diff;
mod flow_charts;
pub mod flow_table;
pub mod html;
mod lines;
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
    write(out, "flows.csv", &csv::flows(samples))?;
    write(out, "report.html", &html::page(samples))
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
    use crate::compare::arms::ArmKind::{self, CniBridge, Ipvlan, Kata, Netns, Slipway, Veth};
    use crate::compare::burst::{Burst, Times};
    use crate::compare::count::{Count, Methods};
    use crate::compare::flows::experiment::Endpoints;
    use crate::compare::flows::measurement::{Absence, Measurement};
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
                    let (repeated, discarded) = (usize::from(arm == Kata), None);
                    bursts.push(Sample { arm, round, place, burst, repeated, discarded });
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
            parameters: Parameters {
                arms,
                figures: vec![],
                quick: false,
                pairs: None,
                congestion_control: "cubic".to_owned(),
                pods,
                rounds: 3,
                parallel: 32,
                seed: 1,
            },
            absent: vec![(Ipvlan, how("not on this kernel: ipvlan"))],
            failures: vec![],
            bursts,
            methods: Methods {
                messages: how("by tracepoints"),
                acquisitions: how("by a watchpoint"),
                waits: how("not counted: no such tracepoint"),
            },
            counts: vec![count(Slipway, &[]), count(CniBridge, &[("NetNS", 50), ("bridge", 1000)])],
            uncounted: vec![how("kata was not counted: <busy>")],
            measurements: vec![],
            absences: vec![],
            lacks: vec![],
        }
    }

    /// The same with data-plane figures of two arms: ours has `gbit_per_s`, the bridge 20, and what a
    /// round of another arm took was the hypervisor's.
    pub(crate) fn with_flows(gbit_per_s: f64) -> Samples {
        let mut samples = samples(100);
        samples.parameters.arms.insert(1, Veth);
        for round in 0..3 {
            for (place, (arm, rate)) in
                [(Slipway, gbit_per_s), (Veth, 20.0)].into_iter().enumerate()
            {
                for x in ["10", "50"] {
                    let clients: Vec<_> = (0..x.parse().unwrap()).map(f64::from).collect();
                    let share = |n: &f64| (10.0 + n) / 100.0;
                    let completion = |n: &f64| 100.0 + n;
                    let distribution = |id: &str| match id {
                        "throughput" => {
                            ("per_client_gbit_per_s", clients.iter().map(share).collect())
                        }
                        _ => ("completion_ms", clients.iter().map(completion).collect()),
                    };
                    for id in ["throughput", "completion"] {
                        let (key, list): (_, Vec<f64>) = distribution(id);
                        let values: [(&str, f64); 4] = [
                            ("gbit_per_s", rate + round as f64),
                            ("max_over_min", 3.0),
                            ("retransmitted_per_gbyte", 7.0),
                            ("p99_ms", if x == "50" { 130.0 } else { 100.0 }),
                        ];
                        let values = values.map(|(key, value)| (key.to_owned(), value));
                        samples.measurements.push(Measurement {
                            experiment: id.to_owned(),
                            arm,
                            x: x.to_owned(),
                            round,
                            place,
                            values: values.into(),
                            distributions: [(key.to_owned(), list)].into(),
                            repeated: usize::from(round == 0),
                            discarded: None,
                            failures: vec![],
                        });
                    }
                }
            }
        }
        let mut stolen = samples.measurements[0].clone();
        stolen.discarded = Some("the hypervisor took 9 % of the window".to_owned());
        stolen.values.insert("gbit_per_s".to_owned(), 1000.0);
        samples.measurements.push(stolen);
        let reason = "not on this kernel: ipvlan".to_owned();
        let endpoints = Endpoints::Container;
        samples.absences.push(Absence { endpoints, arm: Ipvlan, reason });
        samples
    }

    #[test]
    fn every_file_is_drawn_from_what_was_stored() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        let samples = with_flows(30.0);
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
        assert!(format!("{error:#}").contains("format 3, not 2"), "{error:#}");
    }
}
