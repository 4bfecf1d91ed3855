//! Leaving in order: when told to stop, a worker takes nothing new, has some seconds to finish what
//! it has begun, and goes.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;

/// Waits for the signal to stop, then for the deadline.
pub struct Drain {
    signal: Pin<Box<dyn Future<Output = ()> + Send>>,
    grace: Duration,
    deadline: Option<Instant>,
}

impl Drain {
    /// Begins when `signal` resolves and is over `grace` later.
    pub fn new(signal: impl Future<Output = ()> + Send + 'static, grace: Duration) -> Self {
        Self {
            signal: Box::pin(signal),
            grace,
            deadline: None,
        }
    }

    /// Resolves when draining begins; called again, when it is over. Safe to abandon and call again.
    pub async fn next(&mut self) {
        match self.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => {
                (&mut self.signal).await;
                self.deadline = Some(Instant::now() + self.grace);
            }
        }
    }

    /// Whether nothing new may be taken.
    pub fn has_begun(&self) -> bool {
        self.deadline.is_some()
    }

    /// Whether the time to finish is up.
    pub fn is_over(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn draining_begins_with_the_signal_and_ends_after_the_grace() {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let signal = async move {
            let _ = stopped.await;
        };
        let mut drain = Drain::new(signal, Duration::from_millis(30));
        assert!(
            tokio::time::timeout(Duration::from_millis(5), drain.next())
                .await
                .is_err()
        );
        assert!(!drain.has_begun());
        stop.send(()).expect("the drain listens");
        drain.next().await;
        assert!(drain.has_begun() && !drain.is_over());
        drain.next().await;
        assert!(drain.is_over());
    }
}
