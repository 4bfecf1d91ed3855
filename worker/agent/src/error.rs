//! What can go wrong in a worker and in a piece of its work.

use longtake_common::Hash;

/// Why the worker itself ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The coordinator cannot be dialled, or does not let us in.
    #[error(transparent)]
    Dial(#[from] crate::dial::DialError),
    /// No coordinator answered in the time given for the first contact.
    #[error(
        "no coordinator answers at {url}: {reason}; start one with `longtake coordinator --listen` \
         or check the address"
    )]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// The last failure.
        reason: String,
    },
    /// The coordinator is there and does not want this worker.
    #[error("the coordinator at {url} does not take this worker: {reason}")]
    Refused {
        /// The coordinator.
        url: String,
        /// In its words.
        reason: String,
    },
    /// What the coordinator stores cannot be reached from here.
    #[error("cannot work for the coordinator at {url}: {reason}")]
    Artifacts {
        /// The coordinator.
        url: String,
        /// What is in the way.
        reason: String,
    },
    /// A thread could not be started.
    #[error("cannot start the {lane} thread: {source}; check the process limits (ulimit -u)")]
    Thread {
        /// Which lane it was for.
        lane: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The device cannot be used.
    #[error("{0}")]
    Device(String),
    /// A model's files cannot be used.
    #[error("{0}")]
    Model(String),
}

/// Why a task has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// The coordinator took it back.
    #[error("the task was taken back")]
    Cancelled,
    /// The worker had to leave. The artifact, if there is one, says where another can go on.
    #[error("the worker was told to stop before this was done")]
    Left(Option<Hash>),
    /// The store has lost inputs, or they are damaged there.
    #[error("{story}")]
    Inputs {
        /// Which.
        lost: Vec<Hash>,
        /// What the store says of the first.
        story: String,
    },
    /// A disk is full here: the task is not to blame.
    #[error("{0}")]
    Full(String),
    /// A rank of its gang was lost: the task is not to blame.
    #[error("{0}")]
    Gang(String),
    /// A rank of its gang cannot be reached from here.
    #[error("{story}")]
    Peer {
        /// Which.
        rank: usize,
        /// What was tried.
        story: String,
    },
    /// It followed another worker's lead, which has ended and answers for it.
    #[error("the gang is over")]
    Followed,
    /// It failed here; another try may succeed.
    #[error("{0}")]
    Retryable(String),
    /// No worker can do it: the work itself is wrong.
    #[error("{0}")]
    Fatal(String),
}

impl TaskError {
    /// A failure that another try or worker may not have.
    pub fn retryable(error: impl std::error::Error + 'static) -> Self {
        if is_full(&error) {
            Self::Full(story(&error))
        } else {
            Self::Retryable(story(&error))
        }
    }

    /// A failure that every worker would have.
    pub fn fatal(error: impl std::error::Error) -> Self {
        Self::Fatal(story(&error))
    }
}

/// An error and its causes in one line, without what a cause repeats of its parent.
pub(crate) fn story(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// Whether there was no room for what should be written: the disk is full, or a limit is reached.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            if matches!(io.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
                return true;
            }
            // An error of its own kind may be wrapped in one of the system's.
            if io.get_ref().is_some_and(|inner| is_full(inner)) {
                return true;
            }
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot write")]
        struct Outer(#[source] Error);
        let outer = |kind| TaskError::retryable(Outer(Error::from(kind)));
        assert!(matches!(outer(ErrorKind::StorageFull), TaskError::Full(_)));
        let wrapped = Error::other(Error::from(ErrorKind::QuotaExceeded));
        assert!(matches!(TaskError::retryable(wrapped), TaskError::Full(_)));
        let denied = outer(ErrorKind::PermissionDenied);
        assert!(matches!(denied, TaskError::Retryable(_)));
    }
}
