/* What the steps of a row share, values of the table, and the little servers and clients of the scenarios. */
#ifndef SCENARIOS_SCENE_H
#define SCENARIOS_SCENE_H

#include "../check.h"

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

#endif
