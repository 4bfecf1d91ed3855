// What only moves values of VAE activations, channels last.

static __device__ __forceinline__ float value(const void* p, u64 i, bool f32) {
    return f32 ? static_cast<const float*>(p)[i] : bf2f(static_cast<const u16*>(p)[i]);
}

// pad: x [F, P, C] (bf16, or f32) to bf16 [front + F + back, P, CP], first and last frame repeated or
// zeros in their place, channels C..CP zero. Eight channels a thread of `out`. Reads 2 or 4, writes 2 bytes a value.
extern "C" __global__ __launch_bounds__(256) void pad(
    const void* x, Vec16* out, int x_f32, u32 vecs, int c, int cp, u32 cells_of_frame, int frames,
    int front, int zeros) {
    u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= vecs) return;
    // 32 bits: a division in 64 costs as much as all the rest.
    u32 cell = i / (cp / 8);
    int channel = (int)(i - cell * (cp / 8)) * 8;
    int at = (int)(cell / cells_of_frame) - front, frame = min(max(at, 0), frames - 1);
    if (zeros && at != frame) {
        out[i] = Vec16{};
        return;
    }
    u64 from = ((u64)frame * cells_of_frame + cell % cells_of_frame) * c + channel;
    if (!x_f32 && c % 8 == 0 && channel + 8 <= c) {
        out[i] = *reinterpret_cast<const Vec16*>(static_cast<const u16*>(x) + from);
        return;
    }
    float a[8];
#pragma unroll
    for (int j = 0; j < 8; j++) a[j] = channel + j < c ? value(x, from + j, x_f32) : 0.0f;
    out[i] = pack8(a);
}

// depth_to_space_add: channels (c, st, sh, sw) of x [F, H, W, CX] spread over space and time without
// the first `dropped` frames, plus `skip` [F, H, W, CS], spread alike and repeated over channels.
// A block an input cell: both are read whole into shared memory (coalesced), and each of the block's
// cells is written whole. Shared bytes: 2 (CX + CS). Bytes: 2 CX read, 2 CS read, 2 CX written.
extern "C" __global__ __launch_bounds__(256) void depth_to_space(
    const u16* x, const u16* skip, u16* out, int height, int width, int cx, int cs, int st, int sh,
    int sw, int dropped) {
    extern __shared__ u16 cell[];
    u64 at = blockIdx.x;
    for (int i = threadIdx.x; i < cx / 8; i += 256)
        reinterpret_cast<Vec16*>(cell)[i] = reinterpret_cast<const Vec16*>(x + at * cx)[i];
    if (skip)
        for (int i = threadIdx.x; i < cs / 8; i += 256)
            reinterpret_cast<Vec16*>(cell + cx)[i] = reinterpret_cast<const Vec16*>(skip + at * cs)[i];
    __syncthreads();
    int block = st * sh * sw;
    int c = cx / block, repeat = skip ? cs / block : 1;
    int column = (int)(at % width), row = (int)(at / width % height);
    int frame = (int)(at / width / height);
    // Pairs of neighbouring output channels.
    for (int i = threadIdx.x; i < cx / 2; i += 256) {
        int sub = i / (c / 2), channel = i % (c / 2) * 2;
        int it = sub / (sh * sw), ih = sub / sw % sh, iw = sub % sw;
        int to_frame = frame * st + it - dropped;
        if (to_frame < 0) continue;
        float a = bf2f(cell[channel * block + sub]), b = bf2f(cell[(channel + 1) * block + sub]);
        if (skip) {
            a += bf2f(cell[cx + channel % repeat * block + sub]);
            b += bf2f(cell[cx + (channel + 1) % repeat * block + sub]);
        }
        u64 to = ((u64)to_frame * height * sh + row * sh + ih) * width * sw + column * sw + iw;
        reinterpret_cast<u32*>(out)[to * (c / 2) + channel / 2] = f2bf2(a, b);
    }
}

// space_to_depth_add: cells of x [F, H, W, CX] gathered to channels (c, st, sh, sw), plus `skip`
// [F, H, W, CS] gathered alike and averaged over groups of channels. One output value a thread.
extern "C" __global__ __launch_bounds__(256) void space_to_depth(
    const u16* x, const u16* skip, u16* out, u64 count, int height, int width, int cx, int cs, int st,
    int sh, int sw) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    int block = st * sh * sw, c = cx * block, group = cs * block / c;
    int channel = (int)(i % c);
    u64 cell = i / c;
    int oh = height / sh, ow = width / sw;
    int column = (int)(cell % ow) * sw, row = (int)(cell / ow % oh) * sh;
    int frame = (int)(cell / ow / oh) * st;
    auto from = [&](int which, int channels) {
        int sub = which % block;
        int it = sub / (sh * sw), ih = sub / sw % sh, iw = sub % sw;
        return (((u64)(frame + it) * height + row + ih) * width + column + iw) * channels + which / block;
    };
    float sum = 0.0f;
    for (int g = 0; g < group; g++) sum += bf2f(skip[from(channel * group + g, cs)]);
    out[i] = f2bf(bf2f(x[from(channel, cx)]) + sum / group);
}

// patchify: [F, H, W, C] to [F, H/p, W/p, C p p], channels (c, column, row); bf16 or f32 in, bf16 out.
extern "C" __global__ __launch_bounds__(256) void patchify(
    const void* x, u16* out, int x_f32, u64 count, int height, int width, int c, int p) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    int channels = c * p * p, k = (int)(i % channels);
    u64 cell = i / channels;
    int ow = width / p, oh = height / p;
    u64 frame = cell / ((u64)oh * ow);
    int row = (int)(cell / ow % oh) * p + k % p, column = (int)(cell % ow) * p + k / p % p;
    out[i] = f2bf(value(x, ((frame * height + row) * width + column) * c + k / (p * p), x_f32));
}

// unpatchify: the inverse, from cells of `stride` >= C p p channels; to f32.
extern "C" __global__ __launch_bounds__(256) void unpatchify(
    const u16* x, float* out, u64 count, int height, int width, int c, int p, int stride) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    int channel = (int)(i % c);
    u64 pixel = i / c;
    int w = width * p, column = (int)(pixel % w);
    u64 line = pixel / w;
    int row = (int)(line % ((u64)height * p));
    u64 frame = line / ((u64)height * p);
    u64 cell = (frame * height + row / p) * width + column / p;
    out[i] = bf2f(x[cell * stride + (channel * p + column % p) * p + row % p]);
}

static __device__ __forceinline__ u8 sample(float x) {
    return (u8)__float2int_rn(fminf(fmaxf(x * 0.5f + 0.5f, 0.0f), 1.0f) * 255.0f);
}

// unpatchify_rgb8: the same for C = 3, straight to 8-bit samples: round(clamp(x/2 + 1/2) 255).
// One pixel row of one cell a thread: 3 p bytes, contiguous. Bytes: 2 stride read, 3 p p written a cell.
extern "C" __global__ __launch_bounds__(256) void unpatchify_rgb8(
    const u16* x, u8* out, u64 count, int height, int width, int p, int stride) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    // Neighbouring threads write neighbouring bytes: (frame, row, in_row, column).
    int column = (int)(i % width);
    u64 line = i / width;
    int in_row = (int)(line % p);
    u64 cell = line / p * width + column;
    const u16* from = x + cell * stride;
    u8* to = out + (line * width + column) * p * 3;
    for (int q = 0; q < p; q++)
        for (int c = 0; c < 3; c++) to[q * 3 + c] = sample(bf2f(from[(c * p + q) * p + in_row]));
}

// rgb8: values around -1..1 as 8-bit samples.
extern "C" __global__ __launch_bounds__(256) void rgb8(const void* x, u8* out, int x_f32, u64 count) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i < count) out[i] = sample(value(x, i, x_f32));
}

// from_rgb8: v / 255 * 2 - 1.
extern "C" __global__ __launch_bounds__(256) void from_rgb8(const u8* x, float* out, u64 count) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i < count) out[i] = 2.0f * ((float)x[i] / 255.0f) - 1.0f;
}

// permute_kernel: [N, C, T] (bf16, or f32) to bf16 [NP, T, CP], zero where padded: a convolution's
// kernel as cuDNN takes it beside channels-last activations.
extern "C" __global__ __launch_bounds__(256) void permute_kernel(
    const void* x, u16* out, int x_f32, u64 count, int n, int c, int taps, int cp) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    int channel = (int)(i % cp), tap = (int)(i / cp % taps);
    u64 row = i / cp / taps;
    bool inside = row < n && channel < c;
    out[i] = inside ? f2bf(value(x, (row * c + channel) * taps + tap, x_f32)) : 0;
}

// expand_e4m3: e4m3 times a scale a row (or one, or none) to bf16; K values a row, K % 8 == 0, eight a
// thread. Bytes: 1 read, 2 written. Runs at memory bandwidth.
extern "C" __global__ __launch_bounds__(256) void expand_e4m3(
    const uint2* x, const float* scale, Vec16* out, u32 vecs, u32 vecs_of_row, int per_row) {
    u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= vecs) return;
    float s = scale ? scale[per_row ? i / vecs_of_row : 0] : 1.0f;
    uint2 q = x[i];
    float a[8];
#pragma unroll
    for (int j = 0; j < 8; j++) a[j] = e4m3f((j < 4 ? q.x : q.y) >> 8 * (j & 3) & 0xffu) * s;
    out[i] = pack8(a);
}

// spread_rope: tables [places, F, 2] of three axes, one behind the other, to cosines and sines
// [T, H, W, identity + 3 F]: pairs that are not turned, then frequency by frequency the three axes.
// A pair a thread. Bytes: 8 a pair written.
extern "C" __global__ __launch_bounds__(256) void spread_rope(
    const float2* tables, float* cosines, float* sines, u64 count, int identity, int frequencies,
    int frames, int height, int width) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    u32 pairs = identity + 3 * frequencies;
    u32 token = (u32)(i / pairs);
    int pair = (int)(i - (u64)token * pairs) - identity;
    float2 turn = make_float2(1.0f, 0.0f);
    if (pair >= 0) {
        u32 column = token % width, row = token / width % height, frame = token / width / height;
        u32 place = pair % 3 == 0 ? frame : pair % 3 == 1 ? frames + row : frames + height + column;
        turn = tables[(u64)place * frequencies + pair / 3];
    }
    cosines[i] = turn.x;
    sines[i] = turn.y;
}
