/* Antialiased crop and resize of interleaved RGB bytes: what the passes share. See resample.c. */
#ifndef EQUIMOD_RESAMPLE_H
#define EQUIMOD_RESAMPLE_H

#include <stdint.h>
#include <string.h>

#define ROWS 8      /* that a horizontal pass works on at once */
#define ROW_PAD 64  /* bytes that a pass may write after a row of the intermediate image */
#define TAIL_PAD 16 /* bytes that a horizontal pass may read after the last pixel it uses */

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

/* One axis of a resize: output `o` is the sum over taps t of weight[t] * input[low[o] + t], in fixed point.
 * Taps come in pairs, tap 2k in the lower half of pair[k * n + o]; those that are not needed weigh 0, and only they may
 * lie at or after the end of the input. */
typedef struct {
    int32_t n;           /* outputs */
    int32_t length;      /* inputs */
    int32_t pairs;       /* of taps, for every output */
    int32_t precision;   /* bits after the point */
    const int32_t *low;  /* n, never falling */
    const int32_t *pair; /* pairs * n */
} Axis;

/* ROWS rows of `axis->length` pixels to rows of `axis->n` pixels. `scratch` holds ROWS rows of tail_bytes(axis). */
typedef void Horizontal(const Axis *axis, const uint8_t *const source[ROWS], uint8_t *const target[ROWS],
                        uint8_t *scratch);

/* Output row `o` of `bytes` bytes from the 2 * axis->pairs rows of its taps, each readable up to a multiple of 64. */
typedef void Vertical(const Axis *axis, int32_t o, const uint8_t *const *rows, uint8_t *target, int64_t bytes);

/* Weights of `count` outputs from the first on; see resample.c. */
typedef struct {
    double start, scale, support, inverse;
    int32_t length, count, taps, cubic;
    double *weight;       /* taps * count, tap after tap */
    double *total;        /* count */
    int32_t *low, *width; /* count */
} Weights;
typedef void Weigh(const Weights *weights);

typedef struct {
    Horizontal *horizontal;
    Vertical *vertical;
    Weigh *weigh;
} Passes;

static inline int64_t tail_bytes(const Axis *axis)
{
    return 2 * (6 * (int64_t)axis->pairs + TAIL_PAD);
}

/* The first output whose taps end so close to the end of a row that TAIL_PAD bytes from them on may not be there. */
static inline int32_t first_of_tail(const Axis *axis)
{
    int32_t o = axis->n;
    while (o > 0 && 3 * ((int64_t)axis->length - axis->low[o - 1]) < 6 * axis->pairs + TAIL_PAD)
        o--;
    return o;
}

/* Copies of the rows from the taps of output `tail` on, with room to read after them; where in a row they start. */
static inline int64_t copy_tail(const Axis *axis, int32_t tail, const uint8_t *const source[ROWS], uint8_t *scratch,
                                const uint8_t *copy[ROWS])
{
    const int64_t start = 3 * (int64_t)axis->low[tail];
    for (int r = 0; r < ROWS; r++) {
        copy[r] = scratch + r * tail_bytes(axis);
        memcpy(scratch + r * tail_bytes(axis), source[r] + start, 3 * (int64_t)axis->length - start);
    }
    return start;
}

/* Pairs of taps that weigh anything in output `o`. */
static inline int32_t used_pairs(const Axis *axis, int32_t o)
{
    int32_t pairs = axis->pairs;
    while (pairs > 1 && axis->pair[(int64_t)(pairs - 1) * axis->n + o] == 0)
        pairs--;
    return pairs;
}

/* torch's weights in double precision, normalised. Inlined into a function for each instruction set; without
 * contraction to fused multiply-add every one of them gives the same bits. */
static inline __attribute__((always_inline)) void weigh_inline(const Weights *restrict w)
{
    const int32_t count = w->count;
    double *restrict total = w->total;
    for (int32_t o = 0; o < count; o++) {
        double center = w->start + w->scale * (o + 0.5);
        int32_t low = (int32_t)(center - w->support + 0.5), high = (int32_t)(center + w->support + 0.5);
        low = low < 0 ? 0 : low;
        high = high > w->length ? w->length : high;
        w->low[o] = low;
        w->width[o] = high - low > w->taps ? w->taps : high - low;
        total[o] = 0;
    }
    for (int32_t t = 0; t < w->taps; t++) {
        double *restrict weight = w->weight + (int64_t)t * count;
        for (int32_t o = 0; o < count; o++) {
            double x = (t + w->low[o] - (w->start + w->scale * (o + 0.5)) + 0.5) * w->inverse, value;
            x = x < 0 ? -x : x;
            if (w->cubic) {
                double inner = (1.5 * x - 2.5) * x * x + 1, outer = ((-0.5 * x + 2.5) * x - 4) * x + 2;
                value = x < 1 ? inner : x < 2 ? outer : 0;
            } else {
                value = x < 1 ? 1 - x : 0;
            }
            value = t < w->width[o] ? value : 0;
            weight[o] = value;
            total[o] += value;
        }
    }
    for (int32_t t = 0; t < w->taps; t++) {
        double *restrict weight = w->weight + (int64_t)t * count;
        for (int32_t o = 0; o < count; o++)
            weight[o] /= total[o];
    }
}

/* The passes of this processor's instruction sets, or NULL where it, or the compiler, has not got them. */
const Passes *passes_avx2(void);
const Passes *passes_avx512(void);
const Passes *passes_neon(void);

#endif
