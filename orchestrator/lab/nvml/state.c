/* Reading the state file; see stub.c for what it may hold. */
#include "state.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STATE_FILE "/var/lib/rackray-lab/nvml"

struct nvmlDevice_st devices[MAX_GPUS];

static const char *state_path(void) {
    const char *path = getenv("RACKRAY_LAB_NVML_STATE");
    return path != NULL ? path : STATE_FILE;
}

/* The text after KEY, or NVML_ERROR_NOT_SUPPORTED where the state does not name it. */
nvmlReturn_t look_up(const char *key, char *value, size_t size) {
    FILE *file = fopen(state_path(), "re");
    if (file == NULL)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    char line[LINE];
    size_t length = strlen(key);
    nvmlReturn_t answer = NVML_ERROR_NOT_SUPPORTED;
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, key, length) != 0 || line[length] != ' ')
            continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(value, size, "%s", line + length + 1);
        answer = NVML_SUCCESS;
        break;
    }
    fclose(file);
    return answer;
}

nvmlReturn_t number(const char *key, u64 *value) {
    char text[LINE];
    nvmlReturn_t answer = look_up(key, text, sizeof text);
    if (answer == NVML_SUCCESS)
        *value = strtoull(text, NULL, 0);
    return answer;
}

nvmlReturn_t gpu_number(unsigned gpu, const char *key, u64 *value) {
    char full[96];
    snprintf(full, sizeof full, "%s.%u", key, gpu);
    return number(full, value);
}

nvmlReturn_t text_to(const char *key, char *buffer, unsigned length) {
    char text[LINE];
    nvmlReturn_t answer = look_up(key, text, sizeof text);
    if (answer != NVML_SUCCESS)
        return answer;
    if (strlen(text) + 1 > length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return NVML_SUCCESS;
}

/* Every call on a GPU begins here: is it a GPU of ours, does it still answer? */
nvmlReturn_t alive(nvmlDevice_t device) {
    u64 value = 0;
    if (device < devices || device >= devices + MAX_GPUS)
        return NVML_ERROR_INVALID_ARGUMENT;
    while (gpu_number(device->index, "hang", &value) == NVML_SUCCESS && value != 0)
        sleep(1); /* until the fault is healed or the caller is killed */
    if (gpu_number(device->index, "lost", &value) == NVML_SUCCESS && value != 0)
        return NVML_ERROR_GPU_IS_LOST;
    return NVML_SUCCESS;
}

nvmlReturn_t gpu_u64(nvmlDevice_t device, const char *key, u64 *value) {
    nvmlReturn_t answer = alive(device);
    return answer != NVML_SUCCESS ? answer : gpu_number(device->index, key, value);
}

nvmlReturn_t gpu_u32(nvmlDevice_t device, const char *key, unsigned *value) {
    u64 wide = 0;
    nvmlReturn_t answer = gpu_u64(device, key, &wide);
    if (answer == NVML_SUCCESS)
        *value = (unsigned)wide;
    return answer;
}

nvmlReturn_t gpu_text(nvmlDevice_t device, const char *key, char *buffer, unsigned length) {
    char full[96];
    nvmlReturn_t answer = alive(device);
    if (answer != NVML_SUCCESS)
        return answer;
    snprintf(full, sizeof full, "%s.%u", key, device->index);
    return text_to(full, buffer, length);
}

nvmlReturn_t link_u64(nvmlDevice_t device, unsigned link, const char *key, u64 *value) {
    char full[96];
    unsigned links = 0;
    nvmlReturn_t answer = gpu_u32(device, "nvlink_count", &links);
    if (answer != NVML_SUCCESS)
        return answer;
    if (link >= links)
        return NVML_ERROR_INVALID_ARGUMENT;
    snprintf(full, sizeof full, "%s.%u", key, device->index);
    snprintf(full + strlen(full), sizeof full - strlen(full), ".%u", link);
    return number(full, value);
}
