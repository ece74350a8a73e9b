//! Pictures of the data plane: figures over an axis with their intervals, and one figure against another.

use std::fmt::Write as _;

use super::svg::{
    BOTTOM, CURVES, LEFT, PLOT, ROW, TOP, colour, escape, mark, name_axis, number, open, step,
};
use crate::compare::arms::ArmKind;
use crate::compare::summary::Estimate;

/// Between the arms' marks of one place, so that intervals do not hide each other.
const ASIDE: f64 = 3.0;

/// An arm's figures: one for each place of the axis, where it has one.
#[derive(Debug)]
pub struct Line {
    /// Whose.
    pub arm: ArmKind,
    /// In the order of the places.
    pub estimates: Vec<Option<Estimate>>,
}

/// Figures with their intervals over `places`, which lie evenly; `joined`: with lines between them.
pub fn lines(
    title: &str,
    axis: &str,
    unit: &str,
    places: &[&str],
    joined: bool,
    of: &[Line],
) -> String {
    let highs = of.iter().flat_map(|line| line.estimates.iter().flatten()).map(|e| e.high);
    let scale = Scale::of(highs.fold(0.0, f64::max));
    let width = PLOT / places.len().max(1) as f64;
    let mut svg = frame(title, axis, unit, of.len(), &scale);
    for (index, place) in places.iter().enumerate() {
        mark(
            &mut svg,
            LEFT + width * (index as f64 + 0.5),
            TOP + CURVES,
            TOP + CURVES,
            &escape(place),
        );
    }
    for (index, Line { arm, estimates }) in of.iter().enumerate() {
        let aside = (index as f64 - (of.len() as f64 - 1.0) / 2.0) * ASIDE;
        let (mut path, mut marks, mut was_there) = (String::new(), String::new(), false);
        for (place, estimate) in estimates.iter().enumerate() {
            let Some(Estimate { median, low, high, .. }) = estimate else {
                was_there = false;
                continue;
            };
            let x = LEFT + width * (place as f64 + 0.5) + aside;
            let (y, top, bottom) = (scale.y(*median), scale.y(*high), scale.y(*low));
            let sign = if was_there && joined { 'L' } else { 'M' };
            let _ = write!(path, "{sign}{x:.1} {y:.1}");
            let _ = write!(
                marks,
                "<path d=\"M{x:.1} {bottom:.1}V{top:.1}\" stroke=\"{fill}\"/>\
                 <circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{fill}\"/>",
                fill = colour(*arm)
            );
            was_there = true;
        }
        let stroke = if *arm == ArmKind::Slipway { 2.5 } else { 1.5 };
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{stroke}\"/>{marks}",
            colour(*arm)
        );
        name(&mut svg, *arm, index);
    }
    svg + "</svg>\n"
}

/// What each arm has of one figure against what it has of another: `(across, up)`, a dot each.
pub fn dots(title: &str, axis: &str, up: &str, of: &[(ArmKind, Vec<(f64, f64)>)]) -> String {
    let most = |side: fn(&(f64, f64)) -> f64| {
        of.iter().flat_map(|(_, dots)| dots.iter().map(side)).fold(0.0, f64::max)
    };
    let (across, scale) = (Scale::of(most(|dot| dot.0)), Scale::of(most(|dot| dot.1)));
    let mut svg = frame(title, axis, up, of.len(), &scale);
    for tick in 0..=across.ticks() {
        let value = f64::from(tick) * across.step;
        mark(&mut svg, LEFT + PLOT * value / across.full, TOP, TOP + CURVES, &number(value));
    }
    for (index, (arm, dots)) in of.iter().enumerate() {
        for (x, y) in dots {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{}\" fill-opacity=\"0.7\"/>",
                LEFT + PLOT * x / across.full,
                scale.y(*y),
                colour(*arm)
            );
        }
        name(&mut svg, *arm, index);
    }
    svg + "</svg>\n"
}

/// From zero, up to a mark.
struct Scale {
    step: f64,
    full: f64,
}

impl Scale {
    fn of(most: f64) -> Self {
        let step = step(most);
        Self { step, full: (most / step).ceil().max(1.0) * step }
    }

    fn ticks(&self) -> u32 {
        (self.full / self.step).round() as u32
    }

    fn y(&self, value: f64) -> f64 {
        TOP + CURVES * (1.0 - value.max(0.0) / self.full)
    }
}

fn frame(title: &str, axis: &str, up: &str, names: usize, scale: &Scale) -> String {
    let mut svg = open(title, TOP + CURVES.max(names as f64 * ROW) + BOTTOM);
    for tick in 0..=scale.ticks() {
        let value = f64::from(tick) * scale.step;
        let y = scale.y(value);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{}\" stroke=\"#dddddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT + PLOT,
            LEFT - 5.0,
            y + 4.0,
            number(value)
        );
    }
    let _ = writeln!(
        svg,
        "<text transform=\"translate(45 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        TOP + CURVES / 2.0,
        escape(up)
    );
    name_axis(&mut svg, TOP + CURVES, axis);
    svg
}

fn name(svg: &mut String, arm: ArmKind, index: usize) {
    let at = TOP + index as f64 * ROW;
    let _ = writeln!(
        svg,
        "<rect x=\"{}\" y=\"{at:.1}\" width=\"11\" height=\"11\" fill=\"{}\"/>\
         <text x=\"{}\" y=\"{:.1}\">{}</text>",
        LEFT + PLOT + 20.0,
        colour(arm),
        LEFT + PLOT + 36.0,
        at + 10.0,
        arm.name()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(median: f64) -> Option<Estimate> {
        Some(Estimate { median, low: median - 1.0, high: median + 1.0, samples: 3 })
    }

    #[test]
    fn lines_join_neighbours_that_are_there_and_intervals_stand_in_the_picture() {
        let of = |joined| {
            let estimates = vec![estimate(3.0), estimate(4.0), None, estimate(2.0)];
            let line = Line { arm: ArmKind::Slipway, estimates };
            lines("t", "pairs", "Gbit/s", &["1", "5", "10", "50"], joined, &[line])
        };
        let svg = of(true);
        // 5 at most: the first place lies at an eighth, its median at 3 of 5.
        let (x, y) = (LEFT + PLOT / 8.0, TOP + CURVES * 0.4);
        assert!(svg.contains(&format!("<path d=\"M{x:.1} {y:.1}L")), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 3);
        assert_eq!(svg.matches('L').count(), 1, "the gap is not bridged: {svg}");
        assert_eq!(of(false).matches('L').count(), 0);
        let whole = (svg.matches("<svg").count(), svg.matches("</svg>").count());
        assert_eq!(whole, (1, 1));
    }

    #[test]
    fn dots_lie_within_their_axes_and_nothing_makes_an_empty_picture() {
        let svg =
            dots("t", "Gbit/s", "segments", &[(ArmKind::Veth, vec![(10.0, 0.0), (0.0, 4.0)])]);
        let corner = format!("cx=\"{:.1}\" cy=\"{:.1}\"", LEFT + PLOT, TOP + CURVES);
        assert!(svg.contains(&corner), "{svg}");
        assert!(dots("t", "a", "b", &[]).ends_with("</svg>\n"));
    }
}
