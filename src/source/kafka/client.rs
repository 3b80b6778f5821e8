//! The consumer's client: what it is set to, and what ends it.

use super::{Config, GroupProtocol};
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;

/// The largest response that librdkafka takes, its `receive.message.max.bytes`: the default.
const RESPONSE_BYTES: u64 = 100_000_000;

/// The most bytes that the consumer holds of what it has fetched: its queue, which one response may overshoot.
pub(super) fn most_bytes(config: &Config) -> u64 {
    let client = client_config(config);
    let number = |key| client.get(key).and_then(|value| value.parse::<u64>().ok());
    let queue = number("queued.max.messages.kbytes").unwrap_or_default();
    let response = number("receive.message.max.bytes").unwrap_or(RESPONSE_BYTES);
    queue.saturating_mul(1024).saturating_add(response)
}

pub(super) fn client_config(config: &Config) -> ClientConfig {
    let mut client = config.client();
    client
        .set("group.id", &config.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        // With the default of a second a small queue starves its reader.
        .set("fetch.queue.backoff.ms", "10")
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.message.max.bytes", "1048576")
        // A topic that is made after we subscribe is found this soon; the default is 5 minutes.
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("statistics.interval.ms", "1000");
    match config.group_protocol {
        GroupProtocol::Classic => {
            client.set("partition.assignment.strategy", "cooperative-sticky");
        }
        GroupProtocol::Consumer => {
            client.set("group.protocol", "consumer");
        }
    }
    if let Some(instance_id) = &config.instance_id {
        client.set("group.instance.id", instance_id);
    }
    config.with_properties(client)
}

/// Whether a session of the same static member has not ended yet: KIP-848 calls that fatal, and the
/// broker ends such a session after its timeout.
pub(super) fn is_held_by_another(error: &anyhow::Error) -> bool {
    let fatal = error.downcast_ref::<Fatal>();
    fatal.is_some_and(|fatal| fatal.code == RDKafkaErrorCode::UnreleasedInstanceId)
}

/// What no waiting mends, by the client's own word.
#[derive(Debug, thiserror::Error)]
#[error("kafka: fatal error {code:?}: {reason}")]
pub(super) struct Fatal {
    pub(super) code: RDKafkaErrorCode,
    pub(super) reason: String,
}
