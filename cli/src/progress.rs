//! How far a job is, on stderr: a bar where somebody looks at a terminal, else plain lines.

use crate::client::{has_ended, state_name};
use crate::terminal::remark;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use longtake_proto::v1;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Resolution of the bar.
const BAR_LENGTH: u64 = 1000;
/// Plain lines come at most this often.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Shows the states of a job as they come.
pub struct Progress {
    style: Style,
    notices_shown: usize,
}

enum Style {
    Bar(ProgressBar),
    Lines { last: String, at: Option<Instant> },
}

impl Progress {
    /// A bar when stderr is a terminal, lines otherwise.
    pub fn new() -> Self {
        let style = if std::io::stderr().is_terminal() {
            Style::Bar(bar())
        } else {
            Style::Lines {
                last: String::new(),
                at: None,
            }
        };
        Self {
            style,
            notices_shown: 0,
        }
    }

    /// Shows `job` as it is now.
    pub fn show(&mut self, job: &v1::Job) {
        for notice in job.notices.iter().skip(self.notices_shown) {
            self.note(notice);
        }
        self.notices_shown = job.notices.len().max(self.notices_shown);
        match &mut self.style {
            Style::Bar(bar) => {
                bar.set_position((job.progress.clamp(0.0, 1.0) * BAR_LENGTH as f64) as u64);
                bar.set_message(summary(job));
            }
            Style::Lines { last, at } => {
                let line = format!(
                    "{:3.0}% {}",
                    100.0 * job.progress.clamp(0.0, 1.0),
                    summary(job)
                );
                let due = at.is_none_or(|at| at.elapsed() >= LINE_INTERVAL) || has_ended(job);
                if due && line != *last {
                    remark(&line);
                    (*last, *at) = (line, Some(Instant::now()));
                }
            }
        }
    }

    /// A line that stays.
    pub fn note(&self, text: &str) {
        match &self.style {
            Style::Bar(bar) => bar.println(format!("note: {text}")),
            Style::Lines { .. } => remark(format_args!("note: {text}")),
        }
    }

    /// Takes the bar away, so that what follows stands on a line of its own.
    pub fn finish(&self) {
        if let Style::Bar(bar) = &self.style {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(BAR_LENGTH), ProgressDrawTarget::stderr());
    let template = "{elapsed_precise} [{bar:36}] {percent:>3}% {wide_msg}";
    let style = ProgressStyle::with_template(template).expect("the template is well-formed");
    bar.set_style(style.progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

fn summary(job: &v1::Job) -> String {
    let windows = format!("{} of {} windows", job.segments_done, job.segments_total);
    match (job.state(), job.eta_s) {
        (v1::JobState::Running, Some(eta_s)) => format!("{windows}, {} left", duration(eta_s)),
        (v1::JobState::Running, None) => windows,
        (state, _) => format!("{windows}, {}", state_name(state)),
    }
}

/// `42 s`, `3 min 05 s`, `2 h 10 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.clamp(0.0, 1e9).round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_speech() {
        let cases = [
            (0.4, "0 s"),
            (59.6, "1 min 00 s"),
            (185.0, "3 min 05 s"),
            (7800.0, "2 h 10 min"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(duration(-1.0), "0 s");
        assert_eq!(duration(f64::NAN), "0 s");
    }
}
