//! A file of 13 billion weights is ready at once. Alone in its process, because memory is measured.

mod common;

use common::backend;
use common::manifest::{Row, manifest, official_folder};
use longtake_ltx::Model;

/// Anonymous memory of this process in bytes: what is resident beyond mapped files.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .expect("a figure");
    kib.parse::<u64>().expect("a number") * 1024
}

#[test]
fn a_model_of_13_billion_weights_is_ready_without_being_copied() {
    for (name, layers, width, count) in [
        ("ltxv-13b-0.9.8", 48, 4096, 13_042_569_344),
        ("ltxv-2b-0.9.8", 28, 2048, 1_923_385_472),
    ] {
        let (_, rows) = manifest(&format!("{name}.txt"));
        let of_transformer = |row: &&Row| row.official.starts_with("model.diffusion_model.");
        let sizes = rows
            .iter()
            .filter(of_transformer)
            .map(|row| row.shape.iter().product::<usize>());
        assert_eq!(sizes.sum::<usize>(), count);

        let dir = tempfile::tempdir().expect("folder");
        official_folder(dir.path(), name);
        let before = anonymous_bytes();
        let file = dir.path().join(format!("{name}.safetensors"));
        let start = std::time::Instant::now();
        let model = Model::load(&file, backend(2)).expect("loads");
        let seconds = start.elapsed().as_secs_f64();
        let grown = anonymous_bytes().saturating_sub(before);
        println!(
            "{name}: ready in {seconds:.2} s with {} MiB beyond the file",
            grown >> 20
        );
        assert!(grown <= 200 << 20, "{name}: {} MiB", grown >> 20);
        let config = model.config();
        assert_eq!(
            (
                config.transformer.num_layers,
                config.transformer.inner_dim()
            ),
            (layers, width)
        );
        assert_eq!(config.vae.block_out_channels, [128, 256, 512, 1024, 2048]);
        assert_eq!(
            (config.text_encoder.d_model, config.text_encoder.d_kv),
            (4096, 64)
        );
        // In the folder it is the only checkpoint, so the folder will do.
        assert!(longtake_ltx::check_model(dir.path()).is_ok());
    }
}
