//! A picture: a bar for each switch in each scenario of throughput, with its spread.

use std::fmt::Write as _;

use crate::peer::PeerKind;
use crate::results::{Finding, Results};
use crate::scenario::Scenario;

const LEFT: f64 = 150.0;
const BAR: f64 = 420.0;
const WIDTH: f64 = LEFT + BAR + 190.0;
const ROW: f64 = 16.0;
const GAP: f64 = 14.0;

/// The picture.
pub fn bars(results: &Results) -> String {
    let is_throughput =
        |scenario: &&Scenario| scenario.figures().first().is_some_and(|f| f.is_throughput());
    let scenarios: Vec<_> = results.scenarios.iter().filter(is_throughput).collect();
    let group = results.peers.len() as f64 * ROW + GAP;
    let height = scenarios.len() as f64 * group + 2.0 * GAP;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (index, scenario) in scenarios.iter().enumerate() {
        let top = GAP + index as f64 * group;
        svg += &group_of(results, scenario, top);
    }
    svg + "</svg>\n"
}

fn group_of(results: &Results, scenario: &Scenario, top: f64) -> String {
    let figure = scenario.figures()[0];
    let finding = |peer| results.figure((scenario.name, peer), figure);
    let most = |peer: &PeerKind| finding(*peer).rounds().map(|rounds| rounds.max);
    // Each scenario has its own scale: they have different units, and a bar is to be seen in each.
    let full = results.peers.iter().filter_map(most).fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<text x=\"4\" y=\"{}\" font-weight=\"bold\">{}, {}</text>",
        top + 11.0,
        scenario.name,
        figure.unit()
    );
    for (row, &peer) in results.peers.iter().enumerate() {
        let y = top + row as f64 * ROW;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 4.0,
            y + 11.0,
            peer.name()
        );
        let finding = finding(peer);
        let label_x = if let Some(rounds) = finding.rounds() {
            let x = |value: f64| LEFT + BAR * value / full;
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{}\" width=\"{:.1}\" height=\"11\" fill=\"{}\"/>\
                 <path d=\"M{:.1} {:.1}H{:.1}\" stroke=\"black\"/>",
                y + 1.0,
                x(rounds.median) - LEFT,
                colour(peer),
                x(rounds.min),
                y + 6.5,
                x(rounds.max)
            );
            x(rounds.max) + 4.0
        } else {
            LEFT + 4.0
        };
        let _ =
            writeln!(svg, "<text x=\"{label_x:.1}\" y=\"{}\">{}</text>", y + 11.0, label(&finding));
    }
    svg
}

fn label(finding: &Finding) -> String {
    format!("{finding:.2}").replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const fn colour(peer: PeerKind) -> &'static str {
    match peer {
        PeerKind::Slipwayd => "#2b7a78",
        PeerKind::Ovs => "#d08c60",
        PeerKind::OvsFlow => "#e3b899",
        PeerKind::Testpmd => "#7d84b2",
        PeerKind::Ideal => "#bbbbbb",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn the_longest_bar_ends_within_the_picture_and_reasons_stand_for_the_others() {
        let svg = bars(&results(1.0, 1.0));
        // slipwayd: 10 of at most 12.
        assert!(svg.contains("width=\"350.0\""), "{svg}");
        assert!(svg.contains("not installed") && svg.contains("3.00 (3.00-4.00)"));
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
    }

    #[test]
    fn signs_that_svg_has_for_itself_are_written_otherwise() {
        let finding = Finding::Missing("a < b & c".to_owned());
        assert_eq!(label(&finding), "a &lt; b &amp; c");
    }
}
