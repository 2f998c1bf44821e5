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
 *   says otherwise. In a child made by fork() the objects of its parent may only be freed or closed,
 *   which changes nothing for the parent; the child can make objects of its own.
 * - What can be waited for has a descriptor to poll: sandboxes and processes become readable when they
 *   have ended (gpuc_sandbox_fd, gpuc_process_fd), places in the queue for GPUs when it is time to look
 *   (gpuc_gpu_ticket_fd), watches for XIDs when there is one (gpuc_xid_watch_fd), and piped streams are
 *   pipes; everything else does its work in the call.
 * - The library installs no signal handler and changes no signal mask (gpuc_enter alone does, when it
 *   does not return). It leaves threads running for three things, with all signals blocked: one that
 *   relays published ports and services of the host, as long as there are any; one for each watch for
 *   XIDs whose descriptor was asked for; and one that closes a socket of the packet filter when a network
 *   or a translated port has ended, which takes some milliseconds.
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
 * How much an event matters.
 */
typedef enum {
    /**
     * Something does not work any more.
     */
    GPUC_LOG_ERROR = 1,
    /**
     * Something went wrong that no call could return.
     */
    GPUC_LOG_WARN = 2,
    /**
     * What a person who runs the program wants to know.
     */
    GPUC_LOG_INFO = 3,
    /**
     * What a person wants to know who looks for a fault.
     */
    GPUC_LOG_DEBUG = 4,
    /**
     * All.
     */
    GPUC_LOG_TRACE = 5,
} gpuc_log_level_t;

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
     * It was there already: in the store, or in the registry.
     */
    GPUC_PHASE_PRESENT = 5,
    /**
     * Written again from the store and compressed, before it is pushed. The bytes are those read.
     */
    GPUC_PHASE_COMPRESSING = 6,
    /**
     * Sent to a registry.
     */
    GPUC_PHASE_PUSHING = 7,
} gpuc_phase_t;

/**
 * What came of gpuc_mig_devices_set_mode.
 */
typedef enum {
    /**
     * The GPU was in that mode.
     */
    GPUC_MIG_MODE_UNCHANGED = 0,
    /**
     * The GPU is in that mode now.
     */
    GPUC_MIG_MODE_CHANGED = 1,
    /**
     * The GPU will be in that mode after its next reset, which nothing here does.
     */
    GPUC_MIG_MODE_NEEDS_RESET = 2,
} gpuc_mig_mode_change_t;

/**
 * Flags of a mount, joined by |.
 */
typedef enum {
    /**
     * Read-only, and with it everything mounted below it.
     */
    GPUC_MOUNT_READ_ONLY = 1,
    /**
     * Without what is mounted below the source.
     */
    GPUC_MOUNT_NOT_RECURSIVE = 2,
    /**
     * Files of it cannot be executed.
     */
    GPUC_MOUNT_NO_EXECUTE = 4,
    /**
     * Later mounts travel from the host into the sandbox.
     */
    GPUC_MOUNT_SLAVE = 8,
    /**
     * Later mounts travel both ways.
     */
    GPUC_MOUNT_SHARED = 16,
} gpuc_mount_t;

/**
 * How clients of a published port reach the program in the container.
 */
typedef enum {
    /**
     * Whatever costs least.
     */
    GPUC_PORT_MODE_AUTO = 0,
    /**
     * The program finds the host's socket among its descriptors, as LISTEN_FDS says.
     */
    GPUC_PORT_MODE_HAND_OVER = 1,
    /**
     * The program's bind() is answered with a socket of the host.
     */
    GPUC_PORT_MODE_INJECT = 2,
    /**
     * One thread of this process passes everything on.
     */
    GPUC_PORT_MODE_RELAY = 3,
    /**
     * The kernel rewrites addresses on their way; for root, and containers in a network that the host has a route to, such
     * as a private one. The program listens on its address there. Clients on loopback addresses are relayed. Rules of the
     * host's for its own services do not apply.
     */
    GPUC_PORT_MODE_NAT = 4,
} gpuc_port_mode_t;

/**
 * The transport protocol of a port.
 */
typedef enum {
    /**
     * Streams.
     */
    GPUC_PROTOCOL_TCP = 0,
    /**
     * Datagrams.
     */
    GPUC_PROTOCOL_UDP = 1,
} gpuc_protocol_t;

/**
 * How a program learns who its clients are, when they are relayed.
 */
typedef enum {
    /**
     * Not at all: they come from the container's own loopback address.
     */
    GPUC_SOURCE_ADDRESS_LOOPBACK = 0,
    /**
     * They come from their own addresses.
     */
    GPUC_SOURCE_ADDRESS_KEEP = 1,
    /**
     * Each connection begins with a header of the PROXY protocol, version 2.
     */
    GPUC_SOURCE_ADDRESS_PROXY_V2 = 2,
} gpuc_source_address_t;

/**
 * What one of standard input, output and error is.
 */
typedef enum {
    /**
     * That of the host process.
     */
    GPUC_STDIO_INHERIT = 0,
    /**
     * The null device.
     */
    GPUC_STDIO_NULL = 1,
    /**
     * A pipe to the host process.
     */
    GPUC_STDIO_PIPED = 2,
} gpuc_stdio_t;

/**
 * A switch that ends long work early with GPUC_ERROR_CANCELLED. Any number of threads may use it at once.
 */
typedef struct gpuc_cancel_t gpuc_cancel_t;

/**
 * What a process wrote, and how it ended.
 */
typedef struct gpuc_output_t gpuc_output_t;

/**
 * What a sandbox is to be. A setter that is given something unusable makes gpuc_sandbox_spawn fail.
 */
typedef struct gpuc_config_t gpuc_config_t;

/**
 * Why a call failed.
 */
typedef struct gpuc_error_t gpuc_error_t;

/**
 * A further process in a sandbox, to be. A setter that is given something unusable makes gpuc_exec_spawn fail.
 */
typedef struct gpuc_exec_t gpuc_exec_t;

/**
 * Services of the host that can be reached in a network namespace. Any number of threads may use it at once.
 */
typedef struct gpuc_exposed_services_t gpuc_exposed_services_t;

/**
 * Gives out GPUs of this host, so that nobody else who asks an allocator of the same directory gets the same:
 * whichever process, thread or user it is. Holds nothing open. Any number of threads may use it at once, but for its
 * setters.
 */
typedef struct gpuc_gpu_allocator_t gpuc_gpu_allocator_t;

/**
 * What a sandbox has for some of its GPUs: nodes, files of the driver, variables. A copy, which changes with nothing.
 */
typedef struct gpuc_gpu_grant_t gpuc_gpu_grant_t;

/**
 * GPUs that are the holder's, until this is freed and every sandbox that was started with it, or given it, has ended.
 */
typedef struct gpuc_gpu_lease_t gpuc_gpu_lease_t;

/**
 * Which GPUs, and which parts of the driver with them. A setter that is given something unusable makes the call
 * fail that later uses the request.
 */
typedef struct gpuc_gpu_request_t gpuc_gpu_request_t;

/**
 * A place in the queue for GPUs, which is kept between waits.
 */
typedef struct gpuc_gpu_ticket_t gpuc_gpu_ticket_t;

/**
 * What this host can do for the user who asked; a snapshot. Any number of threads may use it at once.
 */
typedef struct gpuc_host_t gpuc_host_t;

/**
 * A service of the host that is wanted inside.
 */
typedef struct gpuc_host_service_t gpuc_host_service_t;

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
 * What processes in a sandbox may use at most.
 */
typedef struct gpuc_limits_t gpuc_limits_t;

/**
 * A port of a container that is wanted on the host, or as many consecutive ones.
 */
typedef struct gpuc_port_mapping_t gpuc_port_mapping_t;

/**
 * The MIG devices of the host, as this library makes and destroys them. Any number of threads may use it at once.
 *
 * An allocator does not know of leases that are taken here, nor are its known here: on one host take them from one of
 * the two.
 */
typedef struct gpuc_mig_devices_t gpuc_mig_devices_t;

/**
 * A MIG device that is the holder's, until this is freed.
 */
typedef struct gpuc_mig_lease_t gpuc_mig_lease_t;

/**
 * A network namespace in a private network.
 */
typedef struct gpuc_network_member_t gpuc_network_member_t;

/**
 * A network namespace to connect into, and to lead ports and services into. The calling process must be privileged over
 * it. Any number of threads may use it at once.
 */
typedef struct gpuc_network_namespace_t gpuc_network_namespace_t;

/**
 * A network of containers of this host, which reach each other by address and by name, and the outside through the
 * host's addresses. It exists as long as somebody is in it. Needs privileges.
 */
typedef struct gpuc_private_network_t gpuc_private_network_t;

/**
 * A further process in a sandbox. Any number of threads may use it at once.
 */
typedef struct gpuc_process_t gpuc_process_t;

/**
 * Ports of the host that lead into a container. Any number of threads may use it at once.
 */
typedef struct gpuc_published_t gpuc_published_t;

/**
 * Ports of the host that are taken and not yet joined to a container.
 */
typedef struct gpuc_reservation_t gpuc_reservation_t;

/**
 * A running application in namespaces, a root file system and limits of its own. Any number of threads may
 * use it at once.
 */
typedef struct gpuc_sandbox_t gpuc_sandbox_t;

/**
 * How to pull, import or push an image. A setter that is given something unusable makes the transfer fail.
 */
typedef struct gpuc_transfer_t gpuc_transfer_t;

/**
 * An XID that the driver reported.
 */
typedef struct gpuc_xid_event_t gpuc_xid_event_t;

/**
 * Watches GPUs for XIDs, the driver's error reports. It has no thread, and nothing is seen but in gpuc_xid_watch_next,
 * unless gpuc_xid_watch_fd was called.
 *
 * The driver's management library stays loaded as long as this lives; it must not be used after a fork.
 */
typedef struct gpuc_xid_watch_t gpuc_xid_watch_t;

/**
 * An event: a line of text without an end of line, which lives as long as the call.
 */
typedef void (*gpuc_log_t)(void *context, gpuc_log_level_t level, const char *message);

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

/**
 * How a process ended.
 */
typedef struct {
    /**
     * The exit code, or -1 if a signal killed it.
     */
    int code;
    /**
     * The signal that killed it, or 0.
     */
    int signal;
    /**
     * Whether something in the sandbox was killed because it was at its memory limit.
     */
    bool oom_killed;
} gpuc_exit_status_t;

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
 * Gives events of the library up to a level to a function, in the place of the one before; NULL is nobody. What calls
 * return they return as always: events are what happens beside that, as when something cannot be cleaned up.
 *
 * The function is called by the thread to which an event happens, which may be one of the library's own, by several
 * threads at once, and should return soon. It may not call this function. When this function returns, the one before is
 * not being called any more. In a program in Rust that collects events of `tracing` itself there is nothing to hear.
 *
 * @param level    of gpuc_log_level_t
 * @param log      may be NULL
 * @param context  handed to the function
 * @param error    may be NULL
 * @return 0, or -1 on failure
 */
int gpuc_set_log(uint32_t level,
                 gpuc_log_t log,
                 void *context,
                 gpuc_error_t **error);

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
 * Pushes an image of the store to the registry, repository and tag of `reference`. Layers that the registry has are not
 * sent; others are written again from the store and compressed, so the manifest may get another digest than
 * gpuc_image_manifest_digest says.
 *
 * @param options  NULL for the defaults; a reference, an image to select, a platform or a largest layer in them is an error
 * @param error    may be NULL
 * @return the digest of the manifest in the registry, the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_image_store_push(const gpuc_image_store_t *store,
                            const gpuc_image_t *image,
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
 * As gpuc_image_store_collect_garbage, until the switch is thrown: what was removed by then stays removed.
 *
 * @param cancel  may be NULL
 * @param layers  set to how many layers were removed; may be NULL
 * @param blobs   set to how many manifests and configurations were removed; may be NULL
 * @param error   may be NULL
 * @return 0, or -1 on failure
 */
int gpuc_image_store_collect_garbage_cancellable(const gpuc_image_store_t *store,
                                                 const gpuc_cancel_t *cancel,
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

/**
 * Makes no limits.
 *
 * @return the caller's, freed with gpuc_limits_free
 */
gpuc_limits_t *gpuc_limits_new(void);

/**
 * Caps memory, page cache included; swap is not counted.
 */
void gpuc_limits_set_memory_max(gpuc_limits_t *limits, uint64_t bytes);

/**
 * Caps swap.
 */
void gpuc_limits_set_memory_swap_max(gpuc_limits_t *limits, uint64_t bytes);

/**
 * Slows processes down that use more memory than this.
 */
void gpuc_limits_set_memory_high(gpuc_limits_t *limits, uint64_t bytes);

/**
 * Protects so much memory from being reclaimed.
 */
void gpuc_limits_set_memory_low(gpuc_limits_t *limits, uint64_t bytes);

/**
 * Caps processor time at that of so many cores, for example 1.5.
 */
void gpuc_limits_set_cpus(gpuc_limits_t *limits, double cores);

/**
 * Sets the share of processor time when it is short, 1 to 10,000; 100 is normal.
 */
void gpuc_limits_set_cpu_weight(gpuc_limits_t *limits, uint64_t weight);

/**
 * Sets the processors that may be used, as in "0-3,8".
 */
void gpuc_limits_set_cpuset_cpus(gpuc_limits_t *limits, const char *list);

/**
 * Sets the memory nodes that may be used, as in "0-1".
 */
void gpuc_limits_set_cpuset_mems(gpuc_limits_t *limits, const char *list);

/**
 * Caps the number of processes and threads.
 */
void gpuc_limits_set_pids_max(gpuc_limits_t *limits, uint64_t count);

/**
 * Sets the share of block devices when they are busy, 1 to 10,000; 100 is normal.
 */
void gpuc_limits_set_io_weight(gpuc_limits_t *limits, uint64_t weight);

/**
 * Caps huge pages of one size, both in bytes.
 */
void gpuc_limits_set_hugetlb(gpuc_limits_t *limits, uint64_t page_size, uint64_t bytes);

/**
 * Caps the use of a block device, a whole disk, each a second; 0 caps nothing. May be called once for each device.
 */
void gpuc_limits_io(gpuc_limits_t *limits,
                    uint32_t major,
                    uint32_t minor,
                    uint64_t read_bytes,
                    uint64_t write_bytes,
                    uint64_t read_operations,
                    uint64_t write_operations);

/**
 * Writes a value into a control file of this host's version of control groups, as it stands, as in
 * "memory.oom.group" and "1".
 */
void gpuc_limits_raw(gpuc_limits_t *limits, const char *file, const char *value);

/**
 * Frees limits.
 *
 * @param limits  may be NULL
 */
void gpuc_limits_free(gpuc_limits_t *limits);

/**
 * Describes a sandbox of an image, by its reference. One that is not in the store is pulled at the start.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_config_free; NULL on failure
 */
gpuc_config_t *gpuc_config_new(const char *reference,
                               gpuc_error_t **error);

/**
 * Describes a sandbox of an image of a store.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_config_free; NULL on failure
 */
gpuc_config_t *gpuc_config_new_from_image(const gpuc_image_t *image, gpuc_error_t **error);

/**
 * Describes a sandbox whose root is a directory of the host. What is written goes into it.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_config_free; NULL on failure
 */
gpuc_config_t *gpuc_config_new_from_directory(const char *path, gpuc_error_t **error);

/**
 * Uses this store for an image given by reference. By default the user's.
 */
void gpuc_config_set_store(gpuc_config_t *config, const gpuc_image_store_t *store);

/**
 * Names the sandbox: letters, digits, '.', '_' and '-', unique among the user's.
 */
void gpuc_config_set_name(gpuc_config_t *config, const char *name);

/**
 * Says what to run, instead of the image's command. It is given to the image's entrypoint, if there is one.
 *
 * @param arguments  strings, and NULL after the last
 */
void gpuc_config_set_command(gpuc_config_t *config,
                             const char *const *arguments);

/**
 * Replaces the image's entrypoint; an empty one removes it.
 *
 * @param arguments  strings, and NULL after the last
 */
void gpuc_config_set_entrypoint(gpuc_config_t *config, const char *const *arguments);

/**
 * Sets an environment variable, over that of the image.
 */
void gpuc_config_env(gpuc_config_t *config, const char *name, const char *value);

/**
 * Sets the working directory, an absolute path that exists in the container.
 */
void gpuc_config_set_working_dir(gpuc_config_t *config, const char *path);

/**
 * Runs as this user, and group after a colon: names that the image knows, or numbers.
 */
void gpuc_config_set_user(gpuc_config_t *config, const char *user);

/**
 * Sets the host name, at most 64 bytes.
 */
void gpuc_config_set_hostname(gpuc_config_t *config, const char *name);

/**
 * Whether process 1 is the library's own, which reaps orphans and hands on signals. Yes by default.
 */
void gpuc_config_set_init(gpuc_config_t *config, bool init);

/**
 * Makes the root file system read-only. Mounts have a say of their own.
 */
void gpuc_config_set_read_only(gpuc_config_t *config, bool read_only);

/**
 * Keeps writes to the root in memory instead of on disk, at most so many bytes; 0 is the kernel's own limit.
 */
void gpuc_config_set_writable_memory(gpuc_config_t *config,
                                     uint64_t bytes);

/**
 * Sets all resource limits at once. They are copied.
 */
void gpuc_config_set_limits(gpuc_config_t *config, const gpuc_limits_t *limits);

/**
 * Caps memory, page cache included.
 */
void gpuc_config_set_memory_max(gpuc_config_t *config, uint64_t bytes);

/**
 * Caps processor time at that of so many cores, for example 1.5.
 */
void gpuc_config_set_cpus(gpuc_config_t *config, double cores);

/**
 * Caps the number of processes and threads.
 */
void gpuc_config_set_pids_max(gpuc_config_t *config, uint64_t count);

/**
 * Whether to make a control group where that is possible. Yes by default.
 */
void gpuc_config_set_cgroup(gpuc_config_t *config, bool cgroup);

/**
 * Whether the sandbox sees its own part of the control groups in /sys/fs/cgroup.
 */
void gpuc_config_set_cgroup_view(gpuc_config_t *config, bool view);

/**
 * Turns the system call filter off. By default there is one that fits the granted capabilities.
 */
void gpuc_config_set_unfiltered(gpuc_config_t *config);

/**
 * Sets the system call filter to that of a runtime bundle: the JSON text of its "seccomp" object.
 */
void gpuc_config_set_seccomp_json(gpuc_config_t *config, const char *json);

/**
 * As gpuc_config_set_seccomp_json, read from a file of the host.
 */
void gpuc_config_set_seccomp_file(gpuc_config_t *config, const char *path);

/**
 * Whether to use the host's network instead of one with nothing but loopback and published ports.
 */
void gpuc_config_set_host_network(gpuc_config_t *config, bool host);

/**
 * Makes no user namespace: root inside is root outside, with few capabilities. The default of a privileged caller.
 */
void gpuc_config_set_no_user_namespace(gpuc_config_t *config);

/**
 * Makes a user namespace in which root is the caller and no other id exists.
 */
void gpuc_config_set_user_namespace_oneself(gpuc_config_t *config);

/**
 * Makes a user namespace in which root is the caller and other ids are those of /etc/subuid and /etc/subgid.
 */
void gpuc_config_set_user_namespace_subordinate(gpuc_config_t *config);

/**
 * Makes a user namespace whose ids from 0 to count are those from first on outside. Needs privileges.
 */
void gpuc_config_set_user_namespace_shifted(gpuc_config_t *config,
                                            uint32_t first,
                                            uint32_t count);

/**
 * Makes a time namespace: the monotonic and the boot clock are moved by these nanoseconds.
 */
void gpuc_config_set_time_offsets(gpuc_config_t *config, int64_t monotonic, int64_t boottime);

/**
 * Sets the size of /dev/shm. 64 MiB by default.
 */
void gpuc_config_set_shm_size(gpuc_config_t *config, uint64_t bytes);

/**
 * Whether ports that are published later can be injected, as those can be that are published with the start.
 */
void gpuc_config_set_injectable_ports(gpuc_config_t *config,
                                      bool injectable);

/**
 * Publishes a TCP port: connections to host_port of 127.0.0.1 and ::1 reach container_port inside.
 *
 * @param host_port  0 for any free one, which gpuc_sandbox_host_port then tells
 */
void gpuc_config_publish(gpuc_config_t *config, uint16_t container_port, uint16_t host_port);

/**
 * Publishes a TCP port on another address of the host, as in "0.0.0.0" or "::1".
 */
void gpuc_config_publish_at(gpuc_config_t *config,
                            const char *address,
                            uint16_t container_port,
                            uint16_t host_port);

/**
 * Grants a capability beyond the default ones, as in "NET_ADMIN".
 */
void gpuc_config_add_capability(gpuc_config_t *config, const char *name);

/**
 * Takes a capability away; "ALL" takes all of them.
 */
void gpuc_config_drop_capability(gpuc_config_t *config, const char *name);

/**
 * Whether executing a set-user-id program may give privileges. No by default.
 */
void gpuc_config_set_new_privileges(gpuc_config_t *config, bool allow);

/**
 * Limits a resource of the application's process, as in "nofile"; UINT64_MAX is no limit.
 */
void gpuc_config_resource_limit(gpuc_config_t *config,
                                const char *name,
                                uint64_t soft,
                                uint64_t hard);

/**
 * Sets a kernel parameter of the sandbox's own namespaces.
 */
void gpuc_config_sysctl(gpuc_config_t *config, const char *name, const char *value);

/**
 * Adjusts how likely the application is to be killed when the host's memory is short, -1000 to 1000.
 */
void gpuc_config_set_oom_score(gpuc_config_t *config,
                               int32_t adjustment);

/**
 * Sets the file mode creation mask. 022 by default.
 */
void gpuc_config_set_umask(gpuc_config_t *config, uint32_t mask);

/**
 * Chooses the process id that the application has inside, 2 to 4194303. By default 2, or 1 without an init.
 *
 * With that of the process which stands for the sandbox outside, both mean the same. The kernel must have
 * CONFIG_CHECKPOINT_RESTORE, and /proc/sys be writable.
 */
void gpuc_config_set_application_pid(gpuc_config_t *config,
                                     uint32_t pid);

/**
 * Gives the application a terminal for its input, output and errors; see gpuc_sandbox_take_terminal.
 */
void gpuc_config_set_terminal(gpuc_config_t *config,
                              uint16_t rows,
                              uint16_t columns);

/**
 * Says what standard input (0), output (1) or error (2) is. The host's by default.
 *
 * @param kind  of gpuc_stdio_t
 */
void gpuc_config_set_stdio(gpuc_config_t *config, int stream, uint32_t kind);

/**
 * Makes an open file standard input (0), output (1) or error (2). The descriptor is duplicated.
 */
void gpuc_config_set_stdio_file(gpuc_config_t *config, int stream, int fd);

/**
 * Lets the application find an open file under a number, 3 to 511, beside its three streams. Nothing is passed by
 * default, whatever the process has open. What is passed is a door into the host as wide as the file is.
 *
 * @param number  the number inside
 * @param fd      is duplicated
 */
void gpuc_config_pass_fd(gpuc_config_t *config,
                         int number,
                         int fd);

/**
 * Frees a configuration. Sandboxes that were made of it live on.
 *
 * @param config  may be NULL
 */
void gpuc_config_free(gpuc_config_t *config);

/**
 * Shows a file or directory of the host at an absolute path inside.
 *
 * @param flags  of gpuc_mount_t, or 0
 */
void gpuc_config_bind(gpuc_config_t *config,
                      const char *source,
                      const char *target,
                      uint32_t flags);

/**
 * Shows a directory of the image store that outlives sandboxes, made when first named.
 *
 * @param flags  of gpuc_mount_t, or 0
 */
void gpuc_config_volume(gpuc_config_t *config,
                        const char *name,
                        const char *target,
                        uint32_t flags);

/**
 * Makes an empty file system in memory, which counts as the sandbox's memory.
 *
 * @param bytes  how much it may hold; 0 is the kernel's own limit
 * @param flags  of gpuc_mount_t, or 0
 */
void gpuc_config_tmpfs(gpuc_config_t *config, const char *target, uint64_t bytes, uint32_t flags);

/**
 * Asks for GPUs, in the words that other engines use: "all", a count as in "count:2", indices as in "0,1",
 * identifiers, names of CDI as in "vendor.com/class=name", or "image" for what NVIDIA_VISIBLE_DEVICES of the image says.
 *
 * @return the caller's, freed with gpuc_gpu_request_free
 */
gpuc_gpu_request_t *gpuc_gpu_request_new(const char *gpus);

/**
 * Wants at least so many bytes of free memory on each GPU.
 */
void gpuc_gpu_request_set_min_free_memory(gpuc_gpu_request_t *request, uint64_t bytes);

/**
 * Replaces the parts of the driver that come with the GPUs, "compute" and "utility" by default. The names are those
 * of NVIDIA_DRIVER_CAPABILITIES; none at all gives device nodes without libraries.
 *
 * @param names  strings, and NULL after the last
 */
void gpuc_gpu_request_set_capabilities(gpuc_gpu_request_t *request,
                                       const char *const *names);

/**
 * Wants parts of NVIDIA's software that have devices of their own: "gds", "mofed", "gdrcopy", "nvswitch"; or gives rights
 * that no image gets by asking: "mig-config", to make and destroy MIG devices of the container's GPUs, and "mig-monitor",
 * to look at MIG devices that it was not granted.
 *
 * @param names  strings, and NULL after the last
 */
void gpuc_gpu_request_set_extras(gpuc_gpu_request_t *request,
                                 const char *const *names);

/**
 * Wants these channels of IMEX, which GPUs of several hosts share memory through.
 *
 * @param channels  may be NULL if there are none
 */
void gpuc_gpu_request_set_imex_channels(gpuc_gpu_request_t *request,
                                        const uint32_t *channels,
                                        size_t count);

/**
 * Where specifications of CDI are looked for, instead of /etc/cdi and /var/run/cdi.
 *
 * @param directories  strings, and NULL after the last; a later one's devices count before an earlier one's
 */
void gpuc_gpu_request_set_cdi_directories(gpuc_gpu_request_t *request,
                                          const char *const *directories);

/**
 * What to do about programs that a specification of CDI wants to be run on the host, other than NVIDIA's, which are
 * not run but done: "refuse" the device, which is the default, "skip" them, or "run" them.
 */
void gpuc_gpu_request_set_vendor_hooks(gpuc_gpu_request_t *request,
                                       const char *policy);

/**
 * Wants a daemon of NVIDIA's Multi-Process Service (MPS) for the lease, whose clients the processes in its containers
 * are. It starts with the lease and ends with it; leases that share the same GPUs and want the same of it, of one
 * user, have one daemon, which ends with the last of them.
 *
 * The limits hold for each process that is a client, and are ceilings: nothing is reserved or isolated. A fatal fault
 * of one client may end the work of all others, and a program that does not look for the daemon uses the GPU without
 * it. The containers of one daemon share /dev/shm. See <https://docs.nvidia.com/deploy/mps/index.html>.
 *
 * @param active_threads  the share of a GPU's threads that each client gets at most, in percent; 0 is no limit
 * @param device_memory   bytes that each client can allocate at most on each GPU, at least a mebibyte; 0 is no limit
 */
void gpuc_gpu_request_set_mps(gpuc_gpu_request_t *request,
                              uint32_t active_threads,
                              uint64_t device_memory);

/**
 * Whether a Multi-Process Service of the host, which somebody else runs, is shared with the container; no by default.
 */
void gpuc_gpu_request_set_multi_process_service(gpuc_gpu_request_t *request,
                                                bool shared);

/**
 * Asks for GPUs of a vendor: "nvidia", which is the default, "amd" or "intel".
 */
void gpuc_gpu_request_set_vendor(gpuc_gpu_request_t *request, const char *vendor);

/**
 * Wants GPUs with at least so many bytes of memory in all, used or not.
 */
void gpuc_gpu_request_set_min_total_memory(gpuc_gpu_request_t *request, uint64_t bytes);

/**
 * Wants at least this CUDA compute capability, as in 8 and 0.
 */
void gpuc_gpu_request_set_min_compute_capability(gpuc_gpu_request_t *request,
                                                 uint32_t major,
                                                 uint32_t minor);

/**
 * Wants GPUs whose product name has this form, as in "*A100*": * stands for anything, ? for one character.
 */
void gpuc_gpu_request_set_model(gpuc_gpu_request_t *request,
                                const char *pattern);

/**
 * Wants MIG devices of this profile, as in "1g.10gb", instead of whole GPUs. A GPU that is named stands for one device on
 * it.
 */
void gpuc_gpu_request_set_mig_profile(gpuc_gpu_request_t *request,
                                      const char *profile);

/**
 * Whether MIG devices of the profile that are missing are made, on GPUs in MIG mode, and destroyed after their last
 * lease; they are by default, where the caller may make them.
 */
void gpuc_gpu_request_set_make_mig_devices(gpuc_gpu_request_t *request,
                                           bool made);

/**
 * Lets at most so many leases in all have the same GPUs; 1, as by default, is nobody else.
 */
void gpuc_gpu_request_set_shared(gpuc_gpu_request_t *request, uint32_t leases);

/**
 * Lets others have the same GPUs who also say how much memory they take, as long as all of it fits.
 *
 * @param bytes  of each GPU
 */
void gpuc_gpu_request_set_fraction(gpuc_gpu_request_t *request, uint64_t bytes);

/**
 * How the GPUs lie together: "best", which is the default, "nvlink-required", "same-numa-node", "keep-pairs" or
 * "spread".
 */
void gpuc_gpu_request_set_placement(gpuc_gpu_request_t *request,
                                    const char *placement);

/**
 * What to do about processes that belong to no lease: "avoid" their GPUs, which is the default, "ignore" them, or
 * "fail" at once if one is in the way.
 */
void gpuc_gpu_request_set_foreign_processes(gpuc_gpu_request_t *request,
                                            const char *policy);

/**
 * How early the request comes in the queue: 0 by default, more is earlier, each step worth ten seconds of waiting.
 */
void gpuc_gpu_request_set_priority(gpuc_gpu_request_t *request,
                                   int32_t priority);

/**
 * Frees a request.
 *
 * @param request  may be NULL
 */
void gpuc_gpu_request_free(gpuc_gpu_request_t *request);

/**
 * Says where the GPU driver's user space is, if not in the host's own root.
 */
void gpuc_config_set_driver_root(gpuc_config_t *config, const char *path);

/**
 * Asks for GPUs, which are leased from the start of the sandbox to its end: nobody else who asks an allocator gets
 * them. None by default, whatever the image asks for.
 *
 * @param request  copied
 */
void gpuc_config_set_gpu_request(gpuc_config_t *config,
                                 const gpuc_gpu_request_t *request);

/**
 * Asks for GPUs without a lease: whoever has leased them, and kept from nobody.
 *
 * @param request  copied
 */
void gpuc_config_set_gpus_unleased(gpuc_config_t *config, const gpuc_gpu_request_t *request);

/**
 * Asks for GPUs in the words of gpuc_gpu_request_new, and for nothing else.
 *
 * @param min_free_memory  bytes that must be free on each
 */
void gpuc_config_set_gpus(gpuc_config_t *config, const char *gpus, uint64_t min_free_memory);

/**
 * Opens the allocator of this host.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_gpu_allocator_free; NULL on failure
 */
gpuc_gpu_allocator_t *gpuc_gpu_allocator_open(gpuc_error_t **error);

/**
 * Opens an allocator with an account of its own in a directory, which is made if it is not there.
 *
 * @param path   should be on a tmpfs
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_gpu_allocator_free; NULL on failure
 */
gpuc_gpu_allocator_t *gpuc_gpu_allocator_open_at(const char *path, gpuc_error_t **error);

/**
 * Says where the GPU driver's user space is, if not in the host's own root.
 *
 * @param error  may be NULL
 * @return 0, or -1 on failure
 */
int gpuc_gpu_allocator_set_driver_root(gpuc_gpu_allocator_t *allocator,
                                       const char *path,
                                       gpuc_error_t **error);

/**
 * Sets how long a GPU is held back whose memory does not return after its lease, however that ended; ten seconds by
 * default. Who does not wait for GPUs still bears with it for a second.
 *
 * @param allocator  may be NULL, which does nothing
 */
void gpuc_gpu_allocator_set_memory_return(gpuc_gpu_allocator_t *allocator,
                                          uint64_t milliseconds);

/**
 * Sets how long the daemon of a lease that asks for gpuc_gpu_request_set_mps may take until it answers; ten seconds
 * by default.
 *
 * @param allocator  may be NULL, which does nothing
 */
void gpuc_gpu_allocator_set_mps_start(gpuc_gpu_allocator_t *allocator,
                                      uint64_t milliseconds);

/**
 * Whether GPUs are left out that an outer scheduler keeps from this process; they are by default.
 *
 * @param allocator  may be NULL, which does nothing
 */
void gpuc_gpu_allocator_set_respect_outer(gpuc_gpu_allocator_t *allocator, bool respected);

/**
 * The directory of the leases.
 *
 * @param allocator  may be NULL, which is an empty string
 * @return a string that lives as long as the object
 */
const char *gpuc_gpu_allocator_path(const gpuc_gpu_allocator_t *allocator);

/**
 * Leases GPUs. Requests are served in the order in which they came, those of a higher priority earlier.
 *
 * @param milliseconds  how long to wait; negative is for ever, 0 fails at once with the reason
 * @param cancel        ends the wait early; may be NULL
 * @param error         may be NULL; GPUC_ERROR_GPU_UNAVAILABLE, GPUC_ERROR_TIMED_OUT, GPUC_ERROR_CANCELLED
 * @return the caller's, freed with gpuc_gpu_lease_free; NULL on failure
 */
gpuc_gpu_lease_t *gpuc_gpu_allocator_acquire(const gpuc_gpu_allocator_t *allocator,
                                             const gpuc_gpu_request_t *request,
                                             int64_t milliseconds,
                                             const gpuc_cancel_t *cancel,
                                             gpuc_error_t **error);

/**
 * Who holds what since when, and who waits, as one JSON object: directory, private, gpus, leases, waiting,
 * quarantined, returning (GPUs whose memory is not back from their last lease), mps.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_gpu_allocator_status_json(const gpuc_gpu_allocator_t *allocator,
                                     gpuc_error_t **error);

/**
 * The same as a table for people, a line for each GPU and for each who waits.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_gpu_allocator_status_text(const gpuc_gpu_allocator_t *allocator, gpuc_error_t **error);

/**
 * Keeps a GPU from new leases, until gpuc_gpu_allocator_readmit.
 *
 * @param gpu    its identifier
 * @param error  may be NULL; GPUC_ERROR_PERMISSION_DENIED
 * @return 1, or 0 if it was kept back so before, or -1 on failure
 */
int gpuc_gpu_allocator_quarantine(const gpuc_gpu_allocator_t *allocator,
                                  const char *gpu,
                                  gpuc_error_t **error);

/**
 * Lets a GPU be leased again, whatever it was kept back for.
 *
 * @param gpu    its identifier
 * @param error  may be NULL; GPUC_ERROR_PERMISSION_DENIED
 * @return 1, or 0 if it was not kept back, or -1 on failure
 */
int gpuc_gpu_allocator_readmit(const gpuc_gpu_allocator_t *allocator,
                               const char *gpu,
                               gpuc_error_t **error);

/**
 * Looks after the health of the GPUs, and says who is in quarantine then: those that are faulty by their own account,
 * or by the XIDs of the kernel's log as far as the caller may read it, get no new leases from now on; those that a
 * reset has mended do again.
 *
 * @param error  may be NULL; GPUC_ERROR_PERMISSION_DENIED
 * @return a JSON list of objects with gpu, faults and since; the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_gpu_allocator_review_json(const gpuc_gpu_allocator_t *allocator,
                                     gpuc_error_t **error);

/**
 * Frees an allocator. Leases live on.
 *
 * @param allocator  may be NULL
 */
void gpuc_gpu_allocator_free(gpuc_gpu_allocator_t *allocator);

/**
 * The name of the lease, as the status of the allocator shows it.
 *
 * @param lease  may be NULL, which is an empty string
 * @return a string that lives as long as the object
 */
const char *gpuc_gpu_lease_id(const gpuc_gpu_lease_t *lease);

/**
 * How many GPUs and MIG devices are leased.
 *
 * @param lease  may be NULL, which has none
 */
size_t gpuc_gpu_lease_count(const gpuc_gpu_lease_t *lease);

/**
 * The identifier of a leased GPU or MIG device, by its number in a container, from 0.
 *
 * @param lease  may be NULL
 * @return a string that lives as long as the object; NULL if there is none of that number
 */
const char *gpuc_gpu_lease_gpu(const gpuc_gpu_lease_t *lease, size_t number);

/**
 * What was chosen, and what connects it, in words.
 *
 * @param lease  may be NULL, which is an empty string
 * @return a string that lives as long as the object
 */
const char *gpuc_gpu_lease_description(const gpuc_gpu_lease_t *lease);

/**
 * Everything that can be told of a lease as one JSON object: id, gpus, sharing, cpus, numa_nodes, description.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_gpu_lease_json(const gpuc_gpu_lease_t *lease,
                          gpuc_error_t **error);

/**
 * The MPS daemon that the lease has with gpuc_gpu_request_set_mps, as it is now, as one JSON object: id, user, pid,
 * pid_namespace, running, age, gpus, active_threads, device_memory, leases, pipe_directory, log.
 *
 * @param error  may be NULL; only a failure sets it
 * @return the caller's, freed with gpuc_string_free; NULL without a daemon, and on failure
 */
char *gpuc_gpu_lease_mps_json(const gpuc_gpu_lease_t *lease,
                              gpuc_error_t **error);

/**
 * Gives the sandbox the GPUs of a lease, instead of what gpuc_config_set_gpu_request asked for. The sandbox holds
 * the lease too, also when this process is gone.
 */
void gpuc_config_set_gpu_lease(gpuc_config_t *config,
                               const gpuc_gpu_lease_t *lease);

/**
 * The allocator of which the sandbox leases the GPUs that it asks for. By default that of the host.
 *
 * @param allocator  copied
 */
void gpuc_config_set_gpu_allocator(gpuc_config_t *config, const gpuc_gpu_allocator_t *allocator);

/**
 * How long a start waits for GPUs that somebody else has leased. Not at all by default: the start then fails with
 * GPUC_ERROR_GPU_UNAVAILABLE, and says who has them.
 *
 * @param milliseconds  negative is for ever; after the time the start fails with GPUC_ERROR_TIMED_OUT
 * @param cancel        ends the wait early; may be NULL
 */
void gpuc_config_set_gpu_wait(gpuc_config_t *config,
                              int64_t milliseconds,
                              const gpuc_cancel_t *cancel);

/**
 * The lease on the GPUs that the sandbox started with, as a handle of its own, which holds them too.
 *
 * @param error  may be NULL; only a failure sets it
 * @return the caller's, freed with gpuc_gpu_lease_free; NULL without a lease, once they were detached, and on failure
 */
gpuc_gpu_lease_t *gpuc_sandbox_gpu_lease(const gpuc_sandbox_t *sandbox,
                                         gpuc_error_t **error);

/**
 * A lease on GPUs of the sandbox, as a handle of its own, which holds them too: that of the start, if there is one, then
 * those of what was attached, in the order in which it came.
 *
 * @param number  from 0
 * @param error   may be NULL; only a failure sets it
 * @return the caller's, freed with gpuc_gpu_lease_free; NULL if there is none of that number, and on failure
 */
gpuc_gpu_lease_t *gpuc_sandbox_gpu_lease_at(const gpuc_sandbox_t *sandbox,
                                            size_t number,
                                            gpuc_error_t **error);

/**
 * Gives the GPUs up now, whoever else holds the lease, and says what went wrong with that.
 *
 * @param lease  freed, also on failure
 * @param error  may be NULL; GPUC_ERROR_BUSY if a process still uses a MIG device that was made for the lease: the lease
 *               is over then, and the device is destroyed later
 * @return 0, or -1 on failure
 */
int gpuc_gpu_lease_release(gpuc_gpu_lease_t *lease,
                           gpuc_error_t **error);

/**
 * Turns a lease into a descriptor that holds it: it ends when the last copy of that is closed, in any process.
 *
 * @param lease  freed, also on failure
 * @param error  may be NULL
 * @return a descriptor that the caller closes; -1 on failure
 */
int gpuc_gpu_lease_into_fd(gpuc_gpu_lease_t *lease,
                           gpuc_error_t **error);

/**
 * Gives the GPUs up, unless a sandbox holds the lease still.
 *
 * @param lease  may be NULL
 */
void gpuc_gpu_lease_free(gpuc_gpu_lease_t *lease);

/**
 * How near the host's GPUs are to each other, as a table for people: NV12 is twelve NVLinks.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_host_topology_text(const gpuc_host_t *host, gpuc_error_t **error);

/**
 * Takes a place in the queue; gpuc_gpu_ticket_wait then waits for the GPUs, as often and as long as wanted.
 *
 * @param request  copied
 * @param error    may be NULL; GPUC_ERROR_GPU_UNAVAILABLE for more than the host has
 * @return the caller's, freed with gpuc_gpu_ticket_free, which gives the place up; NULL on failure
 */
gpuc_gpu_ticket_t *gpuc_gpu_allocator_enqueue(const gpuc_gpu_allocator_t *allocator,
                                              const gpuc_gpu_request_t *request,
                                              gpuc_error_t **error);

/**
 * Waits until the GPUs are there. The place in the queue is kept if they are not. Who polls looks with 0 whenever the
 * descriptor of gpuc_gpu_ticket_fd can be read.
 *
 * @param milliseconds  negative is for ever, 0 only looks
 * @param lease         set to the caller's, freed with gpuc_gpu_lease_free, if 1 is returned
 * @param error         may be NULL; a system call error with EINTR if a signal came; GPUC_ERROR_GPU_UNAVAILABLE for what
 *                      has become impossible; GPUC_ERROR_CLOSED once the lease was given
 * @return 1 with the lease, 0 when the time has passed, -1 on failure
 */
int gpuc_gpu_ticket_wait(gpuc_gpu_ticket_t *ticket,
                         int64_t milliseconds,
                         gpuc_gpu_lease_t **lease,
                         gpuc_error_t **error);

/**
 * A descriptor that can be read, in the words of poll(), when it is time to call gpuc_gpu_ticket_wait with 0: something was
 * freed that matters, or so much time has passed that one should look. It may be so without need. Nothing is to be read
 * from it.
 *
 * @param error  may be NULL
 * @return the same for the life of the ticket, which it belongs to; -1 on failure
 */
int gpuc_gpu_ticket_fd(gpuc_gpu_ticket_t *ticket,
                       gpuc_error_t **error);

/**
 * Why the GPUs were not to be had when it was last tried.
 *
 * @param ticket  may be NULL, which is an empty string
 * @return a string that lives until the next wait
 */
const char *gpuc_gpu_ticket_reason(const gpuc_gpu_ticket_t *ticket);

/**
 * Gives the place in the queue up. A lease that it gave lives on.
 *
 * @param ticket  may be NULL
 */
void gpuc_gpu_ticket_free(gpuc_gpu_ticket_t *ticket);

/**
 * Opens the MIG devices of the host, and destroys what dead owners left.
 *
 * @param driver_root  where the GPU driver's user space is; NULL is where GPUCONTAINER_DRIVER_ROOT says, or the host's
 * @param directory    where leases are written down: on a tmpfs, writable for those only who may split GPUs; made if it
 *                     is not there
 * @param error        may be NULL
 * @return the caller's, freed with gpuc_mig_devices_free; NULL on failure
 */
gpuc_mig_devices_t *gpuc_mig_devices_open(const char *driver_root,
                                          const char *directory,
                                          gpuc_error_t **error);

/**
 * Where leases are written down.
 *
 * @param devices  may be NULL, which is an empty string
 * @return a string that lives as long as the object
 */
const char *gpuc_mig_devices_directory(const gpuc_mig_devices_t *devices);

/**
 * Takes a MIG device of a profile: an idle one that is there, or else one that is made, and destroyed with the lease.
 *
 * @param profile  as in "1g.10gb"
 * @param among    identifiers of GPUs, and NULL after the last; NULL is any GPU
 * @param error    may be NULL; GPUC_ERROR_GPU_UNAVAILABLE says for each GPU why not
 * @return the caller's, freed with gpuc_mig_lease_free; NULL on failure
 */
gpuc_mig_lease_t *gpuc_mig_devices_acquire(const gpuc_mig_devices_t *devices,
                                           const char *profile,
                                           const char *const *among,
                                           gpuc_error_t **error);

/**
 * Switches MIG mode of a GPU on or off. Nothing else in this library does.
 *
 * @param gpu    its identifier
 * @param error  may be NULL; GPUC_ERROR_BUSY if a process or a MIG device is on the GPU
 * @return a gpuc_mig_mode_change_t, or -1 on failure
 */
int gpuc_mig_devices_set_mode(const gpuc_mig_devices_t *devices,
                              const char *gpu,
                              bool enabled,
                              gpuc_error_t **error);

/**
 * Frees the object. Leases live on.
 *
 * @param devices  may be NULL
 */
void gpuc_mig_devices_free(gpuc_mig_devices_t *devices);

/**
 * The identifier of the device, by which a request can name it.
 *
 * @param lease  may be NULL, which is an empty string
 * @return a string that lives as long as the object
 */
const char *gpuc_mig_lease_uuid(const gpuc_mig_lease_t *lease);

/**
 * The identifier of the GPU that the device is a part of.
 *
 * @param lease  may be NULL, which is an empty string
 * @return a string that lives as long as the object
 */
const char *gpuc_mig_lease_gpu(const gpuc_mig_lease_t *lease);

/**
 * Whether the device was made for this lease, and is destroyed with it.
 *
 * @param lease  may be NULL, which is false
 */
bool gpuc_mig_lease_is_created(const gpuc_mig_lease_t *lease);

/**
 * The device as it was when it was taken, as one JSON object: uuid, index, gpu_instance, compute_instance, profile,
 * memory, processes.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_mig_lease_device_json(const gpuc_mig_lease_t *lease,
                                 gpuc_error_t **error);

/**
 * The descriptor that holds the lease: whoever inherits it holds the lease too.
 *
 * @param lease  may be NULL
 * @return the object's, which the caller does not close; -1 if there is none
 */
int gpuc_mig_lease_fd(const gpuc_mig_lease_t *lease);

/**
 * Gives the device back; destroys it if it was made for this lease.
 *
 * @param lease  freed, also on failure
 * @param error  may be NULL; GPUC_ERROR_BUSY if a process still uses it: the next who opens or acquires tries again
 * @return 0, or -1 on failure
 */
int gpuc_mig_lease_release(gpuc_mig_lease_t *lease,
                           gpuc_error_t **error);

/**
 * Leaves the lease to those who inherited its descriptor. The device is destroyed by the next who opens or acquires
 * after the last of them has ended.
 *
 * @param lease  freed; may be NULL
 */
void gpuc_mig_lease_leave(gpuc_mig_lease_t *lease);

/**
 * Gives the device back without a word about errors.
 *
 * @param lease  may be NULL
 */
void gpuc_mig_lease_free(gpuc_mig_lease_t *lease);

/**
 * Watches GPUs from now on.
 *
 * @param driver_root  where the GPU driver's user space is; NULL is where GPUCONTAINER_DRIVER_ROOT says, or the host's
 * @param gpus         identifiers, and NULL after the last
 * @param error        may be NULL; GPUC_ERROR_GPU_UNAVAILABLE if the driver or a GPU cannot be asked
 * @return the caller's, freed with gpuc_xid_watch_free; NULL on failure
 */
gpuc_xid_watch_t *gpuc_xid_watch_open(const char *driver_root,
                                      const char *const *gpus,
                                      gpuc_error_t **error);

/**
 * A descriptor that can be read, in the words of poll(), as long as gpuc_xid_watch_next has something to say at once: an
 * XID, or that the driver has failed. Nothing is to be read from it.
 *
 * The driver has none to give: when this is first called, a thread starts to wait there, with all signals blocked. It ends
 * with the watch, which takes up to a quarter of a second to free then.
 *
 * @param error  may be NULL
 * @return the same for the life of the watch, which it belongs to; -1 on failure
 */
int gpuc_xid_watch_fd(gpuc_xid_watch_t *watch,
                      gpuc_error_t **error);

/**
 * Waits for the next XID.
 *
 * @param milliseconds  negative is for ever, 0 only looks
 * @param event         set to the caller's, freed with gpuc_xid_event_free, if 1 is returned
 * @param error         may be NULL; GPUC_ERROR_GPU_UNAVAILABLE if the driver fails, as when a GPU is lost
 * @return 1 with the event, 0 when the time has passed, -1 on failure
 */
int gpuc_xid_watch_next(gpuc_xid_watch_t *watch,
                        int64_t milliseconds,
                        gpuc_xid_event_t **event,
                        gpuc_error_t **error);

/**
 * Ends the watch.
 *
 * @param watch  may be NULL
 */
void gpuc_xid_watch_free(gpuc_xid_watch_t *watch);

/**
 * The identifier of the GPU, also where the event is about a slice of it.
 *
 * @param event  may be NULL, which is an empty string
 * @return a string that lives as long as the object
 */
const char *gpuc_xid_event_gpu(const gpuc_xid_event_t *event);

/**
 * The number of the XID.
 *
 * @param event  may be NULL, which is 0
 */
uint64_t gpuc_xid_event_number(const gpuc_xid_event_t *event);

/**
 * What has to be done: "ignore", "restart-application", "reset-gpu", "restart-machine" or "inspect".
 *
 * @param event  may be NULL, which is an empty string
 * @return a string that is there for ever
 */
const char *gpuc_xid_event_action(const gpuc_xid_event_t *event);

/**
 * Whether a GPU is kept from new leases for such an XID.
 *
 * @param event  may be NULL, which is false
 */
bool gpuc_xid_event_quarantines(const gpuc_xid_event_t *event);

/**
 * Whether the event is about a slice of the GPU, and which.
 *
 * @param event             may be NULL, which is false
 * @param gpu_instance      set if it is; may be NULL
 * @param compute_instance  set if it is; may be NULL
 */
bool gpuc_xid_event_slice(const gpuc_xid_event_t *event,
                          uint32_t *gpu_instance,
                          uint32_t *compute_instance);

/**
 * Frees an event.
 *
 * @param event  may be NULL
 */
void gpuc_xid_event_free(gpuc_xid_event_t *event);

/**
 * Keeps the GPU of an event from new leases, until gpuc_gpu_allocator_readmit or a reset that mends it. An XID that
 * concerns the application only changes nothing.
 *
 * @param error  may be NULL; GPUC_ERROR_PERMISSION_DENIED
 * @return 1, or 0 if nothing is new, or -1 on failure
 */
int gpuc_gpu_allocator_report_xid(const gpuc_gpu_allocator_t *allocator,
                                  const gpuc_xid_event_t *event,
                                  gpuc_error_t **error);

/**
 * How the process ended.
 *
 * @param output  may be NULL, which is code -1
 */
gpuc_exit_status_t gpuc_output_status(const gpuc_output_t *output);

/**
 * What came from standard output (1) or error (2).
 *
 * @param output  may be NULL, which is nothing
 * @param length  set to how many bytes; may be NULL
 * @return bytes that live as long as the object; there is no zero byte at their end
 */
const void *gpuc_output_bytes(const gpuc_output_t *output, int stream, size_t *length);

/**
 * Frees what gpuc_sandbox_communicate or gpuc_process_communicate returned.
 *
 * @param output  may be NULL
 */
void gpuc_output_free(gpuc_output_t *output);

/**
 * Checks everything, then starts the sandbox, and returns when the application has been executed.
 *
 * @param config  can be used again
 * @param error   may be NULL
 * @return the caller's, freed with gpuc_sandbox_free; NULL on failure, and nothing is left behind
 */
gpuc_sandbox_t *gpuc_sandbox_spawn(const gpuc_config_t *config, gpuc_error_t **error);

/**
 * Turns the calling process into the sandbox, as execve(2) turns it into a program: starts the sandbox, and stands for
 * it until it ends. For who was started as a process of its own, as a task of Slurm. Returns only on failure, and then
 * the process is as it was, signals included.
 *
 * - Every signal that can be caught and comes to the process reaches the application once, with what sigqueue(3) sent;
 *   from the keys of a terminal, its whole process group. One that the process ignores is ignored.
 * - An application that is stopped stops the process, and SIGCONT lets both go on.
 * - The application has the streams of the process, or what the configuration says. The process lets go of them, and of
 *   all pipes, terminals and sockets that it has open.
 * - When the application ends, everything is given back, and the process ends as it did: with its exit code, or by the
 *   same signal, without a core dump. No handler of atexit(3) is run and nothing that is buffered is written: flush
 *   before. SIGKILL to the process kills everything inside.
 *
 * The process must have one thread, as a forked child has; otherwise it is GPUC_ERROR_UNSUPPORTED. A piped stream or a
 * terminal of the application's own is GPUC_ERROR_INVALID_ARGUMENT: nobody would be at the other end.
 *
 * @param error  may be NULL
 * @return -1
 */
int gpuc_enter(const gpuc_config_t *config,
               gpuc_error_t **error);

/**
 * What a start would do, a line a step, without doing it.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_config_explain(const gpuc_config_t *config, gpuc_error_t **error);

/**
 * Frees a string that a function returned without const.
 *
 * @param string  may be NULL
 */
void gpuc_string_free(char *string);

/**
 * The name.
 *
 * @param sandbox  may be NULL, which is an empty string
 * @return a string that lives as long as the object
 */
const char *gpuc_sandbox_name(const gpuc_sandbox_t *sandbox);

/**
 * The application's process id, as the host sees it.
 *
 * @param sandbox  may be NULL, which is 0
 */
int gpuc_sandbox_pid(const gpuc_sandbox_t *sandbox);

/**
 * A descriptor to poll: it becomes readable once the application has ended.
 *
 * @param sandbox  may be NULL, which is -1
 * @return the sandbox's, never closed by the caller
 */
int gpuc_sandbox_fd(const gpuc_sandbox_t *sandbox);

/**
 * Waits until the application has ended. Fails with EINTR when a signal handler ran; calling again goes on.
 *
 * @param milliseconds  how long; negative is for ever, 0 only looks
 * @param status        set when it has ended; may be NULL
 * @param error         may be NULL
 * @return 1 if it has ended, 0 if the time has passed, -1 on failure
 */
int gpuc_sandbox_wait(const gpuc_sandbox_t *sandbox,
                      int64_t milliseconds,
                      gpuc_exit_status_t *status,
                      gpuc_error_t **error);

/**
 * Sends a signal, 1 to 64, to the application. One that has ended already is no error.
 *
 * @param error  may be NULL
 * @return 0, or -1 on failure
 */
int gpuc_sandbox_kill(const gpuc_sandbox_t *sandbox, int signal, gpuc_error_t **error);

/**
 * Takes the host's end of a piped stream: 0 to write standard input, 1 and 2 to read output and error.
 *
 * @return a descriptor that the caller closes; -1 if the stream is not piped or was taken before
 */
int gpuc_sandbox_take_stream(const gpuc_sandbox_t *sandbox,
                             int stream);

/**
 * Takes the master of the terminal.
 *
 * @return a descriptor that the caller closes; -1 if none was asked for or it was taken before
 */
int gpuc_sandbox_take_terminal(const gpuc_sandbox_t *sandbox);

/**
 * Writes input to standard input and closes it, collects what comes from piped streams, and waits.
 *
 * @param input         may be NULL if length is 0
 * @param milliseconds  how long; negative is for ever. GPUC_ERROR_TIMED_OUT after that; the application still runs
 * @param error         may be NULL
 * @return the caller's, freed with gpuc_output_free; NULL on failure
 */
gpuc_output_t *gpuc_sandbox_communicate(const gpuc_sandbox_t *sandbox,
                                        const void *input,
                                        size_t length,
                                        int64_t milliseconds,
                                        gpuc_error_t **error);

/**
 * The host's port that leads to a published port of the container.
 *
 * @param sandbox  may be NULL
 * @return 0 if that port is not published
 */
uint16_t gpuc_sandbox_host_port(const gpuc_sandbox_t *sandbox, uint16_t container_port);

/**
 * Publishes a TCP port of a running sandbox.
 *
 * @param address    an address of the host, as in "0.0.0.0" or "::1"; NULL is 127.0.0.1 and ::1
 * @param host_port  0 for any free one
 * @param error      may be NULL
 * @return the host's port; 0 on failure
 */
uint16_t gpuc_sandbox_publish(const gpuc_sandbox_t *sandbox,
                              const char *address,
                              uint16_t container_port,
                              uint16_t host_port,
                              gpuc_error_t **error);

/**
 * Closes what is published on a port of the host, TCP and UDP, with its connections; then the host's port is free.
 *
 * @param address  as it was published; NULL is 127.0.0.1
 * @param error    may be NULL
 * @return whether it was closed
 */
bool gpuc_sandbox_unpublish(const gpuc_sandbox_t *sandbox,
                            const char *address,
                            uint16_t host_port,
                            gpuc_error_t **error);

/**
 * Connects to a TCP port inside, published or not.
 *
 * @param milliseconds  how long to try; negative is for ever
 * @param error         may be NULL
 * @return a socket that the caller closes; -1 on failure
 */
int gpuc_sandbox_dial(const gpuc_sandbox_t *sandbox,
                      uint16_t port,
                      int64_t milliseconds,
                      gpuc_error_t **error);

/**
 * Waits until something accepts connections at a TCP port inside, published or not, by connecting to it and closing that
 * at once.
 *
 * @param milliseconds  how long; negative is as long as the application runs
 * @param error         may be NULL; GPUC_ERROR_CLOSED as soon as the application has ended, GPUC_ERROR_TIMED_OUT when the
 *                      time has passed. EINTR when a signal handler ran; calling again goes on
 * @return 0, or -1 on failure
 */
int gpuc_sandbox_wait_ready(const gpuc_sandbox_t *sandbox,
                            uint16_t port,
                            int64_t milliseconds,
                            gpuc_error_t **error);

/**
 * Everything that can be told of a sandbox as one JSON object: name, pid, ports and host_services with
 * their counters, gpus, addresses in a private network, timeline.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_sandbox_json(const gpuc_sandbox_t *sandbox,
                        gpuc_error_t **error);

/**
 * What the sandbox uses, as one JSON object: memory, cpu, pids, io, hugetlb.
 *
 * @param error  may be NULL; GPUC_ERROR_UNSUPPORTED without a control group
 * @return the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_sandbox_stats_json(const gpuc_sandbox_t *sandbox, gpuc_error_t **error);

/**
 * Stops everything inside, until gpuc_sandbox_resume.
 *
 * @param error  may be NULL
 * @return 0, or -1 on failure
 */
int gpuc_sandbox_pause(const gpuc_sandbox_t *sandbox, gpuc_error_t **error);

/**
 * Lets everything inside go on.
 *
 * @param error  may be NULL
 * @return 0, or -1 on failure
 */
int gpuc_sandbox_resume(const gpuc_sandbox_t *sandbox, gpuc_error_t **error);

/**
 * Changes the resource limits; those that are not set stay.
 *
 * @param error  may be NULL
 * @return 0, or -1 on failure
 */
int gpuc_sandbox_update(const gpuc_sandbox_t *sandbox,
                        const gpuc_limits_t *limits,
                        gpuc_error_t **error);

/**
 * Lets the application live on when this object and this process are gone. Published ports close. Its
 * supervisor stays a child of this process: one that lives on has a zombie of it in the end, until it collects its children,
 * as with waitpid(-1, ...).
 *
 * @param sandbox  freed, also on failure
 * @param error    may be NULL
 * @return 0, or -1 on failure
 */
int gpuc_sandbox_detach(gpuc_sandbox_t *sandbox,
                        gpuc_error_t **error);

/**
 * Kills everything inside, gives everything back, and says what went wrong with that.
 *
 * @param sandbox  freed, also on failure
 * @param error    may be NULL
 * @return 0, or -1 on failure
 */
int gpuc_sandbox_close(gpuc_sandbox_t *sandbox, gpuc_error_t **error);

/**
 * Kills everything inside and gives everything back.
 *
 * @param sandbox  may be NULL
 */
void gpuc_sandbox_free(gpuc_sandbox_t *sandbox);

/**
 * Removes what sandboxes of processes that died left, of this user's: control groups, and directories for writes
 * in the store. The first start of a process with a store does this by itself.
 *
 * @param error  may be NULL; what could not be removed, after everything was tried
 * @return 0, or -1 on failure
 */
int gpuc_collect_abandoned(const gpuc_image_store_t *store,
                           gpuc_error_t **error);

/**
 * Describes a process.
 *
 * @param arguments  strings, and NULL after the last
 * @return the caller's, freed with gpuc_exec_free
 */
gpuc_exec_t *gpuc_exec_new(const char *const *arguments);

/**
 * Sets an environment variable, over that of the sandbox.
 */
void gpuc_exec_env(gpuc_exec_t *exec, const char *name, const char *value);

/**
 * Sets the working directory. By default the sandbox's.
 */
void gpuc_exec_set_working_dir(gpuc_exec_t *exec, const char *path);

/**
 * Runs as this user of the image, and group after a colon. By default as the sandbox's application.
 */
void gpuc_exec_set_user(gpuc_exec_t *exec, const char *user);

/**
 * Says what standard input (0), output (1) or error (2) is. The host's by default.
 *
 * @param kind  of gpuc_stdio_t
 */
void gpuc_exec_set_stdio(gpuc_exec_t *exec, int stream, uint32_t kind);

/**
 * Makes an open file standard input (0), output (1) or error (2). The descriptor is duplicated.
 */
void gpuc_exec_set_stdio_file(gpuc_exec_t *exec, int stream, int fd);

/**
 * Lets the process find an open file under a number, 3 to 511; see gpuc_config_pass_fd.
 *
 * @param number  the number inside
 * @param fd      is duplicated
 */
void gpuc_exec_pass_fd(gpuc_exec_t *exec, int number, int fd);

/**
 * Gives the process a terminal of so many rows and columns.
 */
void gpuc_exec_set_terminal(gpuc_exec_t *exec, uint16_t rows, uint16_t columns);

/**
 * Starts the process with the privileges, filter and limits of the sandbox.
 *
 * @param exec   can be used again
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_process_free before the sandbox is; NULL on failure
 */
gpuc_process_t *gpuc_exec_spawn(const gpuc_exec_t *exec,
                                const gpuc_sandbox_t *sandbox,
                                gpuc_error_t **error);

/**
 * Frees a description.
 *
 * @param exec  may be NULL
 */
void gpuc_exec_free(gpuc_exec_t *exec);

/**
 * The process id, as the host sees it; 0 if the process had ended before it could be asked.
 *
 * @param process  may be NULL, which is 0
 */
int gpuc_process_pid(const gpuc_process_t *process);

/**
 * A descriptor to poll: it becomes readable once the process has ended.
 *
 * @param process  may be NULL, which is -1
 * @return the object's, never closed by the caller
 */
int gpuc_process_fd(const gpuc_process_t *process);

/**
 * Waits until the process has ended; see gpuc_sandbox_wait.
 *
 * @return 1 if it has ended, 0 if the time has passed, -1 on failure
 */
int gpuc_process_wait(const gpuc_process_t *process,
                      int64_t milliseconds,
                      gpuc_exit_status_t *status,
                      gpuc_error_t **error);

/**
 * Sends a signal, 1 to 64. A process that has ended already is no error.
 *
 * @param error  may be NULL
 * @return 0, or -1 on failure
 */
int gpuc_process_kill(const gpuc_process_t *process, int signal, gpuc_error_t **error);

/**
 * Takes the host's end of a piped stream; see gpuc_sandbox_take_stream.
 *
 * @return a descriptor that the caller closes; -1 if the stream is not piped or was taken before
 */
int gpuc_process_take_stream(const gpuc_process_t *process, int stream);

/**
 * Takes the master of the terminal; see gpuc_sandbox_take_terminal.
 *
 * @return a descriptor that the caller closes; -1 if none was asked for or it was taken before
 */
int gpuc_process_take_terminal(const gpuc_process_t *process);

/**
 * Writes input, collects output and waits; see gpuc_sandbox_communicate.
 *
 * @return the caller's, freed with gpuc_output_free; NULL on failure
 */
gpuc_output_t *gpuc_process_communicate(const gpuc_process_t *process,
                                        const void *input,
                                        size_t length,
                                        int64_t milliseconds,
                                        gpuc_error_t **error);

/**
 * Kills the process, if it still runs, and frees the object.
 *
 * @param process  may be NULL
 */
void gpuc_process_free(gpuc_process_t *process);

/**
 * Gives a running sandbox GPUs: all that was asked for, or nothing. They are leased, of the allocator of the sandbox,
 * until they are detached or the sandbox ends. What the application executes from now on finds them, and so does what
 * is executed inside, which also gets their variables.
 *
 * @param milliseconds  how long to wait for what others have; negative is for ever, and with 0 it fails at once with the
 *                      reason
 * @param cancel        ends the wait early; may be NULL
 * @param error         may be NULL; GPUC_ERROR_GPU_UNAVAILABLE, GPUC_ERROR_TIMED_OUT, GPUC_ERROR_CANCELLED,
 *                      GPUC_ERROR_ALREADY_EXISTS, GPUC_ERROR_CLOSED
 * @return the caller's, freed with gpuc_gpu_grant_free; NULL on failure
 */
gpuc_gpu_grant_t *gpuc_sandbox_attach_gpus(const gpuc_sandbox_t *sandbox,
                                           const gpuc_gpu_request_t *request,
                                           int64_t milliseconds,
                                           const gpuc_cancel_t *cancel,
                                           gpuc_error_t **error);

/**
 * As gpuc_sandbox_attach_gpus, with the GPUs of a lease. The sandbox holds it too until they are detached, also when
 * this process is gone.
 *
 * @param lease  stays the caller's
 * @param error  may be NULL; GPUC_ERROR_ALREADY_EXISTS, GPUC_ERROR_CLOSED
 * @return the caller's, freed with gpuc_gpu_grant_free; NULL on failure
 */
gpuc_gpu_grant_t *gpuc_sandbox_attach_lease(const gpuc_sandbox_t *sandbox,
                                            const gpuc_gpu_lease_t *lease,
                                            gpuc_error_t **error);

/**
 * As gpuc_sandbox_attach_gpus without a lease: whoever has the GPUs is not asked, and others may be given them too.
 *
 * @param error  may be NULL; GPUC_ERROR_GPU_UNAVAILABLE, GPUC_ERROR_ALREADY_EXISTS, GPUC_ERROR_CLOSED
 * @return the caller's, freed with gpuc_gpu_grant_free; NULL on failure
 */
gpuc_gpu_grant_t *gpuc_sandbox_attach_gpus_unleased(const gpuc_sandbox_t *sandbox,
                                                    const gpuc_gpu_request_t *request,
                                                    gpuc_error_t **error);

/**
 * Takes away what a grant brought: one of gpuc_sandbox_attach_gpus or gpuc_sandbox_granted. What other grants have as
 * well stays. If its GPUs were leased for it, they are free when this returns; a lease of the caller's own is the
 * caller's alone again.
 *
 * @param grant  stays the caller's
 * @param force  also if a process inside has a device open, which it keeps then
 * @param error  may be NULL; GPUC_ERROR_BUSY with the processes that have a device open, GPUC_ERROR_NOT_FOUND
 * @return 0, or -1 on failure
 */
int gpuc_sandbox_detach_gpus(const gpuc_sandbox_t *sandbox,
                             const gpuc_gpu_grant_t *grant,
                             bool force,
                             gpuc_error_t **error);

/**
 * What a sandbox has of GPUs: the grant of the start, if there was one, then those that were attached.
 *
 * @param number  from 0
 * @param error   may be NULL; only a failure sets it
 * @return the caller's, freed with gpuc_gpu_grant_free; NULL if there is none of that number, and on failure
 */
gpuc_gpu_grant_t *gpuc_sandbox_granted(const gpuc_sandbox_t *sandbox,
                                       size_t number,
                                       gpuc_error_t **error);

/**
 * All of a grant as one JSON object: gpus, device_nodes, mounts, links, environment, driver_version, left_out and more.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_gpu_grant_json(const gpuc_gpu_grant_t *grant,
                          gpuc_error_t **error);

/**
 * Frees a grant. The sandbox keeps its GPUs.
 *
 * @param grant  may be NULL
 */
void gpuc_gpu_grant_free(gpuc_gpu_grant_t *grant);

/**
 * Describes the private network of that name: 1 to 32 letters, digits, '_' and '-'.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_private_network_free; NULL on failure
 */
gpuc_private_network_t *gpuc_private_network_new(const char *name, gpuc_error_t **error);

/**
 * Chooses its IPv4 addresses, as in "10.9.0.0/24". By default 1,022 addresses to which the host has no route.
 *
 * @param error  may be NULL
 * @return 0, or -1 on failure
 */
int gpuc_private_network_set_ipv4(gpuc_private_network_t *network,
                                  const char *addresses,
                                  gpuc_error_t **error);

/**
 * Whether members have IPv6 addresses too. On by default, where the kernel has IPv6.
 *
 * @param network  may be NULL, which does nothing
 */
void gpuc_private_network_set_ipv6(gpuc_private_network_t *network, bool on);

/**
 * Whether members reach what the host reaches, from the host's addresses. On by default. A host that forwards no packets
 * is made to do so for the interfaces to which it has routes.
 *
 * @param network  may be NULL, which does nothing
 */
void gpuc_private_network_set_outbound(gpuc_private_network_t *network,
                                       bool on);

/**
 * Whether members reach services of the host, but for those on its loopback. Off by default.
 *
 * @param network  may be NULL, which does nothing
 */
void gpuc_private_network_set_host_access(gpuc_private_network_t *network, bool on);

/**
 * Comes into the network with a new network namespace, without a sandbox.
 *
 * @param name   what it is called there: 1 to 63 letters, digits, '.', '_' and '-'
 * @param error  may be NULL; GPUC_ERROR_ALREADY_EXISTS if a member has that name
 * @return the caller's, freed with gpuc_network_member_free; NULL on failure
 */
gpuc_network_member_t *gpuc_private_network_join(const gpuc_private_network_t *network,
                                                 const char *name,
                                                 gpuc_error_t **error);

/**
 * Frees the description. Those who are in the network stay.
 *
 * @param network  may be NULL
 */
void gpuc_private_network_free(gpuc_private_network_t *network);

/**
 * One of its addresses: IPv4 first, then IPv6 if it has one.
 *
 * @return a string that lives as long as the object; NULL if there are not so many
 */
const char *gpuc_network_member_address(const gpuc_network_member_t *member, size_t index);

/**
 * One of the gateway's addresses: none in a network that leads nowhere.
 *
 * @return a string that lives as long as the object; NULL if there are not so many
 */
const char *gpuc_network_member_gateway(const gpuc_network_member_t *member, size_t index);

/**
 * The file with the names and addresses of all members, in the format of /etc/hosts. It is rewritten in place.
 *
 * @param member  may be NULL, which is an empty string
 * @return a string that lives as long as the object
 */
const char *gpuc_network_member_hosts_file(const gpuc_network_member_t *member);

/**
 * The network namespace, as setns takes it.
 *
 * @return a descriptor that stays the object's; -1 without one
 */
int gpuc_network_member_fd(const gpuc_network_member_t *member);

/**
 * Connects to a TCP port on the loopback of the namespace.
 *
 * @param milliseconds  how long to try; negative is for ever
 * @param error         may be NULL
 * @return a socket that the caller closes; -1 on failure
 */
int gpuc_network_member_dial(const gpuc_network_member_t *member,
                             uint16_t port,
                             int64_t milliseconds,
                             gpuc_error_t **error);

/**
 * Gives its addresses and its name back.
 *
 * @param member  may be NULL
 */
void gpuc_network_member_free(gpuc_network_member_t *member);

/**
 * Starts the sandbox in a private network, in which it is known by its name.
 */
void gpuc_config_set_private_network(gpuc_config_t *config, const gpuc_private_network_t *network);

/**
 * Gives the sandbox of an ordinary user a way out through the program pasta, which must be installed.
 */
void gpuc_config_set_outbound_network(gpuc_config_t *config);

/**
 * Starts the sandbox in the network of another one. Needs privileges.
 */
void gpuc_config_join_network(gpuc_config_t *config, const gpuc_sandbox_t *sandbox);

/**
 * Starts the sandbox in a network namespace, such as /proc/PID/ns/net. Needs privileges over it.
 *
 * @param fd  stays the caller's
 */
void gpuc_config_set_network_namespace(gpuc_config_t *config, int fd);

/**
 * The specification of what sandboxes with the GPUs of a request would be given, for other engines to read.
 *
 * @param request      mostly for "all"
 * @param driver_root  where the GPU driver's user space is; NULL is where GPUCONTAINER_DRIVER_ROOT says, or the host's
 * @param error        may be NULL; GPUC_ERROR_GPU_UNAVAILABLE
 * @return JSON of CDI 1.1; the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_cdi_spec_json(const gpuc_gpu_request_t *request,
                         const char *driver_root,
                         gpuc_error_t **error);

/**
 * The devices that the specifications of this host describe, by the names that a request can have.
 *
 * @param directories  strings, and NULL after the last; NULL is /etc/cdi and /var/run/cdi
 * @param error        may be NULL
 * @return a JSON object with lists: devices, and problems, what could not be read or is described twice; the caller's,
 *         freed with gpuc_string_free; NULL on failure
 */
char *gpuc_cdi_devices_json(const char *const *directories,
                            gpuc_error_t **error);

/**
 * Wants consecutive ports of a container on as many of the host's loopback addresses, 127.0.0.1 and ::1.
 *
 * @param protocol   of gpuc_protocol_t
 * @param host_port  0 for any free ones
 * @param count      how many, from both ports on
 * @return the caller's, freed with gpuc_port_mapping_free
 */
gpuc_port_mapping_t *gpuc_port_mapping_new(uint32_t protocol,
                                           uint16_t container_port,
                                           uint16_t host_port,
                                           uint16_t count);

/**
 * Uses one other address of the host, as in "0.0.0.0" or "::1".
 */
void gpuc_port_mapping_set_address(gpuc_port_mapping_t *mapping, const char *address);

/**
 * Uses every address of the host, IPv4 and IPv6.
 */
void gpuc_port_mapping_set_all_interfaces(gpuc_port_mapping_t *mapping);

/**
 * Chooses how clients reach the program.
 *
 * @param mode  of gpuc_port_mode_t
 */
void gpuc_port_mapping_set_mode(gpuc_port_mapping_t *mapping, uint32_t mode);

/**
 * Chooses how the program learns who its clients are.
 *
 * @param source  of gpuc_source_address_t
 */
void gpuc_port_mapping_set_source(gpuc_port_mapping_t *mapping, uint32_t source);

/**
 * Ends what is relayed when nothing has passed for so long. No time for TCP by default, 90 seconds for UDP.
 */
void gpuc_port_mapping_set_idle_timeout(gpuc_port_mapping_t *mapping,
                                        uint64_t milliseconds);

/**
 * Names the port in LISTEN_FDNAMES.
 */
void gpuc_port_mapping_set_name(gpuc_port_mapping_t *mapping, const char *name);

/**
 * Trusts the container with sockets of the host that are not locked to the port, which an ordinary user cannot lock on
 * newer kernels.
 */
void gpuc_port_mapping_set_unlocked(gpuc_port_mapping_t *mapping,
                                    bool unlocked);

/**
 * Frees a mapping.
 *
 * @param mapping  may be NULL
 */
void gpuc_port_mapping_free(gpuc_port_mapping_t *mapping);

/**
 * A listening socket that this process was started with, as sd_listen_fds(3) has it.
 *
 * @param name   of LISTEN_FDNAMES; NULL is the first one there is
 * @param error  may be NULL
 * @return a descriptor that the caller closes; -1 on failure, and if there is none (GPUC_ERROR_NOT_FOUND)
 */
int gpuc_activated_socket(const char *name,
                          gpuc_error_t **error);

/**
 * Leads the clients of a listening TCP socket to a port of a running sandbox, until that is unpublished.
 *
 * @param socket  stays the caller's
 * @param error   may be NULL
 * @return the host's port; 0 on failure
 */
uint16_t gpuc_sandbox_publish_socket(const gpuc_sandbox_t *sandbox,
                                     int socket,
                                     uint16_t container_port,
                                     gpuc_error_t **error);

/**
 * Publishes ports with the start.
 */
void gpuc_config_publish_mapping(gpuc_config_t *config, const gpuc_port_mapping_t *mapping);

/**
 * Publishes ports of a running sandbox.
 *
 * @param error  may be NULL
 * @return the host's port, the first of a range; 0 on failure
 */
uint16_t gpuc_sandbox_publish_mapping(const gpuc_sandbox_t *sandbox,
                                      const gpuc_port_mapping_t *mapping,
                                      gpuc_error_t **error);

/**
 * Wants a service of the host to be found inside, on a port of the loopback addresses 127.0.0.1 and ::1 there.
 *
 * @param protocol  of gpuc_protocol_t
 * @param port      inside; 0 for any free one
 * @param host      the service's address and port, as in "127.0.0.1:5432"; one of IPv6 is in brackets
 * @return the caller's, freed with gpuc_host_service_free
 */
gpuc_host_service_t *gpuc_host_service_new(uint32_t protocol,
                                           uint16_t port,
                                           const char *host);

/**
 * Has it found inside on this address and no other: one of the container's, or "0.0.0.0" or "::" for all of its family. On
 * an address that others can reach, such as that in a private network, they reach the service too.
 */
void gpuc_host_service_set_address(gpuc_host_service_t *service,
                                   const char *address);

/**
 * Ends what nothing has passed through for so long. No time for TCP by default, 90 seconds for UDP.
 */
void gpuc_host_service_set_idle_timeout(gpuc_host_service_t *service, uint64_t milliseconds);

/**
 * Frees a wish for a service.
 *
 * @param service  may be NULL
 */
void gpuc_host_service_free(gpuc_host_service_t *service);

/**
 * Makes a service of the host reachable inside from the start on.
 */
void gpuc_config_expose_host(gpuc_config_t *config, const gpuc_host_service_t *service);

/**
 * Makes a service of the host reachable inside a running sandbox.
 *
 * @param error  may be NULL
 * @return the port inside; 0 on failure
 */
uint16_t gpuc_sandbox_expose_host(const gpuc_sandbox_t *sandbox,
                                  const gpuc_host_service_t *service,
                                  gpuc_error_t **error);

/**
 * Closes a service of the host inside and its connections.
 *
 * @param protocol  of gpuc_protocol_t
 * @param port      inside
 * @param error     may be NULL
 * @return whether it was closed
 */
bool gpuc_sandbox_withdraw_host(const gpuc_sandbox_t *sandbox,
                                uint32_t protocol,
                                uint16_t port,
                                gpuc_error_t **error);

/**
 * The network namespace in which a process lives. It can be entered as long as the process lives.
 *
 * @param pidfd  of pidfd_open(2), as gpuc_sandbox_fd is one; stays the caller's
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_network_namespace_free; NULL on failure
 */
gpuc_network_namespace_t *gpuc_network_namespace_of_process(int pidfd, gpuc_error_t **error);

/**
 * A network namespace by descriptors, which stay the caller's.
 *
 * @param network  of /proc/PID/ns/net, or of a file that it is mounted on
 * @param user     of the user namespace that owns it, as in /proc/PID/ns/user, which callers without privilege need; -1
 *                 for none
 * @param error    may be NULL
 * @return the caller's, freed with gpuc_network_namespace_free; NULL on failure
 */
gpuc_network_namespace_t *gpuc_network_namespace_from_fds(int network,
                                                          int user,
                                                          gpuc_error_t **error);

/**
 * The network namespace of a sandbox.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_network_namespace_free; NULL on failure
 */
gpuc_network_namespace_t *gpuc_sandbox_network_namespace(const gpuc_sandbox_t *sandbox,
                                                         gpuc_error_t **error);

/**
 * Connects to a TCP port on the loopback of the namespace.
 *
 * @param milliseconds  how long to try; negative is for ever
 * @param error         may be NULL
 * @return a socket that the caller closes; -1 on failure
 */
int gpuc_network_namespace_dial(const gpuc_network_namespace_t *namespace_,
                                uint16_t port,
                                int64_t milliseconds,
                                gpuc_error_t **error);

/**
 * Frees a namespace's handle. What was led into it stays.
 *
 * @param namespace  may be NULL
 */
void gpuc_network_namespace_free(gpuc_network_namespace_t *namespace_);

/**
 * Takes the host's side of every mapping: binds, and for TCP listens. All or none.
 *
 * From then on the ports belong to the reservation: other programs cannot have them, and clients wait until it is
 * relayed.
 *
 * @param mappings  count of them, which stay the caller's; may be NULL if count is 0
 * @param error     may be NULL; GPUC_ERROR_PORT_IN_USE if another program has a port
 * @return the caller's, freed with gpuc_reservation_free, which frees the ports; NULL on failure
 */
gpuc_reservation_t *gpuc_port_mapper_reserve(const gpuc_port_mapping_t *const *mappings,
                                             size_t count,
                                             gpuc_error_t **error);

/**
 * Takes a socket that listens already as the host's side of a TCP port.
 *
 * @param socket  stays the caller's
 * @param error   may be NULL
 * @return the caller's, freed with gpuc_reservation_free; NULL on failure
 */
gpuc_reservation_t *gpuc_port_mapper_adopt(uint16_t container_port,
                                           int socket,
                                           gpuc_error_t **error);

/**
 * The ports with their real numbers, in the order in which they were asked for, as a JSON array: container_port, host,
 * hosts, count, protocol.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_reservation_json(const gpuc_reservation_t *reservation,
                            gpuc_error_t **error);

/**
 * Passes everything on to the container ports in a namespace, by one thread for all ports of the process. A program
 * there need not listen yet.
 *
 * @param reservation  freed, also on failure
 * @param error        may be NULL
 * @return the caller's, freed with gpuc_published_free; NULL on failure
 */
gpuc_published_t *gpuc_reservation_relay(gpuc_reservation_t *reservation,
                                         const gpuc_network_namespace_t *namespace_,
                                         gpuc_error_t **error);

/**
 * Has the kernel rewrite addresses, where it can; the rest is relayed. Needs privileges, and a namespace that the host
 * has a route to.
 *
 * @param reservation  freed, also on failure
 * @param error        may be NULL
 * @return the caller's, freed with gpuc_published_free; NULL on failure
 */
gpuc_published_t *gpuc_reservation_translate(gpuc_reservation_t *reservation,
                                             const gpuc_network_namespace_t *namespace_,
                                             gpuc_error_t **error);

/**
 * Publishes what was reserved on a running sandbox, until that is unpublished.
 *
 * @param reservation  freed, also on failure
 * @param error        may be NULL
 * @return the host's port, the first of all; 0 on failure
 */
uint16_t gpuc_sandbox_publish_reserved(const gpuc_sandbox_t *sandbox,
                                       gpuc_reservation_t *reservation,
                                       gpuc_error_t **error);

/**
 * Hands the sockets out, for a program that takes clients itself: one for each port on each address, in order. They are
 * non-blocking and closed on exec; those of TCP listen.
 *
 * @param reservation  freed, also on failure
 * @param sockets      set to descriptors that the caller closes; those that do not fit in are closed
 * @param count        for how many there is room
 * @param error        may be NULL
 * @return how many there are; -1 on failure
 */
int gpuc_reservation_into_sockets(gpuc_reservation_t *reservation,
                                  int *sockets,
                                  size_t count,
                                  gpuc_error_t **error);

/**
 * Frees the ports.
 *
 * @param reservation  may be NULL
 */
void gpuc_reservation_free(gpuc_reservation_t *reservation);

/**
 * The ports with their counters, as a JSON array; each as gpuc_sandbox_json has it.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_published_json(const gpuc_published_t *published, gpuc_error_t **error);

/**
 * Closes the ports and every connection through them.
 *
 * @param published  may be NULL
 */
void gpuc_published_free(gpuc_published_t *published);

/**
 * Makes a service of the host reachable in a namespace.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_exposed_services_free; NULL on failure
 */
gpuc_exposed_services_t *gpuc_network_namespace_expose_host(const gpuc_network_namespace_t *namespace_,
                                                            const gpuc_host_service_t *service,
                                                            gpuc_error_t **error);

/**
 * The services with their real ports inside and their counters, as a JSON array; each as gpuc_sandbox_json has it.
 *
 * @param error  may be NULL
 * @return the caller's, freed with gpuc_string_free; NULL on failure
 */
char *gpuc_exposed_services_json(const gpuc_exposed_services_t *services,
                                 gpuc_error_t **error);

/**
 * Closes the services and every connection through them.
 *
 * @param services  may be NULL
 */
void gpuc_exposed_services_free(gpuc_exposed_services_t *services);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* GPUCONTAINER_H */
