//! Makes every cuDNN plan of the known models for a device that a JSON file describes: a check on a
//! machine without a GPU. `LONGTAKE_CUDA_LIBS` names the folders of cuDNN, cuBLASLt and NVRTC.
//!
//! `cargo run --release -p longtake-cuda --example plans -- DEVICE.json`

use longtake_cuda::dnn::{ConvShape, SdpaForm, SdpaShape, Target};
use std::time::Instant;

fn report(
    name: String,
    make: impl FnOnce() -> longtake_cuda::error::Result<longtake_cuda::dnn::Plan>,
) {
    let start = Instant::now();
    match make() {
        Ok(plan) => println!(
            "ok    {name}: engine {}, workspace {} bytes, {:.2} s",
            plan.engine(),
            plan.workspace_bytes(),
            start.elapsed().as_secs_f64()
        ),
        Err(error) => println!("FAIL  {name}: {error}"),
    }
}

fn main() {
    for (library, present) in longtake_cuda::libs::survey() {
        println!(
            "{} {}",
            if present { "has  " } else { "lacks" },
            library.name
        );
    }
    let path = std::env::args()
        .nth(1)
        .expect("a JSON file of device properties");
    let json = std::fs::read_to_string(&path).expect("read it");
    let target = Target::described(&json).expect("device properties");
    let attention = |heads, head_dim, lq, lk| SdpaShape {
        heads,
        head_dim,
        lq,
        lk,
    };
    for shape in [
        attention(32, 128, 5600, 5600),
        attention(32, 128, 13376, 13376),
        attention(32, 128, 13376, 256),
        attention(32, 64, 13376, 13376),
        attention(4, 64, 640, 640),
    ] {
        for form in [SdpaForm::Unified, SdpaForm::Composite, SdpaForm::Fp8] {
            report(format!("{form:?} {shape:?}"), || {
                shape.plan(&target, form, 1 << 30)
            });
        }
    }
    for (c, n, frames, height, width) in [
        (128, 1024, 16, 22, 38),
        (1024, 1024, 16, 22, 38),
        (512, 512, 31, 44, 76),
        (256, 256, 61, 88, 152),
        (128, 128, 121, 176, 304),
        (128, 48, 121, 176, 304),
        (24, 48, 121, 40, 64),
        (48, 48, 61, 20, 32),
    ] {
        for skip in [false, true] {
            let shape = ConvShape {
                frames,
                height,
                width,
                c,
                n,
                kernel: [3; 3],
                skip,
            };
            report(format!("{shape:?}"), || shape.plan(&target, 2 << 30));
        }
    }
}
