/* Becoming a sandbox: codes, signals, what is passed, and starts that fail. */
#include "entering.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>

static pid_t enter(const char *script, int *ready) { return become(shell, script, ready); }

static void await(int ready, const char *words) {
    char line[64];
    size_t length = 0;
    while (length == 0 || line[length - 1] != '\n') {
        CHECK(length + 1 < sizeof line && read(ready, line + length, 1) == 1);
        length++;
    }
    line[length - 1] = '\0';
    CHECK(strcmp(line, words) == 0);
}

static void ends_as_the_application_does(void) {
    int ready, status;
    static const int codes[] = {0, 1, 125, 126, 127, 128, 137, 255};
    for (size_t at = 0; at < sizeof codes / sizeof codes[0]; at++) {
        char script[32];
        snprintf(script, sizeof script, "exit %d", codes[at]);
        status = status_of(enter(script, &ready));
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == codes[at]);
        close(ready);
    }
    static const int signals[] = {SIGHUP, SIGABRT, SIGSEGV, SIGKILL, SIGTERM};
    for (size_t at = 0; at < sizeof signals / sizeof signals[0]; at++) {
        char script[32];
        snprintf(script, sizeof script, "kill -%d $$", signals[at]);
        status = status_of(enter(script, &ready));
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == signals[at] && !WCOREDUMP(status));
        close(ready);
    }
}

static void hands_signals_on(void) {
    int ready, status;
    pid_t pid = enter("trap 'echo term >&9; exit 5' TERM; echo ready >&9; while :; do sleep 0.01; done", &ready);
    await(ready, "ready");
    CHECK(kill(pid, SIGTSTP) == 0);
    CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
    CHECK(kill(pid, SIGTERM) == 0 && kill(pid, SIGCONT) == 0);
    await(ready, "term");
    status = status_of(pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
    /* With the last process inside, nobody has the pipe any more. */
    char byte;
    CHECK(read(ready, &byte, 1) == 0);
    close(ready);

    pid = enter("sleep 1000 & echo ready >&9; wait", &ready);
    await(ready, "ready");
    CHECK(kill(pid, SIGKILL) == 0);
    status = status_of(pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK(read(ready, &byte, 1) == 0);
    close(ready);
}

static void refuse(gpuc_config_t *config, gpuc_error_kind_t kind, const char *words) {
    gpuc_error_t *error;
    sigset_t before, after;
    CHECK(sigprocmask(SIG_SETMASK, NULL, &before) == 0);
    const int open = open_descriptors();
    CHECK(gpuc_enter(config, &error) == -1);
    CHECK(error != NULL);
    if (gpuc_error_kind(error) != kind || strstr(gpuc_error_message(error), words) == NULL) {
        fprintf(stderr, "not with %s: %s\n", words, gpuc_error_message(error));
        exit(1);
    }
    gpuc_error_free(error);
    CHECK(open_descriptors() == open);
    CHECK(sigprocmask(SIG_SETMASK, NULL, &after) == 0);
    for (int signal = 1; signal < 32; signal++) CHECK(sigismember(&before, signal) == sigismember(&after, signal));
    gpuc_config_free(config);
}

static void *wait_for_it(void *mutex) {
    pthread_mutex_lock((pthread_mutex_t *)mutex);
    pthread_mutex_unlock((pthread_mutex_t *)mutex);
    return NULL;
}

static void returns_only_if_the_start_fails(void) {
    refuse(NULL, GPUC_ERROR_INVALID_ARGUMENT, "config is NULL");
    gpuc_config_t *config = shell("exit 0");
    gpuc_config_set_stdio(config, 1, GPUC_STDIO_PIPED);
    refuse(config, GPUC_ERROR_INVALID_ARGUMENT, "standard output is piped");
    config = shell("exit 0");
    gpuc_config_set_terminal(config, 24, 80);
    refuse(config, GPUC_ERROR_INVALID_ARGUMENT, "a terminal of the application's own");
    config = shell("exit 0");
    gpuc_config_pass_fd(config, 2, 0);
    refuse(config, GPUC_ERROR_INVALID_ARGUMENT, "passed descriptor 2 is not within 3 to 511");
    config = shell("exit 0");
    gpuc_config_pass_fd(config, 7, 12345);
    refuse(config, GPUC_ERROR_INVALID_ARGUMENT, "fd 12345 is not open");
    config = shell("exit 0");
    gpuc_config_set_working_dir(config, "/nowhere");
    refuse(config, GPUC_ERROR_WORKING_DIRECTORY_NOT_FOUND, "/nowhere");

    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_t thread;
    pthread_mutex_lock(&mutex);
    CHECK(pthread_create(&thread, NULL, wait_for_it, &mutex) == 0);
    refuse(shell("exit 0"), GPUC_ERROR_UNSUPPORTED, "it has 2 threads");
    pthread_mutex_unlock(&mutex);
    CHECK(pthread_join(thread, NULL) == 0);
}

static void passes_descriptors_to_further_processes(void) {
    gpuc_error_t *error;
    int ends[2];
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    gpuc_config_t *config = shell("sleep 1000");
    gpuc_sandbox_t *sandbox = gpuc_sandbox_spawn(config, &error);
    CHECK_NO_ERROR(error);
    gpuc_config_free(config);
    const char *const command[] = {"sh", "-c", "echo passed >&500; exec 2>/dev/null; echo no >&9 || exit 3", NULL};
    gpuc_exec_t *exec = gpuc_exec_new(command);
    gpuc_exec_pass_fd(exec, 500, ends[1]);
    gpuc_process_t *process = gpuc_exec_spawn(exec, sandbox, &error);
    CHECK_NO_ERROR(error);
    gpuc_exit_status_t status;
    CHECK(gpuc_process_wait(process, -1, &status, &error) == 1);
    CHECK(status.code == 3);
    gpuc_process_free(process);
    gpuc_exec_free(exec);
    close(ends[1]);
    await(ends[0], "passed");
    char byte;
    CHECK(read(ends[0], &byte, 1) == 0);
    close(ends[0]);
    gpuc_sandbox_free(sandbox);
}

int main(void) {
    make_root();
    const int open = open_descriptors();
    returns_only_if_the_start_fails();
    ends_as_the_application_does();
    hands_signals_on();
    passes_descriptors_to_further_processes();
    CHECK(open_descriptors() == open);
    remove_root();
    return 0;
}
