//! The artifact store loses things, and somebody wants them.

use super::*;

impl Simulation {
    /// The store loses something that a job is or was made of. Nobody notices yet.
    pub(super) fn lose(&mut self, job: &JobId) {
        let view = self.core.view(self.now_ms, job).expect("listed");
        let latents = view.segments.iter().filter_map(|segment| segment.latents);
        let stored = (latents.chain(view.video)).chain(view.chunks.iter().copied());
        let mut stored: Vec<Hash> = stored.collect();
        // What no user can see is lost as easily.
        let results = self
            .records
            .iter()
            .filter(|(key, _)| key.starts_with("memo/"));
        for (_, record) in results {
            let output: TaskOutput = serde_json::from_slice(record).expect("JSON");
            stored.extend(output.artifacts.values());
        }
        if !stored.is_empty() {
            let at = self.random.below(stored.len());
            self.lost.insert(stored[at]);
        }
    }

    /// A user fetches the film and its segments, up to the first thing that is not there.
    pub(super) fn fetch(&mut self, job: &JobId) -> bool {
        let view = self.core.view(self.now_ms, job).expect("listed");
        let wanted = view.video.into_iter().chain(view.chunks);
        let Some(artifact) = wanted.into_iter().find(|hash| self.lost.contains(hash)) else {
            return true;
        };
        self.expect_loss();
        let event = Event::Lost {
            artifacts: vec![artifact],
            wanted_of: Some(job.clone()),
        };
        self.handle(event, 0);
        // It may be whole again at once, when what is missing is known under other inputs.
        let view = self.core.view(self.now_ms, job).expect("listed");
        let names = view
            .video
            .iter()
            .chain(&view.chunks)
            .any(|hash| *hash == artifact);
        assert!(!names, "{job} still names what was lost");
        false
    }

    /// Jobs that are done may go on after this, and chunks may come out otherwise than before, since
    /// these workers never make the same bytes twice.
    pub(super) fn expect_loss(&mut self) {
        self.losses += 1;
        self.ended.retain(|_, state| *state != JobState::Done);
        self.retaken.clear();
    }

    /// In the end every film can be fetched as a whole.
    pub(super) fn fetch_all(&mut self) {
        let jobs: Vec<_> = self.core.jobs().cloned().collect();
        for job in jobs {
            while !self.cancelled.contains(&job) && !self.fetch(&job) {
                self.settle_jobs();
            }
        }
    }
}
