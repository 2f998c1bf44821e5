/* Sandboxes: start, streams, waiting, signals, ports, further processes, pause, limits, errors. */
#include "check.h"

#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status;
    (void)kind;
    (void)place;
    return remove(path);
}

static void expect(gpuc_error_t *error, gpuc_error_kind_t kind, const char *words) {
    CHECK(error != NULL);
    if (gpuc_error_kind(error) != kind || strstr(gpuc_error_message(error), words) == NULL) {
        fprintf(stderr, "not %d with %s but %d: %s\n", (int)kind, words, (int)gpuc_error_kind(error),
                gpuc_error_message(error));
        exit(1);
    }
    gpuc_error_free(error);
}

static gpuc_image_t *build(const gpuc_image_store_t *store) {
    gpuc_error_t *error;
    static const char *const names[] = {"sh", "cat", "sleep", "id", "nc", "printenv"};
    const char *const command[] = {"sh", "-c", "echo from the image", NULL};
    gpuc_image_builder_t *builder = gpuc_image_builder_new(store, &error);
    CHECK_NO_ERROR(error);
    gpuc_image_builder_copy_following_links(builder, "/bin/busybox", "/bin/busybox");
    for (size_t at = 0; at < sizeof names / sizeof names[0]; at++) {
        char path[32];
        snprintf(path, sizeof path, "/bin/%s", names[at]);
        gpuc_image_builder_symlink(builder, "busybox", path);
    }
    gpuc_image_builder_directory(builder, "/tmp", 01777);
    gpuc_image_builder_directory(builder, "/srv", 0755);
    gpuc_image_builder_set_command(builder, command);
    gpuc_image_t *image = gpuc_image_builder_commit(builder, "test:1", &error);
    CHECK_NO_ERROR(error);
    gpuc_image_builder_free(builder);
    return image;
}

static gpuc_config_t *shell(const gpuc_image_t *image, const char *script) {
    gpuc_error_t *error;
    gpuc_config_t *config = gpuc_config_new_from_image(image, &error);
    CHECK_NO_ERROR(error);
    const char *const command[] = {"sh", "-c", script, NULL};
    gpuc_config_set_command(config, command);
    gpuc_config_set_stdio(config, 0, GPUC_STDIO_NULL);
    gpuc_config_set_stdio(config, 1, GPUC_STDIO_PIPED);
    gpuc_config_set_stdio(config, 2, GPUC_STDIO_PIPED);
    return config;
}

static gpuc_sandbox_t *spawn(gpuc_config_t *config) {
    gpuc_error_t *error;
    gpuc_sandbox_t *sandbox = gpuc_sandbox_spawn(config, &error);
    CHECK_NO_ERROR(error);
    gpuc_config_free(config);
    return sandbox;
}

static void close_sandbox(gpuc_sandbox_t *sandbox) {
    gpuc_error_t *error;
    CHECK(gpuc_sandbox_close(sandbox, &error) == 0);
    CHECK_NO_ERROR(error);
}

/* Reads to the end. */
static void read_all(int fd, char *text, size_t size) {
    size_t filled = 0;
    for (;;) {
        ssize_t count = read(fd, text + filled, size - 1 - filled);
        CHECK(count >= 0);
        if (count == 0) break;
        filled += (size_t)count;
    }
    text[filled] = '\0';
    close(fd);
}

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

/* Whether a sandbox prints this. */
static void prints(gpuc_config_t *config, const char *expected) {
    gpuc_error_t *error;
    gpuc_sandbox_t *sandbox = spawn(config);
    gpuc_output_t *output = gpuc_sandbox_communicate(sandbox, NULL, 0, 20000, &error);
    CHECK_NO_ERROR(error);
    size_t length;
    const void *bytes = gpuc_output_bytes(output, 1, &length);
    CHECK(length == strlen(expected) && memcmp(bytes, expected, length) == 0);
    gpuc_output_free(output);
    close_sandbox(sandbox);
}

/* Two sandboxes and the program itself in one private network, and one that joins another's. */
static void private_network(const gpuc_image_t *image) {
    if (geteuid() != 0) return;
    gpuc_error_t *error;
    gpuc_private_network_t *wanted = gpuc_private_network_new("c-consumer", &error);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_private_network_set_ipv4(wanted, "10.9.0.0", &error) == -1);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "10.9.0.0");
    CHECK(gpuc_private_network_set_ipv4(wanted, "10.213.7.0/24", &error) == 0);
    CHECK_NO_ERROR(error);
    gpuc_private_network_set_ipv6(wanted, false);
    gpuc_private_network_set_outbound(wanted, false);
    gpuc_private_network_set_host_access(wanted, false);
    gpuc_network_member_t *member = gpuc_private_network_join(wanted, "program", &error);
    CHECK_NO_ERROR(error);
    CHECK(strcmp(gpuc_network_member_address(member, 0), "10.213.7.2") == 0);
    CHECK(gpuc_network_member_address(member, 1) == NULL);
    CHECK(gpuc_network_member_gateway(member, 0) == NULL);
    CHECK(gpuc_network_member_fd(member) > 2);
    CHECK(access(gpuc_network_member_hosts_file(member), R_OK) == 0);
    CHECK(gpuc_network_member_dial(member, 80, 1000, &error) == -1);
    expect(error, GPUC_ERROR_SYSTEM_CALL, "ECONNREFUSED");
    CHECK(gpuc_private_network_join(wanted, "program", &error) == NULL);
    expect(error, GPUC_ERROR_ALREADY_EXISTS, "program");

    gpuc_config_t *config = shell(image, "echo served | nc -l -p 80; exec sleep 1000");
    gpuc_config_set_name(config, "server");
    gpuc_config_set_private_network(config, wanted);
    gpuc_sandbox_t *server = spawn(config);
    char *json = gpuc_sandbox_json(server, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"10.213.7.3\"") != NULL);
    gpuc_string_free(json);
    config = shell(image, "until nc server 80 </dev/null; do sleep 0.1; done");
    gpuc_config_set_private_network(config, wanted);
    prints(config, "served\n");
    config = shell(image, "cat /sys/class/net/eth0/address");
    gpuc_config_join_network(config, server);
    prints(config, "02:67:0a:d5:07:03\n");
    config = shell(image, "cat /sys/class/net/eth0/address");
    gpuc_config_set_network_namespace(config, gpuc_network_member_fd(member));
    prints(config, "02:67:0a:d5:07:02\n");
    gpuc_port_mapping_t *mapping = gpuc_port_mapping_new(GPUC_PROTOCOL_TCP, 80, 0, 1);
    gpuc_port_mapping_set_all_interfaces(mapping);
    gpuc_port_mapping_set_mode(mapping, GPUC_PORT_MODE_NAT);
    CHECK(gpuc_sandbox_publish_mapping(server, mapping, &error) == 0);
    expect(error, GPUC_ERROR_UNSUPPORTED, "no route to the container's address 10.213.7.3");
    gpuc_port_mapping_free(mapping);
    close_sandbox(server);

    config = shell(image, "true");
    gpuc_config_set_outbound_network(config);
    CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
    expect(error, GPUC_ERROR_UNSUPPORTED, "pasta");
    gpuc_config_free(config);
    gpuc_network_member_free(member);
    gpuc_private_network_free(wanted);
}

static void network(const gpuc_image_t *image) {
    gpuc_error_t *error;
    gpuc_config_t *config = shell(image, "echo hi | nc -l -p 8080 >/dev/null; exec sleep 1000");
    gpuc_config_publish(config, 8080, 0);
    gpuc_sandbox_t *sandbox = spawn(config);
    CHECK(gpuc_sandbox_host_port(sandbox, 8080) > 0);
    CHECK(gpuc_sandbox_host_port(sandbox, 8081) == 0);
    char *json = gpuc_sandbox_json(sandbox, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"container_port\":8080") != NULL && strstr(json, "\"timeline\":[{") != NULL);
    gpuc_string_free(json);
    int connection = -1;
    /* The server may not listen yet, and takes one client only. */
    for (int attempt = 0; connection < 0 && attempt < 1000; attempt++) {
        connection = gpuc_sandbox_dial(sandbox, 8080, 1000, NULL);
        if (connection < 0) usleep(10000);
    }
    CHECK(connection >= 0);
    char text[16];
    ssize_t count = read(connection, text, sizeof text);
    CHECK(count == 3 && memcmp(text, "hi\n", 3) == 0);
    close(connection);
    uint16_t port = gpuc_sandbox_publish(sandbox, NULL, 8080, 0, &error);
    CHECK_NO_ERROR(error);
    CHECK(port > 0 && port != gpuc_sandbox_host_port(sandbox, 8080));
    CHECK(gpuc_sandbox_publish(sandbox, "127.0.0.1", 8080, port, &error) == 0);
    expect(error, GPUC_ERROR_PORT_IN_USE, "is taken");
    CHECK(gpuc_sandbox_publish(sandbox, "nowhere", 8080, 0, NULL) == 0);
    CHECK(gpuc_sandbox_unpublish(sandbox, NULL, port, &error));
    CHECK_NO_ERROR(error);
    CHECK(!gpuc_sandbox_unpublish(sandbox, NULL, port, NULL));
    close_sandbox(sandbox);
}

static void readiness(const gpuc_image_t *image) {
    gpuc_error_t *error;
    gpuc_config_t *config = shell(image, "sleep 0.2; exec nc -ll -p 8080 -e cat");
    gpuc_sandbox_t *sandbox = spawn(config);
    CHECK(gpuc_sandbox_wait_ready(sandbox, 8080, 60000, &error) == 0);
    CHECK_NO_ERROR(error);
    int connection = gpuc_sandbox_dial(sandbox, 8080, 1000, NULL);
    CHECK(connection >= 0);
    close(connection);
    CHECK(gpuc_sandbox_wait_ready(sandbox, 81, 50, &error) == -1);
    expect(error, GPUC_ERROR_TIMED_OUT, "port 81");
    CHECK(gpuc_sandbox_wait_ready(sandbox, 0, 50, &error) == -1);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "port 0");
    CHECK(gpuc_sandbox_wait_ready(NULL, 1, 0, &error) == -1);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "sandbox is NULL");
    close_sandbox(sandbox);

    config = shell(image, "sleep 0.2; exit 3");
    sandbox = spawn(config);
    CHECK(gpuc_sandbox_wait_ready(sandbox, 8080, -1, &error) == -1);
    expect(error, GPUC_ERROR_CLOSED, "exit code 3");
    close_sandbox(sandbox);
}

static void port_mappings(const gpuc_image_t *image) {
    gpuc_error_t *error;
    gpuc_port_mapping_t *mapping = gpuc_port_mapping_new(GPUC_PROTOCOL_UDP, 5000, 0, 10);
    gpuc_port_mapping_set_idle_timeout(mapping, 1000);
    gpuc_port_mapping_set_mode(mapping, GPUC_PORT_MODE_RELAY);
    gpuc_port_mapping_set_address(mapping, "127.0.0.1");
    gpuc_port_mapping_set_name(mapping, "datagrams");
    gpuc_port_mapping_set_unlocked(mapping, false);
    gpuc_config_t *config = shell(image, "exec sleep 1000");
    gpuc_config_set_injectable_ports(config, true);
    gpuc_config_publish_mapping(config, mapping);
    gpuc_config_expose_host(config, GPUC_PROTOCOL_TCP, 5432, "127.0.0.1:9");
    gpuc_sandbox_t *sandbox = spawn(config);
    uint16_t port = gpuc_sandbox_host_port(sandbox, 5000);
    CHECK(port > 0);
    char *json = gpuc_sandbox_json(sandbox, &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(json, "\"protocol\":\"udp\"") != NULL && strstr(json, "\"count\":10") != NULL);
    CHECK(strstr(json, "\"mode\":\"relay\"") != NULL && strstr(json, "\"port\":5432") != NULL);
    gpuc_string_free(json);

    CHECK(gpuc_sandbox_publish_mapping(sandbox, mapping, &error) != 0);
    CHECK_NO_ERROR(error);
    gpuc_port_mapping_free(mapping);
    mapping = gpuc_port_mapping_new(GPUC_PROTOCOL_UDP, 1, port, 1);
    CHECK(gpuc_sandbox_publish_mapping(sandbox, mapping, &error) == 0);
    expect(error, GPUC_ERROR_PORT_IN_USE, "is taken");
    gpuc_port_mapping_set_source(mapping, GPUC_SOURCE_ADDRESS_PROXY_V2);
    CHECK(gpuc_sandbox_publish_mapping(sandbox, mapping, &error) == 0);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "for TCP");
    gpuc_port_mapping_set_all_interfaces(mapping);
    gpuc_port_mapping_set_mode(mapping, 77);
    CHECK(gpuc_sandbox_publish_mapping(sandbox, mapping, &error) == 0);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "77 is no mode");
    gpuc_port_mapping_free(mapping);
    CHECK(gpuc_sandbox_publish_mapping(sandbox, NULL, NULL) == 0);

    int listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(gpuc_sandbox_publish_socket(sandbox, listener, 80, &error) == 0);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "no TCP socket that listens");
    CHECK(listen(listener, 8) == 0);
    uint16_t led = gpuc_sandbox_publish_socket(sandbox, listener, 80, &error);
    CHECK_NO_ERROR(error);
    CHECK(led > 0 && gpuc_sandbox_host_port(sandbox, 80) == led);
    CHECK(close(listener) == 0);
    CHECK(gpuc_sandbox_publish_socket(sandbox, -1, 80, NULL) == 0);
    CHECK(gpuc_activated_socket(NULL, &error) == -1);
    expect(error, GPUC_ERROR_NOT_FOUND, "started with no such socket");

    uint16_t inside = gpuc_sandbox_expose_host(sandbox, GPUC_PROTOCOL_UDP, 0, "127.0.0.1:53", &error);
    CHECK_NO_ERROR(error);
    CHECK(inside > 0);
    CHECK(gpuc_sandbox_expose_host(sandbox, GPUC_PROTOCOL_TCP, 5432, "127.0.0.1:9", &error) == 0);
    expect(error, GPUC_ERROR_PORT_IN_USE, "inside");
    CHECK(gpuc_sandbox_expose_host(sandbox, GPUC_PROTOCOL_TCP, 80, "nowhere", NULL) == 0);
    CHECK(gpuc_sandbox_withdraw_host(sandbox, GPUC_PROTOCOL_UDP, inside, &error));
    CHECK_NO_ERROR(error);
    CHECK(!gpuc_sandbox_withdraw_host(sandbox, GPUC_PROTOCOL_UDP, inside, NULL));
    close_sandbox(sandbox);
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
    network(image);
    readiness(image);
    port_mappings(image);
    private_network(image);
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
