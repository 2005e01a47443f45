/* SPDX-License-Identifier: Apache-2.0
 *
 * Products of 1 to 8 rows in float32 that read each weight once, about as fast as memory gives it.
 *
 * MKL copies a weight into an order of its own before it multiplies more than one row, so a step of four rows is bound
 * by twice the memory that a step of one row reads. Here DEPTH rows of the weight are read side by side, TILE columns
 * of them at a time. The sums of these columns wait in the first cache, those of all rows of x next to each other: as
 * rows of y they would lie a multiple of 4096 bytes apart, and push each other out of it. The file is compiled on the machine that runs it (low_bits/build.py), so the
 * compiler knows which instructions there are. Threads are those of the OpenMP runtime that paddle has loaded; its fork
 * function is an argument. The order of each sum is that of the weight's rows, whatever the rows of x and the threads.
 */
#include <stdatomic.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define WIDTH (BYTES / 4)
#define DEPTH 8            /* rows of the weight that are read side by side */
#define TILE 2048          /* columns at a time: 64 KB of sums of 8 rows */
#define MOST 8             /* rows of x */
#define INLINE static inline __attribute__((always_inline))
typedef float V __attribute__((vector_size(BYTES), aligned(4), may_alias));

/* OpenMP's runtimes of gcc and Intel have this function: all threads of a team call `work(data)`. */
typedef void (*Fork)(void (*work)(void *), void *data, unsigned threads, unsigned flags);

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
            if (ahead) __builtin_prefetch(w + (depth + d) * out + n, 0, 2);
#pragma GCC unroll 8
            for (int m = 0; m < rows; m++) sum[m] += v * each[m][d];
        }
#pragma GCC unroll 8
        for (int m = 0; m < rows; m++) sums[m] = sum[m];
    }
}

INLINE void columns(const int rows, const Product *job, long n, long last) {
    const long whole = job->in / DEPTH * DEPTH;
    V sums[MOST * TILE / WIDTH];
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
void paddlemix_few_rows(const float *x, const float *w, float *y, long rows, long in, long out, Fork fork, int threads) {
    const long parts = threads > 1 ? threads : 1;
    const long share = (out / parts + 63) / 64 * 64 + 64 * (out < 64 * parts), each = share < TILE ? share : TILE;
    Product job = {.x = x, .w = w, .y = y, .rows = rows, .in = in, .out = out, .each = each,
                   .items = (out + each - 1) / each};
    atomic_init(&job.next, 0);
    if (fork && threads > 1 && job.items > 1)
        fork(multiply, &job, (unsigned)threads, 0);
    else
        multiply(&job);
}
