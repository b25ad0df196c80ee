/* Decode JPEGs by libjpeg-turbo: a whole one, with the verdict on it, or the region that its crops need: the same bytes
 * there as of the whole image.
 *
 * Of a region, columns beside it cost neither inverse transform nor colour, rows above it no colour, rows below it nothing
 * at all. What is wrong or unusual there is left to the decoder of whole images, so there is one place for errors. */
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include <jerror.h>

#define EXPORT __attribute__((visibility("default")))
#define ROWS 16                /* that are read in a call */
#define NEIGHBOURS 2           /* pixels beside the region that it depends on: chroma of half size is interpolated */
#define MOST_PIXELS_A_BYTE 1024 /* of Huffman codes: a block of 64 takes at least a bit, and chroma may be as fine as 1/2 */

/* Warnings that leave the pixels as they were meant, a bit each: `HARMLESS` of decode.py. */
enum { JFIF_REVISION = 1, ADOBE_TRANSFORM = 2, SCAN_PARAMETERS = 4, EXTRANEOUS_BYTES = 8 };

typedef struct {
    struct jpeg_error_mgr manager;
    struct jpeg_progress_mgr progress;
    jmp_buf leave;
    const uint8_t *jpeg;
    int32_t most_scans;
    int32_t harmless;             /* warnings, as above */
    char reason[JMSG_LENGTH_MAX]; /* of the first fault; empty without one */
} Errors;

static void fault(j_common_ptr info)
{
    Errors *errors = (Errors *)info->err;
    if (!errors->reason[0])
        errors->manager.format_message(info, errors->reason);
}

static void leave(j_common_ptr info)
{
    fault(info);
    longjmp(((Errors *)info->err)->leave, 1);
}

/* Whether the bytes skipped in front of a marker are no image data that a damaged scan left over: they stand in front of
 * the first scan, or are all the same. */
static int is_padding(const Errors *errors, j_decompress_ptr info)
{
    if (info->input_scan_number == 0)
        return 1;
    const uint8_t *end = info->src->next_input_byte;
    const int64_t count = errors->manager.msg_parm.i[0];
    if (count > end - errors->jpeg)
        return 0;
    for (const uint8_t *byte = end - count; byte < end; byte++)
        if (*byte != end[-1])
            return 0;
    return 1;
}

static void warn(j_common_ptr info, int level)
{
    Errors *errors = (Errors *)info->err;
    const int code = errors->manager.msg_code;
    if (level >= 0) /* no warning */
        return;
    if (code == JWRN_JFIF_MAJOR)
        errors->harmless |= JFIF_REVISION;
    else if (code == JWRN_ADOBE_XFORM)
        errors->harmless |= ADOBE_TRANSFORM;
    else if (code == JWRN_NOT_SEQUENTIAL)
        errors->harmless |= SCAN_PARAMETERS;
    else if (code == JWRN_EXTRANEOUS_DATA && is_padding(errors, (j_decompress_ptr)info))
        errors->harmless |= EXTRANEOUS_BYTES;
    else
        fault(info);
}

/* A few bytes can hold hundreds of scans, each of which goes over the whole image. */
static void limit_scans(j_common_ptr info)
{
    Errors *errors = (Errors *)info->err;
    if (((j_decompress_ptr)info)->input_scan_number <= errors->most_scans)
        return;
    snprintf(errors->reason, sizeof errors->reason, "it has more than %d scans", errors->most_scans);
    longjmp(errors->leave, 1);
}

static void prepare(Errors *errors, const uint8_t *jpeg, int32_t most_scans)
{
    memset(errors, 0, sizeof *errors);
    jpeg_std_error(&errors->manager);
    errors->manager.error_exit = leave;
    errors->manager.emit_message = warn;
    errors->progress.progress_monitor = limit_scans;
    errors->jpeg = jpeg;
    errors->most_scans = most_scans;
}

/* Read the header. Returns whether it is of an image of that size, which so many bytes can hold. */
static int open_jpeg(struct jpeg_decompress_struct *info, const uint8_t *jpeg, int64_t bytes, int32_t width,
                     int32_t height)
{
    Errors *errors = (Errors *)info->err;
    jpeg_create_decompress(info);
    info->progress = &errors->progress;
    jpeg_mem_src(info, jpeg, (unsigned long)bytes);
    jpeg_read_header(info, TRUE);
    if ((int64_t)info->image_width != width || (int64_t)info->image_height != height)
        snprintf(errors->reason, sizeof errors->reason, "it is %ux%u pixels, not %dx%d", info->image_width,
                 info->image_height, width, height);
    else if (!info->arith_code && (int64_t)width * height > MOST_PIXELS_A_BYTE * bytes)
        snprintf(errors->reason, sizeof errors->reason, "%lld bytes cannot hold the %dx%d pixels of its header",
                 (long long)bytes, width, height);
    return !errors->reason[0];
}

static void read_rows(struct jpeg_decompress_struct *info, JDIMENSION bottom, uint8_t *out, int64_t stride)
{
    while (info->output_scanline < bottom) {
        JSAMPROW rows[ROWS];
        const JDIMENSION y = info->output_scanline, count = bottom - y < ROWS ? bottom - y : ROWS;
        for (JDIMENSION r = 0; r < count; r++)
            rows[r] = out + stride * (y + r);
        jpeg_read_scanlines(info, rows, count);
    }
}

/* Decode a JPEG of that size to the end: an RGB or gray one into `out`, width * height * 3 bytes of RGB; without `out`
 * any. Returns its harmless warnings, or -1, and writes the fault into `reason`, JMSG_LENGTH_MAX characters. */
EXPORT int32_t equimod_decode_whole(const uint8_t *jpeg, int64_t bytes, int32_t width, int32_t height,
                                    int32_t most_scans, uint8_t *out, char *reason)
{
    Errors errors;
    struct jpeg_decompress_struct info;
    uint8_t *volatile row = NULL;
    prepare(&errors, jpeg, most_scans);
    info.err = &errors.manager;
    if (!setjmp(errors.leave) && open_jpeg(&info, jpeg, bytes, width, height)) {
        info.out_color_space = info.num_components == 4 && !out ? JCS_CMYK : JCS_RGB;
        jpeg_start_decompress(&info);
        if (!out)
            row = malloc(4 * (size_t)width);
        if (out)
            read_rows(&info, info.output_height, out, 3 * (int64_t)width);
        else if (row)
            read_rows(&info, info.output_height, row, 0);
        else
            snprintf(errors.reason, sizeof errors.reason, "no memory for a row of it");
        if (!errors.reason[0])
            jpeg_finish_decompress(&info);
    }
    jpeg_destroy_decompress(&info);
    free(row);
    memcpy(reason, errors.reason, sizeof errors.reason);
    return errors.reason[0] ? -1 : errors.harmless;
}

/* Some files go on a little after the end marker; one without it is cut short. */
static int is_whole(const uint8_t *jpeg, int64_t bytes)
{
    const int64_t last = bytes > 1024 ? bytes - 1024 : 0;
    for (int64_t i = bytes - 2; i >= last; i--)
        if (jpeg[i] == 0xff && jpeg[i + 1] == JPEG_EOI)
            return 1;
    return 0;
}

/* From x0, y0 up to x1, y1, which are not in it. */
typedef struct {
    int32_t x0, y0, x1, y1;
} Region;

static void decode(struct jpeg_decompress_struct *info, Region region, uint8_t *out)
{
    const int32_t width = (int32_t)info->image_width, height = (int32_t)info->image_height;
    const int32_t left = region.x0 > NEIGHBOURS ? region.x0 - NEIGHBOURS : 0;
    const int32_t top = region.y0 > NEIGHBOURS ? region.y0 - NEIGHBOURS : 0;
    const int32_t right = region.x1 < width - NEIGHBOURS ? region.x1 + NEIGHBOURS : width;
    const JDIMENSION bottom = (JDIMENSION)(region.y1 < height - NEIGHBOURS ? region.y1 + NEIGHBOURS : height);

    info->out_color_space = JCS_RGB;
    jpeg_start_decompress(info);
    JDIMENSION x = (JDIMENSION)left, columns = (JDIMENSION)(right - left);
    if (columns < info->output_width)
        jpeg_crop_scanline(info, &x, &columns);
    else
        x = 0;
    if (top > 0)
        jpeg_skip_scanlines(info, (JDIMENSION)top);
    read_rows(info, bottom, out + 3 * (int64_t)x, 3 * (int64_t)width);
}

/* Decode at least the pixels from x0, y0 up to x1, y1 to their places in `out`, width * height * 3 bytes of RGB.
 * Returns 0, or 1 where it is not an RGB or gray JPEG of that size without a fault in what was read of it. */
EXPORT int32_t equimod_decode(const uint8_t *jpeg, int64_t bytes, int32_t width, int32_t height, int32_t x0,
                              int32_t y0, int32_t x1, int32_t y1, int32_t most_scans, uint8_t *out)
{
    if (x0 < 0 || y0 < 0 || x0 >= x1 || y0 >= y1 || x1 > width || y1 > height || !is_whole(jpeg, bytes))
        return 1;
    Errors errors;
    struct jpeg_decompress_struct info;
    prepare(&errors, jpeg, most_scans);
    info.err = &errors.manager;
    if (!setjmp(errors.leave) && open_jpeg(&info, jpeg, bytes, width, height))
        decode(&info, (Region){x0, y0, x1, y1}, out);
    jpeg_destroy_decompress(&info);
    return errors.reason[0] != 0;
}
