//! Fetching from a folder and from a server of this machine.

use super::*;
use crate::claim::fixtures::{folder_prefix, serve};
use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect};
use axum::routing::get;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Far longer than any fetch of these tests takes.
const PATIENCE: Duration = Duration::from_secs(300);
/// The largest object of these tests.
const MAX_BYTES: usize = 1000;

fn config(prefix: &str) -> Config {
    Config { prefixes: vec![prefix.to_owned()], timeout: PATIENCE, ..Config::default() }
}

async fn fetch(config: &Config, uri: &str) -> Result<Bytes, Unfetched> {
    let fetcher = Fetcher::open(config, MAX_BYTES).unwrap();
    fetcher.fetch(&fetcher.place(uri.as_bytes())?).await
}

async fn reason(config: &Config, uri: &str) -> &'static str {
    fetch(config, uri).await.unwrap_err().reason()
}

#[tokio::test]
async fn a_file_below_the_prefix_is_read_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    fs::create_dir_all(images.join("sub folder")).unwrap();
    fs::create_dir(dir.path().join("images2")).unwrap();
    fs::write(images.join("sub folder/100% é.png"), b"bytes").unwrap();
    fs::write(dir.path().join("secret"), b"secret").unwrap();
    fs::write(dir.path().join("images2/secret"), b"secret").unwrap();
    let prefix = folder_prefix(&images);
    let config = config(&prefix);
    for name in ["sub%20folder/100%25%20%C3%A9.png", "x/../sub%20folder/./100%25%20%c3%a9.png"] {
        let bytes = fetch(&config, &format!("{prefix}{name}")).await.unwrap();
        assert_eq!(bytes, "bytes", "{name}");
    }
    for (name, expected) in [
        ("../secret", "claim_not_allowed"),
        ("%2e%2e/secret", "claim_not_allowed"),
        ("../images2/secret", "claim_not_allowed"),
        ("..%2fsecret", "claim_malformed"),
        ("%252e%252e/secret", "claim_not_found"),
        ("nothing.png", "claim_not_found"),
        ("sub%20folder", "claim_not_found"),
        ("sub%20folder/100%25%20%C3%A9.png/x", "claim_not_found"),
    ] {
        assert_eq!(reason(&config, &format!("{prefix}{name}")).await, expected, "{name}");
    }
    let long = format!("{prefix}{}", "a".repeat(300));
    assert_eq!(reason(&config, &long).await, "claim_not_found");
}

#[tokio::test]
async fn links_are_followed_within_the_prefix_alone() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    fs::write(images.join("a.png"), b"bytes").unwrap();
    fs::write(dir.path().join("outside/secret"), b"secret").unwrap();
    symlink("a.png", images.join("inside")).unwrap();
    symlink("../outside/secret", images.join("file")).unwrap();
    symlink(dir.path().join("outside"), images.join("folder")).unwrap();
    symlink("nowhere", images.join("broken")).unwrap();
    symlink("loop", images.join("loop")).unwrap();
    // The prefix itself may be a link.
    symlink(&images, dir.path().join("link")).unwrap();
    let prefix = folder_prefix(&dir.path().join("link"));
    let config = config(&prefix);
    for name in ["a.png", "inside"] {
        assert_eq!(fetch(&config, &format!("{prefix}{name}")).await.unwrap(), "bytes", "{name}");
    }
    for (name, expected) in [
        ("file", "claim_not_allowed"),
        ("folder/secret", "claim_not_allowed"),
        ("broken", "claim_not_found"),
        ("loop", "claim_unreachable"),
    ] {
        assert_eq!(reason(&config, &format!("{prefix}{name}")).await, expected, "{name}");
    }
}

/// Opening a pipe waits for a writer, on a thread that nobody gets back.
#[tokio::test]
async fn a_pipe_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = folder_prefix(dir.path());
    let made = std::process::Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap();
    assert!(made.success());
    assert_eq!(reason(&config(&prefix), &format!("{prefix}pipe")).await, "claim_not_found");
}

#[tokio::test]
async fn the_limit_on_bytes_is_inclusive() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = folder_prefix(dir.path());
    fs::write(dir.path().join("full"), vec![7; MAX_BYTES]).unwrap();
    fs::write(dir.path().join("over"), vec![7; MAX_BYTES + 1]).unwrap();
    let (full, over) = (format!("{prefix}full"), format!("{prefix}over"));
    assert_eq!(fetch(&config(&prefix), &full).await.unwrap().len(), MAX_BYTES);
    assert_eq!(reason(&config(&prefix), &over).await, "claim_too_large");
    let less = Config { max_bytes: Some(MAX_BYTES - 1), ..config(&prefix) };
    assert_eq!(reason(&less, &full).await, "claim_too_large");
}

#[test]
fn a_folder_that_is_not_there_keeps_the_run_from_starting() {
    let error = Fetcher::open(&config("file:///no/such/folder/"), MAX_BYTES).unwrap_err();
    assert!(format!("{error:#}").contains("file:///no/such/folder/"), "{error:#}");
}

/// An answer that claims `len` bytes, gives three, and then nothing.
fn stalled(len: usize) -> impl IntoResponse {
    let first = tokio_stream::once(Ok::<_, io::Error>(Bytes::from_static(b"abc")));
    let body = Body::from_stream(first.chain(tokio_stream::pending()));
    ([(header::CONTENT_LENGTH, len.to_string())], body)
}

#[tokio::test]
async fn what_a_server_has_is_fetched_and_what_it_has_not_is_told() {
    let named = |Path(name): Path<String>| async move {
        if name == "a \u{e9}.png" { Ok("bytes") } else { Err(StatusCode::NOT_FOUND) }
    };
    let app = Router::new()
        .route("/cam/{name}", get(named))
        .route("/cam/empty", get(|| async { "" }))
        .route("/cam/denied", get(|| async { StatusCode::FORBIDDEN }))
        .route("/cam/large", get(|| async { stalled(MAX_BYTES + 1) }));
    let prefix = serve(app).await + "/cam/";
    let config = config(&prefix);
    for name in ["a%20%C3%A9.png", "x/%2e%2e/a%20%c3%a9.png"] {
        assert_eq!(fetch(&config, &format!("{prefix}{name}")).await.unwrap(), "bytes", "{name}");
    }
    assert_eq!(fetch(&config, &format!("{prefix}empty")).await.unwrap(), "");
    for (name, expected) in [
        ("nothing", "claim_not_found"),
        ("denied", "claim_unreachable"),
        // Refused by what it claims: its bytes are never waited for.
        ("large", "claim_too_large"),
        ("../secret", "claim_not_allowed"),
    ] {
        assert_eq!(reason(&config, &format!("{prefix}{name}")).await, expected, "{name}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_go_on_is_not_waited_for() {
    let app = Router::new()
        .route("/silent", get(std::future::pending::<&'static str>))
        .route("/stalled", get(|| async { stalled(100) }));
    let prefix = serve(app).await + "/";
    let config = Config { timeout: Duration::from_millis(300), ..config(&prefix) };
    for name in ["silent", "stalled"] {
        assert_eq!(reason(&config, &format!("{prefix}{name}")).await, "claim_timed_out", "{name}");
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let visits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&visits);
    let other = Router::new().fallback(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        async { "secret" }
    });
    let other = serve(other).await;
    let to = |url: &str| {
        let redirect = Redirect::temporary(url);
        get(move || async move { redirect })
    };
    let app = Router::new()
        .route("/cam/elsewhere", to(&format!("{other}/cam/a.png")))
        .route("/cam/out", to("/secret"))
        .route("/secret", get(|| async { "secret" }));
    let prefix = serve(app).await + "/cam/";
    for name in ["elsewhere", "out"] {
        let refused = fetch(&config(&prefix), &format!("{prefix}{name}")).await.unwrap_err();
        assert_eq!(refused.reason(), "claim_not_allowed", "{name}: {refused:?}");
        assert!(refused.to_string().contains("redirects to"), "{refused}");
    }
    assert_eq!(visits.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn failures_that_may_pass_are_tried_again_so_often() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let answer = move || {
        let fails = counted.fetch_add(1, Ordering::Relaxed) < 2;
        async move { if fails { Err(StatusCode::SERVICE_UNAVAILABLE) } else { Ok("bytes") } }
    };
    let prefix = serve(Router::new().route("/a", get(answer))).await + "/";
    let uri = format!("{prefix}a");
    let once = Config { retries: 1, ..config(&prefix) };
    assert_eq!(reason(&once, &uri).await, "claim_unreachable");
    assert_eq!(asked.swap(0, Ordering::Relaxed), 2);
    let twice = Config { retries: 2, ..config(&prefix) };
    assert_eq!(fetch(&twice, &uri).await.unwrap(), "bytes");
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let prefix = format!("http://127.0.0.1:{port}/");
    let config = Config { retries: 1, ..config(&prefix) };
    assert_eq!(reason(&config, &format!("{prefix}a")).await, "claim_unreachable");
}

#[tokio::test]
async fn a_stream_is_given_up_at_the_chunk_that_is_too_much() {
    let taken = AtomicUsize::new(0);
    let chunks = |n| {
        let taken = &taken;
        taken.store(0, Ordering::Relaxed);
        tokio_stream::iter(0..n).map(move |_| {
            taken.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::from_static(&[0; 10]))
        })
    };
    assert_eq!(collect(chunks(3), 0, 30).await.unwrap().unwrap().len(), 30);
    assert_eq!(collect(chunks(1_000_000), 0, 30).await.unwrap(), None);
    assert_eq!(taken.load(Ordering::Relaxed), 4);
}

#[test]
fn a_file_that_grew_is_read_no_further_than_the_limit() {
    let mut file = tempfile::tempfile().unwrap();
    io::Write::write_all(&mut file, &[0; 40]).unwrap();
    let again = || {
        let mut file = file.try_clone().unwrap();
        io::Seek::rewind(&mut file).unwrap();
        file
    };
    assert_eq!(read(again(), 10, 40).unwrap().unwrap().len(), 40);
    assert_eq!(read(again(), 10, 39).unwrap(), None);
}

/// Bytes are counted by their length wherever they are held.
#[tokio::test]
async fn what_was_fetched_takes_no_more_room_than_its_bytes() {
    let room = |bytes: Bytes| Vec::from(bytes).capacity();
    for len in [0, 10, 30] {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &[0; 30]).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        assert_eq!(room(read(file, len, 100).unwrap().unwrap()), 30, "a file, said to have {len}");
        let chunks = tokio_stream::iter((0..3).map(|_| Ok(Bytes::from_static(&[0; 10]))));
        let bytes = collect(chunks, len, 100).await.unwrap().unwrap();
        assert_eq!(room(bytes), 30, "an answer, said to have {len}");
    }
}
