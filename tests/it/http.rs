//! The HTTP server: every endpoint and every refusal, without a socket here; with sockets, curl,
//! OpenAI's client and many callers at once in the modules below.

mod concurrent;
mod socket;
mod toy;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use selfstream::server::{Config, app};
use selfstream::snapshot::{Encode, Registry};
use serde_json::json;
use std::sync::Arc;
use tower::ServiceExt;
use toy::{
    Toy, app_of, ask, assert_made_by, get, multipart, png, png64, post, post_json, server_of,
    server_over, snapshot, toy, version,
};

const LEVELS: [u8; 3] = [30, 0, 255];

#[tokio::test]
async fn openais_form_embeds_images_in_order() {
    let app = app_of(&[toy(5)]);
    let uri = format!("data:image/png;base64,{}", png64(LEVELS[1]));
    let body = json!({ "model": "latest", "input": [png64(LEVELS[0]), uri, png64(LEVELS[2])] });
    let answer = ask(&app, post_json(&body)).await;
    let embeddings = answer.embeddings();
    assert_eq!(embeddings.len(), 3);
    for (embedding, level) in embeddings.iter().zip(LEVELS) {
        assert_made_by(embedding, 5, level);
    }
    assert_eq!(answer.headers["x-selfstream-version"], version(5).as_str());
    let json = answer.json();
    assert_eq!(json["object"], "list");
    assert_eq!(json["model"], version(5));
    assert_eq!(json["usage"], json!({ "prompt_tokens": 3, "total_tokens": 3 }));
}

#[tokio::test]
async fn one_input_may_stand_alone_and_fields_we_do_not_know_are_ignored() {
    let app = app_of(&[toy(1)]);
    let body =
        json!({ "input": png64(9), "user": "me", "extra": { "a": [1] }, "dimensions": null });
    let embeddings = ask(&app, post_json(&body)).await.embeddings();
    assert_eq!(embeddings.len(), 1);
    assert_made_by(&embeddings[0], 1, 9);
}

#[tokio::test]
async fn base64_carries_the_same_values_as_numbers() {
    let app = app_of(&[toy(1)]);
    let mut embeddings = Vec::new();
    for encoding in ["float", "base64"] {
        let body = json!({ "input": png64(77), "encoding_format": encoding });
        embeddings.push(ask(&app, post_json(&body)).await.embeddings());
    }
    // Numbers are written with as many digits as it takes to read the same f32 back.
    assert_eq!(embeddings[0], embeddings[1]);
}

#[tokio::test]
async fn dimensions_keep_the_first_values_renormalised() {
    let app = app_of(&[toy(1)]);
    let full = ask(&app, post_json(&json!({ "input": png64(200) }))).await.embeddings();
    for dimensions in [2, 31, 32] {
        let body = json!({ "input": png64(200), "dimensions": dimensions });
        let cut = ask(&app, post_json(&body)).await.embeddings();
        let first = &full[0][..dimensions];
        let norm = first.iter().map(|value| value * value).sum::<f32>().sqrt();
        assert_eq!(cut[0].len(), dimensions);
        for (cut, first) in cut[0].iter().zip(first) {
            // Rounding of f32.
            assert!((cut - first / norm).abs() < 1e-6);
        }
    }
    for dimensions in [json!(0), json!(33), json!("many"), json!(-1), json!(1.5)] {
        let body = json!({ "input": png64(200), "dimensions": dimensions });
        let answer = ask(&app, post_json(&body)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        let (code, param, _) = answer.refusal();
        assert_eq!((code.as_str(), param.as_deref()), ("invalid_value", Some("dimensions")));
    }
}

#[tokio::test]
async fn a_raw_body_is_one_image_and_its_options_are_in_the_query() {
    let app = app_of(&[toy(1), toy(2)]);
    for content_type in ["image/png", "Image/PNG; q=1", "application/octet-stream"] {
        let embeddings = ask(&app, post("", content_type, png(50))).await.embeddings();
        assert_eq!(embeddings.len(), 1);
        assert_made_by(&embeddings[0], 2, 50);
    }
    let query = format!("?model={}&encoding_format=base64&dimensions=4&x=y", version(1));
    let answer = ask(&app, post(&query, "image/png", png(50))).await;
    assert_eq!(answer.headers["x-selfstream-version"], version(1).as_str());
    assert!(answer.json()["data"][0]["embedding"].is_string());
    assert_eq!(answer.embeddings()[0], [0.0, 1.0, 0.0, 0.0]);
}

#[tokio::test]
async fn multipart_embeds_its_files_in_order() {
    let app = app_of(&[toy(1), toy(2)]);
    let images = LEVELS.map(png);
    let model = version(1);
    let (content_type, body) = multipart(&[
        ("file", Some("b.png"), "image/png", &images[0]),
        ("model", None, "text/plain", model.as_bytes()),
        ("file", Some("a.png"), "application/octet-stream", &images[1]),
        ("encoding_format", None, "text/plain", b"base64"),
        ("anything", None, "image/png", &images[2]),
    ]);
    let answer = ask(&app, post("", &content_type, body)).await;
    assert!(answer.json()["data"][0]["embedding"].is_string());
    let embeddings = answer.embeddings();
    assert_eq!(embeddings.len(), 3);
    for (embedding, level) in embeddings.iter().zip(LEVELS) {
        assert_made_by(embedding, 1, level);
    }
}

#[tokio::test]
async fn a_model_is_latest_or_a_version_or_its_only_prefix() {
    let twins = ["aaaaaaaa1", "aaaaaaaa2"].map(|name| {
        let toy = Toy { number: 9, gate: None, batches: Default::default() };
        snapshot(name.to_owned(), toy)
    });
    let [twin_a, twin_b] = twins;
    let app = app_of(&[twin_a, twin_b, toy(1), toy(2)]);
    let full = version(1);
    for (model, expected) in
        [("latest", version(2)), (&full, full.clone()), (&full[..8], full.clone())]
    {
        let body = json!({ "model": model, "input": png64(1) });
        let answer = ask(&app, post_json(&body)).await;
        assert_eq!(answer.headers["x-selfstream-version"], expected.as_str());
        assert_eq!(answer.json()["model"], expected);
    }
    for model in [&full[..7], "aaaaaaaa", "text-embedding-3-small", ""] {
        let body = json!({ "model": model, "input": png64(1) });
        let answer = ask(&app, post_json(&body)).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        let (code, param, _) = answer.refusal();
        assert_eq!((code.as_str(), param.as_deref()), ("model_not_found", Some("model")));
    }
}

#[tokio::test]
async fn stable_is_a_version_once_there_is_one_and_stays_when_others_go() {
    let registry = Arc::new(Registry::new(2));
    registry.publish(toy(1));
    let app = app(server_over(Config::default(), Arc::clone(&registry)));
    let ask_stable = || post_json(&json!({ "model": "stable", "input": png64(1) }));
    let answer = ask(&app, ask_stable()).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.refusal().0, "no_stable");
    registry.promote(toy(1));
    (2..5).for_each(|number| registry.publish(toy(number)));
    let answer = ask(&app, ask_stable()).await;
    assert_eq!(answer.headers["x-selfstream-version"], version(1).as_str());
    let models = ask(&app, get("/v1/models")).await.json();
    let listed = models["data"].as_array().unwrap().iter();
    let listed: Vec<_> = listed.map(|model| (&model["id"], &model["stable"])).collect();
    let expected =
        [(4, false), (3, false), (1, true)].map(|(n, is)| (json!(version(n)), json!(is)));
    assert!(listed.iter().map(|(id, is)| ((*id).clone(), (*is).clone())).eq(expected));
}

#[tokio::test]
async fn nothing_is_ready_before_the_first_publication() {
    let app = app_of(&[]);
    let requests =
        [post_json(&json!({ "input": png64(1) })), get("/readyz"), get("/v1/models/latest")];
    for request in requests {
        let answer = ask(&app, request).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.refusal().0, "not_ready");
        assert!(answer.headers.contains_key(header::RETRY_AFTER));
    }
    assert_eq!(ask(&app, get("/livez")).await.status, StatusCode::OK);
    let list = ask(&app, get("/v1/models")).await.json();
    assert_eq!(list, json!({ "object": "list", "data": [] }));
}

#[tokio::test]
async fn a_bad_image_names_its_index_and_reason() {
    let app = app_of(&[toy(1)]);
    let good = png(1);
    let (content_type, files) = multipart(&[
        ("file", Some("a"), "image/png", &good),
        ("file", Some("b"), "image/png", b"not an image"),
    ]);
    let bad_json = |bad: &str| post_json(&json!({ "input": [png64(1), bad, "!"] }));
    let cases = [
        (bad_json("bm90IGFuIGltYWdl"), "input[1]", ""),
        (bad_json("not base64"), "input[1]", "(base64)"),
        (bad_json("data:image/png,x"), "input[1]", "(data_uri)"),
        (bad_json("https://example.com/a.png"), "input[1]", "(url)"),
        (post("", &content_type, files), "input[1]", ""),
        (post("", "image/png", "not an image"), "input[0]", ""),
        (post("", "image/png", &good[..good.len() / 2]), "input[0]", ""),
    ];
    for (request, expected_param, reason) in cases {
        let answer = ask(&app, request).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        let (code, param, message) = answer.refusal();
        assert_eq!((code.as_str(), param.as_deref()), ("invalid_image", Some(expected_param)));
        assert!(message.starts_with(expected_param) && message.contains(reason), "{message}");
    }
}

#[tokio::test]
async fn every_refusal_has_openais_form() {
    let config = Config { max_body_bytes: 4096, max_images_per_request: 2, ..Config::default() };
    let app = app(server_of(config, &[toy(1)]));
    let json = |text: &str| post("", "application/json", text);
    let chunked = Request::post("/v1/embeddings").header(header::CONTENT_TYPE, "image/png");
    let untyped = Request::post("/v1/embeddings").body(Body::from(png(1))).unwrap();
    let delete = Request::delete("/v1/models").body(Body::empty()).unwrap();
    let cases = [
        (get("/v2"), 404, "unknown_url"),
        (get("/v1/embeddings"), 405, "method_not_allowed"),
        (delete, 405, "method_not_allowed"),
        (get("/v1/models/nothing"), 404, "model_not_found"),
        (get("/v1/models/%FF"), 400, "invalid_value"),
        (post("", "image/png", [0; 4097]), 413, "body_too_large"),
        (chunked.body(Body::from(vec![0; 4097])).unwrap(), 413, "body_too_large"),
        (post("", "text/plain", "hello"), 415, "unsupported_media_type"),
        (post("", "application/x-www-form-urlencoded", png(1)), 415, "unsupported_media_type"),
        (untyped, 415, "unsupported_media_type"),
        (post("?encoding_format=int8", "image/png", png(1)), 400, "invalid_value"),
        (post("", "multipart/form-data; boundary=b", "--b\r\nhalf"), 400, "invalid_body"),
        (post("", "multipart/form-data", png(1)), 400, "invalid_body"),
        (json("{"), 400, "invalid_body"),
        (json("[]"), 400, "invalid_body"),
        (json(r#"{"model": "latest"}"#), 400, "invalid_body"),
        (json(r#"{"input": 5}"#), 400, "invalid_value"),
        (json(r#"{"input": [[1, 2]]}"#), 400, "invalid_value"),
        (json(r#"{"input": ""}"#), 400, "invalid_image"),
        (json(r#"{"input": []}"#), 400, "invalid_image_count"),
        (json(r#"{"input": ["a", "a", "a"]}"#), 400, "invalid_image_count"),
        (json(r#"{"input": "a", "encoding_format": "int8"}"#), 400, "invalid_value"),
    ];
    for (number, (request, status, expected)) in cases.into_iter().enumerate() {
        let answer = ask(&app, request).await;
        let (code, _, message) = answer.refusal();
        assert_eq!((answer.status.as_u16(), code.as_str()), (status, expected), "case {number}");
        assert!(message.chars().next().unwrap().is_lowercase() || message.starts_with('/'));
        assert_eq!(answer.headers.contains_key(header::ALLOW), status == 405, "case {number}");
    }
}

#[tokio::test]
async fn models_are_listed_newest_first_in_openais_form() {
    let app = app_of(&[toy(1), toy(2)]);
    let model = |number, latest| {
        json!({
            "id": version(number), "object": "model", "created": 1_700_000_000,
            "owned_by": "selfstream", "architecture": "toy", "dimensions": 32, "step": 7,
            "images_learned": 896, "changes": 0, "parent": "before", "latest": latest, "stable": false,
        })
    };
    let list = ask(&app, get("/v1/models")).await.json();
    assert_eq!(list, json!({ "object": "list", "data": [model(2, true), model(1, false)] }));
    for name in [&version(1), &version(1)[..10]] {
        let one = ask(&app, get(&format!("/v1/models/{name}"))).await.json();
        assert_eq!(one, model(1, false));
    }
    assert_eq!(ask(&app, get("/v1/models/latest")).await.json(), model(2, true));
}

#[tokio::test]
async fn the_index_names_endpoints_that_exist() {
    let app = app_of(&[toy(1)]);
    let index = ask(&app, get("/")).await.json();
    let endpoints = index["endpoints"].as_object().unwrap();
    assert_eq!(endpoints.len(), 7);
    for endpoint in endpoints.keys() {
        let (method, path) = endpoint.split_once(' ').unwrap();
        let path = path.replace("{version}", "latest");
        let request = Request::builder().method(method).uri(&path).body(Body::empty()).unwrap();
        // The body of events has no end.
        let status = app.clone().oneshot(request).await.unwrap().status().as_u16();
        assert!(![404, 405].contains(&status), "{endpoint} answered {status}");
    }
}

#[tokio::test]
async fn readiness_ends_when_the_shutdown_begins_but_answers_do_not() {
    let server = server_of(Config::default(), &[toy(3)]);
    let app = app(server.clone());
    let ready = ask(&app, get("/readyz")).await;
    assert_eq!(ready.status, StatusCode::OK);
    assert_eq!(ready.json()["version"], version(3));
    server.begin_shutdown();
    let ready = ask(&app, get("/readyz")).await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.refusal().0, "shutting_down");
    assert_eq!(ask(&app, get("/livez")).await.status, StatusCode::OK);
    let answer = ask(&app, post("", "image/png", png(1))).await;
    assert_made_by(&answer.embeddings()[0], 3, 1);
}

/// The sum over all samples whose line begins with `series`.
fn sample(metrics: &str, series: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(series));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn metrics_count_requests_by_route_and_status() {
    let app = app_of(&[toy(1)]);
    let ok = r#"selfstream_http_requests_total{route="/v1/embeddings",status="200"}"#;
    let not_found = r#"selfstream_http_requests_total{route="none",status="404"}"#;
    let images = "selfstream_server_images_total";
    let before = ask(&app, get("/metrics")).await.text;
    let body = json!({ "input": [png64(1), png64(2)] });
    assert_eq!(ask(&app, post_json(&body)).await.status, StatusCode::OK);
    ask(&app, get("/a/path/nobody/knows")).await;
    let answer = ask(&app, get("/metrics")).await;
    assert!(answer.headers[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/plain"));
    let after = answer.text;
    // Other tests of this process count in the same recorder.
    for (series, grown) in [(ok, 1.0), (not_found, 1.0), (images, 2.0)] {
        assert!(sample(&after, series) >= sample(&before, series) + grown, "{series}\n{after}");
    }
    for name in [
        "# TYPE selfstream_http_request_duration_seconds histogram",
        "# TYPE selfstream_server_batch_images histogram",
        "# TYPE selfstream_server_pending_images gauge",
    ] {
        assert!(after.contains(name), "{name} is missing:\n{after}");
    }
}

/// An encoder that fails in one way.
struct Broken(Fault);

#[derive(Clone, Copy, Debug)]
enum Fault {
    Error,
    Panic,
    Length,
    NotFinite,
    HandlerPanic,
}

impl Encode for Broken {
    fn feature_dim(&self) -> usize {
        match self.0 {
            Fault::HandlerPanic => panic!("secret"),
            _ => 4,
        }
    }

    fn embed(&self, _: Vec<f32>, n_images: usize) -> candle_core::Result<Vec<f32>> {
        match self.0 {
            Fault::Error => candle_core::bail!("secret"),
            Fault::Panic => panic!("secret"),
            Fault::Length => Ok(vec![1.0; 3 * n_images]),
            _ => Ok(vec![f32::NAN; 4 * n_images]),
        }
    }
}

#[tokio::test]
async fn our_own_faults_are_500_tell_nothing_and_end_nothing() {
    for fault in [Fault::Error, Fault::Panic, Fault::Length, Fault::NotFinite, Fault::HandlerPanic]
    {
        let broken = snapshot("broken00".to_owned(), Broken(fault));
        let app = app_of(&[toy(1), broken]);
        for _ in 0..2 {
            let answer = ask(&app, post("", "image/png", png(1))).await;
            assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{fault:?}");
            assert_eq!(answer.refusal().0, "internal_error");
            assert!(!answer.text.contains("secret"), "{}", answer.text);
        }
        let query = format!("?model={}", version(1));
        let answer = ask(&app, post(&query, "image/png", png(1))).await;
        assert_made_by(&answer.embeddings()[0], 1, 1);
    }
}
