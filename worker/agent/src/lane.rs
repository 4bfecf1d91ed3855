//! A thread that does one piece of work at a time. There are two: the device renders while the
//! host joins and encodes what was rendered before.

use crate::control::Control;
use crate::error::{AgentError, TaskError};
use crate::ledger::{Key, Outcome};
use longtake_common::task::{Assignment, TaskOutput};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use tokio::sync::mpsc::UnboundedSender;

/// Does the work of a lane.
pub trait Executor: Send + 'static {
    /// What an order brings along besides the assignment.
    type Context: Send + 'static;

    /// Does `assignment`, looking at `control` often enough to stop within a second.
    fn execute(
        &mut self,
        assignment: &Assignment,
        context: &Self::Context,
        control: &Control,
    ) -> Result<TaskOutput, TaskError>;

    /// Forgets everything that a panic may have left half done.
    fn reset(&mut self);
}

/// A piece of work on its way to a lane.
struct Order<C> {
    assignment: Box<Assignment>,
    context: C,
    control: Control,
}

/// The connection's end of a lane.
pub struct Lane<C> {
    orders: mpsc::Sender<Order<C>>,
}

impl<C: Send + 'static> Lane<C> {
    /// Starts the thread; what it finishes goes to `finished`. It ends when the lane is dropped.
    pub fn start<E: Executor<Context = C>>(
        name: &'static str,
        mut executor: E,
        finished: UnboundedSender<(Key, Outcome)>,
    ) -> Result<Self, AgentError> {
        let (orders, inbox) = mpsc::channel::<Order<C>>();
        let body = move || {
            for order in inbox {
                let outcome = attempt(&mut executor, &order);
                if finished
                    .send((Key::of(&order.assignment), outcome))
                    .is_err()
                {
                    return; // nobody is left to hear of it
                }
            }
        };
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|source| AgentError::Thread { lane: name, source })?;
        Ok(Self { orders })
    }

    /// Queues a piece of work. Returns false when the thread is gone.
    pub fn order(&self, assignment: Assignment, context: C, control: Control) -> bool {
        self.orders
            .send(Order {
                assignment: Box::new(assignment),
                context,
                control,
            })
            .is_ok()
    }
}

fn attempt<E: Executor>(executor: &mut E, order: &Order<E::Context>) -> Outcome {
    if order.control.is_cancelled() {
        return Err(TaskError::Cancelled);
    }
    let run = || executor.execute(&order.assignment, &order.context, &order.control);
    // The executor is reset after a panic, so nothing half done is seen by the next task.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(outcome) => outcome,
        Err(payload) => {
            executor.reset();
            Err(TaskError::Retryable(format!(
                "{} of job {} broke a rule of the program ({}); please report it",
                order.assignment.task,
                order.assignment.job,
                panic_text(payload.as_ref())
            )))
        }
    }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use longtake_common::task::{FilmMetadata, Picture, Work};
    use longtake_common::{Continuity, Epoch, FencingToken, Hash, JobId, TaskId};

    /// Panics on its first task and counts how often it was reset.
    #[derive(Default)]
    struct Clumsy {
        tasks: u32,
        resets: u32,
    }

    impl Executor for Clumsy {
        type Context = ();

        fn execute(
            &mut self,
            _: &Assignment,
            (): &(),
            _: &Control,
        ) -> Result<TaskOutput, TaskError> {
            self.tasks += 1;
            assert!(self.tasks > 1, "first task");
            Ok(TaskOutput {
                peak_rss_bytes: u64::from(self.resets),
                ..TaskOutput::default()
            })
        }

        fn reset(&mut self) {
            self.resets += 1;
        }
    }

    fn assignment(token: u64) -> Assignment {
        let picture = Picture {
            width: 32,
            height: 32,
            fps: 24.0,
            codec: longtake_common::spec::Codec::H264,
        };
        let metadata = FilmMetadata {
            version: String::new(),
            prompt: String::new(),
            negative: String::new(),
            model: Hash::of(b""),
            continuity: Continuity::Chain,
            windows: Vec::new(),
            prompts: std::collections::BTreeMap::new(),
            shots: Vec::new(),
        };
        Assignment {
            job: JobId("j-0000000000".into()),
            task: TaskId("mux".into()),
            attempt: 1,
            token: FencingToken(token),
            epoch: Epoch(1),
            work: Work::Mux {
                chunks: Vec::new(),
                picture,
                metadata,
                seams: Vec::new(),
                cuts: Vec::new(),
            },
            halfway: None,
            share: None,
        }
    }

    #[test]
    fn a_panic_fails_the_task_and_the_lane_goes_on() {
        let (sender, mut finished) = tokio::sync::mpsc::unbounded_channel();
        let lane = Lane::start("test", Clumsy::default(), sender).expect("a thread");
        for token in 1..=2 {
            assert!(lane.order(assignment(token), (), Control::default()));
        }
        let (key, first) = finished.blocking_recv().expect("a first outcome");
        assert_eq!(key.token, FencingToken(1));
        let error = first.expect_err("the panic");
        assert!(matches!(&error, TaskError::Retryable(text) if text.contains("first task")));
        let (_, second) = finished.blocking_recv().expect("a second outcome");
        assert_eq!(second.expect("done").peak_rss_bytes, 1, "reset once");
    }

    #[test]
    fn a_task_cancelled_in_the_queue_never_starts() {
        let (sender, mut finished) = tokio::sync::mpsc::unbounded_channel();
        let lane = Lane::start("test", Clumsy::default(), sender).expect("a thread");
        let control = Control::default();
        control.cancel();
        lane.order(assignment(1), (), control);
        let (_, outcome) = finished.blocking_recv().expect("an outcome");
        assert_eq!(outcome, Err(TaskError::Cancelled));
    }
}
