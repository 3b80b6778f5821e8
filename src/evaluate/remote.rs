//! A running server as an embedder, by its HTTP interface.

use super::{Embedder, Embeddings, EvaluateError, Example};
use serde::Deserialize;
use std::time::Duration;
use tracing::warn;
use ureq::Body;
use ureq::http::{Response, StatusCode, header::RETRY_AFTER};

/// Images asked for at the same time, so that the server can batch them. A guess.
const CONNECTIONS: usize = 8;
/// How long one answer may take. A guess: the first query of a large encoder on a busy machine
/// took seconds.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often an image is sent again that the server had no room for, or no encoder yet. A guess: a full queue
/// empties within seconds.
const RETRIES: usize = 10;
/// How long to wait before that where the server does not say, and at most: a server that says more is not about
/// to answer. Guesses.
const USUAL_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The server's word for a version that it does not have.
const NO_VERSION: &str = "model_not_found";
/// How much of an error's body is shown.
const MESSAGE_CHARS: usize = 300;

/// Embeds by the server at a URL, one request an image.
///
/// All images are embedded by one version: the one that answers the first request, which every
/// later request asks for by name. An answer by another version is an error, for embeddings of two
/// encoders cannot be compared; so is a version that the server has let go meanwhile. Where the server
/// is busy or not ready it is asked again, when it says and a few times at most.
pub struct Remote {
    /// Where to post, `http://host:port/v1/embeddings`.
    endpoint: String,
    agent: ureq::Agent,
    /// Empty until the first answer.
    version: String,
}

/// OpenAI's form of an answer; fields that are not needed are passed over.
#[derive(Deserialize)]
struct Answer {
    data: Vec<Item>,
    model: String,
}

#[derive(Deserialize)]
struct Item {
    embedding: Vec<f32>,
}

impl Remote {
    /// Embeds by the server at `url`, such as `http://localhost:8080`. Nothing is sent yet.
    pub fn new(url: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            .max_idle_connections_per_host(CONNECTIONS)
            .build();
        Self {
            endpoint: format!("{}/v1/embeddings", url.trim_end_matches('/')),
            agent: config.into(),
            version: String::new(),
        }
    }

    /// Asks for one embedding, by the version already settled on if there is one.
    fn request(&self, image: &Example) -> Result<Answer, EvaluateError> {
        let failed = |source| self.no_answer(image, source);
        let mut response = self.post(image)?;
        if !response.status().is_success() {
            let body = response.body_mut().read_to_string().map_err(failed)?;
            return Err(self.refusal(image, response.status(), &body));
        }
        let answer: Answer = response.body_mut().read_json().map_err(failed)?;
        if !self.version.is_empty() && answer.model != self.version {
            return Err(EvaluateError::VersionChanged {
                before: self.version.clone(),
                after: answer.model,
            });
        }
        Ok(answer)
    }

    /// The answer to one image, whatever it says, once the server has time for it.
    fn post(&self, image: &Example) -> Result<Response<Body>, EvaluateError> {
        let mut retries = 0;
        loop {
            let request = self.agent.post(&self.endpoint).content_type("application/octet-stream");
            let request = match &*self.version {
                "" => request,
                version => request.query("model", version),
            };
            let response = request.send(&image.bytes[..]);
            let response = response.map_err(|source| self.no_answer(image, source))?;
            let is_for_now = matches!(
                response.status(),
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
            );
            if !is_for_now || retries == RETRIES {
                return Ok(response);
            }
            let said = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let wait = wait(said);
            if retries == 0 {
                warn!(endpoint = self.endpoint, status = %response.status(), ?wait, "asked again");
            }
            retries += 1;
            std::thread::sleep(wait);
        }
    }

    fn no_answer(&self, image: &Example, source: ureq::Error) -> EvaluateError {
        let (endpoint, name) = (self.endpoint.clone(), image.name.clone());
        EvaluateError::Request { endpoint, name, source: Box::new(source) }
    }

    /// What the server refused `image` with.
    fn refusal(&self, image: &Example, status: StatusCode, body: &str) -> EvaluateError {
        let (endpoint, name) = (self.endpoint.clone(), image.name.clone());
        let is_named = !self.version.is_empty();
        if is_named && status == StatusCode::NOT_FOUND && body.contains(NO_VERSION) {
            return EvaluateError::Gone { endpoint, version: self.version.clone(), name };
        }
        let message = body.chars().take(MESSAGE_CHARS).collect();
        EvaluateError::Status { endpoint, name, status: status.as_u16(), message }
    }

    /// Asks for one embedding by the version settled on.
    fn embedding(&self, image: &Example) -> Result<Vec<f32>, EvaluateError> {
        self.request(image)?.single(image)
    }

    /// Asks for many, [`CONNECTIONS`] at a time, and keeps their order.
    fn embeddings(&self, images: &[Example]) -> Result<Vec<Vec<f32>>, EvaluateError> {
        let share = images.len().div_ceil(CONNECTIONS).max(1);
        std::thread::scope(|scope| {
            let shares = images.chunks(share).map(|images| {
                scope.spawn(|| images.iter().map(|image| self.embedding(image)).collect())
            });
            let threads: Vec<std::thread::ScopedJoinHandle<'_, Result<Vec<_>, _>>> =
                shares.collect();
            let mut rows = Vec::with_capacity(images.len());
            for thread in threads {
                rows.extend(
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                );
            }
            Ok(rows)
        })
    }
}

/// How long to wait before a server is asked again that said `retry_after`, in seconds; a date counts as nothing said.
fn wait(retry_after: Option<&str>) -> Duration {
    let seconds = retry_after.and_then(|said| said.trim().parse().ok());
    seconds.map_or(USUAL_WAIT, Duration::from_secs).min(LONGEST_WAIT)
}

impl Answer {
    fn single(self, image: &Example) -> Result<Vec<f32>, EvaluateError> {
        let n_embeddings = self.data.len();
        match <[Item; 1]>::try_from(self.data) {
            Ok([item]) => Ok(item.embedding),
            Err(_) => Err(EvaluateError::NotOne { name: image.name.clone(), n_embeddings }),
        }
    }
}

impl Embedder for Remote {
    fn version(&self) -> &str {
        &self.version
    }

    fn embed(&mut self, images: &[Example]) -> Result<Embeddings, EvaluateError> {
        let Some((first, mut rest)) = images.split_first() else {
            return Err(EvaluateError::NoReference);
        };
        let mut rows = Vec::with_capacity(images.len());
        if self.version.is_empty() {
            let answer = self.request(first)?;
            self.version.clone_from(&answer.model);
            rows.push(answer.single(first)?);
        } else {
            rest = images;
        }
        rows.extend(self.embeddings(rest)?);
        let dim = rows[0].len();
        if let Some(other) = rows.iter().find(|row| row.len() != dim) {
            return Err(EvaluateError::Dimension { expected: dim, found: other.len() });
        }
        Embeddings::new(rows.concat(), dim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Serves on a free port; `answer` makes status and body of the request line and the body.
    fn serve(answer: impl Fn(&str, &[u8]) -> (u16, String) + Send + Sync + 'static) -> Remote {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || respond(stream.unwrap(), &*answer));
            }
        });
        Remote::new(&url)
    }

    fn respond(mut stream: TcpStream, answer: impl Fn(&str, &[u8]) -> (u16, String)) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            head.push(line.to_lowercase());
        }
        let length = head.iter().find_map(|line| line.strip_prefix("content-length:")).unwrap();
        let mut body = vec![0; length.trim().parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        assert!(head.iter().any(|line| line.trim() == "content-type: application/octet-stream"));
        let (status, text) = answer(&head[0], &body);
        let length = text.len();
        write!(
            stream,
            "HTTP/1.1 {status} Any\r\nconnection: close\r\nretry-after: 0\r\n\
             content-length: {length}\r\n\r\n{text}"
        )
        .unwrap();
    }

    fn examples(n: u8) -> Vec<Example> {
        let example =
            |index| Example { name: format!("image {index}"), bytes: vec![index].into(), label: 0 };
        (0..n).map(example).collect()
    }

    fn answer_of(version: &str, embedding: &[u8]) -> (u16, String) {
        let embedding = serde_json::json!({"index": 0, "embedding": embedding});
        (
            200,
            serde_json::json!({"object": "list", "model": version, "data": [embedding]})
                .to_string(),
        )
    }

    #[test]
    fn the_first_version_is_asked_for_by_name_from_then_on() {
        let mut remote = serve(|request, body| match request.split_whitespace().nth(1) {
            // Whoever does not pin gets the newest, which is another each time an image is sent.
            Some("/v1/embeddings") => answer_of(&format!("v{}", body[0]), &[body[0], 1]),
            Some("/v1/embeddings?model=v0") => answer_of("v0", &[body[0], 1]),
            other => (404, format!("{other:?}")),
        });
        for _ in 0..2 {
            let embeddings = remote.embed(&examples(30)).unwrap();
            assert_eq!(remote.version(), "v0");
            for (index, row) in (0..30_u8).zip(embeddings.rows()) {
                assert_eq!(row, [f32::from(index), 1.0]);
            }
        }
    }

    #[test]
    fn a_version_that_changes_in_spite_of_its_name_is_an_error() {
        let mut remote = serve(|_, body| answer_of(&format!("v{}", body[0] / 5), &[1]));
        let error = remote.embed(&examples(6)).unwrap_err().to_string();
        assert!(error.contains("v0") && error.contains("v1"), "{error}");
    }

    #[test]
    fn a_refusal_names_the_image_and_what_the_server_said() {
        let mut remote = serve(|_, body| match body[0] {
            2 => (422, r#"{"error": {"code": "undecodable"}}"#.to_owned()),
            _ => answer_of("v", &[1]),
        });
        let error = remote.embed(&examples(3)).unwrap_err().to_string();
        for part in ["image 2", "422", "undecodable"] {
            assert!(error.contains(part), "{error} lacks {part}");
        }
    }

    #[test]
    fn a_server_that_is_busy_or_not_ready_is_asked_again() {
        let requests = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&requests);
        let mut remote = serve(move |_, body| match count.fetch_add(1, Ordering::SeqCst) {
            0 => (503, "not ready".to_owned()),
            1..=3 => (429, "busy".to_owned()),
            _ => answer_of("v", &[body[0]]),
        });
        let embeddings = remote.embed(&examples(5)).unwrap();
        assert!(embeddings.rows().zip(0_u8..).all(|(row, index)| row == [f32::from(index)]));
        assert_eq!(requests.load(Ordering::SeqCst), 5 + 4);
    }

    #[test]
    fn a_server_that_stays_busy_is_given_up() {
        let requests = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&requests);
        let mut remote = serve(move |_, _| {
            count.fetch_add(1, Ordering::SeqCst);
            (429, "busy".to_owned())
        });
        let error = remote.embed(&examples(1)).unwrap_err();
        assert!(matches!(error, EvaluateError::Status { status: 429, .. }), "{error}");
        assert_eq!(requests.load(Ordering::SeqCst), 1 + RETRIES);
    }

    #[test]
    fn a_server_is_given_the_time_that_it_asks_for_and_no_more_than_a_minute() {
        assert_eq!(wait(Some("5")), Duration::from_secs(5));
        assert_eq!(wait(Some("86400")), LONGEST_WAIT);
        for said in [None, Some("Wed, 21 Oct 2026 07:28:00 GMT"), Some("-1")] {
            assert_eq!(wait(said), USUAL_WAIT);
        }
    }

    #[test]
    fn a_version_that_is_gone_is_named_with_what_to_do() {
        let mut remote = serve(|request, body| match request.split_whitespace().nth(1) {
            Some("/v1/embeddings") => answer_of("v0", &[1]),
            _ if body[0] < 2 => answer_of("v0", &[1]),
            _ => (404, r#"{"error": {"code": "model_not_found"}}"#.to_owned()),
        });
        let error = remote.embed(&examples(3)).unwrap_err().to_string();
        for part in ["v0", "image 2", "snapshot.resident", "--snapshot"] {
            assert!(error.contains(part), "{error} lacks {part}");
        }
    }

    #[test]
    fn answers_that_do_not_fit_are_errors() {
        let mut remote = serve(|_, body| answer_of("v", &vec![1; usize::from(body[0]) + 1]));
        assert!(matches!(
            remote.embed(&examples(2)),
            Err(EvaluateError::Dimension { expected: 1, found: 2 })
        ));
        let mut remote = serve(|_, _| (200, r#"{"model": "v", "data": []}"#.to_owned()));
        assert!(matches!(
            remote.embed(&examples(1)),
            Err(EvaluateError::NotOne { n_embeddings: 0, .. })
        ));
        let mut remote = serve(|_, _| (200, "hello".to_owned()));
        assert!(matches!(remote.embed(&examples(1)), Err(EvaluateError::Request { .. })));
    }
}
