//! What is said while a task runs, as lines of JSON: the log that is kept with its result.
//!
//! A task runs on one thread. While that thread has [`TaskLog::enter`]ed a log, every event of ours
//! from `debug` on goes into it, whatever the process itself prints. A log only grows, up to a
//! bound, so that whoever has seen the first lines can go on with the next.

use serde_json::{Map, Value};
use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer};

/// Most bytes of a log; what comes after is counted and left out.
pub const BYTES_MAX: usize = 256 << 10;
/// Most bytes of one field's value.
const VALUE_BYTES_MAX: usize = 4 << 10;
/// Room for the last line, which says how the task ended.
const LAST_BYTES: usize = 16 << 10;

thread_local! {
    static CURRENT: RefCell<Option<TaskLog>> = const { RefCell::new(None) };
}

/// The log of one attempt at a task. Clones are the same log.
#[derive(Clone, Debug, Default)]
pub struct TaskLog(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    /// In every line: job, task, worker, attempt.
    context: Map<String, Value>,
    lines: Vec<String>,
    bytes: usize,
    left_out: usize,
}

impl TaskLog {
    /// Puts these fields into every line from now on.
    pub fn set_context(&self, context: impl IntoIterator<Item = (&'static str, Value)>) {
        let fields = context.into_iter();
        self.get().context = fields
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
    }

    /// Adds a line, if there is room.
    pub fn say(&self, level: Level, message: &str, fields: Map<String, Value>) {
        self.get()
            .push(level, message, fields, BYTES_MAX - LAST_BYTES);
    }

    /// Adds the line that says how the task ended. There is room for it.
    pub fn end(&self, level: Level, message: &str, mut fields: Map<String, Value>) {
        let mut lines = self.get();
        if lines.left_out > 0 {
            fields.insert("lines_left_out".to_owned(), lines.left_out.into());
        }
        lines.push(level, message, fields, BYTES_MAX);
    }

    /// The lines from number `first` on.
    pub fn since(&self, first: usize) -> Vec<String> {
        let lines = self.get();
        lines.lines.get(first..).unwrap_or_default().to_vec()
    }

    /// All of it, a line each.
    pub fn text(&self) -> String {
        let mut text = self.since(0).join("\n");
        text.push('\n');
        text
    }

    /// Has the events of this thread go into the log until what is returned is dropped.
    pub fn enter(&self) -> Entered {
        Entered(CURRENT.replace(Some(self.clone())))
    }

    fn get(&self) -> MutexGuard<'_, Lines> {
        // A line is added in one piece, so a panic elsewhere leaves whole ones.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's events go into a log.
pub struct Entered(Option<TaskLog>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

impl Lines {
    fn push(&mut self, level: Level, message: &str, fields: Map<String, Value>, room: usize) {
        let mut line = Map::new();
        line.insert("time".to_owned(), now().into());
        line.insert("level".to_owned(), level.as_str().into());
        line.extend(self.context.clone());
        line.insert("message".to_owned(), cut(message).into());
        line.extend(fields);
        let line = Value::Object(line).to_string();
        if self.bytes + line.len() + 1 > room {
            self.left_out += 1;
            return;
        }
        self.bytes += line.len() + 1;
        self.lines.push(line);
    }
}

/// The time as RFC 3339 has it, in UTC.
fn now() -> String {
    let mut text = String::new();
    // Fails only when the string does.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(VALUE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Brings events to the log of the task that their thread is at.
#[derive(Debug, Default)]
pub struct TaskLogLayer;

impl<S: Subscriber> Layer<S> for TaskLogLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let Some(log) = CURRENT.with_borrow(Clone::clone) else {
            return;
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        log.say(*metadata.level(), &fields.message, fields.others);
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        self.others.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.insert(field, cut(&text));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, cut(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    fn parsed(log: &TaskLog) -> Vec<Value> {
        let lines = log.since(0);
        let parse = |line: &String| serde_json::from_str(line).expect("JSON");
        lines.iter().map(parse).collect()
    }

    #[test]
    fn a_task_has_its_own_lines_and_no_others() {
        let subscriber = tracing_subscriber::registry().with(TaskLogLayer);
        let log = TaskLog::default();
        log.set_context([("task", "denoise/3".into()), ("attempt", 2.into())]);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("before");
            {
                let _entered = log.enter();
                tracing::info!(bytes = 7, name = "a\"b", "stored {}", 1);
                std::thread::spawn(|| tracing::info!("elsewhere"))
                    .join()
                    .expect("no panic");
            }
            tracing::info!("after");
        });
        let lines = parsed(&log);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0]["message"], "stored 1");
        assert_eq!(
            (&lines[0]["bytes"], &lines[0]["name"]),
            (&7.into(), &"a\"b".into())
        );
        assert_eq!(
            (&lines[0]["task"], &lines[0]["attempt"]),
            (&"denoise/3".into(), &2.into())
        );
        let time = lines[0]["time"].as_str().expect("a time");
        assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    }

    #[test]
    fn a_log_is_bounded_and_its_end_is_kept() {
        let log = TaskLog::default();
        for n in 0..10_000 {
            log.say(
                Level::DEBUG,
                &format!("line {n} {}", "x".repeat(100)),
                Map::new(),
            );
        }
        log.say(Level::INFO, &"ä".repeat(10_000), Map::new());
        log.end(Level::ERROR, "failed", Map::new());
        assert!(log.text().len() <= BYTES_MAX);
        let lines = parsed(&log);
        let last = lines.last().expect("lines");
        assert_eq!(last["message"], "failed");
        assert_eq!(
            last["lines_left_out"].as_u64(),
            Some(10_002 - lines.len() as u64)
        );
        assert_eq!(log.since(lines.len() - 1).len(), 1);
    }
}
