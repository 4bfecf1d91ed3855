//! The backend's operations: what they leave alone, what undoes what, what they refuse.
//!
//! That their values are those of the reference is tested with the model.

use longtake_cpu::{CpuBackend, CpuTensor, Isa};
use longtake_tensor::{
    Activation, AttentionBias, Backend, ChannelModulation, DType, Gate, Loader, Modulation, Rope,
    Shape, Tensor, TimePadding, VaeOps, WeightView,
};

fn backend() -> CpuBackend {
    CpuBackend::new(2, Isa::detect()).expect("the detected level is available")
}

/// A tensor of small distinct values.
fn ramp(b: &CpuBackend, dims: &[usize]) -> CpuTensor {
    let shape = Shape::new(dims);
    let values: Vec<f32> = (0..shape.count())
        .map(|i| (i as f32 * 0.37).sin())
        .collect();
    b.upload(shape, &values).expect("upload")
}

fn weight_bytes(count: usize) -> Vec<u8> {
    (0..count)
        .flat_map(|i| ((i as f32 * 0.71).cos() * 0.2).to_le_bytes())
        .collect()
}

#[test]
fn shared_values_are_copied_before_they_change() {
    let b = backend();
    let x = ramp(&b, &[6, 4]);
    let before = x.values().to_vec();
    let sum = b.gated_residual(x.clone(), &x, None).expect("sum");
    assert_eq!(x.values(), before);
    assert!(sum.values().iter().zip(&before).all(|(s, v)| *s == 2.0 * v));
}

#[test]
fn gates_and_factors_follow_the_index() {
    let b = backend();
    let (x, y) = (
        ramp(&b, &[3, 2]),
        b.upload(Shape::from([3, 2]), &[1.0; 6]).expect("y"),
    );
    let table = b
        .upload(Shape::from([2, 2, 2]), &[9., 9., 1., 2., 9., 9., 3., 4.])
        .expect("table");
    let index = vec![1, 0, 1];
    let gate = Gate {
        table: &table,
        index: &index,
        row: 1,
    };
    let sum = b.gated_residual(x.clone(), &y, Some(&gate)).expect("sum");
    let added: Vec<f32> = sum
        .values()
        .iter()
        .zip(x.values())
        .map(|(s, x)| (s - x).round())
        .collect();
    assert_eq!(added, [3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
    let moved = b
        .add_scaled_tokens(x.clone(), &y, &[0.0, -1.0], &index)
        .expect("moved");
    let added: Vec<f32> = moved
        .values()
        .iter()
        .zip(x.values())
        .map(|(s, x)| (s - x).round())
        .collect();
    assert_eq!(added, [-1.0, -1.0, 0.0, 0.0, -1.0, -1.0]);
}

#[test]
fn patches_come_back() {
    let b = backend();
    let x = ramp(&b, &[2, 8, 4, 3]);
    let folded = b.patchify(&x, 4).expect("patches");
    assert_eq!(folded.shape().dims(), [2, 2, 1, 48]);
    // Channels are (c, column, row): the second is one row down, the fifth one column right.
    assert_eq!(folded.values()[1], x.values()[4 * 3]);
    assert_eq!(folded.values()[4], x.values()[3]);
    assert_eq!(
        b.unpatchify(&folded, 4).expect("pictures").values(),
        x.values()
    );
}

#[test]
fn depth_and_space_undo_each_other() {
    let b = backend();
    let x = ramp(&b, &[3, 2, 2, 16]);
    let spread = b
        .depth_to_space_add(&x, None, [2, 2, 2], true)
        .expect("spread");
    assert_eq!(spread.shape().dims(), [5, 4, 4, 2]);
    // The first frame was dropped: without its pair the rest starts at the second latent frame.
    let later = b.repeat_first_frame(&spread, 1).expect("later");
    let none = b
        .upload(later.shape(), &vec![0.0; later.shape().count()])
        .expect("none");
    let folded = b
        .space_to_depth_add(&later, &none, [2, 2, 2])
        .expect("folded");
    let frame = 2 * 2 * 16;
    assert_eq!(folded.values()[frame..], x.values()[frame..]);
}

#[test]
fn skips_are_repeated_and_averaged() {
    let b = backend();
    let zeros = |dims: &[usize]| b.upload(Shape::new(dims), &vec![0.0; dims.iter().product()]);
    let x = ramp(&b, &[1, 1, 1, 4]);
    let spread = b.depth_to_space_add(&zeros(&[1, 1, 1, 8]).expect("x"), Some(&x), [1, 2, 2], true);
    // One skipped channel for two: [1, 2, 2, 2], each cell twice the same.
    let twice: Vec<f32> = x.values().iter().flat_map(|v| [*v, *v]).collect();
    assert_eq!(spread.expect("spread").values(), twice);
    let skip = b
        .upload(Shape::from([1, 2, 1, 2]), &[1.0, 2.0, 3.0, 4.0])
        .expect("skip");
    let folded = b.space_to_depth_add(&zeros(&[1, 2, 1, 1]).expect("x"), &skip, [1, 2, 1]);
    // Gathered (c, row): 1 3 2 4; averaged in pairs.
    assert_eq!(folded.expect("folded").values(), [2.0, 3.0]);
}

#[test]
fn pictures_survive_the_way_there_and_back() {
    let b = backend();
    let rgb: Vec<u8> = (0..2 * 8 * 8 * 3).map(|i| (i * 7 % 256) as u8).collect();
    let x = b.upload_rgb8(2, 8, 8, &rgb).expect("pictures");
    let samples = |x| {
        let mut rgb = vec![7];
        b.download_rgb8(x, &mut rgb).expect("samples");
        assert_eq!(rgb.remove(0), 7, "samples are appended");
        rgb
    };
    assert_eq!(samples(&x), rgb);
    let wild = b
        .upload(Shape::from([1, 1, 1, 3]), &[-7.0, f32::NAN, 7.0])
        .expect("wild");
    assert_eq!(samples(&wild), [0, 0, 255]);
}

#[test]
fn operands_that_do_not_fit_are_refused_by_name() {
    let b = backend();
    let (x, y) = (ramp(&b, &[4, 6]), ramp(&b, &[4, 5]));
    let cells = ramp(&b, &[1, 3, 3, 6]);
    let bytes = weight_bytes(4 * 5 * 27);
    let w = WeightView::new(Shape::from([4, 5]), DType::F32, &bytes[..80], None).expect("weight");
    let matrix = b.matrix(&w, None).expect("matrix");
    let k =
        WeightView::new(Shape::from([4, 5, 3, 3, 3]), DType::F32, &bytes, None).expect("kernel");
    let conv = b.conv(&k, None).expect("conv");
    let table = ramp(&b, &[1, 2, 6]);
    let far = vec![0, 0, 0, 1];
    let rope = Rope {
        cos: ramp(&b, &[4, 2]),
        sin: ramp(&b, &[4, 3]),
    };
    let modulation = Modulation {
        table: &table,
        index: &far,
        shift: 0,
        scale: 1,
    };
    let channel = ChannelModulation {
        table: &y,
        shift: 0,
        scale: 1,
    };
    let none = AttentionBias::NONE;
    let cases: Vec<(&str, longtake_tensor::Result<CpuTensor>)> = vec![
        ("linear", b.linear(&x, &matrix, Activation::None)),
        ("rms_norm", b.rms_norm(&x, &y, 1e-6)),
        (
            "rms_norm_modulate",
            b.rms_norm_modulate(&x, 1e-6, &modulation),
        ),
        (
            "qk_norm_rope",
            b.qk_norm_rope(x.clone(), &ramp(&b, &[6]), 1e-6, Some(&rope)),
        ),
        ("attention", b.attention(&x, &y, &y, 2, 1.0, &none)),
        ("attention", b.attention(&x, &x, &x, 4, 1.0, &none)),
        ("gated_residual", b.gated_residual(x.clone(), &y, None)),
        ("multiply", b.multiply(&x, &y)),
        ("add_table", b.add_table(&x, &y)),
        ("weighted_sum", b.weighted_sum(&x, 1.0, &y, 1.0)),
        ("channel_affine", b.channel_affine(&x, &y, &y)),
        ("reshape", b.reshape(&x, Shape::from([5, 5]))),
        ("first_channels", b.first_channels(&x, 7)),
        ("conv3d", b.conv3d(&cells, &conv, TimePadding::Causal)),
        ("conv3d", b.conv3d(&x, &conv, TimePadding::Causal)),
        (
            "pixel_norm_silu",
            b.pixel_norm_silu(&cells, 1e-8, Some(&channel)),
        ),
        (
            "depth_to_space_add",
            b.depth_to_space_add(&cells, None, [2, 2, 2], true),
        ),
        (
            "space_to_depth_add",
            b.space_to_depth_add(&cells, &cells, [1, 2, 2]),
        ),
        ("patchify", b.patchify(&cells, 2)),
        ("unpatchify", b.unpatchify(&cells, 2)),
        ("upload", b.upload(Shape::from([2]), &[1.0])),
        ("upload_rgb8", b.upload_rgb8(1, 2, 2, &[0; 3])),
    ];
    for (op, result) in cases {
        let error = result.expect_err(op).to_string();
        assert!(error.starts_with(op), "{op}: {error}");
    }
    assert!(b.matrix(&k, None).is_err() && b.conv(&w, None).is_err());
}
