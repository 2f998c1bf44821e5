/* One machine, four instances of one image, two GPUs each: the pairs that are connected best.
 *
 *     cc gpu_share.c $(pkg-config --cflags --libs gpucontainer) && ./a.out [STORE]
 *
 * It takes real leases, so it fits in beside whatever else asks an allocator on this machine. Without a GPU it says so.
 */
#include <gpucontainer.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { INSTANCES = 4 };

/* What an instance does: say in one line what it sees, and stay until its input ends. */
static const char script[] = "for node in /dev/nvidia[0-9]*; do nodes=\"$nodes ${node#/dev/}\"; done\n"
                             "echo \"sees$nodes\"\n"
                             "read -r line";

static void fail(gpuc_error_t *error) {
    fprintf(stderr, "%s\n", gpuc_error_message(error));
    gpuc_error_free(error);
    exit(1);
}

/* Prints text of the library, and frees it. */
static void show(char *text, gpuc_error_t *error) {
    if (text == NULL) fail(error);
    printf("%s\n", text);
    gpuc_string_free(text);
}

static gpuc_image_t *build(const gpuc_image_store_t *store) {
    gpuc_error_t *error;
    gpuc_image_builder_t *builder = gpuc_image_builder_new(store, &error);
    if (builder == NULL) fail(error);
    gpuc_image_builder_copy_following_links(builder, "/bin/busybox", "/bin/busybox");
    gpuc_image_builder_symlink(builder, "busybox", "/bin/sh");
    const char *const command[] = {"/bin/sh", "-c", script, NULL};
    gpuc_image_builder_set_command(builder, command);
    gpuc_image_t *image = gpuc_image_builder_commit(builder, "gpu-share", &error);
    gpuc_image_builder_free(builder);
    if (image == NULL) fail(error);
    return image;
}

/* Says what it got and why, and what it sees. */
static void introduce(const gpuc_sandbox_t *sandbox, int number) {
    gpuc_error_t *error;
    gpuc_gpu_lease_t *lease = gpuc_sandbox_gpu_lease(sandbox, &error);
    if (lease == NULL) fail(error);
    printf("instance %d: %s\n  is", number, gpuc_gpu_lease_description(lease));
    for (size_t gpu = 0; gpu < gpuc_gpu_lease_count(lease); gpu++) printf(" %s", gpuc_gpu_lease_gpu(lease, gpu));
    gpuc_gpu_lease_free(lease); /* the sandbox has it still */
    FILE *stream = fdopen(gpuc_sandbox_take_stream(sandbox, 1), "r");
    char line[256];
    if (stream == NULL || fgets(line, sizeof line, stream) == NULL) exit(1);
    fclose(stream);
    printf("\n  %s", line);
}

int main(int argc, char **argv) {
    gpuc_error_t *error;
    gpuc_host_t *host = gpuc_host_probe(&error);
    if (host == NULL) fail(error);
    if (gpuc_host_gpu_count(host) == 0) {
        printf("There are no GPUs to share here.\n");
        gpuc_host_free(host);
        return 0;
    }
    show(gpuc_host_topology_text(host, &error), error);
    gpuc_host_free(host);

    /* The user's store, unless told otherwise. */
    gpuc_image_store_t *store = gpuc_image_store_open(argc > 1 ? argv[1] : NULL, &error);
    if (store == NULL) fail(error);
    gpuc_image_t *image = build(store);
    gpuc_gpu_allocator_t *allocator = gpuc_gpu_allocator_open(&error);
    if (allocator == NULL) fail(error);
    gpuc_gpu_request_t *two = gpuc_gpu_request_new("count:2");
    gpuc_sandbox_t *sandboxes[INSTANCES];
    int started = 0;
    while (started < INSTANCES) {
        gpuc_config_t *config = gpuc_config_new_from_image(image, &error);
        if (config == NULL) fail(error);
        gpuc_config_set_store(config, store);
        gpuc_config_set_gpu_request(config, two);
        gpuc_config_set_stdio(config, 0, GPUC_STDIO_PIPED);
        gpuc_config_set_stdio(config, 1, GPUC_STDIO_PIPED);
        sandboxes[started] = gpuc_sandbox_spawn(config, &error);
        gpuc_config_free(config);
        if (sandboxes[started] == NULL) {
            /* All GPUs are somebody's; a start could also wait for them, see gpuc_config_set_gpu_wait. */
            if (gpuc_error_kind(error) != GPUC_ERROR_GPU_UNAVAILABLE) fail(error);
            printf("instance %d: %s\n", started + 1, gpuc_error_message(error));
            gpuc_error_free(error);
            break;
        }
        started++;
        introduce(sandboxes[started - 1], started);
    }
    printf("\n");
    show(gpuc_gpu_allocator_status_text(allocator, &error), error);

    for (int number = 0; number < started; number++) {
        if (gpuc_sandbox_close(sandboxes[number], &error) != 0) fail(error);
    }
    gpuc_gpu_request_free(two);
    gpuc_gpu_allocator_free(allocator);
    gpuc_image_free(image);
    gpuc_image_store_free(store);
    return 0;
}
