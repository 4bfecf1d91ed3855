//! The farm's figures as Prometheus reads them: text exposition format 0.0.4.

use longtake_core::Census;
use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};

/// Content type of [`page`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What happened since this process started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Tasks given to workers.
    pub assignments: AtomicU64,
    /// Results that workers reported.
    pub results: AtomicU64,
    /// Failures that workers reported.
    pub failures: AtomicU64,
    /// Workers that went without saying goodbye.
    pub workers_lost: AtomicU64,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Bytes in the artifact store and how many artifacts they are, where that is known.
pub type Stored = Option<(u64, u64)>;

/// The whole page.
pub fn page(census: &Census, counters: &Counters, stored: Stored) -> String {
    let mut page = Page::default();
    page.by("longtake_jobs", "Jobs by state.", "state", &census.jobs);
    page.by(
        "longtake_windows",
        "Windows of unfinished jobs by state.",
        "state",
        &census.windows,
    );
    page.by(
        "longtake_queue_depth",
        "Tasks that could be given out, by the lane of a worker that would take them.",
        "lane",
        &census.ready,
    );
    page.by(
        "longtake_tasks_running",
        "Tasks in the hands of workers, by lane.",
        "lane",
        &census.running,
    );
    page.one(
        "longtake_backlog_device_seconds",
        "gauge",
        "Seconds that one device would take for all the model's work that is left.",
        census.backlog_device_s,
    );
    page.one(
        "longtake_workers",
        "gauge",
        "Workers that are attached.",
        census.workers,
    );
    page.head(
        "longtake_phase_seconds_total",
        "counter",
        "Seconds that the stored results took, by phase.",
    );
    for (phase, seconds) in &census.phase_seconds {
        page.line(
            "longtake_phase_seconds_total",
            Some(("phase", phase)),
            seconds,
        );
    }
    page.counters(counters);
    if let Some((bytes, artifacts)) = stored {
        page.one(
            "longtake_artifact_bytes",
            "gauge",
            "Bytes in the artifact store.",
            bytes,
        );
        page.one(
            "longtake_artifacts",
            "gauge",
            "Artifacts in the store.",
            artifacts,
        );
    }
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn counters(&mut self, counters: &Counters) {
        let rows = [
            (
                "longtake_workers_lost_total",
                "Workers that went without saying goodbye.",
                &counters.workers_lost,
            ),
            (
                "longtake_assignments_total",
                "Tasks given to workers.",
                &counters.assignments,
            ),
            (
                "longtake_results_total",
                "Results that workers reported.",
                &counters.results,
            ),
            (
                "longtake_failures_total",
                "Failures that workers reported.",
                &counters.failures,
            ),
        ];
        for (name, help, counter) in rows {
            self.one(name, "counter", help, counter.load(Ordering::Relaxed));
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.line(name, None, value);
    }

    fn by<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a &'static str, &'a usize)>,
    ) {
        self.head(name, "gauge", help);
        for (key, value) in values {
            self.line(name, Some((label, key)), value);
        }
    }

    fn line(&mut self, name: &str, label: Option<(&str, &str)>, value: impl Display) {
        match label {
            None => self.write(format_args!("{name} {value}\n")),
            Some((label, text)) => {
                let text = escape(text);
                self.write(format_args!("{name}{{{label}=\"{text}\"}} {value}\n"));
            }
        }
    }

    fn write(&mut self, arguments: std::fmt::Arguments<'_>) {
        self.text
            .write_fmt(arguments)
            .expect("a string takes everything");
    }
}

/// A label's value between its quotes. Phases are named by workers, so anything may be in it.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_type_for_every_figure_and_survives_odd_labels() {
        let mut census = Census {
            backlog_device_s: 1.5,
            workers: 2,
            ..Census::default()
        };
        census.jobs.insert("running", 3);
        census.phase_seconds.insert("a\"b\\c\nd".to_owned(), 0.25);
        let counters = Counters::default();
        count(&counters.workers_lost);
        let text = page(&census, &counters, Some((1024, 7)));
        for line in [
            "longtake_jobs{state=\"running\"} 3",
            "longtake_backlog_device_seconds 1.5",
            "longtake_workers 2",
            "longtake_workers_lost_total 1",
            "longtake_artifact_bytes 1024",
            r#"longtake_phase_seconds_total{phase="a\"b\\c\nd"} 0.25"#,
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().expect("a name");
            assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
        }
    }
}
