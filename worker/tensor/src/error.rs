//! What can go wrong in an operation.

use crate::shape::Shape;

/// Result of an operation.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation was given operands that do not fit, or the device failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two operands do not go together.
    #[error("{op}: {} does not go with {} ({rule})", .shapes[0], .shapes[1])]
    Mismatch {
        /// The operation.
        op: &'static str,
        /// Shapes of the two operands; boxed, so that results stay small.
        shapes: Box<[Shape; 2]>,
        /// What has to hold.
        rule: &'static str,
    },
    /// One operand is not of the kind that the operation takes.
    #[error("{op}: {shape} does not fit ({rule})")]
    Operand {
        /// The operation.
        op: &'static str,
        /// Shape of the operand.
        shape: Shape,
        /// What has to hold.
        rule: &'static str,
    },
    /// Stored bytes do not make up the tensor that they are said to be.
    #[error("{count} values of {dtype} were expected, found {found} bytes")]
    Storage {
        /// Elements that the shape asks for.
        count: usize,
        /// Their type.
        dtype: crate::DType,
        /// Bytes there are.
        found: usize,
    },
    /// Nobody wants the result any more: see [`crate::Interrupt`].
    #[error("interrupted")]
    Interrupted,
    /// A rank of a gang is lost, has given up, or does something else than this one.
    #[error("rank {rank} of {ranks} {what}")]
    Rank {
        /// Which.
        rank: usize,
        /// How many there are.
        ranks: usize,
        /// What happened to it.
        what: String,
    },
    /// The device or its library reported a failure.
    #[error("{op}: {message}")]
    Device {
        /// The operation.
        op: &'static str,
        /// What the device said.
        message: String,
    },
}

impl Error {
    /// [`Error::Mismatch`].
    pub fn mismatch(op: &'static str, left: Shape, right: Shape, rule: &'static str) -> Self {
        Self::Mismatch {
            op,
            shapes: Box::new([left, right]),
            rule,
        }
    }

    /// [`Error::Rank`].
    pub fn rank(rank: usize, ranks: usize, what: impl Into<String>) -> Self {
        Self::Rank {
            rank,
            ranks,
            what: what.into(),
        }
    }

    /// [`Error::Operand`].
    pub fn operand(op: &'static str, shape: Shape, rule: &'static str) -> Self {
        Self::Operand { op, shape, rule }
    }
}
