/* Builds an image from the host's busybox, runs a shell in it, and shows what it said and used.
 *
 *     cc hello.c $(pkg-config --cflags --libs gpucontainer) && ./a.out
 */
#include <gpucontainer.h>
#include <stdio.h>
#include <stdlib.h>

static void fail(gpuc_error_t *error) {
    fprintf(stderr, "%s\n", gpuc_error_message(error));
    gpuc_error_free(error);
    exit(1);
}

int main(int argc, char **argv) {
    gpuc_error_t *error;
    /* The user's store, unless told otherwise. */
    gpuc_image_store_t *store = gpuc_image_store_open(argc > 1 ? argv[1] : NULL, &error);
    if (store == NULL) fail(error);

    gpuc_image_builder_t *builder = gpuc_image_builder_new(store, &error);
    if (builder == NULL) fail(error);
    gpuc_image_builder_copy_following_links(builder, "/bin/busybox", "/bin/busybox");
    gpuc_image_builder_symlink(builder, "busybox", "/bin/sh");
    gpuc_image_t *image = gpuc_image_builder_commit(builder, "hello", &error);
    gpuc_image_builder_free(builder);
    if (image == NULL) fail(error);

    const char *const command[] = {"/bin/sh", "-c", "echo hello from process $$", NULL};
    gpuc_config_t *config = gpuc_config_new_from_image(image, &error);
    if (config == NULL) fail(error);
    gpuc_config_set_command(config, command);
    gpuc_config_set_stdio(config, 1, GPUC_STDIO_PIPED);
    gpuc_sandbox_t *sandbox = gpuc_sandbox_spawn(config, &error);
    gpuc_config_free(config);
    gpuc_image_free(image);
    if (sandbox == NULL) fail(error);

    gpuc_output_t *output = gpuc_sandbox_communicate(sandbox, NULL, 0, 10000, &error);
    if (output == NULL) fail(error);
    size_t length;
    const char *text = (const char *)gpuc_output_bytes(output, 1, &length);
    printf("%.*sexit code %d\n", (int)length, text, gpuc_output_status(output).code);
    gpuc_output_free(output);

    if (gpuc_sandbox_close(sandbox, &error) != 0) fail(error);
    gpuc_image_store_free(store);
    return 0;
}
