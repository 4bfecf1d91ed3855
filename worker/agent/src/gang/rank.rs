//! The process of a rank.

use super::{Equipment, Order, SIGN_OF_LIFE, Word};
use crate::error::{AgentError, story};
use longtake_cpu::CpuBackend;
use longtake_cpu::gang::{Seat, Timing};
use longtake_ltx::weights::Scrutiny;
use longtake_ltx::{LatentUpsampler, Model};
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// How long a rank's process waits for others to join: longer than its worker, which knows better why
/// it should not.
const FORMING: Duration = Duration::from_secs(15);

/// What is loaded.
struct Loaded {
    equipment: Equipment,
    model: Model<CpuBackend>,
    upscaler: Option<LatentUpsampler<CpuBackend>>,
}

/// A rank on `threads` threads of the processor, for whoever started this process: does what standard
/// input says until that ends, and then ends the process.
///
/// # Errors
/// When the processor lacks the level `isa`, or a thread cannot be started.
pub fn serve_rank(threads: usize, isa: Option<&str>) -> Result<(), AgentError> {
    let backend = CpuBackend::new(threads, crate::isa(isa)?)
        .map_err(|error| AgentError::Device(error.to_string()))?;
    let (orders, waiting) = listen()?;
    let mut loaded: Option<Loaded> = None;
    let mut seat: Option<Seat> = None;
    for order in orders {
        waiting.fetch_sub(1, Ordering::Relaxed);
        match order {
            Order::Load {
                number,
                equipment,
                address,
            } => {
                let taken = load(&backend, &mut loaded, equipment).and_then(|()| {
                    Seat::at(address).map_err(|error| format!("no port can be had: {error}"))
                });
                seat = match taken {
                    Ok(taken) => {
                        let address = taken.address();
                        say(&Word::Seat { number, address });
                        Some(taken)
                    }
                    Err(reason) => {
                        say(&Word::Failed { number, reason });
                        None
                    }
                };
            }
            Order::Join {
                rank,
                addresses,
                secret,
            } => {
                let (Some(seat), Some(loaded)) = (seat.take(), &loaded) else {
                    say(&Word::Ended("nothing is loaded".to_owned()));
                    continue;
                };
                let timing = Timing {
                    forming: FORMING,
                    ..Timing::default()
                };
                // Another order means that this gang has come to nothing.
                let mut goes_on = || waiting.load(Ordering::Relaxed) == 0;
                let ended = match seat.join(rank, &addresses, secret, timing, &mut goes_on) {
                    Err(error) => error.to_string(),
                    Ok(gang) => {
                        let upscaler = loaded.upscaler.as_ref();
                        match loaded.model.follow(Arc::new(gang), upscaler) {
                            Err(error) => story(&error),
                            Ok(never) => match never {},
                        }
                    }
                };
                tracing::debug!("the gang has ended: {ended}");
                say(&Word::Ended(ended));
            }
        }
    }
    Ok(())
}

/// Loads what is not loaded yet.
fn load(
    backend: &CpuBackend,
    loaded: &mut Option<Loaded>,
    equipment: Equipment,
) -> Result<(), String> {
    if loaded.as_ref().is_some_and(|l| l.equipment == equipment) {
        return Ok(());
    }
    let model = match loaded.take() {
        Some(old) if old.equipment.files == equipment.files => old.model,
        old => {
            // Two models side by side would double the memory.
            drop(old);
            Model::load(&equipment.files, backend.clone()).map_err(|error| story(&error))?
        }
    };
    let upscaler = equipment.upscaler.as_deref().map(|path| {
        LatentUpsampler::load(path, backend, Scrutiny::Values).map_err(|error| story(&error))
    });
    *loaded = Some(Loaded {
        equipment,
        model,
        upscaler: upscaler.transpose()?,
    });
    Ok(())
}

/// Says `word` to whoever started us, and ends the process when nobody hears it.
fn say(word: &Word) {
    let line = serde_json::to_string(word).expect("words can be written");
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Reads orders, and gives signs of life, on threads of their own: neither waits for what is computed.
/// The process ends with its input. Also counts the orders that wait.
fn listen() -> Result<(mpsc::Receiver<Order>, Arc<AtomicUsize>), AgentError> {
    let thread = |lane: &'static str, body: Box<dyn FnOnce() + Send>| {
        let started = std::thread::Builder::new()
            .name(lane.to_owned())
            .spawn(body);
        started.map_err(|source| AgentError::Thread { lane, source })
    };
    let (sender, orders) = mpsc::channel();
    let waiting = Arc::<AtomicUsize>::default();
    let count = waiting.clone();
    let read = move || {
        for line in std::io::stdin().lock().lines() {
            let order = line.ok().and_then(|line| serde_json::from_str(&line).ok());
            let Some(order) = order else { break };
            count.fetch_add(1, Ordering::Relaxed);
            if sender.send(order).is_err() {
                break;
            }
        }
        std::process::exit(0);
    };
    thread("orders", Box::new(read))?;
    let sign = || {
        loop {
            say(&Word::Here);
            std::thread::sleep(SIGN_OF_LIFE);
        }
    };
    thread("signs of life", Box::new(sign))?;
    Ok((orders, waiting))
}
