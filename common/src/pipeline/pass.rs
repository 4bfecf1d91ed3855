//! The keys that describe a denoising pass. They stand in `first_pass` and `second_pass`, or at the
//! top of the file, where they hold for every pass that does not say otherwise.

use super::error::PipelineError;
use super::section::Section;
use crate::sampling::{Guidance, GuidanceStep, Pass, Schedule, TeaCache};
use crate::spec::ModelRef;
use serde::Deserialize;

/// Keys of a pass. The official ones, then extensions.
pub(super) const PASS_KEYS: [&str; 18] = [
    "timesteps",
    "num_inference_steps",
    "skip_initial_inference_steps",
    "skip_final_inference_steps",
    "strength",
    "guidance_scale",
    "stg_scale",
    "rescaling_scale",
    "guidance_timesteps",
    "skip_block_list",
    "cfg_star_rescale",
    "stochastic_sampling",
    "tone_map_compression_ratio",
    "decode_timestep",
    "decode_noise_scale",
    "checkpoint_path",
    "use_teacache",
    "teacache_threshold",
];

/// Steps when a file names neither `timesteps` nor `num_inference_steps`: the official files' for
/// models that are not distilled.
pub(super) const STEPS_DEFAULT: u32 = 40;
/// Change of the blocks' input that TeaCache lets pass when the file names none: a little above what
/// its authors recommend for LTX-Video (0.03 to 0.05), whose figures are of a polynomial of the change
/// that was fitted to another version. `bench teacache` says what it saves on a model.
pub const TEACACHE_THRESHOLD_DEFAULT: f32 = 0.06;

/// One value for all steps, or one for each of `guidance_timesteps`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Values<T> {
    Same(T),
    Listed(Vec<T>),
}

impl<T: Clone> Values<T> {
    fn all(&self, test: impl Fn(&T) -> bool) -> bool {
        match self {
            Self::Same(value) => test(value),
            Self::Listed(values) => !values.is_empty() && values.iter().all(test),
        }
    }

    /// Number of values, when that has to agree with anything: a single one stands for all steps.
    fn count(&self) -> Option<usize> {
        match self {
            Self::Listed(values) if values.len() != 1 => Some(values.len()),
            _ => None,
        }
    }

    fn at(&self, i: usize) -> Option<T> {
        match self {
            Self::Same(value) => Some(value.clone()),
            Self::Listed(values) if values.len() == 1 => values.first().cloned(),
            Self::Listed(values) => values.get(i).cloned(),
        }
    }
}

/// A number, or a list of one: the official program takes one for each clip of a batch.
fn single(values: &Values<f32>) -> Option<f32> {
    match values {
        Values::Same(value) => Some(*value),
        Values::Listed(values) => match values.as_slice() {
            [value] => Some(*value),
            _ => None,
        },
    }
}

/// The keys of a pass as they are written.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PassKeys {
    timesteps: Option<Vec<f32>>,
    num_inference_steps: Option<u32>,
    skip_initial_inference_steps: Option<u32>,
    skip_final_inference_steps: Option<u32>,
    strength: Option<f32>,
    guidance_scale: Option<Values<f32>>,
    stg_scale: Option<Values<f32>>,
    rescaling_scale: Option<Values<f32>>,
    guidance_timesteps: Option<Vec<f32>>,
    skip_block_list: Option<Values<Vec<u32>>>,
    cfg_star_rescale: Option<bool>,
    stochastic_sampling: Option<bool>,
    tone_map_compression_ratio: Option<f32>,
    pub decode_timestep: Option<f32>,
    pub decode_noise_scale: Option<f32>,
    pub checkpoint_path: Option<String>,
    use_teacache: Option<bool>,
    teacache_threshold: Option<f32>,
}

const SWITCH: &str = "true or false";
const SHARE: &str = "a number from 0 to 1";
const LEVELS: &str = "a list of falling numbers above 0 and up to 1";

fn is_share(value: &f32) -> bool {
    (0.0..=1.0).contains(value)
}

fn falls(levels: &[f32]) -> bool {
    let inside = levels.iter().all(|&t| t > 0.0 && t <= 1.0);
    !levels.is_empty() && inside && levels.windows(2).all(|pair| pair[0] > pair[1])
}

impl PassKeys {
    /// Reads the keys of `section`.
    pub fn read(section: &Section<'_>) -> Result<Self, PipelineError> {
        let s = section;
        let factors = |key, expected, holds: fn(&f32) -> bool| {
            s.get_if(key, expected, |values: &Values<f32>| values.all(holds))
        };
        let levels = |key| s.get_if(key, LEVELS, |levels: &Vec<f32>| falls(levels));
        let keys = Self {
            timesteps: levels("timesteps")?,
            num_inference_steps: s.count("num_inference_steps", 1)?,
            skip_initial_inference_steps: s.count("skip_initial_inference_steps", 0)?,
            skip_final_inference_steps: s.count("skip_final_inference_steps", 0)?,
            strength: s.get_if("strength", "a number above 0 and up to 1", |value| {
                is_share(value) && *value > 0.0
            })?,
            guidance_scale: factors("guidance_scale", "1 (off) to 100, or a list", |v| {
                (1.0..=100.0).contains(v)
            })?,
            stg_scale: factors("stg_scale", "0 (off) to 100, or a list", |v| {
                (0.0..=100.0).contains(v)
            })?,
            rescaling_scale: factors("rescaling_scale", "0 to 1 (off), or a list", is_share)?,
            guidance_timesteps: levels("guidance_timesteps")?,
            skip_block_list: s.get(
                "skip_block_list",
                "a list of blocks, or of such lists, one for each of guidance_timesteps",
            )?,
            cfg_star_rescale: s.get("cfg_star_rescale", SWITCH)?,
            stochastic_sampling: s.get("stochastic_sampling", SWITCH)?,
            tone_map_compression_ratio: s.get_if("tone_map_compression_ratio", SHARE, is_share)?,
            decode_timestep: decode_share(s, "decode_timestep")?,
            decode_noise_scale: decode_share(s, "decode_noise_scale")?,
            checkpoint_path: s.get("checkpoint_path", "the name or path of a model")?,
            use_teacache: s.get("use_teacache", SWITCH)?,
            teacache_threshold: s.get_if("teacache_threshold", "a number above 0", |v: &f32| {
                v.is_finite() && *v > 0.0
            })?,
        };
        keys.check_steps(section)?;
        Ok(keys)
    }

    fn check_steps(&self, section: &Section<'_>) -> Result<(), PipelineError> {
        let (initial, last) = (
            self.skip_initial_inference_steps.unwrap_or(0),
            self.skip_final_inference_steps.unwrap_or(0),
        );
        let skipped = u64::from(initial) + u64::from(last);
        let message = match (&self.timesteps, self.num_inference_steps) {
            (Some(list), Some(steps)) if list.len() != steps as usize => format!(
                "it lists {} timesteps but has num_inference_steps: {steps}; remove one of the two",
                list.len()
            ),
            (Some(_), _) if skipped > 0 => {
                "it lists timesteps, of which no skip_initial_inference_steps or \
                 skip_final_inference_steps are taken away; shorten the list instead"
                    .to_owned()
            }
            (None, Some(steps)) if skipped >= steps.into() => format!(
                "it skips {skipped} of num_inference_steps: {steps}, which leaves none; skip fewer"
            ),
            _ => return Ok(()),
        };
        Err(section.contradiction(message))
    }

    fn has_schedule(&self) -> bool {
        self.timesteps.is_some() || self.num_inference_steps.is_some()
    }

    /// These keys where they say something, else those of the file's top.
    pub fn or(self, top: &Self) -> Self {
        let own = self.has_schedule();
        // Counts and lists belong together: a pass that lists timesteps is not counted as well.
        let from_top = |value: Option<u32>| value.filter(|_| !own);
        let top = top.clone();
        Self {
            timesteps: self.timesteps.or(top.timesteps.filter(|_| !own)),
            num_inference_steps: self
                .num_inference_steps
                .or(from_top(top.num_inference_steps)),
            skip_initial_inference_steps: self
                .skip_initial_inference_steps
                .or(from_top(top.skip_initial_inference_steps)),
            skip_final_inference_steps: self
                .skip_final_inference_steps
                .or(from_top(top.skip_final_inference_steps)),
            strength: self.strength.or(top.strength),
            guidance_scale: self.guidance_scale.or(top.guidance_scale),
            stg_scale: self.stg_scale.or(top.stg_scale),
            rescaling_scale: self.rescaling_scale.or(top.rescaling_scale),
            guidance_timesteps: self.guidance_timesteps.or(top.guidance_timesteps),
            skip_block_list: self.skip_block_list.or(top.skip_block_list),
            cfg_star_rescale: self.cfg_star_rescale.or(top.cfg_star_rescale),
            stochastic_sampling: self.stochastic_sampling.or(top.stochastic_sampling),
            tone_map_compression_ratio: self
                .tone_map_compression_ratio
                .or(top.tone_map_compression_ratio),
            decode_timestep: self.decode_timestep.or(top.decode_timestep),
            decode_noise_scale: self.decode_noise_scale.or(top.decode_noise_scale),
            checkpoint_path: self.checkpoint_path,
            use_teacache: self.use_teacache.or(top.use_teacache),
            teacache_threshold: self.teacache_threshold.or(top.teacache_threshold),
        }
    }

    /// Whether what is written agrees once the keys of the file's top have been added.
    pub fn check(&self, section: &Section<'_>) -> Result<(), PipelineError> {
        self.check_steps(section)?;
        let wanted = self.guidance_timesteps.as_ref().map(Vec::len);
        let counts = [
            (
                "guidance_scale",
                self.guidance_scale.as_ref().and_then(Values::count),
            ),
            ("stg_scale", self.stg_scale.as_ref().and_then(Values::count)),
            (
                "rescaling_scale",
                self.rescaling_scale.as_ref().and_then(Values::count),
            ),
            (
                "skip_block_list",
                self.skip_block_list.as_ref().and_then(Values::count),
            ),
        ];
        for (key, found) in counts {
            let message = match (found, wanted) {
                (Some(found), None) => format!(
                    "{key} has {found} values, but there are no guidance_timesteps; add them, or \
                     give one value"
                ),
                (Some(found), Some(wanted)) if found != wanted => format!(
                    "{key} has {found} values for {wanted} guidance_timesteps; give as many, or one"
                ),
                _ => continue,
            };
            return Err(section.contradiction(message));
        }
        Ok(())
    }

    /// The pass that these keys describe.
    pub fn pass(&self, model: Option<ModelRef>) -> Pass {
        let schedule = match (&self.timesteps, self.num_inference_steps) {
            (Some(timesteps), _) => Schedule::Timesteps(timesteps.clone()),
            (None, steps) => Schedule::Steps(steps.unwrap_or(STEPS_DEFAULT)),
        };
        let threshold = self
            .teacache_threshold
            .unwrap_or(TEACACHE_THRESHOLD_DEFAULT);
        let uses_teacache = self.use_teacache.unwrap_or(false);
        Pass {
            model,
            schedule,
            skip_initial_steps: self.skip_initial_inference_steps.unwrap_or(0),
            skip_final_steps: self.skip_final_inference_steps.unwrap_or(0),
            strength: self.strength.unwrap_or(1.0),
            guidance: self.guidance(),
            stochastic_sampling: self.stochastic_sampling.unwrap_or(false),
            tone_map_compression_ratio: self.tone_map_compression_ratio.unwrap_or(0.0),
            teacache: uses_teacache.then_some(TeaCache { threshold }),
        }
    }

    fn guidance(&self) -> Guidance {
        let timesteps = self.guidance_timesteps.as_deref().unwrap_or(&[0.0]);
        let factor = |values: &Option<Values<f32>>, i: usize, off: f32| {
            values
                .as_ref()
                .and_then(|values| values.at(i))
                .unwrap_or(off)
        };
        let blocks = |i: usize| {
            let listed = self.skip_block_list.as_ref();
            listed.and_then(|blocks| blocks.at(i)).unwrap_or_default()
        };
        let steps = timesteps
            .iter()
            .enumerate()
            .map(|(i, &timestep)| GuidanceStep {
                timestep,
                guidance_scale: factor(&self.guidance_scale, i, 1.0),
                stg_scale: factor(&self.stg_scale, i, 0.0),
                rescaling_scale: factor(&self.rescaling_scale, i, 1.0),
                skip_block_list: blocks(i),
            });
        let mut steps: Vec<_> = steps.collect();
        // One value for all: where it begins does not matter, and equal specs should be equal.
        let same = steps.iter().skip(1).all(|step| {
            GuidanceStep {
                timestep: steps[0].timestep,
                ..step.clone()
            } == steps[0]
        });
        if same {
            steps.truncate(1);
            steps[0].timestep = 0.0;
        }
        Guidance {
            steps,
            cfg_star_rescale: self.cfg_star_rescale.unwrap_or(false),
        }
    }
}

fn decode_share(section: &Section<'_>, key: &str) -> Result<Option<f32>, PipelineError> {
    let holds = |values: &Values<f32>| single(values).is_some_and(|value| is_share(&value));
    let values = section.get_if(key, SHARE, holds)?;
    Ok(values.as_ref().and_then(single))
}
