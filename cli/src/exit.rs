//! How the program ends: one sentence on stderr, and an exit code.

use crate::terminal::remark;
use std::fmt;
use std::process::ExitCode;

/// Exit code of a program that the user interrupted, as shells have it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// The user stopped us; not an error, but not a success.
#[derive(Debug)]
pub struct Interrupted(
    /// What is left behind and how to go on.
    pub String,
);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Says how it went and chooses the exit code: 0, 1 for an error, 130 when interrupted. (Wrong
/// usage never gets here: clap exits with 2.)
pub fn code(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<Interrupted>() {
            Some(interrupted) => {
                remark(interrupted);
                ExitCode::from(INTERRUPTED)
            }
            None => {
                remark(format_args!("error: {}", sentence(&error)));
                ExitCode::FAILURE
            }
        },
    }
}

/// The error and its causes as one line; a cause that its parent already quotes is left out.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_error_is_one_line_and_says_nothing_twice() {
        let inner = std::io::Error::other("disk\nfull");
        let middle = Err::<(), _>(inner).context("write film.mp4: disk\nfull");
        let outer = middle.context("save the film").expect_err("an error");
        assert_eq!(sentence(&outer), "save the film: write film.mp4: disk full");
    }
}
