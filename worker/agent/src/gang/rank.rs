//! The process of a rank.

use super::{Equipment, Order, SIGN_OF_LIFE, Word};
use crate::error::{AgentError, story};
use longtake_cpu::CpuBackend;
use longtake_cpu::gang::{Seat, Timing};
use longtake_ltx::weights::Scrutiny;
use longtake_ltx::{LatentUpsampler, Model};
use std::io::{BufRead, Write};
use std::sync::{Arc, mpsc};

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
    let orders = listen()?;
    let mut loaded: Option<Loaded> = None;
    let mut seat: Option<Seat> = None;
    for order in orders {
        match order {
            Order::Load { number, equipment } => {
                let taken = load(&backend, &mut loaded, equipment).and_then(|()| {
                    Seat::on_loopback().map_err(|error| format!("no port can be had: {error}"))
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
                let ended = match seat.join(rank, &addresses, secret, Timing::default()) {
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
/// The process ends with its input.
fn listen() -> Result<mpsc::Receiver<Order>, AgentError> {
    let thread = |lane: &'static str, body: Box<dyn FnOnce() + Send>| {
        let started = std::thread::Builder::new()
            .name(lane.to_owned())
            .spawn(body);
        started.map_err(|source| AgentError::Thread { lane, source })
    };
    let (sender, orders) = mpsc::channel();
    let read = move || {
        for line in std::io::stdin().lock().lines() {
            let order = line.ok().and_then(|line| serde_json::from_str(&line).ok());
            if order.is_none_or(|order| sender.send(order).is_err()) {
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
    Ok(orders)
}
