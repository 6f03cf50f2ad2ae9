//! Shapes as PNG, at twice their size. Letters come as pictures with the program, so that no font has to be installed.

use anyhow::{Context, Result};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster};
use tiny_skia::{
    Color, FillRule, Paint, Path, PathBuilder, Pixmap, PremultipliedColorU8, Rect, Stroke,
    Transform,
};

use super::{Anchor, Drawing, Shape, Text};

/// Pixels for one of the drawing's.
const SCALE: f32 = 2.0;
const HEIGHT: RasterHeight = RasterHeight::Size24;
/// From a letter's baseline to its picture's upper edge.
const ASCENT: f32 = 19.0;

/// The file.
pub fn write(drawing: &Drawing) -> Result<Vec<u8>> {
    let (width, height) = drawing.size;
    let picture = Pixmap::new((width * SCALE) as u32, (height * SCALE) as u32);
    let mut picture = picture.context("a chart has no size")?;
    picture.fill(Color::WHITE);
    for shape in &drawing.shapes {
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
                    picture.stroke_path(&path, &paint(*colour), &stroke, scaled(), None);
                }
            }
            Shape::Dot {
                at: (x, y),
                radius,
                colour,
            } => fill(
                &mut picture,
                PathBuilder::from_circle(*x, *y, *radius),
                *colour,
            ),
            Shape::Box {
                at: (x, y),
                size: (width, height),
                colour,
            } => {
                let area = Rect::from_xywh(*x, *y, *width, *height);
                fill(&mut picture, area.map(PathBuilder::from_rect), *colour);
            }
            Shape::Text(text) => write_text(&mut picture, text),
        }
    }
    picture.encode_png().context("a chart can't be encoded")
}

fn scaled() -> Transform {
    Transform::from_scale(SCALE, SCALE)
}

fn paint([r, g, b]: [u8; 3]) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(r, g, b, 255);
    paint
}

fn fill(picture: &mut Pixmap, path: Option<Path>, colour: [u8; 3]) {
    if let Some(path) = path {
        picture.fill_path(&path, &paint(colour), FillRule::Winding, scaled(), None);
    }
}

fn write_text(picture: &mut Pixmap, text: &Text) {
    let weight = if text.is_bold {
        FontWeight::Bold
    } else {
        FontWeight::Regular
    };
    let letters = text
        .text
        .chars()
        .filter_map(|c| get_raster(c, weight, HEIGHT));
    let letters: Vec<_> = letters.collect();
    let length: usize = letters.iter().map(|letter| letter.width()).sum();
    let start = text.at.0 * SCALE
        - match text.anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => length as f32 / 2.0,
            Anchor::End => length as f32,
        };
    let (mut left, top) = (
        start.round() as i64,
        (text.at.1 * SCALE - ASCENT).round() as i64,
    );
    for letter in letters {
        for (row, y) in letter.rows().zip(top..) {
            for (ink, x) in row.iter().zip(left..) {
                blend(picture, x, y, *ink, text.colour);
            }
        }
        left += letter.width() as i64;
    }
}

/// Puts so much ink of a colour on a pixel, if it is in the picture.
fn blend(picture: &mut Pixmap, x: i64, y: i64, ink: u8, colour: [u8; 3]) {
    let (width, height) = (i64::from(picture.width()), i64::from(picture.height()));
    if ink == 0 || !(0..width).contains(&x) || !(0..height).contains(&y) {
        return;
    }
    let pixel = &mut picture.pixels_mut()[(y * width + x) as usize];
    let mix = |paper: u8, colour: u8| {
        let (ink, paper, colour) = (u32::from(ink), u32::from(paper), u32::from(colour));
        ((paper * (255 - ink) + colour * ink) / 255) as u8
    };
    let [r, g, b] = colour;
    let mixed = (
        mix(pixel.red(), r),
        mix(pixel.green(), g),
        mix(pixel.blue(), b),
    );
    if let Some(mixed) = PremultipliedColorU8::from_rgba(mixed.0, mixed.1, mixed.2, 255) {
        *pixel = mixed;
    }
}
