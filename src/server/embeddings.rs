//! POST /v1/embeddings.

use super::error::Error;
use super::options::Encoding;
use super::{Server, VERSION_HEADER, form};
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::sync::Arc;

/// OpenAI's answer.
#[derive(Serialize)]
struct Answer<'a> {
    object: &'static str,
    data: Vec<Item>,
    /// The full version that made every vector of it.
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

/// Images take the place of tokens.
#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Embeds the images of a request by one version.
pub(super) async fn create(
    State(server): State<Arc<Server>>,
    request: Request,
) -> Result<Response, Error> {
    let wanted = form::read(&server, request).await?;
    let snapshot = server.resolve(&wanted.options.model)?;
    let dimensions = wanted.options.dimensions_of(snapshot.encoder.feature_dim())?;
    let encoding = wanted.options.encoding;
    let embeddings = server.workers.embed(&snapshot, wanted.images, wanted.body).await?;
    let n_images = embeddings.len();
    let item = |(index, mut embedding): (usize, Vec<f32>)| {
        embedding.truncate(dimensions);
        normalise(&mut embedding);
        Item { object: "embedding", index, embedding: write(embedding, encoding) }
    };
    let answer = Answer {
        object: "list",
        data: embeddings.into_iter().enumerate().map(item).collect(),
        model: &snapshot.version,
        usage: Usage { prompt_tokens: n_images, total_tokens: n_images },
    };
    Ok(([(VERSION_HEADER, snapshot.version.as_str())], Json(answer)).into_response())
}

fn write(embedding: Vec<f32>, encoding: Encoding) -> Vector {
    match encoding {
        Encoding::Float => Vector::Float(embedding),
        Encoding::Base64 => {
            let bytes: Vec<u8> = embedding.iter().flat_map(|value| value.to_le_bytes()).collect();
            Vector::Base64(STANDARD.encode(bytes))
        }
    }
}

/// Scales to an L2 norm of 1; a vector of zeros, which has no direction, stays.
fn normalise(embedding: &mut [f32]) {
    // In f64: squares of large features do not overflow it.
    let norm = embedding.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        for value in embedding {
            *value = (f64::from(*value) / norm) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normalised_vector_keeps_its_direction() {
        for scale in [1e-30_f32, 1.0, 1e30] {
            let mut vector = [3.0 * scale, -4.0 * scale];
            normalise(&mut vector);
            assert!((vector[0] - 0.6).abs() < 1e-6 && (vector[1] + 0.8).abs() < 1e-6, "{vector:?}");
        }
        let mut zeros = [0.0; 3];
        normalise(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
    }

    #[test]
    fn base64_is_little_endian_f32() {
        // numpy: base64.b64encode(np.array([1.0, -2.0], "<f4"))
        let Vector::Base64(text) = write(vec![1.0, -2.0], Encoding::Base64) else {
            panic!("not base64")
        };
        assert_eq!(text, "AACAPwAAAMA=");
    }
}
