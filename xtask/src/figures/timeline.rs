//! The starts of pods at once as a picture: a bar for each pod, a colour for each stage.
//!
//! ```text
//!   1  |##==...........~~|            2.1 s
//!   2  |##===............~~|          2.3 s
//!      0        1        2 s
//! ```

use std::fmt::{self, Write as _};

use super::starts::{self, Stage, Start};

/// Stages and their colours, in the order of the legend. Neighbours differ for colour-blind eyes, too.
const COLOURS: [(&str, &str); 10] = [
    ("NetNS", "#4477aa"),
    ("AddCNI", "#66ccee"),
    ("Cgroup", "#aa3377"),
    ("AttachIf", "#228833"),
    ("StartVM", "#ccbb44"),
    ("Guest", "#ee6677"),
    (starts::SANDBOX, "#4477aa"),
    (starts::PAUSE, "#bbbbbb"),
    (starts::CREATE, "#77aadd"),
    (starts::START, "#332288"),
];
/// For a stage that came up since.
const OTHER: &str = "#000000";
const WIDTH: f64 = 960.0;
const LEFT: f64 = 40.0;
/// For the time at the end of a bar.
const RIGHT: f64 = 70.0;
const TOP: f64 = 64.0;
const ROW: f64 = 20.0;
/// More marks than this on the axis cannot be read.
const MOST_TICKS: f64 = 10.0;

/// An SVG document of `starts`, the first to be done on top.
pub fn svg(title: &str, starts: &[Start]) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write!(text, "{}", Picture { title, starts });
    text
}

struct Picture<'a> {
    title: &'a str,
    starts: &'a [Start],
}

impl fmt::Display for Picture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut starts: Vec<_> = self.starts.iter().collect();
        starts.sort_by(|a, b| a.done_ms().total_cmp(&b.done_ms()));
        let last_ms = starts.last().map_or(0.0, |start| start.done_ms()).max(1.0);
        let scale = (WIDTH - LEFT - RIGHT) / last_ms;
        let bottom = TOP + ROW * starts.len() as f64;
        let height = bottom + 40.0;
        writeln!(
            f,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="{LEFT}" y="20" font-size="15">{}</text>"##,
            escaped(self.title)
        )?;
        legend(f, &starts)?;
        axis(f, last_ms, scale, bottom)?;
        for (number, start) in starts.into_iter().enumerate() {
            bar(f, number, start, scale)?;
        }
        writeln!(f, "</svg>")
    }
}

/// The stages that occur.
fn legend(f: &mut fmt::Formatter<'_>, starts: &[&Start]) -> fmt::Result {
    let occurs =
        |name: &str| starts.iter().any(|start| start.stages.iter().any(|s| s.name == name));
    let mut x = LEFT;
    for (name, colour) in COLOURS.iter().filter(|(name, _)| occurs(name)) {
        writeln!(f, r#"<rect x="{x:.1}" y="34" width="12" height="12" fill="{colour}"/>"#)?;
        writeln!(f, r#"<text x="{:.1}" y="44">{name}</text>"#, x + 16.0)?;
        x += 34.0 + 7.0 * name.len() as f64;
    }
    Ok(())
}

fn axis(f: &mut fmt::Formatter<'_>, last_ms: f64, scale: f64, bottom: f64) -> fmt::Result {
    let step = tick_ms(last_ms);
    let mut at = 0.0;
    while at <= last_ms {
        let x = LEFT + at * scale;
        writeln!(
            f,
            r##"<line x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom}" stroke="#dddddd"/>"##
        )?;
        let y = bottom + 16.0;
        writeln!(f, r#"<text x="{x:.1}" y="{y}" text-anchor="middle">{} s</text>"#, at / 1e3)?;
        at += step;
    }
    Ok(())
}

fn bar(f: &mut fmt::Formatter<'_>, number: usize, start: &Start, scale: f64) -> fmt::Result {
    let y = TOP + ROW * number as f64;
    let text_y = y + 14.0;
    writeln!(
        f,
        r#"<text x="{:.1}" y="{text_y}" text-anchor="end">{}</text>"#,
        LEFT - 8.0,
        number + 1
    )?;
    let mut x = LEFT + start.asked_ms * scale;
    for Stage { name, ms } in &start.stages {
        let known = COLOURS.iter().find(|(known, _)| known == name);
        let colour = known.map_or(OTHER, |(_, colour)| colour);
        let width = ms * scale;
        let (height, name) = (ROW - 4.0, escaped(name));
        writeln!(
            f,
            r#"<rect x="{x:.1}" y="{:.1}" width="{width:.1}" height="{height}" fill="{colour}"><title>{name}: {ms:.0} ms</title></rect>"#,
            y + 2.0,
        )?;
        x += width;
    }
    writeln!(f, r#"<text x="{:.1}" y="{text_y}">{:.2} s</text>"#, x + 6.0, start.total_ms / 1e3)
}

/// The distance of two marks: 1, 2 or 5 of a power of ten.
fn tick_ms(last_ms: f64) -> f64 {
    let mut power = 1.0;
    loop {
        for digit in [1.0, 2.0, 5.0] {
            if last_ms <= digit * power * MOST_TICKS {
                return digit * power;
            }
        }
        power *= 10.0;
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(asked_ms: f64, stages: &[(&str, f64)]) -> Start {
        let stages = stages.iter().map(|&(name, ms)| Stage { name: name.to_owned(), ms });
        let stages: Vec<_> = stages.collect();
        let total_ms = stages.iter().map(|stage| stage.ms).sum();
        Start { asked_ms, sandbox_ms: total_ms, total_ms, stages }
    }

    #[test]
    fn each_pod_has_a_bar_of_its_stages_and_the_first_to_be_done_comes_first() {
        let slow = start(0.0, &[("NetNS", 1000.0), ("StartVM", 3000.0)]);
        let fast = start(10.0, &[("NetNS", 500.0), ("StartVM", 1000.0)]);
        let svg = svg("2 pods & more", &[slow, fast]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(svg.contains("2 pods &amp; more"), "{svg}");
        assert_eq!(svg.matches("<title>StartVM: ").count(), 2);
        let place = |text: &str| svg.find(text).unwrap_or_else(|| panic!("{text}: {svg}"));
        assert!(place(">1.50 s</text>") < place(">4.00 s</text>"));
        // The last one ends where the place for its time begins.
        let end = LEFT + (WIDTH - LEFT - RIGHT) + 6.0;
        assert!(svg.contains(&format!(r#"<text x="{end:.1}" y="98">4.00 s"#)), "{svg}");
    }

    #[test]
    fn the_legend_names_what_occurs() {
        let svg = svg("", &[start(0.0, &[("NetNS", 1.0), ("Later", 1.0)])]);
        assert!(svg.contains(">NetNS</text>") && !svg.contains(">StartVM</text>"), "{svg}");
        assert!(svg.contains(OTHER), "{svg}");
    }

    #[test]
    fn marks_are_round_and_few() {
        for (last, tick) in [(1.0, 1.0), (11.0, 2.0), (2_300.0, 500.0), (60_000.0, 10_000.0)] {
            assert_eq!(tick_ms(last), tick, "{last}");
        }
    }
}
