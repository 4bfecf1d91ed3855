//! What a model asks of the passes that sample it, from its configuration alone: a film that cannot
//! be is refused before there is a job.

use crate::config::{PipelineClass, SchedulerConfig, TransformerConfig, config_files};
use crate::error::{Error, Result};
use crate::sampling::{GuidanceStep, Pass};
use crate::schedule::Schedule;
use crate::source::{checkpoint_files, official_config, open_all};
use std::path::Path;

/// What a model asks of its passes.
#[derive(Clone, Debug)]
pub struct Rules {
    pipeline: PipelineClass,
    scheduler: SchedulerConfig,
    blocks: usize,
    /// Channels of the text's states and of the latents.
    channels: [usize; 2],
}

fn channels(transformer: &TransformerConfig) -> [usize; 2] {
    [transformer.caption_channels, transformer.in_channels]
}

impl Rules {
    /// Those of the Diffusers folder or official checkpoint at `model`, of which no weight is needed.
    ///
    /// # Errors
    /// When its configuration cannot be read.
    pub fn read(model: &Path) -> Result<Self> {
        let Some(paths) = checkpoint_files(model)? else {
            let [index, scheduler, _, transformer, _] = config_files(model);
            let transformer = TransformerConfig::read(&transformer)?;
            return Ok(Self {
                pipeline: PipelineClass::read(&index)?,
                scheduler: SchedulerConfig::read(&scheduler)?,
                blocks: transformer.num_layers,
                channels: channels(&transformer),
            });
        };
        let (official, path) = official_config(&open_all(&paths)?, model)?;
        let transformer = official.transformer(&path)?;
        Ok(Self {
            pipeline: PipelineClass::Official,
            scheduler: SchedulerConfig::of_official(&official, &path)?,
            blocks: transformer.num_layers,
            channels: channels(&transformer),
        })
    }

    /// The pipeline whose conventions the files ask for.
    pub fn pipeline(&self) -> PipelineClass {
        self.pipeline
    }

    /// Whether the model says that it was distilled for certain noise levels.
    pub fn is_distilled(&self) -> bool {
        self.scheduler.allowed_inference_steps.is_some()
    }

    /// Fails when this model cannot run a pass of a film of `base`, which encodes the text for all.
    ///
    /// # Errors
    /// Names what does not go together.
    pub fn check_goes_with(&self, base: &Self) -> Result<()> {
        for (what, own, given) in [
            ("text states", self.channels[0], base.channels[0]),
            ("latents", self.channels[1], base.channels[1]),
        ] {
            if own != given {
                return Err(Error::Request {
                    what: "checkpoint of a pass",
                    message: format!(
                        "it takes {what} of {own} channels, and the film's model has {given}: name one \
                         of the same family"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Fails when `pass` cannot be run on windows of `token_count` tokens.
    ///
    /// # Errors
    /// Names the step, level or block that does not fit.
    pub fn check(&self, class: PipelineClass, pass: &Pass, token_count: usize) -> Result<()> {
        schedule(&self.scheduler, self.blocks, class, pass, token_count).map(drop)
    }
}

/// The schedule of `pass` on a window of `token_count` tokens, when the model of so many blocks can be
/// sampled so.
pub(crate) fn schedule(
    config: &SchedulerConfig,
    blocks: usize,
    class: PipelineClass,
    pass: &Pass,
    token_count: usize,
) -> Result<Schedule> {
    let schedule = Schedule::new(config, class, pass, token_count)?;
    check_blocks(pass, &schedule, blocks)?;
    // diffusers knows no such list.
    if let Some(allowed) = config
        .allowed_inference_steps
        .as_ref()
        .filter(|_| class.is_unit())
    {
        schedule.check_allowed(allowed)?;
    }
    Ok(schedule)
}

/// Checks the blocks that are disturbed in some step: the official files of small models name others,
/// beside a scale of 0.
fn check_blocks(pass: &Pass, schedule: &Schedule, blocks: usize) -> Result<()> {
    let steps = (0..schedule.len()).filter_map(|i| pass.guidance.at(schedule.level(i)));
    let mut listed = steps
        .filter(|step| step.is_perturbed())
        .flat_map(|step: &GuidanceStep| &step.skip_blocks);
    let Some(wrong) = listed.find(|&&block| block >= blocks) else {
        return Ok(());
    };
    Err(Error::Request {
        what: "guidance",
        message: format!(
            "skip_block_list names block {wrong}, but the model has {blocks}: use 0 to {}",
            blocks.saturating_sub(1)
        ),
    })
}
