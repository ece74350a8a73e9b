//! Every sample as a line, for statistics programs: `arm,pods,round,pod,what,unit,value`.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::samples;

    #[test]
    fn every_line_has_seven_fields_and_every_pod_four_lines() {
        let samples = samples(100);
        let text = text(&samples);
        assert!(text.lines().all(|line| line.split(',').count() == 7));
        let of = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(of("slipway,50,1,"), Figure::ALL.len() + 2 + 4 * 50);
        assert_eq!(of("cni-bridge,50,1,"), Figure::ALL.len() + 2 + 4 * 49);
        assert!(text.contains("cni-bridge,50,1,,failures,,1\n"));
    }
}
