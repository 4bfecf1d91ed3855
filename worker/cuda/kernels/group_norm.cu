// group_norm: mean and variance over groups of neighbouring channels, then
// out = silu((x - mean) / sqrt(variance + eps) * weight[c] + bias[c] + skip).
//
// Shapes: x, skip, out [S, P, C] bf16 (S sets of P cells: frames, or all as one); weight, bias f32 [C];
// stats f32 [S, G, 2]. `group_stats` has a block a group and set and reads x twice (mean, then
// variance around it: no cancellation); `group_apply` eight channels a thread.
// Bytes: 2 + 2 read for the statistics, 2 (4 with skip) read and 2 written. Memory-bound; the tensors of the
// latent upsampler fit the L2 cache.

extern "C" __global__ __launch_bounds__(512) void group_stats(
    const u16* x, float* stats, u64 cells, int c, int groups, float eps) {
    __shared__ float reduce[2][32];
    int each = c / groups, group = blockIdx.x, set = blockIdx.y;
    u64 count = cells * each;
    const u16* from = x + (u64)set * cells * c + group * each;
    float sum = 0.0f;
    for (u64 i = threadIdx.x; i < count; i += 512) sum += bf2f(from[i / each * c + i % each]);
    float mean = block_reduce<512, false>(sum, reduce[0]) / count;
    sum = 0.0f;
    for (u64 i = threadIdx.x; i < count; i += 512) {
        float d = bf2f(from[i / each * c + i % each]) - mean;
        sum += d * d;
    }
    float variance = block_reduce<512, false>(sum, reduce[1]) / count;
    if (threadIdx.x == 0) {
        stats[2 * (set * groups + group)] = mean;
        stats[2 * (set * groups + group) + 1] = 1.0f / sqrtf(variance + eps);
    }
}

extern "C" __global__ __launch_bounds__(256) void group_apply(
    const Vec16* x, const Vec16* skip, const float* stats, const float* weight, const float* bias,
    Vec16* out, u64 vecs, u64 cells, int c, int groups) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= vecs) return;
    int channel = (int)(i % (c / 8)) * 8, each = c / groups;
    u64 set = i / (c / 8) / cells;
    float a[8], b[8];
    unpack8(x[i], a);
    if (skip) unpack8(skip[i], b);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float* s = stats + 2 * (set * groups + (channel + j) / each);
        float r = (a[j] - s[0]) * s[1] * weight[channel + j] + bias[channel + j];
        a[j] = silu(skip ? r + b[j] : r);
    }
    out[i] = pack8(a);
}
