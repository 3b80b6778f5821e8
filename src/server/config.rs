//! The `[server]` section.

use crate::setting::{Invalid, within};
use std::net::SocketAddr;
use std::time::Duration;

/// How embedding queries are answered over HTTP.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port to listen on; `0.0.0.0:8080` is reachable from other machines. There is
    /// no authentication: put a proxy in front of it where that matters.
    pub listen: SocketAddr,
    /// Threads that decode and prepare images, and as many again that compute embeddings.
    pub threads: usize,
    /// Most images of concurrent requests that are embedded together.
    pub max_batch_images: usize,
    /// How long an image may wait for others to share its batch; zero embeds what is there.
    #[serde(with = "humantime_serde")]
    pub max_batch_wait: Duration,
    /// Most images accepted and not answered yet; requests beyond it get 429.
    pub max_pending_images: usize,
    /// Most images in one request.
    pub max_images_per_request: usize,
    /// Largest request body; larger ones get 413.
    pub max_body_bytes: usize,
    /// Most bytes of request bodies held at once; requests beyond it get 429. A body sent without
    /// a length counts as `max_body_bytes`.
    pub max_pending_body_bytes: usize,
    /// How long a client may take to send its body; slower ones get 408.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// On shutdown, how long requests are still accepted after /readyz has turned 503, for load
    /// balancers to notice.
    #[serde(with = "humantime_serde")]
    pub shutdown_notice: Duration,
    /// Then, how long requests in flight may take to finish.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
}

impl Default for Config {
    /// Where no other source is named, a guess.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            threads: 1,
            max_batch_images: 32,
            max_batch_wait: Duration::from_millis(2),
            max_pending_images: 512,
            max_images_per_request: 256,
            max_body_bytes: 32 << 20,
            max_pending_body_bytes: 256 << 20,
            body_timeout: Duration::from_secs(30),
            shutdown_notice: Duration::ZERO,
            drain: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field whose value cannot be used.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("server.threads", self.threads, 1..=1024, "from 1 to 1024")?;
        within("server.max_batch_images", self.max_batch_images, 1..=1024, "from 1 to 1024")?;
        if self.max_batch_wait > Duration::from_secs(10) {
            let given = format!("{:?}", self.max_batch_wait);
            return Err(Invalid::new("server.max_batch_wait", given, "at most 10 s"));
        }
        within(
            "server.max_images_per_request",
            self.max_images_per_request,
            1..=65_536,
            "from 1 to 65536",
        )?;
        within(
            "server.max_pending_images",
            self.max_pending_images,
            self.max_images_per_request..=1 << 20,
            "from server.max_images_per_request to 1048576",
        )?;
        within(
            "server.max_body_bytes",
            self.max_body_bytes,
            1024..=1 << 30,
            "from 1024 to 1073741824 (1 GiB)",
        )?;
        within(
            "server.max_pending_body_bytes",
            self.max_pending_body_bytes,
            self.max_body_bytes..=usize::MAX >> 4,
            "at least server.max_body_bytes",
        )?;
        if self.body_timeout.is_zero() {
            return Err(Invalid::new("server.body_timeout", "0s", "longer than nothing"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_survives_toml() {
        let config = Config::default();
        config.validate().unwrap();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn a_refusal_names_its_field() {
        let refused = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.validate().unwrap_err().key
        };
        assert_eq!(refused(|c| c.threads = 0), "server.threads");
        assert_eq!(refused(|c| c.max_batch_images = 0), "server.max_batch_images");
        assert_eq!(
            refused(|c| c.max_batch_wait = Duration::from_secs(11)),
            "server.max_batch_wait"
        );
        assert_eq!(refused(|c| c.max_images_per_request = 0), "server.max_images_per_request");
        assert_eq!(refused(|c| c.max_pending_images = 255), "server.max_pending_images");
        assert_eq!(refused(|c| c.max_body_bytes = 0), "server.max_body_bytes");
        assert_eq!(refused(|c| c.max_pending_body_bytes = 1), "server.max_pending_body_bytes");
        assert_eq!(refused(|c| c.body_timeout = Duration::ZERO), "server.body_timeout");
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let error = toml::from_str::<Config>("thread = 2").unwrap_err();
        assert!(error.message().contains("thread"), "{error}");
    }
}
