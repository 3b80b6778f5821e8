//! Whether the training loss has risen and stays up: the Page-Hinkley test, a warning that changes nothing.
//!
//! With loss l of step t, and u and s the mean and the standard deviation of the losses before it,
//!
//! ```text
//! z_t  = (l_t - u_t) / s_t
//! m_t  = sum over i <= t of (z_i - delta),  m_0 = 0
//! PH_t = m_t - min over i <= t of m_i  =  max(0, PH_(t-1) + z_t - delta)
//! ```
//!
//! and it warns at the first t with PH_t > threshold, then begins anew: what comes next is the new usual. A rise
//! of r standard deviations, r > delta, is told after threshold / (r - delta) steps. Sources: Page, "Continuous
//! inspection schemes" (1954); Hinkley, "Inference about the change-point from cumulative sum tests" (1971).
//!
//! Differs from the papers: they know u and s. Here both are found, and old losses fade from them (each new one
//! weighs 1/[`MEMORY`]), since a loss that falls for days has no one mean; what rises more slowly than
//! that is never told. s is at least a fiftieth of u, as in [`health`](super::health), so that a very even loss does not
//! make much of little. A single loss that jumps is health's concern: steps that it leaves out are not seen here.

use crate::checkpoint::UsualLoss;

/// Losses before the first is judged, and losses over which a mean reaches back. Guesses: the mean is then
/// within an eighth of a standard deviation; some minutes of a run.
const ENOUGH: u64 = 64;
const MEMORY: f64 = 500.0;
/// The least deviation, as a share of the mean.
const LEAST_DEVIATION: f64 = 0.02;

/// When it warns; both in standard deviations of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// A rise that is tolerated: half of the least that is to be told.
    pub delta: f64,
    /// The sum of what lies beyond it at which it warns.
    pub threshold: f64,
}

/// A loss that has risen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rise {
    /// The last loss.
    pub(super) loss: f32,
    /// The mean of those before.
    pub(super) usual: f64,
}

/// The test with what it remembers.
pub(super) struct PageHinkley {
    config: Config,
    usual: UsualLoss,
}

impl PageHinkley {
    /// Goes on with what a checkpoint held.
    pub(super) fn new(config: Config, usual: UsualLoss) -> Self {
        Self { config, usual }
    }

    /// What it remembers, for checkpoints.
    pub(super) fn usual(&self) -> UsualLoss {
        self.usual
    }

    /// Becomes what a checkpoint held.
    pub(super) fn restore(&mut self, usual: UsualLoss) {
        self.usual = usual;
    }

    /// Takes the loss of a step that was taken; warns if it has risen.
    pub(super) fn push(&mut self, loss: f32) -> Option<Rise> {
        if !loss.is_finite() {
            return None;
        }
        let rise = (self.usual.n_losses >= ENOUGH).then(|| self.judge(loss)).flatten();
        if rise.is_some() {
            self.usual = UsualLoss::default();
        }
        self.remember(f64::from(loss));
        rise
    }

    fn judge(&mut self, loss: f32) -> Option<Rise> {
        let UsualLoss { mean, variance, above, .. } = self.usual;
        // Losses that are all zero have no deviation: any other is a rise.
        let least = (LEAST_DEVIATION * mean.abs()).max(f64::MIN_POSITIVE);
        let z = (f64::from(loss) - mean) / variance.sqrt().max(least);
        self.usual.above = (above + z - self.config.delta).max(0.0);
        (self.usual.above > self.config.threshold).then_some(Rise { loss, usual: mean })
    }

    /// Moves mean and variance: of all losses while they are few, then with a fading memory.
    fn remember(&mut self, loss: f64) {
        let UsualLoss { n_losses, mean, variance, .. } = &mut self.usual;
        *n_losses += 1;
        let share = (1.0 / *n_losses as f64).max(1.0 / MEMORY);
        let difference = loss - *mean;
        *mean += share * difference;
        *variance = (1.0 - share) * (*variance + share * difference * difference);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::{self, Purpose};
    use rand::RngExt;

    const CONFIG: Config = Config { delta: 0.5, threshold: 25.0 };

    fn test() -> PageHinkley {
        PageHinkley::new(CONFIG, UsualLoss::default())
    }

    /// Where it warns among `losses`.
    fn warned(test: &mut PageHinkley, losses: impl IntoIterator<Item = f32>) -> Vec<usize> {
        let rises = losses.into_iter().map(|loss| test.push(loss));
        rises.enumerate().filter_map(|(place, rise)| rise.map(|_| place)).collect()
    }

    /// Near to a normal distribution: the sum of twelve uniform numbers has variance 1.
    fn noise(number: u64) -> f32 {
        let mut rng = seed::rng(3, Purpose::Evaluate, &[number]);
        (0..12).map(|_| rng.random_range(-0.5..0.5_f32)).sum()
    }

    #[test]
    fn a_constant_loss_adds_nothing() {
        for level in [-2.0, 0.0, 3.0] {
            let mut test = test();
            assert!(warned(&mut test, [level; 2000]).is_empty());
            let usual = test.usual();
            assert_eq!((usual.above, usual.variance), (0.0, 0.0), "{level}");
            assert!((usual.mean - f64::from(level)).abs() < 1e-9);
        }
    }

    /// After a constant loss, deviations are fiftieths of it, and the mean follows a step by a 500th of what is
    /// left: z of the k-th loss after it is 3 (1 - 1/500)^(k - 1), but for the growth of the mean in s.
    #[test]
    fn a_step_is_told_when_the_closed_form_says_so() {
        let mut test = test();
        assert!(warned(&mut test, [3.0; 600]).is_empty());
        let keeps = 1.0 - 1.0 / MEMORY;
        let expected = |k: i32| 3.0 * (1.0 - keeps.powi(k)) / (1.0 - keeps) - 0.5 * f64::from(k);
        for k in 1..=10 {
            assert_eq!(test.push(3.0 * 1.06), None, "{k}");
            let above = test.usual().above;
            assert!((above - expected(k)).abs() < 0.05, "{k}: {above}, not {}", expected(k));
        }
        assert!(expected(10) < 25.0 && expected(11) > 25.0);
        let rise = test.push(3.0 * 1.06).unwrap();
        assert!((rise.usual - 3.0).abs() < 0.01 && rise.loss > 3.1, "{rise:?}");
        // What it rose to is usual from then on, and what it falls to is no rise.
        assert!(warned(&mut test, [3.0 * 1.06; 600]).is_empty());
        assert!(warned(&mut test, [3.0; 600]).is_empty());
    }

    #[test]
    fn noise_is_no_rise() {
        let losses = (0..20_000).map(|step| 3.0 + 0.2 * noise(step));
        assert!(warned(&mut test(), losses).is_empty());
        let falls = |step: u64| 3.0 + 2.0 * (-(step as f32) / 300.0).exp() + 0.1 * noise(step);
        assert!(warned(&mut test(), (0..3000).map(falls)).is_empty());
    }

    /// Three standard deviations up: 25 / (3 - .5) = 10 steps without noise, and it may take twice as many.
    #[test]
    fn a_rise_among_noise_is_told_soon_and_once() {
        let level = |step: u64| if step < 1000 { 3.0 } else { 3.6 };
        let at = |step: u64| level(step) + 0.2 * noise(step);
        let places = warned(&mut test(), (0..3000).map(at));
        assert!(matches!(places[..], [place] if (1000..1020).contains(&place)), "{places:?}");
    }

    #[test]
    fn it_goes_on_from_what_it_remembered() {
        let level = |step: u64| if step < 800 { 3.0 } else { 3.6 };
        let losses: Vec<f32> = (0..900).map(|step| level(step) + 0.2 * noise(step)).collect();
        let mut whole = test();
        let expected = warned(&mut whole, losses.iter().copied());
        assert_eq!(expected.len(), 1);
        for cut in [10, 500, 803] {
            let mut before = test();
            assert!(warned(&mut before, losses[..cut].iter().copied()).is_empty());
            let mut after = PageHinkley::new(CONFIG, before.usual());
            let places = warned(&mut after, losses[cut..].iter().copied());
            assert_eq!(places, [expected[0] - cut], "{cut}");
            assert_eq!(after.usual(), whole.usual());
        }
    }

    #[test]
    fn what_is_no_number_is_passed_over() {
        let mut test = test();
        (0..100).for_each(|step| assert_eq!(test.push(3.0 + 0.2 * noise(step)), None));
        let before = test.usual();
        assert!(warned(&mut test, [f32::NAN, f32::INFINITY]).is_empty());
        assert_eq!(test.usual(), before);
    }
}
