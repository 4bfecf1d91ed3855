//! What processes do with the work in their hands.

use super::*;

impl Simulation {
    /// Something in hand with or without a result.
    pub(super) fn pick(&mut self, at: usize, with_result: bool) -> Option<Key> {
        let held = self.processes[at].held.iter();
        let fitting = held.filter(|(_, held)| held.output.is_some() == with_result);
        let keys: Vec<_> = fitting.map(|(key, _)| key.clone()).collect();
        (!keys.is_empty()).then(|| keys[self.random.below(keys.len())].clone())
    }

    pub(super) fn finish(&mut self, at: usize) {
        let Some(key) = self.pick(at, false) else {
            return;
        };
        if !self.take_part(at, &key) {
            return;
        }
        let inputs = self.processes[at].held[&key].work.inputs().into_iter();
        let lost: Vec<_> = inputs.filter(|hash| self.lost.contains(hash)).collect();
        if !lost.is_empty() {
            return self.fail(at, key, Blame::Inputs(lost));
        }
        self.nonce += 1;
        let held = self.processes[at].held.get_mut(&key).expect("picked");
        let mut made = result(&held.work);
        for hash in made.artifacts.values_mut() {
            *hash = Hash::of(format!("{hash} {}", self.nonce).as_bytes());
        }
        held.output = Some(made);
        self.report(at, &key);
    }

    pub(super) fn report(&mut self, at: usize, key: &Key) {
        let process = &mut self.processes[at];
        let output = process.held[key].output.clone().expect("finished");
        if let Some(link) = &mut process.link {
            link.to_core.push_back(done(&link.worker, key, output));
        }
    }

    /// What a worker stores of work that it cannot finish, if it gets that far.
    pub(super) fn left_of(&mut self, at: usize, key: &Key) -> Option<Hash> {
        let work = &self.processes[at].held[key].work;
        let left = invariants::halfway(&self.memo_key(&key.0, work));
        self.random.chance(70).then_some(left)
    }

    pub(super) fn fail(&mut self, at: usize, key: Key, blame: Blame) {
        let process = &mut self.processes[at];
        process.held.remove(&key);
        if let Some(link) = &mut process.link {
            let (job, task, token) = key;
            let (worker, error) = (link.worker.clone(), "unlucky".to_owned());
            let event = Event::Failed {
                worker,
                job,
                task,
                token,
                error,
                blame,
                log: None,
            };
            link.to_core.push_back(event);
        }
    }

    pub(super) fn heartbeat(&mut self, at: usize) {
        let running = held(&self.processes[at]);
        if let Some(link) = &mut self.processes[at].link {
            let worker = link.worker.clone();
            link.to_core.push_back(Event::Heartbeat {
                worker,
                running,
                peak_rss_bytes: 1,
                leaving: false,
            });
        }
    }
}
