/* The lab's own libnvidia-ml.so.1: NVML answers taken from a state file, so that the real pynvml can be asked.
 *
 * State: one `KEY VALUE` a line; a key of one GPU ends in `.INDEX`, of one link in `.INDEX.LINK`. The file is read at EVERY
 * call, so an edit from outside is a fault at once, in processes that already run too. A key that is absent means
 * NVML_ERROR_NOT_SUPPORTED: the stub invents no value. Keys that change the behaviour of every call on a GPU:
 *     lost.I 1   NVML_ERROR_GPU_IS_LOST (as after Xid 79)        hang.I 1   the call never returns
 * `init_error N` is what NVML answers when it is started: 18 where the library is of another version than the driver.
 * No state file: NVML_ERROR_DRIVER_NOT_LOADED. Prototypes and structs come from NVIDIA's nvml.h (nvidia-nvml-dev), so a
 * wrong signature does not compile. Serves the functions a health probe asks; others are absent, as in an old driver.
 */
#include "state.h"
#include <stdio.h>
#include <string.h>
#include <time.h>

/* ---- the library and the system ---- */

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    u64 count = 0, refused = 0;
    (void)flags;
    for (unsigned i = 0; i < MAX_GPUS; i++)
        devices[i].index = i;
    if (number("init_error", &refused) == NVML_SUCCESS && refused != NVML_SUCCESS)
        return (nvmlReturn_t)refused;
    return number("count", &count) == NVML_SUCCESS ? NVML_SUCCESS : NVML_ERROR_DRIVER_NOT_LOADED;
}

nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void) { return NVML_SUCCESS; }

const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case NVML_ERROR_FUNCTION_NOT_FOUND: return "Function Not Found";
    case NVML_ERROR_LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    return text_to("driver_version", version, length);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    return text_to("nvml_version", version, length);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    u64 value = 0;
    nvmlReturn_t answer = number("cuda_version", &value);
    *version = (int)value;
    return answer;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

/* ---- finding a GPU ---- */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    u64 value = 0;
    nvmlReturn_t answer = number("count", &value);
    *count = (unsigned)value;
    return answer;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    unsigned count = 0;
    nvmlReturn_t answer = nvmlDeviceGetCount_v2(&count);
    if (answer != NVML_SUCCESS)
        return answer;
    if (index >= count || index >= MAX_GPUS)
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = &devices[index];
    return alive(*device);
}

static nvmlReturn_t handle_by(const char *key, const char *wanted, nvmlDevice_t *device) {
    unsigned count = 0;
    nvmlReturn_t answer = nvmlDeviceGetCount_v2(&count);
    for (unsigned i = 0; answer == NVML_SUCCESS && i < count && i < MAX_GPUS; i++) {
        char full[96], value[LINE];
        snprintf(full, sizeof full, "%s.%u", key, i);
        if (look_up(full, value, sizeof value) == NVML_SUCCESS && strcmp(value, wanted) == 0) {
            *device = &devices[i];
            return alive(*device);
        }
    }
    return answer != NVML_SUCCESS ? answer : NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    return handle_by("uuid", uuid, device);
}

nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device) {
    return handle_by("serial", serial, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device) {
    return handle_by("pci_bus_id", bus_id, device);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index) {
    nvmlReturn_t answer = alive(device);
    if (answer == NVML_SUCCESS)
        *index = device->index;
    return answer;
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor) {
    return nvmlDeviceGetIndex(device, minor);
}

/* ---- one number or one text of a GPU: the key says it all ---- */

#define U32_OF(function, key) \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *value) { return gpu_u32(device, key, value); }
#define U64_OF(function, key) \
    nvmlReturn_t function(nvmlDevice_t device, u64 *value) { return gpu_u64(device, key, value); }
#define ENUM_OF(function, type, key) \
    nvmlReturn_t function(nvmlDevice_t device, type *value) { \
        unsigned plain = 0; \
        nvmlReturn_t answer = gpu_u32(device, key, &plain); \
        *value = (type)plain; \
        return answer; \
    }
#define TEXT_OF(function, key) \
    nvmlReturn_t function(nvmlDevice_t device, char *value, unsigned int length) { \
        return gpu_text(device, key, value, length); \
    }
#define PAIR_OF(function, type, first_key, second_key) \
    nvmlReturn_t function(nvmlDevice_t device, type *first, type *second) { \
        unsigned a = 0, b = 0; \
        nvmlReturn_t answer = gpu_u32(device, first_key, &a); \
        if (answer == NVML_SUCCESS) \
            answer = gpu_u32(device, second_key, &b); \
        *first = (type)a; \
        *second = (type)b; \
        return answer; \
    }

TEXT_OF(nvmlDeviceGetName, "name")
TEXT_OF(nvmlDeviceGetUUID, "uuid")
TEXT_OF(nvmlDeviceGetSerial, "serial")
TEXT_OF(nvmlDeviceGetBoardPartNumber, "board_part_number")
TEXT_OF(nvmlDeviceGetVbiosVersion, "vbios_version")
TEXT_OF(nvmlDeviceGetInforomImageVersion, "inforom_version")

U32_OF(nvmlDeviceGetBoardId, "board_id")
U32_OF(nvmlDeviceGetMultiGpuBoard, "multi_gpu_board")
U32_OF(nvmlDeviceGetInforomConfigurationChecksum, "inforom_checksum")
U32_OF(nvmlDeviceGetPowerUsage, "power_usage_mw")
U32_OF(nvmlDeviceGetPowerManagementLimit, "power_limit_mw")
U32_OF(nvmlDeviceGetPowerManagementDefaultLimit, "power_default_limit_mw")
U32_OF(nvmlDeviceGetEnforcedPowerLimit, "power_enforced_limit_mw")
U32_OF(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_gen")
U32_OF(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
U32_OF(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_gen_max")
U32_OF(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max")
U32_OF(nvmlDeviceGetPcieReplayCounter, "pcie_replays")
U32_OF(nvmlDeviceGetNumGpuCores, "cuda_cores")
U32_OF(nvmlDeviceGetMemoryBusWidth, "memory_bus_bits")
U32_OF(nvmlDeviceGetFanSpeed, "fan_percent")
U64_OF(nvmlDeviceGetCurrentClocksThrottleReasons, "clock_event_reasons")
U64_OF(nvmlDeviceGetCurrentClocksEventReasons, "clock_event_reasons")
U64_OF(nvmlDeviceGetSupportedClocksThrottleReasons, "clock_event_reasons_supported")
U64_OF(nvmlDeviceGetSupportedClocksEventReasons, "clock_event_reasons_supported")
U64_OF(nvmlDeviceGetSupportedEventTypes, "event_types")
ENUM_OF(nvmlDeviceGetBrand, nvmlBrandType_t, "brand")
ENUM_OF(nvmlDeviceGetArchitecture, nvmlDeviceArchitecture_t, "architecture")
ENUM_OF(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, "persistence_mode")
ENUM_OF(nvmlDeviceGetComputeMode, nvmlComputeMode_t, "compute_mode")
ENUM_OF(nvmlDeviceGetPerformanceState, nvmlPstates_t, "performance_state")
ENUM_OF(nvmlDeviceGetRetiredPagesPendingStatus, nvmlEnableState_t, "retired_pages_pending")
PAIR_OF(nvmlDeviceGetEccMode, nvmlEnableState_t, "ecc_mode", "ecc_mode_pending")
PAIR_OF(nvmlDeviceGetMigMode, unsigned int, "mig_mode", "mig_mode_pending")
PAIR_OF(nvmlDeviceGetPowerManagementLimitConstraints, unsigned int, "power_limit_min_mw", "power_limit_max_mw")
PAIR_OF(nvmlDeviceGetCudaComputeCapability, int, "compute_major", "compute_minor")
PAIR_OF(nvmlDeviceGetGspFirmwareMode, unsigned int, "gsp_enabled", "gsp_default")

/* The documented buffer is NVML_GSP_FIRMWARE_VERSION_BUF_SIZE; the call carries no length. */
nvmlReturn_t nvmlDeviceGetGspFirmwareVersion(nvmlDevice_t device, char *version) {
    return gpu_text(device, "gsp_version", version, NVML_GSP_FIRMWARE_VERSION_BUF_SIZE);
}

nvmlReturn_t nvmlDeviceGetInforomVersion(nvmlDevice_t device, nvmlInforomObject_t object, char *version, unsigned length) {
    static const char *const keys[] = {"inforom_oem_version", "inforom_ecc_version", "inforom_power_version"};
    if ((unsigned)object >= sizeof keys / sizeof keys[0])
        return NVML_ERROR_NOT_SUPPORTED;
    return gpu_text(device, keys[object], version, length);
}

/* ---- place, memory, energy ---- */

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    char bus_id[LINE];
    unsigned domain, bus, slot;
    nvmlReturn_t answer = gpu_text(device, "pci_bus_id", bus_id, sizeof bus_id);
    if (answer != NVML_SUCCESS)
        return answer;
    if (sscanf(bus_id, "%x:%x:%x", &domain, &bus, &slot) != 3)
        return NVML_ERROR_UNKNOWN;
    memset(pci, 0, sizeof *pci);
    pci->domain = domain;
    pci->bus = bus;
    pci->device = slot;
    snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", domain, bus & 0xff, slot & 0x1f);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", domain & 0xffff, bus & 0xff, slot & 0x1f);
    answer = gpu_u32(device, "pci_device_id", &pci->pciDeviceId);
    return answer != NVML_SUCCESS ? answer : gpu_u32(device, "pci_subsystem_id", &pci->pciSubSystemId);
}

static nvmlReturn_t memory_of(nvmlDevice_t device, u64 *total, u64 *reserved, u64 *used) {
    nvmlReturn_t answer = gpu_u64(device, "memory_total_bytes", total);
    if (answer == NVML_SUCCESS)
        answer = gpu_u64(device, "memory_reserved_bytes", reserved);
    if (answer == NVML_SUCCESS)
        answer = gpu_u64(device, "memory_used_bytes", used);
    return answer;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    u64 total = 0, reserved = 0, used = 0;
    nvmlReturn_t answer = memory_of(device, &total, &reserved, &used);
    memory->total = total;
    memory->used = used + reserved; /* version 1 counts what the driver keeps as used */
    memory->free = total - used - reserved;
    return answer;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    u64 total = 0, reserved = 0, used = 0;
    if (memory->version != nvmlMemory_v2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t answer = memory_of(device, &total, &reserved, &used);
    memory->total = total;
    memory->reserved = reserved;
    memory->used = used;
    memory->free = total - used - reserved;
    return answer;
}

nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *memory) {
    u64 total = 0, used = 0;
    nvmlReturn_t answer = gpu_u64(device, "bar1_total_bytes", &total);
    if (answer == NVML_SUCCESS)
        answer = gpu_u64(device, "bar1_used_bytes", &used);
    memory->bar1Total = total;
    memory->bar1Used = used;
    memory->bar1Free = total - used;
    return answer;
}

/* Energy since boot, in mJ: as if the GPU had drawn its present power all the time. */
nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, u64 *energy) {
    struct timespec up;
    unsigned draw_mw = 0;
    nvmlReturn_t answer = gpu_u32(device, "power_usage_mw", &draw_mw);
    if (answer == NVML_SUCCESS && clock_gettime(CLOCK_BOOTTIME, &up) == 0)
        *energy = (u64)up.tv_sec * draw_mw + (u64)up.tv_nsec / 1000000 * draw_mw / 1000;
    return answer;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    nvmlReturn_t answer = gpu_u32(device, "utilization_gpu_percent", &utilization->gpu);
    return answer != NVML_SUCCESS ? answer : gpu_u32(device, "utilization_memory_percent", &utilization->memory);
}

/* ---- heat and clocks ---- */

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *celsius) {
    return sensor == NVML_TEMPERATURE_GPU ? gpu_u32(device, "temperature_c", celsius) : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature) {
    unsigned celsius = 0;
    if (temperature->version != nvmlTemperature_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t answer = nvmlDeviceGetTemperature(device, temperature->sensorType, &celsius);
    temperature->temperature = (int)celsius;
    return answer;
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, nvmlTemperatureThresholds_t kind, unsigned *celsius) {
    static const char *const keys[] = {"temperature_shutdown_c", "temperature_slowdown_c", "temperature_memory_max_c",
                                       "temperature_gpu_max_c"};
    if ((unsigned)kind >= NVML_TEMPERATURE_THRESHOLD_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    return (unsigned)kind < 4 ? gpu_u32(device, keys[kind], celsius) : NVML_ERROR_NOT_SUPPORTED;
}

static const char *const clock_names[] = {"graphics", "sm", "memory", "video"};

static nvmlReturn_t clock_of(nvmlDevice_t device, nvmlClockType_t type, const char *suffix, unsigned *mhz) {
    char key[64];
    if ((unsigned)type >= NVML_CLOCK_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    snprintf(key, sizeof key, "clock_%s%s_mhz", clock_names[type], suffix);
    return gpu_u32(device, key, mhz);
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *mhz) {
    return clock_of(device, type, "", mhz);
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *mhz) {
    return clock_of(device, type, "_max", mhz);
}
