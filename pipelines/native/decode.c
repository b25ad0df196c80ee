/* Decode the region of a JPEG that its crops need, by libjpeg-turbo: the same bytes there as of the whole image.
 *
 * Columns beside the region cost neither inverse transform nor colour, rows above it no colour, rows below it nothing at
 * all. Whatever is unusual or wrong is left to the caller's other decoder, so there is one place for errors. */
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jpeglib.h>

#define EXPORT __attribute__((visibility("default")))
#define ROWS 16      /* that are read in a call */
#define NEIGHBOURS 2 /* pixels beside the region that it depends on: chroma of half size is interpolated */

typedef struct {
    struct jpeg_error_mgr manager;
    jmp_buf leave;
} Errors;

static void leave(j_common_ptr info)
{
    longjmp(((Errors *)info->err)->leave, 1);
}

static void silent(j_common_ptr info)
{
    (void)info;
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
    while (info->output_scanline < bottom) {
        JSAMPROW rows[ROWS];
        const JDIMENSION y = info->output_scanline, count = bottom - y < ROWS ? bottom - y : ROWS;
        for (JDIMENSION r = 0; r < count; r++)
            rows[r] = out + 3 * ((int64_t)(y + r) * width + x);
        jpeg_read_scanlines(info, rows, count);
    }
}

/* Decode at least the pixels from x0, y0 up to x1, y1 to their places in `out`, width * height * 3 bytes of RGB.
 * Returns 0, or 1 where it is not an RGB or gray JPEG of that size without a fault in what was read of it. */
EXPORT int32_t equimod_decode(const uint8_t *jpeg, int64_t bytes, int32_t width, int32_t height, int32_t x0,
                              int32_t y0, int32_t x1, int32_t y1, uint8_t *out)
{
    if (x0 < 0 || y0 < 0 || x0 >= x1 || y0 >= y1 || x1 > width || y1 > height || !is_whole(jpeg, bytes))
        return 1;
    Errors errors;
    struct jpeg_decompress_struct info;
    info.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = leave;
    errors.manager.output_message = silent;
    if (setjmp(errors.leave)) {
        jpeg_destroy_decompress(&info);
        return 1;
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, jpeg, (unsigned long)bytes);
    jpeg_read_header(&info, TRUE);
    int failed = (int64_t)info.image_width != width || (int64_t)info.image_height != height;
    if (!failed) {
        decode(&info, (Region){x0, y0, x1, y1}, out);
        failed = errors.manager.num_warnings != 0;
    }
    jpeg_destroy_decompress(&info);
    return failed;
}
