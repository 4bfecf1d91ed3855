// attention: softmax(scale q k^T + bias) v by head, one pass over the keys with a running maximum.
// For what cuDNN's kernels do not take: text as keys with padding, biases by position (T5), head sizes
// and architectures without them. bf16 products on mma.m16n8k16 with f32 sums.
//
// Shapes: q [LQ, heads*HD], k, v [LK, heads*HD], out as q; bf16. key_bias f32 [LK] or null, positions
// f32 [heads, LQ, LK] or null.
// Grid (ceil(LQ / (16 WARPS)), heads); a warp has 16 queries; tiles of 64 keys and values in shared
// memory, the next tile's loads in flight while one is worked on. Shared bytes: 4 * 64 * (HD + 8) * 2.
// Limit: mma.sync, about a third of the tensor cores' rate on Hopper.
//
// Defines: HD (multiple of 16, at most 128), WARPS, KEY_BIAS, POSITIONS, NAME.

#define BN 64
#define LD (HD + 8)
#define CHUNKS (HD / 8)

static __device__ __forceinline__ u32 shared_address(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ void copy16(u32 to, const void* from, bool inside) {
    // Zeros where there is no key: they add nothing to the sums.
    int bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

static __device__ __forceinline__ void ldmatrix4(u32* r, u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

static __device__ __forceinline__ void ldmatrix4_trans(u32* r, u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

static __device__ __forceinline__ void mma(float* d, const u32* a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

extern "C" __global__ __launch_bounds__(32 * WARPS) void NAME(
    const u16* q, const u16* k, const u16* v, u16* out, const float* key_bias, const float* positions,
    float scale, int lq, int lk, int heads) {
    extern __shared__ u16 tiles[];
    const float LOG2E = 1.4426950408889634f;
    int head = blockIdx.y, width = heads * HD;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int first = (blockIdx.x * WARPS + warp) * 16;
    int group = lane >> 2, pair = lane & 3;
    int rows[2] = {first + group, first + group + 8};

    // Queries stay in registers: A of m16n8k16 is (row group, cols 2 pair), (group + 8, ..), (group,
    // cols + 8), (group + 8, cols + 8).
    u32 qa[HD / 16][4];
#pragma unroll
    for (int i = 0; i < HD / 16; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int row = rows[j & 1], column = head * HD + i * 16 + 2 * pair + 8 * (j >> 1);
            qa[i][j] = row < lq ? *reinterpret_cast<const u32*>(q + (u64)row * width + column) : 0;
        }
    }
    float acc[HD / 8][4];
#pragma unroll
    for (int i = 0; i < HD / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] = 0.0f;
    float most[2] = {-1e30f, -1e30f}, sum[2] = {0.0f, 0.0f};

    auto load = [&](int tile) {
        u16* ks = tiles + (tile & 1) * 2 * BN * LD;
        u16* vs = ks + BN * LD;
        for (int i = threadIdx.x; i < BN * CHUNKS; i += 32 * WARPS) {
            int key = i / CHUNKS, c = i % CHUNKS * 8;
            bool inside = tile * BN + key < lk;
            u64 at = (u64)(inside ? tile * BN + key : 0) * width + head * HD + c;
            copy16(shared_address(ks + key * LD + c), k + at, inside);
            copy16(shared_address(vs + key * LD + c), v + at, inside);
        }
        asm volatile("cp.async.commit_group;");
    };

    int tiles_count = (lk + BN - 1) / BN;
    load(0);
    for (int tile = 0; tile < tiles_count; tile++) {
        if (tile + 1 < tiles_count) {
            load(tile + 1);
            asm volatile("cp.async.wait_group 1;");
        } else {
            asm volatile("cp.async.wait_group 0;");
        }
        __syncthreads();
        const u16* ks = tiles + (tile & 1) * 2 * BN * LD;
        const u16* vs = ks + BN * LD;

        float s[BN / 8][4];
#pragma unroll
        for (int n = 0; n < BN / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) s[n][j] = 0.0f;
        // Scores: B is k^T. One ldmatrix gives both halves of the 16 channels for 16 keys: lanes
        // 0..7 address keys 0..7 at channel 0, 8..15 the same at channel 8, 16..31 keys 8..15.
#pragma unroll
        for (int i = 0; i < HD / 16; i++) {
#pragma unroll
            for (int n = 0; n < BN / 16; n++) {
                u32 b[4];
                int key = n * 16 + (lane & 7) + (lane >> 4) * 8, c = i * 16 + (lane >> 3 & 1) * 8;
                ldmatrix4(b, shared_address(ks + key * LD + c));
                mma(s[2 * n], qa[i], b[0], b[1]);
                mma(s[2 * n + 1], qa[i], b[2], b[3]);
            }
        }
        // D of m16n8k16: (row group, cols 2 pair, +1), (row group + 8, the same).
        float top[2] = {most[0], most[1]};
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int key = tile * BN + n * 8 + 2 * pair + (j & 1);
                float x = s[n][j] * scale;
                if (key < lk) {
                    if (KEY_BIAS) x += key_bias[key];
                    if (POSITIONS && rows[j >> 1] < lq)
                        x += positions[((u64)head * lq + rows[j >> 1]) * lk + key];
                } else {
                    x = -1e30f;
                }
                s[n][j] = x;
                top[j >> 1] = fmaxf(top[j >> 1], x);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2));
            float shrink = exp2f((most[r] - top[r]) * LOG2E);
            most[r] = top[r];
            sum[r] *= shrink;
#pragma unroll
            for (int i = 0; i < HD / 8; i++) {
                acc[i][2 * r] *= shrink;
                acc[i][2 * r + 1] *= shrink;
            }
        }
#pragma unroll
        for (int n = 0; n < BN / 8; n++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int key = tile * BN + n * 8 + 2 * pair + (j & 1);
                // A key that is not there weighs nothing, even where all others are masked.
                s[n][j] = key < lk ? exp2f((s[n][j] - most[j >> 1]) * LOG2E) : 0.0f;
                sum[j >> 1] += s[n][j];
            }
        }
        // Weights as A: the layout of D over two neighbouring tiles of 8 keys is that of A over 16.
#pragma unroll
        for (int n = 0; n < BN / 16; n++) {
            u32 a[4] = {f2bf2(s[2 * n][0], s[2 * n][1]), f2bf2(s[2 * n][2], s[2 * n][3]),
                        f2bf2(s[2 * n + 1][0], s[2 * n + 1][1]), f2bf2(s[2 * n + 1][2], s[2 * n + 1][3])};
#pragma unroll
            for (int i = 0; i < HD / 16; i++) {
                u32 b[4];
                int key = n * 16 + (lane & 15), c = i * 16 + (lane >> 4) * 8;
                ldmatrix4_trans(b, shared_address(vs + key * LD + c));
                mma(acc[2 * i], a, b[0], b[1]);
                mma(acc[2 * i + 1], a, b[2], b[3]);
            }
        }
        // The tile after next goes where this one was.
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        float inverse = 1.0f / sum[r];
        if (rows[r] >= lq) continue;
        u32* to = reinterpret_cast<u32*>(out + (u64)rows[r] * width + head * HD);
#pragma unroll
        for (int i = 0; i < HD / 8; i++)
            to[i * 4 + pair] = f2bf2(acc[i][2 * r] * inverse, acc[i][2 * r + 1] * inverse);
    }
}
