// One factor for a whole tensor: what attention in 8 bits wants of its values.

// largest: the largest magnitude of x [8 * vecs] bf16, as its bits, into `most`, which was 0. The bits of
// positive floats are ordered as they are, so the maximum does not depend on the order.
// Bytes: 2 read. Runs at memory bandwidth.
extern "C" __global__ __launch_bounds__(256) void largest(const Vec16* x, u32* most, u32 vecs) {
    __shared__ float reduce[32];
    float top = 0.0f;
    for (u32 i = blockIdx.x * 256 + threadIdx.x; i < vecs; i += gridDim.x * 256) {
        float a[8];
        unpack8(x[i], a);
#pragma unroll
        for (int j = 0; j < 8; j++) top = fmaxf(top, fabsf(a[j]));
    }
    top = block_reduce<256, true>(top, reduce);
    if (threadIdx.x == 0) atomicMax(most, __float_as_uint(top));
}

#if __CUDA_ARCH__ >= 890
// quantise: x [rows, 8 vecs_of_row] bf16 to E4M3 times 448 / most; that factor's inverse to each of
// `scales` [rows], and the factors of an attention in 8 bits, each at 16 bytes: of q, k, v; to and from
// the weights' 8 bits; to the result's.
// Bytes: 2 read, 1 written. Runs at memory bandwidth.
extern "C" __global__ __launch_bounds__(256) void quantise(
    const Vec16* x, const u32* most, uint2* out, float* scales, float* factors, float of_q, float of_k,
    u32 vecs, u32 rows) {
    u32 i = blockIdx.x * 256 + threadIdx.x;
    float top = __uint_as_float(*most);
    float by = top > 0.0f ? 448.0f / top : 1.0f;
    if (i < rows) scales[i] = 1.0f / by;
    if (i == 0) {
        factors[0] = of_q;
        factors[4] = of_k;
        factors[8] = 1.0f / by;
        factors[12] = 256.0f;
        factors[16] = 1.0f / 256.0f;
        factors[20] = by;
    }
    if (i >= vecs) return;
    float a[8];
    unpack8(x[i], a);
    out[i] = pack8_e4m3(a, by);
}
#endif
