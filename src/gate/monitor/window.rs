//! The embeddings that training made last, and what they look like.

use super::{UnitRows, alignment, alpha_req, rankme, spread, uniformity};
use metrics::gauge;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Images whose embeddings are kept. A guess: enough for fifty eigenvalues, few enough that all figures
/// together take some 20 ms.
const IMAGES: usize = 256;

/// The figures of a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// [`spread`].
    pub spread: f32,
    /// [`alignment`], where an image has several views.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alignment: Option<f64>,
    /// [`uniformity`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uniformity: Option<f64>,
    /// [`rankme`].
    pub rankme: f64,
    /// [`alpha_req`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha_req: Option<f64>,
}

impl Figures {
    /// Shows them to operators.
    pub fn show(&self) {
        gauge!("selfstream_training_spread_ratio").set(self.spread);
        gauge!("selfstream_training_rankme_ratio").set(self.rankme);
        for (name, value) in [
            ("selfstream_training_alignment_ratio", self.alignment),
            ("selfstream_training_uniformity_ratio", self.uniformity),
            ("selfstream_training_alpha_req_ratio", self.alpha_req),
        ] {
            if let Some(value) = value {
                gauge!(name).set(value);
            }
        }
    }
}

/// The last embeddings, a block for each step.
#[derive(Debug, Default)]
pub struct Window {
    /// The views of a step's images.
    steps: VecDeque<Vec<UnitRows>>,
}

impl Window {
    /// Takes a step's embeddings, flat `[V, N, D]`, of `n_images` images.
    pub fn push(&mut self, features: &[f32], n_images: usize, dim: usize) {
        let views = features.chunks_exact((n_images * dim).max(1));
        let step: Vec<UnitRows> = views.map(|view| UnitRows::new(view.to_vec(), dim)).collect();
        if step.is_empty() {
            return;
        }
        self.steps.push_back(step);
        while self.n_images() - self.steps[0][0].len() >= IMAGES {
            self.steps.pop_front();
        }
    }

    fn n_images(&self) -> usize {
        self.steps.iter().map(|views| views[0].len()).sum()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.steps.clear();
    }

    /// What they look like; none before the first step.
    pub fn figures(&self) -> Option<Figures> {
        let dim = self.steps.front()?[0].dim;
        // Of each image one view: two of one image are no two images.
        let values = self.steps.iter().flat_map(|views| views[0].values.iter().copied());
        let rows = UnitRows { values: values.collect(), dim };
        let alignments = self.steps.iter().filter_map(|views| alignment(views));
        let (n, sum) = alignments.fold((0, 0.0), |(n, sum), value| (n + 1, sum + value));
        Some(Figures {
            spread: spread(&rows),
            alignment: (n > 0).then(|| sum / f64::from(n)),
            uniformity: uniformity(&rows),
            rankme: rankme(&rows),
            alpha_req: alpha_req(&rows),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step of two views of `n_images` images; the second view is at a right angle to the first.
    fn step(n_images: usize, at: usize) -> Vec<f32> {
        let axis = |axis: usize| (0..8).map(move |j| if j == axis % 8 { 2.0 } else { 0.0 });
        let views = [0, 1].map(|view| (0..n_images).flat_map(move |i| axis(at + i + view)));
        views.into_iter().flatten().collect()
    }

    #[test]
    fn a_window_holds_the_last_images() {
        let mut window = Window::default();
        assert_eq!(window.figures(), None);
        for at in 0..9 {
            window.push(&step(64, at), 64, 8);
        }
        assert_eq!(window.n_images(), IMAGES);
        let figures = window.figures().unwrap();
        assert!((figures.alignment.unwrap() - 2.0).abs() < 1e-6);
        assert!((figures.rankme - 8.0).abs() < 1e-3, "{figures:?}");
        // A step of more images than the window is kept whole.
        window.push(&step(2 * IMAGES, 0), 2 * IMAGES, 8);
        assert_eq!(window.n_images(), 2 * IMAGES);
        window.clear();
        assert_eq!(window.figures(), None);
    }

    #[test]
    fn one_view_has_no_alignment() {
        let mut window = Window::default();
        window.push(&step(4, 0)[..32], 4, 8);
        assert_eq!(window.figures().unwrap().alignment, None);
    }
}
