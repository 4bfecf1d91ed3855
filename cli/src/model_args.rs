//! The flags that say what a model consists of beside its checkpoint, and the way from them to a
//! [`ModelRef`].

use anyhow::{Result, anyhow, bail};
use longtake_common::Hash;
use longtake_common::model::{Hashes, find_model, hash_model, hash_text_encoder};
use longtake_common::spec::{LoraRef, ModelRef};
use std::path::Path;
use std::time::{Duration, Instant};

/// Files whose values are looked at faster are looked at each time.
const WORTH_REMEMBERING: Duration = Duration::from_millis(300);

/// What a model consists of beside its checkpoint.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ModelArgs {
    /// Text encoder of a checkpoint that has none: the file or the folder of T5-XXL, with its
    /// spiece.model beside it [default: what lies beside the checkpoint]
    #[arg(long, value_name = "PATH")]
    text_encoder: Option<String>,
    /// Add a LoRA to the model, in diffusers' or ComfyUI's form; may be repeated
    #[arg(long = "lora", value_name = "PATH[:STRENGTH]", value_parser = lora)]
    loras: Vec<(String, f32)>,
    /// Add the LoRAs to copies of the matrices that they touch, rather than computing them beside:
    /// faster, but takes memory
    #[arg(long, requires = "loras")]
    lora_fuse: bool,
}

/// Reads `--lora`. A file's name may have colons in it, so only a number at the end is a strength.
fn lora(text: &str) -> Result<(String, f32), String> {
    let strength = text
        .rsplit_once(':')
        .and_then(|(path, strength)| Some((path, strength.parse::<f32>().ok()?)));
    match strength {
        None => Ok((text.to_owned(), 1.0)),
        Some((_, strength)) if !strength.is_finite() => {
            Err(format!("the strength {strength} is not a finite number"))
        }
        Some((path, strength)) => Ok((path.to_owned(), strength)),
    }
}

impl ModelArgs {
    /// The model `name` with what the flags add; nothing large is read yet, and its hashes are
    /// those of nothing. `text_encoder` is what a pipeline file names.
    pub fn outline(
        &self,
        name: &str,
        text_encoder: Option<&str>,
        eight_bit: bool,
    ) -> Result<ModelRef> {
        let path = find_model(name)?;
        let model = unread(name)?;
        let mut model = self.complete(model, path.is_file(), text_encoder, eight_bit)?;
        // Named here, it goes where the checkpoint goes, and is a part of what names the results.
        if path.is_file()
            && model.text_encoder.is_none()
            && let Ok(beside) = longtake_agent::text_encoder_beside(&path)
            && let Some(beside) = beside.to_str()
        {
            model.text_encoder = Some(Box::new(unread(beside)?));
        }
        Ok(model)
    }

    /// A model with this text encoder and nothing else added.
    pub fn with_text_encoder(text_encoder: Option<String>) -> Self {
        Self {
            text_encoder,
            ..Self::default()
        }
    }

    /// How many times smaller than the film the reference video of its IC-LoRA is.
    pub fn reference_factor(&self) -> Result<u32> {
        let mut factor = 1;
        for (name, _) in &self.loras {
            let path = find_model(name)?;
            let info = longtake_agent::lora_info(&path)?;
            let own = info.reference_downscale_factor.unwrap_or(1.0);
            if own.fract() != 0.0 || !(1.0..=64.0).contains(&own) {
                return Err(anyhow!(
                    "{} was trained with reference videos {own} times smaller than the film, and \
                     only whole numbers up to 64 are supported",
                    path.display()
                ));
            }
            factor = factor.max(own as u32);
        }
        Ok(factor)
    }

    /// Fails where an IC-LoRA is not given the reference video that it asks for; a remark about one that
    /// only its name says to be one. What cannot be read is refused with the model.
    pub fn check_reference(&self, has_reference: bool) -> Result<Option<String>> {
        if has_reference {
            return Ok(None);
        }
        let mut remark = None;
        for (name, _) in &self.loras {
            let found = find_model(name).ok();
            let Some(info) = found.and_then(|path| longtake_agent::lora_info(&path).ok()) else {
                continue;
            };
            if info.reference_downscale_factor.is_some() {
                bail!(
                    "{name} is an IC-LoRA: its metadata has reference_downscale_factor, so it was \
                     trained to follow a reference video; give one with --reference-video, or leave \
                     the LoRA out"
                );
            }
            if info.is_ic {
                remark = Some(format!(
                    "{name} is called an IC-LoRA, but follows no video: --reference-video names one"
                ));
            }
        }
        Ok(remark)
    }

    /// The same for a model that is named already. A text encoder that a pipeline file names is only
    /// looked for when the model is a checkpoint.
    pub fn complete(
        &self,
        model: ModelRef,
        is_checkpoint: bool,
        text_encoder: Option<&str>,
        eight_bit: bool,
    ) -> Result<ModelRef> {
        let text_encoder = match (&self.text_encoder, text_encoder) {
            (Some(own), _) => Some(unread(own)?),
            // The official files name a repository; a checkpoint may have its encoder beside it.
            (None, Some(listed)) if is_checkpoint => {
                let short = listed.rsplit('/').next().unwrap_or(listed);
                [listed, short].iter().find_map(|name| unread(name).ok())
            }
            _ => None,
        };
        let loras = self.loras.iter().map(|(name, strength)| {
            let found = unread(name)?;
            Ok(LoraRef {
                location: found.location,
                hash: found.hash,
                strength: *strength,
            })
        });
        Ok(ModelRef {
            text_encoder: text_encoder.map(Box::new),
            eight_bit,
            loras: loras.collect::<Result<_>>()?,
            fuse_loras: self.lora_fuse,
            ..model
        })
    }
}

/// Stands for the hash of files that were not read yet.
pub fn unread_hash() -> Hash {
    Hash::of(b"")
}

/// Whether the files are on this machine and were not hashed yet; those that are stored on a farm
/// have their hash from there.
pub fn is_unread(model: &ModelRef) -> bool {
    model.hash == unread_hash()
}

/// The model `name` of this machine, not hashed yet.
pub fn unread(name: &str) -> Result<ModelRef> {
    let path = find_model(name)?;
    Ok(ModelRef::new(location(name, &path)?, unread_hash()))
}

/// Looks at every value of a model's files, so that what no film can be rendered with is said before
/// one is begun. What takes time is done once for the same files.
pub fn check_values(model: &ModelRef) -> Result<()> {
    check_once(model, longtake_agent::check_values)
}

/// The same for a latent upscaler.
pub fn check_upscaler_values(upscaler: &ModelRef) -> Result<()> {
    check_once(upscaler, longtake_agent::check_upscaler_values)
}

fn check_once(
    model: &ModelRef,
    check: impl FnOnce(&ModelRef) -> Result<(), longtake_agent::AgentError>,
) -> Result<()> {
    let text = model.text_encoder.as_ref().map(|text| text.hash);
    let files = Hash::of(format!("{} {text:?}", model.hash).as_bytes());
    let known = Hashes::usual();
    if known.are_sound(files) {
        return Ok(());
    }
    let started = Instant::now();
    check(model)?;
    if started.elapsed() > WORTH_REMEMBERING {
        known.note_sound(files);
    }
    Ok(())
}

/// Fills in the hashes of a model's files that have none yet.
pub fn hashed(mut model: ModelRef) -> Result<ModelRef> {
    if is_unread(&model) {
        model.hash = hash_model(&find_model(&model.location)?)?;
    }
    if let Some(text_encoder) = model.text_encoder.as_mut().filter(|text| is_unread(text)) {
        text_encoder.hash = hash_text_encoder(&find_model(&text_encoder.location)?)?;
    }
    for lora in &mut model.loras {
        if lora.hash == unread_hash() {
            lora.hash = hash_model(&find_model(&lora.location)?)?;
        }
    }
    Ok(model)
}

/// What workers look a model up by: a bare name where they have it themselves, else this path.
pub fn location(name: &str, found: &Path) -> Result<String> {
    let is_bare = !name.contains(['/', '\\']) && !found.is_file();
    if is_bare && found.ends_with(Path::new("configs/models").join(name)) {
        return Ok(name.to_owned());
    }
    found
        .to_str()
        .map(str::to_owned)
        .ok_or_else(|| anyhow!("the path {} is not UTF-8; move the model", found.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_behind_the_last_colon_is_a_strength() {
        for (text, path, strength) in [
            ("a.safetensors", "a.safetensors", 1.0),
            ("a.safetensors:0.5", "a.safetensors", 0.5),
            ("b:c/a.safetensors:-1", "b:c/a.safetensors", -1.0),
            ("b:c/a.safetensors", "b:c/a.safetensors", 1.0),
        ] {
            assert_eq!(lora(text), Ok((path.to_owned(), strength)));
        }
        assert!(lora("a:inf").is_err());
    }
}
