//! Names of tensors. The engine asks by diffusers' names; official files, and those that ComfyUI
//! users have, are translated when they are opened. What is renamed is in the tables here, and
//! nowhere else.

/// The parts that a file can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The diffusion transformer.
    Transformer,
    /// The video autoencoder.
    Vae,
    /// The T5 encoder.
    TextEncoder,
    /// A latent upsampler.
    Upsampler,
}

/// What official and ComfyUI files put before a part's names.
const PREFIXES: [(Part, &[&str]); 4] = [
    (
        Part::Transformer,
        &["model.diffusion_model.", "diffusion_model.", "transformer."],
    ),
    (Part::Vae, &["vae."]),
    (
        Part::TextEncoder,
        &["text_encoders.t5xxl.transformer.", "text_encoder."],
    ),
    (Part::Upsampler, &["latent_upsampler."]),
];

/// Segments of a transformer's name: official, diffusers.
const TRANSFORMER_SEGMENTS: [(&str, &str); 4] = [
    ("patchify_proj", "proj_in"),
    ("adaln_single", "time_embed"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
];

/// Segments of a VAE's name: official, diffusers.
const VAE_SEGMENTS: [(&str, &str); 3] = [
    ("res_blocks", "resnets"),
    ("last_time_embedder", "time_embedder"),
    ("last_scale_shift_table", "scale_shift_table"),
];

/// Whole names of a VAE: official, diffusers.
const VAE_NAMES: [(&str, &str); 2] = [
    ("per_channel_statistics.mean-of-means", "latents_mean"),
    ("per_channel_statistics.std-of-means", "latents_std"),
];

/// Statistics that no implementation reads.
const VAE_UNREAD: &str = "per_channel_statistics.";

/// Marks that say how a file was made, and scales of activations, which are measured instead.
const UNREAD_ENDINGS: [&str; 5] = [
    "scaled_fp8",
    ".scale_input",
    ".input_scale",
    ".comfy_quant",
    "embed_tokens.weight",
];

/// Endings that the scale of an 8-bit matrix goes by, in place of `weight`.
pub(crate) const SCALE_ENDINGS: [&str; 2] = ["scale_weight", "weight_scale"];

/// How a file names the tensors of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    part: Part,
    prefix: &'static str,
    /// Index of the encoder's last official block, which diffusers calls the middle one.
    vae_last_down_block: Option<usize>,
}

impl Style {
    /// How the file with tensors `names` names those of `part`; `None` when it has none of them.
    pub fn detect<'a>(part: Part, names: impl Iterator<Item = &'a str> + Clone) -> Option<Self> {
        let prefixes = PREFIXES.iter().find(|(p, _)| *p == part)?.1;
        let with = |prefix: &&&'static str| names.clone().any(|name| name.starts_with(**prefix));
        let prefix = prefixes.iter().find(with).copied().unwrap_or("");
        let own = names.filter_map(move |name| name.strip_prefix(prefix));
        if !own.clone().any(|name| is_of(part, name)) {
            return None;
        }
        let is_official = part == Part::Vae && own.clone().any(|n| n.contains(".res_blocks."));
        let index = |name: &str| {
            name.strip_prefix("encoder.down_blocks.")?
                .split('.')
                .next()?
                .parse()
                .ok()
        };
        let last = own.filter_map(index).max();
        Some(Self {
            part,
            prefix,
            vae_last_down_block: last.filter(|_| is_official),
        })
    }

    /// The name by which the engine asks for tensor `name`; `None` when it belongs to another part
    /// or is never read.
    pub fn canonical(&self, name: &str) -> Option<String> {
        let is_others = |(part, prefixes): &(Part, &[&str])| {
            *part != self.part && prefixes.iter().any(|prefix| name.starts_with(prefix))
        };
        if self.prefix.is_empty() && PREFIXES.iter().any(is_others) {
            return None;
        }
        let name = name.strip_prefix(self.prefix)?;
        if UNREAD_ENDINGS.iter().any(|ending| name.ends_with(ending))
            && name != "encoder.embed_tokens.weight"
        {
            return None;
        }
        match self.part {
            Part::Transformer => Some(renamed(name, &TRANSFORMER_SEGMENTS)),
            Part::TextEncoder => self.text_name(name),
            Part::Upsampler => Some(name.to_owned()),
            Part::Vae => self.vae_name(name),
        }
    }

    /// T5 shares its table of embeddings between encoder and decoder: files have either name.
    fn text_name(&self, name: &str) -> Option<String> {
        let name = match name {
            "encoder.embed_tokens.weight" => "shared.weight",
            name => name,
        };
        let is_encoders = name == "shared.weight" || name.starts_with("encoder.");
        is_encoders.then(|| name.to_owned())
    }

    fn vae_name(&self, name: &str) -> Option<String> {
        if let Some((_, to)) = VAE_NAMES.iter().find(|(from, _)| *from == name) {
            return Some((*to).to_owned());
        }
        if name.starts_with(VAE_UNREAD) {
            return None;
        }
        let name = renamed(name, &VAE_SEGMENTS);
        let Some(last) = self.vae_last_down_block else {
            return Some(name);
        };
        Some(
            block(&name, "encoder.down_blocks.", "downsamplers", |i| match i {
                i if i == last => Place::Middle,
                i if i % 2 == 0 => Place::Block(i / 2),
                i => Place::Resampler(i / 2),
            })
            .or_else(|| {
                block(&name, "decoder.up_blocks.", "upsamplers", |i| match i {
                    0 => Place::Middle,
                    i if i % 2 == 0 => Place::Block(i / 2 - 1),
                    i => Place::Resampler(i / 2),
                })
            })
            .unwrap_or(name),
        )
    }
}

/// Where an official block is in diffusers' nesting.
enum Place {
    Middle,
    Block(usize),
    Resampler(usize),
}

/// Official files list blocks and resamplers one after the other; diffusers nests them.
fn block(
    name: &str,
    list: &str,
    resampler: &str,
    place: impl Fn(usize) -> Place,
) -> Option<String> {
    let (index, rest) = name.strip_prefix(list)?.split_once('.')?;
    let side = list.split('.').next()?;
    Some(match place(index.parse().ok()?) {
        Place::Middle => format!("{side}.mid_block.{rest}"),
        Place::Block(i) => format!("{list}{i}.{rest}"),
        Place::Resampler(i) => format!("{list}{i}.{resampler}.0.{rest}"),
    })
}

fn renamed(name: &str, segments: &[(&str, &str)]) -> String {
    let segment = |segment: &str| -> String {
        let found = segments.iter().find(|(from, _)| *from == segment);
        found.map_or(segment, |(_, to)| to).to_owned()
    };
    name.split('.').map(segment).collect::<Vec<_>>().join(".")
}

/// Whether `name`, without its prefix, belongs to `part`.
fn is_of(part: Part, name: &str) -> bool {
    match part {
        Part::Transformer => name.starts_with("transformer_blocks."),
        Part::Vae => name.starts_with("decoder.conv_in."),
        Part::TextEncoder => name.starts_with("encoder.block."),
        Part::Upsampler => name.starts_with("initial_conv."),
    }
}

/// The transformer layer that a LoRA names: the engine's name for it.
pub(crate) fn transformer_layer(name: &str) -> String {
    renamed(name, &TRANSFORMER_SEGMENTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(part: Part, names: &[&str]) -> Vec<Option<String>> {
        let style = Style::detect(part, names.iter().copied()).expect("the part is there");
        names.iter().map(|name| style.canonical(name)).collect()
    }

    fn check(part: Part, pairs: &[(&str, &str)]) {
        let names: Vec<&str> = pairs.iter().map(|(name, _)| *name).collect();
        for ((name, expected), found) in pairs.iter().zip(canonical(part, &names)) {
            assert_eq!(found.as_deref().unwrap_or(""), *expected, "{name}");
        }
    }

    #[test]
    fn official_transformer_names_are_those_of_diffusers() {
        let prefix = "model.diffusion_model.";
        let pairs = [
            ("patchify_proj.weight", "proj_in.weight"),
            (
                "adaln_single.emb.timestep_embedder.linear_1.bias",
                "time_embed.emb.timestep_embedder.linear_1.bias",
            ),
            (
                "transformer_blocks.3.attn1.q_norm.weight",
                "transformer_blocks.3.attn1.norm_q.weight",
            ),
            (
                "transformer_blocks.3.attn2.to_out.0.scale_weight",
                "transformer_blocks.3.attn2.to_out.0.scale_weight",
            ),
            ("transformer_blocks.3.attn2.to_q.scale_input", ""),
            ("scaled_fp8", ""),
            ("scale_shift_table", "scale_shift_table"),
        ];
        check(Part::Transformer, &pairs);
        let prefixed: Vec<(String, &str)> = pairs
            .iter()
            .map(|(a, b)| (format!("{prefix}{a}"), *b))
            .collect();
        let mut prefixed: Vec<(&str, &str)> =
            prefixed.iter().map(|(a, b)| (a.as_str(), *b)).collect();
        prefixed.push(("vae.decoder.conv_in.conv.weight", ""));
        check(Part::Transformer, &prefixed);
    }

    #[test]
    fn official_vae_blocks_are_nested_as_in_diffusers() {
        check(
            Part::Vae,
            &[
                (
                    "vae.decoder.conv_in.conv.weight",
                    "decoder.conv_in.conv.weight",
                ),
                (
                    "vae.decoder.up_blocks.0.res_blocks.1.conv1.conv.weight",
                    "decoder.mid_block.resnets.1.conv1.conv.weight",
                ),
                (
                    "vae.decoder.up_blocks.0.time_embedder.timestep_embedder.linear_1.weight",
                    "decoder.mid_block.time_embedder.timestep_embedder.linear_1.weight",
                ),
                (
                    "vae.decoder.up_blocks.1.conv.conv.bias",
                    "decoder.up_blocks.0.upsamplers.0.conv.conv.bias",
                ),
                (
                    "vae.decoder.up_blocks.6.res_blocks.0.scale_shift_table",
                    "decoder.up_blocks.2.resnets.0.scale_shift_table",
                ),
                (
                    "vae.decoder.last_scale_shift_table",
                    "decoder.scale_shift_table",
                ),
                (
                    "vae.encoder.down_blocks.0.res_blocks.0.conv1.conv.weight",
                    "encoder.down_blocks.0.resnets.0.conv1.conv.weight",
                ),
                (
                    "vae.encoder.down_blocks.7.conv.conv.weight",
                    "encoder.down_blocks.3.downsamplers.0.conv.conv.weight",
                ),
                (
                    "vae.encoder.down_blocks.8.res_blocks.1.conv2.conv.bias",
                    "encoder.mid_block.resnets.1.conv2.conv.bias",
                ),
                ("vae.per_channel_statistics.std-of-means", "latents_std"),
                ("vae.per_channel_statistics.channel", ""),
                ("model.diffusion_model.scale_shift_table", ""),
            ],
        );
        check(
            Part::Vae,
            &[
                ("decoder.conv_in.conv.weight", "decoder.conv_in.conv.weight"),
                (
                    "encoder.down_blocks.1.resnets.0.conv1.conv.weight",
                    "encoder.down_blocks.1.resnets.0.conv1.conv.weight",
                ),
                ("latents_mean", "latents_mean"),
            ],
        );
    }

    #[test]
    fn t5_is_found_under_any_of_its_names() {
        check(
            Part::TextEncoder,
            &[
                (
                    "encoder.block.0.layer.0.SelfAttention.q.weight",
                    "encoder.block.0.layer.0.SelfAttention.q.weight",
                ),
                ("encoder.embed_tokens.weight", "shared.weight"),
                ("decoder.block.0.layer.0.SelfAttention.q.weight", ""),
            ],
        );
        let upsampler = ["initial_conv.weight"].into_iter();
        assert!(Style::detect(Part::Transformer, upsampler.clone()).is_none());
        assert!(Style::detect(Part::Upsampler, upsampler).is_some());
    }
}
