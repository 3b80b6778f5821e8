//! What the broker no longer has when it is read: counted and told, never passed over in silence.

use crate::delivery::surviving;
use crate::harness::{
    Message, Program, brokers, committed, create_topic, png, produce, small_config, unique,
    wait_for,
};
use crate::scrape::{get, metric};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};

use std::process::Command;

/// A topic of one partition and its learner.
struct Shortened {
    brokers: String,
    topic: String,
    dir: tempfile::TempDir,
    url: String,
}

impl Shortened {
    fn new(brokers: &str, name: &str) -> Self {
        let topic = unique(name);
        create_topic(brokers, &topic, 1);
        let dir = tempfile::tempdir().unwrap();
        let text = small_config(brokers, &topic, dir.path());
        std::fs::write(dir.path().join("config.toml"), &text).unwrap();
        let address = text.split("listen = \"").nth(1).unwrap().split('"').next().unwrap();
        let url = format!("http://{address}/metrics");
        Self { brokers: brokers.to_owned(), topic, dir, url }
    }

    fn produce(&self, images: std::ops::Range<u64>) {
        let message = |index| Message { partition: 0, value: png(index, 10), content_type: None };
        produce(&self.brokers, &self.topic, images.map(message));
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self) -> Program {
        let config = self.path("config.toml");
        Program::start(&["run", "--config", config.to_str().unwrap()], &self.path("log"))
    }

    fn done(&self) -> Vec<i64> {
        let times = surviving(&self.path("journal.jsonl"));
        assert!(times.values().all(|times| *times == 1), "done more than once: {times:?}");
        times.into_keys().map(|(_, offset)| offset).collect()
    }

    fn await_done(&self, program: &mut Program, offsets: &[i64]) {
        wait_for("what is left to be done", || {
            program.assert_alive();
            (self.done() == offsets).then_some(())
        });
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", &self.brokers).create().unwrap()
    }

    /// Takes away what is before `offset`, as retention does.
    fn retain_from(&self, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, 0, Offset::Offset(offset)).unwrap();
        block_on(async { self.admin().delete_records(&list, &AdminOptions::new()).await }).unwrap();
    }

    fn make_anew(&self) {
        let deleted = block_on(async {
            self.admin().delete_topics(&[&self.topic], &AdminOptions::new()).await
        });
        deleted.unwrap().into_iter().next().unwrap().unwrap();
        create_topic(&self.brokers, &self.topic, 1);
    }

    fn lost(&self) -> Option<f64> {
        metric(&get(&self.url)?, "selfstream_lost_records_total")
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn signal(program: &Program, signal: &str) {
    let status = Command::new("kill").args([signal, &program.id().to_string()]).status();
    assert!(status.unwrap().success());
}

const TOLD: &str = "the broker no longer has records we never read";

#[test]
fn records_that_retention_took_while_nobody_read_are_counted() {
    let Some(brokers) = brokers() else { return };
    let shortened = Shortened::new(&brokers, "retention");
    shortened.produce(0..160);
    let mut program = shortened.start();
    shortened.await_done(&mut program, &(0..160).collect::<Vec<_>>());
    assert!(program.terminate().success(), "{}", program.log());
    shortened.produce(160..320);
    shortened.retain_from(240);
    let mut program = shortened.start();
    let left: Vec<i64> = (0..160).chain(240..320).collect();
    shortened.await_done(&mut program, &left);
    assert_eq!(shortened.lost(), Some(80.0));
    assert!(program.terminate().success(), "{}", program.log());
    assert!(program.log().contains(TOLD), "{}", program.log());
    assert_eq!(committed(&brokers, &shortened.topic, &shortened.topic, 1), [320]);
}

/// The learner stands still meanwhile, as one that is far behind would.
#[test]
fn records_that_retention_takes_from_under_a_learner_are_counted() {
    let Some(brokers) = brokers() else { return };
    let shortened = Shortened::new(&brokers, "overtaken");
    shortened.produce(0..160);
    let mut program = shortened.start();
    shortened.await_done(&mut program, &(0..160).collect::<Vec<_>>());
    signal(&program, "-STOP");
    shortened.produce(160..320);
    shortened.retain_from(240);
    signal(&program, "-CONT");
    // It may have been sent some before they were taken; each is done or counted.
    wait_for("what is left to be done", || {
        program.assert_alive();
        shortened.done().ends_with(&(240..320).collect::<Vec<_>>()).then_some(())
    });
    let n_done = shortened.done().len() as f64;
    assert_eq!(shortened.lost().map(|lost| lost + n_done), Some(320.0), "{}", program.log());
    assert!(program.terminate().success(), "{}", program.log());
    assert_eq!(committed(&brokers, &shortened.topic, &shortened.topic, 1), [320]);
}

#[test]
fn a_topic_that_is_made_anew_is_read_from_its_beginning() {
    let Some(brokers) = brokers() else { return };
    let shortened = Shortened::new(&brokers, "anew");
    shortened.produce(0..320);
    let mut program = shortened.start();
    shortened.await_done(&mut program, &(0..320).collect::<Vec<_>>());
    assert!(program.terminate().success(), "{}", program.log());
    // Offsets of the new topic are no longer those of the old one.
    std::fs::remove_file(shortened.path("journal.jsonl")).unwrap();
    shortened.make_anew();
    shortened.produce(320..480);
    let mut program = shortened.start();
    shortened.await_done(&mut program, &(0..160).collect::<Vec<_>>());
    assert!(program.terminate().success(), "{}", program.log());
    assert!(program.log().contains("made anew"), "{}", program.log());
    assert_eq!(committed(&brokers, &shortened.topic, &shortened.topic, 1), [160]);
}
