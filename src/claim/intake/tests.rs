//! Order, places and ends of the stage.

use super::*;
use crate::claim::fixtures::{folder_prefix, record, serve};
use axum::Router;
use axum::routing::get;
use std::fs;
use std::sync::mpsc as std_mpsc;
use tokio::runtime::Runtime;
use tokio::sync::Barrier;

/// Far longer than anything of these tests takes.
const PATIENCE: Duration = Duration::from_secs(300);
const LIST: Option<&str> = Some("text/uri-list");

/// A next stage with so many places as its channel has.
struct Next(std_mpsc::SyncSender<Arrival>);

impl Downstream<Arrival> for Next {
    fn offer(&mut self, arrival: Arrival, _: Duration) -> Offer<Arrival> {
        match self.0.try_send(arrival) {
            Ok(()) => Offer::Taken,
            Err(std_mpsc::TrySendError::Full(arrival)) => {
                // The time for which a next stage would wait; nothing depends on it.
                thread::sleep(Duration::from_millis(1));
                Offer::Full(arrival)
            }
            Err(std_mpsc::TrySendError::Disconnected(_)) => Offer::Closed,
        }
    }
}

fn next(places: usize) -> (Next, std_mpsc::Receiver<Arrival>) {
    let (sender, arrivals) = std_mpsc::sync_channel(places);
    (Next(sender), arrivals)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn config(prefix: &str, concurrency: usize) -> Config {
    Config {
        prefixes: vec![prefix.to_owned()],
        timeout: PATIENCE,
        concurrency,
        ..Config::default()
    }
}

/// What an arrival's image is, in words.
fn told(arrival: &Arrival) -> String {
    match &arrival.image {
        Image::Inline => "inline".to_owned(),
        Image::Fetched(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        Image::Missing(unfetched) => unfetched.reason().to_owned(),
    }
}

fn take(intake: &mut dyn Downstream, record: Record) {
    match intake.offer(record, PATIENCE) {
        Offer::Taken => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_prefixes_images_pass_and_claims_are_refused() {
    let runtime = runtime();
    let (next, arrivals) = next(2);
    let mut intake = start(&Config::default(), 1000, next, runtime.handle().clone()).unwrap();
    take(&mut *intake, record(0, "an image", Some("image/png")));
    take(&mut *intake, record(1, "file:///a", LIST));
    // No queue of its own: a full next stage is felt at once, and the record comes back.
    match intake.offer(record(2, "file:///b", LIST), Duration::ZERO) {
        Offer::Full(record) => assert_eq!(record.bytes, "file:///b"),
        other => panic!("{other:?}"),
    }
    let all: Vec<_> = arrivals.try_iter().collect();
    let told: Vec<_> = all.iter().map(told).collect();
    assert_eq!(told, ["inline", "claim_not_allowed"]);
    assert_eq!(all[1].record.bytes, "file:///a");
    drop(arrivals);
    assert!(matches!(intake.offer(record(3, "", None), Duration::ZERO), Offer::Closed));
}

#[test]
fn the_order_out_is_the_order_in() {
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let prefix = folder_prefix(dir.path());
    for index in 0..100 {
        fs::write(dir.path().join(index.to_string()), format!("image {index}")).unwrap();
    }
    let (next, arrivals) = next(1);
    let config = config(&prefix, 8);
    let mut intake = start(&config, 1000, next, runtime.handle().clone()).unwrap();
    let sender = thread::spawn(move || {
        for index in 0..200 {
            let record = match index % 4 {
                0 => record(index, &format!("{prefix}{}", index / 2), LIST),
                1 => record(index, &format!("{prefix}none"), LIST),
                2 => record(index, "file:///a\nfile:///b", LIST),
                _ => record(index, "an image", None),
            };
            take(&mut *intake, record);
        }
        // Dropped with records inside.
    });
    for index in 0..200 {
        let arrival = arrivals.recv_timeout(PATIENCE).unwrap();
        assert_eq!(arrival.record.origin.offset, index);
        let expected = match index % 4 {
            0 => format!("image {}", index / 2),
            1 => "claim_not_found".to_owned(),
            2 => "claim_malformed".to_owned(),
            _ => "inline".to_owned(),
        };
        assert_eq!(told(&arrival), expected, "{index}");
    }
    sender.join().unwrap();
    let ended = arrivals.recv_timeout(PATIENCE).unwrap_err();
    assert_eq!(ended, std_mpsc::RecvTimeoutError::Disconnected, "the thread ends with the intake");
}

/// The server answers once four ask at a time, so one fetch after another would wait for ever.
#[test]
fn as_many_as_the_setting_says_are_fetched_at_a_time() {
    let runtime = runtime();
    let barrier = Arc::new(Barrier::new(4));
    let meet = get(move || {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
            "bytes"
        }
    });
    let prefix = runtime.block_on(serve(Router::new().route("/{name}", meet))) + "/";
    let (next, arrivals) = next(1);
    let config = config(&prefix, 4);
    let mut intake = start(&config, 1000, next, runtime.handle().clone()).unwrap();
    let sender = thread::spawn(move || {
        for index in 0..12 {
            take(&mut *intake, record(index, &format!("{prefix}{index}"), LIST));
        }
    });
    for _ in 0..12 {
        assert_eq!(told(&arrivals.recv_timeout(PATIENCE).unwrap()), "bytes");
    }
    sender.join().unwrap();
}

#[test]
fn a_full_stage_gives_the_record_back_and_a_closed_one_says_so() {
    let runtime = runtime();
    let app = Router::new().fallback(std::future::pending::<&'static str>);
    let prefix = runtime.block_on(serve(app)) + "/";
    let (next, arrivals) = next(1);
    let config = Config { timeout: Duration::from_millis(500), ..config(&prefix, 2) };
    let mut intake = start(&config, 1000, next, runtime.handle().clone()).unwrap();
    let uri = format!("{prefix}a");
    // One is with the thread, one in the queue's place, one with the next stage: the fourth finds none.
    let mut given = 0;
    let back = loop {
        match intake.offer(record(given, &uri, LIST), Duration::from_secs(2)) {
            Offer::Taken => given += 1,
            Offer::Full(record) => break record,
            Offer::Closed => panic!("nobody closed it"),
        }
        assert!(given <= 3, "{given} were taken");
    };
    assert_eq!((back.origin.offset, &back.bytes[..]), (given, uri.as_bytes()));
    drop(arrivals);
    // The thread finds out with its next record, and the intake once the thread has ended.
    let began = std::time::Instant::now();
    while !matches!(intake.offer(record(9, &uri, LIST), Duration::from_millis(10)), Offer::Closed) {
        assert!(began.elapsed() < PATIENCE, "it never closed");
    }
}
