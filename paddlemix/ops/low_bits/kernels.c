/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of float32 rows with weights of 16, 8 or 4 bits on a CPU.
 *
 * A weight is [out, in]: each of its rows is a row of groups of 32 values (the last group is filled with zeros).
 *
 *     bits  codes of a group                             value
 *     16    32 bfloat16                                  the code
 *     8     32 signed bytes                              code * scale
 *     4     16 bytes; byte i holds value i in its low    (code - 8) * scale
 *           half and value i + 16 in its high half
 *
 * There is one bfloat16 scale for each row and group ([out, groups]; none for 16 bits).
 *
 * Each sum has one order, whatever the number of rows and threads: group by group, WIDTH lanes side by side; the scale
 * of a group is multiplied by its sum. The file is compiled on the machine that runs it (build.py), so the compiler
 * knows which instructions there are. Threads are those of the OpenMP runtime that paddle has loaded; its fork function
 * is an argument.
 */
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define GROUP 32
#define INLINE static inline __attribute__((always_inline))

/* A vector V of WIDTH floats, and the groups of each format as PARTS vectors. */

#if defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>
#define WIDTH 16
typedef __m512 V;
INLINE V zero(void) { return _mm512_setzero_ps(); }
INLINE V load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void store(float *p, V v) { _mm512_storeu_ps(p, v); }
INLINE V all(float f) { return _mm512_set1_ps(f); }
INLINE V times(V a, V b) { return _mm512_mul_ps(a, b); }
INLINE V add_product(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
INLINE float sum_of(V a, V b) { return _mm512_reduce_add_ps(_mm512_add_ps(a, b)); }
INLINE V widen16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}
INLINE V widen8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
INLINE void widen4(const uint8_t *p, V *w) {
    /* Sixteen codes name sixteen floats: the permutation looks them up by the low four bits of each lane. */
    const V table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p));
    w[0] = _mm512_permutexvar_ps(both, table);
    w[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), table);
}

#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define WIDTH 8
typedef __m256 V;
INLINE V zero(void) { return _mm256_setzero_ps(); }
INLINE V load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void store(float *p, V v) { _mm256_storeu_ps(p, v); }
INLINE V all(float f) { return _mm256_set1_ps(f); }
INLINE V times(V a, V b) { return _mm256_mul_ps(a, b); }
INLINE V add_product(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
INLINE float sum_of(V a, V b) {
    const V both = _mm256_add_ps(a, b);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
INLINE V widen16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16));
}
INLINE V widen8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
INLINE void widen4(const uint8_t *p, V *w) {
    /* A code in the lowest bits of the float 2^23 is 2^23 + code: cheaper than converting it. */
    const __m256i low = _mm256_set1_epi32(15), large = _mm256_castps_si256(_mm256_set1_ps(8388608));
    const V middle = _mm256_set1_ps(8388608 + 8);
    for (int half = 0; half < 2; half++) {
        const __m256i both = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(p + half * 8)));
        w[half] = _mm256_sub_ps(_mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(both, low), large)), middle);
        w[half + 2] = _mm256_sub_ps(_mm256_castsi256_ps(_mm256_or_si256(_mm256_srli_epi32(both, 4), large)), middle);
    }
}

#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#define WIDTH 4
typedef float32x4_t V;
INLINE V zero(void) { return vdupq_n_f32(0); }
INLINE V load(const float *p) { return vld1q_f32(p); }
INLINE void store(float *p, V v) { vst1q_f32(p, v); }
INLINE V all(float f) { return vdupq_n_f32(f); }
INLINE V times(V a, V b) { return vmulq_f32(a, b); }
INLINE V add_product(V a, V b, V c) { return vfmaq_f32(c, a, b); }
INLINE float sum_of(V a, V b) { return vaddvq_f32(vaddq_f32(a, b)); }
INLINE V widen16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
INLINE void widen_bytes(int8x16_t bytes, V *w) {
    int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    w[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)));
    w[1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(low)));
    w[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)));
    w[3] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)));
}
#define WHOLE8 1 /* sixteen bytes are widened at once */
INLINE void widen4(const uint8_t *p, V *w) {
    uint8x16_t both = vld1q_u8(p);
    const int8x16_t middle = vdupq_n_s8(8);
    widen_bytes(vsubq_s8(vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), middle), w);
    widen_bytes(vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), middle), w + 4);
}

#else
#define WIDTH 4
typedef float V __attribute__((vector_size(16)));
INLINE V zero(void) { return (V){0, 0, 0, 0}; }
INLINE V load(const float *p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store(float *p, V v) { memcpy(p, &v, sizeof v); }
INLINE V all(float f) { return (V){f, f, f, f}; }
INLINE V times(V a, V b) { return a * b; }
INLINE V add_product(V a, V b, V c) { return a * b + c; }
INLINE float sum_of(V a, V b) {
    const V both = a + b;
    return (both[0] + both[2]) + (both[1] + both[3]);
}
INLINE float upper(uint16_t bits) {
    uint32_t whole = (uint32_t)bits << 16;
    float f;
    memcpy(&f, &whole, sizeof f);
    return f;
}
INLINE V widen16(const uint16_t *p) { return (V){upper(p[0]), upper(p[1]), upper(p[2]), upper(p[3])}; }
INLINE V widen8(const int8_t *p) { return (V){p[0], p[1], p[2], p[3]}; }
INLINE void widen4(const uint8_t *p, V *w) {
    for (int i = 0; i < 4; i++) {
        const uint8_t *q = p + 4 * i;
        w[i] = (V){(q[0] & 15) - 8, (q[1] & 15) - 8, (q[2] & 15) - 8, (q[3] & 15) - 8};
        w[i + 4] = (V){(q[0] >> 4) - 8, (q[1] >> 4) - 8, (q[2] >> 4) - 8, (q[3] >> 4) - 8};
    }
}
#endif

#define PARTS (GROUP / WIDTH)
#define SCALES 64 /* groups whose scales are widened at a time */
#ifndef AHEAD
#define AHEAD 4096 /* bytes of codes that are fetched ahead */
#endif
#define WIDEST 4
#define APART 4 /* rows of a weight of 16 bits that are read side by side: the memory of one page is waited for in the others */
#if defined(__AVX2__) && WIDTH == 8
#define TALLEST 1 /* sixteen registers: eight hold sums */
#else
#define TALLEST 2
#endif

INLINE float scale_of(uint16_t bits) {
    uint32_t whole = (uint32_t)bits << 16;
    float f;
    memcpy(&f, &whole, sizeof f);
    return f;
}

INLINE long group_bytes(int bits) { return GROUP * bits / 8; }

INLINE void widen_group(const int bits, const uint8_t *codes, V *w) {
    if (bits == 4) {
        widen4(codes, w);
        return;
    }
#ifdef WHOLE8
    if (bits == 8) {
        widen_bytes(vld1q_s8((const int8_t *)codes), w);
        widen_bytes(vld1q_s8((const int8_t *)codes + 16), w + 4);
        return;
    }
    for (int part = 0; part < PARTS; part++) w[part] = widen16((const uint16_t *)codes + part * WIDTH);
#else
    for (int part = 0; part < PARTS; part++)
        w[part] = bits == 8 ? widen8((const int8_t *)codes + part * WIDTH)
                            : widen16((const uint16_t *)codes + part * WIDTH);
#endif
}

typedef struct {
    const uint8_t *codes;
    const uint16_t *scales;
    const float *x; /* [rows, width], width a multiple of GROUP */
    const float *bias;
    float *y; /* row r begins at r * stride */
    long rows, width, out, stride;
    long first; /* for widening: the first row of the weight */
    long columns; /* for widening: values of a row that are wanted */
    int bits;
    long items, each; /* portions of the rows of the weight, and rows in each */
    atomic_long next;
} Job;

/* TALL rows of the weight, every `step`-th from n on, times WIDE rows of x. Of 16 bits two sums for each pair, so that one
 * does not wait for the other; of fewer bits each group has one of its own. */
INLINE void tile(const int bits, const int TALL, const int WIDE, const Job *job, long n, long step, long m) {
    const long groups = job->width / GROUP, bytes = groups * group_bytes(bits);
    V sums[APART][WIDEST][2];
    for (int r = 0; r < TALL; r++)
        for (int c = 0; c < WIDE; c++) sums[r][c][0] = sums[r][c][1] = zero();
    for (long begin = 0; begin < groups; begin += SCALES) {
        const long end = begin + SCALES < groups ? begin + SCALES : groups;
        float scales[APART][SCALES];
        if (bits != 16)
            for (int r = 0; r < TALL; r++)
                for (long g = begin; g < end; g++)
                    scales[r][g - begin] = scale_of(job->scales[(n + r * step) * groups + g]);
        for (long g = begin; g < end; g++) {
            const float *x = job->x + m * job->width + g * GROUP;
            for (int r = 0; r < TALL; r++) {
                V w[PARTS];
                const uint8_t *codes = job->codes + (n + r * step) * bytes + g * group_bytes(bits);
                __builtin_prefetch(codes + AHEAD);
                widen_group(bits, codes, w);
                for (int c = 0; c < WIDE; c++) {
                    const float *own = x + c * job->width;
                    V *sum = sums[r][c];
                    if (bits == 16) {
                        for (int p = 0; p < PARTS; p++) sum[p % 2] = add_product(w[p], load(own + p * WIDTH), sum[p % 2]);
                        continue;
                    }
                    V of_group = times(w[0], load(own));
                    for (int p = 1; p < PARTS; p++) of_group = add_product(w[p], load(own + p * WIDTH), of_group);
                    sum[0] = add_product(of_group, all(scales[r][g - begin]), sum[0]);
                }
            }
        }
    }
    for (int c = 0; c < WIDE; c++)
        for (int r = 0; r < TALL; r++)
            job->y[(m + c) * job->stride + n + r * step] =
                sum_of(sums[r][c][0], sums[r][c][1]) + (job->bias ? job->bias[n + r * step] : 0.0f);
}

/* Row by row of the weight, as it lies in memory; a few rows at once where they meet WIDEST rows of x. */
INLINE void rows_of(const int bits, const Job *job, long n, long last) {
    long done = 0; /* rows of x that go through wide tiles */
    for (long r = n; r + TALLEST <= last && job->rows >= WIDEST; r += TALLEST)
        for (done = 0; done + WIDEST <= job->rows; done += WIDEST) tile(bits, TALLEST, WIDEST, job, r, 1, done);
    const long tall = done ? n + (last - n) / TALLEST * TALLEST : n;
    if (bits == 16 && !done) { /* fewer bits are bound by being widened */
        const long part = (last - n) / APART;
        for (const long end = n + part; n < end; n++)
            for (long m = 0; m < job->rows; m++) tile(bits, APART, 1, job, n, part, m);
        n += (APART - 1) * part;
    }
    for (; n < last; n++)
        for (long m = n < tall ? done : 0; m < job->rows; m++) tile(bits, 1, 1, job, n, 1, m);
}

INLINE void widened(const int bits, const uint8_t *codes, const uint16_t *scales, long groups, long columns, float *y) {
    for (long g = 0; g < groups; g++) {
        V w[PARTS];
        widen_group(bits, codes + g * group_bytes(bits), w);
        const V scale = all(bits == 16 ? 1.0f : scale_of(scales[g]));
        if ((g + 1) * GROUP <= columns) {
            for (int p = 0; p < PARTS; p++) store(y + g * GROUP + p * WIDTH, times(w[p], scale));
        } else {
            float last[GROUP];
            for (int p = 0; p < PARTS; p++) store(last + p * WIDTH, times(w[p], scale));
            memcpy(y + g * GROUP, last, sizeof(float) * (size_t)(columns - g * GROUP));
        }
    }
}

static void widen_row(int bits, const uint8_t *codes, const uint16_t *scales, long row, long groups, long columns, float *y) {
    codes += row * groups * group_bytes(bits);
    scales += bits == 16 ? 0 : row * groups;
    if (bits == 8)
        widened(8, codes, scales, groups, columns, y);
    else if (bits == 4)
        widened(4, codes, scales, groups, columns, y);
    else
        widened(16, codes, scales, groups, columns, y);
}

static void multiply(void *given) {
    Job *job = given;
    for (long item; (item = atomic_fetch_add(&job->next, 1)) < job->items;) {
        const long n = item * job->each, last = n + job->each < job->out ? n + job->each : job->out;
        if (job->bits == 8)
            rows_of(8, job, n, last);
        else if (job->bits == 4)
            rows_of(4, job, n, last);
        else
            rows_of(16, job, n, last);
    }
}

static void widen(void *given) {
    Job *job = given;
    for (long item; (item = atomic_fetch_add(&job->next, 1)) < job->items;) {
        const long n = item * job->each, last = n + job->each < job->out ? n + job->each : job->out;
        for (long row = n; row < last; row++)
            widen_row(job->bits, job->codes, job->scales, job->first + row, job->width / GROUP, job->columns,
                      job->y + row * job->columns);
    }
}

/* OpenMP's runtimes of gcc and Intel have this function: all threads of a team call `work(data)`. */
typedef void (*Fork)(void (*work)(void *), void *data, unsigned threads, unsigned flags);

static void run(void (*work)(void *), Job *job, long each, Fork fork, int threads) {
    job->each = each;
    job->items = (job->out + each - 1) / each;
    atomic_init(&job->next, 0);
    if (fork && threads > 1 && job->items > 1)
        fork(work, job, (unsigned)threads, 0);
    else
        work(job);
}

/* y [rows, out] (its rows `stride` floats apart) = x [rows, in] times the weight's transpose, plus bias [out] or NULL.
 * 0; 1 when there is no memory. */
int paddlemix_product(int bits, const uint8_t *codes, const uint16_t *scales, const float *x, long rows, long in,
                      long out, float *y, long stride, const float *bias, Fork fork, int threads) {
    const long width = (in + GROUP - 1) / GROUP * GROUP;
    float *padded = NULL;
    if (width != in) {
        padded = calloc((size_t)(rows * width), sizeof(float));
        if (!padded) return 1;
        for (long m = 0; m < rows; m++) memcpy(padded + m * width, x + m * in, sizeof(float) * (size_t)in);
    }
    Job job = {.codes = codes, .scales = scales, .x = padded ? padded : x, .bias = bias, .y = y, .rows = rows,
               .width = width, .out = out, .stride = stride, .bits = bits};
    run(multiply, &job, 64, fork, threads);
    free(padded);
    return 0;
}

/* y [count, in] = rows `first` to `first + count` of the weight. */
int paddlemix_widen(int bits, const uint8_t *codes, const uint16_t *scales, long first, long count, long in, float *y,
                    Fork fork, int threads) {
    Job job = {.codes = codes, .scales = scales, .y = y, .width = (in + GROUP - 1) / GROUP * GROUP, .out = count,
               .first = first, .columns = in, .bits = bits};
    run(widen, &job, 32, fork, threads);
    return 0;
}

/* y [rows, count] (its rows `stride` floats apart) = piece [rows, count], plus bias [count] or NULL. */
int paddlemix_put(const float *piece, long rows, long count, float *y, long stride, const float *bias) {
    for (long m = 0; m < rows; m++, piece += count, y += stride) {
        if (bias)
            for (long n = 0; n < count; n++) y[n] = piece[n] + bias[n];
        else
            memcpy(y, piece, sizeof(float) * (size_t)count);
    }
    return 0;
}

/* y [count, in] = the rows of the weight [out, in] that `ids` [count] name; 1 when one of them has no row. */
int paddlemix_rows(int bits, const uint8_t *codes, const uint16_t *scales, const int64_t *ids, long count, long in,
                   long out, float *y) {
    for (long i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= out) return 1;
        widen_row(bits, codes, scales, ids[i], (in + GROUP - 1) / GROUP, in, y + i * in);
    }
    return 0;
}
