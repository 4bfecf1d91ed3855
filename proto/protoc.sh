#!/bin/sh
# etcd-client runs `protoc` when it is built. So that nobody has to install one, .cargo/config.toml names
# this script as PROTOC: it hands over to the installed one or else to `protoc/`, built on first use.
if command -v protoc >/dev/null 2>&1; then
    exec protoc "$@"
fi
here=$(cd "$(dirname "$0")" && pwd) || exit 1
# The flags of the build around this one are not meant for a tool that runs on this machine.
unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET RUSTFLAGS RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER
exec "${CARGO:-cargo}" run --quiet --locked --manifest-path "$here/protoc/Cargo.toml" \
    --target-dir "$here/../target/protoc" -- "$@"
