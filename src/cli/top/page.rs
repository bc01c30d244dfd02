//! A look as lines: all of it, or as much as a terminal has room for.

use worker_sdk::Queue;

use super::super::queues::{self, per_second};
use super::super::sessions;
use super::super::terminal::{lined, plain};
use super::look::Look;

/// Everything.
pub(super) fn whole(look: &Look) -> Vec<String> {
    let mut lines = head(look);
    for mut table in [queues_of(look), sessions_of(look)] {
        lines.push(String::new());
        lines.append(&mut table);
    }
    lines
}

/// What fits into so many columns and lines. `trouble`: why the look is not of now.
pub(super) fn fitted(
    look: Option<&Look>,
    trouble: Option<&str>,
    (columns, lines): (usize, usize),
) -> Vec<String> {
    let mut shown = Vec::new();
    shown.extend(trouble.map(|why| format!("away: {}", plain(why))));
    if let Some(look) = look {
        shown.extend(head(look));
        let room = lines.saturating_sub(shown.len() + 2);
        let (queues, sessions) = (queues_of(look), sessions_of(look));
        // Each has half, and what the other leaves.
        let of_queues = queues
            .len()
            .min((room / 2).max(room.saturating_sub(sessions.len())));
        shown.push(String::new());
        shown.extend(cut(queues, of_queues));
        shown.push(String::new());
        let room = lines.saturating_sub(shown.len());
        shown.extend(cut(sessions, room));
    }
    shown.truncate(lines);
    let narrow = |line: String| line.chars().take(columns).collect();
    shown.into_iter().map(narrow).collect()
}

/// The first of these lines, and how many more there are.
fn cut(mut lines: Vec<String>, room: usize) -> Vec<String> {
    let hidden = lines.len().saturating_sub(room);
    if hidden > 0 && room > 0 {
        lines.truncate(room - 1);
        lines.push(format!("... {} more", hidden + 1));
    }
    lines.truncate(room);
    lines
}

fn head(look: &Look) -> Vec<String> {
    let nodes = look
        .nodes()
        .into_iter()
        .map(|(node, (sessions, in_flight))| {
            let node = if node.is_empty() { "(new)" } else { node };
            format!(
                "{} (sessions {sessions}, in flight {in_flight})",
                plain(node)
            )
        });
    let nodes: Vec<String> = nodes.collect();
    let paused = look.queues.iter().filter(|queue| queue.paused).count();
    let all = |of: fn(&Queue) -> u64| look.queues.iter().map(of).sum::<u64>();
    let rate = |of: fn(&worker_sdk::QueueRates) -> f64| {
        let rates = look.queues.iter().filter_map(|queue| queue.stats?.rates);
        per_second(rates.map(|rates| of(&rates)).sum())
    };
    vec![
        format!("{}  {}", plain(&look.server), plain(&look.health)),
        match nodes.is_empty() {
            true => "no workers".into(),
            false => format!("nodes with workers: {}", nodes.join(", ")),
        },
        format!(
            "{} queues ({paused} paused): {} scheduled, {} queued, {} running, {} failed",
            look.queues.len(),
            all(|queue| queue.stats.unwrap_or_default().scheduled),
            all(|queue| queue.stats.unwrap_or_default().queued),
            all(|queue| queue.stats.unwrap_or_default().running),
            all(|queue| queue.stats.unwrap_or_default().failed),
        ),
        format!(
            "a second: {} enqueued, {} started, {} succeeded, {} failed",
            rate(|rates| rates.enqueued_per_second),
            rate(|rates| rates.started_per_second),
            rate(|rates| rates.succeeded_per_second),
            rate(|rates| rates.failed_per_second),
        ),
    ]
}

fn queues_of(look: &Look) -> Vec<String> {
    let rows = look.queues.iter().map(queues::columns).collect();
    let mut lines = lined(queues::COLUMNS, rows);
    if look.more_queues {
        lines.push(format!(
            "... there are more than these {}",
            look.queues.len()
        ));
    }
    lines
}

/// Names in front, ids last: they are long.
fn sessions_of(look: &Look) -> Vec<String> {
    let rotated = |session| {
        let mut cells = sessions::columns(session);
        cells.rotate_left(1);
        cells
    };
    let rows = look.sessions.iter().map(rotated).collect();
    let mut names = sessions::COLUMNS;
    names.rotate_left(1);
    let mut lines = lined(names, rows);
    if look.more_sessions {
        lines.push(format!(
            "... there are more than these {}",
            look.sessions.len()
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use worker_sdk::proto::Session;

    use super::*;

    fn look(queues: usize, sessions: usize) -> Look {
        let queue = |n| Queue {
            name: format!("queue-{n}"),
            ..Queue::default()
        };
        let session = |n| Session {
            worker: format!("worker-{n}"),
            node: "node".into(),
            ..Session::default()
        };
        Look {
            server: "http://127.0.0.1:7070".into(),
            health: "ready".into(),
            queues: (0..queues).map(queue).collect(),
            more_queues: false,
            sessions: (0..sessions).map(session).collect(),
            more_sessions: false,
        }
    }

    #[test]
    fn a_page_is_never_larger_than_the_terminal() {
        for (queues, sessions) in [(0, 0), (1, 50), (50, 1), (50, 50)] {
            let look = look(queues, sessions);
            for columns in [0, 1, 20, 80, 300] {
                for lines in 0..60 {
                    let page = fitted(Some(&look), Some("no answer"), (columns, lines));
                    assert!(page.len() <= lines, "{page:#?}");
                    assert!(page.iter().all(|line| line.chars().count() <= columns));
                }
            }
        }
        assert_eq!(
            fitted(None, Some("no answer"), (80, 24)),
            ["away: no answer"]
        );
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let page = fitted(Some(&look(50, 3)), None, (120, 30));
        assert_eq!(page.len(), 30);
        assert!(
            page.iter().any(|line| line.starts_with("worker-2")),
            "{page:#?}"
        );
        // Four lines of head, two gaps, the sessions with their names, the queues' names: 18 have room.
        assert!(page.iter().any(|line| line == "... 32 more"), "{page:#?}");
        let page = fitted(Some(&look(50, 50)), None, (120, 30));
        assert_eq!(
            page.iter().filter(|line| line.starts_with("...")).count(),
            2
        );
        let all = whole(&look(50, 50));
        assert!(all.iter().any(|line| line.starts_with("worker-49")));
    }
}
