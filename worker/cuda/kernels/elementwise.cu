// Small operations on small tensors: latents, tables, text. One element a thread, f32 arithmetic.
// None of them is on a path that a step of a large model spends time in.
//
// OP 0: o = x                               (conversion)
// OP 1: o = silu(x)
// OP 2: o = x * y
// OP 3: o = a * x + b * y
// OP 4: o = x * y[c] + z[c]                 channel affine, c = i % width
// OP 5: o = x + f[index[i / width]] * y     f [T] f32
// OP 6: o[t, r, d] = x[t, r, d] + y[r, d]; x [T, width] repeats over the rows when width < rows D
// OP 7: o[row, c] = x[row, c] for c < width out of `stride` channels
// OP 8: rope pair: o (u32) = half2(x, y)
//
// Defines: OP, X_F32, Y_F32, O_F32, NAME.

static __device__ __forceinline__ float at(const void* p, u64 i, bool f32) {
    return f32 ? static_cast<const float*>(p)[i] : bf2f(static_cast<const u16*>(p)[i]);
}

extern "C" __global__ __launch_bounds__(256) void NAME(
    const void* x, const void* y, const float* z, const u32* index, void* o, float a, float b,
    u64 count, u64 width, u64 stride) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    float r;
#if OP == 0
    r = at(x, i, X_F32);
#elif OP == 1
    r = silu(at(x, i, X_F32));
#elif OP == 2
    r = at(x, i, X_F32) * at(y, i, Y_F32);
#elif OP == 3
    r = a * at(x, i, X_F32) + b * at(y, i, Y_F32);
#elif OP == 4
    r = at(x, i, X_F32) * at(y, i % width, Y_F32) + z[i % width];
#elif OP == 5
    r = at(x, i, X_F32) + z[index[i / width]] * at(y, i, Y_F32);
#elif OP == 6
    // `stride` = R D; x has `width` values a set.
    r = at(x, i / stride * width + i % stride % width, X_F32) + at(y, i % stride, Y_F32);
#elif OP == 7
    r = at(x, i / width * stride + i % width, X_F32);
#else
    static_cast<u32*>(o)[i] = f2half2(at(x, i, X_F32), at(y, i, Y_F32));
    return;
#endif
    if (O_F32) static_cast<float*>(o)[i] = r;
    else static_cast<u16*>(o)[i] = f2bf(r);
}
