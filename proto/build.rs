//! Compiles the `.proto` files with `protox`, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=longtake");
    let files = protox::compile(
        ["longtake/v1/farm.proto", "longtake/v1/models.proto"],
        ["."],
    )?;
    tonic_prost_build::configure()
        .build_transport(true)
        .compile_fds(files)?;
    Ok(())
}
