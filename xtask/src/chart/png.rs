//! Shapes as PNG. Text is in a font of 8 by 8 pixels, so that no font has to be installed.

use anyhow::{Context, Result};
use font8x8::legacy::BASIC_LEGACY;
use tiny_skia::{Color, FillRule, Paint, Path, PathBuilder, Pixmap, Rect, Stroke, Transform};

use super::{Anchor, BLACK, SIZE, Shape};

const GLYPH: f32 = 8.0;

/// The file.
pub fn write(shapes: &[Shape]) -> Result<Vec<u8>> {
    let mut picture = Pixmap::new(SIZE.0 as u32, SIZE.1 as u32).context("a chart has no size")?;
    picture.fill(Color::WHITE);
    for shape in shapes {
        match shape {
            Shape::Line {
                points,
                colour,
                width,
            } => {
                let mut path = PathBuilder::new();
                for (index, (x, y)) in points.iter().enumerate() {
                    if index == 0 {
                        path.move_to(*x, *y);
                    } else {
                        path.line_to(*x, *y);
                    }
                }
                let stroke = Stroke {
                    width: *width,
                    ..Stroke::default()
                };
                if let Some(path) = path.finish() {
                    let paint = paint(*colour);
                    picture.stroke_path(&path, &paint, &stroke, Transform::identity(), None);
                }
            }
            Shape::Dot { at: (x, y), colour } => {
                fill(&mut picture, PathBuilder::from_circle(*x, *y, 4.0), *colour)
            }
            Shape::Box {
                at: (x, y),
                size: (width, height),
                colour,
            } => {
                let area = Rect::from_xywh(*x, *y, *width, *height);
                fill(&mut picture, area.map(PathBuilder::from_rect), *colour);
            }
            Shape::Text { at, text, anchor } => text_to(&mut picture, *at, text, *anchor),
        }
    }
    picture.encode_png().context("a chart can't be encoded")
}

fn paint([r, g, b]: [u8; 3]) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(r, g, b, 255);
    paint
}

fn fill(picture: &mut Pixmap, path: Option<Path>, colour: [u8; 3]) {
    if let Some(path) = path {
        let paint = paint(colour);
        picture.fill_path(
            &path,
            &paint,
            FillRule::Winding,
            Transform::identity(),
            None,
        );
    }
}

fn text_to(picture: &mut Pixmap, (x, y): (f32, f32), text: &str, anchor: Anchor) {
    let length = text.chars().count() as f32 * GLYPH;
    let start = match anchor {
        Anchor::Start => x,
        Anchor::Middle => x - length / 2.0,
        Anchor::End => x - length,
    };
    for (index, letter) in text.chars().enumerate() {
        let Some(rows) = BASIC_LEGACY.get(letter as usize) else {
            continue;
        };
        let left = (start + index as f32 * GLYPH).round();
        for (down, row) in rows.iter().enumerate() {
            for right in (0..8).filter(|bit| row >> bit & 1 != 0) {
                let top = (y - GLYPH).round() + down as f32;
                let dot = Rect::from_xywh(left + right as f32, top, 1.0, 1.0);
                fill(picture, dot.map(PathBuilder::from_rect), BLACK);
            }
        }
    }
}
