//! A line chart as SVG: steps to the right, a value upwards.

use maud::{Markup, html};

/// The drawing's size and the room for its axes, in its own units.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 270.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 44.0;
/// Lines of the grid at most.
const MAX_TICKS: f64 = 6.0;
/// More points than this are drawn as a line alone.
const MAX_DOTS: usize = 40;

/// A value at a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// Standard error of `y`; 0 draws none.
    pub(super) error: f64,
}

impl Point {
    pub(super) fn new(x: f64, y: f64) -> Self {
        Self { x, y, error: 0.0 }
    }
}

/// What is drawn.
pub(super) struct Chart {
    pub(super) title: &'static str,
    pub(super) meaning: &'static str,
    /// Whether the value's axis begins at zero.
    pub(super) from_zero: bool,
    pub(super) points: Vec<Point>,
}

/// Values laid along a length.
struct Axis {
    low: f64,
    high: f64,
    begin: f64,
    end: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        self.begin + share * (self.end - self.begin)
    }

    /// Round values inside, a step of 1, 2 or 5 times a power of ten apart.
    fn ticks(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / MAX_TICKS;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        // Whole multiples, so that no rounding adds up.
        (first..=last).map(|times| times as f64 * step).collect()
    }
}

impl Chart {
    /// The drawing. There is at least one point.
    pub(super) fn draw(&self) -> Markup {
        let (x_axis, y_axis) = self.axes();
        let corner = |point: &Point| format!("{:.1},{:.1}", x_axis.at(point.x), y_axis.at(point.y));
        let line: Vec<_> = self.points.iter().map(corner).collect();
        html! {
            svg.chart viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img"
                aria-label=(self.description()) {
                text.title x=(LEFT) y="18" { (self.title) }
                (grid(&x_axis, &y_axis))
                @for point in &self.points {
                    @if point.error > 0.0 {
                        line.error x1=(units(x_axis.at(point.x))) x2=(units(x_axis.at(point.x)))
                            y1=(units(y_axis.at(point.y - point.error)))
                            y2=(units(y_axis.at(point.y + point.error))) {}
                    }
                }
                polyline.line points=(line.join(" ")) {}
                @if self.points.len() <= MAX_DOTS {
                    @for point in &self.points {
                        circle.dot cx=(units(x_axis.at(point.x))) cy=(units(y_axis.at(point.y)))
                            r="3" {
                            title { (format!("step {}: {:.3}", point.x, point.y)) }
                        }
                    }
                }
                text x=(units((LEFT + WIDTH - RIGHT) / 2.0)) y=(units(HEIGHT - 8.0))
                    text-anchor="middle" { "steps" }
            }
        }
    }

    fn axes(&self) -> (Axis, Axis) {
        let x_values = || self.points.iter().map(|point| point.x);
        let lows = self.points.iter().map(|point| point.y - point.error);
        let highs = self.points.iter().map(|point| point.y + point.error);
        let (low, high) = (lows.fold(f64::INFINITY, f64::min), highs.fold(f64::MIN, f64::max));
        let (low, high) = widened(if self.from_zero { 0.0_f64.min(low) } else { low }, high);
        let (begin, end) = widened(
            x_values().fold(f64::INFINITY, f64::min),
            x_values().fold(f64::NEG_INFINITY, f64::max),
        );
        (
            Axis { low: begin, high: end, begin: LEFT, end: WIDTH - RIGHT },
            Axis { low, high, begin: HEIGHT - BOTTOM, end: TOP },
        )
    }

    /// The chart in words.
    fn description(&self) -> String {
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else {
            return format!("{}: no points", self.title);
        };
        format!(
            "{} over steps: {:.3} at step {}, {:.3} at step {}",
            self.title, first.y, first.x, last.y, last.x
        )
    }
}

/// Lines and numbers of both axes.
fn grid(x_axis: &Axis, y_axis: &Axis) -> Markup {
    html! {
        @for value in y_axis.ticks() {
            @let y = y_axis.at(value);
            line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(units(y)) y2=(units(y)) {}
            text x=(LEFT - 6.0) y=(units(y + 4.0)) text-anchor="end" { (number(value)) }
        }
        @for value in x_axis.ticks() {
            @let x = x_axis.at(value);
            line.grid x1=(units(x)) x2=(units(x)) y1=(TOP) y2=(HEIGHT - BOTTOM) {}
            text x=(units(x)) y=(units(HEIGHT - BOTTOM + 16.0)) text-anchor="middle" {
                (number(value))
            }
        }
    }
}

/// A range with some width, whatever the values.
fn widened(low: f64, high: f64) -> (f64, f64) {
    if high > low { (low, high) } else { (low - 0.5, high + 0.5) }
}

/// A round value as it is read: thousands as k, no zeros at the end.
fn number(value: f64) -> String {
    let (value, unit) = if value.abs() >= 10_000.0 { (value / 1000.0, "k") } else { (value, "") };
    let digits = format!("{value:.4}");
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    format!("{}{unit}", if digits == "-0" { "0" } else { digits })
}

fn units(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let ticks = |low, high| Axis { low, high, begin: 0.0, end: 1.0 }.ticks();
        assert_eq!(ticks(0.0, 1.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(95.0, 305.0), [100.0, 150.0, 200.0, 250.0, 300.0]);
        assert_eq!(ticks(0.0, 12_000.0).len(), 7);
    }

    #[test]
    fn numbers_are_short() {
        let found = [0.0, 0.6000000000000001, 2.5, 9000.0, 12_000.0, 2_500_000.0].map(number);
        assert_eq!(found, ["0", "0.6", "2.5", "9000", "12k", "2500k"]);
    }

    proptest! {
        #[test]
        fn every_point_is_drawn_inside(
            values in prop::collection::vec((0.0..1e6_f64, -1e3..1e3_f64, 0.0..10.0_f64), 1..20),
            from_zero: bool,
        ) {
            let points: Vec<_> = values.iter().map(|&(x, y, error)| Point { x, y, error }).collect();
            let chart = Chart { title: "t", meaning: "m", from_zero, points };
            let (x_axis, y_axis) = chart.axes();
            for point in &chart.points {
                prop_assert!((LEFT - 0.01..=WIDTH - RIGHT + 0.01).contains(&x_axis.at(point.x)));
                for y in [point.y - point.error, point.y + point.error] {
                    prop_assert!((TOP - 0.01..=HEIGHT - BOTTOM + 0.01).contains(&y_axis.at(y)));
                }
            }
            let n_ticks = x_axis.ticks().len().max(y_axis.ticks().len());
            prop_assert!(n_ticks <= 8, "{} ticks", n_ticks);
            prop_assert!(!chart.draw().into_string().contains("NaN"));
        }
    }
}
