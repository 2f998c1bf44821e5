/* What stands in for libcuda.so.1 and nvidia-smi where the checks are tried without a GPU. It sees the device nodes that
 * a container was granted, takes the identifiers of their GPUs from the file /machine (a minor number and an identifier
 * a line), and does on the processor what vector.c wants of a GPU. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int gpus[64], count;
static char names[64][64];

static void look(void) {
    FILE *machine = fopen("/machine", "r");
    int minor;
    char name[64], node[64];
    count = 0;
    while (machine != NULL && count < 64 && fscanf(machine, "%d %63s", &minor, name) == 2) {
        snprintf(node, sizeof node, "/dev/nvidia%d", minor);
        if (access(node, F_OK) != 0) continue;
        gpus[count] = minor;
        strcpy(names[count++], name);
    }
    if (machine != NULL) fclose(machine);
}

#ifdef PROGRAM
int main(void) {
    look();
    for (int gpu = 0; gpu < count; gpu++) printf("GPU %d: Stand-in %d (UUID: %s)\n", gpu, gpus[gpu], names[gpu]);
    return 0;
}
#else
static uint32_t *memory;
static size_t bytes;

int cuInit(unsigned flags) {
    (void)flags;
    look();
    return count == 0 ? 100 : 0;
}
int cuGetErrorString(int status, const char **words) {
    *words = status == 100 ? "no CUDA-capable device is detected" : "invalid argument";
    return 0;
}
int cuDriverGetVersion(int *version) { return *version = 12040, 0; }
int cuDeviceGetCount(int *devices) { return *devices = count, 0; }
int cuDeviceGetName(char *name, int length, int device) { return snprintf(name, (size_t)length, "Stand-in %d", gpus[device]), 0; }
int cuDeviceGetUuid(unsigned char *id, int device) {
    const char *text = names[device] + 4;
    for (int i = 0; i < 16; i++, text += 2) {
        unsigned byte;
        if (*text == '-') text++;
        sscanf(text, "%2x", &byte);
        id[i] = (unsigned char)byte;
    }
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &gpus[device], 0; }
int cuCtxSetCurrent(void *context) { return context == NULL; }
int cuMemAlloc_v2(uint64_t *data, size_t size) {
    memory = malloc(bytes = size);
    *data = (uint64_t)(uintptr_t)memory;
    return memory == NULL ? 2 : 0;
}
int cuMemFree_v2(uint64_t data) { return free((void *)(uintptr_t)data), memory = NULL, 0; }
static int is_ours(uint64_t data, size_t size) { return memory != NULL && data == (uint64_t)(uintptr_t)memory && size <= bytes; }
int cuMemcpyHtoD_v2(uint64_t data, const void *from, size_t size) { return is_ours(data, size) ? (memcpy(memory, from, size), 0) : 1; }
int cuMemcpyDtoH_v2(void *to, uint64_t data, size_t size) { return is_ours(data, size) ? (memcpy(to, memory, size), 0) : 1; }
int cuModuleLoadData(void **module, const void *ptx) { return *module = (void *)(uintptr_t)ptx, strstr(ptx, ".entry triple") == NULL; }
int cuModuleGetFunction(void **kernel, void *module, const char *name) { return *kernel = module, strcmp(name, "triple") != 0; }
int cuLaunchKernel(void *kernel, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c, unsigned shared,
                   void *stream, void **parameters, void **extra) {
    (void)kernel, (void)y, (void)z, (void)b, (void)c, (void)shared, (void)stream, (void)extra;
    uint32_t *data = (uint32_t *)(uintptr_t) * (uint64_t *)parameters[0];
    for (uint64_t i = 0; i < (uint64_t)x * a && i < *(uint32_t *)parameters[1]; i++) data[i] = 3 * data[i] + 1;
    return 0;
}
int cuCtxSynchronize(void) { return 0; }
#endif
