//! What serving costs beside the encoder: HTTP, decoding, batching and writing, in images/s.
//! 32 px PNGs, 256 features, one decode thread.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use divan::Bencher;
use divan::counter::ItemsCount;
use selfstream::augment::Preprocess;
use selfstream::metrics;
use selfstream::server::{Config, Server, app};
use selfstream::snapshot::{Encode, Provenance, Registry, Snapshot};
use serde_json::json;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tower::ServiceExt;

const SIDE_PX: usize = 32;
const FEATURES: usize = 256;

/// Costs nothing, and gives numbers with as many digits as real ones have.
struct Free;

impl Encode for Free {
    fn feature_dim(&self) -> usize {
        FEATURES
    }

    fn embed(&self, _: Vec<f32>, n_images: usize) -> candle_core::Result<Vec<f32>> {
        Ok((0..n_images * FEATURES).map(|index| (index as f32).sin()).collect())
    }
}

fn free_app() -> Router {
    let registry = Arc::new(Registry::new(1));
    registry.publish(Arc::new(Snapshot {
        version: "0".repeat(64),
        architecture: "free".to_owned(),
        preprocess: Preprocess { side_px: SIDE_PX, mean: [0.5; 3], std: [0.25; 3] },
        provenance: Provenance::default(),
        encoder: Box::new(Free),
    }));
    // Waiting for company is no cost of ours.
    let config = Config { max_batch_wait: Duration::ZERO, ..Config::default() };
    let metrics = metrics::install().expect("this process has no other recorder");
    app(Server::start(config, Default::default(), registry, metrics, Default::default())
        .expect("threads are granted"))
}

/// A PNG that does not compress to nothing.
fn png() -> Vec<u8> {
    let side = SIDE_PX as u32;
    let image = image::RgbImage::from_fn(side, side, |x, y| {
        image::Rgb([(x * 7 + y * 13) as u8, (x * y) as u8, ((x * 29) ^ (y * 31)) as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).expect("memory takes any image");
    bytes.into_inner()
}

fn bench(bencher: Bencher<'_, '_>, n_images: usize, content_type: &str, body: Vec<u8>) {
    let runtime = Runtime::new().expect("threads are granted");
    let app = free_app();
    let request = || {
        Request::post("/v1/embeddings")
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::from(body.clone()))
            .expect("the parts are valid")
    };
    bencher.counter(ItemsCount::new(n_images)).with_inputs(request).bench_values(|request| {
        runtime.block_on(async {
            let Ok(response) = app.clone().oneshot(request).await;
            assert_eq!(response.status(), 200);
            to_bytes(response.into_body(), usize::MAX).await.expect("the answer is in memory")
        })
    });
}

/// One image a request: the least time in which anyone is answered.
#[divan::bench]
fn raw_image(bencher: Bencher<'_, '_>) {
    bench(bencher, 1, "image/png", png());
}

/// OpenAI's form with 32 images; writing numbers costs more than base64.
#[divan::bench(args = ["float", "base64"])]
fn json_of_32_images(bencher: Bencher<'_, '_>, encoding_format: &str) {
    let input = vec![STANDARD.encode(png()); 32];
    let body = json!({ "input": input, "encoding_format": encoding_format }).to_string();
    bench(bencher, 32, "application/json", body.into_bytes());
}
