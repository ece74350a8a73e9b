//! Every sample as a line, for statistics programs: `arm,pods,round,pod,what,unit,value`, and of the data
//! plane `experiment,arm,x,round,discarded,what,sample,value`.

use std::fmt::Write as _;

use crate::compare::burst::STAGES;
use crate::compare::samples::Samples;
use crate::compare::summary::Figure;

/// The file. Lines of single pods have their place in the burst, those of whole bursts an empty field.
pub fn text(samples: &Samples) -> String {
    let mut text = "arm,pods,round,pod,what,unit,value\n".to_owned();
    for sample in &samples.bursts {
        let (burst, round) = (&sample.burst, sample.round + 1);
        let head = format!("{},{},{round}", sample.arm.name(), burst.pods);
        for figure in Figure::ALL {
            if let Some(value) = figure.of(burst) {
                let _ = writeln!(text, "{head},,{},{},{value}", figure.name(), figure.unit());
            }
        }
        let _ = writeln!(text, "{head},,failures,,{}", burst.failures.len());
        let _ = writeln!(text, "{head},,discarded,,{}", u8::from(sample.discarded.is_some()));
        let _ = writeln!(text, "{head},,stolen,ms,{}", burst.stolen_ms);
        for (pod, times) in burst.times.iter().enumerate() {
            let _ = writeln!(text, "{head},{pod},waited,us,{}", times.waited_us);
            for (name, us) in STAGES.iter().zip(times.stages_us) {
                let _ = writeln!(text, "{head},{pod},{name},us,{us}");
            }
        }
    }
    text
}

/// The data plane's. Figures of whole windows have an empty field where samples of single clients or flows
/// have their place in the list.
pub fn flows(samples: &Samples) -> String {
    let mut text = "experiment,arm,x,round,discarded,what,sample,value\n".to_owned();
    for m in &samples.measurements {
        let (arm, round) = (m.arm.name(), m.round + 1);
        // Points are named by us; commas become semicolons, which CSV readers take as they are.
        let x = m.x.replace(',', ";");
        let head =
            format!("{},{arm},{x},{round},{}", m.experiment, u8::from(m.discarded.is_some()));
        for (key, value) in &m.values {
            let _ = writeln!(text, "{head},{key},,{value}");
        }
        let _ = writeln!(text, "{head},failures,,{}", m.failures.len());
        for (key, list) in &m.distributions {
            for (at, value) in list.iter().enumerate() {
                let _ = writeln!(text, "{head},{key},{at},{value}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::{samples, with_flows};

    #[test]
    fn every_line_has_seven_fields_and_every_pod_four_lines() {
        let samples = samples(100);
        let text = text(&samples);
        assert!(text.lines().all(|line| line.split(',').count() == 7));
        let of = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(of("slipway,50,1,"), Figure::ALL.len() + 3 + 4 * 50);
        assert_eq!(of("cni-bridge,50,1,"), Figure::ALL.len() + 3 + 4 * 49);
        assert!(text.contains("cni-bridge,50,1,,failures,,1\n"));
    }

    #[test]
    fn every_window_has_its_figures_and_its_samples() {
        let text = flows(&with_flows(30.0));
        assert!(text.lines().all(|line| line.split(',').count() == 8));
        let of = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(of("throughput,veth,50,1,0,"), 4 + 1 + 50);
        assert!(text.contains("throughput,slipway,10,1,1,gbit_per_s,,1000\n"), "{text}");
    }
}
