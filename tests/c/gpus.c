/* Leases on GPUs: an account of its own, on a host whose driver is nowhere. */
#include "check.h"

#include <unistd.h>

int main(void) {
    char directory[] = "/tmp/gpuc-c-gpus-XXXXXX";
    CHECK(mkdtemp(directory) != NULL);
    int before = open_descriptors();
    gpuc_error_t *error;
    char table[64];
    snprintf(table, sizeof table, "%s/table", directory);
    gpuc_gpu_allocator_t *allocator = gpuc_gpu_allocator_open_at(table, &error);
    CHECK_NO_ERROR(error);
    CHECK(strcmp(gpuc_gpu_allocator_path(allocator), table) == 0);
    CHECK(gpuc_gpu_allocator_set_driver_root(allocator, directory, &error) == 0);
    CHECK_NO_ERROR(error);
    gpuc_gpu_allocator_set_respect_outer(allocator, false);
    gpuc_gpu_allocator_set_memory_return(allocator, 1000);

    gpuc_gpu_request_t *request = gpuc_gpu_request_new("count:2");
    gpuc_gpu_request_set_vendor(request, "nvidia");
    gpuc_gpu_request_set_min_total_memory(request, 1 << 30);
    gpuc_gpu_request_set_min_compute_capability(request, 8, 0);
    gpuc_gpu_request_set_model(request, "*A100*");
    gpuc_gpu_request_set_placement(request, "keep-pairs");
    gpuc_gpu_request_set_foreign_processes(request, "fail");
    gpuc_gpu_request_set_shared(request, 2);
    gpuc_gpu_request_set_priority(request, -1);
    /* More than the host has fails at once, also with time to wait. */
    CHECK(gpuc_gpu_allocator_acquire(allocator, request, 60000, NULL, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_GPU_UNAVAILABLE);
    gpuc_error_free(error);
    const char *extras[] = {"gds", "nvswitch", "mig-monitor", NULL};
    gpuc_gpu_request_set_extras(request, extras);
    const uint32_t channels[] = {0, 7};
    gpuc_gpu_request_set_imex_channels(request, channels, 2);
    gpuc_gpu_request_set_imex_channels(request, NULL, 0);
    const char *specifications[] = {directory, NULL};
    gpuc_gpu_request_set_cdi_directories(request, specifications);
    gpuc_gpu_request_set_vendor_hooks(request, "skip");
    /* A sandbox leases what it asks for. */
    gpuc_config_t *config = gpuc_config_new_from_directory(directory, &error);
    CHECK_NO_ERROR(error);
    gpuc_config_set_driver_root(config, directory);
    gpuc_config_set_gpu_allocator(config, allocator);
    gpuc_config_set_gpu_wait(config, 60000, NULL);
    gpuc_config_set_gpu_request(config, request);
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_GPU_UNAVAILABLE);
    gpuc_error_free(error);
    gpuc_config_set_gpus_unleased(config, request);
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_GPU_UNAVAILABLE);
    gpuc_error_free(error);
    gpuc_config_set_gpu_allocator(config, NULL);
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_INVALID_ARGUMENT);
    gpuc_error_free(error);
    gpuc_config_free(config);
    CHECK(gpuc_sandbox_gpu_lease(NULL, &error) == NULL);
    CHECK(strstr(gpuc_error_message(error), "is NULL") != NULL);
    gpuc_error_free(error);
    gpuc_gpu_request_set_placement(request, "on top of each other");
    CHECK(gpuc_gpu_allocator_acquire(allocator, request, 0, NULL, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_INVALID_ARGUMENT);
    CHECK(strstr(gpuc_error_message(error), "on top of each other") != NULL);
    gpuc_error_free(error);
    gpuc_gpu_request_free(request);
    const char *unknown[] = {"gds", "teleport", NULL};
    request = gpuc_gpu_request_new("image");
    gpuc_gpu_request_set_extras(request, unknown);
    CHECK(gpuc_gpu_allocator_acquire(allocator, request, 0, NULL, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_INVALID_ARGUMENT);
    CHECK(strstr(gpuc_error_message(error), "teleport") != NULL);
    gpuc_error_free(error);
    gpuc_gpu_request_free(request);
    CHECK(gpuc_sandbox_gpu_lease_at(NULL, 0, NULL) == NULL && gpuc_sandbox_attach_lease(NULL, NULL, NULL) == NULL);
    CHECK(gpuc_sandbox_attach_gpus_unleased(NULL, NULL, NULL) == NULL);
    CHECK(gpuc_sandbox_attach_gpus(NULL, NULL, 0, NULL, &error) == NULL);
    gpuc_error_free(error);
    CHECK(gpuc_sandbox_detach_gpus(NULL, NULL, true, NULL) == -1 && gpuc_sandbox_granted(NULL, 0, NULL) == NULL);
    CHECK(gpuc_gpu_grant_json(NULL, NULL) == NULL);
    gpuc_gpu_grant_free(NULL);

    const char *kept = "GPU-00000000-0000-0000-0000-000000000000";
    CHECK(gpuc_gpu_allocator_quarantine(allocator, kept, &error) == 1);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_gpu_allocator_quarantine(allocator, kept, &error) == 0);
    CHECK_NO_ERROR(error);
    char *with = gpuc_gpu_allocator_status_json(allocator, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(with, kept) != NULL);
    gpuc_string_free(with);
    CHECK(gpuc_gpu_allocator_readmit(allocator, kept, &error) == 1);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_gpu_allocator_readmit(allocator, kept, &error) == 0);
    CHECK(gpuc_gpu_allocator_quarantine(allocator, "../../x", &error) == -1);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_INVALID_ARGUMENT);
    gpuc_error_free(error);

    char *json = gpuc_gpu_allocator_status_json(allocator, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"leases\":[]") != NULL && strstr(json, "\"waiting\":[]") != NULL);
    gpuc_string_free(json);
    char *text = gpuc_gpu_allocator_status_text(allocator, &error);
    CHECK_NO_ERROR(error);
    gpuc_string_free(text);
    gpuc_host_t *host = gpuc_host_probe(&error);
    CHECK_NO_ERROR(error);
    char *topology = gpuc_host_topology_text(host, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(topology, "NUMA") != NULL);
    gpuc_string_free(topology);
    gpuc_host_free(host);

    CHECK(gpuc_gpu_allocator_acquire(NULL, NULL, 0, NULL, &error) == NULL);
    CHECK(strstr(gpuc_error_message(error), "is NULL") != NULL);
    gpuc_error_free(error);
    CHECK(gpuc_gpu_lease_count(NULL) == 0 && gpuc_gpu_lease_gpu(NULL, 0) == NULL);
    CHECK(*gpuc_gpu_lease_id(NULL) == '\0' && *gpuc_gpu_lease_description(NULL) == '\0');
    CHECK(gpuc_gpu_lease_release(NULL, NULL) == -1 && gpuc_gpu_lease_into_fd(NULL, NULL) == -1);
    gpuc_gpu_lease_free(NULL);
    gpuc_gpu_allocator_free(allocator);
    gpuc_gpu_allocator_free(NULL);
    CHECK(open_descriptors() == before);
    char remove_all[80];
    snprintf(remove_all, sizeof remove_all, "rm -r %s", directory);
    CHECK(rmdir(table) == 0 && system(remove_all) == 0);
    return 0;
}
