/* An image of one program under several names, and what tests of its sandboxes do all the time. */
#ifndef IMAGE_H
#define IMAGE_H

#include "check.h"

#include <ftw.h>
#include <unistd.h>

static inline int remove_one(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status;
    (void)kind;
    (void)place;
    return remove(path);
}

static inline void expect(gpuc_error_t *error, gpuc_error_kind_t kind, const char *words) {
    CHECK(error != NULL);
    if (gpuc_error_kind(error) != kind || strstr(gpuc_error_message(error), words) == NULL) {
        fprintf(stderr, "not %d with %s but %d: %s\n", (int)kind, words, (int)gpuc_error_kind(error),
                gpuc_error_message(error));
        exit(1);
    }
    gpuc_error_free(error);
}

static inline gpuc_image_t *build(const gpuc_image_store_t *store) {
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

static inline gpuc_config_t *shell(const gpuc_image_t *image, const char *script) {
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

static inline gpuc_sandbox_t *spawn(gpuc_config_t *config) {
    gpuc_error_t *error;
    gpuc_sandbox_t *sandbox = gpuc_sandbox_spawn(config, &error);
    CHECK_NO_ERROR(error);
    gpuc_config_free(config);
    return sandbox;
}

static inline void close_sandbox(gpuc_sandbox_t *sandbox) {
    gpuc_error_t *error;
    CHECK(gpuc_sandbox_close(sandbox, &error) == 0);
    CHECK_NO_ERROR(error);
}

/* Reads to the end. */
static inline void read_all(int fd, char *text, size_t size) {
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

#endif
