//! `logs`: what the tasks of a job have said.

use super::jobs::{JobRef, StatusJson};
use crate::terminal;
use anyhow::Result;
use longtake_proto::v1;
use serde_json::{Map, Value};

/// Flags of `logs`.
#[derive(clap::Args)]
pub struct LogsArgs {
    #[command(flatten)]
    of: JobRef,
    /// Go on with what is said until the job ends
    #[arg(short, long)]
    follow: bool,
    /// Only the tasks that this segment is made of, numbered from 0
    #[arg(long, value_name = "N")]
    segment: Option<u32>,
    /// Only this task, like denoise/3
    #[arg(long, value_name = "ID")]
    task: Option<String>,
}

/// Prints; with `--json` a JSON object for each line as it is stored, and the job's state last.
pub async fn run(args: LogsArgs) -> Result<()> {
    let mut client = args.of.farm.connect().await?;
    let request = v1::LogsRequest {
        job: args.of.job.clone(),
        segment: args.segment,
        task: args.task,
        follow: args.follow,
    };
    let json = args.of.json;
    client
        .logs(request, |line| {
            if json {
                terminal::print(line)
            } else {
                terminal::print(readable(line))
            }
        })
        .await?;
    if json {
        let job = client.get(&args.of.job).await?;
        return terminal::print(serde_json::to_string(&StatusJson::from(&job))?);
    }
    Ok(())
}

/// `TIME LEVEL task worker#attempt: message field=value`. What is no line of ours is shown as it is,
/// without what a terminal would obey.
fn readable(line: &str) -> String {
    let Ok(Value::Object(mut fields)) = serde_json::from_str::<Value>(line) else {
        return plain(line);
    };
    fields.remove("job");
    let mut take = |name: &str| match fields.remove(name) {
        None => String::new(),
        Some(value) => shown(&value),
    };
    let (time, level, task) = (take("time"), take("level"), take("task"));
    let (worker, attempt, message) = (take("worker"), take("attempt"), take("message"));
    let mut text = format!("{time} {level:5} {task} {worker}#{attempt}: {message}");
    for (name, value) in &fields {
        text = format!("{text} {}={}", plain(name), shown(value));
    }
    text
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => plain(text),
        Value::Object(map) => parts(map),
        other => other.to_string(),
    }
}

/// Seconds by phase and artifacts by name, short.
fn parts(map: &Map<String, Value>) -> String {
    let part = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::Number(number) => format!("{:.3}", number.as_f64().unwrap_or_default()),
            Value::String(text) => plain(text).chars().take(12).collect(),
            other => other.to_string(),
        };
        format!("{}:{value}", plain(name))
    };
    map.iter().map(part).collect::<Vec<_>>().join(",")
}

fn plain(text: &str) -> String {
    let escaped = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_shown_in_one_line_and_harmless() {
        let line = r#"{"time":"T","level":"INFO","job":"j","task":"mux","worker":"w","attempt":2,"message":"a\u001b[2Jb","seconds":{"mux":1.23456}}"#;
        assert_eq!(
            readable(line),
            "T INFO  mux w#2: a\\u{1b}[2Jb seconds=mux:1.235"
        );
        assert_eq!(readable("not\tours"), "not\\tours");
    }
}
