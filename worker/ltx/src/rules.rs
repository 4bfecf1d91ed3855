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
}

impl Rules {
    /// Those of the Diffusers folder or official checkpoint at `model`, of which no weight is needed.
    ///
    /// # Errors
    /// When its configuration cannot be read.
    pub fn read(model: &Path) -> Result<Self> {
        let Some(paths) = checkpoint_files(model)? else {
            let [index, scheduler, _, transformer, _] = config_files(model);
            return Ok(Self {
                pipeline: PipelineClass::read(&index)?,
                scheduler: SchedulerConfig::read(&scheduler)?,
                blocks: TransformerConfig::read(&transformer)?.num_layers,
            });
        };
        let (official, path) = official_config(&open_all(&paths)?, model)?;
        Ok(Self {
            pipeline: PipelineClass::Official,
            scheduler: SchedulerConfig::of_official(&official, &path)?,
            blocks: official.transformer(&path)?.num_layers,
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
