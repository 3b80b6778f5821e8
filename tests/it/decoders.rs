//! Decoders that panic.

use crate::delivery::{Lineage, Way};
use crate::harness::{brokers, create_topic, reader, unique, wait_for};
use rdkafka::consumer::Consumer;
use rdkafka::message::{Headers, Message};
use std::time::Duration;

const IMAGES: u64 = 600;

#[test]
fn images_that_a_decoder_panics_on_are_refused_and_the_others_learned() {
    let Some(brokers) = brokers() else { return };
    let letters = unique("panics-refused");
    create_topic(&brokers, &letters, 1);
    let kafka = format!("dead_letter_topic = \"{letters}\"\n");
    let lineage = Lineage::new(Way::to(&brokers), "panics", &kafka);
    lineage.produce(0..IMAGES);
    // Early: later ones may be replayed images, which have been decoded before.
    let program = lineage.start(&[("decode", "20*off->3*panic(on purpose)->off")]);
    lineage.finish_by(program, IMAGES);

    let consumer = reader(&brokers, &letters, 1);
    for _ in 0..3 {
        let letter = wait_for("a dead letter", || consumer.poll(Duration::from_secs(1))).unwrap();
        let headers = letter.headers().unwrap();
        let reason = headers.iter().find(|header| header.key == "selfstream-reason").unwrap();
        assert_eq!(reason.value, Some(&b"panicked"[..]));
        let message = headers.iter().find(|header| header.key == "selfstream-message").unwrap();
        let message = String::from_utf8_lossy(message.value.unwrap()).into_owned();
        assert!(message.contains("on purpose"), "{message}");
    }
    let (low, high) = consumer.fetch_watermarks(&letters, 0, Duration::from_secs(10)).unwrap();
    assert_eq!(high - low, 3, "and no other is");
}

/// Not by an image, since all that looks at one is caught: the run ends rather than wait for ever for what
/// the thread had in hand.
#[test]
fn a_decode_thread_that_dies_ends_the_run_and_loses_nothing() {
    let Some(brokers) = brokers() else { return };
    let lineage = Lineage::new(Way::to(&brokers), "dead-decoder", "");
    lineage.produce(0..IMAGES);
    let mut program = lineage.start(&[("decode_thread", "100*off->1*panic->off")]);
    let status = program.wait();
    assert_eq!(status.code(), Some(1), "{status}\n{}", program.log());
    assert!(program.log().contains("a decode thread panicked"), "{}", program.log());
    lineage.finish(IMAGES);
}
