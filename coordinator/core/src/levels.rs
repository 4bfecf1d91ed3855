//! Instruction-set levels: workers of one level make the same bytes, and a job may name one.

use crate::explain::some;
use crate::state::Core;

/// Levels of processors.
const LEVELS: [&str; 3] = ["avx512", "avx2", "scalar"];

/// Whether a level is one of a GPU: architecture and multiprocessors, like `sm_90x132`, and behind a
/// `p` the size of what is decoded at once, where the memory is limited.
fn is_gpu_level(level: &str) -> bool {
    let parts = level
        .strip_prefix("sm_")
        .and_then(|rest| rest.split_once('x'));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    parts.is_some_and(|(arch, rest)| {
        let (multiprocessors, part) = rest.split_once('p').unwrap_or((rest, "0"));
        [arch, multiprocessors, part].into_iter().all(is_number)
    })
}

/// Why no worker can ever render on a level; `None` for one that workers may have.
pub fn unknown_level(level: &str) -> Option<String> {
    let is_known = LEVELS.contains(&level) || is_gpu_level(level);
    (!is_known).then(|| {
        format!(
            "no worker can ever render on '{}': the instruction-set levels are {}, and of GPUs those like sm_90x132 that 'longtake workers list' shows",
            level.escape_debug(),
            LEVELS.join(", ")
        )
    })
}

impl Core {
    /// Why no worker can ever render on the level that a job names, if it names one.
    pub(crate) fn refuse_unknown_level(&self, isa: Option<&str>) -> Option<String> {
        let isa = isa?;
        let mut workers = self.workers.values();
        let is_there = workers.any(|worker| worker.info.isa == isa);
        unknown_level(isa).filter(|_| !is_there)
    }

    /// Why a new job is not taken that names a level which none of the connected workers has. Where
    /// there are none at all, one of that level may yet come.
    pub(crate) fn refuse_absent_level(&self, isa: Option<&str>) -> Option<String> {
        let isa = isa?;
        let workers = self.workers.values().map(|worker| &worker.info);
        let (there, others): (Vec<_>, Vec<_>) = workers.partition(|info| info.isa == isa);
        (there.is_empty() && !others.is_empty()).then(|| {
            let others = others.iter();
            let named = others.map(|info| format!("{} ({})", info.name, info.isa));
            format!(
                "no connected worker renders on {isa}, only {}: give another --isa or none, or start a worker of that level first",
                some(named.collect())
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::is_gpu_level;

    #[test]
    fn levels_of_gpus_are_told_from_others() {
        for level in ["sm_90x132", "sm_89x128", "sm_90x132p128"] {
            assert!(is_gpu_level(level), "{level}");
        }
        for other in [
            "avx2",
            "sm_90",
            "sm_x132",
            "sm_90x",
            "sm_90x132p",
            "sm_90xp1",
        ] {
            assert!(!is_gpu_level(other), "{other}");
        }
    }
}
