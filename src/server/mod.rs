//! The newest encoder, over HTTP, in OpenAI's form.
//!
//! ```text
//! form (JSON, raw, multipart) -> prepare -> queue -> embed -> embeddings
//!    tokio's workers             decode threads     encode thread    tokio's workers
//! ```
//!
//! A request takes one snapshot from the registry and holds it to its end, so that no answer mixes
//! versions. Images of concurrent requests share batches. What finds no room is refused at once.

use crate::decode;
use crate::events::Events;
use crate::snapshot::{Registry, Snapshot};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::HeaderName;
use axum::middleware::from_fn;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use error::{Error, shown};
use metrics_exporter_prometheus::PrometheusHandle;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use worker::Workers;

mod config;
mod embed;
mod embeddings;
mod error;
mod events;
mod form;
mod json;
mod models;
mod options;
mod prepare;
mod queue;
mod status;
mod worker;

pub use config::Config;

/// Names the version that made an answer's vectors.
const VERSION_HEADER: HeaderName = HeaderName::from_static("x-selfstream-version");

/// How often histograms are folded when nobody scrapes them; the exporter's own default.
const UPKEEP: Duration = Duration::from_secs(5);

/// What all requests share: settings, versions, and the threads that compute.
pub struct Server {
    config: Config,
    registry: Arc<Registry>,
    workers: Workers,
    /// A permit for each byte of request bodies that may be held at once.
    bodies: Arc<Semaphore>,
    metrics: PrometheusHandle,
    events: Events,
    /// Cancelled when a shutdown begins.
    closing: CancellationToken,
}

impl Server {
    /// Starts the threads that decode (as `decode` says) and embed. They end when the last owner
    /// of the server drops it.
    ///
    /// # Errors
    /// When the system grants no threads.
    pub fn start(
        config: Config,
        decode: decode::Config,
        registry: Arc<Registry>,
        metrics: PrometheusHandle,
        events: Events,
    ) -> io::Result<Arc<Self>> {
        let workers = Workers::start(&config, decode)?;
        let bodies = Arc::new(Semaphore::new(config.max_pending_body_bytes));
        let closing = CancellationToken::new();
        Ok(Arc::new(Self { config, registry, workers, bodies, metrics, events, closing }))
    }

    /// Images accepted and not answered yet.
    pub fn pending_images(&self) -> usize {
        self.workers.pending_images()
    }

    /// Turns /readyz to 503 and ends streams of events; requests are still answered.
    pub fn begin_shutdown(&self) {
        self.closing.cancel();
    }

    fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// The version that `model` names.
    fn resolve(&self, model: &str) -> Result<Arc<Snapshot>, Error> {
        match self.registry.get(model) {
            Some(snapshot) => Ok(snapshot),
            None if self.registry.latest().is_none() => Err(Error::NotReady),
            None if model == "stable" => Err(Error::NoStable),
            None => Err(Error::Model { model: shown(model) }),
        }
    }
}

/// Every endpoint, without a socket.
pub fn app(server: Arc<Server>) -> Router {
    Router::new()
        .route("/", get(status::index))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{version}", get(models::get))
        .route("/v1/events", get(events::stream))
        .route("/livez", get(status::live))
        .route("/readyz", get(status::ready))
        .route("/metrics", get(status::metrics))
        .fallback(status::no_route)
        .method_not_allowed_fallback(status::no_method)
        .layer(DefaultBodyLimit::max(server.config.max_body_bytes))
        .layer(CatchPanicLayer::custom(status::panicked))
        .layer(from_fn(status::observe))
        .with_state(server)
}

/// Answers on `listener` until `shutdown`: then /readyz is 503, new connections are refused after
/// the configured notice, and requests in flight finish, within the configured drain time.
///
/// # Errors
/// Of the listener.
pub async fn serve(
    listener: TcpListener,
    server: Arc<Server>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (draining, drain_began) = oneshot::channel();
    let closing = Arc::clone(&server);
    let close = async move {
        shutdown.await;
        closing.begin_shutdown();
        sleep(closing.config.shutdown_notice).await;
        // The receiver lives as long as this future.
        let _ = draining.send(());
    };
    // Answers are small: none should wait for more to fill a packet.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps its delay");
        }
    });
    let answering = axum::serve(listener, app(Arc::clone(&server))).with_graceful_shutdown(close);
    let overdue = async {
        match drain_began.await {
            Ok(()) => sleep(server.config.drain).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = answering => ended,
        () = overdue => {
            let pending_images = server.pending_images();
            tracing::warn!(pending_images, "requests were still in flight when the drain time ended");
            Ok(())
        }
        never = keep_up(&server.metrics) => never,
    }
}

/// Folds the observations of the histograms, for ever.
async fn keep_up(metrics: &PrometheusHandle) -> ! {
    let mut ticks = interval(UPKEEP);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}
