/*
 * gpucontainer: GPU containers as a function call.
 *
 * This file is generated from gpucontainer-ffi/src by the tests of that crate.
 *
 * - A function that can fail takes `gpuc_error_t **error` last. It may be NULL. On failure the
 *   function returns NULL or -1 and sets *error, which the caller frees with gpuc_error_free; on
 *   success it sets *error to NULL.
 * - Objects are opaque. What a function returns as a pointer without const belongs to the caller and
 *   is freed with the function whose name ends in _free. A pointer to const belongs to the object it
 *   was asked of and lives as long as that.
 * - NULL where an object is wanted is an error, never a crash.
 * - Setters return nothing. One that is given something unusable, as NULL or text that is not UTF-8, makes
 *   the call fail that later uses the object.
 * - Strings end with a zero byte and are copied. Paths may have any encoding, all else is UTF-8.
 * - Objects may be used from any thread, one call at a time for each object unless its own comment
 *   says otherwise. No object may be used in a child made by fork().
 */

#ifndef GPUCONTAINER_H
#define GPUCONTAINER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GPUC_VERSION_MAJOR 0
#define GPUC_VERSION_MINOR 1
#define GPUC_VERSION_PATCH 0

/**
 * What went wrong, in one word that a program can act on. Later versions add numbers and change none.
 */
typedef enum {
    /**
     * A kind that this header does not know.
     */
    GPUC_ERROR_UNKNOWN = 0,
    /**
     * A bug of the library itself.
     */
    GPUC_ERROR_INTERNAL = 1,
    /**
     * A value given by the caller cannot be used; nothing was changed.
     */
    GPUC_ERROR_INVALID_ARGUMENT = 2,
    /**
     * An image reference that does not follow the grammar.
     */
    GPUC_ERROR_INVALID_REFERENCE = 3,
    /**
     * No such image, here or in its registry.
     */
    GPUC_ERROR_IMAGE_NOT_FOUND = 4,
    /**
     * An image's manifest, index or configuration is malformed or not for this platform.
     */
    GPUC_ERROR_INVALID_IMAGE = 5,
    /**
     * A layer whose archive is malformed, truncated, too large, or tries to leave its directory.
     */
    GPUC_ERROR_INVALID_LAYER = 6,
    /**
     * Bytes that do not have the digest or the size that was promised for them.
     */
    GPUC_ERROR_DIGEST_MISMATCH = 7,
    /**
     * The registry refused the credentials, or wants some.
     */
    GPUC_ERROR_AUTHENTICATION = 8,
    /**
     * The registry could not be reached, or the connection broke.
     */
    GPUC_ERROR_NETWORK = 9,
    /**
     * The registry answered something that its protocol does not allow.
     */
    GPUC_ERROR_REGISTRY = 10,
    /**
     * The command does not exist inside the container, or is no executable file there.
     */
    GPUC_ERROR_COMMAND_NOT_FOUND = 11,
    /**
     * The user or group does not exist inside the container.
     */
    GPUC_ERROR_USER_NOT_FOUND = 12,
    /**
     * The working directory does not exist inside the container, or leads outside of it.
     */
    GPUC_ERROR_WORKING_DIRECTORY_NOT_FOUND = 13,
    /**
     * Something else that was named does not exist.
     */
    GPUC_ERROR_NOT_FOUND = 14,
    /**
     * Something of that name exists already.
     */
    GPUC_ERROR_ALREADY_EXISTS = 15,
    /**
     * A resource limit could not be applied.
     */
    GPUC_ERROR_LIMIT_NOT_APPLIED = 16,
    /**
     * The host port is taken.
     */
    GPUC_ERROR_PORT_IN_USE = 17,
    /**
     * No GPU, or not the GPUs that were asked for; the message says why.
     */
    GPUC_ERROR_GPU_UNAVAILABLE = 18,
    /**
     * The process lacks a privilege.
     */
    GPUC_ERROR_PERMISSION_DENIED = 19,
    /**
     * The file system or a quota is full.
     */
    GPUC_ERROR_NO_SPACE = 20,
    /**
     * This host, its kernel or its configuration lacks something; the message names it.
     */
    GPUC_ERROR_UNSUPPORTED = 21,
    /**
     * The thing is in use.
     */
    GPUC_ERROR_BUSY = 22,
    /**
     * The thing has ended already, or was closed.
     */
    GPUC_ERROR_CLOSED = 23,
    /**
     * The caller cancelled the work.
     */
    GPUC_ERROR_CANCELLED = 24,
    /**
     * The time that the caller allowed has passed.
     */
    GPUC_ERROR_TIMED_OUT = 25,
    /**
     * Data of the library's own is damaged.
     */
    GPUC_ERROR_CORRUPT = 26,
    /**
     * A system call failed for a reason that no other kind names; see gpuc_error_errno.
     */
    GPUC_ERROR_SYSTEM_CALL = 27,
} gpuc_error_kind_t;

/**
 * What is being done with an item of a transfer.
 */
typedef enum {
    /**
     * A phase that this header does not know.
     */
    GPUC_PHASE_UNKNOWN = 0,
    /**
     * Waiting for another process that works on the same item.
     */
    GPUC_PHASE_WAITING = 1,
    /**
     * Downloaded, checked and unpacked, all in one stream.
     */
    GPUC_PHASE_PULLING = 2,
    /**
     * Read from a local archive or directory, checked and unpacked.
     */
    GPUC_PHASE_IMPORTING = 3,
    /**
     * Ready.
     */
    GPUC_PHASE_DONE = 4,
    /**
     * It was in the store already.
     */
    GPUC_PHASE_PRESENT = 5,
} gpuc_phase_t;

/**
 * A switch that ends long work early with GPUC_ERROR_CANCELLED. Any number of threads may use it at once.
 */
typedef struct gpuc_cancel_t gpuc_cancel_t;

/**
 * Why a call failed.
 */
typedef struct gpuc_error_t gpuc_error_t;

/**
 * What this host can do for the user who asked; a snapshot. Any number of threads may use it at once.
 */
typedef struct gpuc_host_t gpuc_host_t;

/**
 * An image in a store. While it lives, garbage collection leaves it alone. Any number of threads may use it.
 */
typedef struct gpuc_image_t gpuc_image_t;

/**
 * What to build. A setter that is given something unusable makes gpuc_image_builder_commit fail.
 */
typedef struct gpuc_image_builder_t gpuc_image_builder_t;

/**
 * A directory with images, which any number of processes and threads may use at the same time.
 */
typedef struct gpuc_image_store_t gpuc_image_store_t;

/**
 * A list of images.
 */
typedef struct gpuc_images_t gpuc_images_t;

/**
 * How to pull or import an image. A setter that is given something unusable makes the transfer fail.
 */
typedef struct gpuc_transfer_t gpuc_transfer_t;

/**
 * A report of a transfer: the item, for example a layer's digest; the bytes done so far, and in all, 0 if
 * that is not known. Called from threads of the library, one call at a time. `item` lives as long as the
 * call.
 */
typedef void (*gpuc_progress_t)(void *context,
                                const char *item,
                                gpuc_phase_t phase,
                                uint64_t bytes,
                                uint64_t total);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library that is running, as in `"0.1.0"`.
 *
 * The macros `GPUC_VERSION_MAJOR`, `GPUC_VERSION_MINOR` and `GPUC_VERSION_PATCH` are those of the
 * header that a program was compiled with.
 *
 * @return a string that lives as long as the process; never free it.
 */
const char *gpuc_version(void);

/**
 * What went wrong, to act on.
 *
 * @param error  may be NULL, which is GPUC_ERROR_UNKNOWN
 */
gpuc_error_kind_t gpuc_error_kind(const gpuc_error_t *error);

/**
 * The number of the system call that failed, as errno(3) has it, or 0 if none did.
 *
 * @param error  may be NULL, which is 0
 */
int gpuc_error_errno(const gpuc_error_t *error);

/**
 * What was wanted, which call failed, on what, and why: one line for people.
 *
 * @param error  may be NULL, which is an empty string
 * @return a string that lives as long as the error
 */
const char *gpuc_error_message(const gpuc_error_t *error);

/**
 * The file that the error is about. It need not be valid in any encoding.
 *
 * @param error  may be NULL
 * @return a string that lives as long as the error, or NULL if it is about none
 */
const char *gpuc_error_path(const gpuc_error_t *error);

/**
 * Frees an error.
 *
 * @param error  may be NULL
 */
void gpuc_error_free(gpuc_error_t *error);

/**
 * Looks at everything that matters to a container. Changes nothing.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_host_free; NULL on failure
 */
gpuc_host_t *gpuc_host_probe(gpuc_error_t **error);

/**
 * Whether the host has a capability, as in "user-namespaces". The names are those that gpuc_host_text shows.
 *
 * @param host  may be NULL, which has none
 * @param name  may be NULL, which no host has
 */
bool gpuc_host_has(const gpuc_host_t *host,
                   const char *name);

/**
 * How many GPUs the host has, split ones counted once.
 *
 * @param host  may be NULL, which has none
 */
size_t gpuc_host_gpu_count(const gpuc_host_t *host);

/**
 * A table for people: one line for each capability and each GPU.
 *
 * @param host  may be NULL, which is an empty string
 * @return a string that lives as long as the object
 */
const char *gpuc_host_text(const gpuc_host_t *host);

/**
 * Everything as one JSON object.
 *
 * @param host  may be NULL, which is an empty string
 * @return a string that lives as long as the object
 */
const char *gpuc_host_json(const gpuc_host_t *host);

/**
 * Frees what gpuc_host_probe returned.
 *
 * @param host  may be NULL
 */
void gpuc_host_free(gpuc_host_t *host);

/**
 * Makes a switch that is off.
 *
 * @return the caller's, freed with gpuc_cancel_free
 */
gpuc_cancel_t *gpuc_cancel_new(void);

/**
 * Ends the work that was given this switch. May be called from any thread and from a signal handler.
 *
 * @param cancel  may be NULL
 */
void gpuc_cancel_switch(const gpuc_cancel_t *cancel);

/**
 * Frees a switch. Work that was given it goes on.
 *
 * @param cancel  may be NULL
 */
void gpuc_cancel_free(gpuc_cancel_t *cancel);

/**
 * Makes the defaults: this host's platform, three layers at a time, at most 64 GiB in each.
 *
 * @return the caller's, freed with gpuc_transfer_free
 */
gpuc_transfer_t *gpuc_transfer_new(void);

/**
 * Sets what to call an imported image here, instead of what the archive calls it.
 */
void gpuc_transfer_set_reference(gpuc_transfer_t *transfer, const char *reference);

/**
 * Sets which image of an archive to import, if there are several: its name there, or its digest.
 */
void gpuc_transfer_set_select(gpuc_transfer_t *transfer, const char *name);

/**
 * Sets the platform, as in "linux/arm64".
 */
void gpuc_transfer_set_platform(gpuc_transfer_t *transfer, const char *platform);

/**
 * Sets what is called with what is being done. It must not call longjmp or throw.
 *
 * @param progress  NULL for nothing
 * @param context   handed to it as it is
 */
void gpuc_transfer_set_progress(gpuc_transfer_t *transfer, gpuc_progress_t progress, void *context);

/**
 * Sets the switch that ends the transfer early. The transfer keeps what it needs of it.
 *
 * @param cancel  NULL for none
 */
void gpuc_transfer_set_cancel(gpuc_transfer_t *transfer, const gpuc_cancel_t *cancel);

/**
 * Sets how many layers are worked on at a time, at least 1.
 */
void gpuc_transfer_set_concurrency(gpuc_transfer_t *transfer, size_t layers);

/**
 * Refuses a layer that unpacks to more than this.
 */
void gpuc_transfer_set_max_layer_bytes(gpuc_transfer_t *transfer, uint64_t bytes);

/**
 * Sets who is asking the registry. By default what `docker login` or `podman login` left for it, else nobody.
 *
 * @param user      NULL for nobody, also where there are credentials in the user's files
 * @param password  NULL if user is
 */
void gpuc_transfer_set_credentials(gpuc_transfer_t *transfer,
                                   const char *user,
                                   const char *password);

/**
 * Sets an identity token, which a token server exchanges for an access token.
 */
void gpuc_transfer_set_identity_token(gpuc_transfer_t *transfer, const char *token);

/**
 * Sets whether the registry is asked without encryption. By default only if it is on this machine.
 */
void gpuc_transfer_set_plain_http(gpuc_transfer_t *transfer, bool plain);

/**
 * Trusts one more certificate authority, or a few, beside those that the host trusts.
 *
 * @param pem  certificates in PEM form
 */
void gpuc_transfer_add_certificate_authority(gpuc_transfer_t *transfer, const char *pem);

/**
 * Gives up on a registry that says nothing for so long, at least 1. By default 30,000.
 */
void gpuc_transfer_set_timeout(gpuc_transfer_t *transfer, uint64_t milliseconds);

/**
 * Frees options.
 *
 * @param transfer  may be NULL
 */
void gpuc_transfer_free(gpuc_transfer_t *transfer);

/**
 * Opens the store at a path, made if there is none. What processes that died left unfinished in it is
 * removed.
 *
 * @param path   NULL for the user's default, which gpuc_image_store_path then tells
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_image_store_free; NULL on failure
 */
gpuc_image_store_t *gpuc_image_store_open(const char *path,
                                          gpuc_error_t **error);

/**
 * Where the store is.
 *
 * @param store  may be NULL, which is an empty string
 * @return a string that lives as long as the object
 */
const char *gpuc_image_store_path(const gpuc_image_store_t *store);

/**
 * Frees a store object. The store stays on disk.
 *
 * @param store  may be NULL
 */
void gpuc_image_store_free(gpuc_image_store_t *store);

/**
 * The image that a reference stands for here. No registry is asked.
 *
 * @param error  may be NULL; GPUC_ERROR_IMAGE_NOT_FOUND if there is none
 * @return the caller's, freed with gpuc_image_free; NULL on failure
 */
gpuc_image_t *gpuc_image_store_get(const gpuc_image_store_t *store,
                                   const char *reference,
                                   gpuc_error_t **error);

/**
 * All images, one for each reference, in the order of their references.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_images_free; NULL on failure
 */
gpuc_images_t *gpuc_image_store_list(const gpuc_image_store_t *store, gpuc_error_t **error);

/**
 * Pulls an image from its registry, and names it here as it is named there. Layers that are here already
 * are not fetched again.
 *
 * @param options  NULL for the defaults
 * @param error    may be NULL
 * @return the caller's, freed with gpuc_image_free; NULL on failure
 */
gpuc_image_t *gpuc_image_store_pull(const gpuc_image_store_t *store,
                                    const char *reference,
                                    const gpuc_transfer_t *options,
                                    gpuc_error_t **error);

/**
 * Imports an image from an OCI layout directory, an archive of one, or what `docker save` writes.
 *
 * @param options  NULL for the defaults
 * @param error    may be NULL
 * @return the caller's, freed with gpuc_image_free; NULL on failure, and the store is as before
 */
gpuc_image_t *gpuc_image_store_import(const gpuc_image_store_t *store,
                                      const char *path,
                                      const gpuc_transfer_t *options,
                                      gpuc_error_t **error);

/**
 * Forgets a reference. The data goes with the next gpuc_image_store_collect_garbage, unless another
 * reference, a living object or a running container has it too.
 *
 * @param error  may be NULL
 * @return 0, or -1 on failure
 */
int gpuc_image_store_remove(const gpuc_image_store_t *store,
                            const char *reference,
                            gpuc_error_t **error);

/**
 * Gives an image one more name, or moves the name to it.
 *
 * @param error  may be NULL
 * @return the image under that name, the caller's, freed with gpuc_image_free; NULL on failure
 */
gpuc_image_t *gpuc_image_store_tag(const gpuc_image_store_t *store,
                                   const gpuc_image_t *image,
                                   const char *reference,
                                   gpuc_error_t **error);

/**
 * Removes what no reference and no living object leads to. Waits for pulls, imports and builds under way.
 *
 * @param layers  set to how many layers were removed; may be NULL
 * @param blobs   set to how many manifests and configurations were removed; may be NULL
 * @param error   may be NULL
 * @return 0, or -1 on failure
 */
int gpuc_image_store_collect_garbage(const gpuc_image_store_t *store,
                                     uint64_t *layers,
                                     uint64_t *blobs,
                                     gpuc_error_t **error);

/**
 * How many images are in a list.
 *
 * @param images  may be NULL, which has none
 */
size_t gpuc_images_count(const gpuc_images_t *images);

/**
 * An image of a list.
 *
 * @param images  may be NULL
 * @return the list's, never freed; NULL beyond its end
 */
const gpuc_image_t *gpuc_images_at(const gpuc_images_t *images, size_t index);

/**
 * Frees a list and its images.
 *
 * @param images  may be NULL
 */
void gpuc_images_free(gpuc_images_t *images);

/**
 * The name under which the image was asked for, in full.
 *
 * @param image  may be NULL, which is an empty string
 * @return a string that lives as long as the image
 */
const char *gpuc_image_reference(const gpuc_image_t *image);

/**
 * The digest of the image's configuration: the same for the same content, wherever it came from.
 *
 * @param image  may be NULL, which is an empty string
 * @return a string that lives as long as the image
 */
const char *gpuc_image_id(const gpuc_image_t *image);

/**
 * The digest of the manifest of the image's platform.
 *
 * @param image  may be NULL, which is an empty string
 * @return a string that lives as long as the image
 */
const char *gpuc_image_manifest_digest(const gpuc_image_t *image);

/**
 * What the image says about how to run it, as one JSON object: entrypoint, command, env, user, working_dir,
 * exposed_ports, labels, volumes, stop_signal, architecture, os, created.
 *
 * @param image  may be NULL, which is an empty string
 * @return a string that lives as long as the image
 */
const char *gpuc_image_config_json(const gpuc_image_t *image);

/**
 * Frees an image object. The image stays in the store.
 *
 * @param image  may be NULL
 */
void gpuc_image_free(gpuc_image_t *image);

/**
 * Starts an image from nothing, for this host's platform.
 *
 * The same files and settings give the same image, bit by bit, on every host.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_image_builder_free; NULL on failure
 */
gpuc_image_builder_t *gpuc_image_builder_new(const gpuc_image_store_t *store, gpuc_error_t **error);

/**
 * Starts from the layers and the configuration of an image of the same store.
 */
void gpuc_image_builder_set_base(gpuc_image_builder_t *builder, const gpuc_image_t *image);

/**
 * Copies a file or the contents of a directory of the host into the container. Permission bits are kept;
 * links below host_path stay links.
 */
void gpuc_image_builder_copy(gpuc_image_builder_t *builder,
                             const char *host_path,
                             const char *container_path);

/**
 * As gpuc_image_builder_copy, but links are replaced by what they lead to.
 */
void gpuc_image_builder_copy_following_links(gpuc_image_builder_t *builder,
                                             const char *host_path,
                                             const char *container_path);

/**
 * Adds a file with these bytes and permission bits, for example 0644.
 *
 * @param bytes  may be NULL if length is 0
 */
void gpuc_image_builder_file(gpuc_image_builder_t *builder,
                             const char *container_path,
                             const void *bytes,
                             size_t length,
                             uint32_t mode);

/**
 * Adds a directory with these permission bits; those above it are made as needed.
 */
void gpuc_image_builder_directory(gpuc_image_builder_t *builder,
                                  const char *container_path,
                                  uint32_t mode);

/**
 * Adds a symbolic link at container_path that says target.
 */
void gpuc_image_builder_symlink(gpuc_image_builder_t *builder,
                                const char *target,
                                const char *container_path);

/**
 * Sets an environment variable.
 */
void gpuc_image_builder_env(gpuc_image_builder_t *builder, const char *name, const char *value);

/**
 * Sets the program and its first arguments. A command of the base is dropped.
 *
 * @param arguments  strings, and NULL after the last
 */
void gpuc_image_builder_set_entrypoint(gpuc_image_builder_t *builder, const char *const *arguments);

/**
 * Sets the default command, or the arguments of the entrypoint if there is one.
 *
 * @param arguments  strings, and NULL after the last
 */
void gpuc_image_builder_set_command(gpuc_image_builder_t *builder, const char *const *arguments);

/**
 * Sets the user, and the group after a colon, by name or by number.
 */
void gpuc_image_builder_set_user(gpuc_image_builder_t *builder, const char *user);

/**
 * Sets the directory where the program starts: an absolute path.
 */
void gpuc_image_builder_set_working_dir(gpuc_image_builder_t *builder, const char *path);

/**
 * Sets the signal that asks the program to end, as in "SIGINT".
 */
void gpuc_image_builder_set_stop_signal(gpuc_image_builder_t *builder, const char *signal);

/**
 * Notes that the program expects to write to this directory: an absolute path.
 */
void gpuc_image_builder_volume(gpuc_image_builder_t *builder, const char *path);

/**
 * Sets a label.
 */
void gpuc_image_builder_label(gpuc_image_builder_t *builder, const char *name, const char *value);

/**
 * Notes that the program listens on this TCP port. It is published only by who runs the image.
 */
void gpuc_image_builder_expose(gpuc_image_builder_t *builder, uint16_t port);

/**
 * Sets the time of the image and of all files in it, in seconds since the start of 1970.
 */
void gpuc_image_builder_set_created(gpuc_image_builder_t *builder, uint64_t seconds);

/**
 * Sets the switch that ends the build early.
 */
void gpuc_image_builder_set_cancel(gpuc_image_builder_t *builder, const gpuc_cancel_t *cancel);

/**
 * Makes the image and names it. The builder can be used again.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_image_free; NULL on failure, and the store is as before
 */
gpuc_image_t *gpuc_image_builder_commit(const gpuc_image_builder_t *builder,
                                        const char *reference,
                                        gpuc_error_t **error);

/**
 * Frees a builder.
 *
 * @param builder  may be NULL
 */
void gpuc_image_builder_free(gpuc_image_builder_t *builder);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* GPUCONTAINER_H */
