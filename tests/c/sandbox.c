/* Sandboxes: start, streams, waiting, signals, further processes, pause, limits, GPUs, errors. */
#include "image.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

static void streams(const gpuc_image_t *image) {
    gpuc_error_t *error;
    gpuc_config_t *config = shell(image, "cat; echo $GREETING >&2; pwd; exit 3");
    gpuc_config_set_stdio(config, 0, GPUC_STDIO_PIPED);
    gpuc_config_env(config, "GREETING", "hello");
    gpuc_config_set_working_dir(config, "/srv");
    gpuc_sandbox_t *sandbox = spawn(config);
    CHECK(gpuc_sandbox_name(sandbox)[0] != '\0');
    CHECK(gpuc_sandbox_pid(sandbox) > 0);
    gpuc_output_t *output = gpuc_sandbox_communicate(sandbox, "input\n", 6, 30000, &error);
    CHECK_NO_ERROR(error);
    size_t length;
    const void *bytes = gpuc_output_bytes(output, 1, &length);
    CHECK(length == 11 && memcmp(bytes, "input\n/srv\n", 11) == 0);
    bytes = gpuc_output_bytes(output, 2, &length);
    CHECK(length == 6 && memcmp(bytes, "hello\n", 6) == 0);
    CHECK(gpuc_output_status(output).code == 3 && gpuc_output_status(output).signal == 0);
    gpuc_output_free(output);
    close_sandbox(sandbox);

    /* By hand, and into a file of the caller's. */
    int ends[2];
    CHECK(pipe(ends) == 0);
    config = shell(image, "cat /proc/self/stat >/dev/null && echo out && echo err >&2");
    gpuc_config_set_stdio_file(config, 2, ends[1]);
    sandbox = spawn(config);
    close(ends[1]);
    int out = gpuc_sandbox_take_stream(sandbox, 1);
    CHECK(out >= 0);
    CHECK(gpuc_sandbox_take_stream(sandbox, 1) == -1);
    CHECK(gpuc_sandbox_take_stream(sandbox, 2) == -1);
    char text[64];
    read_all(out, text, sizeof text);
    CHECK(strcmp(text, "out\n") == 0);
    read_all(ends[0], text, sizeof text);
    CHECK(strcmp(text, "err\n") == 0);
    gpuc_sandbox_free(sandbox);
}

static void waiting(const gpuc_image_t *image) {
    gpuc_error_t *error;
    gpuc_exit_status_t status;
    gpuc_sandbox_t *sandbox = spawn(shell(image, "exec sleep 1000"));
    CHECK(gpuc_sandbox_wait(sandbox, 0, &status, &error) == 0);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_sandbox_wait(sandbox, 20, NULL, NULL) == 0);
    struct pollfd poller = {gpuc_sandbox_fd(sandbox), POLLIN, 0};
    CHECK(poll(&poller, 1, 0) == 0);
    CHECK(gpuc_sandbox_kill(sandbox, 99, &error) == -1);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "99");
    CHECK(gpuc_sandbox_kill(sandbox, SIGTERM, &error) == 0);
    CHECK(poll(&poller, 1, 30000) == 1);
    CHECK(gpuc_sandbox_wait(sandbox, -1, &status, &error) == 1);
    CHECK_NO_ERROR(error);
    CHECK(status.code == -1 && status.signal == SIGTERM && !status.oom_killed);
    CHECK(gpuc_sandbox_kill(sandbox, SIGTERM, NULL) == 0);
    close_sandbox(sandbox);
    /* Freed while it runs. */
    gpuc_sandbox_free(spawn(shell(image, "sleep 1000")));
    gpuc_sandbox_free(NULL);
}

static void further(const gpuc_image_t *image) {
    gpuc_error_t *error;
    gpuc_exit_status_t status;
    gpuc_sandbox_t *sandbox = spawn(shell(image, "exec sleep 1000"));
    const char *const command[] = {"sh", "-c", "pwd; echo $A; exit 9", NULL};
    gpuc_exec_t *exec = gpuc_exec_new(command);
    gpuc_exec_env(exec, "A", "b");
    gpuc_exec_set_working_dir(exec, "/srv");
    gpuc_exec_set_stdio(exec, 0, GPUC_STDIO_NULL);
    gpuc_exec_set_stdio(exec, 1, GPUC_STDIO_PIPED);
    for (int again = 0; again < 2; again++) {
        gpuc_process_t *process = gpuc_exec_spawn(exec, sandbox, &error);
        CHECK_NO_ERROR(error);
        CHECK(gpuc_process_fd(process) >= 0);
        gpuc_output_t *output = gpuc_process_communicate(process, NULL, 0, 30000, &error);
        CHECK_NO_ERROR(error);
        size_t length;
        const void *bytes = gpuc_output_bytes(output, 1, &length);
        CHECK(length == 7 && memcmp(bytes, "/srv\nb\n", 7) == 0);
        CHECK(gpuc_output_status(output).code == 9);
        gpuc_output_free(output);
        gpuc_process_free(process);
    }
    gpuc_exec_free(exec);

    const char *const sleeper[] = {"sleep", "1000", NULL};
    exec = gpuc_exec_new(sleeper);
    gpuc_process_t *process = gpuc_exec_spawn(exec, sandbox, &error);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_process_take_stream(process, 1) == -1);
    CHECK(gpuc_process_wait(process, 0, &status, &error) == 0);
    CHECK(gpuc_process_kill(process, SIGKILL, &error) == 0);
    CHECK(gpuc_process_wait(process, 30000, &status, &error) == 1);
    CHECK(status.signal == SIGKILL);
    gpuc_process_free(process);
    gpuc_exec_free(exec);

    exec = gpuc_exec_new(NULL);
    CHECK(gpuc_exec_spawn(exec, sandbox, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "arguments is NULL");
    gpuc_exec_free(exec);
    close_sandbox(sandbox);
}

static void limits(const gpuc_image_t *image) {
    gpuc_error_t *error;
    if (geteuid() != 0) {
        fprintf(stderr, "SKIP limits: not root\n");
        return;
    }
    gpuc_limits_t *limits = gpuc_limits_new();
    gpuc_limits_set_memory_max(limits, 64 << 20);
    gpuc_limits_set_cpus(limits, 0.5);
    gpuc_limits_set_pids_max(limits, 20);
    gpuc_config_t *config = shell(image, "exec sleep 1000");
    gpuc_config_set_limits(config, limits);
    gpuc_sandbox_t *sandbox = spawn(config);
    char *json = gpuc_sandbox_stats_json(sandbox, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"limit\":67108864") != NULL);
    gpuc_string_free(json);
    gpuc_limits_set_pids_max(limits, 40);
    CHECK(gpuc_sandbox_update(sandbox, limits, &error) == 0);
    CHECK_NO_ERROR(error);
    gpuc_limits_free(limits);
    limits = gpuc_limits_new();
    gpuc_limits_raw(limits, "pids.max", "17");
    CHECK(gpuc_sandbox_update(sandbox, limits, &error) == 0);
    CHECK_NO_ERROR(error);
    json = gpuc_sandbox_stats_json(sandbox, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"limit\":17") != NULL);
    gpuc_string_free(json);
    /* No block device has these numbers. */
    gpuc_limits_io(limits, 4095, 1, 1 << 20, 0, 0, 100);
    CHECK(gpuc_sandbox_update(sandbox, limits, &error) == -1);
    expect(error, GPUC_ERROR_LIMIT_NOT_APPLIED, "4095:1");
    gpuc_limits_free(limits);
    CHECK(gpuc_sandbox_pause(sandbox, &error) == 0);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_sandbox_resume(sandbox, &error) == 0);
    CHECK_NO_ERROR(error);
    close_sandbox(sandbox);

    config = shell(image, "x=1234567890123456; while :; do x=$x$x; done");
    gpuc_config_set_memory_max(config, 16 << 20);
    sandbox = spawn(config);
    gpuc_exit_status_t status;
    CHECK(gpuc_sandbox_wait(sandbox, 60000, &status, &error) == 1);
    CHECK(status.signal == SIGKILL && status.oom_killed);
    close_sandbox(sandbox);
}

/* What a profile says happens, and what is no profile is said. */
static void filter(const gpuc_image_t *image, const char *directory) {
    gpuc_error_t *error;
    const char *const profile =
        "{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"syscalls\": ["
        "{\"names\": [\"mkdir\", \"mkdirat\"], \"action\": \"SCMP_ACT_ERRNO\", \"errnoRet\": 28}]}";
    char path[64];
    snprintf(path, sizeof path, "%s/profile.json", directory);
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fputs(profile, file) > 0 && fclose(file) == 0);
    for (int from_file = 0; from_file < 2; from_file++) {
        gpuc_config_t *config = shell(image, "busybox mkdir /tmp/new");
        if (from_file) {
            gpuc_config_set_seccomp_file(config, path);
        } else {
            gpuc_config_set_seccomp_json(config, profile);
        }
        gpuc_sandbox_t *sandbox = spawn(config);
        gpuc_output_t *output = gpuc_sandbox_communicate(sandbox, NULL, 0, 60000, &error);
        CHECK_NO_ERROR(error);
        CHECK(gpuc_output_status(output).code == 1);
        size_t length;
        const char *text = (const char *)gpuc_output_bytes(output, 2, &length);
        char words[256] = "";
        memcpy(words, text, length < sizeof words ? length : sizeof words - 1);
        CHECK(strstr(words, "No space left on device") != NULL);
        gpuc_output_free(output);
        close_sandbox(sandbox);
    }
    CHECK(remove(path) == 0);
    gpuc_config_t *config = shell(image, "true");
    gpuc_config_set_seccomp_file(config, path);
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    expect(error, GPUC_ERROR_NOT_FOUND, "profile.json");
    gpuc_config_free(config);
    config = shell(image, "true");
    gpuc_config_set_seccomp_json(config, "{\"archMap\": []}");
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    expect(error, GPUC_ERROR_UNSUPPORTED, "Docker");
    gpuc_config_free(config);
}

static void gpu_requests(const gpuc_image_t *image) {
    gpuc_error_t *error;
    const char *const good[] = {"compute", "video", NULL};
    const char *const none[] = {NULL};
    const char *const bad[] = {"compute", "warp", NULL};
    gpuc_gpu_request_t *request = gpuc_gpu_request_new("GPU-no-such");
    gpuc_gpu_request_set_capabilities(request, good);
    gpuc_gpu_request_set_capabilities(request, none);
    gpuc_gpu_request_set_min_free_memory(request, 1 << 20);
    gpuc_gpu_request_set_multi_process_service(request, true);
    gpuc_config_t *config = shell(image, "true");
    gpuc_config_set_gpu_request(config, request);
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    expect(error, GPUC_ERROR_GPU_UNAVAILABLE, "GPU");
    gpuc_gpu_request_set_capabilities(request, bad);
    gpuc_config_set_gpu_request(config, request);
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "\"warp\"");
    gpuc_config_free(config);
    gpuc_gpu_request_free(request);
    request = gpuc_gpu_request_new("count:many");
    config = shell(image, "true");
    gpuc_config_set_gpu_request(config, request);
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "count:many");
    gpuc_config_free(config);
    gpuc_gpu_request_free(request);
    gpuc_gpu_request_free(NULL);
}

static bool has_fast(gpuc_sandbox_t *sandbox) {
    gpuc_error_t *error;
    const char *const command[] = {"sh", "-c", "test \"$FAST\" = yes && test -c /dev/fast", NULL};
    gpuc_exec_t *exec = gpuc_exec_new(command);
    gpuc_process_t *process = gpuc_exec_spawn(exec, sandbox, &error);
    CHECK_NO_ERROR(error);
    gpuc_exit_status_t status;
    CHECK(gpuc_process_wait(process, 30000, &status, &error) == 1);
    gpuc_process_free(process);
    gpuc_exec_free(exec);
    return status.code == 0;
}

/* A device that the host surely has stands for a GPU. */
static void attached(const gpuc_image_t *image, const char *directory) {
    if (geteuid() != 0) return;
    gpuc_error_t *error;
    char path[64];
    snprintf(path, sizeof path, "%s/example.json", directory);
    FILE *file = fopen(path, "w");
    CHECK(file != NULL);
    CHECK(fputs("{\"cdiVersion\": \"0.7.0\", \"kind\": \"example.com/accelerator\", \"devices\": [{\"name\": \"0\","
                "\"containerEdits\": {\"deviceNodes\": [{\"path\": \"/dev/fast\", \"hostPath\": \"/dev/zero\"}],"
                "\"env\": [\"FAST=yes\"]}}]}", file) > 0 && fclose(file) == 0);
    gpuc_sandbox_t *sandbox = spawn(shell(image, "exec sleep 1000"));
    CHECK(!has_fast(sandbox) && gpuc_sandbox_granted(sandbox, 0, &error) == NULL);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_sandbox_gpu_lease(sandbox, &error) == NULL);
    CHECK_NO_ERROR(error);
    gpuc_gpu_request_t *request = gpuc_gpu_request_new("example.com/accelerator=0");
    const char *const directories[] = {directory, NULL};
    gpuc_gpu_request_set_cdi_directories(request, directories);
    gpuc_gpu_grant_t *grant = gpuc_sandbox_attach_gpus(sandbox, request, 0, NULL, &error);
    CHECK_NO_ERROR(error);
    CHECK(has_fast(sandbox));
    char *json = gpuc_gpu_grant_json(grant, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"gpus\":[\"example.com/accelerator=0\"]") != NULL);
    gpuc_string_free(json);
    CHECK(gpuc_sandbox_attach_gpus(sandbox, request, 0, NULL, &error) == NULL);
    expect(error, GPUC_ERROR_ALREADY_EXISTS, "accelerator=0");
    gpuc_gpu_grant_t *same = gpuc_sandbox_granted(sandbox, 0, &error);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_sandbox_detach_gpus(sandbox, same, false, &error) == 0);
    CHECK_NO_ERROR(error);
    CHECK(!has_fast(sandbox));
    CHECK(gpuc_sandbox_detach_gpus(sandbox, grant, true, &error) == -1);
    expect(error, GPUC_ERROR_NOT_FOUND, "no such grant");
    gpuc_gpu_grant_free(grant);
    gpuc_gpu_grant_free(same);
    gpuc_gpu_request_free(request);
    CHECK(gpuc_sandbox_kill(sandbox, SIGKILL, &error) == 0);
    close_sandbox(sandbox);
    CHECK(remove(path) == 0);
}

static void errors(const gpuc_image_store_t *store, const gpuc_image_t *image) {
    gpuc_error_t *error;
    const char *const missing[] = {"no-such-program", NULL};
    gpuc_config_t *config = shell(image, "true");
    gpuc_config_set_command(config, missing);
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    expect(error, GPUC_ERROR_COMMAND_NOT_FOUND, "no-such-program");
    gpuc_config_free(config);

    config = shell(image, "true");
    gpuc_config_set_user(config, "nobody-here");
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    expect(error, GPUC_ERROR_USER_NOT_FOUND, "nobody-here");
    gpuc_config_free(config);

    config = shell(image, "true");
    gpuc_config_set_working_dir(config, "/nowhere");
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    expect(error, GPUC_ERROR_WORKING_DIRECTORY_NOT_FOUND, "/nowhere");
    gpuc_config_free(config);

    config = gpuc_config_new("no/such UPPER", &error);
    CHECK_NO_ERROR(error);
    gpuc_config_set_store(config, store);
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_REFERENCE, "UPPER");
    gpuc_config_free(config);

    config = shell(image, "true");
    gpuc_config_bind(config, "/etc", "/data", GPUC_MOUNT_READ_ONLY | GPUC_MOUNT_NO_EXECUTE);
    gpuc_config_tmpfs(config, "/scratch", 1 << 20, 0);
    gpuc_config_add_capability(config, "NET_ADMIN");
    gpuc_config_drop_capability(config, "ALL");
    gpuc_config_resource_limit(config, "nofile", 100, 100);
    char *plan = gpuc_config_explain(config, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(plan, "/scratch") != NULL && strstr(plan, "/data") != NULL);
    gpuc_string_free(plan);
    gpuc_string_free(NULL);
    gpuc_config_add_capability(config, "FLY");
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "FLY");
    gpuc_config_free(config);

    config = shell(image, "true");
    gpuc_config_set_stdio(config, 7, GPUC_STDIO_NULL);
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "stream 7");
    gpuc_config_free(config);

    CHECK(gpuc_sandbox_spawn(NULL, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "config is NULL");
    CHECK(gpuc_sandbox_wait(NULL, 0, NULL, &error) == -1);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "sandbox is NULL");
}

int main(void) {
    char directory[] = "/tmp/gpuc-c-sandbox-XXXXXX";
    CHECK(mkdtemp(directory) != NULL);
    int before = open_descriptors();
    gpuc_error_t *error;
    gpuc_image_store_t *store = gpuc_image_store_open(directory, &error);
    CHECK_NO_ERROR(error);
    gpuc_image_t *image = build(store);

    gpuc_config_t *config = gpuc_config_new("test:1", &error);
    CHECK_NO_ERROR(error);
    gpuc_config_set_store(config, store);
    gpuc_config_set_stdio(config, 1, GPUC_STDIO_PIPED);
    gpuc_sandbox_t *sandbox = spawn(config);
    char text[64];
    read_all(gpuc_sandbox_take_stream(sandbox, 1), text, sizeof text);
    CHECK(strcmp(text, "from the image\n") == 0);
    close_sandbox(sandbox);

    streams(image);
    waiting(image);
    further(image);
    limits(image);
    filter(image, directory);
    gpu_requests(image);
    attached(image, directory);
    CHECK(gpuc_collect_abandoned(store, &error) == 0);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_collect_abandoned(NULL, &error) == -1);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "store is NULL");
    errors(store, image);
    gpuc_image_free(image);
    gpuc_image_store_free(store);
    CHECK(open_descriptors() == before);
    CHECK(nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0);
    return 0;
}
