//! GET /v1/models and /v1/models/{version}: the versions that answer queries.

use super::Server;
use super::error::Error;
use crate::snapshot::{Registry, Snapshot};
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
    changes: u64,
    parent: Option<String>,
    /// Whether it answers requests that name no model.
    latest: bool,
    /// Whether it answers requests for `stable`.
    stable: bool,
}

impl Model {
    fn of(snapshot: &Snapshot, registry: &Registry) -> Self {
        let is =
            |named: Option<Arc<Snapshot>>| named.is_some_and(|s| s.version == snapshot.version);
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
            changes: provenance.changes,
            parent: provenance.parent.clone(),
            latest: is(registry.latest()),
            stable: is(registry.stable()),
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
    let resident = server.registry.list();
    let data = resident.iter().map(|snapshot| Model::of(snapshot, &server.registry)).collect();
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
    Ok(Json(Model::of(&snapshot, &server.registry)))
}
