//! The steps before and after denoising: prompts to states, latents to pictures and back.

use crate::band::Band;
use crate::conditioning::Encoded;
use crate::config::{ModelConfig, PipelineClass};
use crate::error::{Error, InPart, Result};
use crate::noise::{Drawn, Noise};
use crate::pictures::Pictures;
use crate::shard::Team;
use crate::t5::T5Encoder;
use crate::tokenizer::Tokens;
use crate::types::{DecodeRequest, Latents, Prompt, Video};
use crate::upsampler::upload;
use crate::vae::{Decoder, Encoder};
use longtake_tensor::{Backend, Shape, Tensor};

/// Latents before a tail that are decoded with it. The decoder's whole field of view is larger
/// (21 latents), but what lies further away hardly shows.
pub const TAIL_HALO: usize = 4;

/// Values of an activation above which pictures are decoded in parts of some frames each.
const PART_VALUES_MAX: usize = 192 << 20;

fn refuse<T>(what: &'static str, message: String) -> Result<T> {
    Err(Error::Request { what, message })
}

/// Encoder states of a prompt: of a team, rank 0 finds them and tells the others.
pub(crate) fn encode_tokens<B: Backend>(
    b: &B,
    team: Option<&Team<B>>,
    encoder: &T5Encoder<B>,
    class: PipelineClass,
    tokens: &Tokens,
) -> Result<Prompt> {
    let mask: Vec<f32> = (0..tokens.ids.len())
        .map(|i| if i < tokens.used { 1.0 } else { 0.0 })
        .collect();
    let seen = class.masks_padding().then_some(mask.as_slice());
    Ok(Prompt {
        tokens: tokens.ids.len(),
        channels: encoder.config().d_model,
        states: match team {
            None => encoder.forward(b, &tokens.ids, seen)?,
            Some(team) => team.told(|| encoder.forward(b, &tokens.ids, seen))?,
        },
        mask,
        cut_from: tokens.cut_from,
    })
}

/// First latent to decode for the last `tail_frames` pictures.
pub(crate) fn tail_start(
    config: &ModelConfig,
    latents: &Latents,
    tail_frames: usize,
) -> Result<usize> {
    let [time, _] = config.vae.ratios();
    let whole = latents.frames.saturating_sub(1) * time + 1;
    if tail_frames == 0 || tail_frames % time != 1 % time || tail_frames > whole {
        let message = format!("{tail_frames} frames are not {time}k+1 of the window's {whole}");
        return refuse("tail", message);
    }
    let tail = (tail_frames - 1) / time + 1;
    Ok(latents.frames.saturating_sub(tail + TAIL_HALO))
}

/// Decodes latents from frame `first` on. Of a team, rank 0 gets the pictures.
pub(crate) fn decode<B: Backend>(
    b: &B,
    team: Option<&Team<B>>,
    decoder: &Decoder<B>,
    config: &ModelConfig,
    latents: &Latents,
    request: &DecodeRequest,
    first: usize,
) -> Result<Video> {
    if latents.channels != config.vae.latent_channels || !latents.is_whole() {
        let found = [
            latents.channels,
            latents.frames,
            latents.height,
            latents.width,
        ];
        let channels = config.vae.latent_channels;
        return refuse(
            "latents",
            format!("{found:?} were given, {channels} channels are needed"),
        );
    }
    let part = || "latents".to_owned();
    let visible = latents.slice(first, latents.frames);
    let upload = |latents: &Latents| upload(b, latents);
    let noised = decoder.is_timestep_conditioned() && request.noise_scale != 0.0;
    let noise = noised.then(|| decode_noise(latents, request).slice(first, latents.frames));
    let noise = noise.as_ref().map(upload).transpose().in_part(part)?;
    let mix = |z: B::Tensor| match &noise {
        None => Ok(z),
        Some(noise) => {
            let s = request.noise_scale;
            b.weighted_sum(&z, 1.0 - s, noise, s).in_part(part)
        }
    };
    // The official decoder takes noise in normalised latents, diffusers' in the VAE's own.
    let z = match request.class {
        PipelineClass::Official => {
            let z = mix(upload(&visible).in_part(part)?)?;
            decoder.denormalise(b, &tone_map(b, z, request.tone_map).in_part(part)?)?
        }
        _ => {
            let z = upload(&visible).in_part(part)?;
            mix(decoder.denormalise(b, &tone_map(b, z, request.tone_map).in_part(part)?)?)?
        }
    };
    let [time, space] = config.vae.ratios();
    let band = Band::new(b, team, visible.height);
    if band.is_idle() {
        return band.gather(Video::default()).in_part(part);
    }
    let z = band.own(z, 1).in_part(part)?;
    let rows = z.shape().dims()[1];
    let cells = rows * visible.width * space * space;
    let samples = ((visible.frames - 1) * time + 1) * cells * 3;
    let own = band_of_pictures(&band, decoder, &z, request.timestep, samples)?;
    band.gather(own).in_part(|| "pictures".into())
}

/// Pictures for the VAE's own latents `[F, H, W, C]`, in parts where they are large; there are about
/// `samples` samples in them.
pub fn pictures<B: Backend>(
    b: &B,
    decoder: &Decoder<B>,
    latents: &B::Tensor,
    timestep: f32,
    samples: usize,
) -> Result<Video> {
    band_of_pictures(&Band::alone(b), decoder, latents, timestep, samples)
}

/// The same for a band of the rows.
fn band_of_pictures<B: Backend>(
    b: &Band<'_, B>,
    decoder: &Decoder<B>,
    latents: &B::Tensor,
    timestep: f32,
    samples: usize,
) -> Result<Video> {
    let mut video = Video {
        frames: 0,
        height: 0,
        width: 0,
        rgb: Vec::with_capacity(samples),
    };
    // One part behind: a device copies it while it decodes the next one.
    let mut waiting: Option<B::Tensor> = None;
    let mut take = |pictures: B::Tensor| {
        b.begin_rgb8(&pictures).in_part(|| "pictures".into())?;
        match waiting.replace(pictures) {
            Some(before) => append::<B>(b, &before, &mut video),
            None => Ok(()),
        }
    };
    let values_max = b
        .values_max()
        .map_or(PART_VALUES_MAX, |n| n.min(PART_VALUES_MAX));
    decoder.decode_in_parts(b, latents, timestep, values_max, &mut take)?;
    if let Some(last) = waiting {
        append::<B>(b, &last, &mut video)?;
    }
    Ok(video)
}

fn append<B: Backend>(b: &B, pictures: &B::Tensor, video: &mut Video) -> Result<()> {
    let &[frames, height, width, _] = pictures.shape().dims() else {
        return refuse("latents", format!("decoded to {}", pictures.shape()));
    };
    (video.height, video.width) = (height, width);
    video.frames += frames;
    b.download_rgb8(pictures, &mut video.rgb)
        .in_part(|| "pictures".into())
}

/// Compresses values beyond 1: `x (1 - 0.8 s sigmoid(4 s (|x| - 1)))` with `s = 0.75 ratio`.
fn tone_map<B: Backend>(b: &B, z: B::Tensor, ratio: f32) -> longtake_tensor::Result<B::Tensor> {
    if ratio == 0.0 {
        return Ok(z);
    }
    let mut values = b.download(&z)?;
    map_tones(&mut values, ratio);
    b.upload(z.shape(), &values)
}

/// The same on the host.
pub(crate) fn map_tones(values: &mut [f32], ratio: f32) {
    if ratio == 0.0 {
        return;
    }
    let s = 0.75 * ratio;
    for x in values {
        let steep = f64::from(4.0 * s * (x.abs() - 1.0));
        *x *= 1.0 - 0.8 * s * (1.0 / (1.0 + libm::exp(-steep))) as f32;
    }
}

/// The decoder's noise, drawn after everything else of the window.
fn decode_noise(latents: &Latents, request: &DecodeRequest) -> Latents {
    let count = latents.values.len();
    let mut drawn = request.drawn.clone();
    if drawn == Drawn::default() {
        drawn.generator.push(count);
    }
    let official = request.class == PipelineClass::Official;
    let mut noise = Noise::new(request.seed, official, &drawn);
    let cells = latents.frames * latents.height * latents.width;
    if official && cells > 1 {
        // Its latents are tokens seen from another side: `randn_like` fills them as they lie, one
        // value after the other.
        let values = noise.draw_ambient_last(count);
        let (frames, height, width) = (latents.frames, latents.height, latents.width);
        return Latents::from_tokens(&values, latents.channels, frames, height, width);
    }
    let values = noise.draw_ambient(count);
    Latents { values, ..*latents }
}

/// Encodes pictures to normalised latents.
pub(crate) fn encode<B: Backend>(
    b: &B,
    team: Option<&Team<B>>,
    encoder: &Encoder<B>,
    config: &ModelConfig,
    pictures: &Pictures,
) -> Result<Encoded> {
    let [time, space] = config.vae.ratios();
    let found = [pictures.frames, pictures.height, pictures.width];
    let sides = found[1..].iter();
    let fits = pictures.frames > 0
        && (pictures.frames - 1).is_multiple_of(time)
        && sides
            .clone()
            .all(|&side| side > 0 && side.is_multiple_of(space))
        && pictures.values.len() == 3 * found.iter().product::<usize>();
    if !fits {
        let message = format!(
            "{found:?} pictures, rows and columns; {time}k+1 and multiples of {space} are needed"
        );
        return refuse("pictures", message);
    }
    let shape = Shape::from([found[0], found[1], found[2], 3]);
    let part = || "pictures".to_owned();
    let band = Band::new(b, team, found[1] / space);
    let own = match band.is_idle() {
        true => None,
        false => {
            let pictures = b.upload(shape, &pictures.values).in_part(part)?;
            let own = band.own(pictures, space).in_part(part)?;
            Some(encoder.encode(&band, &own)?)
        }
    };
    let cells = [
        (found[0] - 1) / time + 1,
        found[1] / space,
        found[2] / space,
    ];
    let whole = Shape::from([cells[0], cells[1], cells[2], encoder.channels_out()]);
    let whole = band.whole(own, whole).in_part(part)?;
    let (x, log_variance) = encoder.finish(b, &whole).in_part(part)?;
    let &[frames, height, width, channels] = x.shape().dims() else {
        return refuse("pictures", format!("encoded to {}", x.shape()));
    };
    let tokens = b.download(&x).in_part(|| "latents".into())?;
    let mode = Latents::from_tokens(&tokens, channels, frames, height, width);
    let values = spread(&log_variance, encoder.deviation_scale());
    let spread = Some(Latents { values, ..mode });
    Ok(Encoded { mode, spread })
}

/// Standard deviations `[C, cells]` of normalised latents from the logarithm of the variance of
/// each cell, bounded as in diffusers' `DiagonalGaussianDistribution`.
fn spread(log_variance: &[f32], scale: &[f32]) -> Vec<f32> {
    let deviation = |&v: &f32| libm::exp(0.5 * f64::from(v.clamp(-30.0, 20.0))) as f32;
    let shared: Vec<f32> = log_variance.iter().map(deviation).collect();
    let channels = scale.iter().flat_map(|s| shared.iter().map(move |d| d * s));
    channels.collect()
}
