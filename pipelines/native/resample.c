/* Antialiased crop and resize of one decoded image, bit for bit as torch does it on uint8 tensors.
 *
 * A box of whole pixels is cropped, then resized: no pixel beside it counts. One that has a fraction is resized out of
 * the whole image, as Pillow's `resize(box=...)` does it: the filter reaches over its edges.
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

/* A crop of an image and its resize. Matches CropSpec in kernel.py. */
typedef struct {
    uint8_t *out;                    /* size * size * 3 bytes */
    double x, y, width, height;      /* the box, in pixels of the image */
    int32_t full_width, full_height; /* what the box is resized to */
    int32_t left, top, size;         /* the square of it that is kept */
    int32_t cubic;                   /* 1 bicubic, 0 bilinear */
} CropSpec;

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

/* One axis of a crop: outputs first .. first + n of a resize from `length` pixels, or a span of them, to `full`. */
typedef struct {
    int32_t length, full, first, n, cubic;
} Geometry;

/* What is resized, in pixels of the axis: all of them, from 0 to its length, or a part. */
typedef struct {
    double start, length;
} Span;

/* An axis in one block of memory. `kept`: it is in the table below, for good. */
typedef struct {
    Axis axis;
    Geometry of;
    int32_t kept;
    int32_t numbers[]; /* low, pair */
} Weighed;

/* NULL without memory. */
static Weighed *make_axis(Geometry of, Span span, Weigh *weigh)
{
    double scale = span.length / of.full, stretch = scale >= 1 ? scale : 1;
    double support = (of.cubic ? 2 : 1) * stretch;
    int32_t taps = 2 * (int32_t)ceil(support) + 1, pairs = 0;
    int64_t cells = (int64_t)taps * of.full;
    double *weight = malloc((cells + of.full) * sizeof *weight);
    int32_t *low = malloc(of.full * sizeof *low), *width = malloc(of.full * sizeof *width);
    Weighed *made = NULL;
    if (weight && low && width) {
        weigh(&(Weights){span.start, scale, support, 1 / stretch, of.length, of.full, taps, of.cubic, weight,
                         weight + cells, low, width});
        for (int32_t o = of.first; o < of.first + of.n; o++)
            pairs = (width[o] + 1) / 2 > pairs ? (width[o] + 1) / 2 : pairs;
        made = calloc(1, sizeof *made + ((int64_t)pairs + 1) * of.n * sizeof *low);
    }
    if (made) {
        int32_t precision = precision_of(weight, cells), *pair = made->numbers + of.n;
        made->of = of;
        made->axis = (Axis){of.n, of.length, pairs, precision, made->numbers, pair};
        memcpy(made->numbers, low + of.first, of.n * sizeof *low);
        for (int32_t t = 0; t < 2 * pairs && t < taps; t++)
            for (int32_t o = 0; o < of.n; o++) {
                double value = weight[(int64_t)t * of.full + of.first + o] * (1 << precision);
                int32_t fixed = (int32_t)(value < 0 ? value - 0.5 : value + 0.5);
                pair[(int64_t)(t / 2) * of.n + o] |= (int32_t)((uint32_t)(fixed & 0xffff) << (t % 2 ? 16 : 0));
            }
    }
    free(weight);
    free(low);
    free(width);
    return made;
}

/* Weights by geometry: boxes of few hundred lengths come up again and again. What is put in stays and never changes, so
 * threads need no lock, and memory has a bound (SLOTS axes of some 4 KB); what finds no place is made for one use, as is
 * every part of an axis: hardly any comes up again. */
enum { SLOTS = 4096, PROBES = 8, MOST_KEPT_PAIRS = 8 };
static Weighed *table[SLOTS];

static const Weighed *axis_of(Geometry of, Span span, Weigh *weigh)
{
    if (span.start != 0 || span.length != of.length)
        return make_axis(of, span, weigh);
    const int32_t parts[] = {of.length, of.full, of.first, of.n, of.cubic};
    uint32_t hash = 0;
    for (int i = 0; i < 5; i++)
        hash = (hash ^ (uint32_t)parts[i]) * 0x9e3779b1;
    hash >>= 8;
    for (int i = 0; i < PROBES; i++) {
        const Weighed *held = __atomic_load_n(table + (hash + i) % SLOTS, __ATOMIC_ACQUIRE);
        if (held && memcmp(&held->of, &of, sizeof of) == 0)
            return held;
    }
    Weighed *made = make_axis(of, span, weigh);
    for (int i = 0; made && !made->kept && made->axis.pairs <= MOST_KEPT_PAIRS && i < PROBES; i++) {
        Weighed *empty = NULL;
        made->kept = 1;
        made->kept = __atomic_compare_exchange_n(table + (hash + i) % SLOTS, &empty, made, 0, __ATOMIC_RELEASE,
                                                 __ATOMIC_RELAXED);
    }
    return made;
}

static void drop(const Weighed *axis)
{
    if (axis && !axis->kept)
        free((void *)axis);
}

/* The intermediate image: as many of its last rows as an output row and a block of the horizontal pass need. Row i is
 * line[i % capacity]; the lines stand there twice, so that those of an output row lie side by side. */
typedef struct {
    uint8_t *bytes, *scratch, **line;
    int32_t capacity;
} Ring;

static void resize(const uint8_t *image, int64_t stride, const Axis *columns, const Axis *rows, const Ring *ring,
                   const Passes *passes, uint8_t *out)
{
    int32_t ready = rows->low[0];
    for (int32_t o = 0; o < rows->n; o++) {
        int32_t end = rows->low[o] + 2 * rows->pairs;
        end = end > rows->length ? rows->length : end;
        while (ready < end) {
            const uint8_t *source[ROWS];
            for (int32_t r = 0; r < ROWS; r++)
                source[r] = image + (ready + r < rows->length ? ready + r : rows->length - 1) * stride;
            passes->horizontal(columns, source, ring->line + ready % ring->capacity, ring->scratch);
            ready += ROWS;
        }
        const uint8_t *const *taps = (const uint8_t *const *)ring->line + rows->low[o] % ring->capacity;
        passes->vertical(rows, o, taps, out + 3 * (int64_t)columns->n * o, 3 * (int64_t)columns->n);
    }
}

static int is_whole(double x, double y, double width, double height)
{
    return x == floor(x) && y == floor(y) && width == floor(width) && height == floor(height);
}

static int resize_crop(const uint8_t *image, int64_t width, int64_t height, int64_t stride, const CropSpec *spec,
                       const Passes *passes)
{
    Span across = {spec->x, spec->width}, down = {spec->y, spec->height};
    if (is_whole(spec->x, spec->y, spec->width, spec->height)) {
        image += (int64_t)spec->y * stride + 3 * (int64_t)spec->x;
        width = (int64_t)spec->width, height = (int64_t)spec->height;
        across.start = down.start = 0;
    }
    const Weighed *columns = axis_of(
        (Geometry){(int32_t)width, spec->full_width, spec->left, spec->size, spec->cubic}, across, passes->weigh);
    const Weighed *rows = axis_of(
        (Geometry){(int32_t)height, spec->full_height, spec->top, spec->size, spec->cubic}, down, passes->weigh);
    int failed = !columns || !rows;
    if (!failed) {
        const int64_t row = (3 * (int64_t)spec->size + 63) / 64 * 64 + ROW_PAD;
        Ring ring = {.capacity = 2 * rows->axis.pairs + ROWS};
        ring.bytes = calloc(ring.capacity, row);
        ring.scratch = calloc(ROWS, tail_bytes(&columns->axis));
        ring.line = malloc(2 * ring.capacity * sizeof *ring.line);
        failed = !ring.bytes || !ring.scratch || !ring.line;
        for (int32_t i = 0; !failed && i < 2 * ring.capacity; i++)
            ring.line[i] = ring.bytes + i % ring.capacity * row;
        if (!failed)
            resize(image, stride, &columns->axis, &rows->axis, &ring, passes, spec->out);
        free(ring.bytes);
        free(ring.scratch);
        free(ring.line);
    }
    drop(columns);
    drop(rows);
    return failed ? -1 : 0;
}

/* Whether what is kept lies in the resized box, and the box, not empty and made of numbers, in the image's side. */
static int within(int32_t first, int32_t kept, int32_t full, double start, double length, int64_t side)
{
    return first >= 0 && kept >= 1 && full <= MAX_SIDE && (int64_t)first + kept <= full && side <= MAX_SIDE &&
           start >= 0 && length > 0 && start + length <= side;
}

/* The instruction sets that serve here, most capable last: a bit each, 1 plain, 2 AVX2, 4 AVX-512, 8 NEON. */
EXPORT int32_t equimod_instruction_sets(void)
{
    return 1 | (passes_avx2() ? 2 : 0) | (passes_avx512() ? 4 : 0) | (passes_neon() ? 8 : 0);
}

/* Crop and resize `count` squares of an image of `height` rows, `stride` bytes apart, of `width` RGB pixels.
 * `instruction_set` is one bit of the above. Returns 0; the number of the first crop, from 1 on, that does not lie in the
 * image; -1 without memory; -2 where the instruction set is not there. */
EXPORT int64_t equimod_resample(const uint8_t *image, int64_t width, int64_t height, int64_t stride,
                                const CropSpec *specs, int64_t count, int32_t instruction_set)
{
    const Passes *passes = instruction_set == 1   ? &PLAIN
                           : instruction_set == 2 ? passes_avx2()
                           : instruction_set == 4 ? passes_avx512()
                           : instruction_set == 8 ? passes_neon()
                                                  : NULL;
    if (!passes)
        return -2;
    for (int64_t i = 0; i < count; i++) {
        const CropSpec *spec = specs + i;
        if (!within(spec->left, spec->size, spec->full_width, spec->x, spec->width, width) ||
            !within(spec->top, spec->size, spec->full_height, spec->y, spec->height, height))
            return i + 1;
    }
    for (int64_t i = 0; i < count; i++)
        if (resize_crop(image, width, height, stride, specs + i, passes))
            return -1;
    return 0;
}
