/* A small stand-in for libnvidia-ml.so, compiled by the tests in several variants:
 *   -DGPUS=n        so many GPUs (default 2)
 *   -DINIT_RESULT=r nvmlInit returns r (9 = driver not loaded)
 *   -DLOST_AFTER=n  after n memory queries the GPU is lost (15)
 *   -DNO_SENSORS    utilization and power are "not supported" (3) */
#include <stdint.h>
#include <string.h>

#ifndef GPUS
#define GPUS 2
#endif
#ifndef INIT_RESULT
#define INIT_RESULT 0
#endif
#ifndef LOST_AFTER
#define LOST_AFTER 1000000
#endif

typedef int result;
typedef void *device;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
typedef struct { unsigned gpu, memory; } rates;

enum { OK = 0, NOT_SUPPORTED = 3, INVALID = 2, LOST = 15 };
static int queries;

static result text(char *out, unsigned size, const char *value) {
    if (size <= strlen(value)) return INVALID;
    strcpy(out, value);
    return OK;
}
static int number(device d) { return (int)(intptr_t)d - 1; }

result nvmlInit_v2(void) { return INIT_RESULT; }
result nvmlShutdown(void) { return OK; }
result nvmlSystemGetDriverVersion(char *out, unsigned size) { return text(out, size, "570.1"); }
result nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = 12080; return OK; }
result nvmlDeviceGetCount_v2(unsigned *out) { *out = GPUS; return OK; }
result nvmlDeviceGetHandleByIndex_v2(unsigned i, device *out) {
    if (i >= GPUS) return INVALID;
    *out = (device)(intptr_t)(i + 1);
    return OK;
}
result nvmlDeviceGetName(device d, char *out, unsigned size) {
    return text(out, size, number(d) ? "Fake GeForce RTX 4090" : "Fake GeForce RTX 3060");
}
result nvmlDeviceGetMemoryInfo_v2(device d, memory *out) {
    if (++queries > LOST_AFTER) return LOST;
    out->total = number(d) ? 24ull << 30 : 12ull << 30;
    out->used = 4ull << 30;
    out->reserved = 0;
    out->free = out->total - out->used;
    return OK;
}
#ifdef NO_SENSORS
result nvmlDeviceGetUtilizationRates(device d, rates *out) { (void)d; (void)out; return NOT_SUPPORTED; }
#else
result nvmlDeviceGetUtilizationRates(device d, rates *out) {
    out->gpu = number(d) ? 250 : 42; /* a driver's nonsense is cut to 100 */
    out->memory = 17;
    return OK;
}
result nvmlDeviceGetPowerUsage(device d, unsigned *out) { (void)d; *out = 123456; return OK; }
#endif
result nvmlDeviceGetTemperature(device d, int sensor, unsigned *out) {
    (void)d; (void)sensor; *out = 61; return OK;
}
