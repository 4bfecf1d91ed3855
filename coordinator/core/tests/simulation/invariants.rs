//! What has to hold after every step, and of every film in the end.

use super::*;

/// What workers store of unfinished work, by the name of its result.
pub(super) fn halfway(key: &str) -> Hash {
    Hash::of(format!("halfway to {key}").as_bytes())
}

impl Simulation {
    /// A job's stored record.
    pub(super) fn job_record(&self, job: &JobId) -> serde_json::Value {
        serde_json::from_slice(&self.records[&format!("job/{job}")]).expect("JSON")
    }

    fn check_worker(&self, worker: &WorkerId, assignment: &Assignment) {
        let name = worker.0.split('#').next().unwrap_or_default();
        let drained = self.records.contains_key(&format!("drained/{name}"));
        assert!(!drained, "{worker} is drained");
        let record = self.job_record(&assignment.job);
        assert_eq!(record["paused"], false, "{} is paused", assignment.job);
        let process = self
            .processes
            .iter()
            .find(|process| process.info.name == name);
        if assignment.work.lane() == Lane::Device {
            let isa = &process.expect("a process").info.isa;
            assert_eq!(
                record["isa"],
                isa.as_str(),
                "{} is on another level",
                assignment.task
            );
        }
    }

    pub(super) fn memo_key(&self, job: &JobId, work: &Work) -> String {
        let record = self.job_record(job);
        format!("memo/{}", result_key(work, record["isa"].as_str()))
    }

    pub(super) fn check_assignment(&mut self, worker: &WorkerId, assignment: &Assignment) {
        self.check_worker(worker, assignment);
        // Whatever else the task was before, this is where to go on with this work.
        if let Some(left) = assignment.halfway {
            let key = self.memo_key(&assignment.job, &assignment.work);
            assert_eq!(left, halfway(&key));
            self.gone_on += 1;
        }
        let follows = assignment.share.is_some_and(|share| share.follows());
        assert!(
            assignment.token > self.last_token || (follows && assignment.token == self.last_token),
            "tokens grow, over restarts too"
        );
        self.last_token = assignment.token;
        self.latest.insert(
            (assignment.job.clone(), assignment.task.clone()),
            assignment.token,
        );
        let record = &self.records[&format!("task/{}/{}", assignment.job, assignment.task)];
        let record: serde_json::Value = serde_json::from_slice(record).expect("JSON");
        assert_eq!(
            record["token"], assignment.token.0,
            "stored before it is given out"
        );
        assert!(!self.ended.contains_key(&assignment.job), "the job is over");
        let key = self.memo_key(&assignment.job, &assignment.work);
        assert!(
            !self.records.contains_key(&key),
            "{} is done already",
            assignment.task
        );
    }

    pub(super) fn check(&mut self) {
        self.check_ranks();
        let (mut tasks, mut lanes) = (BTreeSet::new(), BTreeSet::new());
        for (worker, lane, job, task) in self.core.holdings() {
            assert!(
                tasks.insert((job.clone(), task.clone())),
                "{job} {task} is held twice"
            );
            assert!(
                lanes.insert((worker.clone(), lane)),
                "{worker} does two things at once"
            );
        }
        for job in self.core.jobs().cloned().collect::<Vec<_>>() {
            let view = self.core.view(self.now_ms, &job).expect("listed");
            assert!((0.0..=1.0).contains(&view.progress));
            if view.state == JobState::Done {
                self.check_retakes(&job, &view);
            }
            if view.state.is_final() {
                let before = *self.ended.entry(job.clone()).or_insert(view.state);
                assert_eq!(before, view.state, "{job} ended twice");
                assert!(tasks.iter().all(|(held, _)| *held != job), "{job} is over");
            } else {
                assert!(!self.ended.contains_key(&job), "{job} began again");
            }
        }
    }

    /// A retake changes its window's chunk and those of its seams, and no other.
    fn check_retakes(&mut self, job: &JobId, view: &JobView) {
        let Some((before, windows)) = self.retaken.remove(job) else {
            return;
        };
        let spans = plan(&view.spec).spans();
        for ((span, before), after) in spans.iter().zip(&before).zip(&view.chunks) {
            let touched = match span.source {
                Source::Interior(index) => windows.contains(&index),
                Source::Seam(index) => windows.contains(&index) || windows.contains(&(index + 1)),
            };
            assert!(
                touched || before == after,
                "{job}: {:?} changed",
                span.source
            );
        }
        self.retakes += 1;
    }

    pub(super) fn check_films(&self) {
        let jobs: Vec<_> = self.core.jobs().collect();
        assert!(jobs.len() >= 3);
        for job in jobs {
            let view = self.core.view(self.now_ms, job).expect("listed");
            if self.cancelled.contains(job) {
                assert_eq!(view.state, JobState::Cancelled);
                continue;
            }
            assert_eq!(view.state, JobState::Done, "{}", view.error);
            assert!(view.video.is_some());
            // A chunk for each span of the plan, none twice.
            let spans = plan(&view.spec).spans();
            assert_eq!(view.chunks.len(), spans.len());
            assert_eq!(
                view.chunks.iter().collect::<BTreeSet<_>>().len(),
                spans.len()
            );
            // The stored tasks name the same chunks in the order of the spans.
            for (span, chunk) in spans.iter().zip(&view.chunks) {
                let (task, name) = match span.source {
                    longtake_core::plan::Source::Interior(i) => (format!("decode/{i}"), "interior"),
                    longtake_core::plan::Source::Seam(i) => (format!("seam/{i}"), "chunk"),
                };
                assert_eq!(self.artifact(job, &task, name), chunk.to_string());
            }
        }
    }

    fn artifact(&self, job: &JobId, task: &str, name: &str) -> String {
        let read = |key: String| -> serde_json::Value {
            serde_json::from_slice(&self.records[&key]).expect("JSON")
        };
        let record = read(format!("task/{job}/{task}"));
        let key = record["finish"]["key"].as_str().expect("done").to_owned();
        read(format!("memo/{key}"))["artifacts"][name]
            .as_str()
            .expect("there")
            .to_owned()
    }
}
