// pixel_norm_silu: out = silu(x / sqrt(mean_c x^2 + eps) * (1 + scale[c]) + shift[c]) by cell, written
// where the next convolution wants it: shifted by `front` frames, the first frame repeated in front of
// itself and the last behind, so that the convolution needs no padding in time.
//
// Shapes: x [F, P, C] bf16 (P cells a frame), out [front + F + back, P, C]; scale, shift f32 [C] or null.
// GROUP lanes share a cell, each with V vectors of 8 channels; whole warps, so no barrier.
// Bytes: 4 a value. Runs at memory bandwidth.
//
// Defines: C, GROUP (a power of two up to 32), SILU, NAME. C % 8 == 0.

#define VECS (C / 8)
#define V ((VECS + GROUP - 1) / GROUP)

extern "C" __global__ __launch_bounds__(256) void NAME(
    const Vec16* x, Vec16* out, const float* scale, const float* shift, float eps, u32 cells,
    u32 cells_of_frame, int frames, int front, int back) {
    // 32 bits: a division in 64 costs as much as all the rest.
    u32 cell = blockIdx.x * (256 / GROUP) + threadIdx.x / GROUP;
    int lane = threadIdx.x % GROUP;
    bool inside = cell < cells;
    float a[8 * V];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < V; i++) {
        int v = lane + i * GROUP;
        if (!inside || v >= VECS) continue;
        unpack8(x[(u64)cell * VECS + v], a + 8 * i);
#pragma unroll
        for (int j = 8 * i; j < 8 * i + 8; j++) sum += a[j] * a[j];
    }
#pragma unroll
    for (int d = GROUP / 2; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (!inside) return;
    float factor = 1.0f / sqrtf(sum * (1.0f / C) + eps);
    int frame = (int)(cell / cells_of_frame);
    int from = frame == 0 ? 0 : frame + front;
    int to = frame + front + (frame == frames - 1 ? back : 0);
    u32 in_frame = cell - (u32)frame * cells_of_frame;
#pragma unroll
    for (int i = 0; i < V; i++) {
        int v = lane + i * GROUP;
        if (v >= VECS) continue;
        float by[8], plus[8];
        if (scale) {
            load8_f32(scale + 8 * v, by);
            load8_f32(shift + 8 * v, plus);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float r = a[8 * i + j] * factor;
            if (scale) r = r * (1.0f + by[j]) + plus[j];
            a[8 * i + j] = SILU ? silu(r) : r;
        }
        Vec16 packed = pack8(a + 8 * i);
        for (int f = from; f <= to; f++) out[((u64)f * cells_of_frame + in_frame) * VECS + v] = packed;
    }
}
