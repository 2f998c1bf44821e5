/* A scheduler in one file: jobs come on standard input, one a line, and run in sandboxes, each with GPUs of its own.
 *
 *     cc scheduler.c $(pkg-config --cflags --libs gpucontainer) && ./a.out [STORE [SLOTS]] <jobs
 *
 * A line is what the job may use, and then a command for the shell of its image:
 *
 *     gpus=2 memory=512 cpus=1.5 seconds=60 python3 train.py       (MiB, cores, seconds; all of them optional)
 *
 * At most SLOTS jobs are at work at once, 4 by default. One that wants GPUs waits in the queue of the machine's allocator,
 * beside whoever else asks there. SIGTERM and SIGINT ask the jobs to end, and kill them five seconds later. Everything
 * happens in one thread around one call of poll(2).
 */
#include <errno.h>
#include <gpucontainer.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_SLOTS = 64, LOOK_MS = 200, GRACE_MS = 5000 };

typedef struct job {
    struct job *next;
    int number;
    char *command;
    unsigned gpus;
    unsigned long long memory;  /* MiB; 0 is no limit */
    double cpus;                /* 0 is no limit */
    long long seconds;          /* 0 is no limit */
    long long end;              /* when its time is over; 0 is never */
    gpuc_gpu_ticket_t *ticket;  /* while it waits */
    gpuc_sandbox_t *sandbox;    /* while it runs */
} job_t;

static gpuc_image_store_t *store;
static gpuc_image_t *image;
static gpuc_gpu_allocator_t *allocator;
static job_t *queue, **queue_end = &queue, *slots[MAX_SLOTS];
static int slot_count = 4, well, badly, cancelled, seen;
static bool reading = true, stopping;

static void fail(gpuc_error_t *error) {
    fprintf(stderr, "%s\n", gpuc_error_message(error));
    gpuc_error_free(error);
    exit(1);
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (long long)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* What every job runs in here: one program under many names. */
static gpuc_image_t *build(void) {
    gpuc_error_t *error;
    gpuc_image_builder_t *builder = gpuc_image_builder_new(store, &error);
    if (builder == NULL) fail(error);
    gpuc_image_builder_copy_following_links(builder, "/bin/busybox", "/bin/busybox");
    static const char *const names[] = {"sh", "ls", "cat", "sleep", "dd", "tail"};
    for (size_t at = 0; at < sizeof names / sizeof names[0]; at++) {
        char path[32];
        snprintf(path, sizeof path, "/bin/%s", names[at]);
        gpuc_image_builder_symlink(builder, "busybox", path);
    }
    gpuc_image_builder_directory(builder, "/tmp", 01777);
    gpuc_image_t *built = gpuc_image_builder_commit(builder, "scheduler", &error);
    gpuc_image_builder_free(builder);
    if (built == NULL) fail(error);
    return built;
}

/* Reads the words at the beginning of a line; false for one that says something else than a number. */
static bool parse(job_t *job, const char *line) {
    for (char *end; ; line = end + strspn(end, " ")) {
        if (strncmp(line, "gpus=", 5) == 0) job->gpus = (unsigned)strtoul(line += 5, &end, 10);
        else if (strncmp(line, "memory=", 7) == 0) job->memory = strtoull(line += 7, &end, 10);
        else if (strncmp(line, "cpus=", 5) == 0) job->cpus = strtod(line += 5, &end);
        else if (strncmp(line, "seconds=", 8) == 0) job->seconds = strtoll(line += 8, &end, 10);
        else break;
        if (end == line || *line == '-' || (*end != ' ' && *end != '\0')) return false;
    }
    job->command = strdup(line);
    return job->command != NULL && *line != '\0';
}

static void forget(job_t *job) {
    gpuc_gpu_ticket_free(job->ticket);
    gpuc_sandbox_free(job->sandbox); /* which kills what is left of it */
    free(job->command);
    free(job);
}

static void refuse(job_t *job, gpuc_error_t *error) {
    printf("job %d failed: %s\n", job->number, error == NULL ? "it makes no sense" : gpuc_error_message(error));
    gpuc_error_free(error);
    badly++;
    forget(job);
}

static void submit(const char *line) {
    if (*line == '\0' || *line == '#') return;
    job_t *job = (job_t *)calloc(1, sizeof *job);
    if (job == NULL) abort();
    job->number = ++seen;
    if (!parse(job, line)) {
        refuse(job, NULL);
        return;
    }
    *queue_end = job;
    queue_end = &job->next;
}

/* Takes what has come on standard input, and submits the whole lines of it. */
static void take_lines(void) {
    static char buffer[4096];
    static size_t length;
    const ssize_t count = read(0, buffer + length, sizeof buffer - 1 - length);
    if (count < 0 && errno == EINTR) return;
    reading = count > 0;
    if (count > 0) length += (size_t)count;
    char *line = buffer, *end;
    buffer[length] = '\0';
    while ((end = strchr(line, '\n')) != NULL || ((!reading || length == sizeof buffer - 1) && *line != '\0')) {
        if (end == NULL) end = buffer + length - 1, end[1] = '\0';
        else *end = '\0';
        submit(line);
        line = end + 1;
    }
    length = line < buffer + length ? (size_t)(buffer + length - line) : 0;
    memmove(buffer, line, length);
}

/* Starts a job with its lease, if it has one. The sandbox holds the lease then, and gives it back at its end. */
static bool start(job_t *job, const gpuc_gpu_lease_t *lease, gpuc_error_t **error) {
    gpuc_config_t *config = gpuc_config_new_from_image(image, error);
    if (config == NULL) return false;
    const char *const command[] = {"sh", "-c", job->command, NULL};
    gpuc_config_set_store(config, store);
    gpuc_config_set_command(config, command);
    gpuc_config_set_stdio(config, 0, GPUC_STDIO_NULL);
    if (job->memory > 0) gpuc_config_set_memory_max(config, job->memory << 20);
    if (job->cpus > 0) gpuc_config_set_cpus(config, job->cpus);
    if (lease != NULL) gpuc_config_set_gpu_lease(config, lease);
    job->sandbox = gpuc_sandbox_spawn(config, error);
    gpuc_config_free(config);
    if (job->sandbox == NULL) return false;
    if (job->seconds > 0) job->end = now() + job->seconds * 1000;
    printf("job %d started as %d", job->number, gpuc_sandbox_pid(job->sandbox));
    for (size_t gpu = 0; gpu < gpuc_gpu_lease_count(lease); gpu++) printf(" %s", gpuc_gpu_lease_gpu(lease, gpu));
    printf("\n");
    return true;
}

/* Looks whether the GPUs of a job are there; false if the job is over. */
static bool look(job_t *job) {
    gpuc_error_t *error = NULL;
    gpuc_gpu_lease_t *lease = NULL;
    const int there = gpuc_gpu_ticket_wait(job->ticket, 0, &lease, &error);
    if (there == 0 || (there < 0 && gpuc_error_errno(error) == EINTR)) {
        gpuc_error_free(error);
        return true;
    }
    const bool started = there > 0 && start(job, lease, &error);
    gpuc_gpu_lease_free(lease);
    gpuc_gpu_ticket_free(job->ticket);
    job->ticket = NULL;
    if (!started) refuse(job, error);
    return started;
}

/* Brings a job from the queue to work; false if that cannot be. */
static bool begin(job_t *job) {
    gpuc_error_t *error = NULL;
    if (job->gpus == 0) {
        if (start(job, NULL, &error)) return true;
    } else {
        char words[32];
        snprintf(words, sizeof words, "count:%u", job->gpus);
        gpuc_gpu_request_t *request = gpuc_gpu_request_new(words);
        if (allocator == NULL) allocator = gpuc_gpu_allocator_open(&error);
        if (allocator != NULL) job->ticket = gpuc_gpu_allocator_enqueue(allocator, request, &error);
        gpuc_gpu_request_free(request);
        if (job->ticket != NULL) return look(job);
    }
    refuse(job, error);
    return false;
}

/* Ends a job that has run too long, or tells how one has ended; false if it is over. */
static bool attend(job_t *job) {
    gpuc_error_t *error;
    gpuc_exit_status_t status;
    const int ended = gpuc_sandbox_wait(job->sandbox, 0, &status, &error);
    if (ended < 0) {
        refuse(job, error);
        return false;
    }
    if (ended == 0) {
        if (job->end == 0 || now() < job->end) return true;
        printf("job %d has used up its time\n", job->number);
        gpuc_sandbox_kill(job->sandbox, SIGKILL, NULL);
        job->end = 0;
        return true;
    }
    if (status.signal != 0) printf("job %d was killed by signal %d", job->number, status.signal);
    else printf("job %d ended with code %d", job->number, status.code);
    printf("%s\n", status.oom_killed ? ", at its memory limit" : "");
    if (status.code == 0) well++;
    else if (stopping) cancelled++;
    else badly++;
    forget(job);
    return false;
}

/* Begins to stop, or with `at_once` kills what still runs. */
static void stop(bool at_once) {
    stopping = true;
    reading = false;
    for (; queue != NULL; cancelled++) {
        job_t *job = queue;
        queue = job->next;
        forget(job);
    }
    for (int slot = 0; slot < slot_count; slot++) {
        if (slots[slot] == NULL) continue;
        if (slots[slot]->sandbox != NULL && !at_once) {
            gpuc_sandbox_kill(slots[slot]->sandbox, SIGTERM, NULL);
        } else {
            forget(slots[slot]);
            slots[slot] = NULL;
            cancelled++;
        }
    }
}

/* Waits until something happened: a line, a signal, an end of a job, or time to look at those who wait. */
static bool await(int signals) {
    struct pollfd polled[MAX_SLOTS + 2] = {{signals, POLLIN, 0}, {reading ? 0 : -1, POLLIN, 0}};
    nfds_t count = 2;
    int timeout = stopping ? LOOK_MS : -1;
    for (int slot = 0; slot < slot_count; slot++) {
        if (slots[slot] == NULL) continue;
        /* Whoever has the GPUs may not be ours, and nothing of his can be polled. */
        if (slots[slot]->sandbox == NULL || slots[slot]->end != 0) timeout = LOOK_MS;
        const struct pollfd job = {gpuc_sandbox_fd(slots[slot]->sandbox), POLLIN, 0};
        polled[count++] = job;
    }
    if (poll(polled, count, timeout) < 0 && errno != EINTR) exit(1);
    if (polled[1].revents != 0) take_lines();
    struct signalfd_siginfo info;
    return polled[0].revents != 0 && read(signals, &info, sizeof info) == (ssize_t)sizeof info;
}

int main(int argc, char **argv) {
    gpuc_error_t *error;
    if (argc > 2) slot_count = atoi(argv[2]);
    if (slot_count < 1 || slot_count > MAX_SLOTS) {
        fprintf(stderr, "SLOTS is a number from 1 to %d\n", MAX_SLOTS);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    const int signals = signalfd(-1, &ends, SFD_CLOEXEC);
    store = gpuc_image_store_open(argc > 1 ? argv[1] : NULL, &error);
    if (store == NULL || signals < 0) fail(error);
    image = build();

    long long patience = 0;
    for (bool busy = true; busy || reading;) {
        if (await(signals)) {
            stop(stopping); /* asked twice, it does not wait any more */
            patience = now() + GRACE_MS;
        } else if (stopping && now() > patience) {
            stop(true);
        }
        busy = queue != NULL;
        for (int slot = 0; slot < slot_count; slot++) {
            job_t **place = &slots[slot];
            if (*place != NULL && !((*place)->ticket != NULL ? look(*place) : attend(*place))) *place = NULL;
            while (*place == NULL && queue != NULL) {
                *place = queue;
                if ((queue = queue->next) == NULL) queue_end = &queue;
                if (!begin(*place)) *place = NULL;
            }
            busy = busy || *place != NULL;
        }
    }
    printf("%d jobs: %d ended well, %d failed, %d cancelled\n", seen, well, badly, cancelled);
    gpuc_gpu_allocator_free(allocator);
    gpuc_image_free(image);
    gpuc_image_store_free(store);
    close(signals);
    return badly + cancelled > 0;
}
