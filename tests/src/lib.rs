//! What the tests of whole processes share: running the product, and judging its films.

pub mod collector;
pub mod container;
pub mod detect;
pub mod farm;
pub mod held;
pub mod local;
pub mod network;
pub mod product;
pub mod prompts;
pub mod proxy;
pub mod scenario;
pub mod services;
