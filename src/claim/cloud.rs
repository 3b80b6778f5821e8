//! Buckets of cloud providers. Credentials, regions and endpoints are those of their usual environment
//! variables (`AWS_*`, `GOOGLE_*`, `AZURE_*`), as object_store reads them.

use super::prefix::{Kind, Prefix};
use super::remote::Connector;
use anyhow::{Context as _, Result, bail};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ObjectStore, RetryConfig};
use std::sync::Arc;

/// The bucket that `prefix` is a folder of.
///
/// # Errors
/// Environment variables that cannot be used, or a kind that is no bucket.
pub(super) fn open(
    prefix: &Prefix,
    retry: RetryConfig,
    connector: Connector,
) -> Result<Arc<dyn ObjectStore>> {
    let (_, bucket) = prefix.site.split_once("://").context("a prefix has a scheme")?;
    let store: Result<Arc<dyn ObjectStore>, object_store::Error> = match prefix.kind {
        Kind::S3 => AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_retry(retry)
            .with_http_connector(connector)
            .build()
            .map(|store| Arc::new(store) as Arc<dyn ObjectStore>),
        Kind::Google => GoogleCloudStorageBuilder::from_env()
            .with_bucket_name(bucket)
            .with_retry(retry)
            .with_http_connector(connector)
            .build()
            .map(|store| Arc::new(store) as Arc<dyn ObjectStore>),
        Kind::Azure => MicrosoftAzureBuilder::from_env()
            .with_container_name(bucket)
            .with_retry(retry)
            .with_http_connector(connector)
            .build()
            .map(|store| Arc::new(store) as Arc<dyn ObjectStore>),
        Kind::File | Kind::Http => bail!("{} is no bucket", prefix.site),
    };
    store.with_context(|| prefix.site.clone())
}
