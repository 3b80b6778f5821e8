//! Weighted k-nearest-neighbour classification, the one meaning of "kNN" in this crate.
//!
//! The class of a query q is the one with the largest sum of `exp(s / t)` over its k = 20 nearest
//! reference embeddings of that class, where s is the cosine similarity and t = 0.1. Source: Wu,
//! Xiong, Yu, Lin: "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"
//! (2018), section 3.4. Differs from the paper: k = 20 where it has 200, and t = 0.1 where it has
//! 0.07, as the project's figures are defined.
//!
//! Ties are broken in a fixed way, so that a result is a function of its input: of equally near
//! references the earlier one is taken, of equally heavy classes the lower one.

use super::{Embeddings, EvaluateError, accuracy};

/// Neighbours that vote.
pub const NEIGHBOURS: usize = 20;
/// Divides the similarity in the weight of a vote.
pub const TEMPERATURE: f64 = 0.1;

/// References that stand side by side in a panel, and queries that pass over it together: their
/// products, and four dimensions of the panel, fit the first-level cache. Measured: widths of 64 to
/// 256 and 16 or 32 queries are within 15 % of each other (Zen 4, SSE2).
const PANEL_REFERENCES: usize = 128;
const BLOCK_QUERIES: usize = 16;
/// Dimensions added at a time: a sum is loaded and stored once for each four products. With 8 the
/// speed is the same, with 16 the compiler stops using vectors.
const TILE_DIMS: usize = 4;

/// Fraction of `queries` whose class is found among the labelled `reference`: the quick probe.
///
/// # Errors
/// As [`Reference::new`] and [`Reference::classify`], or if there is not one label a query.
pub fn knn_probe(
    reference: &Embeddings,
    reference_labels: &[usize],
    queries: &Embeddings,
    query_labels: &[usize],
) -> Result<f64, EvaluateError> {
    let classes = Reference::new(reference, reference_labels)?.classify(queries)?;
    accuracy(&classes, query_labels)
}

/// Labelled embeddings to compare queries with.
pub struct Reference<'a> {
    /// Normalised, `[N, D]`.
    embeddings: Embeddings,
    /// The same, [`PANEL_REFERENCES`] at a time.
    panels: Vec<Panel>,
    labels: &'a [usize],
    n_classes: usize,
}

/// Some references side by side: `[D, width]`, with `D` filled up to whole tiles by zeros.
struct Panel {
    width: usize,
    columns: Vec<f32>,
}

impl<'a> Reference<'a> {
    /// References `[N, D]` with a class each.
    ///
    /// # Errors
    /// If there are none, or not one label for each.
    pub fn new(embeddings: &Embeddings, labels: &'a [usize]) -> Result<Self, EvaluateError> {
        if embeddings.len() != labels.len() {
            let (n_embeddings, n_labels) = (embeddings.len(), labels.len());
            return Err(EvaluateError::Labels { n_embeddings, n_labels });
        }
        let last_class = labels.iter().max().ok_or(EvaluateError::NoReference)?;
        let embeddings = embeddings.normalised();
        let panels = panels(&embeddings);
        Ok(Self { embeddings, panels, labels, n_classes: last_class + 1 })
    }

    /// The class of each of `queries`, `[M, D]`.
    ///
    /// # Errors
    /// If the queries are of another dimension.
    pub fn classify(&self, queries: &Embeddings) -> Result<Vec<usize>, EvaluateError> {
        self.check(queries)?;
        let queries = queries.normalised();
        Ok(self.vote(&self.nearest(&queries, |_, _| true), weight))
    }

    /// The nearest references of each of `queries`, `[M, D]`: at most [`NEIGHBOURS`], nearest first.
    ///
    /// # Errors
    /// If the queries are of another dimension.
    pub fn neighbours(&self, queries: &Embeddings) -> Result<Vec<Vec<Neighbour>>, EvaluateError> {
        self.check(queries)?;
        let nearest = self.nearest(&queries.normalised(), |_, _| true);
        let neighbour = |(similarity, reference)| Neighbour { reference, similarity };
        let list = |found: Neighbours| found.nearest_first.into_iter().map(neighbour).collect();
        Ok(nearest.into_iter().map(list).collect())
    }

    fn check(&self, queries: &Embeddings) -> Result<(), EvaluateError> {
        let (expected, found) = (self.embeddings.dim(), queries.dim());
        if expected == found { Ok(()) } else { Err(EvaluateError::Dimension { expected, found }) }
    }

    /// The class of each reference among all others.
    ///
    /// # Errors
    /// If there are no others.
    pub fn leave_one_out(&self) -> Result<Vec<usize>, EvaluateError> {
        if self.labels.len() < 2 {
            return Err(EvaluateError::NoReference);
        }
        let others = self.nearest(&self.embeddings, |query, reference| query != reference);
        Ok(self.vote(&others, weight))
    }

    /// The nearest references `may_vote` admits for each of `queries`, which are normalised.
    fn nearest(
        &self,
        queries: &Embeddings,
        may_vote: impl Fn(usize, usize) -> bool,
    ) -> Vec<Neighbours> {
        let mut nearest = vec![Neighbours::default(); queries.len()];
        let tiles = tiles(queries);
        let tiles_each = queries.dim().div_ceil(TILE_DIMS);
        let mut products = vec![0.0; PANEL_REFERENCES];
        for (block_index, block) in nearest.chunks_mut(BLOCK_QUERIES).enumerate() {
            let first_query = block_index * BLOCK_QUERIES;
            for (panel_index, panel) in self.panels.iter().enumerate() {
                let first_reference = panel_index * PANEL_REFERENCES;
                for (query, nearest) in (first_query..).zip(&mut *block) {
                    let products = &mut products[..panel.width];
                    panel.multiply(&tiles[query * tiles_each..][..tiles_each], products);
                    for (reference, similarity) in (first_reference..).zip(&*products) {
                        if nearest.would_take(*similarity) && may_vote(query, reference) {
                            nearest.take(*similarity, reference);
                        }
                    }
                }
            }
        }
        nearest
    }

    /// The class with the largest sum of weights, for each query's neighbours.
    fn vote(&self, nearest: &[Neighbours], weight: fn(f64) -> f64) -> Vec<usize> {
        let mut weights = vec![0.0_f64; self.n_classes];
        let class = |neighbours: &Neighbours| {
            weights.fill(0.0);
            for (similarity, reference) in &neighbours.nearest_first {
                weights[self.labels[*reference]] += weight(f64::from(*similarity));
            }
            let mut best = 0;
            for (class, weight) in weights.iter().enumerate() {
                if *weight > weights[best] {
                    best = class;
                }
            }
            best
        };
        nearest.iter().map(class).collect()
    }
}

/// A reference near a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Which reference, by its row.
    pub reference: usize,
    /// Cosine similarity.
    pub similarity: f32,
}

/// The nearest references so far, at most [`NEIGHBOURS`], given in the order of their positions.
#[derive(Clone, Default)]
struct Neighbours {
    nearest_first: Vec<(f32, usize)>,
}

impl Neighbours {
    /// Whether `similarity` is above that of the last one, or there is room.
    fn would_take(&self, similarity: f32) -> bool {
        match self.nearest_first.get(NEIGHBOURS - 1) {
            Some((last, _)) => similarity > *last,
            None => true,
        }
    }

    /// Takes a reference in, behind those that are as near: they came earlier.
    fn take(&mut self, similarity: f32, reference: usize) {
        let place = self.nearest_first.partition_point(|(nearer, _)| *nearer >= similarity);
        self.nearest_first.truncate(NEIGHBOURS - 1);
        self.nearest_first.insert(place, (similarity, reference));
    }
}

impl Panel {
    /// Writes the products of one query, in tiles, with every reference. Each is summed in the
    /// order of the dimensions, as a plain loop would, so that it does not depend on its place.
    fn multiply(&self, query: &[[f32; TILE_DIMS]], products: &mut [f32]) {
        products.fill(0.0);
        for (tile, columns) in query.iter().zip(self.columns.chunks_exact(TILE_DIMS * self.width)) {
            let [a, b, c, d] =
                std::array::from_fn(|row| &columns[row * self.width..][..products.len()]);
            for (index, product) in products.iter_mut().enumerate() {
                let sum = *product + tile[0] * a[index];
                let sum = sum + tile[1] * b[index];
                let sum = sum + tile[2] * c[index];
                *product = sum + tile[3] * d[index];
            }
        }
    }
}

/// How much a neighbour of this cosine similarity has to say.
fn weight(similarity: f64) -> f64 {
    (similarity / TEMPERATURE).exp()
}

/// Puts rows `[N, D]` side by side.
fn panels(rows: &Embeddings) -> Vec<Panel> {
    let padded_dim = rows.dim().next_multiple_of(TILE_DIMS);
    let panel = |first: usize| {
        let width = PANEL_REFERENCES.min(rows.len() - first);
        let mut columns = vec![0.0; padded_dim * width];
        for place in 0..width {
            let column = columns.iter_mut().skip(place).step_by(width);
            column.zip(rows.row(first + place)).for_each(|(to, from)| *to = *from);
        }
        Panel { width, columns }
    };
    (0..rows.len()).step_by(PANEL_REFERENCES).map(panel).collect()
}

/// Rows `[N, D]` as tiles `[N, D / TILE_DIMS, TILE_DIMS]`, the last of a row filled up by zeros.
fn tiles(rows: &Embeddings) -> Vec<[f32; TILE_DIMS]> {
    let mut tiles = Vec::with_capacity(rows.len() * rows.dim().div_ceil(TILE_DIMS));
    for row in rows.rows() {
        let (whole, rest) = row.as_chunks::<TILE_DIMS>();
        tiles.extend_from_slice(whole);
        if !rest.is_empty() {
            let mut last = [0.0; TILE_DIMS];
            last[..rest.len()].copy_from_slice(rest);
            tiles.push(last);
        }
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::{Classes, RawPixels, embed};
    use crate::seed::{self, Purpose};
    use crate::source::collection::Collection;
    use proptest::prelude::*;
    use rand::{Rng, RngExt};
    use std::path::PathBuf;

    /// The definition in plain loops; `skip` leaves the query itself out.
    fn oracle(
        reference: &Embeddings,
        labels: &[usize],
        queries: &Embeddings,
        skip: bool,
    ) -> Vec<usize> {
        let (reference, queries) = (reference.normalised(), queries.normalised());
        let mut classes = Vec::new();
        for (query_index, query) in queries.rows().enumerate() {
            let mut similarities = Vec::new();
            for (index, row) in reference.rows().enumerate() {
                if skip && index == query_index {
                    continue;
                }
                let mut similarity = 0.0;
                for (a, b) in query.iter().zip(row) {
                    similarity += a * b;
                }
                similarities.push((similarity, index));
            }
            similarities.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let mut weights = vec![0.0; labels.iter().max().unwrap() + 1];
            for (similarity, index) in similarities.into_iter().take(20) {
                weights[labels[index]] += (f64::from(similarity) / 0.1).exp();
            }
            let heaviest = weights.iter().copied().fold(f64::MIN, f64::max);
            classes.push(weights.iter().position(|weight| *weight == heaviest).unwrap());
        }
        classes
    }

    /// `n_rows` around the unit vector of each row's class, as far as `noise`.
    fn clusters(labels: &[usize], dim: usize, noise: f32, rng: &mut impl Rng) -> Embeddings {
        let mut values = Vec::new();
        for label in labels {
            for column in 0..dim {
                let centre = if column == *label { 1.0 } else { 0.0 };
                values.push(centre + noise * rng.random_range(-1.0..1.0));
            }
        }
        Embeddings::new(values, dim).unwrap()
    }

    proptest! {
        #[test]
        fn every_class_is_the_one_plain_loops_find(
            n_references in 1_usize..300,
            n_queries in 0_usize..40,
            dim in 1_usize..20,
            n_classes in 1_usize..6,
            // Few distinct values make ties frequent.
            levels in prop_oneof![Just(2_i8), Just(100)],
            seed in any::<u64>(),
        ) {
            let mut rng = seed::rng(seed, Purpose::Evaluate, &[]);
            let mut embeddings = |n: usize| {
                let draw = |_| f32::from(rng.random_range(-levels..=levels));
                Embeddings::new((0..n * dim).map(draw).collect(), dim).unwrap()
            };
            let (reference, queries) = (embeddings(n_references), embeddings(n_queries));
            let labels: Vec<_> = (0..n_references).map(|_| rng.random_range(0..n_classes)).collect();
            let classifier = Reference::new(&reference, &labels).unwrap();
            prop_assert_eq!(
                classifier.classify(&queries).unwrap(),
                oracle(&reference, &labels, &queries, false)
            );
            if n_references > 1 {
                prop_assert_eq!(
                    classifier.leave_one_out().unwrap(),
                    oracle(&reference, &labels, &reference, true)
                );
            }
        }
    }

    #[test]
    fn well_separated_clusters_are_told_apart_without_error() {
        let mut rng = seed::rng(1, Purpose::Evaluate, &[]);
        let labels: Vec<_> = (0..300).map(|index| index % 5).collect();
        let reference = clusters(&labels, 8, 0.1, &mut rng);
        let queries = clusters(&labels[..50], 8, 0.1, &mut rng);
        assert_eq!(knn_probe(&reference, &labels, &queries, &labels[..50]).unwrap(), 1.0);
        let alone = Reference::new(&reference, &labels).unwrap().leave_one_out().unwrap();
        assert_eq!(accuracy(&alone, &labels).unwrap(), 1.0);
    }

    #[test]
    fn constant_embeddings_give_the_majority_and_of_equals_the_lowest_class() {
        let classify = |labels: &[usize]| {
            let reference = Embeddings::new(vec![1.0; labels.len() * 3], 3).unwrap();
            let query = Embeddings::new(vec![2.0; 3], 3).unwrap();
            Reference::new(&reference, labels).unwrap().classify(&query).unwrap()[0]
        };
        assert_eq!(classify(&[2, 1, 2, 0, 2]), 2);
        assert_eq!(classify(&[2, 1, 2, 1]), 1);
        // Of equally near references the first 20 vote.
        let labels: Vec<_> = (0..100).map(|index| usize::from(index >= 15)).collect();
        assert_eq!(classify(&labels), 0);
    }

    #[test]
    fn neighbours_come_nearest_first_with_their_similarity() {
        let reference = Embeddings::new(vec![0.0, 2.0, 3.0, 4.0, 5.0, 0.0], 2).unwrap();
        let query = Embeddings::new(vec![9.0, 0.0], 2).unwrap();
        let classifier = Reference::new(&reference, &[0, 0, 0]).unwrap();
        let found = &classifier.neighbours(&query).unwrap()[0];
        let expected = [(2, 1.0), (1, 0.6), (0, 0.0)];
        for (found, (reference, similarity)) in found.iter().zip(expected) {
            assert_eq!(found.reference, reference);
            assert!((found.similarity - similarity).abs() < 1e-6);
        }
        assert_eq!(found.len(), 3);
        assert!(classifier.neighbours(&reference.clone()).is_ok());
        assert!(classifier.neighbours(&Embeddings::new(vec![1.0; 3], 3).unwrap()).is_err());
    }

    #[test]
    fn one_near_neighbour_outweighs_many_far_ones() {
        // exp(1 / 0.1) = 22026 is more than 19 exp(0.6 / 0.1) = 7665.
        let mut values = vec![1.0, 0.0];
        values.extend([0.6, 0.8].repeat(19));
        let mut labels = vec![1];
        labels.extend([0; 19]);
        let reference = Embeddings::new(values, 2).unwrap();
        let query = Embeddings::new(vec![5.0, 0.0], 2).unwrap();
        let classifier = Reference::new(&reference, &labels).unwrap();
        assert_eq!(classifier.classify(&query).unwrap(), [1]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let two = Embeddings::new(vec![1.0; 4], 2).unwrap();
        let none = Embeddings::new(vec![], 2).unwrap();
        let wider = Embeddings::new(vec![1.0; 3], 3).unwrap();
        let refused = |reference, labels: &[usize], queries| {
            knn_probe(reference, labels, queries, &[0]).unwrap_err()
        };
        assert!(matches!(refused(&two, &[0], &two), EvaluateError::Labels { .. }));
        assert!(matches!(refused(&none, &[], &two), EvaluateError::NoReference));
        assert!(matches!(refused(&two, &[0, 1], &wider), EvaluateError::Dimension { .. }));
        let single = Embeddings::new(vec![1.0; 2], 2).unwrap();
        let single = Reference::new(&single, &[0]).unwrap();
        assert!(matches!(single.leave_one_out(), Err(EvaluateError::NoReference)));
    }

    #[test]
    fn raw_pixels_reach_the_known_floors_of_real_images() {
        let Some(folder) = std::env::var_os("SELFSTREAM_TEST_IMAGES").map(PathBuf::from) else {
            println!("skipped: SELFSTREAM_TEST_IMAGES is not set");
            return;
        };
        // `stated` came with the data and is met by votes weighted by the similarity itself (see
        // `pixels`); `measured` is what the project's weights give, on 2026-11-24.
        for (train, test, stated, measured, tolerance) in [
            ("cifar10-train-20k.tar.xz", "cifar10-test-4k.tar.xz", 0.413, 0.429, 0.005),
            // One standard error of 695 images is .018; the tolerance is for decoders to differ.
            ("pacs128-train.tar", "pacs128-test.tar", 0.383, 0.391, 0.007),
        ] {
            let [train, test] =
                [train, test].map(|name| Collection::open(folder.join(name)).unwrap());
            let classes = Classes::of(&[&train, &test]).unwrap();
            let [train, test] = [train, test].map(|collection| {
                let all: Vec<_> = (0..collection.len()).collect();
                embed(&collection, &all, &classes, &mut RawPixels).unwrap()
            });
            let reference = Reference::new(&train.embeddings, &train.labels).unwrap();
            let nearest = reference.nearest(&test.embeddings.normalised(), |_, _| true);
            for (weight, expected) in [((|s| s) as fn(f64) -> f64, stated), (weight, measured)] {
                let found = accuracy(&reference.vote(&nearest, weight), &test.labels).unwrap();
                println!("{found:.4} for {expected}");
                assert!((found - expected).abs() < tolerance, "{found} is not {expected}");
            }
        }
    }
}
