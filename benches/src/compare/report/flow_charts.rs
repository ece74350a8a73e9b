//! The pictures of the data plane: what each experiment says is drawn of it.

use super::charts::Chart;
use super::lines::{Line, dots, lines};
use super::svg::curves;
use crate::compare::flows::experiment::{Curve, Experiment, Quantity};
use crate::compare::samples::Samples;

/// All of them, in the order of the report.
pub fn all(samples: &Samples) -> Vec<Chart> {
    samples.experiments().into_iter().flat_map(|experiment| of(samples, experiment)).collect()
}

/// Those of one experiment. What no arm has is not drawn.
pub fn of(samples: &Samples, experiment: &Experiment) -> Vec<Chart> {
    let lines = experiment.lines.iter().filter_map(|of| over_axis(samples, experiment, *of));
    let curves = experiment.curves.iter().filter_map(|of| distribution(samples, experiment, of));
    let mut charts: Vec<_> = lines.chain(curves).collect();
    charts.extend(experiment.scatter.and_then(|(x, y)| against(samples, experiment, x, y)));
    charts
}

fn title(experiment: &Experiment, what: &str) -> String {
    format!("{what} ({})", experiment.endpoints.words())
}

fn over_axis(samples: &Samples, experiment: &Experiment, of: Quantity) -> Option<Chart> {
    let places = samples.points_of(experiment);
    let line = |arm| {
        let estimate = |x: &&str| samples.flow_estimate(experiment.id, arm, x, of.key);
        Line { arm, estimates: places.iter().map(estimate).collect() }
    };
    let all: Vec<_> = samples.flow_arms(experiment.id).into_iter().map(line).collect();
    all.iter().any(|line| line.estimates.iter().any(Option::is_some)).then(|| {
        let title = title(experiment, &format!("{}: {}", experiment.title, of.name));
        let joined = experiment.is_numeric();
        Chart {
            name: format!("{}-{}", experiment.id, of.key.replace('_', "-")),
            svg: lines(&title, experiment.axis, &of.head(), &places, joined, &all),
        }
    })
}

fn distribution(samples: &Samples, experiment: &Experiment, curve: &Curve) -> Option<Chart> {
    let pooled = |arm| (arm, samples.pooled(experiment.id, arm, curve.x, curve.key));
    let mut series: Vec<_> = samples.flow_arms(experiment.id).into_iter().map(pooled).collect();
    series.retain(|(_, list)| !list.is_empty());
    (!series.is_empty()).then(|| Chart {
        name: format!("{}-cdf-{}", experiment.id, curve.x.replace([' ', ','], "-")),
        svg: curves(&title(experiment, curve.name), curve.unit, curve.of, &series),
    })
}

fn against(samples: &Samples, experiment: &Experiment, x: Quantity, y: Quantity) -> Option<Chart> {
    let dots_of = |arm| {
        let dot = |at: &&str| {
            let of =
                |quantity: Quantity| samples.flow_estimate(experiment.id, arm, at, quantity.key);
            Some((of(x)?.median, of(y)?.median))
        };
        (arm, samples.points_of(experiment).iter().filter_map(dot).collect::<Vec<_>>())
    };
    let of: Vec<_> = samples.flow_arms(experiment.id).into_iter().map(dots_of).collect();
    of.iter().any(|(_, dots)| !dots.is_empty()).then(|| Chart {
        name: format!("{}-{}", experiment.id, y.name.replace(' ', "-")),
        svg: dots(
            &title(experiment, &format!("{} against {}", y.name, x.name)),
            &x.head(),
            &y.head(),
            &of,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::{samples, with_flows};

    #[test]
    fn what_was_measured_is_drawn_and_nothing_else() {
        assert!(all(&samples(100)).is_empty());
        let charts = all(&with_flows(30.0));
        let names: Vec<_> = charts.iter().map(|chart| chart.name.as_str()).collect();
        let expected = [
            "throughput-gbit-per-s",
            "throughput-max-over-min",
            "throughput-cdf-50",
            "throughput-retransmitted",
            "completion-p99-ms",
            "completion-cdf-10",
            "completion-cdf-50",
        ];
        assert_eq!(names, expected);
        let svg = &charts[0].svg;
        assert!(svg.contains("container endpoints") && svg.contains(">veth<"), "{svg}");
        assert!(!svg.contains("kata") && !svg.contains("1000"), "{svg}");
    }
}
