//! Configuration of the scheduler.

use super::{Checker, OfficialConfig, RectifiedFlowConfig, read_json};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `scheduler/scheduler_config.json` of `FlowMatchEulerDiscreteScheduler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are diffusers'")]
pub struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    pub num_train_timesteps: usize,
    pub shift: f64,
    pub use_dynamic_shifting: bool,
    pub base_shift: Option<f64>,
    pub max_shift: Option<f64>,
    pub base_image_seq_len: usize,
    pub max_image_seq_len: usize,
    pub invert_sigmas: bool,
    pub shift_terminal: Option<f64>,
    pub use_karras_sigmas: bool,
    pub use_exponential_sigmas: bool,
    pub use_beta_sigmas: bool,
    pub time_shift_type: String,
    pub stochastic_sampling: bool,
    /// What the official file says, where the model comes from one; longtake's own key in a folder that
    /// it made of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rectified_flow: Option<RectifiedFlowConfig>,
    /// Noise levels that the model was distilled for: the official program refuses others. As the key
    /// before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_inference_steps: Option<Vec<f64>>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            class_name: "FlowMatchEulerDiscreteScheduler".into(),
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: Some(0.5),
            max_shift: Some(1.15),
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            invert_sigmas: false,
            shift_terminal: None,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            time_shift_type: "exponential".into(),
            stochastic_sampling: false,
            rectified_flow: None,
            allowed_inference_steps: None,
        }
    }
}

impl SchedulerConfig {
    /// What the metadata of an official file at `path` says.
    ///
    /// # Errors
    /// When it says nothing, as the official program fails then, or nothing that is known.
    pub(crate) fn of_official(official: &OfficialConfig, path: &Path) -> Result<Self> {
        if official.scheduler.is_null() {
            return Err(Error::WeightFile {
                path: path.to_owned(),
                message:
                    "its metadata `config` has no `scheduler`, so nobody knows its noise levels"
                        .to_owned(),
            });
        }
        let rectified_flow = RectifiedFlowConfig::deserialize(&official.scheduler);
        Ok(Self {
            rectified_flow: Some(rectified_flow.map_err(|source| Error::ConfigSyntax {
                path: path.to_owned(),
                source,
            })?),
            allowed_inference_steps: official.allowed_inference_steps.clone(),
            ..Self::default()
        })
    }

    /// How the official scheduler is configured for the model.
    pub fn rectified_flow(&self) -> RectifiedFlowConfig {
        let own = self.rectified_flow.clone();
        own.unwrap_or_else(|| RectifiedFlowConfig::from(self))
    }

    /// Reads and checks `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let c: Self = read_json(path)?;
        let check = Checker(path);
        let known = c.class_name == "FlowMatchEulerDiscreteScheduler";
        let only = "only FlowMatchEulerDiscreteScheduler is supported";
        check.require(known, "_class_name", &c.class_name, only)?;
        let train = c.num_train_timesteps;
        check.require(
            train == 1000,
            "num_train_timesteps",
            train,
            "only 1000 is supported",
        )?;
        let off = [
            ("invert_sigmas", c.invert_sigmas),
            ("use_karras_sigmas", c.use_karras_sigmas),
            ("use_exponential_sigmas", c.use_exponential_sigmas),
            ("use_beta_sigmas", c.use_beta_sigmas),
            ("stochastic_sampling", c.stochastic_sampling),
        ];
        for (key, on) in off {
            check.require(!on, key, on, "only false is supported")?;
        }
        let kind = &c.time_shift_type;
        let known = kind == "exponential" || kind == "linear";
        check.require(
            known,
            "time_shift_type",
            kind,
            "exponential and linear are supported",
        )?;
        let terminal = c.shift_terminal.unwrap_or(0.0);
        let fits = (0.0..1.0).contains(&terminal);
        check.require(
            fits,
            "shift_terminal",
            terminal,
            "it must be at least 0 and below 1",
        )?;
        Ok(c)
    }
}
