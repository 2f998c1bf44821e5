/* Leases and sandboxes on the GPUs of a machine that is a stand-in: a DGX A100, as root. */
#include "check.h"

#include <fcntl.h>
#include <unistd.h>

static size_t leases(const gpuc_gpu_allocator_t *allocator) {
    gpuc_error_t *error;
    char *json = gpuc_gpu_allocator_status_json(allocator, &error);
    CHECK_NO_ERROR(error);
    const char *list = strstr(json, "\"leases\":[");
    CHECK(list != NULL);
    size_t count = 0;
    for (const char *at = list; (at = strstr(at, "\"pid_namespace\"")) != NULL; at++) count++;
    gpuc_string_free(json);
    return count;
}

/* Whether the sandbox says that it has a GPU. */
static bool has(const gpuc_sandbox_t *sandbox, const char *gpu) {
    gpuc_error_t *error;
    char *json = gpuc_sandbox_json(sandbox, &error);
    CHECK_NO_ERROR(error);
    bool found = strstr(json, gpu) != NULL;
    gpuc_string_free(json);
    return found;
}

int main(void) {
    const char *machine = getenv("GPUCONTAINER_DRIVER_ROOT");
    if (machine == NULL) {
        printf("SKIP gpu_lease: not root, so there is no stand-in for a machine with GPUs\n");
        return 0;
    }
    char directory[] = "/tmp/gpuc-c-lease-XXXXXX";
    CHECK(mkdtemp(directory) != NULL);
    int before = open_descriptors();
    gpuc_error_t *error;
    char table[64], path[64];
    snprintf(table, sizeof table, "%s/table", directory);
    snprintf(path, sizeof path, "%s/store", directory);
    gpuc_gpu_allocator_t *allocator = gpuc_gpu_allocator_open_at(table, &error);
    CHECK_NO_ERROR(error);
    gpuc_gpu_allocator_set_respect_outer(allocator, false);

    /* By itself. */
    gpuc_gpu_request_t *seven = gpuc_gpu_request_new("count:7");
    gpuc_gpu_lease_t *lease = gpuc_gpu_allocator_acquire(allocator, seven, 0, NULL, &error);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_gpu_lease_count(lease) == 7 && gpuc_gpu_lease_gpu(lease, 7) == NULL);
    CHECK(strncmp(gpuc_gpu_lease_gpu(lease, 0), "GPU-", 4) == 0);
    CHECK(strstr(gpuc_gpu_lease_description(lease), "NVLink") != NULL);
    char *json = gpuc_gpu_lease_json(lease, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, gpuc_gpu_lease_id(lease)) != NULL);
    gpuc_string_free(json);
    CHECK(leases(allocator) == 1);
    CHECK(gpuc_gpu_allocator_acquire(allocator, seven, 0, NULL, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_GPU_UNAVAILABLE);
    CHECK(strstr(gpuc_error_message(error), "1 of 8 free: 7 leased by process") != NULL);
    gpuc_error_free(error);
    CHECK(gpuc_gpu_allocator_acquire(allocator, seven, 20, NULL, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_TIMED_OUT);
    gpuc_error_free(error);

    /* In a sandbox, which gets the last one; another is given to it and taken back while it runs. */
    gpuc_image_store_t *store = gpuc_image_store_open(path, &error);
    CHECK_NO_ERROR(error);
    gpuc_image_builder_t *builder = gpuc_image_builder_new(store, &error);
    CHECK_NO_ERROR(error);
    gpuc_image_builder_copy_following_links(builder, "/bin/busybox", "/bin/busybox");
    gpuc_image_builder_symlink(builder, "busybox", "/bin/sh");
    const char *const command[] = {
        "/bin/sh", "-c", "while read -r line; do set -- /dev/nvidia[0-9]*; echo $#; done", NULL};
    gpuc_image_builder_set_command(builder, command);
    gpuc_image_t *image = gpuc_image_builder_commit(builder, "gpus:1", &error);
    CHECK_NO_ERROR(error);
    gpuc_image_builder_free(builder);
    gpuc_gpu_request_t *one = gpuc_gpu_request_new("count:1");
    gpuc_config_t *config = gpuc_config_new_from_image(image, &error);
    CHECK_NO_ERROR(error);
    gpuc_config_set_store(config, store);
    gpuc_config_set_gpu_allocator(config, allocator);
    gpuc_config_set_gpu_request(config, one);
    gpuc_config_set_stdio(config, 0, GPUC_STDIO_PIPED);
    gpuc_config_set_stdio(config, 1, GPUC_STDIO_PIPED);
    gpuc_sandbox_t *sandbox = gpuc_sandbox_spawn(config, &error);
    CHECK_NO_ERROR(error);
    gpuc_config_free(config);
    gpuc_gpu_lease_t *its = gpuc_sandbox_gpu_lease(sandbox, &error);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_gpu_lease_count(its) == 1 && leases(allocator) == 2);
    for (size_t gpu = 0; gpu < 7; gpu++) {
        CHECK(strcmp(gpuc_gpu_lease_gpu(lease, gpu), gpuc_gpu_lease_gpu(its, 0)) != 0);
    }
    int in = gpuc_sandbox_take_stream(sandbox, 0), out = gpuc_sandbox_take_stream(sandbox, 1);
    CHECK(in >= 0 && out >= 0);
    char count[2];
    CHECK(write(in, "\n", 1) == 1 && read(out, count, 2) == 2 && count[0] == '1');
    /* What somebody else has leased is waited for, or taken all the same; a lease of one's own is the sandbox's too. */
    gpuc_gpu_request_t *more = gpuc_gpu_request_new(gpuc_gpu_lease_gpu(lease, 0));
    CHECK(gpuc_sandbox_attach_gpus(sandbox, more, 0, NULL, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_GPU_UNAVAILABLE);
    CHECK(strstr(gpuc_error_message(error), "leased by process") != NULL);
    gpuc_error_free(error);
    CHECK(gpuc_sandbox_attach_gpus(sandbox, more, 20, NULL, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_TIMED_OUT);
    gpuc_error_free(error);
    gpuc_gpu_grant_t *grant = gpuc_sandbox_attach_gpus_unleased(sandbox, more, &error);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_sandbox_gpu_lease_at(sandbox, 1, &error) == NULL);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_sandbox_detach_gpus(sandbox, grant, false, &error) == 0);
    gpuc_gpu_grant_free(grant);
    grant = gpuc_sandbox_attach_lease(sandbox, lease, &error);
    CHECK_NO_ERROR(error);
    gpuc_gpu_lease_t *same = gpuc_sandbox_gpu_lease_at(sandbox, 1, &error);
    CHECK_NO_ERROR(error);
    CHECK(strcmp(gpuc_gpu_lease_id(same), gpuc_gpu_lease_id(lease)) == 0);
    gpuc_gpu_lease_free(same);
    CHECK(write(in, "\n", 1) == 1 && read(out, count, 2) == 2 && count[0] == '8');
    CHECK(has(sandbox, gpuc_gpu_lease_gpu(lease, 6)) && has(sandbox, gpuc_gpu_lease_gpu(its, 0)));
    CHECK(gpuc_sandbox_detach_gpus(sandbox, grant, false, &error) == 0);
    CHECK(!has(sandbox, gpuc_gpu_lease_gpu(lease, 6)) && has(sandbox, gpuc_gpu_lease_gpu(its, 0)));
    gpuc_gpu_grant_free(grant);
    CHECK(leases(allocator) == 2);
    CHECK(gpuc_gpu_lease_release(lease, &error) == 0 && leases(allocator) == 1);
    grant = gpuc_sandbox_attach_gpus(sandbox, more, 60000, NULL, &error);
    CHECK_NO_ERROR(error);
    CHECK(leases(allocator) == 2);
    same = gpuc_sandbox_gpu_lease_at(sandbox, 1, &error);
    CHECK_NO_ERROR(error);
    json = gpuc_gpu_grant_json(grant, &error);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_gpu_lease_count(same) == 1 && strstr(json, gpuc_gpu_lease_gpu(same, 0)) != NULL);
    gpuc_string_free(json);
    gpuc_gpu_lease_free(same);
    json = gpuc_gpu_allocator_status_json(allocator, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"sandbox\":\"s-") != NULL);
    gpuc_string_free(json);
    CHECK(write(in, "\n", 1) == 1 && read(out, count, 2) == 2 && count[0] == '2');
    CHECK(gpuc_sandbox_detach_gpus(sandbox, grant, false, &error) == 0);
    CHECK_NO_ERROR(error);
    CHECK(leases(allocator) == 1);
    CHECK(write(in, "\n", 1) == 1 && read(out, count, 2) == 2 && count[0] == '1');
    gpuc_gpu_grant_free(grant);
    gpuc_gpu_request_free(more);
    close(in);
    close(out);
    gpuc_gpu_lease_free(its);
    CHECK(gpuc_sandbox_close(sandbox, &error) == 0);
    CHECK(leases(allocator) == 0);
    lease = gpuc_gpu_allocator_acquire(allocator, seven, 0, NULL, &error);
    CHECK_NO_ERROR(error);

    /* What other engines are told of the machine, and what they tell. */
    gpuc_gpu_request_t *all = gpuc_gpu_request_new("all");
    json = gpuc_cdi_spec_json(all, NULL, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"nvidia.com/gpu\"") != NULL);
    char specification[64];
    snprintf(specification, sizeof specification, "%s/nvidia.json", directory);
    FILE *file = fopen(specification, "w");
    CHECK(file != NULL && fputs(json, file) >= 0 && fclose(file) == 0);
    gpuc_string_free(json);
    const char *const directories[] = {directory, NULL};
    json = gpuc_cdi_devices_json(directories, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"nvidia.com/gpu=all\"") != NULL && strstr(json, "\"problems\":[]") != NULL);
    gpuc_string_free(json);
    CHECK(gpuc_cdi_spec_json(NULL, NULL, &error) == NULL);
    gpuc_error_free(error);
    CHECK(gpuc_cdi_spec_json(all, "/no/such/directory", &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_GPU_UNAVAILABLE);
    gpuc_error_free(error);
    gpuc_gpu_request_free(all);
    json = gpuc_gpu_allocator_review_json(allocator, &error);
    CHECK_NO_ERROR(error);
    CHECK(strcmp(json, "[]") == 0);
    gpuc_string_free(json);

    /* With an MPS daemon of its own. */
    gpuc_gpu_request_t *served = gpuc_gpu_request_new("count:1");
    gpuc_gpu_request_set_mps(served, 101, 0);
    gpuc_gpu_allocator_set_mps_start(allocator, 60000);
    CHECK(gpuc_gpu_allocator_acquire(allocator, served, 0, NULL, &error) == NULL);
    CHECK(gpuc_error_kind(error) == GPUC_ERROR_INVALID_ARGUMENT);
    gpuc_error_free(error);
    gpuc_gpu_request_set_mps(served, 25, 1u << 30);
    gpuc_gpu_lease_t *with_daemon = gpuc_gpu_allocator_acquire(allocator, served, 0, NULL, &error);
    CHECK_NO_ERROR(error);
    json = gpuc_gpu_lease_mps_json(with_daemon, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"running\":true") != NULL && strstr(json, "\"active_threads\":25") != NULL);
    CHECK(strstr(json, "\"device_memory\":1073741824") != NULL);
    gpuc_string_free(json);
    char *status = gpuc_gpu_allocator_status_text(allocator, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(status, "MPS daemon ") != NULL);
    gpuc_string_free(status);
    CHECK(gpuc_gpu_lease_release(with_daemon, &error) == 0);
    CHECK_NO_ERROR(error);
    gpuc_gpu_request_free(served);
    CHECK(gpuc_gpu_lease_mps_json(lease, &error) == NULL);
    CHECK_NO_ERROR(error);

    /* Handed on as a descriptor, it ends with that. */
    int held = gpuc_gpu_lease_into_fd(lease, &error);
    CHECK_NO_ERROR(error);
    CHECK((fcntl(held, F_GETFD) & FD_CLOEXEC) != 0 && leases(allocator) == 1);
    close(held);
    CHECK(leases(allocator) == 0);
    lease = gpuc_gpu_allocator_acquire(allocator, seven, 60000, NULL, &error);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_gpu_lease_release(lease, &error) == 0 && leases(allocator) == 0);

    gpuc_gpu_request_free(one);
    gpuc_gpu_request_free(seven);
    gpuc_image_free(image);
    gpuc_image_store_free(store);
    gpuc_gpu_allocator_free(allocator);
    CHECK(open_descriptors() == before);
    char remove_all[80];
    snprintf(remove_all, sizeof remove_all, "rm -r %s", directory);
    CHECK(system(remove_all) == 0);
    return 0;
}
