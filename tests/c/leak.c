/*
 * A thousand starts leave the process as it was: its memory, descriptors and threads. Under the address sanitizer, which
 * keeps what was freed and finds at the end what was not, fewer.
 */
#include "check.h"

#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
enum { STARTS = 100, SANITIZED = 1 };
#else
enum { STARTS = 1000, SANITIZED = 0 };
#endif
/* What the first starts allocate once. */
enum { WARM_UP = 50 };
/* Kibibytes by which the process may grow in half of the starts. */
enum { GROWTH = 512 };

typedef struct {
    long private_dirty;
    int descriptors, threads;
} process_size_t;

static process_size_t size(void) {
    process_size_t now = {0, open_descriptors(), 0};
    char line[256];
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "Private_Dirty: %ld", &now.private_dirty) == 1) break;
    }
    fclose(file);
    file = fopen("/proc/self/status", "r");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "Threads: %d", &now.threads) == 1) break;
    }
    fclose(file);
    return now;
}

/* All that a start makes: streams, a port, and every so often a further process and an error. */
static void start(const gpuc_image_t *image, int number) {
    gpuc_error_t *error;
    gpuc_config_t *config = gpuc_config_new_from_image(image, &error);
    CHECK_NO_ERROR(error);
    for (int stream = 0; stream < 3; stream++) gpuc_config_set_stdio(config, stream, GPUC_STDIO_PIPED);
    gpuc_config_publish(config, 80, 0);
    gpuc_sandbox_t *sandbox = gpuc_sandbox_spawn(config, &error);
    CHECK_NO_ERROR(error);
    if (number % 10 == 0) {
        const char *const command[] = {"/bin/busybox", "true", NULL}, *const missing[] = {"nothing", NULL};
        gpuc_exec_t *exec = gpuc_exec_new(command);
        gpuc_process_t *process = gpuc_exec_spawn(exec, sandbox, &error);
        CHECK_NO_ERROR(error);
        CHECK(gpuc_process_wait(process, 60000, NULL, &error) == 1);
        gpuc_process_free(process);
        gpuc_exec_free(exec);
        gpuc_config_set_command(config, missing);
        CHECK(gpuc_sandbox_spawn(config, &error) == NULL);
        CHECK(gpuc_error_kind(error) == GPUC_ERROR_COMMAND_NOT_FOUND);
        gpuc_error_free(error);
    }
    gpuc_config_free(config);
    gpuc_output_t *output = gpuc_sandbox_communicate(sandbox, "x", 1, 60000, &error);
    CHECK_NO_ERROR(error);
    size_t length;
    CHECK(memcmp(gpuc_output_bytes(output, 1, &length), "x", 1) == 0 && length == 1);
    gpuc_output_free(output);
    char *json = gpuc_sandbox_json(sandbox, &error);
    CHECK_NO_ERROR(error);
    gpuc_string_free(json);
    CHECK(gpuc_sandbox_close(sandbox, &error) == 0);
}

int main(void) {
    if (access("/bin/busybox", X_OK) != 0) {
        printf("SKIP leak: no busybox\n");
        return 0;
    }
    char directory[] = "/var/tmp/gpuc-c-leak-XXXXXX", path[64];
    CHECK(mkdtemp(directory) != NULL);
    snprintf(path, sizeof path, "%s/store", directory);
    gpuc_error_t *error;
    gpuc_image_store_t *store = gpuc_image_store_open(path, &error);
    CHECK_NO_ERROR(error);
    gpuc_image_builder_t *builder = gpuc_image_builder_new(store, &error);
    CHECK_NO_ERROR(error);
    const char *const command[] = {"/bin/busybox", "cat", NULL};
    gpuc_image_builder_copy_following_links(builder, "/bin/busybox", "/bin/busybox");
    gpuc_image_builder_set_command(builder, command);
    gpuc_image_t *image = gpuc_image_builder_commit(builder, "leak:1", &error);
    CHECK_NO_ERROR(error);
    gpuc_image_builder_free(builder);

    for (int number = 0; number < WARM_UP; number++) start(image, number);
    for (int number = 0; number < STARTS / 2; number++) start(image, number);
    process_size_t half = size();
    for (int number = 0; number < STARTS / 2; number++) start(image, number);
    process_size_t whole = size();
    fprintf(stderr, "after %d: %ld KiB, %d descriptors, %d threads; after %d: %ld, %d, %d\n", STARTS / 2, half.private_dirty,
            half.descriptors, half.threads, STARTS, whole.private_dirty, whole.descriptors, whole.threads);
    CHECK(whole.descriptors == half.descriptors && whole.threads == half.threads);
    CHECK(SANITIZED || whole.private_dirty <= half.private_dirty + GROWTH);

    gpuc_image_free(image);
    gpuc_image_store_free(store);
    char line[128];
    snprintf(line, sizeof line, "rm -rf %s", directory);
    CHECK(system(line) == 0);
    return 0;
}
