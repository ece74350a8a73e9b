//! The pictures of a comparison, one for each figure.

use super::flow_charts;
use super::svg::{Bar, bars, curves};
use crate::compare::arms::ArmKind;
use crate::compare::burst::STAGES;
use crate::compare::count::ByName;
use crate::compare::samples::Samples;
use crate::compare::summary::Figure;

/// A picture.
#[derive(Debug)]
pub struct Chart {
    /// Of its file.
    pub name: String,
    /// Itself.
    pub svg: String,
}

/// All of them.
pub fn all(samples: &Samples) -> Vec<Chart> {
    let mut charts = startup(samples);
    charts.extend(flow_charts::all(samples));
    charts
}

/// Those of start-up.
pub fn startup(samples: &Samples) -> Vec<Chart> {
    let sizes = &samples.parameters.pods;
    let Some(most) = sizes.iter().copied().max() else { return Vec::new() };
    let of_figure = |name: &str, what: &str, figure, pods| {
        let title = format!("{what}, {pods} pods at once (median, 95 % interval)");
        Chart { name: format!("{name}-{pods}"), svg: estimates(samples, &title, figure, pods) }
    };
    let mut charts = Vec::new();
    for &pods in sizes {
        charts.push(of_figure("ready", "Until the last pod is ready", Figure::Ready, pods));
    }
    charts.push(cdf(samples, most));
    charts.push(stages(samples, most));
    charts.push(of_figure("cpu", "CPU time for a pod", Figure::Cpu, most));
    charts.push(of_figure("slab", "Kernel slab for a pod", Figure::Slab, most));
    charts.push(of_figure("memory", "Memory for a pod", Figure::Memory, most));
    charts.push(of_figure("teardown", "Until all is taken back", Figure::Teardown, most));
    charts.extend(counted(samples));
    charts
}

fn estimates(samples: &Samples, title: &str, figure: Figure, pods: usize) -> String {
    let row = |arm: ArmKind| {
        let estimate = samples.estimate(arm, pods, figure)?;
        Some(Bar {
            arm,
            parts: vec![estimate.median],
            interval: Some((estimate.low, estimate.high)),
            label: format!("{:.*}", figure.digits(), estimate.median),
        })
    };
    let rows: Vec<_> = samples.arms().into_iter().filter_map(row).collect();
    bars(title, figure.unit(), &[], &rows)
}

/// When pods were ready, of all rounds together.
fn cdf(samples: &Samples, pods: usize) -> Chart {
    let ready = |arm| {
        let times = samples.of(arm, pods).flat_map(|burst| &burst.times);
        (arm, times.map(|times| times.ready_us() as f64 / 1000.0).collect())
    };
    let series: Vec<_> = samples.arms().into_iter().map(ready).collect();
    let title = format!("When pods are ready, {pods} at once, all rounds");
    Chart {
        name: format!("pods-{pods}"),
        svg: curves(&title, "ms since the first began", "pods", &series),
    }
}

fn stages(samples: &Samples, pods: usize) -> Chart {
    let row = |arm: ArmKind| {
        let medians = Figure::STAGES.map(|figure| samples.estimate(arm, pods, figure));
        let parts = medians.into_iter().map(|e| Some(e?.median)).collect::<Option<Vec<_>>>()?;
        let label = parts.iter().map(|part| format!("{part:.1}")).collect::<Vec<_>>().join(" + ");
        Some(Bar { arm, parts, interval: None, label })
    };
    let rows: Vec<_> = samples.arms().into_iter().filter_map(row).collect();
    let title = format!("Stages of the middle pod, {pods} at once");
    Chart { name: format!("stages-{pods}"), svg: bars(&title, "ms", &STAGES, &rows) }
}

/// What was counted; no picture of what was not.
fn counted(samples: &Samples) -> Vec<Chart> {
    type Of = fn(&crate::compare::count::Count) -> Option<&ByName>;
    let of: [(&str, &str, &str, f64, Of); 3] = [
        ("messages", "rtnetlink messages for a pod", "messages", 1.0, |c| c.messages.as_ref()),
        ("rtnl", "RTNL acquisitions for a pod", "acquisitions", 1.0, |c| c.acquisitions.as_ref()),
        ("rtnl-wait", "Waiting for RTNL for a pod", "ms", 1e6, |c| c.wait_ns.as_ref()),
    ];
    let chart = |(name, title, axis, scale, of): (&str, &str, &str, f64, Of)| {
        let row = |count: &crate::compare::count::Count| {
            let sum = of(count)?.values().sum::<u64>() as f64 / scale / count.pods as f64;
            Some(Bar {
                arm: count.arm,
                parts: vec![sum],
                interval: None,
                label: format!("{sum:.1}"),
            })
        };
        let rows: Vec<_> = samples.counts.iter().filter_map(row).collect();
        let chart = || Chart { name: name.to_owned(), svg: bars(title, axis, &[], &rows) };
        (!rows.is_empty()).then(chart)
    };
    of.into_iter().filter_map(chart).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::samples;

    #[test]
    fn what_was_not_counted_has_no_picture() {
        let charts = all(&samples(100));
        let names: Vec<_> = charts.iter().map(|chart| chart.name.as_str()).collect();
        let expected = [
            "ready-50",
            "ready-400",
            "pods-400",
            "stages-400",
            "cpu-400",
            "slab-400",
            "memory-400",
            "teardown-400",
            "messages",
            "rtnl",
        ];
        assert_eq!(names, expected);
        let ready = &charts[1].svg;
        assert!(ready.contains("slipway") && ready.contains("cni-bridge"), "{ready}");
        assert!(!ready.contains("ipvlan"), "{ready}");
    }
}
