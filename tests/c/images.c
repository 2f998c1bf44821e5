/* The image store: build, find, name, import, remove, collect. */
#include "check.h"

#include <ftw.h>
#include <unistd.h>

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status;
    (void)kind;
    (void)place;
    return remove(path);
}

struct reports {
    int count;
    int imported;
};

static void on_progress(void *context, const char *item, gpuc_phase_t phase, uint64_t bytes, uint64_t total) {
    struct reports *reports = (struct reports *)context;
    (void)bytes;
    (void)total;
    CHECK(item[0] != '\0');
    reports->count++;
    if (phase == GPUC_PHASE_DONE || phase == GPUC_PHASE_IMPORTING) {
        reports->imported++;
    }
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

static void build(const gpuc_image_store_t *store) {
    gpuc_error_t *error;
    gpuc_image_builder_t *builder = gpuc_image_builder_new(store, &error);
    CHECK_NO_ERROR(error);
    const char *const command[] = {"/bin/hello", "world", NULL};
    gpuc_image_builder_copy(builder, "/etc/hostname", "/etc/");
    gpuc_image_builder_file(builder, "/bin/hello", "#!/bin/sh\n", 10, 0755);
    gpuc_image_builder_file(builder, "/empty", NULL, 0, 0644);
    gpuc_image_builder_directory(builder, "/tmp", 01777);
    gpuc_image_builder_symlink(builder, "hello", "/bin/link");
    gpuc_image_builder_env(builder, "LANG", "C.UTF-8");
    gpuc_image_builder_set_command(builder, command);
    gpuc_image_builder_set_working_dir(builder, "/tmp");
    gpuc_image_builder_expose(builder, 8080);
    gpuc_image_builder_set_created(builder, 1700000000);
    gpuc_image_t *image = gpuc_image_builder_commit(builder, "hello:1", &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(gpuc_image_reference(image), "hello:1") != NULL);
    CHECK(strncmp(gpuc_image_id(image), "sha256:", 7) == 0);
    CHECK(strncmp(gpuc_image_manifest_digest(image), "sha256:", 7) == 0);
    CHECK(strstr(gpuc_image_config_json(image), "\"command\":[\"/bin/hello\",\"world\"]") != NULL);
    CHECK(strstr(gpuc_image_config_json(image), "8080") != NULL);

    /* The same again is the same image; the builder can go on. */
    gpuc_image_t *again = gpuc_image_builder_commit(builder, "hello:2", &error);
    CHECK_NO_ERROR(error);
    CHECK(strcmp(gpuc_image_id(image), gpuc_image_id(again)) == 0);
    gpuc_image_free(again);
    gpuc_image_builder_free(builder);

    /* On top of it, with a switch that is off. */
    gpuc_cancel_t *cancel = gpuc_cancel_new();
    builder = gpuc_image_builder_new(store, NULL);
    gpuc_image_builder_set_base(builder, image);
    gpuc_image_builder_set_cancel(builder, cancel);
    gpuc_image_builder_label(builder, "level", "two");
    again = gpuc_image_builder_commit(builder, "hello:3", &error);
    CHECK_NO_ERROR(error);
    CHECK(strstr(gpuc_image_config_json(again), "\"level\":\"two\"") != NULL);
    gpuc_image_free(again);
    gpuc_cancel_switch(cancel);
    CHECK(gpuc_image_builder_commit(builder, "hello:4", &error) == NULL);
    expect(error, GPUC_ERROR_CANCELLED, "cancel");
    gpuc_image_builder_free(builder);
    gpuc_cancel_free(cancel);
    gpuc_image_free(image);

    /* What a setter could not use is said by the call that uses it, the first such thing. */
    builder = gpuc_image_builder_new(store, NULL);
    gpuc_image_builder_env(builder, "BAD", "\xff");
    gpuc_image_builder_set_user(builder, NULL);
    CHECK(gpuc_image_builder_commit(builder, "bad", &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "value is not UTF-8");
    gpuc_image_builder_free(builder);
    CHECK(gpuc_image_builder_new(NULL, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "store is NULL");
}

static void find(const gpuc_image_store_t *store) {
    gpuc_error_t *error;
    gpuc_image_t *image = gpuc_image_store_get(store, "hello:1", &error);
    CHECK_NO_ERROR(error);
    gpuc_image_t *tagged = gpuc_image_store_tag(store, image, "other:latest", &error);
    CHECK_NO_ERROR(error);
    CHECK(strcmp(gpuc_image_id(image), gpuc_image_id(tagged)) == 0);
    gpuc_image_free(tagged);
    gpuc_image_free(image);

    gpuc_images_t *images = gpuc_image_store_list(store, &error);
    CHECK_NO_ERROR(error);
    CHECK(gpuc_images_count(images) == 4);
    CHECK(strstr(gpuc_image_reference(gpuc_images_at(images, 0)), "hello:1") != NULL);
    CHECK(gpuc_images_at(images, 4) == NULL);
    gpuc_images_free(images);

    CHECK(gpuc_image_store_get(store, "nothing", &error) == NULL);
    expect(error, GPUC_ERROR_IMAGE_NOT_FOUND, "nothing");
    CHECK(gpuc_image_store_get(store, "UPPER CASE", &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_REFERENCE, "UPPER CASE");
    CHECK(gpuc_image_store_get(store, NULL, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "reference is NULL");
}

static void import(const gpuc_image_store_t *store, const char *layout) {
    gpuc_error_t *error;
    CHECK(gpuc_image_store_import(store, "/no/such/file", NULL, &error) == NULL);
    CHECK(strcmp(gpuc_error_path(error), "/no/such/file") == 0);
    expect(error, GPUC_ERROR_NOT_FOUND, "/no/such/file");

    struct reports reports = {0, 0};
    gpuc_cancel_t *cancel = gpuc_cancel_new();
    gpuc_transfer_t *options = gpuc_transfer_new();
    gpuc_transfer_set_reference(options, "imported:1");
    gpuc_transfer_set_progress(options, on_progress, &reports);
    gpuc_transfer_set_concurrency(options, 2);
    gpuc_transfer_set_max_layer_bytes(options, 1 << 20);
    gpuc_transfer_set_cancel(options, cancel);
    gpuc_image_t *image = gpuc_image_store_import(store, layout, options, &error);
    CHECK_NO_ERROR(error);
    CHECK(reports.count > 0 && reports.imported > 0);
    CHECK(strstr(gpuc_image_reference(image), "imported:1") != NULL);
    gpuc_image_free(image);
    gpuc_cancel_switch(cancel);
    CHECK(gpuc_image_store_import(store, layout, options, &error) == NULL);
    expect(error, GPUC_ERROR_CANCELLED, "cancel");
    gpuc_transfer_free(options);
    gpuc_cancel_free(cancel);

    options = gpuc_transfer_new();
    gpuc_transfer_set_platform(options, "linux/no/such/platform");
    CHECK(gpuc_image_store_import(store, layout, options, &error) == NULL);
    gpuc_error_free(error);
    gpuc_transfer_free(options);
}

static void pull(const gpuc_image_store_t *store) {
    gpuc_error_t *error;
    gpuc_transfer_t *options = gpuc_transfer_new();
    gpuc_transfer_set_credentials(options, NULL, NULL);
    gpuc_transfer_set_plain_http(options, true);
    gpuc_transfer_set_timeout(options, 1000);
    /* Nobody listens on port 1. */
    CHECK(gpuc_image_store_pull(store, "127.0.0.1:1/nothing:1", options, &error) == NULL);
    expect(error, GPUC_ERROR_NETWORK, "127.0.0.1:1");
    gpuc_transfer_set_timeout(options, 0);
    CHECK(gpuc_image_store_pull(store, "127.0.0.1:1/nothing:1", options, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "timeout");
    gpuc_transfer_set_credentials(options, "me", NULL);
    CHECK(gpuc_image_store_pull(store, "127.0.0.1:1/nothing:1", options, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "password is NULL");
    gpuc_transfer_free(options);
    CHECK(gpuc_image_store_pull(store, NULL, NULL, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "reference is NULL");
}

/* What arrived is what was sent: it is pulled again, into the same store, under the registry's name. */
static void push(const gpuc_image_store_t *store, const char *registry) {
    gpuc_error_t *error;
    gpuc_image_t *image = gpuc_image_store_get(store, "hello:1", &error);
    CHECK_NO_ERROR(error);
    gpuc_transfer_t *options = gpuc_transfer_new();
    gpuc_transfer_set_credentials(options, NULL, NULL);
    gpuc_transfer_set_timeout(options, 30000);
    CHECK(gpuc_image_store_push(store, image, "127.0.0.1:1/nothing:1", options, &error) == NULL);
    expect(error, GPUC_ERROR_NETWORK, "127.0.0.1:1");
    CHECK(gpuc_image_store_push(store, image, NULL, options, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "reference is NULL");
    CHECK(gpuc_image_store_push(store, NULL, "127.0.0.1:1/nothing:1", options, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "image is NULL");
    if (registry == NULL) {
        printf("SKIP push: docker-registry is not installed\n");
    } else {
        char name[64];
        snprintf(name, sizeof name, "%s/team/hello:1", registry);
        struct reports reports = {0, 0};
        gpuc_transfer_set_progress(options, on_progress, &reports);
        char *digest = gpuc_image_store_push(store, image, name, options, &error);
        CHECK_NO_ERROR(error);
        CHECK(strncmp(digest, "sha256:", 7) == 0 && reports.count > 0);
        gpuc_image_t *pulled = gpuc_image_store_pull(store, name, options, &error);
        CHECK_NO_ERROR(error);
        CHECK(strcmp(gpuc_image_id(pulled), gpuc_image_id(image)) == 0);
        CHECK(strcmp(gpuc_image_manifest_digest(pulled), digest) == 0);
        gpuc_image_free(pulled);
        gpuc_string_free(digest);
        CHECK(gpuc_image_store_remove(store, name, &error) == 0);
    }
    gpuc_transfer_set_platform(options, "linux/arm64");
    CHECK(gpuc_image_store_push(store, image, "127.0.0.1:1/nothing:1", options, &error) == NULL);
    expect(error, GPUC_ERROR_INVALID_ARGUMENT, "platform");
    gpuc_transfer_free(options);
    gpuc_image_free(image);
}

static void forget(const gpuc_image_store_t *store) {
    gpuc_error_t *error;
    const char *const names[] = {"hello:1", "hello:2", "hello:3", "other", "imported:1"};
    for (size_t at = 0; at < sizeof names / sizeof names[0]; at++) {
        CHECK(gpuc_image_store_remove(store, names[at], &error) == 0);
        CHECK_NO_ERROR(error);
    }
    CHECK(gpuc_image_store_remove(store, "hello:1", &error) == -1);
    expect(error, GPUC_ERROR_IMAGE_NOT_FOUND, "hello:1");
    uint64_t layers = 0;
    uint64_t blobs = 0;
    CHECK(gpuc_image_store_collect_garbage(store, &layers, &blobs, &error) == 0);
    CHECK_NO_ERROR(error);
    CHECK(layers == 2 && blobs >= 6);
    CHECK(gpuc_image_store_collect_garbage(store, NULL, NULL, NULL) == 0);
}

int main(void) {
    const char *layout = getenv("GPUC_TEST_LAYOUT");
    CHECK(layout != NULL);
    char directory[] = "/tmp/gpuc-c-images-XXXXXX";
    CHECK(mkdtemp(directory) != NULL);
    int before = open_descriptors();

    gpuc_error_t *error;
    gpuc_image_store_t *store = gpuc_image_store_open(directory, &error);
    CHECK_NO_ERROR(error);
    CHECK(strcmp(gpuc_image_store_path(store), directory) == 0);
    build(store);
    find(store);
    import(store, layout);
    pull(store);
    push(store, getenv("GPUC_TEST_REGISTRY"));
    forget(store);
    gpuc_image_store_free(store);

    CHECK(open_descriptors() == before);
    CHECK(nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0);
    return 0;
}
