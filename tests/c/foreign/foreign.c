/* A program that knows nothing of the library until it loads it, as an interpreter or a plug-in host does:
 * `foreign LIBRARY`. It is not linked to it. */
#include "../root.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>

/* The functions that are used, found by name. */
#define FUNCTIONS(each)                                                                                        \
    each(gpuc_version) each(gpuc_config_new_from_directory) each(gpuc_config_set_command)                      \
        each(gpuc_config_set_stdio) each(gpuc_config_publish) each(gpuc_config_free) each(gpuc_sandbox_spawn)  \
            each(gpuc_sandbox_communicate) each(gpuc_sandbox_free) each(gpuc_output_bytes)                     \
                each(gpuc_output_free) each(gpuc_error_message) each(gpuc_error_free)
#define DECLARE(name) static __typeof__(name) *its_##name;
FUNCTIONS(DECLARE)

static void *load(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
#define FIND(name)                                             \
    {                                                          \
        void *found = dlsym(library, #name);                   \
        CHECK(found != NULL);                                  \
        memcpy(&its_##name, &found, sizeof found);             \
    }
    FUNCTIONS(FIND)
    return library;
}

/* Runs a sandbox from whatever thread this is. */
static void *run(void *published) {
    gpuc_error_t *error;
    gpuc_config_t *config = its_gpuc_config_new_from_directory(root, &error);
    CHECK(config != NULL);
    const char *const command[] = {"sh", "-c", "cat; exit 0", NULL};
    its_gpuc_config_set_command(config, command);
    its_gpuc_config_set_stdio(config, 0, GPUC_STDIO_PIPED);
    its_gpuc_config_set_stdio(config, 1, GPUC_STDIO_PIPED);
    if (published != NULL) its_gpuc_config_publish(config, 80, 0);
    gpuc_sandbox_t *sandbox = its_gpuc_sandbox_spawn(config, &error);
    if (sandbox == NULL) {
        fprintf(stderr, "%s\n", its_gpuc_error_message(error));
        exit(1);
    }
    its_gpuc_config_free(config);
    gpuc_output_t *output = its_gpuc_sandbox_communicate(sandbox, "foreign", 7, 30000, &error);
    CHECK(output != NULL);
    size_t length;
    const void *bytes = its_gpuc_output_bytes(output, 1, &length);
    CHECK(length == 7 && memcmp(bytes, "foreign", 7) == 0);
    its_gpuc_output_free(output);
    its_gpuc_sandbox_free(sandbox);
    return NULL;
}

static int threads(void) {
    int count = -2;
    DIR *directory = opendir("/proc/self/task");
    CHECK(directory != NULL);
    while (readdir(directory) != NULL) count++;
    closedir(directory);
    return count;
}

/* What is done with every signal; those that libc keeps for itself change with the first thread of a program. */
static void actions(struct sigaction *all) {
    memset(all, 0, 65 * sizeof *all);
    for (int signal = 1; signal <= 64; signal++) sigaction(signal, NULL, &all[signal]);
}

static void from_a_thread(void *published) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run, published) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    make_root();
    struct sigaction before[65], after[65];
    sigset_t mask, mask_after;
    actions(before);
    CHECK(sigprocmask(SIG_SETMASK, NULL, &mask) == 0);
    const int open = open_descriptors();
    for (int time = 0; time < 3; time++) {
        void *library = load(argv[1]);
        CHECK(its_gpuc_version() != NULL && strlen(its_gpuc_version()) > 0);
        CHECK(threads() == 1);
        from_a_thread(NULL);
        run(NULL);
        CHECK(threads() == 1);
        /* What relays ports is a thread, as long as there are some. */
        from_a_thread(argv);
        for (int look = 0; threads() > 1; look++) {
            CHECK(look < 3000);
            usleep(10000);
        }
        CHECK(dlclose(library) == 0);
    }
    actions(after);
    for (int signal = 1; signal <= 64; signal++) {
        CHECK(before[signal].sa_handler == after[signal].sa_handler);
        CHECK(before[signal].sa_flags == after[signal].sa_flags);
    }
    CHECK(sigprocmask(SIG_SETMASK, NULL, &mask_after) == 0);
    for (int signal = 1; signal < 32; signal++) CHECK(sigismember(&mask, signal) == sigismember(&mask_after, signal));
    CHECK(open_descriptors() == open);
    remove_root();
    return 0;
}
