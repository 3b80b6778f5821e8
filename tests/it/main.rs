//! The one integration binary: the program as users run it, against real parts.
//!
//! Tests that need a broker find it by KAFKA_BROKERS, and those that need real images by
//! SELFSTREAM_TEST_IMAGES; `scripts/test` sets up the first, CI the second. Without them they say
//! that they were skipped.

// `cfg(test)` marks the helpers as tests too, where clippy.toml allows unwrap.
#[cfg(test)]
mod brokers;
#[cfg(test)]
mod ceiling;
#[cfg(test)]
mod claims;
#[cfg(test)]
mod clock;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod command_line;
#[cfg(all(test, feature = "failpoints"))]
mod decoders;
#[cfg(test)]
mod delivery;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod deterministic;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod events;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod http;
#[cfg(test)]
mod kafka;
#[cfg(test)]
mod learning;
#[cfg(test)]
mod near_duplicates;
#[cfg(test)]
mod pace;
#[cfg(test)]
mod pair;
#[cfg(test)]
mod prequential;
#[cfg(test)]
mod proxy;
#[cfg(all(test, feature = "failpoints"))]
mod recovery;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod retention;
#[cfg(test)]
mod scrape;
#[cfg(test)]
mod termination;
#[cfg(test)]
mod tidy;
