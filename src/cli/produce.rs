//! `selfstream produce`: sends the images of a folder or tar to a topic.

use super::log;
use crate::config::LogForm;
use crate::sink::images::{ImageProducer, parse_property};
use crate::source::collection::Collection;
use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Send the images of a folder or tar to a Kafka topic.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A folder, .tar, .tar.gz or .tar.xz of images.
    #[arg(value_name = "DIR|TAR")]
    images: PathBuf,
    /// Bootstrap servers.
    #[arg(long, value_name = "HOST:PORT,...")]
    brokers: String,
    /// The topic.
    #[arg(long)]
    topic: String,
    /// At most this many images a second.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Send in a random order instead of that of the names.
    #[arg(long, value_name = "SEED")]
    shuffle: Option<u64>,
    /// Send each image's folder as its label, which is used for evaluation alone.
    #[arg(long)]
    labels_from_folders: bool,
    /// A librdkafka property, such as `security.protocol=SSL`; may be given several times.
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = parse_property)]
    properties: Vec<(String, String)>,
}

/// How long the broker may take to acknowledge the last messages.
const FINISH: Duration = Duration::from_secs(120);
/// How long a full local queue is left to drain before the next try.
const FULL: Duration = Duration::from_millis(20);

pub(super) fn run(args: Args) -> Result<()> {
    log::start(LogForm::Text, "warn");
    if let Some(rate) = args.rate
        && !(rate.is_finite() && rate > 0.0)
    {
        bail!("--rate = {rate} is not allowed: it must be more than 0");
    }
    let images = Collection::open(&args.images)?;
    let order = match args.shuffle {
        Some(seed) => images.shuffled_order(seed, 0),
        None => (0..images.len()).collect(),
    };
    let mut producer = ImageProducer::open(
        &args.brokers,
        &args.topic,
        &args.properties,
        args.labels_from_folders,
    )?;
    let bar = ProgressBar::new(order.len() as u64);
    let style = "{bar:30} {human_pos}/{human_len} images, {per_sec}, {eta} left";
    bar.set_style(ProgressStyle::with_template(style)?);
    let began = Instant::now();
    for (sent, &index) in order.iter().enumerate() {
        if let Some(rate) = args.rate {
            let due = began + Duration::from_secs_f64(sent as f64 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        while !producer.send(&images, index)? {
            std::thread::sleep(FULL);
        }
        bar.set_position(producer.acknowledged());
    }
    let delivered = producer.finish(FINISH)?;
    bar.finish_and_clear();
    report(delivered, &args.topic, began.elapsed());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "it is the command's result")]
fn report(delivered: u64, topic: &str, took: Duration) {
    println!("{delivered} images are on topic {topic}, after {:.1} s", took.as_secs_f64());
}
