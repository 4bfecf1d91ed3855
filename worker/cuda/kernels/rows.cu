// row_op: everything that happens to a row of tokens between two matrix products, in one pass.
//
//   x'  = act(x) + gate[i] * y          stored to `xo` when a residual is added
//   n   = norm(x')                      none, rms (times 1/sqrt(mean x^2 + eps)) or layer
//   m   = n * (1 + scale[i]) + shift[i] or n * weight, or n
//   out = bf16 m, or e4m3 of m / s with s = max|m| / 448 of the row, and s to `scales`
//
// Shapes: x, y, xo [L, D] row-major, bf16 (x and xo f32 with X_F32); tables f32 [T, R, D] of which a
// token takes row set index[token]; out [L, D].
// A block takes every gridDim-th row, the next one on its way while one is worked on; each thread has
// the same V*8 channels of all. Tables are read anew for each row, from the first-level cache: they
// would take more registers than all else, and with them the blocks that hide the memory's latency.
// Requires D % 8 == 0 and 16-byte aligned rows.
//
// Bytes a row: D * (2 or 4 for x, 2 for y, 2 or 4 for xo, 2 or 1 for out). Runs at memory bandwidth.
//
// Defines: D, THREADS, BLOCKS (a multiprocessor), X_F32, ACT, RES (0 no, 1 x + y, 2 gated), NORM (0, 1 rms, 2 layer),
// MOD (0 none, 1 table, 2 weight), OUT (0 none, 1 bf16, 2 e4m3), NAME.

#define VECS (D / 8)
#define V ((VECS + THREADS - 1) / THREADS)
#define FULL (VECS % THREADS == 0)
#define HAS(i) (FULL || threadIdx.x + (i) * THREADS < VECS)

struct Raw {
    Vec16 v[X_F32 ? 2 * V : V];
};

static __device__ __forceinline__ void fetch_x(Raw& raw, const void* x, u64 row) {
#pragma unroll
    for (int i = 0; i < V; i++) {
        if (!HAS(i)) continue;
        u64 at = row * VECS + threadIdx.x + i * THREADS;
        const Vec16* p = static_cast<const Vec16*>(x);
        if (X_F32) {
            raw.v[2 * i] = load_once(p + 2 * at);
            raw.v[2 * i + (X_F32 ? 1 : 0)] = load_once(p + 2 * at + 1);
        } else {
            raw.v[i] = load_once(p + at);
        }
    }
}

static __device__ __forceinline__ void fetch_y(Vec16* raw, const void* y, u64 row) {
#pragma unroll
    for (int i = 0; i < V; i++)
        if (HAS(i)) raw[i] = load_once(static_cast<const Vec16*>(y) + row * VECS + threadIdx.x + i * THREADS);
}

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void NAME(
    const void* x, const void* y, void* xo, void* out, float* scales,
    const float* gate_table, const u32* gate_index, int gate_rows, int gate_row,
    const float* mod_table, const u32* mod_index, int mod_rows, int shift_row, int scale_row,
    float eps, int rows) {
    __shared__ float reduce[2][32];
    int turn = 0;
    int row = blockIdx.x;
    if (row >= rows) return;

    Raw next_x;
    Vec16 next_y[RES ? V : 1];
    fetch_x(next_x, x, row);
    if (RES) fetch_y(next_y, y, row);

    for (; row < rows; row += gridDim.x) {
        float a[8 * V];
#pragma unroll
        for (int i = 0; i < V; i++) {
            if (!HAS(i)) {
#pragma unroll
                for (int j = 0; j < 8; j++) a[8 * i + j] = 0.0f;
                continue;
            }
            if (X_F32) {
#pragma unroll
                for (int j = 0; j < 8; j++)
                    a[8 * i + j] = __uint_as_float(next_x.v[(X_F32 ? 2 : 1) * i + (X_F32 ? j / 4 : 0)].w[j % 4]);
            } else {
                unpack8(next_x.v[i], a + 8 * i);
            }
        }
        if (ACT) {
#pragma unroll
            for (int j = 0; j < 8 * V; j++) a[j] = activate(a[j], ACT);
        }
        if (RES) {
            const float* gates = 0;
            if (RES == 2) gates = gate_table + ((u64)gate_index[row] * gate_rows + gate_row) * D;
#pragma unroll
            for (int i = 0; i < V; i++) {
                if (!HAS(i)) continue;
                float add[8], gate[8];
                unpack8(next_y[i], add);
                if (RES == 2) load8_f32(gates + 8 * (threadIdx.x + i * THREADS), gate);
#pragma unroll
                for (int j = 0; j < 8; j++) a[8 * i + j] += RES == 2 ? gate[j] * add[j] : add[j];
            }
        }
        // The next row is on its way while this one is worked on.
        if (row + gridDim.x < rows) {
            fetch_x(next_x, x, row + gridDim.x);
            if (RES) fetch_y(next_y, y, row + gridDim.x);
        }
        if (RES) {
#pragma unroll
            for (int i = 0; i < V; i++) {
                if (!HAS(i)) continue;
                u64 at = (u64)row * VECS + threadIdx.x + i * THREADS;
                if (X_F32) {
                    float4* to = static_cast<float4*>(xo) + 2 * at;
                    to[0] = make_float4(a[8 * i], a[8 * i + 1], a[8 * i + 2], a[8 * i + 3]);
                    to[1] = make_float4(a[8 * i + 4], a[8 * i + 5], a[8 * i + 6], a[8 * i + 7]);
                } else {
                    Vec16 packed = pack8(a + 8 * i);
                    static_cast<Vec16*>(xo)[at] = packed;
                    // What follows sees the stream as it is stored.
                    unpack8(packed, a + 8 * i);
                }
            }
        }
        if (OUT == 0) continue;
        if (NORM == 2) {
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < 8 * V; j++) sum += a[j];
            float mean = block_reduce<THREADS, false>(sum, reduce[turn]) * (1.0f / D);
            turn ^= 1;
#pragma unroll
            for (int i = 0; i < V; i++) {
                if (!HAS(i)) continue;
#pragma unroll
                for (int j = 8 * i; j < 8 * i + 8; j++) a[j] -= mean;
            }
        }
        float factor = 1.0f;
        if (NORM) {
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < 8 * V; j++) sum += a[j] * a[j];
            sum = block_reduce<THREADS, false>(sum, reduce[turn]);
            turn ^= 1;
            factor = 1.0f / sqrtf(sum * (1.0f / D) + eps);
        }
        float most = 0.0f;
        const float *scale_at = 0, *shift_at = 0;
        if (MOD == 1) {
            const float* set = mod_table + (u64)mod_index[row] * mod_rows * D;
            scale_at = set + (u64)scale_row * D;
            shift_at = set + (u64)shift_row * D;
        }
        if (MOD == 2) scale_at = mod_table;
#pragma unroll
        for (int i = 0; i < V; i++) {
            if (!HAS(i)) continue;
            float scale[8], shift[8];
            if (MOD) load8_f32(scale_at + 8 * (threadIdx.x + i * THREADS), scale);
            if (MOD == 1) load8_f32(shift_at + 8 * (threadIdx.x + i * THREADS), shift);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                int j = 8 * i + k;
                if (NORM) a[j] *= factor;
                if (MOD == 1) a[j] = a[j] * (1.0f + scale[k]) + shift[k];
                if (MOD == 2) a[j] *= scale[k];
                if (OUT == 2) most = fmaxf(most, fabsf(a[j]));
            }
        }
        if (OUT == 1) {
#pragma unroll
            for (int i = 0; i < V; i++)
                if (HAS(i))
                    static_cast<Vec16*>(out)[(u64)row * VECS + threadIdx.x + i * THREADS] = pack8(a + 8 * i);
        }
#if OUT == 2
        most = block_reduce<THREADS, true>(most, reduce[turn]);
        turn ^= 1;
        // A row of zeros: any scale will do.
        float inverse = most > 0.0f ? 448.0f / most : 0.0f;
        if (threadIdx.x == 0) scales[row] = most > 0.0f ? most * (1.0f / 448.0f) : 1.0f;
#pragma unroll
        for (int i = 0; i < V; i++) {
            if (!HAS(i)) continue;
            u64 at = (u64)row * VECS + threadIdx.x + i * THREADS;
            static_cast<uint2*>(out)[at] = pack8_e4m3(a + 8 * i, inverse);
        }
#endif
    }
}
