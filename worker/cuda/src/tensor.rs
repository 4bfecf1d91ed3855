//! Activations on the device, some of them not computed yet.
//!
//! An operation whose result the next one can take on in the same pass over memory leaves only a note
//! ([`Pending`]) of what is to be done. Whoever needs the values decides how they are written: a
//! linear layer in 8 bits has them quantised by the kernel that produces them, a convolution has them
//! padded. So the model stays as the reference has it, and no value is written that nobody reads.

use crate::arena::Block;
use crate::device::Ready;
use longtake_tensor::{Shape, Tensor};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    Bf16,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    pub fn is_f32(self) -> bool {
        self == Self::F32
    }
}

/// Values in device memory, dense and row-major.
pub(crate) struct Buffer {
    pub block: Block,
    pub element: Element,
}

/// E4M3 values and a scale for each row.
pub(crate) struct Quantised {
    pub values: Block,
    pub scales: Block,
}

/// 8-bit samples of pictures.
pub(crate) struct Samples {
    pub block: Block,
    /// When they are there.
    pub ready: Ready,
}

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    Rms,
    Layer,
}

/// A row of a table that tokens pick by index.
#[derive(Clone)]
pub(crate) struct TableRow {
    pub table: CudaTensor,
    pub index: Arc<Block>,
    pub row: usize,
}

/// What is to be done for the values of a tensor.
#[derive(Clone)]
pub(crate) enum Pending {
    /// Norm, then scale and shift by token.
    Modulated {
        x: CudaTensor,
        norm: Norm,
        eps: f32,
        shift: TableRow,
        scale_row: usize,
    },
    /// Rms norm, then a weight by channel.
    Weighted {
        x: CudaTensor,
        weight: CudaTensor,
        eps: f32,
    },
    /// `x + y`, or `x + gate y`.
    Residual {
        x: CudaTensor,
        y: CudaTensor,
        gate: Option<TableRow>,
    },
    /// An activation: 1 GELU, 2 SiLU.
    Activated { x: CudaTensor, act: u32 },
    /// Norm over all heads and rotation.
    Rotated {
        x: CudaTensor,
        weight: CudaTensor,
        eps: f32,
        rope: Option<(CudaTensor, CudaTensor)>,
    },
    /// Norm over channels, modulation, SiLU.
    PixelNorm {
        x: CudaTensor,
        eps: f32,
        /// Shift and scale by channel.
        modulation: Option<(CudaTensor, usize, usize)>,
    },
    /// Frames of `x` behind those of `before`.
    Joined { before: CudaTensor, x: CudaTensor },
    /// Cells to pixels.
    Unpatched { x: CudaTensor, patch: usize },
}

/// What is known of a tensor's values.
#[derive(Default)]
pub(crate) struct State {
    pub values: Option<Arc<Buffer>>,
    /// The same in bf16, where `values` is f32.
    pub narrow: Option<Arc<Buffer>>,
    pub quantised: Option<Arc<Quantised>>,
    pub pending: Option<Pending>,
    /// The same as 8-bit samples, on their way.
    pub samples: Option<Arc<Samples>>,
    /// Packed (cos, sin), kept with the cosines.
    pub rope: Option<Arc<Block>>,
}

/// A tensor's values, shared by its clones.
pub(crate) struct Node {
    /// Sizes that it was made with; a view may see others.
    pub shape: Shape,
    state: Mutex<State>,
    /// A copy of a small tensor that came from the host.
    pub host: Option<Vec<f32>>,
}

impl Node {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// An activation; clones share it.
#[derive(Clone)]
pub struct CudaTensor {
    shape: Shape,
    pub(crate) node: Arc<Node>,
}

impl CudaTensor {
    fn with(shape: Shape, state: State, host: Option<Vec<f32>>) -> Self {
        let node = Node {
            shape,
            state: Mutex::new(state),
            host,
        };
        Self {
            shape,
            node: Arc::new(node),
        }
    }

    /// A tensor whose values are there.
    pub(crate) fn ready(shape: Shape, block: Block, element: Element) -> Self {
        Self::kept(shape, block, element, None)
    }

    /// The same, with a copy on the host.
    pub(crate) fn kept(
        shape: Shape,
        block: Block,
        element: Element,
        host: Option<Vec<f32>>,
    ) -> Self {
        debug_assert!(block.size() >= shape.count() * element.bytes());
        let state = State {
            values: Some(Arc::new(Buffer { block, element })),
            ..State::default()
        };
        Self::with(shape, state, host)
    }

    /// A tensor whose values are there in 8 bits.
    pub(crate) fn in_8_bits(shape: Shape, quantised: Quantised) -> Self {
        let state = State {
            quantised: Some(Arc::new(quantised)),
            ..State::default()
        };
        Self::with(shape, state, None)
    }

    /// A tensor whose values are to be computed.
    pub(crate) fn pending(shape: Shape, pending: Pending) -> Self {
        let state = State {
            pending: Some(pending),
            ..State::default()
        };
        Self::with(shape, state, None)
    }

    /// The same values seen in another shape of as many elements.
    pub(crate) fn seen_as(&self, shape: Shape) -> Self {
        debug_assert_eq!(shape.count(), self.shape.count());
        Self {
            shape,
            node: Arc::clone(&self.node),
        }
    }
}

impl Tensor for CudaTensor {
    fn shape(&self) -> Shape {
        self.shape
    }
}

impl fmt::Debug for CudaTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaTensor{}", self.shape)
    }
}

/// A linear layer's weight `[N, K]`.
pub(crate) enum Weight {
    Bf16(Block),
    E4m3 { values: Block, scales: Block },
}

/// A linear layer.
pub struct CudaMatrix {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) weight: Weight,
    /// bf16 `[N]`.
    pub(crate) bias: Option<Block>,
    /// What LoRAs add.
    pub(crate) branches: Vec<Branch>,
}

/// `up (down x)`, added to what a linear layer computes.
pub(crate) struct Branch {
    /// R, padded with zeros to a multiple of 16.
    pub rank: usize,
    /// bf16 `[R, K]`.
    pub down: Block,
    /// bf16 `[N, R]`, its strength multiplied in.
    pub up: Block,
}

/// A convolution, channels padded to multiples of 8.
pub struct CudaConv {
    pub(crate) n: usize,
    pub(crate) c: usize,
    /// `n` and `c` with padding.
    pub(crate) n_padded: usize,
    pub(crate) c_padded: usize,
    pub(crate) size: [usize; 3],
    /// bf16 `[n_padded, kt, kh, kw, c_padded]`.
    pub(crate) kernel: Block,
    /// f32 `[n_padded]`.
    pub(crate) bias: Block,
}

/// Small integers, one a token.
pub struct CudaIndex {
    pub(crate) block: Arc<Block>,
    pub(crate) count: usize,
    pub(crate) most: u32,
}
