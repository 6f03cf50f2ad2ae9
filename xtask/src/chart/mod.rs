//! Charts, as SVG and as PNG of the same shapes.

mod png;
mod svg;

use std::path::Path;

use anyhow::{Context, Result};

/// Width and height of a chart in pixels.
const SIZE: (f32, f32) = (960.0, 600.0);
/// Room for the axis on the left, the title on top, the names on the right, the axis at the bottom.
const MARGINS: (f32, f32, f32, f32) = (90.0, 50.0, 210.0, 60.0);
/// Told apart by people who see few colours, too (Okabe and Ito).
const COLOURS: [[u8; 3]; 7] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [230, 159, 0],
    [86, 180, 233],
    [0, 0, 0],
];
const GREY: [u8; 3] = [200, 200, 200];
const BLACK: [u8; 3] = [0, 0, 0];

/// Something drawn, in pixels from the upper left.
enum Shape {
    Line {
        points: Vec<(f32, f32)>,
        colour: [u8; 3],
        width: f32,
    },
    Dot {
        at: (f32, f32),
        colour: [u8; 3],
    },
    Box {
        at: (f32, f32),
        size: (f32, f32),
        colour: [u8; 3],
    },
    Text {
        at: (f32, f32),
        text: String,
        anchor: Anchor,
    },
}

/// Which end of a text is where it is put.
#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

/// Shapes on white.
#[derive(Default)]
pub struct Drawing(Vec<Shape>);

/// A line of points in a chart, with words beside some of them.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Dots alone: something that was measured.
    pub is_loose: bool,
    /// What stands at each point; nothing where it is empty.
    pub labels: Vec<String>,
}

/// A chart of two logarithmic axes.
pub struct LogChart {
    pub title: String,
    pub x: String,
    pub y: String,
    pub series: Vec<Series>,
}

/// Names, and for each the range of a ratio.
pub struct Ranges {
    pub title: String,
    pub rows: Vec<(String, [f64; 2])>,
}

impl LogChart {
    /// Draws it.
    pub fn draw(&self) -> Drawing {
        let mut drawing = Drawing::default();
        let all = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::around(all().map(|point| point.0), MARGINS.0, SIZE.0 - MARGINS.2);
        let y = Axis::around(all().map(|point| point.1), SIZE.1 - MARGINS.3, MARGINS.1);
        drawing.text((SIZE.0 / 2.0, 28.0), &self.title, Anchor::Middle);
        drawing.text((SIZE.0 / 2.0, SIZE.1 - 14.0), &self.x, Anchor::Middle);
        drawing.text((8.0, MARGINS.1 - 10.0), &self.y, Anchor::Start);
        for value in x.ticks() {
            let at = x.at(value);
            drawing.line(vec![(at, y.start), (at, y.end)], GREY, 1.0);
            drawing.text((at, y.start + 20.0), &number(value), Anchor::Middle);
        }
        for value in y.ticks() {
            let at = y.at(value);
            drawing.line(vec![(x.start, at), (x.end, at)], GREY, 1.0);
            drawing.text((x.start - 8.0, at + 4.0), &number(value), Anchor::End);
        }
        for (index, series) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let points: Vec<_> = series
                .points
                .iter()
                .map(|p| (x.at(p.0), y.at(p.1)))
                .collect();
            for (number, at) in points.iter().enumerate() {
                drawing.0.push(Shape::Dot { at: *at, colour });
                if let Some(label) = series.labels.get(number).filter(|label| !label.is_empty()) {
                    drawing.text((at.0, at.1 - 9.0), label, Anchor::Middle);
                }
            }
            if !series.is_loose {
                drawing.line(points, colour, 2.0);
            }
            let name = (
                SIZE.0 - MARGINS.2 + 20.0,
                MARGINS.1 + 22.0 * index as f32 + 10.0,
            );
            drawing.0.push(Shape::Dot { at: name, colour });
            drawing.text((name.0 + 12.0, name.1 + 4.0), &series.name, Anchor::Start);
        }
        drawing
    }
}

impl Ranges {
    /// Draws it, one row below the other.
    pub fn draw(&self) -> Drawing {
        let mut drawing = Drawing::default();
        let values = || self.rows.iter().flat_map(|(_, range)| range).copied();
        let x = Axis::around(values().chain([1.0]), 360.0, SIZE.0 - 40.0);
        drawing.text((SIZE.0 / 2.0, 28.0), &self.title, Anchor::Middle);
        let bottom = SIZE.1 - MARGINS.3;
        for value in [0.5, 0.7, 1.0, 1.4, 2.0] {
            let at = x.at(value);
            drawing.line(vec![(at, MARGINS.1), (at, bottom)], GREY, 1.0);
            drawing.text((at, bottom + 20.0), &value.to_string(), Anchor::Middle);
        }
        let height = (bottom - MARGINS.1) / self.rows.len().max(1) as f32;
        for (index, (name, [low, high])) in self.rows.iter().enumerate() {
            let top = MARGINS.1 + height * index as f32;
            let (from, to) = (x.at(low.min(*high)), x.at(low.max(*high)));
            drawing.0.push(Shape::Box {
                at: (from, top + height * 0.2),
                size: ((to - from).max(1.0), height * 0.6),
                colour: COLOURS[0],
            });
            drawing.text((350.0, top + height / 2.0 + 4.0), name, Anchor::End);
        }
        drawing
    }
}

/// A logarithmic axis between two pixels.
struct Axis {
    low: f64,
    high: f64,
    start: f32,
    end: f32,
}

impl Axis {
    /// One on which all values are.
    fn around(values: impl Iterator<Item = f64> + Clone, start: f32, end: f32) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min).max(1e-9);
        let high = values.fold(low, f64::max);
        Self {
            low: low / 1.2,
            high: high * 1.2,
            start,
            end,
        }
    }

    fn at(&self, value: f64) -> f32 {
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        self.start + share as f32 * (self.end - self.start)
    }

    fn ticks(&self) -> Vec<f64> {
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let ticks = decades.flat_map(|decade| [1.0, 3.0].map(|step| step * 10f64.powi(decade)));
        ticks
            .filter(|tick| (self.low..=self.high).contains(tick))
            .collect()
    }
}

fn number(value: f64) -> String {
    let digits = (-value.log10().floor()).max(0.0) as usize;
    format!("{value:.digits$}")
}

impl Drawing {
    fn text(&mut self, at: (f32, f32), text: &str, anchor: Anchor) {
        let text = text.to_owned();
        self.0.push(Shape::Text { at, text, anchor });
    }

    fn line(&mut self, points: Vec<(f32, f32)>, colour: [u8; 3], width: f32) {
        self.0.push(Shape::Line {
            points,
            colour,
            width,
        });
    }

    /// Writes it as `name.svg` and `name.png`.
    pub fn write(&self, folder: &Path, name: &str) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        let file = |kind: &str| folder.join(format!("{name}.{kind}"));
        std::fs::write(file("svg"), svg::write(&self.0)).context("can't write a chart")?;
        std::fs::write(file("png"), png::write(&self.0)?).context("can't write a chart")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_is_drawn_as_svg_and_png() {
        let chart = LogChart {
            title: "t < u".into(),
            x: "x".into(),
            y: "y".into(),
            series: vec![Series {
                name: "s".into(),
                points: vec![(1.0, 0.01), (100.0, 5000.0)],
                is_loose: false,
                labels: vec!["a".into(), String::new()],
            }],
        };
        let drawing = chart.draw();
        let svg = svg::write(&drawing.0);
        assert!(svg.starts_with("<svg") && svg.contains("t &lt; u") && svg.contains("<polyline"));
        let png = png::write(&drawing.0).unwrap();
        assert!(png.starts_with(b"\x89PNG"));
    }

    #[test]
    fn ticks_are_ones_and_threes() {
        let axis = Axis::around([0.05, 40.0].into_iter(), 0.0, 100.0);
        let ticks: Vec<_> = axis.ticks().into_iter().map(number).collect();
        assert_eq!(ticks, ["0.1", "0.3", "1", "3", "10", "30"]);
        assert_eq!(
            [0.01, 0.3, 1.0, 3000.0].map(number),
            ["0.01", "0.3", "1", "3000"]
        );
    }
}
