//! What operators and their machines ask: index, liveness, readiness, metrics; and what they get
//! when they ask for anything else.

use super::Server;
use super::error::Error;
use crate::metrics::{HTTP_REQUEST_DURATION, HTTP_REQUESTS, SERVER_PENDING};
use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

/// GET /: where everything is.
pub(super) async fn index() -> Json<Value> {
    Json(json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "endpoints": {
            "POST /v1/embeddings": "embeds images: OpenAI's JSON, a raw image, or multipart files",
            "GET /v1/models": "the versions that answer, newest first",
            "GET /v1/models/{version}": "one of them",
            "GET /v1/events": "what happens to the run, as server-sent events",
            "GET /livez": "200 while the process lives",
            "GET /readyz": "200 while an encoder answers, 503 otherwise and when shutting down",
            "GET /metrics": "Prometheus metrics",
        },
    }))
}

/// GET /livez.
pub(super) async fn live() -> Json<Value> {
    Json(json!({ "status": "live" }))
}

/// GET /readyz.
pub(super) async fn ready(State(server): State<Arc<Server>>) -> Result<Json<Value>, Error> {
    if server.is_closing() {
        return Err(Error::Closing);
    }
    let latest = server.registry.latest().ok_or(Error::NotReady)?;
    Ok(Json(json!({ "status": "ready", "version": latest.version })))
}

/// GET /metrics, in Prometheus's text format.
pub(super) async fn metrics(State(server): State<Arc<Server>>) -> impl IntoResponse {
    // Read when asked for, so that it cannot drift from what is really pending.
    metrics::gauge!(SERVER_PENDING).set(server.pending_images() as f64);
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], server.metrics.render())
}

/// What is not there.
pub(super) async fn no_route(method: Method, uri: Uri) -> Error {
    Error::Route { method: method.to_string(), path: uri.path().to_owned() }
}

/// What is there for other methods.
pub(super) async fn no_method(method: Method, uri: Uri) -> Error {
    Error::Method { method: method.to_string(), path: uri.path().to_owned() }
}

/// A handler panicked. The panic hook has reported it, with its place: logging it here as well
/// would count it twice, and a client learns nothing of it.
pub(super) fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    Error::Internal.into_response()
}

/// Counts and times every answer.
pub(super) async fn observe(request: Request, next: Next) -> Response {
    // The pattern, not the path: labels stay few.
    let matched = request.extensions().get::<MatchedPath>();
    let route = matched.map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let began = Instant::now();
    let response = next.run(request).await;
    metrics::histogram!(HTTP_REQUEST_DURATION, "route" => route.clone()).record(began.elapsed());
    let status = response.status().as_u16().to_string();
    metrics::counter!(HTTP_REQUESTS, "route" => route, "status" => status).increment(1);
    response
}
