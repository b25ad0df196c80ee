/* Runs the resize kernel on cases from standard input, and proves that the NEON passes did it: test_resample_neon.py.
 *
 * A case: int64 width, height, stride, specs, at_end; the specs, struct CropSpec; the image's bytes from the first pixel
 * to the last. Answer: the bytes of every crop. Image and outputs end (at_end 1) or begin (0) beside memory that traps.
 * Linked with --wrap=passes_neon, so that what the kernel takes for the NEON passes counts its calls. */
#define _GNU_SOURCE
#include "resample.c"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define NEON 8

enum { HORIZONTAL, VERTICAL, WEIGH, KINDS };
static int64_t calls[KINDS];

const Passes *__real_passes_neon(void);
const Passes *__wrap_passes_neon(void);

static void count_horizontal(const Axis *axis, const uint8_t *const source[ROWS], uint8_t *const target[ROWS],
                             uint8_t *scratch)
{
    calls[HORIZONTAL]++;
    __real_passes_neon()->horizontal(axis, source, target, scratch);
}

static void count_vertical(const Axis *axis, int32_t o, const uint8_t *const *rows, uint8_t *target, int64_t bytes)
{
    calls[VERTICAL]++;
    __real_passes_neon()->vertical(axis, o, rows, target, bytes);
}

static void count_weigh(const Weights *weights)
{
    calls[WEIGH]++;
    __real_passes_neon()->weigh(weights);
}

const Passes *__wrap_passes_neon(void)
{
    static const Passes counting = {count_horizontal, count_vertical, count_weigh};
    const Passes *neon = __real_passes_neon();
    return neon && neon->horizontal != PLAIN.horizontal && neon->vertical != PLAIN.vertical ? &counting : NULL;
}

static void stop(const char *reason)
{
    fprintf(stderr, "%s\n", reason);
    exit(1);
}

static void read_all(void *target, size_t bytes)
{
    if (fread(target, 1, bytes, stdin) != bytes)
        stop("a case is cut short");
}

/* Memory between two pages that trap, of which `bytes` at the end or the beginning are given out. */
typedef struct {
    uint8_t *pages, *bytes;
    size_t size;
} Guarded;

static Guarded guarded(size_t bytes, int64_t at_end)
{
    const size_t page = sysconf(_SC_PAGESIZE), inside = (bytes + page - 1) / page * page;
    Guarded memory = {.size = inside + 2 * page};
    memory.pages = mmap(NULL, memory.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory.pages == MAP_FAILED || mprotect(memory.pages + page, inside, PROT_READ | PROT_WRITE))
        stop("no memory");
    memory.bytes = memory.pages + page + (at_end ? inside - bytes : 0);
    return memory;
}

static void run(int64_t width, int64_t height, int64_t stride, int64_t count, int64_t at_end)
{
    CropSpec specs[count];
    Guarded out[count];
    read_all(specs, sizeof specs);
    const size_t bytes = (height - 1) * stride + 3 * width;
    Guarded image = guarded(bytes, at_end);
    read_all(image.bytes, bytes);
    for (int64_t i = 0; i < count; i++) {
        out[i] = guarded(3 * (size_t)specs[i].size * specs[i].size, at_end);
        specs[i].out = out[i].bytes;
    }
    calls[HORIZONTAL] = calls[VERTICAL] = 0;
    if (equimod_resample(image.bytes, width, height, stride, specs, count, NEON))
        stop("the kernel refuses a case");
    if (calls[HORIZONTAL] < count || calls[VERTICAL] < count || calls[WEIGH] == 0) /* weights are kept between crops */
        stop("a pass was not the NEON one");
    for (int64_t i = 0; i < count; i++) {
        fwrite(out[i].bytes, 3 * (size_t)specs[i].size, specs[i].size, stdout);
        munmap(out[i].pages, out[i].size);
    }
    munmap(image.pages, image.size);
}

int main(void)
{
    if (equimod_instruction_sets() != (1 | NEON))
        stop("the kernel has other instruction sets than plain and NEON");
    int64_t of_case[5];
    size_t found;
    while ((found = fread(of_case, 1, sizeof of_case, stdin)) == sizeof of_case)
        run(of_case[0], of_case[1], of_case[2], of_case[3], of_case[4]);
    if (found)
        stop("a case is cut short");
    return 0;
}
