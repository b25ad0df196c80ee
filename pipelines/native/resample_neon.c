/* The passes of resample.c for NEON, which every 64-bit ARM processor has. */
#include "resample.h"

#include <stddef.h>

#if defined(__aarch64__)

#include <arm_neon.h>

static void weigh_neon(const Weights *weights)
{
    weigh_inline(weights);
}

/* The two weights of pair `k`, then the two of the next one, which weighs nothing after the last. */
static inline int16x4_t two_pairs(const Axis *axis, int32_t k, int32_t o)
{
    const int32_t *pair = axis->pair + (int64_t)k * axis->n + o;
    int32x2_t pairs = vdup_n_s32(0);
    pairs = vset_lane_s32(pair[0], pairs, 0);
    if (k + 1 < axis->pairs)
        pairs = vset_lane_s32(pair[axis->n], pairs, 1);
    return vreinterpret_s16_s32(pairs);
}

/* A level for each sum, 0 to 255: the shift drops the fraction, to which `half` was added for rounding. */
static inline uint8x8_t levels(int32x4_t a, int32x4_t b, int32x4_t shift)
{
    int16x4_t low = vqmovn_s32(vshlq_s32(a, shift)), high = vqmovn_s32(vshlq_s32(b, shift));
    return vqmovun_s16(vcombine_s16(low, high));
}

/* Sixteen bytes of a row hold four taps: a table makes 16-bit numbers of two of them, four for each, the last 0. */
static inline void pixel_neon(const Axis *axis, int32_t o, const uint8_t *const source[ROWS], int64_t offset,
                              uint8_t *const target[ROWS])
{
    static const uint8_t near[16] = {0, 255, 1, 255, 2, 255, 255, 255, 3, 255, 4, 255, 5, 255, 255, 255};
    static const uint8_t far[16] = {6, 255, 7, 255, 8, 255, 255, 255, 9, 255, 10, 255, 11, 255, 255, 255};
    const uint8x16_t first = vld1q_u8(near), second = vld1q_u8(far);
    const int32x4_t half = vdupq_n_s32(1 << (axis->precision - 1)), shift = vdupq_n_s32(-axis->precision);
    int32x4_t sum[ROWS];
    UNROLL
    for (int r = 0; r < ROWS; r++)
        sum[r] = half;
    for (int32_t k = 0; k < axis->pairs; k += 2, offset += 12) {
        const int16x4_t weight = two_pairs(axis, k, o);
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            const uint8x16_t data = vld1q_u8(source[r] + offset);
            const int16x8_t a = vreinterpretq_s16_u8(vqtbl1q_u8(data, first));
            const int16x8_t b = vreinterpretq_s16_u8(vqtbl1q_u8(data, second));
            sum[r] = vmlal_lane_s16(sum[r], vget_low_s16(a), weight, 0);
            sum[r] = vmlal_high_lane_s16(sum[r], a, weight, 1);
            sum[r] = vmlal_lane_s16(sum[r], vget_low_s16(b), weight, 2);
            sum[r] = vmlal_high_lane_s16(sum[r], b, weight, 3);
        }
    }
    UNROLL
    for (int r = 0; r < ROWS; r += 2) {
        uint8_t pixels[8];
        vst1_u8(pixels, levels(sum[r], sum[r + 1], shift));
        memcpy(target[r] + 3 * (int64_t)o, pixels, 4);
        memcpy(target[r + 1] + 3 * (int64_t)o, pixels + 4, 4);
    }
}

static void horizontal_neon(const Axis *axis, const uint8_t *const source[ROWS], uint8_t *const target[ROWS],
                            uint8_t *scratch)
{
    const int32_t tail = first_of_tail(axis);
    for (int32_t o = 0; o < tail; o++)
        pixel_neon(axis, o, source, 3 * (int64_t)axis->low[o], target);
    if (tail == axis->n)
        return;
    const uint8_t *copy[ROWS];
    const int64_t start = copy_tail(axis, tail, source, scratch, copy);
    for (int32_t o = tail; o < axis->n; o++)
        pixel_neon(axis, o, copy, 3 * (int64_t)axis->low[o] - start, target);
}

static inline void add_row(int32x4_t sum[8], const uint8_t *row, int16x8_t weight)
{
    UNROLL
    for (int j = 0; j < 2; j++) {
        const uint8x16_t data = vld1q_u8(row + 16 * j);
        const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(data)));
        const int16x8_t high = vreinterpretq_s16_u16(vmovl_high_u8(data));
        sum[4 * j] = vmlal_s16(sum[4 * j], vget_low_s16(low), vget_low_s16(weight));
        sum[4 * j + 1] = vmlal_high_s16(sum[4 * j + 1], low, weight);
        sum[4 * j + 2] = vmlal_s16(sum[4 * j + 2], vget_low_s16(high), vget_low_s16(weight));
        sum[4 * j + 3] = vmlal_high_s16(sum[4 * j + 3], high, weight);
    }
}

static void vertical_neon(const Axis *axis, int32_t o, const uint8_t *const *rows, uint8_t *target, int64_t bytes)
{
    const int32_t pairs = used_pairs(axis, o);
    const int32x4_t half = vdupq_n_s32(1 << (axis->precision - 1)), shift = vdupq_n_s32(-axis->precision);
    for (int64_t i = 0; i < bytes; i += 32) {
        int32x4_t sum[8] = {half, half, half, half, half, half, half, half};
        for (int32_t k = 0; k < pairs; k++) {
            const int16x4_t weight = vreinterpret_s16_s32(vdup_n_s32(axis->pair[(int64_t)k * axis->n + o]));
            add_row(sum, rows[2 * k] + i, vdupq_lane_s16(weight, 0));
            add_row(sum, rows[2 * k + 1] + i, vdupq_lane_s16(weight, 1));
        }
        uint8_t last[32], *row = bytes - i >= 32 ? target + i : last;
        UNROLL
        for (int j = 0; j < 4; j++)
            vst1_u8(row + 8 * j, levels(sum[2 * j], sum[2 * j + 1], shift));
        if (row == last)
            memcpy(target + i, last, bytes - i);
    }
}

const Passes *passes_neon(void)
{
    static const Passes passes = {horizontal_neon, vertical_neon, weigh_neon};
    return &passes;
}

#else

const Passes *passes_neon(void)
{
    return NULL;
}

#endif
