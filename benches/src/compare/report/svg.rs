//! Pictures of three kinds, written as text: bars, bars of several parts, and cumulative distributions.

use std::fmt::Write as _;

use crate::compare::arms::ArmKind;

pub(super) const LEFT: f64 = 110.0;
pub(super) const PLOT: f64 = 480.0;
const RIGHT: f64 = 190.0;
pub(super) const TOP: f64 = 36.0;
pub(super) const BOTTOM: f64 = 40.0;
pub(super) const ROW: f64 = 18.0;
pub(super) const CURVES: f64 = 300.0;
/// Marks on an axis, about.
const TICKS: f64 = 5.0;
/// Of the parts of a bar.
const PARTS: [&str; 3] = ["#c2c6cc", "#7d84b2", "#d08c60"];

/// A row of a picture of bars.
#[derive(Debug)]
pub struct Bar {
    /// Whose.
    pub arm: ArmKind,
    /// Its parts, one after the other; one for a plain bar.
    pub parts: Vec<f64>,
    /// From where to where it may be.
    pub interval: Option<(f64, f64)>,
    /// Written behind it.
    pub label: String,
}

/// Bars with a common axis. `parts` are the names of the parts, of which a plain bar has none.
pub fn bars(title: &str, axis: &str, parts: &[&str], rows: &[Bar]) -> String {
    let end =
        |row: &Bar| row.parts.iter().sum::<f64>().max(row.interval.map_or(0.0, |(_, high)| high));
    let most = rows.iter().map(end).fold(0.0, f64::max);
    let step = step(most);
    let full = (most / step).ceil().max(1.0) * step;
    let x = |value: f64| LEFT + PLOT * value.max(0.0) / full;
    let (height, legend) = (rows.len() as f64 * ROW, if parts.is_empty() { 0.0 } else { ROW });
    let mut svg = open(title, TOP + legend + height + BOTTOM);
    for (index, name) in parts.iter().enumerate() {
        let at = LEFT + index as f64 * 100.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{at}\" y=\"{}\" width=\"11\" height=\"11\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"{}\">{}</text>",
            TOP - 6.0,
            PARTS[index % PARTS.len()],
            at + 15.0,
            TOP + 4.0,
            escape(name)
        );
    }
    let top = TOP + legend;
    linear_axis(&mut svg, full, step, x, top, top + height, axis);
    for (index, row) in rows.iter().enumerate() {
        let y = top + index as f64 * ROW;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 5.0,
            y + 12.5,
            row.arm.name()
        );
        let mut sum = 0.0;
        for (index, part) in row.parts.iter().enumerate() {
            let fill =
                if row.parts.len() == 1 { colour(row.arm) } else { PARTS[index % PARTS.len()] };
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"13\" fill=\"{fill}\"/>",
                x(sum),
                y + 2.0,
                x(sum + part) - x(sum)
            );
            sum += part;
        }
        if let Some((low, high)) = row.interval {
            let _ = writeln!(
                svg,
                "<path d=\"M{:.1} {:.1}H{:.1}\" stroke=\"black\"/>",
                x(low),
                y + 8.5,
                x(high)
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x(end(row)) + 5.0,
            y + 12.5,
            escape(&row.label)
        );
    }
    svg + "</svg>\n"
}

/// Cumulative distributions over a logarithmic axis, as shares of `of`; what is not above zero is left
/// out.
pub fn curves(title: &str, axis: &str, of: &str, series: &[(ArmKind, Vec<f64>)]) -> String {
    let all = || series.iter().flat_map(|(_, samples)| samples.iter().filter(|s| **s > 0.0));
    let least = all().copied().fold(f64::MAX, f64::min);
    let most = all().copied().fold(f64::MIN_POSITIVE, f64::max);
    let first = if least > most { 0.0 } else { least.log10().floor() };
    let last = most.log10().ceil().max(first + 1.0);
    let x = |value: f64| LEFT + PLOT * (value.log10() - first) / (last - first);
    let y = |share: f64| TOP + CURVES * (1.0 - share);
    let legend = series.len() as f64 * ROW;
    let mut svg = open(title, TOP + CURVES.max(legend) + BOTTOM);
    for decade in 0..=(last - first) as i32 {
        let value = 10_f64.powf(first + f64::from(decade));
        mark(&mut svg, x(value), TOP, TOP + CURVES, &number(value));
    }
    name_axis(&mut svg, TOP + CURVES, axis);
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{}\" stroke=\"#dddddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT + PLOT,
            LEFT - 5.0,
            y(share) + 4.0,
            number(share),
            y = y(share)
        );
    }
    let _ = writeln!(
        svg,
        "<text transform=\"translate(60 {:.1}) rotate(-90)\" text-anchor=\"middle\">share of {}</text>",
        TOP + CURVES / 2.0,
        escape(of)
    );
    for (index, (arm, samples)) in series.iter().enumerate() {
        let mut sorted: Vec<_> = samples.iter().filter(|s| **s > 0.0).copied().collect();
        sorted.sort_by(f64::total_cmp);
        let mut path = String::new();
        for (rank, sample) in sorted.iter().enumerate() {
            let sign = if rank == 0 { 'M' } else { 'L' };
            let share = (rank + 1) as f64 / sorted.len() as f64;
            let _ = write!(path, "{sign}{:.1} {:.1}", x(*sample), y(share));
        }
        let (fill, at) = (colour(*arm), TOP + index as f64 * ROW);
        let width = if *arm == ArmKind::Slipway { 2.5 } else { 1.5 };
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{fill}\" stroke-width=\"{width}\"/>\
             <rect x=\"{}\" y=\"{at:.1}\" width=\"11\" height=\"11\" fill=\"{fill}\"/>\
             <text x=\"{}\" y=\"{:.1}\">{}</text>",
            LEFT + PLOT + 20.0,
            LEFT + PLOT + 36.0,
            at + 10.0,
            arm.name()
        );
    }
    svg + "</svg>\n"
}

pub(super) fn open(title: &str, height: f64) -> String {
    let width = LEFT + PLOT + RIGHT;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"18\" font-size=\"13\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    )
}

fn linear_axis(
    svg: &mut String,
    full: f64,
    step: f64,
    x: impl Fn(f64) -> f64,
    top: f64,
    bottom: f64,
    name: &str,
) {
    for tick in 0..=(full / step).round() as u32 {
        let value = f64::from(tick) * step;
        mark(svg, x(value), top, bottom, &number(value));
    }
    name_axis(svg, bottom, name);
}

pub(super) fn mark(svg: &mut String, x: f64, top: f64, bottom: f64, text: &str) {
    let _ = writeln!(
        svg,
        "<path d=\"M{x:.1} {top:.1}V{:.1}\" stroke=\"#dddddd\"/>\
         <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
        bottom + 4.0,
        bottom + 16.0
    );
}

pub(super) fn name_axis(svg: &mut String, bottom: f64, name: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        LEFT + PLOT / 2.0,
        bottom + 31.0,
        escape(name)
    );
}

/// A round distance between marks.
pub(super) fn step(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let rough = most / TICKS;
    let unit = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * unit >= rough).unwrap_or(10.0);
    factor * unit
}

/// Without what floating point adds.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() { "0".to_owned() } else { text.to_owned() }
}

/// Signs that XML has for itself, written otherwise.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

pub(super) const fn colour(arm: ArmKind) -> &'static str {
    match arm {
        ArmKind::Slipway => "#2b7a78",
        ArmKind::Netns => "#999999",
        ArmKind::Veth => "#d08c60",
        ArmKind::Kata => "#a23b2a",
        ArmKind::TcRouting => "#e3b899",
        ArmKind::TapBridge => "#b5651d",
        ArmKind::Macvlan => "#7d84b2",
        ArmKind::Macvtap => "#4a4e82",
        ArmKind::Ipvlan => "#b48ead",
        ArmKind::Ipvtap => "#865d80",
        ArmKind::CniBridge => "#c9a227",
        ArmKind::CniMacvlan => "#8d9b2e",
        ArmKind::Ovs => "#5b9bd5",
        ArmKind::OvsDpdk => "#2f5d8a",
        ArmKind::VhostNet => "#6b3a0f",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_ends_at_or_before_the_last_mark() {
        let row = |arm, value: f64| Bar {
            arm,
            parts: vec![value],
            interval: Some((value * 0.9, value * 1.1)),
            label: "a < b".to_owned(),
        };
        let svg = bars("t", "s", &[], &[row(ArmKind::Slipway, 1.0), row(ArmKind::Kata, 4.0)]);
        // 4.4 at most, so marks from 0 to 5.
        assert!(svg.contains(&format!("width=\"{:.1}\" height=\"13\"", PLOT * 4.0 / 5.0)), "{svg}");
        assert!(svg.contains(">5</text>") && svg.contains("a &lt; b"), "{svg}");
        assert_eq!((svg.matches("<svg").count(), svg.matches("</svg>").count()), (1, 1));
    }

    #[test]
    fn a_curve_rises_from_its_least_sample_to_its_greatest() {
        let svg = curves("t", "ms", "pods", &[(ArmKind::Veth, vec![100.0, 1.0, 0.0, 10.0])]);
        let (left, right) = (LEFT, LEFT + PLOT);
        assert!(svg.contains(&format!("M{left:.1} {:.1}", TOP + CURVES * 2.0 / 3.0)), "{svg}");
        assert!(svg.contains(&format!("L{right:.1} {TOP:.1}\"")), "{svg}");
        assert!(curves("t", "ms", "pods", &[]).ends_with("</svg>\n"));
    }

    #[test]
    fn marks_are_round_and_few() {
        for (most, expected) in [(4.4, 1.0), (0.07, 0.02), (730.0, 200.0), (0.0, 1.0)] {
            assert!((step(most) - expected).abs() < 1e-9, "{most}: {}", step(most));
        }
        assert_eq!([number(0.1 + 0.2), number(200.0), number(0.0)], ["0.3", "200", "0"]);
    }
}
