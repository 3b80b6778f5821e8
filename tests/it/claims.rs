//! Claim checks among the records: what they name is fetched and learned once, and those that give no
//! image are in the dead-letter topic with their reason and the claim check itself.

use crate::delivery::surviving;
use crate::harness::{
    Message, Program, brokers, create_topic, png, produce, small_config, unique, wait_for,
};
use crate::refusals::check_letters;
use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;

const RECORDS: u64 = 100;
/// `claims.max_bytes` of this test.
const MAX_BYTES: usize = 50_000;

/// How often each path was asked for.
type Visits = Arc<Mutex<BTreeMap<String, usize>>>;

/// What the server answers: the first word of an object's name says how it does.
async fn answer(path: &str) -> Response {
    let Some(name) = path.strip_prefix("/cam/") else { return "not for us".into_response() };
    let (word, index) = name.split_once('-').unwrap();
    match word {
        "good" => png(index.parse().unwrap(), 10).into_response(),
        "nothing" => StatusCode::NOT_FOUND.into_response(),
        "down" => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        "away" => Redirect::temporary("/secret").into_response(),
        "large" => vec![0u8; MAX_BYTES + 1].into_response(),
        "text" => "no image".into_response(),
        "slow" => std::future::pending().await,
        other => panic!("nobody asks for {other}"),
    }
}

/// A server of images at a port of this machine, as long as the runtime lives.
fn serve(visits: &Visits) -> (Runtime, String) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let visits = Arc::clone(visits);
    let app = Router::new().fallback(move |uri: Uri| {
        *visits.lock().unwrap().entry(uri.path().to_owned()).or_default() += 1;
        async move { answer(uri.path()).await }
    });
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}/cam/", listener.local_addr().unwrap());
    runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
    (runtime, url)
}

/// The claim check `index` that gives no image, and the reason that it must be refused for.
fn broken(index: u64, files: &str, server: &str) -> (String, &'static str) {
    match index % 12 {
        0 => (format!("{files}good-0\r\n{files}good-1\r\n"), "claim_malformed"),
        1 => (format!("# {index}: nothing but this\r\n"), "claim_malformed"),
        2 => (format!("{files}../secret"), "claim_not_allowed"),
        3 => (format!("{files}link"), "claim_not_allowed"),
        4 => (format!("http://127.0.0.1:9/cam/good-{index}"), "claim_not_allowed"),
        5 => (format!("{server}away-{index}"), "claim_not_allowed"),
        6 => (format!("{files}nothing-{index}"), "claim_not_found"),
        7 => (format!("{server}nothing-{index}"), "claim_not_found"),
        8 => (format!("{server}large-{index}"), "claim_too_large"),
        9 => (format!("{server}slow-{index}"), "claim_timed_out"),
        10 => (format!("{server}down-{index}"), "claim_unreachable"),
        _ => (format!("{server}text-{index}"), "unknown_format"),
    }
}

/// A folder of images with a way out, and the prefix of it.
fn folder(dir: &Path) -> String {
    let images = dir.join("images");
    std::fs::create_dir(&images).unwrap();
    for index in 0..RECORDS {
        std::fs::write(images.join(format!("good-{index}")), png(index, 10)).unwrap();
    }
    std::fs::write(dir.join("secret"), png(RECORDS, 10)).unwrap();
    symlink("../secret", images.join("link")).unwrap();
    format!("file://{}/", images.display())
}

#[test]
fn a_hundred_claim_checks_of_which_some_give_no_image() {
    let Some(brokers) = brokers() else { return };
    let (topic, letters) = (unique("claims"), unique("claims-refused"));
    create_topic(&brokers, &topic, 1);
    create_topic(&brokers, &letters, 1);
    let dir = tempfile::tempdir().unwrap();
    let visits = Visits::default();
    let (_runtime, server) = serve(&visits);
    let files = folder(dir.path());

    let mut expected: HashMap<(i32, i64), (Vec<u8>, &str)> = HashMap::new();
    let mut asked_once = vec![];
    let mut messages = vec![];
    for index in 0..RECORDS {
        let value = match index % 5 {
            0 => format!("{files}good-{index}"),
            1 | 2 => {
                asked_once.push(format!("/cam/good-{index}"));
                format!("# camera 3\r\n{server}good-{index}\r\n")
            }
            _ => {
                let (value, reason) = broken(expected.len() as u64, &files, &server);
                expected.insert((0, index as i64), (value.clone().into_bytes(), reason));
                value
            }
        };
        let content_type = Some("text/uri-list; charset=utf-8");
        messages.push(Message { partition: 0, value: value.into_bytes(), content_type });
    }
    produce(&brokers, &topic, messages);

    let config = dir.path().join("config.toml");
    let text = small_config(&brokers, &topic, dir.path());
    let claims = format!(
        "dead_letter_topic = \"{letters}\"\n[claims]\nprefixes = [\"{files}\", \"{server}\"]\n\
         max_bytes = {MAX_BYTES}\ntimeout = \"10s\"\nretries = 1\n"
    );
    std::fs::write(&config, format!("{text}\n{claims}")).unwrap();
    let args = ["run", "--config", config.to_str().unwrap()];
    let mut program = Program::start(&args, &dir.path().join("log"));
    let journal = dir.path().join("journal.jsonl");
    wait_for("every record to be done", || {
        program.assert_alive();
        (surviving(&journal).len() as u64 == RECORDS).then_some(())
    });
    assert!(program.terminate().success(), "{}", program.log());
    assert!(surviving(&journal).values().all(|times| *times == 1), "a record was done twice");

    // Exactly those that give none are refused, so all others were learned.
    assert_eq!(expected.len(), 40);
    check_letters(&brokers, &letters, &topic, expected);
    let visits = visits.lock().unwrap();
    for path in asked_once {
        assert_eq!(visits.get(&path), Some(&1), "{path}");
    }
    assert_eq!(visits.get("/secret"), None, "a redirect was followed");
}
