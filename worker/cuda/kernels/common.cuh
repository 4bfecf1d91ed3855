// What every kernel file starts with. No CUDA header is needed: conversions are single PTX
// instructions, so that NVRTC alone compiles everything.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(16) Vec16 {
    u32 w[4];
};

static __device__ __forceinline__ float bf2f(u16 x) { return __uint_as_float((u32)x << 16); }
static __device__ __forceinline__ float bf_lo(u32 x) { return __uint_as_float(x << 16); }
static __device__ __forceinline__ float bf_hi(u32 x) { return __uint_as_float(x & 0xffff0000u); }

// Two floats as bf16, round to nearest even; `lo` in the lower half.
static __device__ __forceinline__ u32 f2bf2(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

static __device__ __forceinline__ u16 f2bf(float x) { return (u16)(f2bf2(x, 0.0f) & 0xffffu); }

// Two floats as fp16; `lo` in the lower half.
static __device__ __forceinline__ u32 f2half2(float lo, float hi) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

static __device__ __forceinline__ float half2f(u16 x) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x));
    return f;
}

#if __CUDA_ARCH__ >= 890
// Two floats as E4M3, saturating at 448; `lo` in the lower byte.
static __device__ __forceinline__ u32 f2e4m3x2(float lo, float hi) {
    u16 r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
    return r;
}
#endif

#if __CUDA_ARCH__ >= 890
// Eight floats times `by` as E4M3.
static __device__ __forceinline__ uint2 pack8_e4m3(const float* x, float by) {
    uint2 q;
    q.x = f2e4m3x2(x[0] * by, x[1] * by) | f2e4m3x2(x[2] * by, x[3] * by) << 16;
    q.y = f2e4m3x2(x[4] * by, x[5] * by) | f2e4m3x2(x[6] * by, x[7] * by) << 16;
    return q;
}
#endif

// Value of an E4M3 byte, as plain arithmetic: also for architectures without the conversion.
static __device__ __forceinline__ float e4m3f(u32 b) {
    // The exponent's bias is 7 there and 127 here: 2^120 moves one onto the other, subnormals too.
    float magnitude = __uint_as_float((b & 0x7fu) << 20) * __uint_as_float((120u + 127u) << 23);
    return (b & 0x80u) ? -magnitude : magnitude;
}

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2/pi) (x + 0.044715 x^3).
static __device__ __forceinline__ float gelu_tanh(float x) {
    float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return __fdividef(x, 1.0f + __expf(fminf(-2.0f * u, 80.0f)));
}

static __device__ __forceinline__ float silu(float x) {
    return __fdividef(x, 1.0f + __expf(fminf(-x, 80.0f)));
}

static __device__ __forceinline__ float activate(float x, int act) {
    return act == 1 ? gelu_tanh(x) : act == 2 ? silu(x) : x;
}

// Eight neighbouring values.
static __device__ __forceinline__ void unpack8(const Vec16& v, float* out) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = bf_lo(v.w[i]);
        out[2 * i + 1] = bf_hi(v.w[i]);
    }
}

static __device__ __forceinline__ Vec16 pack8(const float* x) {
    Vec16 v;
#pragma unroll
    for (int i = 0; i < 4; i++) v.w[i] = f2bf2(x[2 * i], x[2 * i + 1]);
    return v;
}

// Eight neighbouring values that this block reads once: kept out of the first-level cache, where the
// tables lie.
static __device__ __forceinline__ Vec16 load_once(const Vec16* p) {
    Vec16 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3]) : "l"(p));
    return v;
}

static __device__ __forceinline__ void load8_f32(const float* p, float* out) {
    float4 a = *reinterpret_cast<const float4*>(p);
    float4 b = *reinterpret_cast<const float4*>(p + 4);
    out[0] = a.x; out[1] = a.y; out[2] = a.z; out[3] = a.w;
    out[4] = b.x; out[5] = b.y; out[6] = b.z; out[7] = b.w;
}

// Two sums over a block of COUNT threads with one barrier; as `block_reduce`.
template <int COUNT>
static __device__ __forceinline__ float2 block_sum2(float2 x, float2* buffer) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        x.x += __shfl_xor_sync(0xffffffffu, x.x, d);
        x.y += __shfl_xor_sync(0xffffffffu, x.y, d);
    }
    constexpr int WARP_COUNT = COUNT / 32;
    if (WARP_COUNT == 1) return x;
    if ((threadIdx.x & 31) == 0) buffer[threadIdx.x >> 5] = x;
    __syncthreads();
    x = buffer[0];
#pragma unroll
    for (int i = 1; i < WARP_COUNT; i++) x.x += buffer[i].x, x.y += buffer[i].y;
    return x;
}

// Sum or maximum over a block of COUNT threads in a fixed order, the same in every thread.
// Callers take `buffer` alternately from two, so that one barrier a reduction is enough: whoever
// writes a buffer again has passed the barrier of the reduction in between.
template <int COUNT, bool MAX>
static __device__ __forceinline__ float block_reduce(float x, float* buffer) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        float other = __shfl_xor_sync(0xffffffffu, x, d);
        x = MAX ? fmaxf(x, other) : x + other;
    }
    constexpr int WARP_COUNT = COUNT / 32;
    if (WARP_COUNT == 1) return x;
    if ((threadIdx.x & 31) == 0) buffer[threadIdx.x >> 5] = x;
    __syncthreads();
    x = buffer[0];
#pragma unroll
    for (int i = 1; i < WARP_COUNT; i++) x = MAX ? fmaxf(x, buffer[i]) : x + buffer[i];
    return x;
}
