/* A CUDA program that needs a C library, the driver and nothing else: no toolkit, neither here nor where it runs.
 *
 *   vector                  computes on every GPU that it sees
 *   vector hold             the same, says where its numbers are, and keeps them there until its input ends
 *   vector peek ADDRESS     tries to read such numbers of another process
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NUMBERS = 1 << 20, BLOCK = 256 };

/* data[i] = 3 * data[i] + 1 */
static const char PTX[] =
    ".version 6.0\n"
    ".target sm_50\n"
    ".address_size 64\n"
    ".visible .entry triple(.param .u64 data, .param .u32 count)\n"
    "{\n"
    "  .reg .pred %p<2>;\n"
    "  .reg .b32 %r<7>;\n"
    "  .reg .b64 %d<4>;\n"
    "  ld.param.u64 %d1, [data];\n"
    "  ld.param.u32 %r1, [count];\n"
    "  mov.u32 %r2, %ctaid.x;\n"
    "  mov.u32 %r3, %ntid.x;\n"
    "  mov.u32 %r4, %tid.x;\n"
    "  mad.lo.u32 %r5, %r2, %r3, %r4;\n"
    "  setp.ge.u32 %p1, %r5, %r1;\n"
    "  @%p1 bra done;\n"
    "  cvta.to.global.u64 %d1, %d1;\n"
    "  mul.wide.u32 %d2, %r5, 4;\n"
    "  add.u64 %d3, %d1, %d2;\n"
    "  ld.global.u32 %r6, [%d3];\n"
    "  mad.lo.u32 %r6, %r6, 3, 1;\n"
    "  st.global.u32 [%d3], %r6;\n"
    "done:\n"
    "  ret;\n"
    "}\n";

static void *library;

static void *function(const char *name) {
    void *found = dlsym(library, name);
    if (found == NULL) {
        printf("libcuda.so.1 has no %s\n", name);
        exit(1);
    }
    return found;
}

/* Calls a function of the driver, as it is called there. */
#define CALL(name, types, ...) check(#name, ((int(*) types)(uintptr_t)function(#name))(__VA_ARGS__))

static void check(const char *name, int status) {
    if (status == 0) return;
    const char *words = NULL;
    ((int (*)(int, const char **))(uintptr_t)function("cuGetErrorString"))(status, &words);
    printf("%s: %s (%d)\n", name, words ? words : "an unknown error", status);
    exit(1);
}

static void say_name(int device) {
    char name[256];
    unsigned char id[16];
    CALL(cuDeviceGetName, (char *, int, int), name, (int)sizeof name, device);
    CALL(cuDeviceGetUuid, (unsigned char *, int), id, device);
    printf("gpu %d: %s GPU-", device, name);
    for (int i = 0; i < 16; i++) printf(i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", id[i]);
    printf("\n");
}

static void *open_device(int device) {
    void *context;
    CALL(cuDevicePrimaryCtxRetain, (void **, int), &context, device);
    CALL(cuCtxSetCurrent, (void *), context);
    return context;
}

/* The address of the numbers in the memory of the GPU. */
static uint64_t compute(int device, const char *mode) {
    static uint32_t numbers[NUMBERS];
    uint64_t data;
    void *module, *kernel;
    uint32_t count = NUMBERS;
    open_device(device);
    for (uint32_t i = 0; i < NUMBERS; i++) numbers[i] = i;
    CALL(cuMemAlloc_v2, (uint64_t *, size_t), &data, sizeof numbers);
    CALL(cuMemcpyHtoD_v2, (uint64_t, const void *, size_t), data, numbers, sizeof numbers);
    CALL(cuModuleLoadData, (void **, const void *), &module, PTX);
    CALL(cuModuleGetFunction, (void **, void *, const char *), &kernel, module, "triple");
    void *parameters[] = {&data, &count};
    CALL(cuLaunchKernel,
         (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **), kernel,
         NUMBERS / BLOCK, 1, 1, BLOCK, 1, 1, 0, NULL, parameters, NULL);
    CALL(cuCtxSynchronize, (void), );
    memset(numbers, 0, sizeof numbers);
    CALL(cuMemcpyDtoH_v2, (void *, uint64_t, size_t), numbers, data, sizeof numbers);
    for (uint32_t i = 0; i < NUMBERS; i++) {
        if (numbers[i] != 3 * i + 1) {
            printf("gpu %d: number %u is %u\n", device, i, numbers[i]);
            exit(1);
        }
    }
    printf("gpu %d: %d numbers are right\n", device, NUMBERS);
    if (strcmp(mode, "hold") != 0) CALL(cuMemFree_v2, (uint64_t), data);
    return data;
}

/* Whether the numbers of another process can be had: they cannot if nothing is mapped there, or something else. */
static int peek(uint64_t data) {
    uint32_t numbers[256];
    open_device(0);
    memset(numbers, 0, sizeof numbers);
    int status = ((int (*)(void *, uint64_t, size_t))(uintptr_t)function("cuMemcpyDtoH_v2"))(numbers, data, sizeof numbers);
    uint32_t same = 0;
    for (uint32_t i = 0; i < 256; i++) same += numbers[i] == 3 * i + 1;
    printf("read at 0x%llx: status %d, %u of 256 numbers of the other\n", (unsigned long long)data, status, same);
    return same > 1;
}

int main(int count, char **words) {
    const char *mode = count > 1 ? words[1] : "compute";
    int version, devices;
    setvbuf(stdout, NULL, _IOLBF, 0);
    library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == NULL) {
        printf("%s\n", dlerror());
        return 1;
    }
    CALL(cuInit, (unsigned), 0);
    CALL(cuDriverGetVersion, (int *), &version);
    CALL(cuDeviceGetCount, (int *), &devices);
    printf("cuda %d.%d, %d gpus\n", version / 1000, version / 10 % 100, devices);
    if (strcmp(mode, "peek") == 0) return peek(strtoull(count > 2 ? words[2] : "0", NULL, 16));
    uint64_t data = 0;
    for (int device = 0; device < devices; device++) {
        say_name(device);
        data = compute(device, mode);
    }
    if (strcmp(mode, "hold") == 0) {
        printf("holds numbers at 0x%llx\n", (unsigned long long)data);
        while (getchar() != EOF) {
        }
    }
    return devices == 0;
}
