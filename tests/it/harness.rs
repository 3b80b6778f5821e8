//! The program as a process, topics on a real broker, and small images.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use selfstream::seed::{self, Purpose};
use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up: for loaded machines.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// The broker's address, or `None` with a message.
pub(crate) fn brokers() -> Option<String> {
    let brokers = std::env::var("KAFKA_BROKERS").ok();
    if brokers.is_none() {
        eprintln!("skipped: KAFKA_BROKERS is not set");
    }
    brokers
}

/// The folder of real images, or `None` with a message.
pub(crate) fn test_images() -> Option<PathBuf> {
    let images = std::env::var_os("SELFSTREAM_TEST_IMAGES").map(PathBuf::from);
    if images.is_none() {
        eprintln!("skipped: SELFSTREAM_TEST_IMAGES is not set");
    }
    images
}

/// Waits until `ready` gives something; panics with `what` after [`PATIENCE`].
pub(crate) fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The number in `variable`, or `usual`: tests are short unless they are asked to be long.
pub(crate) fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |number| number.parse().unwrap())
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A name that no other test and no earlier run has.
pub(crate) fn unique(name: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{name}-{}-{}", std::process::id(), now.as_nanos())
}

/// The program, running.
pub(crate) struct Program {
    child: Child,
    log: PathBuf,
    /// Length of the log before it began, bytes.
    log_began: usize,
}

impl Program {
    /// Starts the program; its output goes to `log`.
    pub(crate) fn start(args: &[&str], log: &Path) -> Self {
        Self::start_with(args, log, &[])
    }

    /// The same with failpoints, each its name and what it does; they need the feature `failpoints`.
    pub(crate) fn start_with(args: &[&str], log: &Path, failpoints: &[(&str, &str)]) -> Self {
        Self::start_under(&[], args, log, failpoints)
    }

    /// The same by a command that becomes the program, given its path and arguments.
    pub(crate) fn start_under(
        command: &[&str],
        args: &[&str],
        log: &Path,
        failpoints: &[(&str, &str)],
    ) -> Self {
        let failpoints: Vec<_> =
            failpoints.iter().map(|(name, action)| format!("{name}={action}")).collect();
        let file = File::options().create(true).append(true).open(log).unwrap();
        let log_began = file.metadata().unwrap().len() as usize;
        let command = [command, &[env!("CARGO_BIN_EXE_selfstream")], args].concat();
        let child = Command::new(command[0])
            .args(&command[1..])
            .env("FAILPOINTS", failpoints.join(";"))
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log: log.to_owned(), log_began }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let id = self.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.wait()
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_for("the program to end", || child.try_wait().unwrap())
    }

    /// Panics with its log if it has ended.
    pub(crate) fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the program ended with {status}:\n{}", self.log());
        }
    }

    /// What it has written.
    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        File::open(&self.log).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Waits until it has written `text`.
    pub(crate) fn await_log(&mut self, text: &str) {
        wait_for(text, || {
            let said = self.log()[self.log_began..].contains(text);
            // Last words count.
            if !said {
                self.assert_alive();
            }
            said.then_some(())
        });
    }

    /// The memory that it has resident, in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// The most memory it has ever had resident, in KiB.
    pub(crate) fn peak_memory_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    fn status_kib(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A test that panics leaves no process behind; one that has ended cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a topic.
pub(crate) fn create_topic(brokers: &str, topic: &str, partitions: i32) {
    create_topic_of(brokers, topic, partitions, 1);
}

/// Makes a topic with each partition on so many brokers.
pub(crate) fn create_topic_of(brokers: &str, topic: &str, partitions: i32, copies: i32) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(copies));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let made = runtime.block_on(admin.create_topics([&new], &AdminOptions::new())).unwrap();
    made.into_iter().next().unwrap().unwrap();
}

/// A message to send.
pub(crate) struct Message {
    pub(crate) partition: i32,
    pub(crate) value: Vec<u8>,
    pub(crate) content_type: Option<&'static str>,
}

/// Sends messages in order and waits until the broker has them.
pub(crate) fn produce(brokers: &str, topic: &str, messages: impl IntoIterator<Item = Message>) {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("message.max.bytes", "33554432")
        .create()
        .unwrap();
    for Message { partition, value, content_type } in messages {
        let mut headers = OwnedHeaders::new();
        if let Some(value) = content_type {
            headers = headers.insert(Header { key: "content-type", value: Some(value) });
        }
        let mut record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(topic).partition(partition).payload(&value[..]).headers(headers);
        while let Err((_, same)) = producer.send(record) {
            record = same;
            producer.flush(PATIENCE).unwrap();
        }
    }
    producer.flush(PATIENCE).unwrap();
}

/// A consumer that belongs to no group, at the beginning of every partition of `topic`.
pub(crate) fn reader(brokers: &str, topic: &str, partitions: i32) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", unique("reader"))
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    for partition in 0..partitions {
        let offset = rdkafka::Offset::Beginning;
        list.add_partition_offset(topic, partition, offset).unwrap();
    }
    consumer.assign(&list).unwrap();
    consumer
}

/// The offset that `group` has committed for each partition of `topic`.
pub(crate) fn committed(brokers: &str, group: &str, topic: &str, partitions: i32) -> Vec<i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .create()
        .unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions - 1);
    let committed = consumer.committed_offsets(list, Duration::from_secs(10)).unwrap();
    committed.elements().iter().map(|element| element.offset().to_raw().unwrap()).collect()
}

/// A small PNG that differs from every other `index`'s.
pub(crate) fn png(index: u64, side_px: u32) -> Vec<u8> {
    use rand::RngExt;
    let mut rng = seed::rng(77, Purpose::Evaluate, &[index]);
    let ground: [u8; 3] = rng.random();
    let image = image::RgbImage::from_fn(side_px, side_px, |x, y| {
        let stripe = (x * (1 + index as u32 % 5) + y) / 3 % 2 * 60;
        image::Rgb(ground.map(|value| value.wrapping_add(stripe as u8 + rng.random_range(0..9u8))))
    });
    let mut bytes = std::io::Cursor::new(vec![]);
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A configuration for small, fast runs on `topic`, with its files in `dir`.
pub(crate) fn small_config(brokers: &str, topic: &str, dir: &Path) -> String {
    format!(
        r#"
        run.learner_threads = 1
        run.journal = "{dir}/journal.jsonl"
        input.side_px = 8
        batch.images = 16
        batch.pace = "fixed"
        batch.max_wait = "200ms"
        checkpoint.dir = "{dir}/checkpoints"
        checkpoint.every = "200ms"
        snapshot.every_steps = 20
        gate.min_spread = 0.0
        gate.min_rank_share = 0.0
        server.listen = "127.0.0.1:{port}"
        [kafka]
        brokers = "{brokers}"
        topics = ["{topic}"]
        group = "{topic}"
        instance_id = "{topic}-1"
        "#,
        dir = dir.display(),
        port = free_port(),
    )
}
