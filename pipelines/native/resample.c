/* Antialiased crop and resize of one decoded image, bit for bit as torch does it on uint8 tensors.
 *
 * Horizontal before vertical, 16-bit weights, and bytes in between: a cubic overshoots, and torch (as Pillow) cuts that
 * off at 0 and 255 after each pass, so the other order gives other pixels wherever edges are sharp. Rows go through the
 * horizontal pass eight at a time, and as soon as an output row has all its rows they go through the vertical one, so
 * what lies in between never leaves the first cache. Integers only: every instruction set gives the same bytes. */
#include "resample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_SIDE (1 << 24)

/* What to cut out of an image. Matches CUT in kernel.py. */
typedef struct {
    uint8_t *out;                    /* size * size * 3 bytes */
    int32_t x, y, width, height;     /* the box, in pixels of the image */
    int32_t full_width, full_height; /* what the box is resized to */
    int32_t left, top, size;         /* the square of it that is kept */
    int32_t cubic;                   /* 1 bicubic, 0 bilinear */
} Cut;

static void weigh_plain(const Weights *weights)
{
    weigh_inline(weights);
}

static uint8_t to_byte(int32_t sum, int32_t precision)
{
    sum >>= precision;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

static int32_t weight_of(const Axis *axis, int32_t tap, int32_t o)
{
    int32_t pair = axis->pair[(int64_t)(tap / 2) * axis->n + o];
    return tap % 2 ? pair >> 16 : (int16_t)pair;
}

static void horizontal_plain(const Axis *axis, const uint8_t *const source[ROWS], uint8_t *const target[ROWS],
                             uint8_t *scratch)
{
    (void)scratch;
    for (int32_t o = 0; o < axis->n; o++) {
        int32_t sum[ROWS][3], low = axis->low[o], taps = 2 * axis->pairs;
        for (int32_t r = 0; r < ROWS; r++)
            for (int32_t c = 0; c < 3; c++)
                sum[r][c] = 1 << (axis->precision - 1);
        if (taps > axis->length - low)
            taps = axis->length - low;
        for (int32_t t = 0; t < taps; t++) {
            int32_t weight = weight_of(axis, t, o);
            for (int32_t r = 0; r < ROWS; r++)
                for (int32_t c = 0; c < 3; c++)
                    sum[r][c] += weight * source[r][3 * ((int64_t)low + t) + c];
        }
        for (int32_t r = 0; r < ROWS; r++)
            for (int32_t c = 0; c < 3; c++)
                target[r][3 * (int64_t)o + c] = to_byte(sum[r][c], axis->precision);
    }
}

static void vertical_plain(const Axis *axis, int32_t o, const uint8_t *const *rows, uint8_t *target, int64_t bytes)
{
    enum { CHUNK = 64 };
    for (int64_t first = 0; first < bytes; first += CHUNK) {
        int32_t sum[CHUNK];
        for (int32_t i = 0; i < CHUNK; i++)
            sum[i] = 1 << (axis->precision - 1);
        for (int32_t t = 0; t < 2 * axis->pairs; t++) {
            int32_t weight = weight_of(axis, t, o);
            for (int32_t i = 0; i < CHUNK; i++)
                sum[i] += weight * rows[t][first + i];
        }
        for (int32_t i = 0; i < CHUNK && first + i < bytes; i++)
            target[first + i] = to_byte(sum[i], axis->precision);
    }
}

static const Passes PLAIN = {horizontal_plain, vertical_plain, weigh_plain};

static void free_axis(Axis *axis)
{
    free(axis->low);
    free(axis->pair);
}

/* Fixed point as torch chooses it: as many bits as the largest weight leaves in 16. */
static int32_t precision_of(const double *weight, int64_t count)
{
    double largest = 0;
    for (int64_t i = 0; i < count; i++)
        largest = weight[i] > largest ? weight[i] : largest;
    int32_t precision = 0;
    while (precision < 22 && (int32_t)(0.5 + largest * (1 << (precision + 1))) < 1 << 15)
        precision++;
    return precision;
}

/* Weights of outputs first .. first + n of a resize from `length` to `full` pixels; 0, or -1 without memory. */
static int make_axis(Axis *axis, int32_t length, int32_t full, int32_t first, int32_t n, int32_t cubic, Weigh *weigh)
{
    double scale = (double)length / full, stretch = scale >= 1 ? scale : 1;
    double support = (cubic ? 2 : 1) * stretch;
    int32_t taps = 2 * (int32_t)ceil(support) + 1;
    int64_t cells = (int64_t)taps * full;
    double *weight = malloc((cells + full) * sizeof *weight);
    int32_t *low = malloc(full * sizeof *low), *width = malloc(full * sizeof *width);
    *axis = (Axis){.n = n, .length = length, .low = malloc(n * sizeof *axis->low)};
    int failed = !weight || !low || !width || !axis->low;
    if (!failed) {
        weigh(&(Weights){scale, support, 1 / stretch, length, full, taps, cubic, weight, weight + cells, low, width});
        memcpy(axis->low, low + first, n * sizeof *low);
        axis->precision = precision_of(weight, cells);
        for (int32_t o = first; o < first + n; o++)
            axis->pairs = (width[o] + 1) / 2 > axis->pairs ? (width[o] + 1) / 2 : axis->pairs;
        axis->pair = calloc((size_t)axis->pairs * n, sizeof *axis->pair);
        failed = !axis->pair;
    }
    for (int32_t t = 0; !failed && t < 2 * axis->pairs && t < taps; t++)
        for (int32_t o = 0; o < n; o++) {
            double value = weight[(int64_t)t * full + first + o] * (1 << axis->precision);
            int32_t fixed = (int32_t)(value < 0 ? value - 0.5 : value + 0.5);
            axis->pair[(int64_t)(t / 2) * n + o] |= (int32_t)((uint32_t)(fixed & 0xffff) << (t % 2 ? 16 : 0));
        }
    free(weight);
    free(low);
    free(width);
    if (failed)
        free_axis(axis);
    return failed ? -1 : 0;
}

/* The intermediate image: as many of its last rows as an output row and a block of the horizontal pass need. */
typedef struct {
    uint8_t *bytes, *scratch;
    const uint8_t **taps;
    int64_t stride;
    int32_t capacity;
} Ring;

static uint8_t *ring_row(const Ring *ring, int32_t row)
{
    return ring->bytes + row % ring->capacity * ring->stride;
}

static void resize(const uint8_t *box, int64_t stride, const Axis *columns, const Axis *rows, const Ring *ring,
                   const Passes *passes, uint8_t *out)
{
    int32_t ready = rows->low[0];
    for (int32_t o = 0; o < rows->n; o++) {
        int32_t end = rows->low[o] + 2 * rows->pairs;
        end = end > rows->length ? rows->length : end;
        while (ready < end) {
            const uint8_t *source[ROWS];
            uint8_t *target[ROWS];
            for (int32_t r = 0; r < ROWS; r++) {
                int32_t row = ready + r < rows->length ? ready + r : rows->length - 1;
                source[r] = box + row * stride;
                target[r] = ring_row(ring, row);
            }
            passes->horizontal(columns, source, target, ring->scratch);
            ready += ROWS;
        }
        for (int32_t t = 0; t < 2 * rows->pairs; t++)
            ring->taps[t] = ring_row(ring, rows->low[o] + t < end ? rows->low[o] + t : end - 1);
        passes->vertical(rows, o, ring->taps, out + 3 * (int64_t)columns->n * o, 3 * (int64_t)columns->n);
    }
}

static int cut_out(const uint8_t *image, int64_t stride, const Cut *cut, const Passes *passes)
{
    Axis columns, rows;
    if (make_axis(&columns, cut->width, cut->full_width, cut->left, cut->size, cut->cubic, passes->weigh))
        return -1;
    if (make_axis(&rows, cut->height, cut->full_height, cut->top, cut->size, cut->cubic, passes->weigh)) {
        free_axis(&columns);
        return -1;
    }
    Ring ring = {.capacity = 2 * rows.pairs + ROWS, .stride = (3 * (int64_t)cut->size + 63) / 64 * 64 + ROW_PAD};
    ring.bytes = calloc(ring.capacity, ring.stride);
    ring.scratch = calloc(ROWS, tail_bytes(&columns));
    ring.taps = malloc(2 * rows.pairs * sizeof *ring.taps);
    int failed = !ring.bytes || !ring.scratch || !ring.taps;
    if (!failed)
        resize(image + cut->y * stride + 3 * (int64_t)cut->x, stride, &columns, &rows, &ring, passes, cut->out);
    free(ring.bytes);
    free(ring.scratch);
    free(ring.taps);
    free_axis(&columns);
    free_axis(&rows);
    return failed ? -1 : 0;
}

static int within(int64_t first, int64_t length, int64_t end)
{
    return first >= 0 && length >= 1 && end <= MAX_SIDE && first + length <= end;
}

/* The instruction sets that serve here, most capable last: a bit each, 1 plain, 2 AVX2, 4 AVX-512. */
EXPORT int32_t equimod_instruction_sets(void)
{
    return 1 | (passes_avx2() ? 2 : 0) | (passes_avx512() ? 4 : 0);
}

/* Cut `count` squares out of an image of `height` rows, `stride` bytes apart, of `width` RGB pixels.
 * `instruction_set` is one bit of the above. Returns 0; the number of the first cut, from 1 on, that does not lie in the
 * image; -1 without memory; -2 where the instruction set is not there. */
EXPORT int64_t equimod_resample(const uint8_t *image, int64_t width, int64_t height, int64_t stride, const Cut *cuts,
                                int64_t count, int32_t instruction_set)
{
    const Passes *passes = instruction_set == 1   ? &PLAIN
                           : instruction_set == 2 ? passes_avx2()
                           : instruction_set == 4 ? passes_avx512()
                                                  : NULL;
    if (!passes)
        return -2;
    for (int64_t i = 0; i < count; i++) {
        const Cut *cut = cuts + i;
        if (!within(cut->x, cut->width, width) || !within(cut->y, cut->height, height) ||
            !within(cut->left, cut->size, cut->full_width) || !within(cut->top, cut->size, cut->full_height))
            return i + 1;
    }
    for (int64_t i = 0; i < count; i++)
        if (cut_out(image, stride, cuts + i, passes))
            return -1;
    return 0;
}
