//! Stores behind HTTP, with a client that goes nowhere but where it is asked to.

use super::Config;
use super::prefix::{Kind, Prefix};
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::http::HttpBuilder;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// The longest wait for a connection; object_store's own default.
const CONNECT: Duration = Duration::from_secs(5);

/// The store that `prefix` is a folder of.
///
/// # Errors
/// Settings of the store, in environment variables, that cannot be used.
pub(super) fn open(prefix: &Prefix, config: &Config) -> Result<Arc<dyn ObjectStore>> {
    // The time for an object, all attempts included, is kept by `fetch`.
    let retry = RetryConfig {
        max_retries: config.retries,
        retry_timeout: config.timeout,
        ..RetryConfig::default()
    };
    match prefix.kind {
        Kind::File => bail!("{} is no store behind HTTP", prefix.site),
        Kind::Http => {
            let builder = HttpBuilder::new().with_url(&prefix.site).with_retry(retry);
            let store = builder.with_http_connector(Connector).build();
            Ok(Arc::new(store.with_context(|| prefix.site.clone())?))
        }
        #[cfg(feature = "cloud")]
        _ => super::cloud::open(prefix, retry, Connector),
    }
}

/// Makes clients that follow no redirect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .user_agent(concat!("selfstream/", env!("CARGO_PKG_VERSION")))
            // object_store's default; its authors found HTTP/2 slower.
            .http1_only()
            .build();
        let failed = |source| object_store::Error::Generic { store: "HTTP", source };
        Ok(HttpClient::new(Straight(client.map_err(|error| failed(error.into()))?)))
    }
}

/// An answer that sends us elsewhere.
#[derive(Debug, thiserror::Error)]
#[error("redirected to {to:?}")]
pub(super) struct Redirected {
    pub(super) to: String,
}

/// A client whose redirects are errors, and whose other failures have no body.
#[derive(Debug)]
struct Straight(reqwest::Client);

type Answer<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for Straight {
    // What the macro of the crate async-trait makes of an `async fn`.
    fn call<'service, 'answer>(&'service self, request: HttpRequest) -> Answer<'answer>
    where
        'service: 'answer,
        Self: 'answer,
    {
        Box::pin(async move {
            let mut response = HttpService::call(&self.0, request).await?;
            if response.status().is_redirection() {
                let to = response.headers().get("location").and_then(|to| to.to_str().ok());
                let redirected = Redirected { to: to.unwrap_or_default().to_owned() };
                // A kind that is not tried again.
                return Err(HttpError::new(HttpErrorKind::Unknown, redirected));
            }
            if !response.status().is_success() {
                // object_store would read all of it, for its message.
                *response.body_mut() = HttpResponseBody::from(Bytes::new());
            }
            Ok(response)
        })
    }
}
