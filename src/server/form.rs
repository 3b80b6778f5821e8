//! The three forms of an embedding request, read into one.

use super::error::Error;
use super::options::Options;
use super::prepare::Payload;
use super::{Server, json};
use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Multipart, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// What a client asks for.
pub(super) struct Wanted {
    pub(super) options: Options,
    /// At least one, in the client's order.
    pub(super) images: Vec<Payload>,
    /// Held as long as the images' bytes are.
    pub(super) body: OwnedSemaphorePermit,
}

/// How the body carries the images.
enum Form {
    /// OpenAI's.
    Json,
    /// Several files.
    Multipart,
    /// One image of this media type, if the client named it.
    Raw(Option<String>),
}

impl Form {
    fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let given = given.unwrap_or_default();
        let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => Ok(Self::Json),
            "multipart/form-data" => Ok(Self::Multipart),
            "application/octet-stream" => Ok(Self::Raw(None)),
            _ if essence.starts_with("image/") => Ok(Self::Raw(Some(essence))),
            _ => Err(Error::MediaType { given: given.to_owned() }),
        }
    }
}

/// Reads a request whole.
pub(super) async fn read(server: &Server, request: Request) -> Result<Wanted, Error> {
    let (parts, body) = request.into_parts();
    let form = Form::of(&parts.headers)?;
    let mut options = Options::default();
    let Query(pairs) =
        Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).map_err(|rejection| {
            Error::Value {
                param: "query",
                value: rejection.body_text(),
                allowed: "name=value pairs".to_owned(),
            }
        })?;
    for (name, value) in &pairs {
        options.set(name, value)?;
    }
    let max_images = server.config.max_images_per_request;
    let (bytes, body) = receive(server, &parts, body).await?;
    let images = match form {
        Form::Json => json::read(&bytes, &mut options, max_images)?,
        Form::Multipart => multipart(parts, bytes, &mut options, max_images).await?,
        Form::Raw(media_type) => vec![Payload::Bytes(bytes, media_type)],
    };
    if images.is_empty() {
        return Err(Error::Count { has: "no", max: max_images });
    }
    Ok(Wanted { options, images, body })
}

/// The body, once there is room for it, and the permit of that room.
async fn receive(
    server: &Server,
    parts: &Parts,
    body: Body,
) -> Result<(Bytes, OwnedSemaphorePermit), Error> {
    let max_bytes = server.config.max_body_bytes;
    let length = parts.headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let n_bytes = length.unwrap_or(max_bytes);
    if n_bytes > max_bytes {
        return Err(Error::TooLarge { max_bytes });
    }
    let n_bytes = u32::try_from(n_bytes).map_err(|_| Error::TooLarge { max_bytes })?;
    let room = Arc::clone(&server.bodies)
        .try_acquire_many_owned(n_bytes)
        .map_err(|_| Error::Overloaded)?;
    let request = Request::from_parts(parts.clone(), body);
    let patience = server.config.body_timeout;
    match timeout(patience, Bytes::from_request(request, &())).await {
        Ok(Ok(bytes)) => Ok((bytes, room)),
        Ok(Err(rejection)) if is_too_large(&rejection) => Err(Error::TooLarge { max_bytes }),
        Ok(Err(rejection)) => Err(Error::Body(rejection.body_text())),
        Err(_) => Err(Error::TooSlow { timeout_seconds: patience.as_secs_f32() }),
    }
}

fn is_too_large(rejection: &BytesRejection) -> bool {
    rejection.status() == StatusCode::PAYLOAD_TOO_LARGE
}

/// Every part that is no option is an image, whatever its name; the first one too many ends the reading.
async fn multipart(
    parts: Parts,
    bytes: Bytes,
    options: &mut Options,
    max_images: usize,
) -> Result<Vec<Payload>, Error> {
    let request = Request::from_parts(parts, Body::from(bytes));
    let mut multipart = Multipart::from_request(request, &())
        .await
        .map_err(|rejection| Error::Body(rejection.body_text()))?;
    let mut images = Vec::new();
    while let Some(field) = multipart.next_field().await.map_err(not_multipart)? {
        let is_option = field.file_name().is_none() && field.name().is_some_and(Options::is_name);
        if is_option {
            let name = field.name().unwrap_or_default().to_owned();
            options.set(&name, &field.text().await.map_err(not_multipart)?)?;
            continue;
        }
        if images.len() == max_images {
            return Err(Error::Count { has: "too many", max: max_images });
        }
        let media_type = field.content_type().filter(|kind| kind.starts_with("image/"));
        let media_type = media_type.map(str::to_owned);
        images.push(Payload::Bytes(field.bytes().await.map_err(not_multipart)?, media_type));
    }
    Ok(images)
}

fn not_multipart(error: axum::extract::multipart::MultipartError) -> Error {
    Error::Body(error.body_text())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What follows is cut short, and nobody comes to know.
    #[tokio::test]
    async fn one_part_too_many_ends_the_reading() {
        let expected = "the request has too many images: it must have from 1 to 2";
        assert_eq!(refusal_of_three(2).await, expected);
        assert!(refusal_of_three(3).await.starts_with("the body cannot be read"));
    }

    /// Of three parts, the last without an end.
    async fn refusal_of_three(max_images: usize) -> String {
        let request = axum::http::Request::post("/v1/embeddings")
            .header(header::CONTENT_TYPE, "multipart/form-data; boundary=b")
            .body(())
            .unwrap();
        let (parts, ()) = request.into_parts();
        let part = "--b\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\n";
        let body = format!("{part}first\r\n{part}second\r\n{part}a third that has no e");
        let read = multipart(parts, body.into(), &mut Options::default(), max_images).await;
        read.unwrap_err().to_string()
    }
}
