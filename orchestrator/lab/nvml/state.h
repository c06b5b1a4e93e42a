/* What the stub knows of the state file: texts and numbers by key, of the node, of one GPU, of one of its links.
 * Every function answers NVML_ERROR_NOT_SUPPORTED for a key the file does not name and leaves the value alone. */
#ifndef RACKRAY_LAB_NVML_STATE_H
#define RACKRAY_LAB_NVML_STATE_H

#define NVML_NO_UNVERSIONED_FUNC_DEFS
/* Only NVML's own names leave the library. */
#pragma GCC visibility push(default)
#include <nvml.h>
#pragma GCC visibility pop
#include <stddef.h>

#define MAX_GPUS 16
#define LINE 320

typedef unsigned long long u64;

struct nvmlDevice_st {
    unsigned index;
};
extern struct nvmlDevice_st devices[MAX_GPUS];

nvmlReturn_t look_up(const char *key, char *value, size_t size);
nvmlReturn_t number(const char *key, u64 *value);
nvmlReturn_t gpu_number(unsigned gpu, const char *key, u64 *value);
nvmlReturn_t text_to(const char *key, char *buffer, unsigned length);
nvmlReturn_t alive(nvmlDevice_t device);
nvmlReturn_t gpu_u64(nvmlDevice_t device, const char *key, u64 *value);
nvmlReturn_t gpu_u32(nvmlDevice_t device, const char *key, unsigned *value);
nvmlReturn_t gpu_text(nvmlDevice_t device, const char *key, char *buffer, unsigned length);
nvmlReturn_t link_u64(nvmlDevice_t device, unsigned link, const char *key, u64 *value);

#endif
