//! Drawings as SVG.

use std::fmt::Write;

use super::{Anchor, Drawing, Shape, Text};

/// Returns the SVG document.
pub fn write(drawing: &Drawing) -> String {
    let (width, height) = drawing.size;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for shape in &drawing.shapes {
        // Writing to a string can't fail.
        let _ = shape_to(&mut out, shape);
    }
    out + "</svg>\n"
}

fn shape_to(out: &mut String, shape: &Shape) -> std::fmt::Result {
    match shape {
        Shape::Line {
            points,
            colour: [r, g, b],
            width,
        } => {
            write!(
                out,
                "<polyline fill=\"none\" stroke=\"rgb({r},{g},{b})\" stroke-width=\"{width}\" points=\""
            )?;
            for (x, y) in points {
                write!(out, "{x:.1},{y:.1} ")?;
            }
            writeln!(out, "\"/>")
        }
        Shape::Dot {
            at: (x, y),
            radius,
            colour: [r, g, b],
        } => writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"rgb({r},{g},{b})\"/>"
        ),
        Shape::Box {
            at: (x, y),
            size: (width, height),
            colour: [r, g, b],
        } => writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"rgb({r},{g},{b})\"/>"
        ),
        Shape::Text(Text {
            at: (x, y),
            text,
            anchor,
            colour: [r, g, b],
            is_bold,
        }) => {
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            let weight = if *is_bold { "bold" } else { "normal" };
            let text = text.replace('&', "&amp;").replace('<', "&lt;");
            writeln!(
                out,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\" \
                 fill=\"rgb({r},{g},{b})\">{text}</text>"
            )
        }
    }
}
