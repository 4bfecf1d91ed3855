//! Leaving in order: when told to stop, a worker takes nothing new, has some seconds to finish what
//! it has begun, some more to store what is not done, and goes.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;

/// How long storing what is not done may take: a step of the model has to end first.
pub const SETTLE: Duration = Duration::from_secs(8);

/// How far the leaving has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing new is taken.
    Begun,
    /// The time to finish is up: what is under way is to be stored as it is.
    Over,
    /// Nobody waits any more.
    Ended,
}

/// Waits for the signal to stop, then for what follows from it.
pub struct Drain {
    signal: Pin<Box<dyn Future<Output = ()> + Send>>,
    grace: Duration,
    settle: Duration,
    /// The last stage, and when the next one begins.
    reached: Option<(Stage, Instant)>,
}

impl Drain {
    /// Begins when `signal` resolves, is over `grace` later, and has ended `settle` after that.
    pub fn new(
        signal: impl Future<Output = ()> + Send + 'static,
        grace: Duration,
        settle: Duration,
    ) -> Self {
        Self {
            signal: Box::pin(signal),
            grace,
            settle,
            reached: None,
        }
    }

    /// Resolves when the next stage begins. Safe to abandon and call again.
    pub async fn next(&mut self) -> Stage {
        let (stage, wait) = match self.reached {
            None => {
                (&mut self.signal).await;
                (Stage::Begun, self.grace)
            }
            Some((Stage::Begun, until)) => {
                tokio::time::sleep_until(until).await;
                (Stage::Over, self.settle)
            }
            Some((_, until)) => {
                tokio::time::sleep_until(until).await;
                (Stage::Ended, self.settle)
            }
        };
        self.reached = Some((stage, Instant::now() + wait));
        stage
    }

    /// Whether nothing new may be taken.
    pub fn has_begun(&self) -> bool {
        self.reached.is_some()
    }

    /// Whether nobody waits any more.
    pub fn has_ended(&self) -> bool {
        matches!(self.reached, Some((Stage::Ended, _)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn draining_begins_with_the_signal_and_goes_through_its_stages() {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let signal = async move {
            let _ = stopped.await;
        };
        let short = Duration::from_millis(5);
        let mut drain = Drain::new(signal, short, short);
        let waited = tokio::time::timeout(short, drain.next()).await;
        assert!(waited.is_err() && !drain.has_begun());
        stop.send(()).expect("the drain listens");
        assert_eq!(drain.next().await, Stage::Begun);
        assert!(drain.has_begun() && !drain.has_ended());
        assert_eq!(drain.next().await, Stage::Over);
        assert!(!drain.has_ended());
        assert_eq!(drain.next().await, Stage::Ended);
        assert!(drain.has_ended());
    }
}
