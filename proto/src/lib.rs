//! Generated types of the `longtake.v1` gRPC API. No logic lives here: conversions to and from
//! the domain types belong to whoever speaks the protocol (server, agent, cli).

/// Version 1 of the API.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("longtake.v1");
}
