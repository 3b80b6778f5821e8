//! Encoders whose vectors say which version made them of which image, and the means to ask for
//! them.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use selfstream::augment::Preprocess;
use selfstream::events::Events;
use selfstream::metrics;
use selfstream::server::{Config, Server, app};
use selfstream::snapshot::{Encode, Provenance, Registry, Snapshot};
use serde_json::Value;
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::timeout;
use tower::ServiceExt;

/// Length of a toy's embeddings.
pub(crate) const FEATURES: usize = 32;

/// Embeds an image as the unit vector of the toy's number plus the image's mean level at the end,
/// all times 3, so that it still has to be normalised.
pub(crate) struct Toy {
    pub(crate) number: usize,
    pub(crate) gate: Option<Gate>,
    /// How many images each call had.
    pub(crate) batches: Arc<Mutex<Vec<usize>>>,
}

/// Tells when a batch has entered, and holds it until opened; open for ever once the key is
/// dropped.
pub(crate) struct Gate {
    entered: mpsc::UnboundedSender<usize>,
    opened: Mutex<std_mpsc::Receiver<()>>,
}

/// The other side of a gate.
pub(crate) struct Key {
    pub(crate) entered: mpsc::UnboundedReceiver<usize>,
    pub(crate) open: std_mpsc::Sender<()>,
}

pub(crate) fn gate() -> (Gate, Key) {
    let (entered, entries) = mpsc::unbounded_channel();
    let (open, opened) = std_mpsc::channel();
    (Gate { entered, opened: Mutex::new(opened) }, Key { entered: entries, open })
}

impl Encode for Toy {
    fn feature_dim(&self) -> usize {
        FEATURES
    }

    fn embed(&self, images: Vec<f32>, n_images: usize) -> candle_core::Result<Vec<f32>> {
        self.batches.lock().unwrap().push(n_images);
        if let Some(gate) = &self.gate {
            // The test may have stopped listening, or have opened for ever.
            let _ = gate.entered.send(n_images);
            let _ = gate.opened.lock().unwrap().recv();
        }
        let mut embeddings = vec![0.0; n_images * FEATURES];
        let image_len = images.len() / n_images;
        for (image, row) in images.chunks(image_len).zip(embeddings.chunks_mut(FEATURES)) {
            row[self.number] = 3.0;
            row[FEATURES - 1] = 3.0 * image.iter().sum::<f32>() / image_len as f32;
        }
        Ok(embeddings)
    }
}

/// The name of version `number`.
pub(crate) fn version(number: usize) -> String {
    blake3::hash(&number.to_le_bytes()).to_hex().to_string()
}

/// A snapshot of this name around `encoder`.
pub(crate) fn snapshot(version: String, encoder: impl Encode + 'static) -> Arc<Snapshot> {
    Arc::new(Snapshot {
        version,
        architecture: "toy".to_owned(),
        preprocess: Preprocess { side_px: 4, mean: [0.0; 3], std: [1.0; 3] },
        provenance: Provenance {
            step: 7,
            images_learned: 896,
            changes: 0,
            created_ms: 1_700_000_000_999,
            parent: Some("before".to_owned()),
        },
        encoder: Box::new(encoder),
    })
}

/// Version `number`, without a gate.
pub(crate) fn toy(number: usize) -> Arc<Snapshot> {
    counted(number, Arc::default())
}

/// Version `number`, which notes its batches.
pub(crate) fn counted(number: usize, batches: Arc<Mutex<Vec<usize>>>) -> Arc<Snapshot> {
    snapshot(version(number), Toy { number, gate: None, batches })
}

/// Version 0 behind a gate, which notes its batches.
pub(crate) fn gated() -> (Arc<Snapshot>, Key, Arc<Mutex<Vec<usize>>>) {
    let (gate, key) = gate();
    let batches = Arc::default();
    let toy = Toy { number: 0, gate: Some(gate), batches: Arc::clone(&batches) };
    (snapshot(version(0), toy), key, batches)
}

/// A server of `config` for these versions, the last one being the latest.
pub(crate) fn server_of(config: Config, snapshots: &[Arc<Snapshot>]) -> Arc<Server> {
    config.validate().unwrap();
    let registry = Registry::new(snapshots.len());
    for snapshot in snapshots {
        registry.publish(Arc::clone(snapshot));
    }
    server_over(config, Arc::new(registry))
}

/// A server of `config` for a registry that goes on changing.
pub(crate) fn server_over(config: Config, registry: Arc<Registry>) -> Arc<Server> {
    let metrics = metrics::install().unwrap();
    Server::start(config, Default::default(), registry, metrics, Default::default()).unwrap()
}

/// A server of one version that hears `events`.
pub(crate) fn server_hearing(events: Events) -> Arc<Server> {
    let registry = Registry::new(1);
    registry.publish(toy(1));
    let metrics = metrics::install().unwrap();
    Server::start(Config::default(), Default::default(), Arc::new(registry), metrics, events)
        .unwrap()
}

/// The app for these versions, with the default settings.
pub(crate) fn app_of(snapshots: &[Arc<Snapshot>]) -> Router {
    app(server_of(Config::default(), snapshots))
}

/// A PNG whose every pixel has this grey level.
pub(crate) fn png(level: u8) -> Vec<u8> {
    let image = image::RgbImage::from_pixel(8, 8, image::Rgb([level; 3]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// The same in base64.
pub(crate) fn png64(level: u8) -> String {
    STANDARD.encode(png(level))
}

/// A POST to /v1/embeddings, with its length, as clients send it.
pub(crate) fn post(query: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Request<Body> {
    let body = body.into();
    Request::post(format!("/v1/embeddings{query}"))
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CONTENT_LENGTH, body.len())
        .body(Body::from(body))
        .unwrap()
}

/// The same of OpenAI's form.
pub(crate) fn post_json(body: &Value) -> Request<Body> {
    post("", "application/json", body.to_string())
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

/// A multipart body of (name, file name, content type, content) and its content type.
pub(crate) fn multipart(parts: &[(&str, Option<&str>, &str, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, file_name, content_type, content) in parts {
        let file_name = file_name.map_or(String::new(), |name| format!("; filename=\"{name}\""));
        body.extend(
            format!(
                "--line\r\ncontent-disposition: form-data; name=\"{name}\"{file_name}\r\n\
             content-type: {content_type}\r\n\r\n"
            )
            .into_bytes(),
        );
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(b"--line--\r\n");
    ("multipart/form-data; boundary=line".to_owned(), body)
}

/// An answer, its body as text.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    /// Embeddings of a successful answer.
    pub(crate) fn embeddings(&self) -> Vec<Vec<f32>> {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        embeddings(&self.json())
    }

    /// Checks OpenAI's form of a refusal; gives its code, param and message.
    pub(crate) fn refusal(&self) -> (String, Option<String>, String) {
        let body = self.json();
        let error = body["error"].as_object().unwrap();
        let mut keys: Vec<_> = error.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["code", "message", "param", "type"]);
        assert!(error["type"].is_string());
        let text = |key: &str| error[key].as_str().map(str::to_owned);
        (text("code").unwrap(), text("param"), text("message").unwrap())
    }
}

/// The vectors of OpenAI's answer, checked to be indexed in order.
pub(crate) fn embeddings(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap();
    let row = |(index, item): (usize, &Value)| {
        assert_eq!(item["index"], index);
        assert_eq!(item["object"], "embedding");
        match &item["embedding"] {
            Value::String(text) => {
                let bytes = STANDARD.decode(text).unwrap();
                bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
            }
            numbers => serde_json::from_value(numbers.clone()).unwrap(),
        }
    };
    data.iter().enumerate().map(row).collect()
}

/// Asks `holds` again and again until it says yes; fails after a time that no working server takes.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !holds().await {
            yield_now().await;
        }
    };
    let patience = Duration::from_secs(60);
    timeout(patience, asking).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// What `app` answers.
pub(crate) async fn ask(app: &Router, request: Request<Body>) -> Answer {
    let response = app.clone().oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    Answer { status, headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

/// Checks that `embedding` is what version `number` makes of `png(level)`, normalised.
pub(crate) fn assert_made_by(embedding: &[f32], number: usize, level: u8) {
    let mean = f32::from(level) / 255.0;
    let norm = (1.0 + mean * mean).sqrt();
    assert_eq!(embedding.len(), FEATURES);
    for (index, value) in embedding.iter().enumerate() {
        let expected = match index {
            _ if index == number => 1.0 / norm,
            _ if index == FEATURES - 1 => mean / norm,
            _ => 0.0,
        };
        // Rounding of f32 alone: decoding and scaling a flat image is exact to 1/255.
        assert!((value - expected).abs() < 1e-5, "[{index}] = {value}, not {expected}");
    }
}
