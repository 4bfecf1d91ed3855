// skinny_linear: out[t, n] = act(x[t] . w[n] * scale[n] + bias[n]) for at most 8 rows t, in f32: the
// timestep embedding, whose result every token sees.
//
// Shapes: x f32 [ROWS, K]; w [N, K] bf16, or e4m3 with a scale a row; bias bf16 [N] or null; out f32 [ROWS, N].
// A warp a row of w. Bytes: N K * (2 or 1), once. Runs at memory bandwidth for large N K.
//
// Defines: W_E4M3, ACT, ROWS, NAME. K % 8 == 0.

extern "C" __global__ __launch_bounds__(128) void NAME(
    const float* x, const void* w, const float* scale, const u16* bias, float* out, int n, int k) {
    int row = blockIdx.x * 4 + (threadIdx.x >> 5);
    int lane = threadIdx.x & 31;
    if (row >= n) return;
    float sum[ROWS];
#pragma unroll
    for (int t = 0; t < ROWS; t++) sum[t] = 0.0f;
    for (int c = lane * 8; c < k; c += 256) {
        float weight[8];
        if (W_E4M3) {
            uint2 q = *reinterpret_cast<const uint2*>(static_cast<const u8*>(w) + (u64)row * k + c);
#pragma unroll
            for (int j = 0; j < 8; j++) weight[j] = e4m3f((j < 4 ? q.x : q.y) >> 8 * (j & 3) & 0xffu);
        } else {
            unpack8(*reinterpret_cast<const Vec16*>(static_cast<const u16*>(w) + (u64)row * k + c), weight);
        }
#pragma unroll
        for (int t = 0; t < ROWS; t++) {
            float v[8];
            load8_f32(x + (u64)t * k + c, v);
#pragma unroll
            for (int j = 0; j < 8; j++) sum[t] = fmaf(v[j], weight[j], sum[t]);
        }
    }
#pragma unroll
    for (int t = 0; t < ROWS; t++) {
#pragma unroll
        for (int d = 16; d > 0; d >>= 1) sum[t] += __shfl_xor_sync(0xffffffffu, sum[t], d);
        if (lane == 0) {
            float r = W_E4M3 ? sum[t] * scale[row] : sum[t];
            if (bias) r += bf2f(bias[row]);
            out[(u64)t * n + row] = activate(r, ACT);
        }
    }
}
