//! GET /v1/models and /v1/models/{version}: the versions that answer queries.

use super::Server;
use super::error::Error;
use crate::snapshot::Snapshot;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use std::sync::Arc;

/// OpenAI's model, and what else is known of a version.
#[derive(Serialize)]
pub(super) struct Model {
    /// The version.
    id: String,
    object: &'static str,
    /// Seconds since the Unix epoch.
    created: i64,
    owned_by: &'static str,
    architecture: String,
    /// Length of its embeddings.
    dimensions: usize,
    step: u64,
    images_learned: u64,
    parent: Option<String>,
    /// Whether it answers requests that name no model.
    latest: bool,
}

impl Model {
    fn of(snapshot: &Snapshot, latest: Option<&Arc<Snapshot>>) -> Self {
        let provenance = &snapshot.provenance;
        Self {
            id: snapshot.version.clone(),
            object: "model",
            created: provenance.created_ms.div_euclid(1000),
            owned_by: "selfstream",
            architecture: snapshot.architecture.clone(),
            dimensions: snapshot.encoder.feature_dim(),
            step: provenance.step,
            images_learned: provenance.images_learned,
            parent: provenance.parent.clone(),
            latest: latest.is_some_and(|latest| latest.version == snapshot.version),
        }
    }
}

/// OpenAI's list.
#[derive(Serialize)]
pub(super) struct List {
    object: &'static str,
    data: Vec<Model>,
}

/// Every resident version, newest first; none before the first publication.
pub(super) async fn list(State(server): State<Arc<Server>>) -> Json<List> {
    let latest = server.registry.latest();
    let resident = server.registry.list();
    let data = resident.iter().map(|snapshot| Model::of(snapshot, latest.as_ref())).collect();
    Json(List { object: "list", data })
}

/// One resident version, named as a request's `model` is.
pub(super) async fn get(
    State(server): State<Arc<Server>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, Error> {
    let Path(name) = name.map_err(|rejection| Error::Value {
        param: "model",
        value: rejection.body_text(),
        allowed: "UTF-8".to_owned(),
    })?;
    let snapshot = server.resolve(&name)?;
    Ok(Json(Model::of(&snapshot, server.registry.latest().as_ref())))
}
