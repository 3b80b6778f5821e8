//! GET /v1/events: what happens to the run, as server-sent events.

use super::Server;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

/// Events that wait for a client to read them.
const QUEUE: usize = 16;

/// A stream that lasts until the client leaves or the server shuts down; each event's name is its type,
/// its data the event as JSON. A client that is too slow is told how many it `missed`.
pub(super) async fn stream(
    State(server): State<Arc<Server>>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let mut heard = server.events.listen();
    let (sender, receiver) = tokio::sync::mpsc::channel(QUEUE);
    let closing = server.closing.clone();
    tokio::spawn(async move {
        loop {
            let told = tokio::select! {
                // What has been told is passed on before the end.
                biased;
                told = heard.recv() => told,
                () = sender.closed() => return,
                () = closing.cancelled() => return,
            };
            let event = match told {
                Ok(told) => named(&told),
                Err(RecvError::Lagged(n)) => Event::default().event("missed").data(n.to_string()),
                Err(RecvError::Closed) => return,
            };
            if sender.send(Ok(event)).await.is_err() {
                return;
            }
        }
    });
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default())
}

fn named(told: &crate::events::Told) -> Event {
    let (name, json) = told.to_json();
    Event::default().event(name).data(json)
}
