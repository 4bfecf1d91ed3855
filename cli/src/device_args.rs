//! What to render on.

use longtake_agent::Device;
use std::fmt;
use std::str::FromStr;

/// The devices of an embedded farm's workers: `cpu`, or GPUs like `cuda:0,1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices(Vec<Device>);

impl Devices {
    /// The device of worker `number`, counted from 0.
    pub fn of_worker(&self, number: usize) -> Device {
        self.0[number % self.0.len()]
    }

    /// The first one: all workers of a render have devices of one kind.
    pub fn first(&self) -> Device {
        self.0[0]
    }

    /// Number of GPUs; `None` for the processor.
    pub fn gpus(&self) -> Option<usize> {
        (self.first() != Device::Cpu).then_some(self.0.len())
    }
}

impl Default for Devices {
    fn default() -> Self {
        Self(vec![Device::Cpu])
    }
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut devices = Vec::new();
        for part in text.split(',') {
            // "cuda:0,1": what comes after the first is of its kind.
            let device = match (devices.last(), part.parse::<usize>()) {
                (Some(Device::Cuda(_)), Ok(ordinal)) => format!("cuda:{ordinal}").parse()?,
                _ => part.parse()?,
            };
            if devices.contains(&device) {
                return Err(format!("{device} is named twice"));
            }
            devices.push(device);
        }
        if devices.len() > 1 && devices.contains(&Device::Cpu) {
            return Err("a film is rendered on the processor or on GPUs, not on both".to_owned());
        }
        Ok(Self(devices))
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, device) in self.0.iter().enumerate() {
            match (i, device) {
                (0, device) => write!(f, "{device}")?,
                (_, Device::Cuda(ordinal)) => write!(f, ",{ordinal}")?,
                (_, device) => write!(f, ",{device}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_gpus_are_read() {
        let read = |text: &str| text.parse::<Devices>();
        assert_eq!(read("cpu").unwrap().gpus(), None);
        let two = read("cuda:0,1").unwrap();
        assert_eq!(two, read("cuda:0,cuda:1").unwrap());
        assert_eq!(two.to_string(), "cuda:0,1");
        assert_eq!(two.gpus(), Some(2));
        assert_eq!(two.of_worker(3), Device::Cuda(1));
        for wrong in ["", "cuda:0,0", "cpu,cuda:0", "cuda:0,", "1", "cuda:0,x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
