//! Rotation about the centre, counter-clockwise: by any angle, or by quarter turns.
//!
//! A rotated square needs corners that the image doesn't have; they are filled with its
//! reflection, since black corners would tell the encoder the angle.

use super::canvas::reflect;
use super::{Augmentation, Canvas};
use crate::seed::Rng;
use rand::RngExt;

/// Turns by 90, 180 or 270 degrees, each as likely.
pub(super) struct QuarterTurn {
    turned: Canvas,
}

impl QuarterTurn {
    pub(super) fn new(side_px: usize) -> Self {
        Self { turned: Canvas::new(side_px) }
    }
}

impl Augmentation for QuarterTurn {
    fn apply(&mut self, canvas: &mut Canvas, rng: &mut Rng) {
        turn(canvas, rng.random_range(1..=3), &mut self.turned);
    }
}

/// Turns by an angle drawn uniformly from `-max_degrees..=max_degrees`.
pub(super) struct Rotation {
    max_degrees: f32,
    turned: Canvas,
}

impl Rotation {
    pub(super) fn new(max_degrees: f32, side_px: usize) -> Self {
        Self { max_degrees, turned: Canvas::new(side_px) }
    }
}

impl Augmentation for Rotation {
    fn apply(&mut self, canvas: &mut Canvas, rng: &mut Rng) {
        let degrees = rng.random_range(-self.max_degrees..=self.max_degrees);
        rotate(canvas, degrees, &mut self.turned);
        std::mem::swap(canvas, &mut self.turned);
    }
}

/// Turns `canvas` by `n_turns` quarter turns, with `turned` to paint on.
pub(super) fn turn(canvas: &mut Canvas, n_turns: usize, turned: &mut Canvas) {
    for _ in 0..n_turns {
        quarter_turn(canvas, turned);
        std::mem::swap(canvas, turned);
    }
}

/// Paints `turned` with `canvas` turned by 90 degrees.
fn quarter_turn(canvas: &Canvas, turned: &mut Canvas) {
    let side_px = canvas.side_px();
    for (from, to) in canvas.planes().into_iter().zip(turned.planes_mut()) {
        for (y, row) in to.chunks_exact_mut(side_px).enumerate() {
            let column = side_px - 1 - y;
            for (value, from_row) in row.iter_mut().zip(from.chunks_exact(side_px)) {
                *value = from_row[column];
            }
        }
    }
}

/// Paints `turned` with `canvas` turned by `degrees`, sampled bilinearly.
pub(super) fn rotate(canvas: &Canvas, degrees: f32, turned: &mut Canvas) {
    let side_px = canvas.side_px();
    let (sin, cos) = degrees.to_radians().sin_cos();
    let centre = (side_px as f32 - 1.0) / 2.0;
    let from = canvas.planes();
    let mut to = turned.planes_mut();
    for y in 0..side_px {
        let dy = y as f32 - centre;
        for x in 0..side_px {
            // Where this pixel comes from: its offset from the centre, turned back.
            let dx = x as f32 - centre;
            let (left, right, across) = neighbours(centre + cos * dx - sin * dy, side_px);
            let (above, below, down) = neighbours(centre + sin * dx + cos * dy, side_px);
            for (from, to) in from.iter().zip(&mut to) {
                let upper =
                    mix(from[above * side_px + left], from[above * side_px + right], across);
                let lower =
                    mix(from[below * side_px + left], from[below * side_px + right], across);
                // A mean of values up to 1 may round to just above 1.
                to[y * side_px + x] = mix(upper, lower, down).min(1.0);
            }
        }
    }
}

/// The two pixels around `position` and how far it lies towards the second.
fn neighbours(position: f32, side_px: usize) -> (usize, usize, f32) {
    let before = position.floor();
    let index = before as isize;
    (reflect(index, side_px), reflect(index + 1, side_px), position - before)
}

fn mix(a: f32, b: f32, share_of_b: f32) -> f32 {
    a * (1.0 - share_of_b) + b * share_of_b
}

#[cfg(test)]
mod tests {
    use super::super::canvas::tests::{distance, noise};
    use super::*;
    use crate::seed::{Purpose, rng};

    fn quarter_turns(canvas: &Canvas, n_turns: usize) -> Canvas {
        let mut canvas = canvas.clone();
        let mut turned = canvas.clone();
        turn(&mut canvas, n_turns, &mut turned);
        canvas
    }

    #[test]
    fn the_right_edge_is_turned_to_the_top() {
        let mut canvas = Canvas::new(2);
        canvas.values_mut()[..4].copy_from_slice(&[0.1, 0.2, 0.3, 0.4]);
        assert_eq!(quarter_turns(&canvas, 1).planes()[0], [0.2, 0.4, 0.1, 0.3]);
    }

    #[test]
    fn four_quarter_turns_are_none() {
        let canvas = noise(5, &mut rng(1, Purpose::View, &[]));
        assert_eq!(quarter_turns(&canvas, 4), canvas);
    }

    #[test]
    fn right_angles_are_quarter_turns() {
        let mut rng = rng(2, Purpose::View, &[]);
        for side_px in [1, 6, 7] {
            let canvas = noise(side_px, &mut rng);
            for n_turns in 0..4 {
                let mut turned = Canvas::new(side_px);
                rotate(&canvas, 90.0 * n_turns as f32, &mut turned);
                let exact = quarter_turns(&canvas, n_turns);
                // Positions are off by the rounding of pi, about 1e-6 pixels.
                assert!(distance(turned.values(), exact.values()) < 1e-5);
            }
        }
    }

    #[test]
    fn corners_are_filled_by_reflection() {
        let mut canvas = Canvas::new(9);
        canvas.values_mut().fill(0.7);
        let mut turned = Canvas::new(9);
        rotate(&canvas, 33.0, &mut turned);
        assert!(distance(turned.values(), canvas.values()) < 1e-6);
    }

    #[test]
    fn a_slope_is_turned_by_the_angle() {
        // On a plane bilinear sampling is exact: v = centre + x / 100 becomes
        // centre + (cos x - sin y) / 100 where no reflection is met.
        let side_px = 21;
        let mut canvas = Canvas::new(side_px);
        for (i, value) in canvas.values_mut().iter_mut().enumerate() {
            *value = 0.5 + ((i % side_px) as f32 - 10.0) / 100.0;
        }
        let mut turned = Canvas::new(side_px);
        let degrees = 25.0_f32;
        rotate(&canvas, degrees, &mut turned);
        let (sin, cos) = degrees.to_radians().sin_cos();
        for y in 5..16 {
            for x in 5..16 {
                let exact = 0.5 + (cos * (x as f32 - 10.0) - sin * (y as f32 - 10.0)) / 100.0;
                let value = turned.planes()[1][y * side_px + x];
                assert!((value - exact).abs() < 1e-5, "{value} is not {exact} at {x}, {y}");
            }
        }
    }
}
