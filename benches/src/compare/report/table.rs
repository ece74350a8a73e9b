//! Tables for a terminal, and their cells for the page.

use super::flow_table;
use crate::compare::arms::ArmKind;
use crate::compare::claims;
use crate::compare::count::{ByName, without_namespaces};
use crate::compare::samples::Samples;
use crate::compare::summary::Figure;
use crate::report::table::markdown;

/// Rows of cells, the head first.
pub type Rows = Vec<Vec<String>>;

/// A row for each arm with so many pods.
pub fn figures(samples: &Samples, pods: usize) -> Rows {
    let names = Figure::ALL.map(|figure| format!("{}, {}", figure.name(), figure.unit()));
    let mut rows = vec![["arm".to_owned()].into_iter().chain(names).collect::<Vec<_>>()];
    rows[0].extend(["failures", "discarded"].map(String::from));
    for &arm in &samples.parameters.arms {
        let mut row = vec![arm.name().to_owned()];
        let absent = samples.absent.iter().find(|(of, _)| *of == arm);
        for figure in Figure::ALL {
            let estimate = samples.estimate(arm, pods, figure);
            row.push(match (estimate, absent) {
                (Some(estimate), _) => estimate.text(figure.digits()),
                (None, Some((_, reason))) if figure == Figure::Ready => reason.clone(),
                (None, Some(_)) => String::new(),
                (None, None) => "none".to_owned(),
            });
        }
        let failed: usize = samples.of(arm, pods).map(|burst| burst.failures.len()).sum();
        let discarded = samples.discarded_of(arm, pods);
        let number =
            |count: usize| if absent.is_some() { String::new() } else { count.to_string() };
        row.extend([number(failed), number(discarded)]);
        rows.push(row);
    }
    rows
}

/// What was counted, for a pod.
pub fn counts(samples: &Samples) -> Rows {
    let head = [
        "arm",
        "rtnetlink messages",
        "RTNL acquisitions",
        "of them without NetNS",
        "RTNL held, us",
        "RTNL waited for, us",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for arm in samples.arms() {
        let count = samples.count(arm);
        let cell = |by: Option<&ByName>, of: fn(&ByName) -> u64, scale: f64| {
            let (Some(by), Some(count)) = (by, count) else { return "not counted".to_owned() };
            format!("{:.1}", of(by) as f64 / count.pods as f64 / scale)
        };
        let sum: fn(&ByName) -> u64 = |by| by.values().sum();
        let acquisitions = count.and_then(|count| count.acquisitions.as_ref());
        rows.push(vec![
            arm.name().to_owned(),
            cell(count.and_then(|count| count.messages.as_ref()), sum, 1.0),
            cell(acquisitions, sum, 1.0),
            cell(acquisitions, without_namespaces, 1.0),
            cell(count.and_then(|count| count.hold_ns.as_ref()), sum, 1000.0),
            cell(count.and_then(|count| count.wait_ns.as_ref()), sum, 1000.0),
        ]);
    }
    rows
}

/// Who sent messages and took RTNL, in words, most first.
pub fn who(samples: &Samples, arm: ArmKind) -> String {
    let Some(count) = samples.count(arm) else { return String::new() };
    let list = |what: &str, by: &ByName| {
        let mut by: Vec<_> = by.iter().collect();
        by.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), name.as_str()));
        let names: Vec<_> = by.iter().map(|(name, count)| format!("{name} {count}")).collect();
        (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
    };
    let parts = [
        count.messages.as_ref().and_then(|by| list("messages", by)),
        count.acquisitions.as_ref().and_then(|by| list("acquisitions", by)),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Targets.
pub fn targets(samples: &Samples) -> Rows {
    let head = ["target", "goal", "measured", "verdict"].map(String::from).to_vec();
    let rows = super::targets::all(samples).into_iter().map(|target| {
        vec![target.name, target.goal, target.finding, target.verdict.name().to_owned()]
    });
    [head].into_iter().chain(rows).collect()
}

/// What the literature says, and whether it is so here.
pub fn claims(samples: &Samples) -> Rows {
    let head = ["claim", "reproduced here?", "by", "slipway"].map(String::from).to_vec();
    let rows = claims::all(samples).into_iter().map(|claim| {
        vec![claim.text.to_owned(), claim.verdict.name().to_owned(), claim.others, claim.slipway]
    });
    [head].into_iter().chain(rows).collect()
}

/// All of it.
pub fn all(samples: &Samples) -> String {
    let mut text = format!("{}\n\n", samples.machine);
    text += &flow_table::all(samples);
    let claims = claims(samples);
    if claims.len() > 1 {
        text += &format!("{}\n", markdown(&claims));
    }
    if !samples.parameters.pods.is_empty() {
        text += &startup(samples);
    }
    let targets = targets(samples);
    if targets.len() > 1 { text + &markdown(&targets) } else { text }
}

fn startup(samples: &Samples) -> String {
    let mut text = String::new();
    for &pods in &samples.parameters.pods {
        text += &format!(
            "{pods} pods at once: median (95 % interval) of {} rounds\n\n{}\n",
            samples.parameters.rounds,
            markdown(&figures(samples, pods))
        );
    }
    let methods = &samples.methods;
    text += &format!(
        "For a pod, in a pass of its own\n\n{}\nrtnetlink messages: {}\nRTNL acquisitions: {}\n\
         RTNL waits: {}\n\n",
        markdown(&counts(samples)),
        methods.messages,
        methods.acquisitions,
        methods.waits
    );
    if !samples.uncounted.is_empty() {
        text += &format!("{}\n\n", samples.uncounted.join("\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::samples;

    #[test]
    fn a_row_says_what_was_measured_or_why_not() {
        let samples = samples(100);
        let rows = figures(&samples, 400);
        let row = |name: &str| rows.iter().find(|row| row[0] == name).unwrap();
        assert_eq!(row("slipway")[1], "0.042 (0.040-0.043)");
        assert_eq!(row("ipvlan")[1], "not on this kernel: ipvlan");
        assert_eq!(
            figures(&samples, 50).iter().find(|row| row[0] == "cni-bridge").unwrap()[11],
            "1"
        );
        assert!(rows.iter().all(|row| row.len() == Figure::ALL.len() + 3));
        // One of each round.
        assert_eq!(
            (row("kata").last().unwrap(), row("netns").last().unwrap()),
            (&"3".into(), &"0".into())
        );
    }

    #[test]
    fn counts_are_of_one_pod_and_what_was_not_counted_says_so() {
        let samples = samples(100);
        let rows = counts(&samples);
        assert_eq!(rows[1], ["slipway", "0.0", "2.0", "0.0", "0.0", "not counted"]);
        assert_eq!(rows[2][1], "not counted");
        assert_eq!(rows[4][1..4], ["21.0", "21.0", "20.0"]);
        let who = who(&samples, ArmKind::CniBridge);
        assert_eq!(who, "messages: bridge 1000, NetNS 50; acquisitions: bridge 1000, NetNS 50");
    }
}
