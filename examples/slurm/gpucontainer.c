/* A SPANK plugin: tasks of Slurm run in a container, with the GPUs that Slurm gave to each of them.
 *
 *     srun --gpuc-image=docker.io/library/python:3.13 --gpuc-mount=/data:/data:ro,/scratch:/scratch -n 2 python3 train.py
 *
 * Build it with `make`, for the release of Slurm that is installed, and name it in plugstack.conf:
 *
 *     required /usr/lib/slurm/gpucontainer.so [store=DIRECTORY]
 *
 * A task stays what it was for Slurm: its process becomes the container. So its exit code is the application's, signals
 * reach the application, streams are Slurm's own, the step's control groups hold, and a task that is killed takes
 * everything inside with it. The network is the host's, as MPI wants it. The container gets the environment of the job but
 * for what names places of the host, and the socket of PMI. Images are looked for in the store of the job's user, unless
 * `store=` says another, and pulled if they are not there. A name that begins with `/` or `.` is a directory.
 */
#include <errno.h>
#include <gpucontainer.h>
#include <slurm/spank.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

SPANK_PLUGIN(gpucontainer, 1)

static char *image;
static char *mounts;

static int keep(char **where, const char *what) {
    free(*where);
    *where = strdup(what);
    return *where == NULL ? -1 : 0;
}

/* Splits one mount in place, SRC:DST[:ro]. */
static bool split(char *mount, char **target, bool *read_only) {
    *target = strchr(mount, ':');
    if (*target == NULL) return false;
    *(*target)++ = '\0';
    char *flags = strchr(*target, ':');
    if (flags != NULL) *flags++ = '\0';
    *read_only = flags != NULL && strcmp(flags, "ro") == 0;
    return mount[0] == '/' && **target == '/' && (flags == NULL || *read_only || strcmp(flags, "rw") == 0);
}

static int set_image(int value, const char *argument, int remote) {
    (void)value;
    (void)remote;
    if (argument == NULL || *argument == '\0') {
        slurm_error("--gpuc-image wants the name of an image");
        return -1;
    }
    return keep(&image, argument);
}

/* Looks at every mount, so that srun says at once what is wrong, and keeps the text. */
static int set_mounts(int value, const char *argument, int remote) {
    (void)value;
    (void)remote;
    char *copy = strdup(argument == NULL ? "" : argument), *rest = NULL, *target;
    bool read_only, good = copy != NULL && *copy != '\0';
    for (char *one = strtok_r(copy, ",", &rest); good && one != NULL; one = strtok_r(NULL, ",", &rest)) {
        good = split(one, &target, &read_only);
    }
    free(copy);
    if (!good) {
        slurm_error("--gpuc-mount=%s: each mount is SRC:DST[:ro] of absolute paths", argument);
        return -1;
    }
    return keep(&mounts, argument);
}

struct spank_option spank_options[] = {
    {(char *)"gpuc-image", (char *)"IMAGE", (char *)"run the tasks in a container of this image", 1, 0, set_image},
    {(char *)"gpuc-mount", (char *)"SRC:DST[:ro],...", (char *)"show directories of the node in it", 1, 0, set_mounts},
    SPANK_OPTIONS_TABLE_END};

/* What names places of the host, or numbers of GPUs that are others inside. */
static bool stays_outside(const char *variable) {
    static const char *const names[] = {"PATH=", "HOME=", "SHELL=", "PWD=", "OLDPWD=", "TMPDIR=", "LD_", "XDG_",
                                        "CUDA_VISIBLE_DEVICES=", "GPU_DEVICE_ORDINAL=", "ROCR_VISIBLE_DEVICES=",
                                        "NVIDIA_VISIBLE_DEVICES=", "GPUCONTAINER_"};
    for (size_t at = 0; at < sizeof names / sizeof names[0]; at++) {
        if (strncmp(variable, names[at], strlen(names[at])) == 0) return true;
    }
    return false;
}

static void set_environment(gpuc_config_t *config, char **environment) {
    for (; *environment != NULL; environment++) {
        const char *equals = strchr(*environment, '=');
        if (equals == NULL || equals == *environment || stays_outside(*environment)) continue;
        char *name = strndup(*environment, (size_t)(equals - *environment));
        gpuc_config_env(config, name, equals + 1);
        free(name);
    }
}

static void set_mounts_of(gpuc_config_t *config) {
    char *rest = NULL, *target;
    bool read_only;
    if (mounts == NULL) return;
    for (char *one = strtok_r(mounts, ",", &rest); one != NULL; one = strtok_r(NULL, ",", &rest)) {
        if (split(one, &target, &read_only)) gpuc_config_bind(config, one, target, read_only ? GPUC_MOUNT_READ_ONLY : 0);
    }
}

/* The GPUs that Slurm gave to this task, and no other. Slurm is who shares them out, so they are not leased once more. */
static void set_gpus(gpuc_config_t *config) {
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    if (list == NULL) list = getenv("SLURM_STEP_GPUS");
    if (list == NULL || *list == '\0' || strcmp(list, "NoDevFiles") == 0) return;
    gpuc_gpu_request_t *request = gpuc_gpu_request_new(list);
    gpuc_config_set_gpus_unleased(config, request);
    gpuc_gpu_request_free(request);
    /* Those are all that there are inside: counted from 0 again. */
    char numbers[1024] = "0";
    int count = 1;
    for (size_t length = 1; (list = strchr(list, ',')) != NULL && length < sizeof numbers - 8; list++) {
        length += (size_t)snprintf(numbers + length, sizeof numbers - length, ",%d", count++);
    }
    gpuc_config_env(config, "CUDA_VISIBLE_DEVICES", numbers);
}

/* Opens the store that plugstack.conf names, or the user's. */
static gpuc_config_t *describe(int count, char **arguments, gpuc_error_t **error) {
    if (*image == '/' || *image == '.') return gpuc_config_new_from_directory(image, error);
    const char *directory = NULL;
    for (int at = 0; at < count; at++) {
        if (strncmp(arguments[at], "store=", 6) == 0) directory = arguments[at] + 6;
    }
    gpuc_image_store_t *store = gpuc_image_store_open(directory, error);
    if (store == NULL) return NULL;
    gpuc_config_t *config = gpuc_config_new(image, error);
    gpuc_config_set_store(config, store);
    gpuc_image_store_free(store);
    return config;
}

/* In the process of the task, as its user, right before it would execute the program. */
int slurm_spank_task_init(spank_t spank, int count, char **arguments) {
    char **words, **environment;
    int length;
    if (image == NULL) return ESPANK_SUCCESS;
    if (spank_get_item(spank, S_JOB_ARGV, &length, &words) != ESPANK_SUCCESS ||
        spank_get_item(spank, S_JOB_ENV, &environment) != ESPANK_SUCCESS) {
        slurm_error("gpucontainer: Slurm does not say what the task is");
        return ESPANK_ERROR;
    }
    /* The library looks for the user's store and driver there; Slurm does not look at its own any more. */
    environ = environment;
    gpuc_error_t *error = NULL;
    gpuc_config_t *config = describe(count, arguments, &error);
    if (config != NULL) {
        gpuc_config_set_command(config, (const char *const *)words);
        gpuc_config_set_host_network(config, true);
        /* The step's own control groups limit, count and find its processes. */
        gpuc_config_set_cgroup(config, false);
        set_environment(config, environment);
        set_mounts_of(config);
        set_gpus(config);
        const char *pmi = getenv("PMI_FD");
        if (pmi != NULL) gpuc_config_pass_fd(config, atoi(pmi), atoi(pmi));
        gpuc_enter(config, &error);
        gpuc_config_free(config);
    }
    slurm_error("gpucontainer: %s", gpuc_error_message(error));
    /* Slurm 22.05 takes a task whose plugin fails for one that ended well. */
    _exit(125);
}
