//! How many bytes are done, on stderr: a bar on a terminal, else a line now and then.

use crate::size;
use crate::terminal::remark;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Plain lines come at most this often.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Bytes of a whole.
pub struct Progress {
    what: String,
    total_bytes: u64,
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Progress {
    /// Nothing is done yet. `what` is what is done with the bytes.
    pub fn new(what: &str, total_bytes: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr();
            let bar = ProgressBar::with_draw_target(Some(total_bytes), target);
            let template = "{elapsed_precise} [{bar:36}] {bytes} of {total_bytes} {wide_msg}";
            let style =
                ProgressStyle::with_template(template).expect("the template is well-formed");
            bar.set_style(style.progress_chars("=> "));
            bar.set_message(what.to_owned());
            bar
        });
        Self {
            what: what.to_owned(),
            total_bytes,
            bar,
            said: Instant::now(),
        }
    }

    /// So many bytes are done.
    pub fn show(&mut self, done_bytes: u64) {
        if let Some(bar) = &self.bar {
            return bar.set_position(done_bytes);
        }
        if self.said.elapsed() >= LINE_INTERVAL {
            self.said = Instant::now();
            let (done, total) = (size::shown(done_bytes), size::shown(self.total_bytes));
            remark(format_args!("{done} of {total} {}", self.what));
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
