//! What the tests of claim checks share.

use crate::source::{Origin, Record};
use axum::Router;
use std::path::Path;

/// A record as Kafka would deliver it.
pub(super) fn record(offset: i64, value: &str, content_type: Option<&'static str>) -> Record {
    let header = |value: &'static str| ("Content-Type".to_owned(), Some(value.into()));
    Record {
        origin: Origin { topic: "images".into(), partition: 0, offset },
        generation: 1,
        is_skipped: false,
        bytes: value.to_owned().into(),
        omitted_bytes: 0,
        timestamp_ms: None,
        key: None,
        headers: content_type.map(header).into_iter().collect(),
    }
}

/// The prefix of a folder of this machine.
pub(super) fn folder_prefix(folder: &Path) -> String {
    format!("file://{}/", folder.display())
}

/// Serves `app` at a port of this machine for as long as the runtime lives; its URL, without a slash.
pub(super) async fn serve(app: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    format!("http://{address}")
}
