/*
 * A stand-in for NVIDIA's nvidia-cuda-mps-control and nvidia-cuda-mps-server, as far as the ones of driver 535 were seen
 * to behave without a GPU:
 *
 *   nvidia-cuda-mps-control -f   makes control (0666), control_privileged, control_lock and the FIFO log in the directory
 *                                of pipes; says what it does on standard output, and writes no log file; starts servers by
 *                                name, for the user of a client or of start_server; leaves its files when it is killed
 *   nvidia-cuda-mps-control      sends commands, a line each, prints the answers; 1 if there is no daemon
 *   nvidia-cuda-mps-server       worse than the real one: stays when its daemon dies, and whatever signal it gets
 *
 * Its daemon also knows the command "make PATH", and says why the file cannot be made.
 *
 * With -c, which the real one does not have, it is a client: asks for a server as a program of CUDA does, prints its user,
 * and waits for the end of its standard input. The file mps-mode beside the program makes it fail: die, hang, old, deaf.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char pipes[200];

static void say(const char *who, const char *form, ...) {
    va_list list;
    printf("[2026-01-01 00:00:00.000 %s %d] ", who, getpid());
    va_start(list, form);
    vprintf(form, list);
    va_end(list);
    putchar('\n');
    fflush(stdout);
}

static const char *mode(void) {
    static char text[32];
    char path[4200];
    ssize_t length = readlink("/proc/self/exe", path, 4000);
    if (length <= 0) {
        /* As the real one: without a procfs of its own PID namespace it does not find itself. */
        return "lost";
    }
    path[length] = 0;
    strcpy(path, dirname(path));
    strcat(path, "/mps-mode");
    FILE *file = fopen(path, "r");
    if (file && fgets(text, sizeof text, file)) text[strcspn(text, "\n")] = 0;
    if (file) fclose(file);
    return text;
}

static void place(struct sockaddr_un *address, const char *name) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    if (strlen(pipes) + 1 + strlen(name) >= sizeof address->sun_path) exit(1);
    strcpy(address->sun_path, pipes);
    strcat(strcat(address->sun_path, "/"), name);
}

static int serve(const char *name, mode_t bits) {
    struct sockaddr_un address;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    place(&address, name);
    unlink(address.sun_path);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 128)) {
        say("Control", "Unable to start control daemon: %s", strerror(errno));
        exit(1);
    }
    if (bits) chmod(address.sun_path, bits);
    return fd;
}

static int meet(const char *name) {
    struct sockaddr_un address;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    place(&address, name);
    return connect(fd, (struct sockaddr *)&address, sizeof address) ? -1 : fd;
}

static double threads = 100;
static char limits[16][32];
static pid_t server;
static uid_t served;

static void start_server(uid_t user) {
    if (server && served == user) return;
    if (server) {
        kill(server, SIGKILL);
        waitpid(server, NULL, 0);
    }
    fflush(stdout);
    served = user;
    server = fork();
    if (server == 0) {
        if (setuid(user) == 0) execlp("nvidia-cuda-mps-server", "nvidia-cuda-mps-server", (char *)NULL);
        _exit(1);
    }
    say("Control", "Starting new server %d for user %d", server, user);
}

static void command(char *text, char *answer) {
    unsigned device, user;
    char value[32];
    say("Control", "Cmd:%s", text);
    if (sscanf(text, "set_default_active_thread_percentage %lf", &threads) == 1
        || strcmp(text, "get_default_active_thread_percentage") == 0) {
        sprintf(answer, "%.1f\n", threads);
    } else if (strcmp(mode(), "old") && sscanf(text, "set_default_device_pinned_mem_limit %u %31s", &device, value) == 2) {
        if (device < 16) strcpy(limits[device], value);
    } else if (strcmp(mode(), "old") && sscanf(text, "get_default_device_pinned_mem_limit %u", &device) == 1) {
        if (device < 16 && limits[device][0]) sprintf(answer, "%s\n", limits[device]);
    } else if (sscanf(text, "start_server -uid %u", &user) == 1) {
        start_server(user);
    } else if (strncmp(text, "make ", 5) == 0) {
        int fd = open(text + 5, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        sprintf(answer, "%s\n", fd < 0 ? strerror(errno) : "made");
        if (fd >= 0) close(fd);
    } else if (strcmp(text, "get_server_list") == 0) {
        if (server) sprintf(answer, "%d\n", server);
    } else {
        sprintf(answer, "Unknown command \"%s\"\n", text);
    }
}

static void attend(int fd) {
    char text[256], answer[300] = "";
    struct ucred peer;
    socklen_t size = sizeof peer;
    ssize_t length = recv(fd, text, sizeof text - 1, 0);
    if (length <= 0) return;
    text[length] = 0;
    if (strcmp(text, "CLIENT") == 0) {
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size);
        start_server(peer.uid);
        sprintf(answer, "%u", peer.uid);
        send(fd, answer, strlen(answer), MSG_NOSIGNAL);
        return;
    }
    while (length > 0) {
        answer[0] = 0;
        command(text, answer);
        /* An empty message would be an end. */
        if (send(fd, answer[0] ? answer : "\n", strlen(answer[0] ? answer : "\n"), MSG_NOSIGNAL) < 0) return;
        length = recv(fd, text, sizeof text - 1, 0);
        if (length > 0) text[length] = 0;
    }
}

static int control(void) {
    char path[256];
    const char *percent = getenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE");
    const char *trouble = mode();
    if (strcmp(trouble, "lost") == 0 || strcmp(trouble, "die") == 0) {
        say("Control", "Failed to start : the stand-in was told to (%s)", trouble);
        return 1;
    }
    if (percent && strcmp(trouble, "deaf")) threads = atof(percent);
    mkdir(getenv("CUDA_MPS_LOG_DIRECTORY"), 0700);
    umask(0);
    mkdir(pipes, 0777);
    snprintf(path, sizeof path, "%s/control_lock", pipes);
    close(open(path, O_CREAT | O_RDWR, 0666));
    snprintf(path, sizeof path, "%s/log", pipes);
    mkfifo(path, 0777);
    umask(022);
    say("Control", "Starting control daemon using socket %s/control", pipes);
    struct pollfd polled[2] = {{serve("control_privileged", 0), POLLIN, 0}, {serve("control", 0666), POLLIN, 0}};
    if (strcmp(trouble, "hang") == 0) pause();
    for (;;) {
        poll(polled, 2, -1);
        for (int n = 0; n < 2; n++) {
            if (!polled[n].revents) continue;
            int fd = accept4(polled[n].fd, NULL, NULL, SOCK_CLOEXEC);
            say("Control", "Accepting connection...");
            if (fd >= 0) attend(fd);
            close(fd);
        }
    }
}

static int interface(void) {
    char line[256], answer[300];
    int fd = meet("control_privileged");
    if (fd < 0) {
        fprintf(stderr, "Cannot find MPS control daemon process\n");
        return 1;
    }
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0) return 1;
        ssize_t length = recv(fd, answer, sizeof answer - 1, 0);
        if (length <= 0) return 1;
        answer[length] = 0;
        if (strcmp(answer, "\n")) fputs(answer, stdout);
    }
    return 0;
}

static int client(void) {
    char answer[64];
    int fd = meet("control");
    if (fd < 0 || send(fd, "CLIENT", 6, MSG_NOSIGNAL) < 0) return perror("no MPS"), 1;
    ssize_t length = recv(fd, answer, sizeof answer - 1, 0);
    if (length <= 0) return 1;
    answer[length] = 0;
    printf("served as user %s\n", answer);
    fflush(stdout);
    while (read(0, answer, sizeof answer) > 0) {}
    return 0;
}

static void serve_gpus(void) {
    char path[64];
    for (int signal = 1; signal < 32; signal++) sigaction(signal, &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
    snprintf(path, sizeof path, "/dev/shm/cuda.shm.%u.%x.1", getuid(), getpid());
    close(open(path, O_CREAT | O_RDWR, 0600));
    say("Other", "Startup");
    for (;;) pause();
}

int main(int count, char **arguments) {
    const char *directory = getenv("CUDA_MPS_PIPE_DIRECTORY");
    const char *option = count > 1 ? arguments[1] : "";
    snprintf(pipes, sizeof pipes, "%s", directory ? directory : "/tmp/nvidia-mps");
    if (strstr(arguments[0], "server")) serve_gpus();
    if (strcmp(option, "-c") == 0) return client();
    return strcmp(option, "-f") == 0 ? control() : interface();
}
