//! Every refusal of the server, in OpenAI's form: `{"error": {message, type, code, param}}`.

use super::prepare::Refusal;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("there is no {method} {path}: GET / lists the endpoints")]
    Route { method: String, path: String },
    #[error("{path} does not answer {method}: the allow header lists what it does")]
    Method { method: String, path: String },
    #[error(
        "model = {model:?} is no resident version: it must be \"latest\", \"stable\", or a version or the \
         first 8 or more characters of just one that GET /v1/models lists"
    )]
    Model { model: String },
    #[error("no encoder is ready yet: ask again when GET /readyz answers 200")]
    NotReady,
    #[error("no version is stable yet: ask for \"latest\", or again later")]
    NoStable,
    #[error("the server is shutting down")]
    Closing,
    #[error("input[{index}] was refused ({}): {refusal}", refusal.reason())]
    Image { index: usize, refusal: Refusal },
    #[error("{param} = {value} is not allowed: it must be {allowed}")]
    Value { param: &'static str, value: String, allowed: String },
    #[error("the request has {has} images: it must have from 1 to {max}")]
    Count { has: &'static str, max: usize },
    #[error("the body cannot be read: {0}")]
    Body(String),
    #[error("the body is larger than {max_bytes} bytes")]
    TooLarge { max_bytes: usize },
    #[error("the body took longer than {timeout_seconds} s to arrive")]
    TooSlow { timeout_seconds: f32 },
    #[error(
        "content-type = {given:?} is not allowed: it must be application/json, \
         multipart/form-data, application/octet-stream or image/*"
    )]
    MediaType { given: String },
    #[error("the server is busy with other images: ask again later")]
    Overloaded,
    #[error("the server failed")]
    Internal,
}

/// How much of a value is repeated to who gave it: more than the name of a version has.
const SHOWN_CHARS: usize = 100;

/// The beginning of `value`, for a message. An answer is not counted as a body is, and a client may give megabytes.
pub(super) fn shown(value: &str) -> String {
    match value.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value.to_owned(),
    }
}

/// OpenAI's names for whose fault it is.
const INVALID: &str = "invalid_request_error";
const BUSY: &str = "rate_limit_error";
const SERVER: &str = "server_error";

impl Error {
    /// Status, type, code and the seconds after which to try again.
    fn parts(&self) -> (StatusCode, &'static str, &'static str, Option<u32>) {
        match self {
            Self::Route { .. } => (StatusCode::NOT_FOUND, INVALID, "unknown_url", None),
            Self::Method { .. } => {
                (StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed", None)
            }
            Self::Model { .. } => (StatusCode::NOT_FOUND, INVALID, "model_not_found", None),
            // A guess: a first encoder is published within minutes, and polling costs nothing.
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "not_ready", Some(5)),
            // A guess, as above: versions become stable every few minutes.
            Self::NoStable => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "no_stable", Some(30)),
            Self::Closing => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "shutting_down", Some(5)),
            Self::Image { .. } => (StatusCode::BAD_REQUEST, INVALID, "invalid_image", None),
            Self::Value { .. } => (StatusCode::BAD_REQUEST, INVALID, "invalid_value", None),
            Self::Count { .. } => (StatusCode::BAD_REQUEST, INVALID, "invalid_image_count", None),
            Self::Body(_) => (StatusCode::BAD_REQUEST, INVALID, "invalid_body", None),
            Self::TooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, INVALID, "body_too_large", None)
            }
            Self::TooSlow { .. } => (StatusCode::REQUEST_TIMEOUT, INVALID, "body_too_slow", None),
            Self::MediaType { .. } => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_media_type", None)
            }
            // A guess: a full queue empties within a second or so.
            Self::Overloaded => (StatusCode::TOO_MANY_REQUESTS, BUSY, "overloaded", Some(1)),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error", None),
        }
    }

    /// The part of the request that is at fault.
    fn param(&self) -> Option<String> {
        match self {
            Self::Image { index, .. } => Some(format!("input[{index}]")),
            Self::Value { param, .. } => Some((*param).to_owned()),
            Self::Model { .. } => Some("model".to_owned()),
            Self::Count { .. } => Some("input".to_owned()),
            _ => None,
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, kind, code, retry_after_seconds) = self.parts();
        let body = serde_json::json!({ "error": {
            "message": self.to_string(),
            "type": kind,
            "code": code,
            "param": self.param(),
        }});
        let mut response = (status, Json(body)).into_response();
        if let Some(seconds) = retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_repeated_whole_where_it_is_short() {
        for short in ["", "abcdef12", "ü".repeat(SHOWN_CHARS).as_str()] {
            assert_eq!(shown(short), short);
        }
        let long = shown(&"ü".repeat(1 << 20));
        assert_eq!(long, format!("{}...", "ü".repeat(SHOWN_CHARS)));
    }
}
