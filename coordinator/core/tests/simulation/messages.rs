//! What is asked for, and what workers say.

use super::*;

/// Three jobs that share some of their work, and one for gangs.
pub fn job(number: usize) -> JobSpec {
    match number {
        0 => spec(288),
        1 => spec(400),
        3 => JobSpec {
            seed: 8,
            ..spec(288)
        },
        _ => JobSpec {
            continuity: Continuity::None,
            ..spec(250)
        },
    }
}

pub fn held(process: &Process) -> Vec<Running> {
    let entry = |(key, held): (&Key, &Held)| Running {
        job: key.0.clone(),
        task: key.1.clone(),
        token: key.2,
        progress: if held.output.is_some() { 1.0 } else { 0.5 },
        share: held.share,
    };
    process.held.iter().map(entry).collect()
}

pub fn done(worker: &WorkerId, key: &Key, output: TaskOutput) -> Event {
    let (job, task, token) = key.clone();
    Event::Done {
        worker: worker.clone(),
        job,
        task,
        token,
        output: Box::new(output),
    }
}
