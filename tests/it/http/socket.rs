//! Over real sockets: curl, OpenAI's Python client, slow clients, and shutting down.

use super::toy::{
    assert_made_by, embeddings, eventually, gated, png, png64, server_hearing, server_of, toy,
    version,
};
use selfstream::events::{Event, Events};
use selfstream::server::{Config, Server, serve};
use serde_json::{Value, json};
use std::fs;
use std::future::pending;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};

/// Serves on a free port until told to stop.
async fn start(
    server: Arc<Server>,
) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<std::io::Result<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async move {
        // A test that drops its sender lets the server run.
        if stopped.await.is_err() {
            pending::<()>().await;
        }
    };
    (address, stop, tokio::spawn(serve(listener, server, shutdown)))
}

/// Runs curl on `path`: status and body.
async fn curl(address: SocketAddr, path: &str, arguments: &[&str]) -> (u16, String) {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--write-out", "\n%{http_code}"]);
    command.args(arguments).arg(format!("http://{address}{path}"));
    let output = spawn_blocking(move || command.output().expect("curl must be installed"));
    let output = output.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

fn json_of((status, body): (u16, String)) -> Value {
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// A stream of events lasts until the server shuts down, and holds nothing up then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_hears_events_until_the_server_ends() {
    let events = Events::default();
    let (address, stop, serving) = start(server_hearing(events.clone())).await;
    let heard = tokio::spawn(async move { curl(address, "/v1/events", &["--no-buffer"]).await });
    eventually("the stream to begin", async || events.listeners() == 1).await;
    events.tell(Event::Drift { origin: "images/0@7".to_owned(), score: 8.5 });
    events.tell(Event::Refused { step: 3, reason: "collapsed" });
    stop.send(()).unwrap();
    let (status, body) = heard.await.unwrap();
    serving.await.unwrap().unwrap();
    assert_eq!(status, 200);
    let told: Vec<(&str, Value)> = body
        .split("\n\n")
        .filter_map(|block| {
            let (name, data) = block.trim().strip_prefix("event: ")?.split_once("\ndata: ")?;
            Some((name, serde_json::from_str(data).unwrap()))
        })
        .collect();
    let names: Vec<&str> = told.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["drift", "refused"], "{body}");
    assert_eq!(told[0].1["origin"], "images/0@7");
    assert_eq!(told[1].1["reason"], "collapsed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_embeds_in_every_form() {
    let (address, _stop, _) = start(server_of(Config::default(), &[toy(1), toy(2)])).await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (a, b) = (file("a.png", &png(10)), file("b.png", &png(20)));
    let json = file("body.json", json!({ "input": [png64(10), png64(20)] }).to_string().as_bytes());
    let v1 = format!("/v1/embeddings?model={}", version(1));

    let raw = ["--header", "content-type: image/png", "--data-binary", &format!("@{a}")];
    let answer = json_of(curl(address, &v1, &raw).await);
    assert_made_by(&embeddings(&answer)[0], 1, 10);

    let typed = ["--json", &format!("@{json}")];
    let two = json_of(curl(address, "/v1/embeddings", &typed).await);
    let files = ["--form", &format!("file=@{a}"), "--form", &format!("file=@{b}")];
    let two_files = json_of(curl(address, "/v1/embeddings", &files).await);
    assert_eq!(two, two_files);
    for (embedding, level) in embeddings(&two).iter().zip([10, 20]) {
        assert_made_by(embedding, 2, level);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_gets_refusals_as_json() {
    let config = Config { max_body_bytes: 100_000, ..Config::default() };
    let (address, _stop, _) = start(server_of(config, &[toy(1)])).await;
    let folder = tempfile::tempdir().unwrap();
    let large = folder.path().join("large");
    fs::write(&large, vec![0; 3_000_000]).unwrap();
    let large = format!("@{}", large.display());
    let raw = "content-type: image/png";
    let cases: [(&str, &[&str], u16, &str); 6] = [
        ("/nothing", &[], 404, "unknown_url"),
        ("/v1/embeddings", &[], 405, "method_not_allowed"),
        ("/v1/embeddings", &["--data-binary", "x"], 415, "unsupported_media_type"),
        ("/v1/embeddings", &["--header", raw, "--data-binary", "x"], 400, "invalid_image"),
        ("/v1/embeddings", &["--header", raw, "--data-binary", &large], 413, "body_too_large"),
        (
            "/v1/embeddings?model=x",
            &["--header", raw, "--data-binary", "x"],
            404,
            "model_not_found",
        ),
    ];
    for (path, arguments, status, code) in cases {
        let (got, body) = curl(address, path, arguments).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((got, body["error"]["code"].as_str()), (status, Some(code)), "{path}: {body}");
    }
    let (status, body) = curl(address, "/readyz", &[]).await;
    assert_eq!((status, body.contains(&version(1))), (200, true));
}

/// Pinned, so that a new release fails nothing here before someone has looked at it.
const OPENAI: [&str; 2] = ["openai==3.57.0", "numpy==2.2.6"];

/// A Python with OpenAI's client, made on first use under the target folder.
fn python_with_openai() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-client");
    let python = folder.join("bin/python");
    let complete = folder.join(OPENAI.join("-"));
    if complete.exists() {
        return python;
    }
    let run = |command: &mut Command| {
        let output = command.output().expect("python3 must be installed");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {errors}");
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(OPENAI));
    fs::write(complete, "").unwrap();
    python
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openais_python_client_gets_what_it_expects() {
    let (address, _stop, _) = start(server_of(Config::default(), &[toy(1), toy(2)])).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/openai_client.py");
    let run = spawn_blocking(move || {
        Command::new(python_with_openai())
            .arg(script)
            .args([format!("http://{address}/v1"), version(1), version(2)])
            .output()
            .unwrap()
    });
    let output = run.await.unwrap();
    let (said, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.ends_with("all checks passed\n"), "{said}");
}

/// Begins a POST of `length` bytes and sends none of them.
fn stalled_post(address: SocketAddr, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_come_is_given_up() {
    let config = Config { body_timeout: Duration::from_millis(50), ..Config::default() };
    let (address, _stop, _) = start(server_of(config, &[toy(1)])).await;
    let answer = spawn_blocking(move || {
        let mut text = String::new();
        stalled_post(address, 10).read_to_string(&mut text).unwrap();
        text
    });
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("body_too_slow"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_without_room_are_refused_until_there_is_some() {
    let (max_body_bytes, max_pending_body_bytes) = (4096, 4096);
    let config = Config { max_body_bytes, max_pending_body_bytes, ..Config::default() };
    let (address, _stop, _) = start(server_of(config, &[toy(1)])).await;
    let post = json!({ "input": png64(1) }).to_string();
    let arguments = ["--json", post.as_str()];
    let stalled = spawn_blocking(move || stalled_post(address, max_body_bytes)).await.unwrap();
    // The stalled request is read at some moment soon after it was sent, and let go likewise.
    let status = async || curl(address, "/v1/embeddings", &arguments).await.0;
    eventually("the room is taken", async || status().await == 429).await;
    drop(stalled);
    eventually("the room is free", async || status().await == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_flight_finishes_after_the_shutdown_has_begun() {
    let (snapshot, mut key, _) = gated();
    let server = server_of(Config::default(), &[snapshot]);
    let (address, stop, serving) = start(Arc::clone(&server)).await;
    let post = json!({ "input": png64(7) }).to_string();
    let in_flight =
        tokio::spawn(async move { curl(address, "/v1/embeddings", &["--json", &post]).await });
    assert_eq!(key.entered.recv().await, Some(1));
    stop.send(()).unwrap();
    // The listener is closed some moment later; from then on nobody new is let in.
    let is_refused =
        async || spawn_blocking(move || TcpStream::connect(address)).await.unwrap().is_err();
    eventually("the listener is closed", is_refused).await;
    assert!(!serving.is_finished());
    drop(key.open);
    let answer = json_of(in_flight.await.unwrap());
    assert_made_by(&embeddings(&answer)[0], 0, 7);
    serving.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_in_time_whatever_is_in_flight() {
    let (snapshot, mut key, _) = gated();
    let config = Config { drain: Duration::from_millis(50), ..Config::default() };
    let (address, stop, serving) = start(server_of(config, &[snapshot])).await;
    let post = json!({ "input": png64(7) }).to_string();
    let in_flight =
        tokio::spawn(async move { curl(address, "/v1/embeddings", &["--json", &post]).await });
    assert_eq!(key.entered.recv().await, Some(1));
    stop.send(()).unwrap();
    // It would wait for ever: the gate is still closed.
    serving.await.unwrap().unwrap();
    drop(key.open);
    in_flight.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_balancers_get_notice_before_the_door_closes() {
    let config = Config { shutdown_notice: Duration::from_secs(600), ..Config::default() };
    let (address, stop, serving) = start(server_of(config, &[toy(1)])).await;
    assert_eq!(curl(address, "/readyz", &[]).await.0, 200);
    stop.send(()).unwrap();
    eventually("readiness ends", async || curl(address, "/readyz", &[]).await.0 == 503).await;
    let post = json!({ "input": png64(7) }).to_string();
    json_of(curl(address, "/v1/embeddings", &["--json", &post]).await);
    serving.abort();
}
