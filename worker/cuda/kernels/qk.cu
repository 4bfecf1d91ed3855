// qk_norm_rope: rms-norm over all heads together, times a weight, then rotation of adjacent pairs:
// (a, b) -> (a cos - b sin, b cos + a sin). In place; one or two tensors (query and key of
// self-attention share the rotation, which is then read once).
//
// Shapes: x0, x1 [L, D] bf16, heads side by side as attention takes them; weights f32 [D];
// rope [L, D / 2] pairs (cos, sin) in fp16: 4 bytes a pair, error 2^-12, a quarter of bf16's rounding.
//
// Bytes a row: D * 4 a tensor, D * 2 for the rotation. Runs at memory bandwidth.
//
// Defines: D, THREADS, TENSORS (1, 2), ROPE (0, 1), NAME. D % 8 == 0.

#define VECS (D / 8)
#define V ((VECS + THREADS - 1) / THREADS)
#define FULL (VECS % THREADS == 0)
#define HAS(i) (FULL || threadIdx.x + (i) * THREADS < VECS)

static __device__ __forceinline__ void fetch(Vec16* raw, const Vec16* x, u64 row) {
#pragma unroll
    for (int i = 0; i < V; i++)
        if (HAS(i)) raw[i] = x[row * VECS + threadIdx.x + i * THREADS];
}

extern "C" __global__ __launch_bounds__(THREADS) void NAME(
    Vec16* x0, Vec16* x1, const float* weight0, const float* weight1, const Vec16* rope, float eps,
    int rows, int rows_per_block) {
    __shared__ float reduce[2][32];
    int turn = 0;
    int row = blockIdx.x * rows_per_block;
    int end = min(row + rows_per_block, rows);
    float weight[TENSORS][8 * V];
#pragma unroll
    for (int i = 0; i < V; i++) {
        if (!HAS(i)) continue;
        load8_f32(weight0 + 8 * (threadIdx.x + i * THREADS), weight[0] + 8 * i);
        if (TENSORS == 2)
            load8_f32(weight1 + 8 * (threadIdx.x + i * THREADS), weight[TENSORS - 1] + 8 * i);
    }
    for (; row < end; row++) {
        Vec16 raw[TENSORS][V], angle[ROPE ? V : 1];
        fetch(raw[0], x0, row);
        if (TENSORS == 2) fetch(raw[TENSORS - 1], x1, row);
        if (ROPE) fetch(angle, rope, row);
#pragma unroll
        for (int t = 0; t < TENSORS; t++) {
            float a[8 * V];
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < V; i++) {
                if (!HAS(i)) continue;
                unpack8(raw[t][i], a + 8 * i);
#pragma unroll
                for (int j = 8 * i; j < 8 * i + 8; j++) sum += a[j] * a[j];
            }
            sum = block_reduce<THREADS, false>(sum, reduce[turn]);
            turn ^= 1;
            float factor = 1.0f / sqrtf(sum * (1.0f / D) + eps);
#pragma unroll
            for (int i = 0; i < V; i++) {
                if (!HAS(i)) continue;
#pragma unroll
                for (int j = 8 * i; j < 8 * i + 8; j++) a[j] *= factor * weight[t][j];
                if (ROPE) {
#pragma unroll
                    for (int p = 0; p < 4; p++) {
                        float c = half2f((u16)(angle[i].w[p] & 0xffffu)), s = half2f((u16)(angle[i].w[p] >> 16));
                        float re = a[8 * i + 2 * p], im = a[8 * i + 2 * p + 1];
                        a[8 * i + 2 * p] = re * c - im * s;
                        a[8 * i + 2 * p + 1] = im * c + re * s;
                    }
                }
                Vec16* to = t == 0 ? x0 : x1;
                to[(u64)row * VECS + threadIdx.x + i * THREADS] = pack8(a + 8 * i);
            }
        }
    }
}
