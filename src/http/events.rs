//! WatchJob and WatchQueue as server-sent events, for browsers and anything that reads lines.
//!
//! | event | data | then |
//! |---|---|---|
//! | `job` | the job, as `GET /jobs/{id}` has it; `id` is its revision | |
//! | `log` | with `?log=true`: `{"log": [...]}`, new lines of its log. Then each `id` is revision and line, as `4-17` | |
//! | `queue` | the queue, as `GET /queues/{queue}` has it; without an `id`: whoever comes back is told how it is then | |
//! | `end` | `{}`: the job is final, and that was told | the stream ends; 204 if it is asked for again |
//! | `problem` | why nothing more can be told here, as an error's body has it | the stream ends; to be asked for again |
//!
//! A comment every 20 s says that nothing has changed. A client that comes back sends `Last-Event-ID`.

use std::convert::Infallible;
use std::fmt::Write;
use std::future::Future;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;

use super::job::{JobJson, LinesJson};
use super::jobs::{Answer, Shared, job_id};
use super::problem::Problem;
use super::query;
use super::queues::{QueueJson, queue_name};
use crate::engine::{Engine, JobNews, QueueWatch, Told, Watch};
use crate::error::{Error, Result};

const LAST_EVENT: &str = "Last-Event-ID";
/// How long a client waits before it comes back, if it was not told that this is the end.
const BEGIN: &str = "retry: 1000\n\n";
const QUIET: &str = ": nothing has changed\n\n";

/// `GET /jobs/{id}/events`
pub async fn watch(
    State(engine): Shared,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
    headers: HeaderMap,
) -> Answer {
    let (view, mut lines) = query::watch(&asked.unwrap_or_default())?;
    let last = last_event(&headers)?;
    let seen = last.unwrap_or_default();
    if let (Some(after), Some(line)) = (&mut lines, seen.line) {
        *after = line;
    }
    let watch = engine
        .watch(job_id(&id)?, seen.revision, view, lines)
        .await?;
    // Whatever else it is answered, a browser would ask again.
    if last.is_some() && watch.has_ended() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let seen = EventId {
        line: lines,
        ..seen
    };
    Ok(answer(engine, JobEvents { watch, seen }))
}

/// `GET /queues/{queue}/events`
pub async fn watch_queue(
    State(engine): Shared,
    Path(name): Path<String>,
    RawQuery(asked): RawQuery,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let watch = engine.watch_queue(queue_name(&name)?).await?;
    Ok(answer(engine, watch))
}

/// Something that is told event by event.
trait Source: Send + 'static {
    /// The text of the next event; `None`: that was the last one.
    fn next_event(&mut self) -> impl Future<Output = Option<Result<String>>> + Send;
}

/// The events of a job, and what was told of it.
struct JobEvents {
    watch: Watch,
    seen: EventId,
}

impl Source for JobEvents {
    async fn next_event(&mut self) -> Option<Result<String>> {
        let news = match self.watch.next().await? {
            Ok(Told::News(news)) => *news,
            Ok(Told::Quiet) => return Some(Ok(QUIET.into())),
            Err(error) => return Some(Err(error)),
        };
        Some(match news {
            JobNews::Job(job) => {
                self.seen.revision = job.revision;
                written("job", Some(self.seen), &JobJson::of(&job))
            }
            JobNews::Lines(lines) => {
                self.seen.line = lines.last().map(|line| line.number).or(self.seen.line);
                written("log", Some(self.seen), &LinesJson::of(&lines))
            }
        })
    }
}

impl Source for QueueWatch {
    async fn next_event(&mut self) -> Option<Result<String>> {
        Some(match self.next().await? {
            Ok(Told::News(queue)) => written("queue", None, &QueueJson::of(&queue)),
            Ok(Told::Quiet) => Ok(QUIET.into()),
            Err(error) => Err(error),
        })
    }
}

fn answer(engine: Arc<Engine>, source: impl Source) -> Response {
    let begun = Some(Events {
        engine,
        source,
        has_begun: false,
        is_over: false,
    });
    let events = stream::unfold(begun, |events| async move {
        let mut events = events?;
        let text = events.next().await;
        let goes_on = !events.is_over;
        Some((Ok::<_, Infallible>(text), goes_on.then_some(events)))
    });
    let mut answer = Response::new(Body::from_stream(events));
    let head = answer.headers_mut();
    head.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    head.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Some proxies keep an answer to themselves until there is a lot of it.
    head.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    answer
}

struct Events<S> {
    engine: Arc<Engine>,
    source: S,
    has_begun: bool,
    is_over: bool,
}

/// How far a client knows a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct EventId {
    revision: u64,
    /// Of its log, if that is told.
    line: Option<u64>,
}

impl EventId {
    fn parse(text: &str) -> Option<Self> {
        let (revision, line) = match text.split_once('-') {
            Some((revision, line)) => (revision, Some(line.parse().ok()?)),
            None => (text, None),
        };
        Some(Self {
            revision: revision.parse().ok()?,
            line,
        })
    }
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.revision)?;
        self.line.map_or(Ok(()), |line| write!(f, "-{line}"))
    }
}

impl<S: Source> Events<S> {
    /// The next event. After the last one, `is_over`.
    async fn next(&mut self) -> String {
        if !self.has_begun {
            self.has_begun = true;
            return BEGIN.into();
        }
        let told = self.source.next_event().await.unwrap_or_else(|| {
            self.is_over = true;
            Ok(event("end", None, "{}"))
        });
        told.unwrap_or_else(|error| {
            self.is_over = true;
            let reason = error.code().reason;
            self.engine.metrics().failed_request("http", reason);
            event("problem", None, &Problem::from(error).written().text)
        })
    }
}

fn written(name: &str, id: Option<EventId>, data: &impl Serialize) -> Result<String> {
    let data = serde_json::to_string(data).map_err(Error::internal)?;
    Ok(event(name, id, &data))
}

fn event(name: &str, id: Option<EventId>, data: &str) -> String {
    let mut text = format!("event: {name}\n");
    // Writing to a string cannot fail.
    if let Some(id) = id {
        let _ = writeln!(text, "id: {id}");
    }
    // JSON has line ends between its parts only, where they mean nothing.
    for line in data.split(['\n', '\r']) {
        let _ = writeln!(text, "data: {line}");
    }
    text.push('\n');
    text
}

fn last_event(headers: &HeaderMap) -> Result<Option<EventId>> {
    let Some(value) = headers.get(LAST_EVENT) else {
        return Ok(None);
    };
    let seen = value.to_str().ok().and_then(EventId::parse);
    let why =
        "must be the id of an event: a revision of the job, and a line of its log if that is told";
    seen.map(Some).ok_or_else(|| Error::field(LAST_EVENT, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_no_line_of_its_data_s_own() {
        let id = EventId::parse("3");
        let text = event("job", id, "{\"a\":\n1,\r\n\"id\": 7}");
        let expected = "event: job\nid: 3\ndata: {\"a\":\ndata: 1,\ndata: \ndata: \"id\": 7}\n\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_id_is_read_as_it_is_written() {
        for text in ["0", "7", "7-0", "18446744073709551615-12"] {
            let id = EventId::parse(text).expect("it is one");
            assert_eq!(id.to_string(), text);
        }
        for text in ["", "-", "7-", "-7", "7-8-9", "a"] {
            assert_eq!(EventId::parse(text), None, "{text}");
        }
    }
}
