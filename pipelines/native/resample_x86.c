/* The passes of resample.c for AVX2, and for AVX-512 with byte permutes (VBMI) and dot products (VNNI): servers from
 * Ice Lake and Zen 4 on. Elsewhere the plain ones serve, which the compiler vectorises with what it may assume. */
#include "resample.h"

#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")))

AVX2 static void weigh_avx2(const Weights *weights)
{
    weigh_inline(weights);
}

AVX2 static inline __m256i two_rows(const uint8_t *a, const uint8_t *b)
{
    __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)a));
    return _mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i *)b), 1);
}

/* Output `o` of all rows, a byte a channel: four bytes a row, even rows in the lower half before odd ones in the upper.
 * Sixteen bytes of two rows in a register hold four taps: a shuffle makes 16-bit pairs of two taps of each channel. */
AVX2 static inline __attribute__((always_inline)) __m256i pixel_avx2(const Axis *axis, int32_t pairs, int32_t o,
                                                                     const uint8_t *const source[ROWS], int64_t offset)
{
    const __m256i first = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i second = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    __m256i sum[ROWS / 2];
    UNROLL
    for (int r = 0; r < ROWS / 2; r++)
        sum[r] = _mm256_set1_epi32(1 << (axis->precision - 1));
    for (int32_t k = 0; k < pairs; k += 2, offset += 12) {
        __m256i weight = _mm256_set1_epi32(axis->pair[(int64_t)k * axis->n + o]);
        __m256i next = k + 1 < pairs ? _mm256_set1_epi32(axis->pair[(int64_t)(k + 1) * axis->n + o]) : weight;
        UNROLL
        for (int r = 0; r < ROWS / 2; r++) {
            __m256i data = two_rows(source[2 * r] + offset, source[2 * r + 1] + offset);
            sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(_mm256_shuffle_epi8(data, first), weight));
            if (k + 1 < pairs)
                sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(_mm256_shuffle_epi8(data, second), next));
        }
    }
    const __m128i shift = _mm_cvtsi32_si128(axis->precision);
    UNROLL
    for (int r = 0; r < ROWS / 2; r++)
        sum[r] = _mm256_sra_epi32(sum[r], shift);
    return _mm256_packus_epi16(_mm256_packs_epi32(sum[0], sum[1]), _mm256_packs_epi32(sum[2], sum[3]));
}

/* Outputs o .. end of all rows, whose taps lie `start` bytes further on than in `source`. Four at a time, so that each
 * row gets twelve bytes in one store. */
AVX2 static inline __attribute__((always_inline)) void span_avx2(const Axis *axis, int32_t pairs, int32_t o, int32_t end,
                                                                 const uint8_t *const source[ROWS], int64_t start,
                                                                 uint8_t *const target[ROWS])
{
    const __m256i three_of_four = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    for (; o + 4 <= end; o += 4) {
        __m256i pixel[4], row[4];
        UNROLL
        for (int i = 0; i < 4; i++)
            pixel[i] = pixel_avx2(axis, pairs, o + i, source, 3 * (int64_t)axis->low[o + i] - start);
        __m256i a = _mm256_unpacklo_epi32(pixel[0], pixel[1]), b = _mm256_unpacklo_epi32(pixel[2], pixel[3]);
        __m256i c = _mm256_unpackhi_epi32(pixel[0], pixel[1]), d = _mm256_unpackhi_epi32(pixel[2], pixel[3]);
        row[0] = _mm256_unpacklo_epi64(a, b), row[1] = _mm256_unpackhi_epi64(a, b);
        row[2] = _mm256_unpacklo_epi64(c, d), row[3] = _mm256_unpackhi_epi64(c, d);
        UNROLL
        for (int r = 0; r < ROWS / 2; r++) {
            __m256i bytes = _mm256_shuffle_epi8(row[r], three_of_four);
            _mm_storeu_si128((__m128i *)(target[2 * r] + 3 * (int64_t)o), _mm256_castsi256_si128(bytes));
            _mm_storeu_si128((__m128i *)(target[2 * r + 1] + 3 * (int64_t)o), _mm256_extracti128_si256(bytes, 1));
        }
    }
    for (; o < end; o++) {
        int32_t pixel[ROWS];
        _mm256_storeu_si256((__m256i *)pixel, pixel_avx2(axis, pairs, o, source, 3 * (int64_t)axis->low[o] - start));
        UNROLL
        for (int r = 0; r < ROWS; r++)
            memcpy(target[r] + 3 * (int64_t)o, pixel + (r % 2 ? 4 + r / 2 : r / 2), 4);
    }
}

AVX2 static inline __attribute__((always_inline)) void rows_avx2(const Axis *axis, int32_t pairs,
                                                                 const uint8_t *const source[ROWS],
                                                                 uint8_t *const target[ROWS], uint8_t *scratch)
{
    const int32_t tail = first_of_tail(axis);
    span_avx2(axis, pairs, 0, tail, source, 0, target);
    if (tail == axis->n)
        return;
    const uint8_t *copy[ROWS];
    const int64_t start = copy_tail(axis, tail, source, scratch, copy);
    span_avx2(axis, pairs, tail, axis->n, copy, start, target);
}

/* The usual numbers of taps, known to the compiler, have no loop: up to twice as large as the output, or not larger. */
AVX2 static void horizontal_avx2(const Axis *axis, const uint8_t *const source[ROWS], uint8_t *const target[ROWS],
                                 uint8_t *scratch)
{
    switch (axis->pairs) {
    case 2:
        rows_avx2(axis, 2, source, target, scratch);
        break;
    case 3:
        rows_avx2(axis, 3, source, target, scratch);
        break;
    case 4:
        rows_avx2(axis, 4, source, target, scratch);
        break;
    default:
        rows_avx2(axis, axis->pairs, source, target, scratch);
    }
}

AVX2 static void vertical_avx2(const Axis *axis, int32_t o, const uint8_t *const *rows, uint8_t *target, int64_t bytes)
{
    const int32_t pairs = used_pairs(axis, o);
    const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(1 << (axis->precision - 1));
    const __m128i shift = _mm_cvtsi32_si128(axis->precision);
    for (int64_t i = 0; i < bytes; i += 32) {
        __m256i sum[4] = {half, half, half, half};
        for (int32_t k = 0; k < pairs; k++) {
            __m256i weight = _mm256_set1_epi32(axis->pair[(int64_t)k * axis->n + o]);
            __m256i a = _mm256_loadu_si256((const __m256i *)(rows[2 * k] + i));
            __m256i b = _mm256_loadu_si256((const __m256i *)(rows[2 * k + 1] + i));
            __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
            sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), weight));
            sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), weight));
            sum[2] = _mm256_add_epi32(sum[2], _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), weight));
            sum[3] = _mm256_add_epi32(sum[3], _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), weight));
        }
        UNROLL
        for (int j = 0; j < 4; j++)
            sum[j] = _mm256_sra_epi32(sum[j], shift);
        __m256i row = _mm256_packus_epi16(_mm256_packs_epi32(sum[0], sum[1]), _mm256_packs_epi32(sum[2], sum[3]));
        if (bytes - i >= 32) {
            _mm256_storeu_si256((__m256i *)(target + i), row);
        } else {
            uint8_t last[32];
            _mm256_storeu_si256((__m256i *)last, row);
            memcpy(target + i, last, bytes - i);
        }
    }
}

AVX512 static void weigh_avx512(const Weights *weights)
{
    weigh_inline(weights);
}

AVX512 static inline __mmask64 first_bytes(int64_t count)
{
    return count >= 64 ? ~(__mmask64)0 : count <= 0 ? 0 : ((__mmask64)1 << count) - 1;
}

/* How many outputs, five at most, have a pair of taps within 64 bytes, and how many pairs after that one fit too. */
static int32_t group_of(const Axis *axis, int32_t *pairs_a_load)
{
    for (int32_t group = 5;; group--) {
        int32_t span = 0;
        for (int32_t o = 0; o < axis->n; o += group) {
            int32_t last = o + group < axis->n ? o + group - 1 : axis->n - 1;
            span = axis->low[last] - axis->low[o] > span ? axis->low[last] - axis->low[o] : span;
        }
        if (3 * span + 6 <= 64) {
            *pairs_a_load = 1 + (64 - 3 * span - 6) / 6;
            return group;
        }
    }
}

/* A register of a row's bytes serves five outputs: a permute makes 15 16-bit pairs of taps, 3 channels an output. */
AVX512 static void horizontal_avx512(const Axis *axis, const uint8_t *const source[ROWS], uint8_t *const target[ROWS],
                                     uint8_t *scratch)
{
    (void)scratch;
    int32_t pairs_a_load;
    const int32_t group = group_of(axis, &pairs_a_load);
    const __m512i spread = _mm512_setr_epi32(0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5);
    const __m512i channel = _mm512_setr_epi32(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0);
    const __m512i taps = _mm512_add_epi32(_mm512_mullo_epi32(channel, _mm512_set1_epi32(0x10001)),
                                          _mm512_set1_epi32(3 << 16));
    const __m512i half = _mm512_set1_epi32(1 << (axis->precision - 1)), six = _mm512_set1_epi16(6);
    const __m128i shift = _mm_cvtsi32_si128(axis->precision);
    const __mmask64 even = 0x5555555555555555;
    for (int32_t o = 0; o < axis->n; o += group) {
        const int32_t many = axis->n - o < group ? axis->n - o : group;
        const __mmask16 lanes = (__mmask16)((1 << many) - 1);
        __m512i low = _mm512_maskz_loadu_epi32(lanes, axis->low + o);
        low = _mm512_permutexvar_epi32(spread, _mm512_sub_epi32(low, _mm512_set1_epi32(axis->low[o])));
        const __m512i origin = _mm512_add_epi16(_mm512_mullo_epi32(low, _mm512_set1_epi32(0x30003)), taps);
        __m512i sum[ROWS], data[ROWS];
        UNROLL
        for (int r = 0; r < ROWS; r++)
            sum[r] = half;
        for (int32_t k = 0; k < axis->pairs;) {
            const int64_t offset = 3 * ((int64_t)axis->low[o] + 2 * k);
            const __mmask64 there = first_bytes(3 * (int64_t)axis->length - offset);
            UNROLL
            for (int r = 0; r < ROWS; r++)
                data[r] = _mm512_maskz_loadu_epi8(there, source[r] + offset);
            __m512i index = origin;
            for (int32_t end = k + pairs_a_load; k < end && k < axis->pairs; k++) {
                __m512i weight = _mm512_maskz_loadu_epi32(lanes, axis->pair + (int64_t)k * axis->n + o);
                weight = _mm512_permutexvar_epi32(spread, weight);
                UNROLL
                for (int r = 0; r < ROWS; r++)
                    sum[r] = _mm512_dpwssd_epi32(sum[r], _mm512_maskz_permutexvar_epi8(even, index, data[r]), weight);
                index = _mm512_add_epi16(index, six);
            }
        }
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            __m512i level = _mm512_max_epi32(_mm512_sra_epi32(sum[r], shift), _mm512_setzero_si512());
            _mm_storeu_si128((__m128i *)(target[r] + 3 * (int64_t)o), _mm512_cvtusepi32_epi8(level));
        }
    }
}

AVX512 static void vertical_avx512(const Axis *axis, int32_t o, const uint8_t *const *rows, uint8_t *target,
                                   int64_t bytes)
{
    const int32_t pairs = used_pairs(axis, o);
    const __m512i zero = _mm512_setzero_si512(), half = _mm512_set1_epi32(1 << (axis->precision - 1));
    const __m128i shift = _mm_cvtsi32_si128(axis->precision);
    for (int64_t i = 0; i < bytes; i += 64) {
        __m512i sum[4] = {half, half, half, half};
        for (int32_t k = 0; k < pairs; k++) {
            __m512i weight = _mm512_set1_epi32(axis->pair[(int64_t)k * axis->n + o]);
            __m512i a = _mm512_loadu_si512(rows[2 * k] + i), b = _mm512_loadu_si512(rows[2 * k + 1] + i);
            __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
            sum[0] = _mm512_dpwssd_epi32(sum[0], _mm512_unpacklo_epi8(low, zero), weight);
            sum[1] = _mm512_dpwssd_epi32(sum[1], _mm512_unpackhi_epi8(low, zero), weight);
            sum[2] = _mm512_dpwssd_epi32(sum[2], _mm512_unpacklo_epi8(high, zero), weight);
            sum[3] = _mm512_dpwssd_epi32(sum[3], _mm512_unpackhi_epi8(high, zero), weight);
        }
        UNROLL
        for (int j = 0; j < 4; j++)
            sum[j] = _mm512_sra_epi32(sum[j], shift);
        __m512i row = _mm512_packus_epi16(_mm512_packs_epi32(sum[0], sum[1]), _mm512_packs_epi32(sum[2], sum[3]));
        _mm512_mask_storeu_epi8(target + i, first_bytes(bytes - i), row);
    }
}

const Passes *passes_avx2(void)
{
    static const Passes passes = {horizontal_avx2, vertical_avx2, weigh_avx2};
    return __builtin_cpu_supports("avx2") ? &passes : NULL;
}

const Passes *passes_avx512(void)
{
    static const Passes passes = {horizontal_avx512, vertical_avx512, weigh_avx512};
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni")
               ? &passes
               : NULL;
}

#else

const Passes *passes_avx2(void)
{
    return NULL;
}

const Passes *passes_avx512(void)
{
    return NULL;
}

#endif
