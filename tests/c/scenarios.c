/*
 * The scenarios of tests/scenarios/scenarios.json, as C runs them. Rust and Python run the same
 * (gpucontainer/tests/scenarios.rs, tests/python/test_scenarios.py), and tests/scenarios/compare sees that all say the same.
 *
 * GPUC_SCENARIOS is the directory of the table, GPUC_SCENARIO_HOSTS one with a driver root for each machine that it names.
 */
#include "check.h"

#include <arpa/inet.h>
#include <cjson/cJSON.h>
#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* How long anything may take on a loaded machine, in milliseconds. */
#define LIMIT 30000
#define PLACES 8

/* What came of a step. */
typedef struct {
    gpuc_error_t *error;
    bool ended;
    gpuc_exit_status_t status;
    char *out, *err, *text;
    long count;
} outcome_t;

/* What the steps of a row share. Places are found by the name that a step gives them. */
typedef struct {
    const char *row;
    char directory[64], port[16], driver[512];
    gpuc_image_store_t *store;
    gpuc_image_t *image;
    gpuc_gpu_allocator_t *allocator;
    char names[PLACES][16];
    gpuc_sandbox_t *sandboxes[PLACES];
    gpuc_gpu_lease_t *leases[PLACES];
    gpuc_gpu_ticket_t *tickets[PLACES];
    gpuc_network_member_t *members[PLACES];
    gpuc_mig_lease_t *mig[PLACES];
    gpuc_reservation_t *reservations[PLACES];
    gpuc_published_t *published[PLACES];
    gpuc_gpu_grant_t *grants[PLACES];
    size_t granted;
} scene_t;

static const cJSON *kinds;
static const char *data, *busybox = "/bin/busybox";
static FILE *record;

static void unknown(const char *what, const char *name) {
    fprintf(stderr, "no %s is called \"%s\"\n", what, name);
    exit(1);
}

/* The table's values. */

static const cJSON *get(const cJSON *value, const char *key) { return cJSON_GetObjectItemCaseSensitive(value, key); }

static const char *text(const cJSON *value) {
    CHECK(cJSON_IsString(value));
    return value->valuestring;
}

static long long number(const cJSON *value) {
    CHECK(cJSON_IsNumber(value));
    return (long long)value->valuedouble;
}

static const cJSON *at(const cJSON *list, int index) { return cJSON_GetArrayItem(list, index); }

/* Words, and NULL after the last; they live as long as the value. */
static const char **words(const cJSON *list) {
    const char **all = (const char **)calloc((size_t)cJSON_GetArraySize(list) + 1, sizeof *all);
    int index = 0;
    const cJSON *one;
    cJSON_ArrayForEach(one, list) all[index++] = text(one);
    return all;
}

static char *format(const char *words, ...) __attribute__((format(printf, 1, 2)));
static char *format(const char *words, ...) {
    char *made = NULL;
    va_list arguments;
    va_start(arguments, words);
    CHECK(vasprintf(&made, words, arguments) >= 0);
    va_end(arguments);
    return made;
}

/* `said` with `what` replaced; frees it. */
static char *replaced(char *said, const char *what, const char *by) {
    size_t wide = strlen(what), count = 0;
    for (const char *place = said; (place = strstr(place, what)) != NULL; place += wide) count++;
    char *made = (char *)malloc(strlen(said) + count * strlen(by) + 1), *end = made;
    const char *from = said;
    for (const char *place; (place = strstr(from, what)) != NULL; from = place + wide) {
        memcpy(end, from, (size_t)(place - from));
        end += place - from;
        end = stpcpy(end, by);
    }
    strcpy(end, from);
    free(said);
    return made;
}

static cJSON *whole(const scene_t *scene, const cJSON *value) {
    char *said = cJSON_PrintUnformatted(value);
    said = replaced(said, "\"$PORT\"", scene->port);
    said = replaced(said, "$PORT", scene->port);
    said = replaced(said, "$DIR", scene->directory);
    said = replaced(said, "$DATA", data);
    said = replaced(said, "$BUSYBOX", busybox);
    cJSON *made = cJSON_Parse(said);
    CHECK(made != NULL);
    free(said);
    return made;
}

static size_t place(scene_t *scene, const char *name) {
    for (size_t index = 0; index < PLACES; index++) {
        if (scene->names[index][0] == '\0') snprintf(scene->names[index], sizeof scene->names[index], "%s", name);
        if (strcmp(scene->names[index], name) == 0) return index;
    }
    fprintf(stderr, "too many names\n");
    exit(1);
}

static size_t place_of(scene_t *scene, const cJSON *step) {
    const cJSON *name = get(step, "as");
    return place(scene, name == NULL ? "one" : text(name));
}

/* A service of the host that says one line to everybody. */

static int listener = -1;
static volatile bool over;
static pthread_t greeter;

static void *serve(void *nothing) {
    static const char line[] = "hello from the host\n";
    for (;;) {
        int client = accept(listener, NULL, NULL);
        CHECK(client >= 0);
        bool end = over;
        if (!end) (void)!send(client, line, sizeof line - 1, MSG_NOSIGNAL);
        close(client);
        if (end) return nothing;
    }
}

static int connected(const char *address, int port) {
    struct sockaddr_in to;
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_port = htons((uint16_t)port);
    CHECK(inet_pton(AF_INET, address, &to.sin_addr) == 1);
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(client >= 0);
    if (connect(client, (struct sockaddr *)&to, sizeof to) == 0) return client;
    close(client);
    return -1;
}

static void greet(scene_t *scene) {
    struct sockaddr_in here;
    socklen_t size = sizeof here;
    memset(&here, 0, sizeof here);
    here.sin_family = AF_INET;
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(listener, (struct sockaddr *)&here, size) == 0 && listen(listener, 64) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&here, &size) == 0);
    snprintf(scene->port, sizeof scene->port, "%d", ntohs(here.sin_port));
    over = false;
    CHECK(pthread_create(&greeter, NULL, serve, NULL) == 0);
}

static void ungreet(const scene_t *scene) {
    if (listener < 0) return;
    over = true;
    close(connected("127.0.0.1", atoi(scene->port)));
    CHECK(pthread_join(greeter, NULL) == 0);
    close(listener);
    listener = -1;
}

/* Sends a line, if there is one, and reads to the end. */
static char *talk(int stream, const cJSON *send_first) {
    char *answer = (char *)calloc(1, 65536);
    size_t filled = 0;
    if (send_first != NULL) (void)!send(stream, text(send_first), strlen(text(send_first)), MSG_NOSIGNAL);
    shutdown(stream, SHUT_WR);
    /* One whom nobody inside takes yet is reset. */
    for (ssize_t count; (count = read(stream, answer + filled, 65535 - filled)) > 0;) filled += (size_t)count;
    close(stream);
    return answer;
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000LL + time.tv_nsec / 1000000;
}

/* The same, until somebody inside listens; `host` is an address and a port. */
static char *served(const char *host, const cJSON *send_first) {
    char address[64];
    const char *colon = strrchr(host, ':');
    snprintf(address, sizeof address, "%.*s", (int)(colon - host), host);
    for (long long end = now() + LIMIT;;) {
        int stream = connected(address, atoi(colon + 1));
        char *answer = stream < 0 ? (char *)calloc(1, 1) : talk(stream, send_first);
        if (*answer != '\0' || now() > end) return answer;
        free(answer);
    }
}

/* The first port's address and port in a list of ports. */
static char *first_host(char *json, const char *list) {
    cJSON *all = cJSON_Parse(json);
    const cJSON *ports = list == NULL ? all : get(all, list);
    char *host = strdup(text(get(at(ports, 0), "host")));
    cJSON_Delete(all);
    gpuc_string_free(json);
    return host;
}

static long length(char *json, const char *list) {
    if (json == NULL) return -1;
    cJSON *all = cJSON_Parse(json);
    long count = cJSON_GetArraySize(list == NULL ? all : get(all, list));
    cJSON_Delete(all);
    gpuc_string_free(json);
    return count;
}

/* Text of the library's as this program's own. */
static char *own(char *words) {
    if (words == NULL) return NULL;
    char *copy = strdup(words);
    gpuc_string_free(words);
    return copy;
}

/* Options of the table. */

static gpuc_limits_t *limits(const cJSON *value) {
    gpuc_limits_t *made = gpuc_limits_new();
    const cJSON *one, *file;
    cJSON_ArrayForEach(one, value) {
        const char *key = one->string;
        if (strcmp(key, "memory") == 0) gpuc_limits_set_memory_max(made, (uint64_t)number(one));
        else if (strcmp(key, "swap") == 0) gpuc_limits_set_memory_swap_max(made, (uint64_t)number(one));
        else if (strcmp(key, "cpus") == 0) gpuc_limits_set_cpus(made, one->valuedouble);
        else if (strcmp(key, "cpuset_cpus") == 0) gpuc_limits_set_cpuset_cpus(made, text(one));
        else if (strcmp(key, "pids") == 0) gpuc_limits_set_pids_max(made, (uint64_t)number(one));
        else if (strcmp(key, "raw") == 0) cJSON_ArrayForEach(file, one) gpuc_limits_raw(made, file->string, text(file));
        else unknown("limit", key);
    }
    return made;
}

static void add_mount(gpuc_config_t *config, const cJSON *value) {
    const char *kind = text(get(value, "kind")), *target = text(get(value, "target"));
    const cJSON *source = get(value, "source"), *one;
    uint32_t flags = 0;
    uint64_t size = 0;
    cJSON_ArrayForEach(one, value) {
        const char *key = one->string;
        if (strcmp(key, "read_only") == 0) flags |= cJSON_IsTrue(one) ? GPUC_MOUNT_READ_ONLY : 0;
        else if (strcmp(key, "executable") == 0) flags |= cJSON_IsTrue(one) ? 0 : GPUC_MOUNT_NO_EXECUTE;
        else if (strcmp(key, "size") == 0) size = (uint64_t)number(one);
        else if (strcmp(key, "kind") != 0 && strcmp(key, "target") != 0 && strcmp(key, "source") != 0)
            unknown("option of a mount", key);
    }
    if (strcmp(kind, "bind") == 0) gpuc_config_bind(config, text(source), target, flags);
    else if (strcmp(kind, "volume") == 0) gpuc_config_volume(config, text(source), target, flags);
    else if (strcmp(kind, "tmpfs") == 0) gpuc_config_tmpfs(config, target, size, flags);
    else unknown("mount", kind);
}

static gpuc_gpu_request_t *request(const cJSON *value) {
    const cJSON *gpus = get(value, "gpus"), *one;
    char count[32];
    if (cJSON_IsNumber(gpus)) snprintf(count, sizeof count, "count:%lld", number(gpus));
    gpuc_gpu_request_t *made = gpuc_gpu_request_new(cJSON_IsNumber(gpus) ? count : text(gpus));
    cJSON_ArrayForEach(one, value) {
        const char *key = one->string;
        if (strcmp(key, "shared") == 0) gpuc_gpu_request_set_shared(made, (uint32_t)number(one));
        else if (strcmp(key, "fraction") == 0) gpuc_gpu_request_set_fraction(made, (uint64_t)number(one));
        else if (strcmp(key, "min_free_memory") == 0) gpuc_gpu_request_set_min_free_memory(made, (uint64_t)number(one));
        else if (strcmp(key, "model") == 0) gpuc_gpu_request_set_model(made, text(one));
        else if (strcmp(key, "mig_profile") == 0) gpuc_gpu_request_set_mig_profile(made, text(one));
        else if (strcmp(key, "gpus") != 0) unknown("wish for GPUs", key);
    }
    return made;
}

static gpuc_private_network_t *network(const cJSON *value) {
    gpuc_error_t *error;
    gpuc_private_network_t *made = gpuc_private_network_new(text(get(value, "name")), &error);
    CHECK_NO_ERROR(error);
    const cJSON *one;
    cJSON_ArrayForEach(one, value) {
        const char *key = one->string;
        if (strcmp(key, "ipv4") == 0) CHECK(gpuc_private_network_set_ipv4(made, text(one), NULL) == 0);
        else if (strcmp(key, "ipv6") == 0) gpuc_private_network_set_ipv6(made, cJSON_IsTrue(one));
        else if (strcmp(key, "outbound") == 0) gpuc_private_network_set_outbound(made, cJSON_IsTrue(one));
        else if (strcmp(key, "host_access") == 0) gpuc_private_network_set_host_access(made, cJSON_IsTrue(one));
        else if (strcmp(key, "name") != 0) unknown("option of a network", key);
    }
    return made;
}

static void set(scene_t *scene, gpuc_config_t *config, const char *key, const cJSON *value) {
    const cJSON *one;
    if (strcmp(key, "name") == 0) gpuc_config_set_name(config, text(value));
    else if (strcmp(key, "command") == 0 || strcmp(key, "entrypoint") == 0) {
        const char **all = words(value);
        (key[0] == 'c' ? gpuc_config_set_command : gpuc_config_set_entrypoint)(config, all);
        free(all);
    } else if (strcmp(key, "env") == 0) cJSON_ArrayForEach(one, value) gpuc_config_env(config, one->string, text(one));
    else if (strcmp(key, "cwd") == 0) gpuc_config_set_working_dir(config, text(value));
    else if (strcmp(key, "user") == 0) gpuc_config_set_user(config, text(value));
    else if (strcmp(key, "hostname") == 0) gpuc_config_set_hostname(config, text(value));
    else if (strcmp(key, "init") == 0) gpuc_config_set_init(config, cJSON_IsTrue(value));
    else if (strcmp(key, "read_only") == 0) gpuc_config_set_read_only(config, cJSON_IsTrue(value));
    else if (strcmp(key, "writable_memory") == 0) gpuc_config_set_writable_memory(config, (uint64_t)number(value));
    else if (strcmp(key, "limits") == 0) {
        gpuc_limits_t *made = limits(value);
        gpuc_config_set_limits(config, made);
        gpuc_limits_free(made);
    } else if (strcmp(key, "cgroup") == 0) gpuc_config_set_cgroup(config, cJSON_IsTrue(value));
    else if (strcmp(key, "network") == 0 && cJSON_IsObject(value)) {
        gpuc_private_network_t *made = network(value);
        gpuc_config_set_private_network(config, made);
        gpuc_private_network_free(made);
    } else if (strcmp(key, "network") == 0) gpuc_config_set_host_network(config, strcmp(text(value), "host") == 0);
    else if (strcmp(key, "user_namespace") == 0) {
        CHECK(strcmp(text(value), "oneself") == 0);
        gpuc_config_set_user_namespace_oneself(config);
    } else if (strcmp(key, "time_offsets") == 0)
        gpuc_config_set_time_offsets(config, number(at(value, 0)), number(at(value, 1)));
    else if (strcmp(key, "mounts") == 0) cJSON_ArrayForEach(one, value) add_mount(config, one);
    else if (strcmp(key, "shm_size") == 0) gpuc_config_set_shm_size(config, (uint64_t)number(value));
    else if (strcmp(key, "publish") == 0) {
        cJSON_ArrayForEach(one, value)
            gpuc_config_publish(config, (uint16_t)number(at(one, 0)), (uint16_t)number(at(one, 1)));
    } else if (strcmp(key, "host_services") == 0) {
        cJSON_ArrayForEach(one, value) gpuc_config_expose_host(config, GPUC_PROTOCOL_TCP,
                                                               (uint16_t)number(get(one, "port")), text(get(one, "host")));
    } else if (strcmp(key, "gpus") == 0) {
        gpuc_gpu_request_t *made = request(value);
        gpuc_config_set_gpu_request(config, made);
        gpuc_config_set_gpu_allocator(config, scene->allocator);
        gpuc_gpu_request_free(made);
    } else if (strcmp(key, "lease") == 0)
        gpuc_config_set_gpu_lease(config, scene->leases[place(scene, text(value))]);
    else if (strcmp(key, "join") == 0) gpuc_config_join_network(config, scene->sandboxes[place(scene, text(value))]);
    else if (strcmp(key, "add_capabilities") == 0) {
        cJSON_ArrayForEach(one, value) gpuc_config_add_capability(config, text(one));
    } else if (strcmp(key, "drop_capabilities") == 0) {
        cJSON_ArrayForEach(one, value) gpuc_config_drop_capability(config, text(one));
    } else if (strcmp(key, "seccomp") == 0) {
        char *json = cJSON_PrintUnformatted(value);
        gpuc_config_set_seccomp_json(config, json);
        free(json);
    } else if (strcmp(key, "unfiltered") == 0) gpuc_config_set_unfiltered(config);
    else if (strcmp(key, "resource_limits") == 0) {
        cJSON_ArrayForEach(one, value)
            gpuc_config_resource_limit(config, one->string, (uint64_t)number(one), (uint64_t)number(one));
    } else if (strcmp(key, "sysctls") == 0) cJSON_ArrayForEach(one, value) gpuc_config_sysctl(config, one->string, text(one));
    else if (strcmp(key, "oom_score") == 0) gpuc_config_set_oom_score(config, (int)number(value));
    else if (strcmp(key, "umask") == 0) gpuc_config_set_umask(config, (uint32_t)number(value));
    else if (strcmp(key, "terminal") == 0)
        gpuc_config_set_terminal(config, (uint16_t)number(at(value, 0)), (uint16_t)number(at(value, 1)));
    else if (strcmp(key, "image") != 0 && strcmp(key, "directory") != 0) unknown("option", key);
}

static gpuc_config_t *config_of(scene_t *scene, const cJSON *with, gpuc_error_t **error) {
    const cJSON *image = get(with, "image"), *directory = get(with, "directory"), *one;
    gpuc_config_t *config = image != NULL       ? gpuc_config_new(text(image), error)
                            : directory != NULL ? gpuc_config_new_from_directory(text(directory), error)
                                                : gpuc_config_new_from_image(scene->image, error);
    if (config == NULL) return NULL;
    gpuc_config_set_store(config, scene->store);
    for (int stream = 0; stream < 3; stream++) gpuc_config_set_stdio(config, stream, GPUC_STDIO_PIPED);
    if (scene->allocator != NULL) gpuc_config_set_driver_root(config, scene->driver);
    /* First everything goes, then what is added comes back. */
    const cJSON *dropped = get(with, "drop_capabilities");
    if (dropped != NULL) set(scene, config, "drop_capabilities", dropped);
    cJSON_ArrayForEach(one, with) {
        if (one != dropped) set(scene, config, one->string, one);
    }
    return config;
}

static gpuc_image_t *build(scene_t *scene, const cJSON *with, const char *reference, gpuc_error_t **error) {
    gpuc_image_builder_t *builder = gpuc_image_builder_new(scene->store, error);
    CHECK(builder != NULL);
    const cJSON *base = get(with, "base"), *one, *part;
    if (base != NULL) {
        gpuc_image_t *image = gpuc_image_store_get(scene->store, text(base), error);
        gpuc_image_builder_set_base(builder, image);
        gpuc_image_free(image);
    }
    cJSON_ArrayForEach(one, with) {
        const char *key = one->string;
        if (strcmp(key, "copy") == 0) {
            cJSON_ArrayForEach(part, one)
                gpuc_image_builder_copy_following_links(builder, text(at(part, 0)), text(at(part, 1)));
        } else if (strcmp(key, "files") == 0) {
            cJSON_ArrayForEach(part, one) gpuc_image_builder_file(builder, text(at(part, 0)), text(at(part, 1)),
                                                                  strlen(text(at(part, 1))), (uint32_t)number(at(part, 2)));
        } else if (strcmp(key, "directories") == 0) {
            cJSON_ArrayForEach(part, one)
                gpuc_image_builder_directory(builder, text(at(part, 0)), (uint32_t)number(at(part, 1)));
        } else if (strcmp(key, "symlinks") == 0) {
            cJSON_ArrayForEach(part, one) gpuc_image_builder_symlink(builder, text(at(part, 0)), text(at(part, 1)));
        } else if (strcmp(key, "env") == 0) {
            cJSON_ArrayForEach(part, one) gpuc_image_builder_env(builder, part->string, text(part));
        } else if (strcmp(key, "labels") == 0) {
            cJSON_ArrayForEach(part, one) gpuc_image_builder_label(builder, part->string, text(part));
        } else if (strcmp(key, "expose") == 0) {
            cJSON_ArrayForEach(part, one) gpuc_image_builder_expose(builder, (uint16_t)number(part));
        } else if (strcmp(key, "volumes") == 0) {
            cJSON_ArrayForEach(part, one) gpuc_image_builder_volume(builder, text(part));
        } else if (strcmp(key, "entrypoint") == 0 || strcmp(key, "command") == 0) {
            const char **all = words(one);
            (key[0] == 'c' ? gpuc_image_builder_set_command : gpuc_image_builder_set_entrypoint)(builder, all);
            free(all);
        } else if (strcmp(key, "user") == 0) gpuc_image_builder_set_user(builder, text(one));
        else if (strcmp(key, "working_dir") == 0) gpuc_image_builder_set_working_dir(builder, text(one));
        else if (strcmp(key, "stop_signal") == 0) gpuc_image_builder_set_stop_signal(builder, text(one));
        else if (strcmp(key, "created") == 0) gpuc_image_builder_set_created(builder, (uint64_t)number(one));
        else if (strcmp(key, "reference") != 0 && strcmp(key, "base") != 0) unknown("option of a build", key);
    }
    gpuc_image_t *image = gpuc_image_builder_commit(builder, reference, error);
    gpuc_image_builder_free(builder);
    return image;
}

/* What an image says, without what depends on the machine; frees it. */
static char *described(gpuc_image_t *image) {
    if (image == NULL) return NULL;
    cJSON *config = cJSON_Parse(gpuc_image_config_json(image));
    cJSON_DeleteItemFromObject(config, "architecture");
    cJSON_DeleteItemFromObject(config, "created");
    cJSON_AddStringToObject(config, "id", gpuc_image_id(image));
    cJSON_AddStringToObject(config, "reference", gpuc_image_reference(image));
    char *words = cJSON_PrintUnformatted(config);
    cJSON_Delete(config);
    gpuc_image_free(image);
    return words;
}

/* Steps. */

static void take_output(outcome_t *outcome, gpuc_output_t *output) {
    if (output == NULL) return;
    char **texts[] = {&outcome->out, &outcome->err};
    for (int stream = 1; stream <= 2; stream++) {
        size_t size;
        const void *bytes = gpuc_output_bytes(output, stream, &size);
        *texts[stream - 1] = strndup((const char *)bytes, size);
    }
    outcome->ended = true;
    outcome->status = gpuc_output_status(output);
    gpuc_output_free(output);
}

static char *input_of(const cJSON *step, size_t *size) {
    const cJSON *input = get(step, "input"), *times = get(step, "times");
    size_t one = input == NULL ? 0 : strlen(text(input)), count = times == NULL ? 1 : (size_t)number(times);
    char *all = (char *)malloc(one * count + 1);
    for (size_t index = 0; index < count; index++) memcpy(all + index * one, input == NULL ? "" : text(input), one);
    *size = one * count;
    return all;
}

static int64_t patience(const cJSON *step, int64_t otherwise) {
    const cJSON *timeout = get(step, "timeout");
    return timeout == NULL ? otherwise : number(timeout);
}

static gpuc_cancel_t *cancel_of(const cJSON *step) {
    gpuc_cancel_t *cancel = gpuc_cancel_new();
    if (cJSON_IsTrue(get(step, "cancelled"))) gpuc_cancel_switch(cancel);
    return cancel;
}

static void detach(scene_t *scene, gpuc_sandbox_t *sandbox, outcome_t *outcome) {
    int pid = gpuc_sandbox_pid(sandbox);
    if (gpuc_sandbox_detach(sandbox, &outcome->error) < 0) return;
    CHECK(kill(pid, SIGKILL) == 0);
    long long end = now() + LIMIT;
    /* Whoever detaches a child and lives on waits for it, like for any other. */
    while (waitpid(-1, NULL, WNOHANG) >= 0) CHECK(now() < end);
    char path[128];
    snprintf(path, sizeof path, "%s/store/scratch", scene->directory);
    for (int left = 1; left > 0 && now() < end;) {
        if (gpuc_collect_abandoned(scene->store, &outcome->error) < 0) return;
        DIR *directory = opendir(path);
        left = -2;
        while (directory != NULL && readdir(directory) != NULL) left++;
        if (directory != NULL) closedir(directory);
    }
}

static void with_images(scene_t *scene, const char *what, const cJSON *step, const cJSON *with, outcome_t *outcome) {
    gpuc_error_t **error = &outcome->error;
    const cJSON *reference = get(step, "reference"), *one;
    if (strcmp(what, "build") == 0) {
        outcome->text = described(build(scene, with, text(get(with, "reference")), error));
    } else if (strcmp(what, "image") == 0) {
        outcome->text = described(gpuc_image_store_get(scene->store, text(reference), error));
    } else if (strcmp(what, "tag") == 0) {
        gpuc_image_t *image = gpuc_image_store_get(scene->store, text(reference), error);
        if (image == NULL) return;
        outcome->text = described(gpuc_image_store_tag(scene->store, image, text(get(step, "new")), error));
        gpuc_image_free(image);
    } else if (strcmp(what, "remove") == 0) {
        gpuc_image_store_remove(scene->store, text(reference), error);
    } else if (strcmp(what, "images") == 0) {
        gpuc_images_t *all = gpuc_image_store_list(scene->store, error);
        outcome->count = (long)gpuc_images_count(all);
        gpuc_images_free(all);
    } else if (strcmp(what, "garbage") == 0) {
        uint64_t layers = 0;
        gpuc_cancel_t *cancel = cancel_of(step);
        gpuc_image_store_collect_garbage_cancellable(scene->store, cancel, &layers, NULL, error);
        outcome->count = (long)layers;
        gpuc_cancel_free(cancel);
    } else {
        gpuc_transfer_t *transfer = gpuc_transfer_new();
        gpuc_cancel_t *cancel = cancel_of(step);
        gpuc_transfer_set_cancel(transfer, cancel);
        cJSON_ArrayForEach(one, with) {
            if (strcmp(one->string, "reference") == 0) gpuc_transfer_set_reference(transfer, text(one));
            else if (strcmp(one->string, "select") == 0) gpuc_transfer_set_select(transfer, text(one));
            else if (strcmp(one->string, "platform") == 0) gpuc_transfer_set_platform(transfer, text(one));
            else if (strcmp(one->string, "path") != 0) unknown("option of an import", one->string);
        }
        if (strcmp(what, "pull") == 0) {
            gpuc_transfer_set_credentials(transfer, NULL, NULL);
            outcome->text = described(gpuc_image_store_pull(scene->store, text(reference), transfer, error));
        } else {
            outcome->text = described(gpuc_image_store_import(scene->store, text(get(with, "path")), transfer, error));
        }
        gpuc_cancel_free(cancel);
        gpuc_transfer_free(transfer);
    }
}

static void with_gpus(scene_t *scene, const char *what, const cJSON *step, const cJSON *with, outcome_t *outcome) {
    gpuc_error_t **error = &outcome->error;
    size_t here = place_of(scene, step);
    gpuc_sandbox_t *sandbox = scene->sandboxes[here];
    gpuc_gpu_request_t *wanted = get(with, "gpus") == NULL ? NULL : request(with);
    if (strcmp(what, "gpus") == 0) {
        outcome->count = length(gpuc_sandbox_json(sandbox, error), "gpus");
    } else if (strcmp(what, "lease") == 0) {
        gpuc_cancel_t *cancel = cancel_of(step);
        gpuc_gpu_lease_t *lease = gpuc_gpu_allocator_acquire(scene->allocator, wanted, patience(step, 0), cancel, error);
        outcome->count = (long)gpuc_gpu_lease_count(lease);
        if (lease != NULL) scene->leases[here] = lease;
        gpuc_cancel_free(cancel);
    } else if (strcmp(what, "release") == 0) {
        gpuc_gpu_lease_release(scene->leases[here], error);
        scene->leases[here] = NULL;
    } else if (strcmp(what, "drop") == 0) {
        gpuc_gpu_lease_free(scene->leases[here]);
        scene->leases[here] = NULL;
    } else if (strcmp(what, "leases") == 0 || strcmp(what, "quarantined") == 0) {
        outcome->count = length(gpuc_gpu_allocator_status_json(scene->allocator, error), what);
    } else if (strcmp(what, "queue") == 0) {
        gpuc_gpu_ticket_t *ticket = gpuc_gpu_allocator_enqueue(scene->allocator, wanted, error);
        if (ticket != NULL && gpuc_gpu_ticket_wait(ticket, 0, &scene->leases[here], error) == 0)
            scene->tickets[here] = ticket;
        else
            gpuc_gpu_ticket_free(ticket);
        outcome->count = (long)gpuc_gpu_lease_count(scene->leases[here]);
    } else if (strcmp(what, "served") == 0) {
        CHECK(gpuc_gpu_ticket_wait(scene->tickets[here], LIMIT, &scene->leases[here], error) == 1);
        gpuc_gpu_ticket_free(scene->tickets[here]);
        scene->tickets[here] = NULL;
        outcome->count = (long)gpuc_gpu_lease_count(scene->leases[here]);
    } else if (strcmp(what, "quarantine") == 0 || strcmp(what, "readmit") == 0) {
        char *json = gpuc_gpu_allocator_status_json(scene->allocator, error);
        cJSON *status = cJSON_Parse(json);
        const cJSON *gpu = get(step, "gpu");
        if (gpu == NULL) gpu = get(at(get(status, "gpus"), 0), "uuid");
        outcome->count = (what[0] == 'q' ? gpuc_gpu_allocator_quarantine
                                         : gpuc_gpu_allocator_readmit)(scene->allocator, text(gpu), error);
        cJSON_Delete(status);
        gpuc_string_free(json);
    } else if (strcmp(what, "attach") == 0) {
        const cJSON *lease = get(with, "lease");
        gpuc_gpu_grant_t *grant = lease != NULL
                                      ? gpuc_sandbox_attach_lease(sandbox, scene->leases[place(scene, text(lease))], error)
                                      : gpuc_sandbox_attach_gpus(sandbox, wanted, 0, NULL, error);
        if (grant != NULL) scene->grants[scene->granted++] = grant;
        outcome->count = 0;
        for (gpuc_gpu_grant_t *one; (one = gpuc_sandbox_granted(sandbox, (size_t)outcome->count, NULL)) != NULL; outcome->count++)
            gpuc_gpu_grant_free(one);
    } else if (strcmp(what, "take") == 0) {
        gpuc_gpu_grant_t *grant = scene->grants[--scene->granted];
        gpuc_sandbox_detach_gpus(sandbox, grant, false, error);
        gpuc_gpu_grant_free(grant);
    } else if (strcmp(what, "mig") == 0) {
        char path[128];
        snprintf(path, sizeof path, "%s/mig", scene->directory);
        gpuc_mig_devices_t *devices = gpuc_mig_devices_open(scene->driver, path, error);
        CHECK(devices != NULL);
        gpuc_mig_lease_t *lease = gpuc_mig_devices_acquire(devices, text(get(step, "profile")), NULL, error);
        outcome->count = gpuc_mig_lease_is_created(lease);
        if (lease != NULL) scene->mig[here] = lease;
        gpuc_mig_devices_free(devices);
    } else if (strcmp(what, "unmig") == 0) {
        gpuc_mig_lease_release(scene->mig[here], error);
        scene->mig[here] = NULL;
    } else if (strcmp(what, "cdi") == 0) {
        outcome->text = own(gpuc_cdi_spec_json(wanted, scene->driver, error));
    } else {
        unknown("step", what);
    }
    gpuc_gpu_request_free(wanted);
}

static void with_process(scene_t *scene, const char *what, const cJSON *step, const cJSON *with, outcome_t *outcome) {
    gpuc_error_t **error = &outcome->error;
    gpuc_sandbox_t *sandbox = scene->sandboxes[place_of(scene, step)];
    size_t size;
    char *input = input_of(step, &size);
    if (strcmp(what, "communicate") == 0) {
        take_output(outcome, gpuc_sandbox_communicate(sandbox, input, size, patience(step, LIMIT), error));
    } else if (strcmp(what, "wait") == 0) {
        outcome->ended = gpuc_sandbox_wait(sandbox, patience(step, LIMIT), &outcome->status, error) == 1;
        if (!outcome->ended) outcome->text = strdup("running");
    } else if (strcmp(what, "line") == 0) {
        char line[256] = "";
        int stream = gpuc_sandbox_take_stream(sandbox, 1);
        for (size_t index = 0; index < sizeof line - 1 && read(stream, &line[index], 1) == 1 && line[index] != '\n'; index++) {
        }
        line[strcspn(line, "\n")] = '\0';
        close(stream);
        outcome->text = strdup(line);
    } else if (strcmp(what, "kill") == 0) {
        gpuc_sandbox_kill(sandbox, (int)number(get(step, "signal")), error);
    } else if (strcmp(what, "stats") == 0) {
        outcome->text = own(gpuc_sandbox_stats_json(sandbox, error));
    } else if (strcmp(what, "update") == 0) {
        gpuc_limits_t *made = limits(with);
        gpuc_sandbox_update(sandbox, made, error);
        gpuc_limits_free(made);
    } else if (strcmp(what, "pause") == 0) {
        gpuc_sandbox_pause(sandbox, error);
    } else if (strcmp(what, "resume") == 0) {
        gpuc_sandbox_resume(sandbox, error);
    } else {
        const char **command = words(get(with, "command"));
        gpuc_exec_t *exec = gpuc_exec_new(command);
        const cJSON *one, *part;
        for (int stream = 0; stream < 3; stream++) gpuc_exec_set_stdio(exec, stream, GPUC_STDIO_PIPED);
        cJSON_ArrayForEach(one, with) {
            if (strcmp(one->string, "env") == 0) cJSON_ArrayForEach(part, one) gpuc_exec_env(exec, part->string, text(part));
            else if (strcmp(one->string, "cwd") == 0) gpuc_exec_set_working_dir(exec, text(one));
            else if (strcmp(one->string, "user") == 0) gpuc_exec_set_user(exec, text(one));
            else if (strcmp(one->string, "command") != 0) unknown("option of a further process", one->string);
        }
        gpuc_process_t *process = gpuc_exec_spawn(exec, sandbox, error);
        if (process != NULL) take_output(outcome, gpuc_process_communicate(process, input, size, LIMIT, error));
        gpuc_process_free(process);
        gpuc_exec_free(exec);
        free(command);
    }
    free(input);
}

static void with_ports(scene_t *scene, const char *what, const cJSON *step, const cJSON *with, outcome_t *outcome) {
    gpuc_error_t **error = &outcome->error;
    gpuc_sandbox_t *sandbox = scene->sandboxes[place_of(scene, step)];
    const cJSON *port = get(step, "port"), *host_port = get(step, "host_port");
    if (strcmp(what, "dial") == 0) {
        int stream = gpuc_sandbox_dial(sandbox, (uint16_t)number(port), LIMIT, error);
        if (stream >= 0) outcome->text = talk(stream, get(step, "send"));
    } else if (strcmp(what, "ready") == 0) {
        gpuc_sandbox_wait_ready(sandbox, (uint16_t)number(port), patience(step, LIMIT), error);
    } else if (strcmp(what, "connect") == 0) {
        char *host = first_host(gpuc_sandbox_json(sandbox, error), "ports");
        outcome->text = served(host, get(step, "send"));
        free(host);
    } else if (strcmp(what, "publish") == 0) {
        uint16_t wanted = host_port == NULL ? 0 : (uint16_t)number(host_port);
        outcome->count = gpuc_sandbox_publish(sandbox, NULL, (uint16_t)number(port), wanted, error) != 0;
    } else if (strcmp(what, "unpublish") == 0 && host_port != NULL) {
        gpuc_sandbox_unpublish(sandbox, NULL, (uint16_t)number(host_port), error);
    } else if (strcmp(what, "unpublish") == 0) {
        char *host = first_host(gpuc_sandbox_json(sandbox, error), "ports");
        gpuc_sandbox_unpublish(sandbox, NULL, (uint16_t)atoi(strrchr(host, ':') + 1), error);
        free(host);
    } else if (strcmp(what, "ports") == 0) {
        outcome->count = length(gpuc_sandbox_json(sandbox, error), "ports");
    } else if (strcmp(what, "expose") == 0) {
        outcome->count = gpuc_sandbox_expose_host(sandbox, GPUC_PROTOCOL_TCP, (uint16_t)number(get(with, "port")),
                                                  text(get(with, "host")), error) != 0;
    } else if (strcmp(what, "services") == 0) {
        outcome->count = length(gpuc_sandbox_json(sandbox, error), "host_services");
    } else {
        gpuc_sandbox_withdraw_host(sandbox, GPUC_PROTOCOL_TCP, (uint16_t)number(port), error);
    }
}

static bool among(const char *what, const char *const *names) {
    while (*names != NULL && strcmp(*names, what) != 0) names++;
    return *names != NULL;
}

static void act(scene_t *scene, const cJSON *step, outcome_t *outcome) {
    static const char *const images[] = {"build", "image", "tag", "remove", "images", "garbage", "import", "pull", NULL};
    static const char *const processes[] = {"communicate", "wait", "line", "kill", "exec", "stats", "update", "pause",
                                            "resume", NULL};
    static const char *const ports[] = {"dial", "ready", "connect", "publish", "unpublish", "ports", "expose", "services",
                                        "withdraw", NULL};
    const char *what = text(get(step, "do"));
    const cJSON *with = get(step, "with");
    gpuc_error_t **error = &outcome->error;
    size_t here = place_of(scene, step);
    if (strcmp(what, "run") == 0 || strcmp(what, "start") == 0 || strcmp(what, "explain") == 0) {
        gpuc_config_t *config = config_of(scene, with, error);
        if (config == NULL) return;
        if (what[0] == 'e') {
            outcome->text = own(gpuc_config_explain(config, error));
        } else {
            gpuc_sandbox_t *sandbox = gpuc_sandbox_spawn(config, error);
            if (what[0] == 's') {
                if (sandbox != NULL) scene->sandboxes[here] = sandbox;
            } else if (sandbox != NULL) {
                size_t size;
                char *input = input_of(step, &size);
                take_output(outcome, gpuc_sandbox_communicate(sandbox, input, size, LIMIT, error));
                free(input);
                gpuc_sandbox_free(sandbox);
            }
        }
        gpuc_config_free(config);
    } else if (strcmp(what, "close") == 0) {
        gpuc_sandbox_close(scene->sandboxes[here], error);
        scene->sandboxes[here] = NULL;
    } else if (strcmp(what, "detach") == 0) {
        detach(scene, scene->sandboxes[here], outcome);
        scene->sandboxes[here] = NULL;
    } else if (strcmp(what, "file") == 0) {
        FILE *file = fopen(text(get(step, "path")), "r");
        CHECK(file != NULL);
        outcome->text = (char *)calloc(1, 4096);
        CHECK(fread(outcome->text, 1, 4095, file) > 0);
        fclose(file);
    } else if (strcmp(what, "probe") == 0) {
        gpuc_host_t *host = gpuc_host_probe(error);
        outcome->text = strdup(gpuc_host_text(host));
        gpuc_host_free(host);
    } else if (strcmp(what, "join") == 0) {
        gpuc_private_network_t *made = network(with);
        gpuc_network_member_t *member = gpuc_private_network_join(made, text(get(step, "name")), error);
        if (member != NULL) {
            scene->members[here] = member;
            outcome->text = strdup(gpuc_network_member_address(member, 0));
        }
        gpuc_private_network_free(made);
    } else if (strcmp(what, "leave") == 0) {
        gpuc_network_member_free(scene->members[here]);
        scene->members[here] = NULL;
    } else if (strcmp(what, "addresses") == 0) {
        char *json = gpuc_sandbox_json(scene->sandboxes[here], error);
        cJSON *all = cJSON_Parse(json);
        outcome->text = strdup(text(at(get(all, "addresses"), 0)));
        cJSON_Delete(all);
        gpuc_string_free(json);
    } else if (strcmp(what, "reserve") == 0) {
        const cJSON *pair;
        gpuc_port_mapping_t *mappings[PLACES];
        size_t count = 0;
        cJSON_ArrayForEach(pair, get(step, "ports")) mappings[count++] = gpuc_port_mapping_new(
            GPUC_PROTOCOL_TCP, (uint16_t)number(at(pair, 0)), (uint16_t)number(at(pair, 1)), 1);
        gpuc_reservation_t *reservation = gpuc_port_mapper_reserve((const gpuc_port_mapping_t *const *)mappings, count, error);
        while (count > 0) gpuc_port_mapping_free(mappings[--count]);
        if (reservation == NULL) return;
        scene->reservations[here] = reservation;
        outcome->count = length(gpuc_reservation_json(reservation, error), NULL);
    } else if (strcmp(what, "relay") == 0) {
        gpuc_network_namespace_t *namespace_of = gpuc_sandbox_network_namespace(scene->sandboxes[here], error);
        scene->published[here] = gpuc_reservation_relay(scene->reservations[here], namespace_of, error);
        scene->reservations[here] = NULL;
        gpuc_network_namespace_free(namespace_of);
        outcome->count = length(gpuc_published_json(scene->published[here], error), NULL);
    } else if (strcmp(what, "relayed") == 0) {
        char *host = first_host(gpuc_published_json(scene->published[here], error), NULL);
        outcome->text = served(host, get(step, "send"));
        free(host);
    } else if (strcmp(what, "unrelay") == 0) {
        gpuc_published_free(scene->published[here]);
        scene->published[here] = NULL;
    } else if (among(what, images)) {
        with_images(scene, what, step, with, outcome);
    } else if (among(what, processes)) {
        with_process(scene, what, step, with, outcome);
    } else if (among(what, ports)) {
        with_ports(scene, what, step, with, outcome);
    } else {
        with_gpus(scene, what, step, with, outcome);
    }
}

/* What came of a step. */

static const char *kind_of(const gpuc_error_t *error) {
    const cJSON *one;
    cJSON_ArrayForEach(one, kinds) if (number(one) == (long long)gpuc_error_kind(error)) return one->string;
    fprintf(stderr, "the table knows no kind %d: %s\n", (int)gpuc_error_kind(error), gpuc_error_message(error));
    exit(1);
}

static cJSON *number_or_null(long value, long nothing) {
    return value == nothing ? cJSON_CreateNull() : cJSON_CreateNumber((double)value);
}

static void say(const scene_t *scene, int index, const cJSON *step, const outcome_t *outcome) {
    if (record == NULL) return;
    cJSON *all = cJSON_CreateArray();
    cJSON_AddItemToArray(all, cJSON_CreateString(scene->row));
    cJSON_AddItemToArray(all, cJSON_CreateNumber(index));
    cJSON_AddItemToArray(all, cJSON_CreateString(text(get(step, "do"))));
    if (outcome->error != NULL) {
        cJSON_AddItemToArray(all, cJSON_CreateString(kind_of(outcome->error)));
        cJSON_AddItemToArray(all, number_or_null(gpuc_error_errno(outcome->error), 0));
        cJSON_AddItemToArray(all, cJSON_CreateString(gpuc_error_message(outcome->error)));
    } else if (outcome->ended) {
        cJSON_AddItemToArray(all, number_or_null(outcome->status.code, -1));
        cJSON_AddItemToArray(all, number_or_null(outcome->status.signal, 0));
        cJSON_AddItemToArray(all, cJSON_CreateBool(outcome->status.oom_killed));
        cJSON_AddItemToArray(all, cJSON_CreateString(outcome->out == NULL ? "" : outcome->out));
        cJSON_AddItemToArray(all, cJSON_CreateString(outcome->err == NULL ? "" : outcome->err));
    } else {
        cJSON_AddItemToArray(all, number_or_null(outcome->count, -1));
        bool loose = cJSON_IsTrue(get(step, "loose"));
        cJSON_AddItemToArray(all, loose ? cJSON_CreateNull() : cJSON_CreateString(outcome->text == NULL ? "" : outcome->text));
    }
    char *line = cJSON_PrintUnformatted(all);
    line = replaced(line, scene->directory, "$DIR");
    line = replaced(line, data, "$DATA");
    if (scene->port[0] != '0') line = replaced(line, scene->port, "$PORT");
    fprintf(record, "%s\n", line);
    free(line);
    cJSON_Delete(all);
}

static bool has(const char *said, const cJSON *parts) {
    const cJSON *part;
    cJSON_ArrayForEach(part, parts) if (said == NULL || strstr(said, text(part)) == NULL) return false;
    return true;
}

static bool same(const char *said, const cJSON *wanted) { return strcmp(said == NULL ? "" : said, text(wanted)) == 0; }

static bool json_says(const char *said, const cJSON *pointers) {
    cJSON *all = cJSON_Parse(said);
    const cJSON *one;
    bool good = true;
    cJSON_ArrayForEach(one, pointers) {
        const cJSON *found = all;
        char path[256], *rest;
        snprintf(path, sizeof path, "%s", one->string + 1);
        for (char *name = strtok_r(path, "/", &rest); name != NULL; name = strtok_r(NULL, "/", &rest)) found = get(found, name);
        good = good && cJSON_Compare(found, one, true);
    }
    cJSON_Delete(all);
    return good;
}

static bool is_so(const char *key, const cJSON *value, const outcome_t *outcome) {
    bool exited = outcome->ended && outcome->status.signal == 0;
    if (strcmp(key, "error") == 0) return outcome->error != NULL && strcmp(kind_of(outcome->error), text(value)) == 0;
    if (strcmp(key, "says") == 0) return has(gpuc_error_message(outcome->error), value);
    if (strcmp(key, "errno") == 0) return gpuc_error_errno(outcome->error) == number(value);
    if (strcmp(key, "code") == 0) return exited && outcome->status.code == number(value);
    if (strcmp(key, "signal") == 0) return outcome->ended && outcome->status.signal == number(value);
    if (strcmp(key, "oom") == 0) return outcome->ended && outcome->status.oom_killed == cJSON_IsTrue(value);
    if (strcmp(key, "stdout") == 0) return same(outcome->out, value);
    if (strcmp(key, "stderr") == 0) return same(outcome->err, value);
    if (strcmp(key, "text") == 0) return same(outcome->text, value);
    if (strcmp(key, "stdout_has") == 0) return has(outcome->out, value);
    if (strcmp(key, "stderr_has") == 0) return has(outcome->err, value);
    if (strcmp(key, "text_has") == 0) return has(outcome->text, value);
    if (strcmp(key, "count") == 0) return outcome->count == number(value);
    if (strcmp(key, "json") == 0) return json_says(outcome->text, value);
    unknown("expectation", key);
    return false;
}

static void check(const scene_t *scene, int index, const cJSON *step, const outcome_t *outcome) {
    const cJSON *expected = get(step, "expect"), *one;
    const char *message = outcome->error == NULL ? "" : gpuc_error_message(outcome->error);
    bool good = outcome->error == NULL || get(expected, "error") != NULL;
    const char *which = "no error";
    cJSON_ArrayForEach(one, expected) {
        if (!good) break;
        which = one->string;
        good = is_so(which, one, outcome);
    }
    if (good) return;
    char *wanted = cJSON_PrintUnformatted(expected);
    fprintf(stderr, "%s, step %d: %s is not so of %s: %s %d %d \"%s\" \"%s\" \"%s\" %ld\n", scene->row, index, which, wanted,
            message, outcome->status.code, outcome->status.signal, outcome->out, outcome->err, outcome->text, outcome->count);
    exit(1);
}

static int forget(const char *path, const struct stat *status, int flag, struct FTW *walk) {
    (void)status, (void)flag, (void)walk;
    return remove(path);
}

static void write_file(const char *path, const char *words) {
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fputs(words, file) >= 0 && fclose(file) == 0);
}

static void prepare(scene_t *scene, const cJSON *row) {
    char *path = format("%s/host", scene->directory);
    CHECK(mkdir(path, 0755) == 0);
    free(path);
    path = format("%s/host/greeting", scene->directory);
    write_file(path, "from the host\n");
    free(path);
    path = format("mkdir -p %s/root/bin && cp %s %s/root/bin/sh", scene->directory, busybox, scene->directory);
    CHECK(system(path) == 0);
    free(path);
    char *said = cJSON_PrintUnformatted(row);
    if (strstr(said, "$PORT") != NULL) greet(scene);
    free(said);
    gpuc_error_t *error;
    path = format("%s/store", scene->directory);
    scene->store = gpuc_image_store_open(path, &error);
    CHECK_NO_ERROR(error);
    free(path);
    const cJSON *host = get(row, "host");
    if (host == NULL) return;
    snprintf(scene->driver, sizeof scene->driver, "%s/%s", getenv("GPUC_SCENARIO_HOSTS"), text(host));
    path = format("%s/leases", scene->directory);
    scene->allocator = gpuc_gpu_allocator_open_at(path, &error);
    CHECK_NO_ERROR(error);
    free(path);
    CHECK(gpuc_gpu_allocator_set_driver_root(scene->allocator, scene->driver, &error) == 0);
    gpuc_gpu_allocator_set_respect_outer(scene->allocator, false);
}

static void finish(scene_t *scene) {
    for (size_t index = 0; index < PLACES; index++) {
        gpuc_published_free(scene->published[index]);
        gpuc_reservation_free(scene->reservations[index]);
        gpuc_sandbox_free(scene->sandboxes[index]);
        gpuc_network_member_free(scene->members[index]);
        gpuc_gpu_ticket_free(scene->tickets[index]);
        gpuc_gpu_lease_free(scene->leases[index]);
        gpuc_mig_lease_free(scene->mig[index]);
        if (index < scene->granted) gpuc_gpu_grant_free(scene->grants[index]);
    }
    gpuc_gpu_allocator_free(scene->allocator);
    gpuc_image_free(scene->image);
    gpuc_image_store_free(scene->store);
    ungreet(scene);
    CHECK(nftw(scene->directory, forget, 32, FTW_DEPTH | FTW_PHYS) == 0);
}

static void run(const cJSON *row, const cJSON *image) {
    scene_t scene;
    memset(&scene, 0, sizeof scene);
    scene.row = text(get(row, "name"));
    strcpy(scene.directory, "/var/tmp/gpuc-scenario-XXXXXX");
    strcpy(scene.port, "0");
    CHECK(mkdtemp(scene.directory) != NULL);
    prepare(&scene, row);
    gpuc_error_t *error;
    cJSON *described_image = whole(&scene, image);
    scene.image = build(&scene, described_image, "fixture:1", &error);
    CHECK_NO_ERROR(error);
    cJSON_Delete(described_image);
    int index = 0;
    const cJSON *one;
    cJSON_ArrayForEach(one, get(row, "steps")) {
        cJSON *step = whole(&scene, one);
        outcome_t outcome;
        memset(&outcome, 0, sizeof outcome);
        outcome.count = -1;
        act(&scene, step, &outcome);
        if (outcome.error != NULL) outcome.count = -1;
        say(&scene, index, step, &outcome);
        check(&scene, index++, step, &outcome);
        gpuc_error_free(outcome.error);
        free(outcome.out);
        free(outcome.err);
        free(outcome.text);
        cJSON_Delete(step);
    }
    finish(&scene);
}

int main(void) {
    data = getenv("GPUC_SCENARIOS");
    if (data == NULL || access(busybox, X_OK) != 0) {
        printf("SKIP scenarios: %s\n", data == NULL ? "GPUC_SCENARIOS does not say where the table is" : "no busybox");
        return 0;
    }
    const char *record_path = getenv("GPUC_SCENARIOS_RECORD"), *only = getenv("GPUC_SCENARIO");
    record = record_path == NULL ? NULL : fopen(record_path, "w");
    char *path = format("%s/scenarios.json", data);
    FILE *file = fopen(path, "r");
    CHECK(file != NULL);
    static char said[1 << 20];
    CHECK(fread(said, 1, sizeof said - 1, file) < sizeof said - 1);
    fclose(file);
    free(path);
    cJSON *table = cJSON_Parse(said);
    CHECK(table != NULL);
    kinds = get(table, "kinds");
    const cJSON *row, *need, *rows = get(table, "rows");
    int ran = 0;
    cJSON_ArrayForEach(row, rows) {
        if (only != NULL && strcmp(only, text(get(row, "name"))) != 0) continue;
        ran++;
        const char *why = NULL;
        cJSON_ArrayForEach(need, get(row, "needs")) {
            CHECK(strcmp(text(need), "root") == 0);
            if (geteuid() != 0) why = "not root";
        }
        if (why == NULL && get(row, "host") != NULL && getenv("GPUC_SCENARIO_HOSTS") == NULL) why = "no stand-ins for GPUs";
        if (why != NULL) {
            printf("SKIP scenario \"%s\": %s\n", text(get(row, "name")), why);
            if (record != NULL) fprintf(record, "[\"%s\",\"skipped\",\"%s\"]\n", text(get(row, "name")), why);
            continue;
        }
        int before = open_descriptors();
        run(row, get(table, "image"));
        if (open_descriptors() != before) {
            fprintf(stderr, "%s: descriptors are left open\n", text(get(row, "name")));
            return 1;
        }
    }
    /* Every row runs or says why not. */
    CHECK(only != NULL ? ran == 1 : ran == cJSON_GetArraySize(rows));
    cJSON_Delete(table);
    if (record != NULL) fclose(record);
    return 0;
}
