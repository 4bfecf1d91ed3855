//! Video in and out.
