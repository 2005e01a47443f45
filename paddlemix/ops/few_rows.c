/* SPDX-License-Identifier: Apache-2.0
 *
 * Operators in float32 for a CPU that computes without gradients: all of a decode step, whose rows are few and each of
 * them one place of its sequence, and what lies between the products of a prompt or of a tower, for any number of rows.
 *
 * Products of few rows read each weight once, about as fast as memory gives it. MKL copies a weight into an order of
 * its own before it multiplies more than one row, so a step of four rows is bound by twice the memory of a step of one.
 * Here DEPTH rows of the weight are read side by side, TILE columns of them at a time (long pieces: memory is fastest
 * where it is read on and on). The sums of these columns wait in the nearest caches, those of all rows of x next to each
 * other: as rows of y they would lie a multiple of 4096 bytes apart, and push each other out of them.
 *
 * What lies between two products of a step is small, and takes its time for being many operators: a product has pushed
 * their code and the framework's out of the caches. So all layers of a step are one call (paddlemix_step). Where they are
 * not of its form, norm, rotation, writing to the cache, attention and gate are one call each.
 *
 * With many rows it is large, and takes its time for going through memory once for each of many operators; here each
 * value is read once and written once. Attention of many queries multiplies by the BLAS of paddle, a head and some
 * queries at a time, so that their scores stay in the cache (paddlemix_attend_many).
 *
 * The file is compiled on the machine that runs it (low_bits/build.py), so the compiler knows which instructions there
 * are. Threads are those of the OpenMP runtime that paddle has loaded; its fork function is an argument. The order of
 * each sum does not depend on the other rows or on the number of threads.
 */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define WIDTH (BYTES / 4)
#define DEPTH 8            /* rows of the weight that are read side by side */
#if defined(__AVX512FP16__) /* Intel from Sapphire Rapids on: one row is read faster without, four are not */
#define AHEAD 2            /* rows of x from which on the next rows of the weight are asked for ahead */
#else
#define AHEAD 1
#endif
#define TILE 8192          /* columns at a time, half of them for more than 4 rows: sums of 128 KB, on the stack */
#define MOST 8             /* rows of x */
#define KEYS 1024          /* keys whose scores are held at a time */
#define GROUP 16           /* query heads of one key head that go over its keys together */
#define PORTION 65536      /* values that a thread takes at a time */
#define QUERIES 128        /* of a prompt that are taken together */
#define COPIED 32          /* of them, from which on the keys of a head are copied side by side */
#define SCORES 131072      /* of them at a time: 512 KB */
#define STREAMS 4          /* parts of them that are read side by side: the memory of one page is waited for in the others */
#define INLINE static inline __attribute__((always_inline))
typedef float V __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(BYTES), aligned(4), may_alias));

/* OpenMP's runtimes of gcc and Intel have this function: all threads of a team call `work(data)`. */
typedef void (*Fork)(void (*work)(void *), void *data, unsigned threads, unsigned flags);

/* `work(job)` takes the `items` of a job until none is left; by all threads where there are several of both. */
static void by_threads(void (*work)(void *), void *job, long items, Fork fork, int threads) {
    if (fork && threads > 1 && items > 1)
        fork(work, job, (unsigned)threads, 0);
    else
        work(job);
}

typedef struct {
    const float *x, *w;
    float *y;
    long rows, in, out, each, items;
    atomic_long next;
} Product;

/* Adds x [rows, depth] times w [depth, columns n to last] to `sums`, or begins them. */
INLINE void panel(const int rows, const int depth, const int ahead, const Product *job, long k, long n, long last, V *sums) {
    const long in = job->in, out = job->out;
    const float *w = job->w + k * out;
    float each[MOST][DEPTH];
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++)
        for (int d = 0; d < depth; d++) each[m][d] = job->x[m * in + k + d];
    for (; n < last; n += WIDTH, sums += rows) {
        V sum[MOST];
#pragma GCC unroll 8
        for (int m = 0; m < rows; m++) sum[m] = k ? sums[m] : (V){0};
#pragma GCC unroll 8
        for (int d = 0; d < depth; d++) {
            const V v = *(const V *)(w + d * out + n);
            if (ahead && rows >= AHEAD) __builtin_prefetch(w + (depth + d) * out + n, 0, 2);
#pragma GCC unroll 8
            for (int m = 0; m < rows; m++) sum[m] += v * each[m][d];
        }
#pragma GCC unroll 8
        for (int m = 0; m < rows; m++) sums[m] = sum[m];
    }
}

INLINE void columns(const int rows, const Product *job, long n, long last) {
    const long whole = job->in / DEPTH * DEPTH;
    V sums[MOST / 2 * TILE / WIDTH];
    for (long k = 0; k < whole; k += DEPTH) {
        if (k + 2 * DEPTH <= job->in)
            panel(rows, DEPTH, 1, job, k, n, last, sums);
        else
            panel(rows, DEPTH, 0, job, k, n, last, sums);
    }
    for (long k = whole; k < job->in; k++) panel(rows, 1, 0, job, k, n, last, sums);
    for (const V *at = sums; n < last; n += WIDTH)
        for (int m = 0; m < rows; m++) *(V *)(job->y + m * job->out + n) = *at++;
}

static void multiply(void *given) {
    Product *job = given;
    for (long item; (item = atomic_fetch_add(&job->next, 1)) < job->items;) {
        const long n = item * job->each, last = n + job->each < job->out ? n + job->each : job->out;
        switch (job->rows) {
            case 1: columns(1, job, n, last); break;
            case 2: columns(2, job, n, last); break;
            case 3: columns(3, job, n, last); break;
            case 4: columns(4, job, n, last); break;
            case 5: columns(5, job, n, last); break;
            case 6: columns(6, job, n, last); break;
            case 7: columns(7, job, n, last); break;
            case 8: columns(8, job, n, last); break;
        }
    }
}

/* y [rows, out] = x [rows, in] times w [in, out], for at most MOST rows; `out` is a multiple of 16, the widest WIDTH. */
void paddlemix_product(const float *x, const float *w, float *y, long rows, long in, long out, Fork fork, int threads) {
    const long parts = threads > 1 ? threads : 1;
    const long share = (out / parts + 63) / 64 * 64 + 64 * (out < 64 * parts), tile = rows > MOST / 2 ? TILE / 2 : TILE,
               each = share < tile ? share : tile;
    Product job = {.x = x, .w = w, .y = y, .rows = rows, .in = in, .out = out, .each = each,
                   .items = (out + each - 1) / each};
    atomic_init(&job.next, 0);
    by_threads(multiply, &job, job.items, fork, threads);
}

#if WIDTH == 16
static const I LANES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif WIDTH == 8
static const I LANES = {0, 1, 2, 3, 4, 5, 6, 7};
#else
static const I LANES = {0, 1, 2, 3};
#endif

INLINE float sum_of(V v) {
#pragma GCC unroll 4
    for (int half = WIDTH / 2; half; half /= 2) {
#if defined(__clang__)
        V other;
        for (int i = 0; i < WIDTH; i++) other[i] = v[i ^ half];
        v += other;
#else
        v += __builtin_shuffle(v, LANES ^ half);
#endif
    }
    return v[0];
}

/* a where the lanes of `mask` are set, else b. */
INLINE V either(I mask, V a, V b) { return (V)((mask & (I)a) | (~mask & (I)b)); }

/* e^x to 2e-7 of it (a polynomial of degree 6 for the rest of x / ln 2), at least e^-87; infinite from 88.4 on. */
INLINE V exp_of(V x) {
    x = either(x < -87.0f, (V){0} - 87.0f, x); /* NaN stays NaN */
    x = either(x > 89.0f, (V){0} + 89.0f, x); /* of 2^128, whose bits are those of infinity */
    const V shifted = x * 1.44269504f + 12582912.0f, whole = shifted - 12582912.0f;
    const V r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    V y = r * (1.0f / 5040) + 1.0f / 720;
    y = y * r + 1.0f / 120;
    y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6;
    y = y * r + 0.5f;
    y = y * r * r + r + 1.0f;
    const I power = __builtin_convertvector(whole, I) + 127;
    const I bits = power << 23;
    return y * (V)bits;
}

/* Rows that do not need each other. */
typedef struct {
    const void *job;
    void (*run)(const void *job, long first, long last); /* rows `first` to `last` */
    long rows, each;
    atomic_long next;
} Rows;

static void take_rows(void *given) {
    Rows *all = given;
    for (long first; (first = atomic_fetch_add(&all->next, all->each)) < all->rows;)
        all->run(all->job, first, first + all->each < all->rows ? first + all->each : all->rows);
}

/* All rows of `values` values each, by several threads where they are worth it. */
static void run_rows(void (*run)(const void *, long, long), const void *job, long rows, long values, Fork fork, int threads) {
    Rows all = {.job = job, .run = run, .rows = rows, .each = values < PORTION ? PORTION / values : 1};
    atomic_init(&all.next, 0);
    by_threads(take_rows, &all, (rows + all.each - 1) / all.each, fork, threads);
}

typedef struct {
    const float *x, *weight;
    float *y;
    long width;
    float epsilon;
} Norm;

static void norm_rows(const void *given, long row, long last) {
    const Norm *job = given;
    const long width = job->width;
    const float *x = job->x + row * width, *weight = job->weight;
    float *y = job->y + row * width;
    for (; row < last; row++, x += width, y += width) {
        V sum = {0};
        long d = 0;
        for (; d + WIDTH <= width; d += WIDTH) sum += *(const V *)(x + d) * *(const V *)(x + d);
        float total = sum_of(sum);
        for (; d < width; d++) total += x[d] * x[d];
        const float scale = 1.0f / sqrtf(total / width + job->epsilon);
        for (d = 0; d + WIDTH <= width; d += WIDTH) *(V *)(y + d) = *(const V *)(x + d) * scale * *(const V *)(weight + d);
        for (; d < width; d++) y[d] = x[d] * scale * weight[d];
    }
}

/* y = x / sqrt(mean(x * x) + epsilon) * weight for each of the rows [rows, width]; the last axis decides. */
void paddlemix_rms_norm(const float *x, const float *weight, float *y, long rows, long width, float epsilon, Fork fork,
                        int threads) {
    const Norm job = {x, weight, y, width, epsilon};
    run_rows(norm_rows, &job, rows, width, fork, threads);
}

typedef struct {
    const float *x;
    float *y;
    long inner;
} Gate;

static void gate_rows(const void *given, long row, long last) {
    const Gate *job = given;
    const long inner = job->inner;
    const float *x = job->x + 2 * row * inner;
    float *y = job->y + row * inner;
    for (; row < last; row++, x += 2 * inner, y += inner)
        for (long d = 0; d < inner; d += WIDTH) {
            const V gate = *(const V *)(x + d);
            *(V *)(y + d) = gate / (1.0f + exp_of(-gate)) * *(const V *)(x + inner + d);
        }
}

/* y [rows, inner] = silu(gate) * up, where x [rows, 2 inner] holds gate and up; `inner` is a multiple of 16. */
void paddlemix_swiglu(const float *x, float *y, long rows, long inner, Fork fork, int threads) {
    const Gate job = {x, y, inner};
    run_rows(gate_rows, &job, rows, 2 * inner, fork, threads);
}

/* A job of Gate whose x has as many values as y. */
static void quick_gelu_rows(const void *given, long row, long last) {
    const Gate *job = given;
    for (long d = row * job->inner; d < last * job->inner; d += WIDTH) {
        const V x = *(const V *)(job->x + d);
        *(V *)(job->y + d) = x / (1.0f + exp_of(x * -1.702f));
    }
}

/* y = x * sigmoid(1.702 x), both [rows, width]; `width` is a multiple of 16. */
void paddlemix_quick_gelu(const float *x, float *y, long rows, long width, Fork fork, int threads) {
    const Gate job = {x, y, width};
    run_rows(quick_gelu_rows, &job, rows, width, fork, threads);
}

/* A job of Gate whose x is one row. */
static void bias_rows(const void *given, long row, long last) {
    const Gate *job = given;
    for (float *y = job->y + row * job->inner; row < last; row++, y += job->inner)
        for (long d = 0; d < job->inner; d += WIDTH) *(V *)(y + d) += *(const V *)(job->x + d);
}

/* y [rows, width] += bias [width]; `width` is a multiple of 16. */
void paddlemix_add_bias(float *y, const float *bias, long rows, long width, Fork fork, int threads) {
    const Gate job = {bias, y, width};
    run_rows(bias_rows, &job, rows, width, fork, threads);
}

typedef struct {
    const float *x, *cosine, *sine;
    float *q, *k, *v;
    long heads, kv_heads, width;
} Turn;

static void turn_rows(const void *given, long row, long last) {
    const Turn *job = given;
    const long heads = job->heads, kv_heads = job->kv_heads, width = job->width, half = width / 2, own = kv_heads * width;
    const float *x = job->x + row * (heads * width + 2 * own);
    for (; row < last; row++) {
        const float *cosine = job->cosine + row * width, *sine = job->sine + row * width;
        float *y = job->q + row * heads * width;
        for (long head = 0; head < heads + kv_heads; head++, x += width, y += width) {
            if (head == heads) y = job->k + row * own;
            for (long d = 0; d < half; d++) y[d] = x[d] * cosine[d] + x[d + half] * sine[d];
            for (long d = half; d < width; d++) y[d] = x[d] * cosine[d] + x[d - half] * sine[d];
        }
        memcpy(job->v + row * own, x, own * sizeof *x);
        x += own;
    }
}

/* q [rows, heads, width] and k, v [rows, kv_heads, width] of x [rows, heads + 2 kv_heads, width]; q and k are turned by
 * cos and sin [rows, width], whose sign is that of the turn. */
void paddlemix_turn(const float *x, const float *cosine, const float *sine, float *q, float *k, float *v, long rows,
                    long heads, long kv_heads, long width, Fork fork, int threads) {
    const Turn job = {x, cosine, sine, q, k, v, heads, kv_heads, width};
    run_rows(turn_rows, &job, rows, (heads + 2 * kv_heads) * width, fork, threads);
}

/* Writes new [rows, kv_heads, width] to place `offset` of held [rows, kv_heads, places, width]: that of each row, or
 * where `offsets` is null the same for all. A place outside is the last one, as a row without room spoils it alone. */
void paddlemix_put(const float *new, float *held, const int64_t *offsets, long offset, long rows, long kv_heads,
                   long places, long width) {
    for (long row = 0; row < rows; row++) {
        long place = offsets ? offsets[row] : offset;
        if (place < 0 || place >= places) place = places - 1;
        for (long head = 0; head < kv_heads; head++, new += width, held += places * width)
            memcpy(held + place * width, new, width * sizeof *new);
    }
}

typedef struct {
    const float *q, *k, *v, *own_k, *own_v;
    float *y;
    const int64_t *offsets, *starts, *lengths;
    long offset, causal, rows, heads, kv_heads, places, width;
    float scale;
    atomic_long next;
} Attention;

/* The scores of `count` keys of one head, times scale: q k. Returns the largest of them and `most`. */
INLINE float scores_of(const float *q, const float *k, long width, long count, float scale, float *scores, float most) {
    const long whole = width / WIDTH * WIDTH, part = count / STREAMS;
    for (long key = 0; key < part; key++, k += width) {
        V sums[STREAMS] = {0};
        for (long d = 0; d < whole; d += WIDTH) {
            const V v = *(const V *)(q + d);
#pragma GCC unroll 8
            for (int i = 0; i < STREAMS; i++) sums[i] += v * *(const V *)(k + i * part * width + d);
        }
#pragma GCC unroll 8
        for (int i = 0; i < STREAMS; i++) {
            float sum = sum_of(sums[i]);
            for (long d = whole; d < width; d++) sum += q[d] * k[i * part * width + d];
            scores[key + i * part] = sum *= scale;
            most = sum > most ? sum : most;
        }
    }
    k += (STREAMS - 1) * part * width;
    for (long key = STREAMS * part; key < count; key++, k += width) {
        V sums = {0};
        for (long d = 0; d < whole; d += WIDTH) sums += *(const V *)(q + d) * *(const V *)(k + d);
        float sum = sum_of(sums);
        for (long d = whole; d < width; d++) sum += q[d] * k[d];
        scores[key] = sum *= scale;
        most = sum > most ? sum : most;
    }
    return most;
}

/* y = y * fade + the weighted sum of `count` values, `n` vectors of their width. */
INLINE void add_values(const int n, float *y, float fade, const float *weights, const float *v, long count, long width) {
    const long part = count / STREAMS;
    V sums[8];
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) sums[i] = *(const V *)(y + i * WIDTH) * fade;
    for (long key = 0; key < part; key++, v += width) {
#pragma GCC unroll 8
        for (int stream = 0; stream < STREAMS; stream++)
#pragma GCC unroll 8
            for (int i = 0; i < n; i++)
                sums[i] += weights[key + stream * part] * *(const V *)(v + stream * part * width + i * WIDTH);
    }
    v += (STREAMS - 1) * part * width;
    for (long key = STREAMS * part; key < count; key++, v += width)
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) sums[i] += weights[key] * *(const V *)(v + i * WIDTH);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) *(V *)(y + i * WIDTH) = sums[i];
}

typedef struct {
    float most, total; /* largest score so far, and the sum of the weights scaled by it */
} Softmax;

/* One query head over `count` more keys of its key head; y is scaled anew when a larger score is met. */
static void add_keys(const float *q, const float *k, const float *v, float *y, long count, long width, float scale,
                     Softmax *softmax) {
    float scores[KEYS + WIDTH];
    const float most = scores_of(q, k, width, count, scale, scores, softmax->most);
    const float fade = softmax->total > 0 ? expf(softmax->most - most) : 0;
    for (long i = count; i < (count + WIDTH - 1) / WIDTH * WIDTH; i++) scores[i] = -INFINITY; /* weighs 1e-38 */
    V sum = {0};
    for (long i = 0; i < count; i += WIDTH) {
        V weight = exp_of(*(const V *)(scores + i) - most);
        *(V *)(scores + i) = weight;
        sum += weight;
    }
    *softmax = (Softmax){most, softmax->total * fade + sum_of(sum)};
    long d = 0;
    for (; d + 8 * WIDTH <= width; d += 8 * WIDTH) add_values(8, y + d, fade, scores, v + d, count, width);
    for (; d + 4 * WIDTH <= width; d += 4 * WIDTH) add_values(4, y + d, fade, scores, v + d, count, width);
    for (; d + WIDTH <= width; d += WIDTH) add_values(1, y + d, fade, scores, v + d, count, width);
    for (; d < width; d++) {
        float value = y[d] * fade;
        for (long key = 0; key < count; key++) value += scores[key] * v[key * width + d];
        y[d] = value;
    }
}

/* The `heads` query heads of a key head: where there are several, a block of keys stays in the cache for all of them.
 * A key and value beside the others (own_k is not null) are seen last. */
static void group_of(const float *q, const float *k, const float *v, const float *own_k, const float *own_v, float *y,
                     long heads, long width, float scale, long first, long last) {
    const long block = heads > 1 ? KEYS / 4 : KEYS;
    Softmax softmax[GROUP];
    memset(y, 0, heads * width * sizeof *y);
    for (long i = 0; i < heads; i++) softmax[i] = (Softmax){-INFINITY, 0};
    for (long count; first < last; first += count) {
        count = last - first < block ? last - first : block;
        for (long i = 0; i < heads; i++)
            add_keys(q + i * width, k + first * width, v + first * width, y + i * width, count, width, scale, softmax + i);
    }
    for (long i = 0; own_k && i < heads; i++)
        add_keys(q + i * width, own_k, own_v, y + i * width, 1, width, scale, softmax + i);
    for (long i = 0; i < heads; i++)
        for (long d = 0; d < width; d++) y[i * width + d] /= softmax[i].total;
}

static void attend(void *given) {
    Attention *job = given;
    const long group = job->heads / job->kv_heads, width = job->width, head = job->places * width;
    for (long item; (item = atomic_fetch_add(&job->next, 1)) < job->rows * job->kv_heads;) {
        const long row = item / job->kv_heads, own = job->offsets ? job->offsets[row] : job->offset;
        long first = job->starts ? job->starts[row] : 0, last = job->places;
        if (job->causal && own + !job->own_k < last) last = own + !job->own_k;
        if (job->lengths && job->lengths[row] < last) last = job->lengths[row];
        if (first < 0) first = 0;
        if (first >= last && !job->own_k) { /* itself alone */
            first = own >= 0 && own < job->places ? own : job->places - 1;
            last = first + 1;
        }
        const float *own_k = job->own_k ? job->own_k + item * width : 0, *own_v = own_k ? job->own_v + item * width : 0;
        for (long i = 0; i < group; i += GROUP) {
            const long at = (item * group + i) * width, count = group - i < GROUP ? group - i : GROUP;
            group_of(job->q + at, job->k + item * head, job->v + item * head, own_k, own_v, job->y + at, count, width,
                     job->scale, first, last);
        }
    }
}

static void attend_all(Attention *job, Fork fork, int threads) {
    atomic_init(&job->next, 0);
    by_threads(attend, job, job->rows * job->kv_heads, fork, threads);
}

/* One query a row: y, q [rows, heads, width] over k, v [rows, kv_heads, places, width]. Query of row r stands at place
 * offsets[r] (null: offset) and sees keys up to it if `causal`, from starts[r] on and below lengths[r] (null: all); one
 * that would see none sees the key at its own place. */
void paddlemix_attend(const float *q, const float *k, const float *v, float *y, const int64_t *offsets,
                      const int64_t *starts, const int64_t *lengths, long offset, long causal, long rows, long heads,
                      long kv_heads, long places, long width, float scale, Fork fork, int threads) {
    Attention job = {.q = q, .k = k, .v = v, .y = y, .offsets = offsets, .starts = starts, .lengths = lengths,
                     .offset = offset, .causal = causal, .rows = rows, .heads = heads, .kv_heads = kv_heads,
                     .places = places, .width = width, .scale = scale};
    attend_all(&job, fork, threads);
}

/* cblas_sgemm, all matrices row by row. */
typedef void (*Sgemm)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda,
                      const float *b, int ldb, float beta, float *c, int ldc);
enum { BY_ROWS = 101, PLAIN = 111, TRANSPOSED = 112 };

/* Keys and values in memory, and how far apart their places, heads and rows of the batch lie, in values. */
typedef struct {
    const float *k, *v;
    long place, head, row;
} Keys;

/* Keys and values of one head, whose places lie `place` values apart. */
typedef struct {
    const float *k, *v;
    long place;
} Head;

typedef struct {
    const float *q;
    float *y;
    Keys held, own; /* own.k null: all keys are in `held` */
    const int64_t *offsets, *starts, *lengths;
    long offset, causal, rows, queries, heads, kv_heads, places, width, block;
    float scale;
    Sgemm multiply;
    atomic_long next;
    atomic_int failed;
} Prompt;

/* The keys from place `first` to `last` that query `place` sees, of `total`. */
INLINE void window_of(const Prompt *job, long row, long place, long total, long *first, long *last) {
    *first = job->starts && job->starts[row] > 0 ? job->starts[row] : 0;
    *last = job->causal && place < total ? place + 1 : total;
    if (job->lengths && job->lengths[row] < *last) *last = job->lengths[row];
    if (*first < *last) return;
    *first = place >= 0 && place < total ? place : total - 1; /* itself alone */
    *last = *first + 1;
}

/* e^(x - largest x) of `count` scores in place; returns their sum. */
INLINE float weigh(float *scores, long count) {
    const long whole = count / WIDTH * WIDTH;
    V rest = (V){0} - INFINITY, most = rest, sum = {0};
    memcpy(&rest, scores + whole, (count - whole) * sizeof *scores);
    for (long i = 0; i < whole; i += WIDTH) {
        const V x = *(const V *)(scores + i);
        most = either(x > most, x, most);
    }
    most = either(rest > most, rest, most);
    float largest = most[0];
    for (int i = 1; i < WIDTH; i++) largest = most[i] > largest ? most[i] : largest;
    for (long i = 0; i < whole; i += WIDTH) {
        const V weight = exp_of(*(const V *)(scores + i) - largest);
        *(V *)(scores + i) = weight;
        sum += weight;
    }
    rest = exp_of(rest - largest);
    memcpy(scores + whole, &rest, (count - whole) * sizeof *scores);
    float total = sum_of(sum);
    for (long i = whole; i < count; i++) total += scores[i];
    return total;
}

/* Queries `query` to `last` of one head over the keys of `parts`, held and own. `scores` has room for all of them. */
static void queries_of(const Prompt *job, const Head *parts, float *scores, long row, long head, long query, long last) {
    const long offset = job->offsets ? job->offsets[row] : job->offset, width = job->width, stride = job->heads * width;
    const long split = job->own.k ? offset : job->places, total = job->own.k ? offset + job->queries : job->places;
    const long count = last - query;
    const float *q = job->q + (row * job->queries + query) * stride + head * width;
    float *y = job->y + (row * job->queries + query) * stride + head * width;
    long begin = total, end = 0, first, behind;
    for (long i = 0; i < count; i++) {
        window_of(job, row, offset + query + i, total, &first, &behind);
        begin = first < begin ? first : begin;
        end = behind > end ? behind : end;
    }
    const long keys = end - begin, near = begin < split ? (end < split ? end : split) - begin : 0;
    const long from[] = {begin, begin + near - split}, counts[] = {near, keys - near};
    for (int part = 0; part < 2; part++) {
        const Head *one = parts + part;
        if (counts[part])
            job->multiply(BY_ROWS, PLAIN, TRANSPOSED, (int)count, (int)counts[part], (int)width, job->scale, q, (int)stride,
                          one->k + from[part] * one->place, (int)one->place, 0, scores + part * near, (int)keys);
    }
    float totals[QUERIES];
    for (long i = 0; i < count; i++) {
        float *own = scores + i * keys;
        window_of(job, row, offset + query + i, total, &first, &behind);
        memset(own, 0, (first - begin) * sizeof *own);
        memset(own + behind - begin, 0, (end - behind) * sizeof *own);
        totals[i] = weigh(own + first - begin, behind - first);
    }
    for (int part = 0; part < 2; part++) {
        const Head *one = parts + part;
        if (counts[part])
            job->multiply(BY_ROWS, PLAIN, PLAIN, (int)count, (int)width, (int)counts[part], 1, scores + part * near,
                          (int)keys, one->v + from[part] * one->place, (int)one->place, part && near, y, (int)stride);
    }
    for (long i = 0; i < count; i++)
        for (long d = 0; d < width; d++) y[i * stride + d] /= totals[i];
}

/* Keys and values of a head. */
static Head head_of(const Keys *all, long row, long head) {
    const long at = row * all->row + head * all->head;
    return (Head){all->k + at, all->v + at, all->place};
}

/* The first `places` of them side by side at `room` (2 places width). Other heads lie between them, so that they are
 * kilobytes apart: the products of each block of queries would take a third longer. For few queries the copy would. */
static Head side_by_side(Head one, long places, long width, float *room) {
    for (int side = 0; side < 2; side++)
        for (long place = 0; place < places; place++)
            memcpy(room + (side * places + place) * width, (side ? one.v : one.k) + place * one.place,
                   width * sizeof *room);
    return (Head){room, room + places * width, width};
}

static void attend_many(void *given) {
    Prompt *job = given;
    const long blocks = (job->queries + job->block - 1) / job->block, group = job->heads / job->kv_heads;
    const int last_part = job->own.k != 0; /* that of the queries' own keys: the others lie as a cache keeps them */
    const long places = last_part ? job->queries : job->places, width = job->width, scored = job->block * job->places;
    const int apart = (last_part ? job->own : job->held).place != width && job->queries >= COPIED;
    Head parts[2];
    float *scores = 0;
    for (long item, known = -1; (item = atomic_fetch_add(&job->next, 1)) < job->rows * job->heads * blocks;) {
        const long one = item / blocks, query = item % blocks * job->block, last = query + job->block;
        const long row = one / job->heads, head = one % job->heads, key_head = head / group;
        if (!scores && !(scores = malloc((size_t)(scored + 2 * apart * places * width) * sizeof *scores))) {
            atomic_store(&job->failed, 1);
            break;
        }
        if (one / group != known) {
            known = one / group;
            parts[0] = head_of(&job->held, row, key_head);
            if (last_part) parts[1] = head_of(&job->own, row, key_head);
            if (apart) parts[last_part] = side_by_side(parts[last_part], places, width, scores + scored);
        }
        queries_of(job, parts, scores, row, head, query, last < job->queries ? last : job->queries);
    }
    free(scores);
}

/* Many queries a row: y, q [rows, queries, heads, width] over `places` keys and values of kv_heads heads. They lie at k
 * and v, `place`, `head` and `row` values apart; or, where own_k is not null, those before the offset of a row do, and
 * those of the queries are own_k and own_v [rows, queries, kv_heads, width]. `places` is then at least the largest offset
 * plus the queries. Query i of row r stands at place offsets[r] + i (null: offset + i). What it sees: paddlemix_attend.
 * Not 0 when there is no memory. */
int paddlemix_attend_many(const float *q, const float *k, const float *v, const float *own_k, const float *own_v, float *y,
                          const int64_t *offsets, const int64_t *starts, const int64_t *lengths, long offset, long causal,
                          long rows, long queries, long heads, long kv_heads, long places, long width, long place,
                          long head, long row, float scale, Sgemm multiply, Fork fork, int threads) {
    const long fit = SCORES / places, most = fit < QUERIES / 8 ? QUERIES / 8 : fit > QUERIES ? QUERIES : fit;
    const long blocks = (queries + most - 1) / most;
    Prompt job = {.q = q, .y = y, .held = {k, v, place, head, row},
                  .own = {own_k, own_v, kv_heads * width, width, queries * kv_heads * width}, .offsets = offsets,
                  .starts = starts, .lengths = lengths, .offset = offset, .causal = causal, .rows = rows,
                  .queries = queries, .heads = heads, .kv_heads = kv_heads, .places = places, .width = width,
                  .block = (queries + blocks - 1) / blocks, .scale = scale, .multiply = multiply};
    atomic_init(&job.next, 0);
    atomic_init(&job.failed, 0);
    by_threads(attend_many, &job, rows * heads * blocks, fork, threads);
    return atomic_load(&job.failed);
}

/* y += x */
static void add(float *y, const float *x, long count) {
    for (long i = 0; i < count; i++) y[i] += x[i];
}

/* A weight of several parts whose columns are joined. Of 32 bits `codes` are floats [in, out] and there is one part;
 * fewer are codes and scales [out, in] as low_bits/kernels.c has them. The order of the members is that of whole_step.py. */
typedef struct {
    struct {
        int64_t bits;
        const void *codes, *scales;
        int64_t out;
    } parts[3];
    const float *bias; /* or null */
    int64_t count;
} Weight;

typedef struct {
    const float *norm, *second_norm;
    Weight joined, out, gate_up, down;
    float *keys, *values; /* [rows, kv_heads, places, head_width] */
} Layer;

/* paddlemix_product of low_bits/kernels.c */
typedef int (*FewBits)(int bits, const void *codes, const void *scales, const float *x, long rows, long in, long out,
                       float *y, long stride, const float *bias, Fork fork, int threads);

/* y [rows, out] = x [rows, in] times the weight, plus its bias. Not 0 when there is no memory. */
static int times(const Weight *w, const float *x, float *y, long rows, long in, long out, FewBits few_bits, Fork fork,
                 int threads) {
    if (w->parts[0].bits == 32) {
        paddlemix_product(x, w->parts[0].codes, y, rows, in, out, fork, threads);
        for (long row = 0; w->bias && row < rows; row++) add(y + row * out, w->bias, out);
        return 0;
    }
    const float *bias = w->bias;
    for (long i = 0; i < w->count; y += w->parts[i].out, bias += bias ? w->parts[i].out : 0, i++)
        if (few_bits((int)w->parts[i].bits, w->parts[i].codes, w->parts[i].scales, x, rows, in, w->parts[i].out, y, out,
                     bias, fork, threads))
            return 1;
    return 0;
}

/* All layers of a step: x [rows, width], one place a row, becomes what the last layer gives.
 *
 * Each layer: norm, product, rotation by cos and sin [rows, head_width] (paddlemix_turn); its keys and values go to the
 * places `offsets` (null: offset) of the cache, or, where own_keys is not null, into own_keys and own_values
 * [layers, rows, kv_heads, head_width] while the cache is only read; causal attention (paddlemix_attend), product, sum;
 * norm, product, gate of silu [rows, 2 inner], product, sum. Not 0 when there is no memory; x is spoiled then. */
int paddlemix_step(const Layer *layers, long count, float *x, const float *cosine, const float *sine, float *own_keys,
                   float *own_values, const int64_t *offsets, const int64_t *starts, const int64_t *lengths, long offset,
                   long rows, long width, long heads, long kv_heads, long places, long head_width, long inner,
                   float epsilon, float scale, FewBits few_bits, Fork fork, int threads) {
    const long attended = heads * head_width, own = kv_heads * head_width, joined = attended + 2 * own;
    const long wide = joined + attended > 3 * inner ? joined + attended : 3 * inner;
    float *normed = malloc((size_t)rows * (width + wide + joined) * sizeof *normed);
    float *first = normed + rows * width, *q = first + rows * wide, *k = q + rows * attended, *v = k + rows * own;
    float *const answer = first + rows * joined, *const gated = first + 2 * rows * inner;
    int failed = !normed;
    for (const Layer *layer = layers; layer < layers + count && !failed; layer++) {
        paddlemix_rms_norm(x, layer->norm, normed, rows, width, epsilon, fork, threads);
        failed = times(&layer->joined, normed, first, rows, width, joined, few_bits, fork, threads);
        if (own_keys) k = own_keys + (layer - layers) * rows * own, v = own_values + (layer - layers) * rows * own;
        paddlemix_turn(first, cosine, sine, q, k, v, rows, heads, kv_heads, head_width, fork, threads);
        if (!own_keys) {
            paddlemix_put(k, layer->keys, offsets, offset, rows, kv_heads, places, head_width);
            paddlemix_put(v, layer->values, offsets, offset, rows, kv_heads, places, head_width);
        }
        Attention job = {.q = q, .k = layer->keys, .v = layer->values, .own_k = own_keys ? k : 0,
                         .own_v = own_keys ? v : 0, .y = answer, .offsets = offsets, .starts = starts,
                         .lengths = lengths, .offset = offset, .causal = 1, .rows = rows, .heads = heads,
                         .kv_heads = kv_heads, .places = places, .width = head_width, .scale = scale};
        attend_all(&job, fork, threads);
        failed |= times(&layer->out, answer, normed, rows, attended, width, few_bits, fork, threads);
        add(x, normed, rows * width);
        paddlemix_rms_norm(x, layer->second_norm, normed, rows, width, epsilon, fork, threads);
        failed |= times(&layer->gate_up, normed, first, rows, width, 2 * inner, few_bits, fork, threads);
        paddlemix_swiglu(first, gated, rows, inner, fork, threads);
        failed |= times(&layer->down, gated, normed, rows, inner, width, few_bits, fork, threads);
        add(x, normed, rows * width);
    }
    free(normed);
    return failed;
}
