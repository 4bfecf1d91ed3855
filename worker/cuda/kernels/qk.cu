// qk_norm_rope: rms-norm over all heads together, times a weight, then rotation of adjacent pairs:
// (a, b) -> (a cos - b sin, b cos + a sin). In place; one or two tensors (query and key of
// self-attention share the rotation, which is then read once).
//
// Shapes: x0, x1 [L, D] bf16, heads side by side as attention takes them; weights f32 [D];
// rope [L, D / 2] pairs (cos, sin) in fp16: 4 bytes a pair, error 2^-12, a quarter of bf16's rounding.
//
// Bytes a row: D * 4 a tensor, D * 2 for the rotation. Runs at memory bandwidth.
//
// A block takes every gridDim-th row, as in `rows.cu`.
//
// E4M3: results go to o0, o1 instead, in 8 bits times `by`, after a Hadamard transform of each head of
// HD channels: it changes no score, and spreads over a head what a few large channels would otherwise
// take from the precision of all. Needs HD channels in neighbouring threads: D = 8 V THREADS, HD a
// power of two of at most 256.
//
// Defines: D, THREADS, BLOCKS (a multiprocessor), TENSORS (1, 2), ROPE (0, 1), E4M3 (0, 1), HD, NAME. D % 8 == 0.

#define VECS (D / 8)
#define V ((VECS + THREADS - 1) / THREADS)
#define FULL (VECS % THREADS == 0)
#define HAS(i) (FULL || threadIdx.x + (i) * THREADS < VECS)

static __device__ __forceinline__ void fetch(Vec16* raw, const Vec16* x, u64 row) {
#pragma unroll
    for (int i = 0; i < V; i++)
        if (HAS(i)) raw[i] = load_once(x + row * VECS + threadIdx.x + i * THREADS);
}

// Orthonormal Hadamard transform over HD channels, eight in each of HD / 8 neighbouring lanes.
static __device__ __forceinline__ void hadamard(float* a) {
#pragma unroll
    for (int d = 1; d < 8; d *= 2) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (j & d) continue;
            float x = a[j], y = a[j + d];
            a[j] = x + y;
            a[j + d] = x - y;
        }
    }
#pragma unroll
    for (int d = 1; d < HD / 8; d *= 2) {
        float sign = threadIdx.x & d ? -1.0f : 1.0f;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float other = __shfl_xor_sync(0xffffffffu, a[j], d);
            a[j] = other + sign * a[j];
        }
    }
    float norm = rsqrtf((float)HD);
#pragma unroll
    for (int j = 0; j < 8; j++) a[j] *= norm;
}

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void NAME(
    Vec16* x0, Vec16* x1, const float* weight0, const float* weight1, const Vec16* rope, float eps,
    int rows, uint2* o0, uint2* o1, float by) {
    __shared__ float2 reduce[2][32];
    int turn = 0;
    int row = blockIdx.x;
    if (row >= rows) return;
    Vec16 next[TENSORS][V];
    fetch(next[0], x0, row);
    if (TENSORS == 2) fetch(next[TENSORS - 1], x1, row);
    for (; row < rows; row += gridDim.x) {
        // What a thread has of a row stays packed until it is turned: half the registers.
        Vec16 raw[TENSORS][V], angle[ROPE ? V : 1];
        if (ROPE) fetch(angle, rope, row);
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int i = 0; i < V; i++) {
            if (!HAS(i)) continue;
#pragma unroll
            for (int t = 0; t < TENSORS; t++) {
                float a[8];
                raw[t][i] = next[t][i];
                unpack8(raw[t][i], a);
#pragma unroll
                for (int j = 0; j < 8; j++) (t == 0 ? sum.x : sum.y) += a[j] * a[j];
            }
        }
        int after = row + gridDim.x;
        if (after < rows) {
            fetch(next[0], x0, after);
            if (TENSORS == 2) fetch(next[TENSORS - 1], x1, after);
        }
        sum = block_sum2<THREADS>(sum, reduce[turn]);
        turn ^= 1;
#pragma unroll
        for (int t = 0; t < TENSORS; t++) {
            float factor = 1.0f / sqrtf((t == 0 ? sum.x : sum.y) * (1.0f / D) + eps);
#pragma unroll
            for (int i = 0; i < V; i++) {
                if (!HAS(i)) continue;
                float a[8], weight[8];
                unpack8(raw[t][i], a);
                load8_f32((t == 0 ? weight0 : weight1) + 8 * (threadIdx.x + i * THREADS), weight);
#pragma unroll
                for (int j = 0; j < 8; j++) a[j] *= factor * weight[j];
                if (ROPE) {
#pragma unroll
                    for (int p = 0; p < 4; p++) {
                        float c = half2f((u16)(angle[i].w[p] & 0xffffu)), s = half2f((u16)(angle[i].w[p] >> 16));
                        float re = a[2 * p], im = a[2 * p + 1];
                        a[2 * p] = re * c - im * s;
                        a[2 * p + 1] = im * c + re * s;
                    }
                }
                u64 at = (u64)row * VECS + threadIdx.x + i * THREADS;
#if E4M3
                hadamard(a);
                (t == 0 ? o0 : o1)[at] = pack8_e4m3(a, by);
#else
                (t == 0 ? x0 : x1)[at] = pack8(a);
#endif
            }
        }
    }
}
