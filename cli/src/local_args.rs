//! Flags about the workers that a command starts on this machine. A farm has workers of its own.

use crate::commands::rank::RANKS_MAX;
use crate::device_args::Devices;
use anyhow::{Result, bail};
use clap::Arg;
use longtake_common::model::find_model;
use longtake_common::spec::JobSpec;
use std::path::PathBuf;

/// How and where this machine's workers work.
#[derive(clap::Args)]
pub struct LocalArgs {
    /// Worker processes to start [default: one for each GPU; else one for each core, at most 2; with
    /// --ranks one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,
    /// Ranks that share each window, processes of this machine or a farm's workers; they must divide the
    /// model's attention heads [default: 1; on a farm as many as its worker offers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=RANKS_MAX))]
    ranks: Option<u16>,
    /// Threads of each worker, all of its ranks together [default: cores / workers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// What to render on: cpu, or NVIDIA GPUs like cuda:0 or cuda:0,1 [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    device: Option<Devices>,
    /// Most of each GPU's memory to take, like 16GiB
    #[arg(long, value_name = "SIZE", value_parser = crate::size::bytes)]
    pub max_vram: Option<u64>,
    /// Folder for work in progress; kept afterwards, so that other films can reuse what it holds
    /// [default: OUT.longtake, removed when the film is there]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

impl LocalArgs {
    /// What to render on.
    pub fn devices(&self) -> Devices {
        self.device.clone().unwrap_or_default()
    }

    /// Ranks of each window.
    pub fn ranks(&self) -> usize {
        self.ranks.map_or(1, usize::from)
    }

    /// The same, if a number was given.
    pub fn ranks_wanted(&self) -> Option<u32> {
        self.ranks.map(u32::from)
    }

    /// Fails when the models of a job cannot be shared by as many ranks as are asked for. What is not
    /// here, the workers look at.
    pub fn check_ranks(&self, spec: &JobSpec) -> Result<()> {
        let ranks = self.ranks();
        longtake_agent::check_gang(self.devices().first(), ranks)?;
        let own = spec
            .sampling
            .passes()
            .filter_map(|pass| pass.model.as_ref());
        let models = own.chain([&spec.model]).filter(|_| ranks > 1);
        for model in models.filter(|model| find_model(&model.location).is_ok()) {
            longtake_agent::check_ranks(model, ranks)?;
        }
        Ok(())
    }

    /// Fails where a farm does the work: these flags mean nothing to it and are better refused than
    /// ignored.
    pub fn refuse(&self) -> Result<()> {
        match self.given().find(|(_, given)| *given) {
            Some((flag, _)) => bail!(
                "{flag} sets up workers on this machine, but a farm renders this and has workers of its own: leave out {flag} (or, for 'longtake render' on this machine, --coordinator and LONGTAKE_COORDINATOR)"
            ),
            None => Ok(()),
        }
    }

    fn given(&self) -> impl Iterator<Item = (&'static str, bool)> {
        let flags = [
            ("--workers", self.workers.is_some()),
            ("--threads", self.threads.is_some()),
            ("--device", self.device.is_some()),
            ("--max-vram", self.max_vram.is_some()),
            ("--state", self.state.is_some()),
        ];
        flags.into_iter()
    }
}

/// Leaves these flags out of the help of a command that refuses them.
pub fn hidden(arg: Arg) -> Arg {
    let names = ["workers", "threads", "device", "max_vram", "state"];
    let is_local = names.contains(&arg.get_id().as_str());
    if is_local { arg.hide(true) } else { arg }
}
