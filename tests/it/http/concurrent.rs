//! Many callers at once: batches, versions that change under them, overload, and callers who leave.

use super::toy::{
    app_of, ask, assert_made_by, counted, eventually, gated, get, png, png64, post, post_json,
    server_of, server_over, version,
};
use axum::http::{StatusCode, header};
use selfstream::server::{Config, app};
use selfstream::snapshot::Registry;
use serde_json::json;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};

const CALLERS: usize = 64;
const PUBLICATIONS: usize = 20;
const REQUESTS_PER_CALLER: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_is_of_the_one_version_it_names() {
    let batches = Arc::new(Mutex::new(Vec::new()));
    let registry = Arc::new(Registry::new(4));
    registry.publish(counted(0, Arc::clone(&batches)));
    let app = app(server_over(Config::default(), Arc::clone(&registry)));
    let (answered, mut answers) = mpsc::unbounded_channel();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (app, answered) = (app.clone(), answered.clone());
        callers.spawn(async move {
            for request in 0..REQUESTS_PER_CALLER {
                let levels = [caller as u8, request as u8 + 100];
                let body = json!({ "input": levels.map(png64) });
                let answer = ask(&app, post_json(&body)).await;
                let named = answer.json()["model"].as_str().unwrap().to_owned();
                let number = (0..=PUBLICATIONS).find(|&number| version(number) == named).unwrap();
                assert_eq!(answer.headers["x-selfstream-version"], named.as_str());
                let embeddings = answer.embeddings();
                assert_eq!(embeddings.len(), 2);
                for (embedding, level) in embeddings.iter().zip(levels) {
                    assert_made_by(embedding, number, level);
                }
                answered.send(number).unwrap();
            }
        });
    }
    drop(answered);
    // A publication after every so many answers, so that all of them fall among the requests.
    let per_publication = CALLERS * REQUESTS_PER_CALLER / (PUBLICATIONS + 1);
    let (mut n_answers, mut n_published, mut versions) = (0, 0, Vec::new());
    while let Some(number) = answers.recv().await {
        n_answers += 1;
        versions.push(number);
        if n_answers % per_publication == 0 && n_published < PUBLICATIONS {
            n_published += 1;
            registry.publish(counted(n_published, Arc::clone(&batches)));
        }
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_eq!((n_answers, n_published), (CALLERS * REQUESTS_PER_CALLER, PUBLICATIONS));
    versions.sort_unstable();
    versions.dedup();
    assert!(versions.len() > PUBLICATIONS / 2, "only versions {versions:?} answered");
    let batches = batches.lock().unwrap();
    assert_eq!(batches.iter().sum::<usize>(), 2 * CALLERS * REQUESTS_PER_CALLER);
    assert!(batches.iter().any(|&n_images| n_images > 2), "no two requests shared a batch");
    assert!(batches.iter().all(|&n_images| n_images <= Config::default().max_batch_images));
}

#[tokio::test]
async fn concurrent_requests_fill_one_batch() {
    let batches = Arc::new(Mutex::new(Vec::new()));
    // Nothing but a full batch leaves before this test has failed.
    let max_batch_wait = Duration::from_secs(10);
    let config = Config { max_batch_images: 8, max_batch_wait, ..Config::default() };
    let app = app(server_of(config, &[counted(1, Arc::clone(&batches))]));
    let mut callers = JoinSet::new();
    for level in 0..8 {
        let app = app.clone();
        callers.spawn(async move {
            let answer = ask(&app, post("", "image/png", png(level))).await;
            assert_made_by(&answer.embeddings()[0], 1, level);
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_eq!(*batches.lock().unwrap(), [8]);
}

#[tokio::test]
async fn a_request_larger_than_a_batch_is_answered_in_order() {
    let batches = Arc::new(Mutex::new(Vec::new()));
    let config = Config { max_batch_images: 4, threads: 3, ..Config::default() };
    let app = app(server_of(config, &[counted(1, Arc::clone(&batches))]));
    let levels: Vec<u8> = (0..50).collect();
    let input: Vec<_> = levels.iter().map(|&level| png64(level)).collect();
    let answer = ask(&app, post_json(&json!({ "input": input }))).await;
    let embeddings = answer.embeddings();
    assert_eq!(embeddings.len(), levels.len());
    for (embedding, level) in embeddings.iter().zip(levels) {
        assert_made_by(embedding, 1, level);
    }
    assert!(batches.lock().unwrap().iter().all(|&n_images| n_images <= 4));
}

#[tokio::test]
async fn images_without_room_are_refused_at_once() {
    let (snapshot, mut key, _) = gated();
    let config = Config { max_pending_images: 2, max_images_per_request: 2, ..Config::default() };
    let app = app(server_of(config, &[snapshot]));
    let first = tokio::spawn({
        let app = app.clone();
        async move { ask(&app, post("", "image/png", png(1))).await }
    });
    assert_eq!(key.entered.recv().await, Some(1));
    let refused = ask(&app, post_json(&json!({ "input": [png64(1), png64(2)] }))).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.refusal().0, "overloaded");
    assert!(refused.headers.contains_key(header::RETRY_AFTER));
    let metrics = ask(&app, get("/metrics")).await.text;
    assert!(metrics.contains("selfstream_server_pending_images"), "{metrics}");
    drop(key.open);
    assert_made_by(&first.await.unwrap().embeddings()[0], 0, 1);
    // The room is free again.
    let answer = ask(&app, post_json(&json!({ "input": [png64(1), png64(2)] }))).await;
    assert_eq!(answer.embeddings().len(), 2);
}

#[tokio::test]
async fn work_of_callers_who_left_is_skipped() {
    let (snapshot, mut key, batches) = gated();
    let server = server_of(Config::default(), &[snapshot]);
    let app = app(Arc::clone(&server));
    let spawn = |images: Vec<String>| {
        let app = app.clone();
        tokio::spawn(async move { ask(&app, post_json(&json!({ "input": images }))).await })
    };
    let stays = spawn(vec![png64(1)]);
    assert_eq!(key.entered.recv().await, Some(1));
    let leaves = spawn(vec![png64(2); 3]);
    eventually("the images are queued", async || server.pending_images() >= 4).await;
    leaves.abort();
    assert!(leaves.await.unwrap_err().is_cancelled());
    let later = spawn(vec![png64(3); 2]);
    // Either two are queued behind the one at the gate, or those who left have been skipped.
    eventually("the later images are queued", async || server.pending_images() >= 3).await;
    drop(key.open);
    assert_made_by(&stays.await.unwrap().embeddings()[0], 0, 1);
    assert_eq!(later.await.unwrap().embeddings().len(), 2);
    assert_eq!(batches.lock().unwrap().iter().sum::<usize>(), 3, "an abandoned image was embedded");
    eventually("all images are done with", async || server.pending_images() == 0).await;
}

#[tokio::test]
async fn dropping_the_server_waits_for_the_batch_that_has_begun() {
    let (snapshot, mut key, batches) = gated();
    let app = app_of(&[snapshot]);
    let caller = tokio::spawn({
        let app = app.clone();
        async move { ask(&app, post("", "image/png", png(1))).await }
    });
    assert_eq!(key.entered.recv().await, Some(1));
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    let dropping = spawn_blocking(move || drop(app));
    drop(key.open);
    dropping.await.unwrap();
    // A thread that still ran would hold the snapshot, and through it this.
    assert_eq!(Arc::strong_count(&batches), 1);
}
