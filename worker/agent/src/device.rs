//! What a worker renders on.

use crate::error::AgentError;
use longtake_cuda::{Card, CudaBackend, CudaOptions};
use std::fmt;
use std::str::FromStr;

/// What a worker renders on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
}

/// Largest number of a GPU that is taken for one.
const ORDINAL_MAX: usize = 255;

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = match text {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            other => other
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .filter(|n| *n <= ORDINAL_MAX),
        };
        ordinal
            .map(Self::Cuda)
            .ok_or_else(|| "no such device; use cpu, or cuda:0 for the first NVIDIA GPU".to_owned())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

fn unusable(ordinal: usize, error: &longtake_cuda::CudaError) -> AgentError {
    let story = crate::error::story(error);
    AgentError::Device(format!(
        "--device cuda:{ordinal} cannot be used: {story}; `longtake doctor` says more, and --device \
         cpu needs no GPU"
    ))
}

/// Opens a GPU of whose memory at most `memory_limit` bytes are taken.
pub(crate) fn open_gpu(
    ordinal: usize,
    memory_limit: Option<u64>,
) -> Result<CudaBackend, AgentError> {
    let options = CudaOptions {
        ordinal,
        memory_limit: memory_limit.map(|bytes| bytes as usize),
        ..CudaOptions::default()
    };
    CudaBackend::open(options).map_err(|error| unusable(ordinal, &error))
}

/// What results on a device depend on besides the job: the processor's instruction-set level, the
/// best unless one is named, or the GPU's kind and how much of its memory may be taken. Fails when the device is not there, or what it needs
/// is missing.
pub fn level(
    device: Device,
    isa: Option<&str>,
    memory_limit: Option<u64>,
) -> Result<String, AgentError> {
    match device {
        Device::Cpu => Ok(crate::isa(isa)?.name().to_owned()),
        Device::Cuda(_) if isa.is_some() => Err(AgentError::Device(
            "--isa chooses instructions of the processor, and --device cuda renders on the GPU: \
             leave one out"
                .to_owned(),
        )),
        Device::Cuda(ordinal) => Card::probe(ordinal)
            .map(|card| card.level(memory_limit.map(|bytes| bytes as usize)))
            .map_err(|error| unusable(ordinal, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written_alike() {
        for text in ["cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda0", "cuda:256"] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }
}
