/* Values that cannot be used: each is an error of its kind that names the argument, and nothing is started. */
#include "root.h"

static int rows, wrong;

static void expect(const char *what, gpuc_error_t *error, gpuc_error_kind_t kind, const char *words) {
    rows++;
    if (error == NULL || gpuc_error_kind(error) != kind || strstr(gpuc_error_message(error), words) == NULL) {
        fprintf(stderr, "%s: not %d with %s but %d: %s\n", what, (int)kind, words, (int)gpuc_error_kind(error),
                error == NULL ? "no error" : gpuc_error_message(error));
        wrong++;
    }
    gpuc_error_free(error);
}

static gpuc_config_t *config_of_true(void) {
    gpuc_error_t *error;
    gpuc_config_t *config = gpuc_config_new_from_directory(root, &error);
    CHECK_NO_ERROR(error);
    const char *const command[] = {"sh", "-c", "exit 0", NULL};
    gpuc_config_set_command(config, command);
    return config;
}

/* A configuration with one thing that is wrong. */
#define CONFIG(kind, words, call)                                     \
    {                                                                 \
        gpuc_config_t *config = config_of_true();                     \
        gpuc_error_t *error;                                          \
        call;                                                         \
        gpuc_sandbox_free(gpuc_sandbox_spawn(config, &error));        \
        expect(#call, error, GPUC_ERROR_##kind, words);               \
        gpuc_config_free(config);                                     \
    }

/* A start with a service of the host that cannot be, after one more call. */
#define SERVICE(words, protocol, host, call)                                      \
    {                                                                             \
        gpuc_host_service_t *service = gpuc_host_service_new(protocol, 80, host); \
        call;                                                                     \
        CONFIG(INVALID_ARGUMENT, words, gpuc_config_expose_host(config, service)) \
        gpuc_host_service_free(service);                                          \
    }

static void configurations(void) {
    static const char latin[] = "caf\xe9";
    static const char *const nothing[] = {NULL};
    static const char *const bad_words[] = {"echo", latin, NULL};
    CONFIG(INVALID_ARGUMENT, "sandbox name \"a/b\"", gpuc_config_set_name(config, "a/b"))
    CONFIG(INVALID_ARGUMENT, "name is NULL", gpuc_config_set_name(config, NULL))
    CONFIG(INVALID_ARGUMENT, "name is not UTF-8", gpuc_config_set_name(config, latin))
    CONFIG(INVALID_ARGUMENT, "arguments is NULL", gpuc_config_set_command(config, NULL))
    CONFIG(INVALID_ARGUMENT, "arguments is not UTF-8", gpuc_config_set_command(config, bad_words))
    CONFIG(COMMAND_NOT_FOUND, "no command was given", gpuc_config_set_command(config, nothing))
    CONFIG(INVALID_ARGUMENT, "environment variable \"A=B\"", gpuc_config_env(config, "A=B", "c"))
    CONFIG(INVALID_ARGUMENT, "environment variable \"\"", gpuc_config_env(config, "", "c"))
    CONFIG(INVALID_ARGUMENT, "value is NULL", gpuc_config_env(config, "A", NULL))
    CONFIG(INVALID_ARGUMENT, "working directory \"srv\"", gpuc_config_set_working_dir(config, "srv"))
    CONFIG(WORKING_DIRECTORY_NOT_FOUND, "/nowhere", gpuc_config_set_working_dir(config, "/nowhere"))
    CONFIG(USER_NOT_FOUND, "nobody-here", gpuc_config_set_user(config, "nobody-here"))
    CONFIG(INVALID_ARGUMENT, "host name \"a b\"", gpuc_config_set_hostname(config, "a b"))
    CONFIG(INVALID_ARGUMENT, "memory", gpuc_config_set_memory_max(config, 0))
    CONFIG(INVALID_ARGUMENT, "cpus", gpuc_config_set_cpus(config, -1))
    CONFIG(INVALID_ARGUMENT, "pids", gpuc_config_set_pids_max(config, 0))
    CONFIG(INVALID_ARGUMENT, "limits is NULL", gpuc_config_set_limits(config, NULL))
    CONFIG(INVALID_ARGUMENT, "out-of-memory score", gpuc_config_set_oom_score(config, 1001))
    CONFIG(INVALID_ARGUMENT, "kernel.hostname", gpuc_config_sysctl(config, "kernel.hostname", "x"))
    CONFIG(INVALID_ARGUMENT, "\"files\"", gpuc_config_resource_limit(config, "files", 1, 1))
    CONFIG(INVALID_ARGUMENT, "soft limit 2 of nofile", gpuc_config_resource_limit(config, "nofile", 2, 1))
    CONFIG(INVALID_ARGUMENT, "\"CAP_FLY\"", gpuc_config_add_capability(config, "CAP_FLY"))
    CONFIG(INVALID_ARGUMENT, "\"FLY\"", gpuc_config_drop_capability(config, "FLY"))
    CONFIG(INVALID_ARGUMENT, "seccomp", gpuc_config_set_seccomp_json(config, "{"))
    CONFIG(NOT_FOUND, "/nowhere.json", gpuc_config_set_seccomp_file(config, "/nowhere.json"))
    CONFIG(INVALID_ARGUMENT, "address \"here\"", gpuc_config_publish_at(config, "here", 80, 0))
    CONFIG(INVALID_ARGUMENT, "port", gpuc_config_publish(config, 0, 0))
    CONFIG(INVALID_ARGUMENT, "mapping is NULL", gpuc_config_publish_mapping(config, NULL))
    CONFIG(INVALID_ARGUMENT, "service is NULL", gpuc_config_expose_host(config, NULL))
    SERVICE("99 is no protocol", 99, "127.0.0.1:80", )
    SERVICE("\"localhost\"", GPUC_PROTOCOL_TCP, "localhost", gpuc_host_service_set_address(service, "127.0.0.1"))
    SERVICE("host is NULL", GPUC_PROTOCOL_TCP, NULL, gpuc_host_service_set_idle_timeout(service, 1))
    SERVICE("address \"here\"", GPUC_PROTOCOL_TCP, "127.0.0.1:80", gpuc_host_service_set_address(service, "here"))
    SERVICE("idle timeout of 0", GPUC_PROTOCOL_UDP, "127.0.0.1:80", gpuc_host_service_set_idle_timeout(service, 0))
    CONFIG(INVALID_ARGUMENT, "stream 3", gpuc_config_set_stdio(config, 3, GPUC_STDIO_NULL))
    CONFIG(INVALID_ARGUMENT, "9 is no gpuc_stdio_t", gpuc_config_set_stdio(config, 0, 9))
    CONFIG(INVALID_ARGUMENT, "fd -1", gpuc_config_set_stdio_file(config, 0, -1))
    CONFIG(INVALID_ARGUMENT, "fd 12345 is not open", gpuc_config_set_stdio_file(config, 0, 12345))
    CONFIG(INVALID_ARGUMENT, "fd 12345 is not open", gpuc_config_pass_fd(config, 5, 12345))
    CONFIG(INVALID_ARGUMENT, "passed descriptor 2", gpuc_config_pass_fd(config, 2, 0))
    CONFIG(INVALID_ARGUMENT, "passed descriptor 512", gpuc_config_pass_fd(config, 512, 0))
    CONFIG(INVALID_ARGUMENT, "descriptor 5 is passed twice",
           (gpuc_config_pass_fd(config, 5, 0), gpuc_config_pass_fd(config, 5, 1)))
    CONFIG(INVALID_ARGUMENT, "\"srv\"", gpuc_config_bind(config, "/tmp", "srv", 0))
    CONFIG(NOT_FOUND, "/nowhere", gpuc_config_bind(config, "/nowhere", "/srv", 0))
    CONFIG(INVALID_ARGUMENT, "flags", gpuc_config_bind(config, "/tmp", "/srv", 1U << 31))
    CONFIG(INVALID_ARGUMENT, "\"a/b\"", gpuc_config_volume(config, "a/b", "/srv", 0))
    CONFIG(INVALID_ARGUMENT, "gpus is NULL", gpuc_config_set_gpus(config, NULL, 0))
    CONFIG(INVALID_ARGUMENT, "count:x", gpuc_config_set_gpus(config, "count:x", 0))
    CONFIG(INVALID_ARGUMENT, "lease is NULL", gpuc_config_set_gpu_lease(config, NULL))
    CONFIG(INVALID_ARGUMENT, "fd -1", gpuc_config_set_network_namespace(config, -1))
    CONFIG(INVALID_ARGUMENT, "0 ids from 5", gpuc_config_set_user_namespace_shifted(config, 5, 0))
}

/* Calls with values of their own. */
#define CALL(kind, words, call)                                      \
    {                                                                \
        error = NULL;                                                \
        (void)(call);                                                \
        expect(#call, error, GPUC_ERROR_##kind, words);              \
    }

static void calls(void) {
    gpuc_error_t *error;
    gpuc_config_t *config = config_of_true();
    const char *const command[] = {"sh", "-c", "exec sleep 1000", NULL};
    gpuc_config_set_command(config, command);
    gpuc_sandbox_t *sandbox = gpuc_sandbox_spawn(config, &error);
    CHECK_NO_ERROR(error);
    CALL(INVALID_ARGUMENT, "config is NULL", gpuc_sandbox_spawn(NULL, &error))
    CALL(INVALID_ARGUMENT, "reference is NULL", gpuc_config_new(NULL, &error))
    CALL(INVALID_ARGUMENT, "path is NULL", gpuc_config_new_from_directory(NULL, &error))
    CALL(INVALID_ARGUMENT, "sandbox is NULL", gpuc_sandbox_kill(NULL, 9, &error))
    CALL(INVALID_ARGUMENT, "65 is no signal number", gpuc_sandbox_kill(sandbox, 65, &error))
    CALL(INVALID_ARGUMENT, "0 is no signal number", gpuc_sandbox_kill(sandbox, 0, &error))
    CALL(INVALID_ARGUMENT, "input is NULL", gpuc_sandbox_communicate(sandbox, NULL, 5, 0, &error))
    CALL(INVALID_ARGUMENT, "address \"x\"", gpuc_sandbox_publish(sandbox, "x", 80, 0, &error))
    CALL(NOT_FOUND, "1", gpuc_sandbox_unpublish(sandbox, NULL, 1, &error))
    CALL(INVALID_ARGUMENT, "limits is NULL", gpuc_sandbox_update(sandbox, NULL, &error))
    CALL(INVALID_ARGUMENT, "exec is NULL", gpuc_exec_spawn(NULL, sandbox, &error))
    CALL(INVALID_ARGUMENT, "request is NULL", gpuc_sandbox_attach_gpus(sandbox, NULL, 0, NULL, &error))
    gpuc_exec_t *exec = gpuc_exec_new(NULL);
    CALL(INVALID_ARGUMENT, "arguments is NULL", gpuc_exec_spawn(exec, sandbox, &error))
    gpuc_exec_free(exec);
    const char *const missing[] = {"no-such-program", NULL};
    exec = gpuc_exec_new(missing);
    CALL(COMMAND_NOT_FOUND, "no-such-program", gpuc_exec_spawn(exec, sandbox, &error))
    gpuc_exec_free(exec);
    gpuc_sandbox_free(sandbox);
    gpuc_config_free(config);
}

int main(void) {
    make_root();
    const int open = open_descriptors();
    configurations();
    calls();
    CHECK(open_descriptors() == open);
    remove_root();
    CHECK(wrong == 0 && rows > 0);
    return 0;
}
