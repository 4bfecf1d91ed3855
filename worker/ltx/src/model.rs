//! The whole model on a backend.

use crate::calls::{Call, Window};
use crate::conditioning::Encoded;
use crate::config::{ModelConfig, PipelineClass};
use crate::denoise::Denoising;
use crate::error::{Error, InPart, Result};
use crate::halfway::Stop;
use crate::pictures::Pictures;
use crate::pipeline;
use crate::shard::{self, Team};
use crate::source::ModelFiles;
use crate::t5::T5Encoder;
use crate::tokenizer::Tokenizer;
use crate::transformer::Transformer;
use crate::types::{DecodeRequest, DenoiseRequest, Denoised, Latents, Prompt, Video};
use crate::upsampler::{LatentUpsampler, adain, upload};
use crate::vae::{Decoder, Encoder};
use crate::weights::Scrutiny;
use longtake_tensor::{Backend, Collective, InUse, Loader, Part, Shape, Tensor, WeightView};
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;

/// The parts of a model, loaded.
struct Parts<B: Loader> {
    config: ModelConfig,
    tokenizer: Tokenizer,
    text_encoder: Part<T5Encoder<B>>,
    transformer: Part<Transformer<B>>,
    decoder: Part<Decoder<B>>,
    encoder: Part<Encoder<B>>,
}

impl<B: Loader> Parts<B> {
    fn load(files: &ModelFiles, b: &B, scrutiny: Scrutiny) -> Result<Self> {
        let opened = files.open(scrutiny)?;
        let (transformer, vae) = (opened.transformer, opened.vae);
        let parts = Self {
            tokenizer: Tokenizer::load(&opened.tokenizer)?,
            text_encoder: b
                .part(|| T5Encoder::load(b, opened.text_encoder, &opened.config.text_encoder))?,
            transformer: b
                .part(|| Transformer::load(b, &transformer, &opened.config.transformer))?,
            decoder: b.part(|| Decoder::load(b, &vae, &opened.config.vae))?,
            encoder: b.part(|| Encoder::load(b, &vae, &opened.config.vae))?,
            config: opened.config,
        };
        transformer.check_all_asked()?;
        vae.check_all_asked()?;
        Ok(parts)
    }
}

/// Checks a model without loading it: configuration, tokenizer, LoRAs, and that every weight is
/// there with its shape and type and no file is cut short. Values are not looked at.
pub fn check_model(files: impl Into<ModelFiles>) -> Result<()> {
    Parts::load(&files.into(), &Unloaded, Scrutiny::Headers).map(drop)
}

/// The same, and that every value of every weight is a finite number, which reads all of them.
pub fn check_values(files: impl Into<ModelFiles>) -> Result<()> {
    Parts::load(&files.into(), &Unloaded, Scrutiny::Values).map(drop)
}

/// Checks, by the configuration alone, that so many ranks can share a model's attention heads.
pub fn check_ranks(files: impl Into<ModelFiles>, ranks: usize) -> Result<()> {
    let opened = files.into().open(Scrutiny::Headers)?;
    shard::check_ranks(&opened.config, ranks)
}

/// Takes weights and keeps nothing of them.
pub(crate) struct Unloaded;

/// What is left of a tensor that was only checked.
#[derive(Clone)]
pub(crate) struct Checked(Shape);

impl Tensor for Checked {
    fn shape(&self) -> Shape {
        self.0
    }
}

impl Loader for Unloaded {
    type Tensor = Checked;
    type Matrix = ();
    type Conv = ();

    fn upload(&self, shape: Shape, _: &[f32]) -> longtake_tensor::Result<Checked> {
        Ok(Checked(shape))
    }

    fn matrix(&self, _: &WeightView<'_>, _: Option<&[f32]>) -> longtake_tensor::Result<()> {
        Ok(())
    }

    fn add_low_rank(
        &self,
        _: &mut (),
        _: &WeightView<'_>,
        _: &WeightView<'_>,
        _: f32,
    ) -> longtake_tensor::Result<()> {
        Ok(())
    }

    fn conv(&self, _: &WeightView<'_>, _: Option<&[f32]>) -> longtake_tensor::Result<()> {
        Ok(())
    }
}

fn in_use<'a, T>(part: &'a Part<T>, name: &'static str) -> Result<InUse<'a, T>> {
    part.in_use().in_part(|| name.to_owned())
}

/// A loaded model on a backend.
pub struct Model<B: Backend> {
    backend: B,
    parts: Arc<Parts<B>>,
    team: Option<Team<B>>,
}

impl<B: Backend> Model<B> {
    /// Loads a model: checks configuration and weights, prepares them for the backend.
    pub fn load(files: impl Into<ModelFiles>, backend: B) -> Result<Self> {
        let parts = Parts::load(&files.into(), &backend, Scrutiny::Values)?;
        Ok(Self {
            backend,
            parts: Arc::new(parts),
            team: None,
        })
    }

    /// The same model, its weights shared, as one rank of a gang. What it is asked to do, all ranks are
    /// asked to do; each does its share, and each has the whole result, but for pictures, which rank 0
    /// alone has: the others get none.
    ///
    /// # Errors
    /// When the ranks do not divide the attention heads.
    pub fn on_rank(&self, gang: Arc<dyn Collective<B>>) -> Result<Self> {
        self.of_team(gang, false)
    }

    /// The same as rank 0 of a gang whose other ranks [`Self::follow`]: they need not be asked, this
    /// one tells them.
    ///
    /// # Errors
    /// When the ranks do not divide the attention heads.
    pub fn leading(&self, gang: Arc<dyn Collective<B>>) -> Result<Self> {
        self.of_team(gang, true)
    }

    fn of_team(&self, gang: Arc<dyn Collective<B>>, leads: bool) -> Result<Self> {
        shard::check_ranks(&self.parts.config, gang.ranks())?;
        Ok(Self {
            backend: self.backend.clone(),
            parts: self.parts.clone(),
            team: Team::new(gang, leads),
        })
    }

    /// Does what the rank that leads `gang` says, until the gang ends: always with an error, which says
    /// how.
    pub fn follow(
        &self,
        gang: Arc<dyn Collective<B>>,
        upsampler: Option<&LatentUpsampler<B>>,
    ) -> Result<Infallible> {
        let model = self.on_rank(gang)?;
        let Some(team) = &model.team else {
            let message = "a gang of one has nobody to follow".to_owned();
            return Err(Error::Request {
                what: "ranks",
                message,
            });
        };
        loop {
            match model.obey(team.listen()?, upsampler) {
                // The rank that leads has the same refusal, or was told to stop.
                Ok(())
                | Err(Error::Request { .. } | Error::NotFinite | Error::Cancelled { .. }) => {}
                Err(error) => {
                    team.abort(&error.to_string());
                    return Err(error);
                }
            }
        }
    }

    fn obey(&self, call: Call, upsampler: Option<&LatentUpsampler<B>>) -> Result<()> {
        match call {
            Call::EncodePrompt {
                text,
                text_tokens,
                class,
            } => self.encode_prompt(&text, text_tokens, class).map(drop),
            Call::Denoise(window) => {
                let go_on = &mut |_, _| ControlFlow::Continue(());
                window
                    .with(|request| self.denoise(request, go_on))
                    .map(drop)
            }
            Call::Decode {
                latents,
                request,
                first,
            } => self.decode_from(&latents, &request, first).map(drop),
            Call::Encode(pictures) => self.encode(&pictures).map(drop),
            Call::Upsample { latents, tone_map } => {
                let upsampler = upsampler.ok_or_else(|| Error::Request {
                    what: "latent upscaler",
                    message: "this rank has none".to_owned(),
                })?;
                self.upsample(upsampler, &latents, tone_map).map(drop)
            }
        }
    }

    /// Tells the ranks that follow, if this one leads.
    fn announce(&self, call: impl FnOnce() -> Call) -> Result<()> {
        self.team
            .as_ref()
            .map_or(Ok(()), |team| team.announce(call))
    }

    /// Tells the other ranks when this one cannot go on.
    fn told<T>(&self, done: Result<T>) -> Result<T> {
        if let Some(team) = &self.team {
            team.judge(&done);
        }
        done
    }

    /// Whether this is a rank of a gang that has failed: nothing will work on it any more.
    pub fn is_gang_broken(&self) -> bool {
        self.team.as_ref().is_some_and(Team::is_broken)
    }

    /// Fails when its attention heads cannot be shared by so many ranks.
    ///
    /// # Errors
    /// Says how many can.
    pub fn check_ranks(&self, ranks: usize) -> Result<()> {
        shard::check_ranks(&self.parts.config, ranks)
    }

    /// Configuration that it was loaded with.
    pub fn config(&self) -> &ModelConfig {
        &self.parts.config
    }

    /// The backend it runs on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The text encoder alone.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub fn text_encoder(&self) -> Result<InUse<'_, T5Encoder<B>>> {
        in_use(&self.parts.text_encoder, "text encoder")
    }

    /// The transformer alone.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub fn transformer(&self) -> Result<InUse<'_, Transformer<B>>> {
        in_use(&self.parts.transformer, "transformer")
    }

    /// The VAE's decoder alone.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub fn decoder(&self) -> Result<InUse<'_, Decoder<B>>> {
        in_use(&self.parts.decoder, "decoder")
    }

    /// The VAE's encoder alone.
    fn encoder(&self) -> Result<InUse<'_, Encoder<B>>> {
        in_use(&self.parts.encoder, "encoder")
    }

    /// Encodes a prompt, padded or cut to `text_tokens`, as `class` does.
    pub fn encode_prompt(
        &self,
        text: &str,
        text_tokens: usize,
        class: PipelineClass,
    ) -> Result<Prompt> {
        let tokens = self.parts.tokenizer.encode_padded(text, text_tokens)?;
        self.announce(|| Call::EncodePrompt {
            text: text.to_owned(),
            text_tokens,
            class,
        })?;
        let team = self.team.as_ref();
        let states = self.text_encoder().and_then(|encoder| {
            pipeline::encode_tokens(&self.backend, team, &encoder, class, &tokens)
        });
        self.told(states)
    }

    /// Denoises a window. `progress` is called with (steps done, steps) after each step and may
    /// stop the run, which then fails as [`Stop`] says.
    pub fn denoise(
        &self,
        request: &DenoiseRequest<'_>,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<Stop>,
    ) -> Result<Denoised> {
        self.announce(|| Call::Denoise(Box::new(Window::of(request))))?;
        let (config, team) = (&self.parts.config, self.team.as_ref());
        let denoised = self.transformer().and_then(|transformer| {
            Denoising::new(&self.backend, &transformer, config, request, team)?.run(progress)
        });
        self.told(denoised)
    }

    /// Decodes a window: 8 (F - 1) + 1 pictures.
    pub fn decode(&self, latents: &Latents, request: &DecodeRequest) -> Result<Video> {
        self.decode_from(latents, request, 0)
    }

    fn decode_from(
        &self,
        latents: &Latents,
        request: &DecodeRequest,
        first: usize,
    ) -> Result<Video> {
        let (b, team, config) = (&self.backend, self.team.as_ref(), &self.parts.config);
        self.announce(|| Call::Decode {
            latents: latents.clone(),
            request: request.clone(),
            first,
        })?;
        let video = self.decoder().and_then(|decoder| {
            pipeline::decode(b, team, &decoder, config, latents, request, first)
        });
        self.told(video)
    }

    /// The last `tail_frames` (8k + 1) pictures of a window, decoded from its last k + 1 latents
    /// and at most [`pipeline::TAIL_HALO`] before them.
    pub fn decode_tail(
        &self,
        latents: &Latents,
        request: &DecodeRequest,
        tail_frames: usize,
    ) -> Result<Video> {
        let first = pipeline::tail_start(&self.parts.config, latents, tail_frames)?;
        let video = self.decode_from(latents, request, first)?;
        Ok(video.last(tail_frames))
    }

    /// Encodes 8k + 1 pictures, sides multiples of 32, to k + 1 normalised latents.
    pub fn encode(&self, pictures: &Pictures) -> Result<Encoded> {
        self.announce(|| Call::Encode(pictures.clone()))?;
        let (config, team) = (&self.parts.config, self.team.as_ref());
        let encoded = self
            .encoder()
            .and_then(|encoder| pipeline::encode(&self.backend, team, &encoder, config, pictures));
        self.told(encoded)
    }

    /// Latents of twice the sides, with the statistics of these: what the second pass of a
    /// multi-scale render starts from. diffusers maps tones here (`tone_map` above 0), the
    /// official code before it decodes.
    pub fn upsample(
        &self,
        upsampler: &LatentUpsampler<B>,
        latents: &Latents,
        tone_map: f32,
    ) -> Result<Latents> {
        let b = &self.backend;
        self.announce(|| Call::Upsample {
            latents: latents.clone(),
            tone_map,
        })?;
        let parts = self.decoder().and_then(|d| Ok((d, self.encoder()?)));
        let (decoder, encoder) = self.told(parts)?;
        let z = upload(b, latents).in_part(|| "latents".into())?;
        let z = decoder.denormalise(b, &z)?;
        let normalised = |z| {
            let z = encoder.normalise(b, &z)?;
            b.download(&z).in_part(|| "latents".into())
        };
        let tokens = self.told(upsampler.upsample(b, self.team.as_ref(), &z, normalised))?;
        let (height, width) = (2 * latents.height, 2 * latents.width);
        let mut spread =
            Latents::from_tokens(&tokens, latents.channels, latents.frames, height, width);
        adain(&mut spread, latents);
        pipeline::map_tones(&mut spread.values, tone_map);
        Ok(spread)
    }
}
