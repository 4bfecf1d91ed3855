//! The kernels: which source with which definitions, and under which name.

use std::fmt;

/// A kernel source under `kernels/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Residual, norm, modulation and quantisation of token rows.
    Rows,
    /// Norm and rotation of queries and keys.
    Qk,
    /// Small operations.
    Elementwise,
    /// A linear layer of a few rows.
    Skinny,
    /// Norm over channels of VAE activations.
    Norms,
    /// Norm over groups of channels.
    GroupNorm,
    /// Moving values of VAE activations.
    Layout,
    /// One factor for a whole tensor.
    TensorScale,
    /// Attention beside cuDNN's.
    Attention,
}

impl Source {
    fn text(self) -> &'static str {
        match self {
            Self::Rows => include_str!("../kernels/rows.cu"),
            Self::Qk => include_str!("../kernels/qk.cu"),
            Self::Elementwise => include_str!("../kernels/elementwise.cu"),
            Self::Skinny => include_str!("../kernels/skinny.cu"),
            Self::Norms => include_str!("../kernels/norms.cu"),
            Self::GroupNorm => include_str!("../kernels/group_norm.cu"),
            Self::Layout => include_str!("../kernels/layout.cu"),
            Self::TensorScale => include_str!("../kernels/tensor_scale.cu"),
            Self::Attention => include_str!("../kernels/attention.cu"),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A kernel: a source and the definitions that make one kernel of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KernelSpec {
    source: Source,
    defines: Vec<(&'static str, u32)>,
}

impl KernelSpec {
    /// A kernel of `source` with these definitions.
    pub fn new(source: Source, defines: &[(&'static str, u32)]) -> Self {
        Self {
            source,
            defines: defines.to_vec(),
        }
    }

    /// Its source, with what all sources share in front.
    pub fn source(&self) -> String {
        format!(
            "{}\n{}",
            include_str!("../kernels/common.cuh"),
            self.source.text()
        )
    }

    /// `NAME=value` of every definition, `NAME` among them where the source has one kernel.
    pub fn defines(&self) -> Vec<String> {
        let mut all: Vec<String> = self
            .defines
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        all.push(format!("NAME={}", self.name()));
        all
    }

    /// A name that says which kernel it is, also in a profiler.
    pub fn name(&self) -> String {
        let mut name = format!("{}", self.source).to_lowercase();
        for (define, value) in &self.defines {
            name.push_str(&format!("_{}{value}", define.to_lowercase()));
        }
        name
    }
}

/// What of a row kernel's work is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowKernel {
    /// Channels.
    pub d: usize,
    /// Whether the stream is f32 (else bf16).
    pub x_f32: bool,
    /// Activation of the input: 0 none, 1 GELU, 2 SiLU.
    pub act: u32,
    /// 0 nothing is added, 1 `x + y`, 2 `x + gate y`.
    pub residual: u32,
    /// 0 none, 1 rms, 2 layer.
    pub norm: u32,
    /// 0 none, 1 a table by token, 2 one weight a channel.
    pub modulation: u32,
    /// 0 nothing but the stream, 1 bf16, 2 e4m3 with a scale a row.
    pub out: u32,
}

/// Threads of a row kernel over `d` channels: two vectors of eight each, if there are so many.
pub(crate) fn row_threads(d: usize) -> u32 {
    let vectors = (d / 8).div_ceil(if d > 8192 { 4 } else { 2 });
    (vectors.next_multiple_of(32)).clamp(32, 512) as u32
}

/// Threads of a kernel over rows that a multiprocessor shall hold: the fewer, the more registers has each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crowd {
    /// 64 registers.
    Full = 1024,
    /// 80.
    Thinner = 768,
    /// 128.
    Half = 512,
}

impl Crowd {
    /// Of a norm with rotation of so many tensors.
    pub fn of_qk(tensors: u32, e4m3: bool) -> Self {
        match (tensors, e4m3) {
            (2, true) => Self::Half,
            (2, false) => Self::Thinner,
            _ => Self::Full,
        }
    }
}

/// Blocks of a kernel over rows of `d` channels that a multiprocessor shall hold.
pub(crate) fn row_blocks(d: usize, crowd: Crowd) -> u32 {
    (crowd as u32 / row_threads(d)).clamp(1, 16)
}

impl RowKernel {
    /// How many threads of it a multiprocessor shall hold.
    pub(crate) fn crowd(&self) -> Crowd {
        match self.residual == 2 && self.modulation == 1 {
            true => Crowd::Thinner,
            false => Crowd::Full,
        }
    }

    /// Its kernel.
    pub fn spec(&self) -> KernelSpec {
        KernelSpec::new(
            Source::Rows,
            &[
                ("D", self.d as u32),
                ("THREADS", row_threads(self.d)),
                ("BLOCKS", row_blocks(self.d, self.crowd())),
                ("X_F32", u32::from(self.x_f32)),
                ("ACT", self.act),
                ("RES", self.residual),
                ("NORM", self.norm),
                ("MOD", self.modulation),
                ("OUT", self.out),
            ],
        )
    }
}

/// Norm and rotation of one tensor or of query and key together; in 8 bits for heads of so many
/// channels.
pub fn qk_spec(d: usize, tensors: u32, rope: bool, e4m3_heads: Option<usize>) -> KernelSpec {
    let defines = [
        ("D", d as u32),
        ("THREADS", row_threads(d)),
        (
            "BLOCKS",
            row_blocks(d, Crowd::of_qk(tensors, e4m3_heads.is_some())),
        ),
        ("TENSORS", tensors),
        ("ROPE", u32::from(rope)),
        ("E4M3", u32::from(e4m3_heads.is_some())),
        ("HD", e4m3_heads.unwrap_or(8) as u32),
    ];
    KernelSpec::new(Source::Qk, &defines)
}

/// A small operation, as numbered in its source.
pub fn elementwise_spec(op: u32, x_f32: bool, y_f32: bool, o_f32: bool) -> KernelSpec {
    let defines = [
        ("OP", op),
        ("X_F32", u32::from(x_f32)),
        ("Y_F32", u32::from(y_f32)),
        ("O_F32", u32::from(o_f32)),
    ];
    KernelSpec::new(Source::Elementwise, &defines)
}

/// A linear layer of `rows` rows.
pub fn skinny_spec(e4m3: bool, act: u32, rows: usize) -> KernelSpec {
    let defines = [
        ("W_E4M3", u32::from(e4m3)),
        ("ACT", act),
        ("ROWS", rows as u32),
    ];
    KernelSpec::new(Source::Skinny, &defines)
}

/// Lanes that share a cell of `c` channels.
pub(crate) fn norm_lanes(c: usize) -> u32 {
    ((c / 8).next_power_of_two().min(32)) as u32
}

/// Norm over `c` channels.
pub fn pixel_norm_spec(c: usize, silu: bool) -> KernelSpec {
    let defines = [
        ("C", c as u32),
        ("GROUP", norm_lanes(c)),
        ("SILU", u32::from(silu)),
    ];
    KernelSpec::new(Source::Norms, &defines)
}

/// Both kernels that give a tensor one factor.
pub fn tensor_scale_spec() -> KernelSpec {
    KernelSpec::new(Source::TensorScale, &[])
}

/// Both kernels of a norm over groups of channels.
pub fn group_norm_spec() -> KernelSpec {
    KernelSpec::new(Source::GroupNorm, &[])
}

/// All kernels that move values.
pub fn layout_spec() -> KernelSpec {
    KernelSpec::new(Source::Layout, &[])
}

/// Warps of an attention block.
pub(crate) const ATTENTION_WARPS: u32 = 8;
/// Keys of an attention tile, and the padding of its rows, in values.
pub(crate) const ATTENTION_TILE: usize = 64;

/// Attention of heads of `head_dim` channels.
pub fn attention_spec(head_dim: usize, key_bias: bool, positions: bool) -> KernelSpec {
    let defines = [
        ("HD", head_dim as u32),
        ("WARPS", ATTENTION_WARPS),
        ("KEY_BIAS", u32::from(key_bias)),
        ("POSITIONS", u32::from(positions)),
    ];
    KernelSpec::new(Source::Attention, &defines)
}

/// One kernel of each kind, and on Hopper those of the known models' shapes: what a check compiles.
pub fn known_kernels(arch: crate::compile::Arch) -> Vec<KernelSpec> {
    let quantised = if arch.0 >= 89 { 2 } else { 1 };
    let mut all = vec![layout_spec(), group_norm_spec(), tensor_scale_spec()];
    let widths: &[usize] = if arch.0 == 90 {
        &[256, 2048, 4096]
    } else {
        &[4096]
    };
    for &d in widths {
        let base = RowKernel {
            d,
            x_f32: d == 256,
            act: 0,
            residual: 2,
            norm: 1,
            modulation: 1,
            out: quantised,
        };
        let variants = [
            base,
            RowKernel {
                residual: 0,
                ..base
            },
            RowKernel { out: 1, ..base },
            RowKernel {
                residual: 1,
                norm: 0,
                modulation: 0,
                ..base
            },
            RowKernel {
                residual: 0,
                norm: 0,
                modulation: 0,
                ..base
            },
            RowKernel {
                residual: 0,
                norm: 2,
                out: 1,
                ..base
            },
            RowKernel {
                residual: 1,
                modulation: 2,
                ..base
            },
            RowKernel {
                norm: 0,
                modulation: 0,
                out: 0,
                ..base
            },
            RowKernel {
                d: 4 * d,
                x_f32: false,
                act: 1,
                residual: 0,
                norm: 0,
                modulation: 0,
                ..base
            },
        ];
        all.extend(variants.iter().map(RowKernel::spec));
        for (tensors, rope) in [(1, false), (1, true), (2, true)] {
            all.push(qk_spec(d, tensors, rope, None));
        }
        if arch.0 >= 89 {
            all.push(qk_spec(d, 2, true, Some(if d == 4096 { 128 } else { 64 })));
        }
    }
    all.extend((0..=8).map(|op| elementwise_spec(op, op % 2 == 0, true, op != 1)));
    all.extend([skinny_spec(false, 2, 1), skinny_spec(quantised == 2, 0, 8)]);
    let channels: &[usize] = if arch.0 == 90 {
        &[24, 48, 128, 512, 1024, 2048]
    } else {
        &[128]
    };
    all.extend(channels.iter().map(|&c| pixel_norm_spec(c, true)));
    for head_dim in [32, 64, 128] {
        all.push(attention_spec(head_dim, true, head_dim < 128));
    }
    all
}
