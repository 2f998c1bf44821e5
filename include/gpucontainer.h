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
 * Why a call failed.
 */
typedef struct gpuc_error_t gpuc_error_t;

/**
 * What this host can do for the user who asked; a snapshot. Any number of threads may use it at once.
 */
typedef struct gpuc_host_t gpuc_host_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

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
 * The version of the library that is running, as in `"0.1.0"`.
 *
 * The macros `GPUC_VERSION_MAJOR`, `GPUC_VERSION_MINOR` and `GPUC_VERSION_PATCH` are those of the
 * header that a program was compiled with.
 *
 * @return a string that lives as long as the process; never free it.
 */
const char *gpuc_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* GPUCONTAINER_H */
