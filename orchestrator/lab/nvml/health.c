/* What tells a sick GPU from a sound one: memory errors, NVLink, the fabric, processes, field values. */
#include "state.h"
#include <stdio.h>
#include <string.h>
#include <time.h>

/* ---- memory that fails ---- */

static const char *const error_kinds[] = {"corrected", "uncorrected"};
static const char *const counter_kinds[] = {"volatile", "aggregate"};

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t error, nvmlEccCounterType_t counter,
                                         u64 *count) {
    char key[64];
    if ((unsigned)error >= NVML_MEMORY_ERROR_TYPE_COUNT || (unsigned)counter >= NVML_ECC_COUNTER_TYPE_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    snprintf(key, sizeof key, "ecc_%s_%s", counter_kinds[counter], error_kinds[error]);
    return gpu_u64(device, key, count);
}

/* The lab's memory errors are errors of the HBM; on chip memory has none. */
nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, nvmlMemoryErrorType_t error, nvmlEccCounterType_t counter,
                                             nvmlMemoryLocation_t location, u64 *count) {
    if (location == NVML_MEMORY_LOCATION_DRAM)
        return nvmlDeviceGetTotalEccErrors(device, error, counter, count);
    if (location != NVML_MEMORY_LOCATION_SRAM)
        return NVML_ERROR_NOT_SUPPORTED;
    *count = 0;
    return alive(device);
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected,
                                       unsigned int *pending, unsigned int *failed) {
    nvmlReturn_t answer = gpu_u32(device, "remapped_rows_corrected", corrected);
    if (answer == NVML_SUCCESS)
        answer = gpu_u32(device, "remapped_rows_uncorrected", uncorrected);
    if (answer == NVML_SUCCESS)
        answer = gpu_u32(device, "remap_pending", pending);
    return answer != NVML_SUCCESS ? answer : gpu_u32(device, "remap_failed", failed);
}

nvmlReturn_t nvmlDeviceGetRowRemapperHistogram(nvmlDevice_t device, nvmlRowRemapperHistogramValues_t *values) {
    unsigned banks = 0, used = 0;
    nvmlReturn_t answer = gpu_u32(device, "remap_banks", &banks);
    if (answer == NVML_SUCCESS)
        answer = gpu_u32(device, "remapped_rows_uncorrected", &used);
    memset(values, 0, sizeof *values);
    values->high = used < banks ? used : banks; /* one spare row taken in each of `used` banks */
    values->max = banks - values->high;
    return answer;
}

/* ---- NVLink and the fabric ---- */

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, nvmlEnableState_t *active) {
    u64 value = 0;
    nvmlReturn_t answer = link_u64(device, link, "nvlink_active", &value);
    *active = value != 0 ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return answer;
}

nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlDevice_t device, unsigned int link, unsigned int *version) {
    u64 active = 0;
    nvmlReturn_t answer = link_u64(device, link, "nvlink_active", &active);
    return answer != NVML_SUCCESS ? answer : gpu_u32(device, "nvlink_version", version);
}

nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned int link, nvmlNvLinkErrorCounter_t counter,
                                             u64 *count) {
    static const char *const keys[] = {"nvlink_replays", "nvlink_recoveries", "nvlink_crc_flit", "nvlink_crc_data"};
    if ((unsigned)counter >= sizeof keys / sizeof keys[0])
        return NVML_ERROR_NOT_SUPPORTED;
    return link_u64(device, link, keys[counter], count);
}

nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned int link, nvmlIntNvLinkDeviceType_t *type) {
    u64 active = 0;
    nvmlReturn_t answer = link_u64(device, link, "nvlink_active", &active);
    *type = active != 0 ? NVML_NVLINK_DEVICE_TYPE_SWITCH : NVML_NVLINK_DEVICE_TYPE_UNKNOWN;
    u64 other = 0; /* `nvlink_peer.I.LINK` names another end than the switch that a sound link has */
    if (answer == NVML_SUCCESS && active != 0 && link_u64(device, link, "nvlink_peer", &other) == NVML_SUCCESS)
        *type = (nvmlIntNvLinkDeviceType_t)other;
    return answer;
}

/* pynvml calls this for versions 2 and 3; each begins like the one before it. */
nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfoV_t *info) {
    unsigned state = 0, health = 0;
    if (info->version != nvmlGpuFabricInfo_v2 && info->version != nvmlGpuFabricInfo_v3)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t answer = gpu_u32(device, "fabric_state", &state);
    if (answer == NVML_SUCCESS)
        answer = gpu_u32(device, "fabric_health_mask", &health);
    if (answer != NVML_SUCCESS)
        return answer;
    memset(info->clusterUuid, 0, sizeof info->clusterUuid); /* one machine is its own NVLink domain */
    info->cliqueId = 0;
    info->status = NVML_SUCCESS;
    info->state = (nvmlGpuFabricState_t)state;
    info->healthMask = health;
    if (info->version == nvmlGpuFabricInfo_v3)
        info->healthSummary = NVML_GPU_FABRIC_HEALTH_SUMMARY_HEALTHY;
    return NVML_SUCCESS;
}

/* ---- processes and field values ---- */

/* The lab's GPUs compute nothing, so nothing runs on them; `processes.I PID:BYTES` plants one foreign process. */
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos) {
    char text[LINE];
    unsigned room = *count, pid;
    u64 bytes;
    nvmlReturn_t answer = gpu_text(device, "processes", text, sizeof text);
    *count = 0;
    if (answer == NVML_ERROR_NOT_SUPPORTED)
        return NVML_SUCCESS;
    if (answer != NVML_SUCCESS || sscanf(text, "%u:%llu", &pid, &bytes) != 2)
        return answer;
    *count = 1;
    if (room < 1 || infos == NULL)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    infos[0] = (nvmlProcessInfo_t){.pid = pid, .usedGpuMemory = bytes, .gpuInstanceId = ~0u, .computeInstanceId = ~0u};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    static const struct {
        unsigned field;
        const char *key;
    } known[] = {
        {NVML_FI_DEV_ECC_SBE_VOL_TOTAL, "ecc_volatile_corrected"},
        {NVML_FI_DEV_ECC_DBE_VOL_TOTAL, "ecc_volatile_uncorrected"},
        {NVML_FI_DEV_ECC_SBE_AGG_TOTAL, "ecc_aggregate_corrected"},
        {NVML_FI_DEV_ECC_DBE_AGG_TOTAL, "ecc_aggregate_uncorrected"},
        {NVML_FI_DEV_RETIRED_PENDING, "retired_pages_pending"},
        {NVML_FI_DEV_MEMORY_TEMP, "temperature_memory_c"},
        {NVML_FI_DEV_NVLINK_LINK_COUNT, "nvlink_count"},
        {NVML_FI_DEV_PCIE_REPLAY_COUNTER, "pcie_replays"},
        {NVML_FI_DEV_REMAPPED_COR, "remapped_rows_corrected"},
        {NVML_FI_DEV_REMAPPED_UNC, "remapped_rows_uncorrected"},
        {NVML_FI_DEV_REMAPPED_PENDING, "remap_pending"},
        {NVML_FI_DEV_REMAPPED_FAILURE, "remap_failed"},
        {NVML_FI_DEV_POWER_AVERAGE, "power_usage_mw"},
        {NVML_FI_DEV_POWER_INSTANT, "power_usage_mw"},
        {NVML_FI_DEV_POWER_CURRENT_LIMIT, "power_enforced_limit_mw"},
        {NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, "recovery_action"},
    };
    nvmlReturn_t answer = alive(device);
    for (int i = 0; answer == NVML_SUCCESS && i < count; i++) {
        u64 value = 0;
        values[i].nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
        for (size_t k = 0; k < sizeof known / sizeof known[0]; k++)
            if (known[k].field == values[i].fieldId)
                values[i].nvmlReturn = gpu_number(device->index, known[k].key, &value);
        values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
        values[i].value.ullVal = value;
        values[i].timestamp = (long long)time(NULL) * 1000000;
        values[i].latencyUsec = 0;
    }
    return answer;
}
