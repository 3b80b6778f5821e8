//! The body of POST /v1/embeddings: the input's first line is its content type, the rest the body. Law: it is
//! answered with embeddings, or with a refusal in OpenAI's form; the server neither fails nor hangs.

use axum::body::{Body, to_bytes};
use axum::http::{HeaderValue, Request, StatusCode, header};
use selfstream::augment::Preprocess;
use selfstream::decode;
use selfstream::events::Events;
use selfstream::server::{Config, Server, app};
use selfstream::snapshot::{Encode, Provenance, Registry, Snapshot};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// Far more than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Embeds an image as a one and its first three numbers.
struct Toy;

impl Encode for Toy {
    fn feature_dim(&self) -> usize {
        4
    }

    fn embed(&self, images: Vec<f32>, n_images: usize) -> candle_core::Result<Vec<f32>> {
        let images = images.chunks_exact(images.len() / n_images);
        Ok(images.flat_map(|image| [1.0, image[0], image[1], image[2]]).collect())
    }
}

static SERVER: LazyLock<Arc<Server>> = LazyLock::new(|| {
    let registry = Registry::new(1);
    registry.publish(Arc::new(Snapshot {
        version: "0123456789abcdef".to_owned(),
        architecture: "toy".to_owned(),
        preprocess: Preprocess::imagenet(8),
        provenance: Provenance::default(),
        encoder: Box::new(Toy),
    }));
    let metrics = selfstream::metrics::install().expect("no other recorder is installed");
    let decode = decode::Config { max_pixels: 1 << 20, ..decode::Config::default() };
    // Nobody else asks, so waiting for others to share a batch would be in vain.
    let config = Config { max_batch_wait: Duration::ZERO, ..Config::default() };
    Server::start(config, decode, Arc::new(registry), metrics, Events::default())
        .expect("the system grants a few threads")
});

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("the system grants a runtime")
});

/// Holds `input` to the law; says whether it was answered with embeddings.
pub(crate) fn check(input: &[u8]) -> bool {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (content_type, body) = input.split_at(end);
    let body = body.get(1..).unwrap_or_default();
    let Ok(content_type) = HeaderValue::from_bytes(content_type) else { return false };
    let request = Request::post("/v1/embeddings")
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CONTENT_LENGTH, body.len())
        .body(Body::from(body.to_vec()))
        .expect("its parts are valid");
    RUNTIME.block_on(async {
        let answer = async {
            let response = app(Arc::clone(&SERVER)).oneshot(request).await.expect("infallible");
            let status = response.status();
            let body = to_bytes(response.into_body(), usize::MAX).await.expect("a whole body");
            (status, String::from_utf8(body.to_vec()).expect("JSON is UTF-8"))
        };
        let (status, text) = tokio::time::timeout(PATIENCE, answer).await.expect("an answer");
        assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{text}");
        let answer: serde_json::Value = serde_json::from_str(&text).expect("an answer is JSON");
        let is_taken = status.is_success();
        if is_taken {
            let images = answer["data"].as_array().expect("a list of embeddings");
            assert!(!images.is_empty(), "{text}");
        } else {
            assert!(answer["error"]["message"].is_string(), "{text}");
        }
        is_taken
    })
}
