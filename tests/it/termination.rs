//! SIGTERM at any moment: a good end, soon, and nothing lost or doubled by it.

use crate::delivery::{Lineage, Way, message};
use crate::harness::{Message, Program, brokers, create_topic, number, produce, unique, wait_for};
use crate::proxy::Proxied;
use rand::RngExt;
use selfstream::seed::{self, Purpose};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// New images before each end.
const IMAGES: u64 = 150;
/// Waits of 10 s each for a question to the broker and for leaving, and of 5 s for dead letters, may add up; the
/// rest is for loaded machines.
const ENDED: Duration = Duration::from_secs(120);

/// A learner that is asked to end time and again.
struct Ends {
    lineage: Lineage,
    n_images: u64,
}

impl Ends {
    fn new(way: Way<'_>, name: &str) -> Self {
        Self { lineage: Lineage::new(way, name, ""), n_images: 0 }
    }

    /// A run that has new images to learn.
    fn start(&mut self, failpoints: &[(&str, &str)]) -> Program {
        self.lineage.produce(self.n_images..self.n_images + IMAGES);
        self.n_images += IMAGES;
        self.lineage.start(failpoints)
    }

    /// A run that has begun to learn.
    fn start_learning(&mut self) -> Program {
        let before = self.lineage.journal_len();
        let mut program = self.start(&[]);
        self.lineage.await_learning(&mut program, before);
        program
    }

    fn finish(self) {
        self.lineage.finish(self.n_images);
    }
}

/// SIGTERM, and the good end that it must have.
fn end(moment: &str, mut program: Program) {
    program.assert_alive();
    let began = Instant::now();
    let status = program.terminate();
    let took = began.elapsed();
    println!("ended {:.1} s after SIGTERM {moment}", took.as_secs_f64());
    assert!(status.success(), "{moment}: {status}\n{}", program.log());
    assert!(took < ENDED, "{moment}: {took:?}");
}

/// A request for events, which goes on until the server ends it.
fn listen_to_events(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(ENDED)).unwrap();
    write!(stream, "GET /v1/events HTTP/1.1\r\nhost: selfstream\r\n\r\n").unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    stream
}

/// Whether a file is half written in the checkpoint folder.
fn is_writing(ends: &Ends) -> bool {
    let files = fs::read_dir(ends.lineage.dir.path().join("checkpoints")).unwrap();
    files.map(|file| file.unwrap().path()).any(|path| path.extension().is_some_and(|e| e == "tmp"))
}

#[test]
fn a_run_ends_well_at_any_moment() {
    let Some(brokers) = brokers() else { return };
    let mut ends = Ends::new(Way::to(&brokers), "ends");
    for moment in ["listening", "subscribed", "assigned"] {
        let mut program = ends.start(&[]);
        program.await_log(moment);
        end(&format!("when it says {moment:?}"), program);
    }
    let program = ends.start_learning();
    end("at the first steps", program);

    if cfg!(feature = "failpoints") {
        let mut program = ends.start(&[("rename", "1*sleep(3000)->off")]);
        wait_for("a checkpoint that is being written", || {
            program.assert_alive();
            is_writing(&ends).then_some(())
        });
        end("in the middle of a checkpoint", program);
    }

    let program = ends.start_learning();
    let config = fs::read_to_string(ends.lineage.dir.path().join("config.toml")).unwrap();
    let address = config.split("listen = \"").nth(1).unwrap().split('"').next().unwrap();
    let events = listen_to_events(address);
    let idle = TcpStream::connect(address).unwrap();
    end("while clients are connected", program);
    drop((events, idle));

    let mut rng = seed::rng(4, Purpose::Evaluate, &[]);
    for _ in 0..number("SELFSTREAM_ENDS", 4) {
        let mut program = ends.start(&[]);
        program.await_log("listening");
        let after = Duration::from_millis(rng.random_range(0..2000));
        std::thread::sleep(after);
        end(&format!("{after:?} after it listened"), program);
    }
    ends.finish();
}

#[test]
fn a_run_ends_well_while_its_broker_cannot_be_reached() {
    let Some(proxied) = Proxied::start() else { return };
    let mut ends = Ends::new(proxied.way(), "ends-alone");
    proxied.cut();
    let mut program = ends.start(&[]);
    program.await_log("subscribed");
    end("without a broker from the start", program);
    proxied.mend();

    let program = ends.start_learning();
    proxied.cut();
    end("when the broker has just gone", program);
    proxied.mend();

    let mut program = ends.start_learning();
    proxied.cut();
    program.await_log("tried again until it passes");
    end("when the broker has been gone for a while", program);
    proxied.mend();
    ends.finish();
}

/// Thousands of dead letters are under way, since their acknowledgements come late.
#[test]
fn a_run_ends_well_in_a_flood_of_dead_letters() {
    const RECORDS: u64 = 15_000;
    let Some(proxied) = Proxied::start() else { return };
    let way = proxied.way();
    let letters = unique("flood-refused");
    create_topic(way.brokers, &letters, 1);
    let kafka = format!("dead_letter_topic = \"{letters}\"\n");
    let lineage = Lineage::new(way, "flood", &kafka);
    let broken = |index: u64| Message { value: b"no image".to_vec(), ..message(index) };
    produce(way.brokers, &lineage.topic, (0..RECORDS).map(broken));
    proxied.delay(Duration::from_millis(500));
    let mut program = lineage.start(&[]);
    wait_for("a refusal", || {
        program.assert_alive();
        (!lineage.done().is_empty()).then_some(())
    });
    end("in a flood of dead letters", program);
    proxied.delay(Duration::ZERO);
    lineage.finish(RECORDS);
}
