/*
 * The floor: the system calls of a container start, in order, and nothing else.
 *
 * One process answers each line on its standard input by starting one container, waiting for it and
 * giving everything back, and prints "WALL CPU" in nanoseconds, or "error: WHAT". So the price of
 * starting this very program is in no figure.
 *
 *   floor start ROOT FILTER KEEP [overlay SCRATCH | user | init]
 *   floor exec  PID  FILTER KEEP CGROUP
 *
 * ROOT    a directory with bin/true, proc, sys, dev, tmp
 * FILTER  a file of seccomp instructions as the kernel reads them
 * KEEP    the capabilities that stay, a hexadecimal mask
 * CGROUP  the name of the cgroup that PID is in, below each v1 hierarchy
 *
 * A start: mount, uts, ipc, pid, network and cgroup namespaces; the root with proc, a dev of its own,
 * pts, shm, mqueue, sys and the cgroups in it; masked and read-only paths; pivot_root; loopback up, its low
 * ports free for all; capabilities, a limit on files, no_new_privs, the filter; memory, cpu and pids limited. The child shares memory with its parent,
 * which sleeps until it executes the program, so the size of the parent does not count. With "user" it is
 * a copy instead, since somebody must write the identity maps meanwhile; this process is small. With "init" the child
 * stays as process 1, forks the one that goes on, and reaps it, as every container with an init has it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define LAST_CAPABILITY 40
#define PATH_SIZE 512

enum kind { PLAIN, OVERLAY, USER, INIT };

static const char *root_path, *scratch_path;
static enum kind kind;
static int enter_pid;
static uint64_t keep;
static struct sock_fprog filter;

/* Written by the child, which shares this memory; read by the parent after it has ended. */
static const char *volatile failed_step;
static volatile int failed_errno;
/* A child that is a copy tells through this pipe, and waits for its maps on the other. */
static int report_pipe[2] = {-1, -1}, go_pipe[2] = {-1, -1};

static const char *const hierarchies[] = {"memory", "cpu", "pids"};
static int join_fds[LENGTH(hierarchies)];
static int join_count;
static int cgroup2;

static char overlay_options[3 * PATH_SIZE];

static const struct { const char *name; unsigned major, minor; } nodes[] = {
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
};
static const char *const links[][2] = {
	{"/proc/self/fd", "dev/fd"}, {"/proc/self/fd/0", "dev/stdin"}, {"/proc/self/fd/1", "dev/stdout"},
	{"/proc/self/fd/2", "dev/stderr"}, {"pts/ptmx", "dev/ptmx"},
};
static const char *const masked[] = {
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
	"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
};
static const char *const readonly[] = {
	"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
};

static void fail(const char *step)
{
	failed_step = step;
	failed_errno = errno;
	if (report_pipe[1] >= 0) {
		char text[200];
		int length = snprintf(text, sizeof text, "%s: %s", step, strerror(errno));
		if (write(report_pipe[1], text, length) < 0) { }
	}
	_exit(126);
}

#define TRY(call) do { if ((call) < 0) fail(#call); } while (0)

static void limit_privileges(void)
{
	struct rlimit files = {1024, 4096};
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct sets[2];

	TRY(setrlimit(RLIMIT_NOFILE, &files));
	for (int capability = 0; capability <= LAST_CAPABILITY; capability++)
		if (!(keep >> capability & 1))
			TRY(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0));
	memset(sets, 0, sizeof sets);
	sets[0].permitted = sets[0].effective = (uint32_t)keep;
	sets[1].permitted = sets[1].effective = (uint32_t)(keep >> 32);
	TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	TRY(syscall(SYS_capset, &header, sets));
	TRY(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter));
}

static void join_cgroups(void)
{
	for (int i = 0; i < join_count; i++)
		TRY(write(join_fds[i], "0", 1));
}

static void loopback_up(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		fail("socket");
	TRY(ioctl(fd, SIOCSIFFLAGS, &request));
	close(fd);
}

static void make_devices(void)
{
	char path[64];
	mode_t old = umask(0);

	TRY(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"));
	for (size_t i = 0; i < LENGTH(nodes); i++) {
		snprintf(path, sizeof path, "dev/%s", nodes[i].name);
		if (kind == USER) {
			char host[64];
			int fd = open(path, O_CREAT | O_CLOEXEC | O_WRONLY, 0666);
			if (fd < 0)
				fail("open(dev/...)");
			close(fd);
			snprintf(host, sizeof host, "/dev/%s", nodes[i].name);
			TRY(mount(host, path, NULL, MS_BIND, NULL));
		} else {
			TRY(mknod(path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)));
		}
	}
	for (size_t i = 0; i < LENGTH(links); i++)
		TRY(symlink(links[i][0], links[i][1]));
	TRY(mkdir("dev/pts", 0755));
	TRY(mkdir("dev/shm", 01777));
	TRY(mkdir("dev/mqueue", 01777));
	umask(old);
	TRY(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"));
	TRY(mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=1777,size=65536k"));
	TRY(mount("mqueue", "dev/mqueue", "mqueue", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL));
}

static void mount_cgroups(void)
{
	char path[64];
	const unsigned long flags = MS_NOSUID | MS_NOEXEC | MS_NODEV;

	if (cgroup2) {
		TRY(mount("cgroup2", "sys/fs/cgroup", "cgroup2", flags | MS_RDONLY, NULL));
		return;
	}
	TRY(mount("tmpfs", "sys/fs/cgroup", "tmpfs", flags, "mode=755"));
	for (size_t i = 0; i < LENGTH(hierarchies); i++) {
		snprintf(path, sizeof path, "sys/fs/cgroup/%s", hierarchies[i]);
		TRY(mkdir(path, 0755));
		TRY(mount("cgroup", path, "cgroup", flags | MS_RDONLY, hierarchies[i]));
	}
	TRY(mount(NULL, "sys/fs/cgroup", NULL, MS_BIND | MS_REMOUNT | flags | MS_RDONLY, NULL));
}

static void set_parameter(void)
{
	int fd = open("proc/sys/net/ipv4/ip_unprivileged_port_start", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		fail("open(ip_unprivileged_port_start)");
	TRY(write(fd, "0", 1));
	close(fd);
}

static void cover_paths(void)
{
	for (size_t i = 0; i < LENGTH(masked); i++) {
		if (mount("/dev/null", masked[i], NULL, MS_BIND, NULL) == 0 || errno == ENOENT)
			continue;
		if (errno != ENOTDIR)
			fail(masked[i]);
		TRY(mount("tmpfs", masked[i], "tmpfs", MS_RDONLY, "size=0k"));
	}
	for (size_t i = 0; i < LENGTH(readonly); i++) {
		if (mount(readonly[i], readonly[i], NULL, MS_BIND | MS_REC, NULL) < 0) {
			if (errno == ENOENT)
				continue;
			fail(readonly[i]);
		}
		TRY(mount(NULL, readonly[i], NULL,
			  MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
	}
}

/* From its own namespaces to the program. */
static int go_on(void *unused)
{
	static char *const arguments[] = {"/bin/true", NULL};
	static char *const environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
	sigset_t none;

	(void)unused;
	TRY(setsid());
	TRY(sethostname("floor", 5));
	loopback_up();
	TRY(mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL));
	if (kind == OVERLAY)
		TRY(mount("overlay", root_path, "overlay", 0, overlay_options));
	else
		TRY(mount(root_path, root_path, NULL, MS_BIND | MS_REC, NULL));
	TRY(chdir(root_path));
	TRY(mount("proc", "proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL));
	make_devices();
	TRY(mount("sysfs", "sys", "sysfs", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL));
	mount_cgroups();
	set_parameter();
	TRY(syscall(SYS_pivot_root, ".", "."));
	TRY(umount2(".", MNT_DETACH));
	TRY(chdir("/"));
	cover_paths();
	limit_privileges();
	TRY(close_range(3, ~0U, CLOSE_RANGE_CLOEXEC));
	sigemptyset(&none);
	TRY(sigprocmask(SIG_SETMASK, &none, NULL));
	execve(arguments[0], arguments, environment);
	fail("execve");
	return 0;
}

/* Process 1: waits for a signal, and ends as its child does. All signals are blocked. */
static int stay(void)
{
	static char stack[64 * 1024] __attribute__((aligned(16)));
	struct signalfd_siginfo info;
	sigset_t all;
	int status;
	pid_t pid = clone(go_on, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);

	if (pid < 0)
		fail("clone");
	sigfillset(&all);
	struct pollfd signals = {.fd = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK), .events = POLLIN};
	if (signals.fd < 0)
		fail("signalfd");
	for (;;) {
		pid_t ended = waitpid(-1, &status, WNOHANG);
		if (ended == pid)
			_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
		if (ended < 0)
			fail("waitpid");
		if (ended > 0)
			continue;
		TRY(poll(&signals, 1, -1));
		TRY(read(signals.fd, &info, sizeof info));
	}
}

static int start_child(void *unused)
{
	(void)unused;
	join_cgroups();
	if (kind == USER) {
		char byte;
		close(go_pipe[1]);
		if (read(go_pipe[0], &byte, 1) != 1)
			fail("read(go)");
		TRY(syscall(SYS_setresgid, 0, 0, 0));
		TRY(syscall(SYS_setgroups, 0, NULL));
		TRY(syscall(SYS_setresuid, 0, 0, 0));
	}
	TRY(unshare(CLONE_NEWCGROUP));
	return kind == INIT ? stay() : go_on(NULL);
}

static int exec_child(void *argument)
{
	static char *const arguments[] = {"/bin/true", NULL};
	static char *const environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
	sigset_t none;

	join_cgroups();
	TRY(setns(*(int *)argument, CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP));
	TRY(setsid());
	TRY(chdir("/"));
	limit_privileges();
	TRY(close_range(3, ~0U, CLOSE_RANGE_CLOEXEC));
	sigemptyset(&none);
	TRY(sigprocmask(SIG_SETMASK, &none, NULL));
	execve(arguments[0], arguments, environment);
	fail("execve");
	return 0;
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t written = write(fd, text, strlen(text));
	close(fd);
	return written < 0 ? -1 : 0;
}

static int limit(const char *directory, const char *file, const char *value)
{
	char path[PATH_SIZE];
	snprintf(path, sizeof path, "%s/%s", directory, file);
	return write_file(path, value);
}

/* Makes or removes the cgroup `name`; leaves what it joins by in `join_fds`. */
static int cgroups(const char *name, int make)
{
	char path[PATH_SIZE];

	if (cgroup2) {
		snprintf(path, sizeof path, "/sys/fs/cgroup/%s", name);
		if (!make)
			return rmdir(path);
		if (mkdir(path, 0755) < 0 || limit(path, "memory.max", "536870912") < 0 ||
		    limit(path, "cpu.max", "100000 100000") < 0 || limit(path, "pids.max", "512") < 0)
			return -1;
		join_fds[0] = open(path, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
		return join_fds[0] < 0 ? -1 : 0;
	}
	for (size_t i = 0; i < LENGTH(hierarchies); i++) {
		snprintf(path, sizeof path, "/sys/fs/cgroup/%s/%s", hierarchies[i], name);
		if (!make) {
			if (rmdir(path) < 0)
				return -1;
			continue;
		}
		if (mkdir(path, 0755) < 0)
			return -1;
		if ((i == 0 && limit(path, "memory.limit_in_bytes", "536870912") < 0) ||
		    (i == 1 && limit(path, "cpu.cfs_quota_us", "100000") < 0) ||
		    (i == 2 && limit(path, "pids.max", "512") < 0))
			return -1;
		strcat(path, "/tasks");
		join_fds[i] = open(path, O_WRONLY | O_CLOEXEC);
		if (join_fds[i] < 0)
			return -1;
		join_count = (int)i + 1;
	}
	return 0;
}

static int remove_tree(int parent, const char *name)
{
	int fd = openat(parent, name, O_DIRECTORY | O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -1;
	DIR *directory = fdopendir(fd);
	for (struct dirent *entry; (entry = readdir(directory));) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (unlinkat(fd, entry->d_name, 0) < 0 && errno == EISDIR)
			remove_tree(fd, entry->d_name);
	}
	closedir(directory);
	return unlinkat(parent, name, AT_REMOVEDIR);
}

static long long now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static long long cpu(int who)
{
	struct rusage usage;
	getrusage(who, &usage);
	return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000000LL +
	       (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000LL;
}

#define CHECK(call) do { if ((call) < 0) { *what = #call; return -1; } } while (0)

static pid_t clone_child(uint64_t flags, int (*function)(void *), void *argument)
{
	static char stack[64 * 1024] __attribute__((aligned(16)));
	/* glibc's clone keeps the calling convention; clone3 is needed for the cgroup alone. */
	if (flags & CLONE_INTO_CGROUP) {
		struct clone_args arguments = {
			.flags = flags & ~(uint64_t)(CLONE_VM | CLONE_VFORK),
			.exit_signal = SIGCHLD,
			.cgroup = (uint64_t)join_fds[0],
		};
		pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
		if (pid == 0)
			_exit(function(argument));
		return pid;
	}
	return clone(function, stack + sizeof stack, (int)flags | SIGCHLD, argument);
}

static int start(unsigned number, const char **what)
{
	char name[64], path[PATH_SIZE];
	int status;
	uint64_t flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET;

	snprintf(name, sizeof name, "gpuc-floor-%d-%u", (int)getpid(), number);
	CHECK(cgroups(name, 1));
	if (cgroup2)
		flags |= CLONE_INTO_CGROUP;
	if (kind == OVERLAY) {
		snprintf(path, sizeof path, "%s/%s", scratch_path, name);
		CHECK(mkdir(path, 0755));
		size_t length = strlen(path);
		strcpy(path + length, "/upper");
		CHECK(mkdir(path, 0755));
		strcpy(path + length, "/work");
		CHECK(mkdir(path, 0755));
		path[length] = 0;
		snprintf(overlay_options, sizeof overlay_options, "lowerdir=%s,upperdir=%s/upper,workdir=%s/work,volatile",
			 root_path, path, path);
	}
	if (kind == USER) {
		CHECK(pipe2(go_pipe, O_CLOEXEC));
		CHECK(pipe2(report_pipe, O_CLOEXEC));
		flags |= CLONE_NEWUSER;
	} else {
		flags |= CLONE_VM | CLONE_VFORK;
	}
	failed_step = NULL;
	pid_t pid = clone_child(flags, start_child, NULL);
	CHECK(pid);
	if (kind == USER) {
		char file[64], text[200];
		snprintf(file, sizeof file, "/proc/%d/uid_map", (int)pid);
		CHECK(write_file(file, "0 1000000 65536"));
		snprintf(file, sizeof file, "/proc/%d/gid_map", (int)pid);
		CHECK(write_file(file, "0 1000000 65536"));
		CHECK(write(go_pipe[1], "", 1));
		close(report_pipe[1]);
		ssize_t length = read(report_pipe[0], text, sizeof text - 1);
		if (length > 0)
			fprintf(stderr, "floor: %.*s\n", (int)length, text);
		close(report_pipe[0]);
		close(go_pipe[0]);
		close(go_pipe[1]);
		report_pipe[1] = -1;
	}
	CHECK(waitpid(pid, &status, 0));
	for (int i = 0; i < (cgroup2 ? 1 : join_count); i++)
		close(join_fds[i]);
	CHECK(cgroups(name, 0));
	if (kind == OVERLAY)
		CHECK(remove_tree(AT_FDCWD, path));
	if (status != 0) {
		errno = failed_errno;
		*what = failed_step ? failed_step : "the program";
		return -1;
	}
	return 0;
}

static int enter(int pidfd, int own_pidns, const char **what)
{
	int status;

	CHECK(setns(pidfd, CLONE_NEWPID));
	failed_step = NULL;
	pid_t pid = clone_child(CLONE_VM | CLONE_VFORK, exec_child, &pidfd);
	CHECK(pid);
	CHECK(setns(own_pidns, CLONE_NEWPID));
	CHECK(waitpid(pid, &status, 0));
	if (status != 0) {
		errno = failed_errno;
		*what = failed_step ? failed_step : "the program";
		return -1;
	}
	return 0;
}

static int read_filter(const char *path)
{
	struct stat info;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &info) < 0)
		return -1;
	filter.len = (unsigned short)(info.st_size / 8);
	filter.filter = malloc((size_t)info.st_size);
	ssize_t length = read(fd, filter.filter, (size_t)info.st_size);
	close(fd);
	return length == info.st_size && length > 0 ? 0 : -1;
}

int main(int count, char **arguments)
{
	char line[64];
	int pidfd = -1, own_pidns = -1;
	unsigned number = 0;

	if (count < 5 || read_filter(arguments[3]) < 0) {
		fprintf(stderr, "usage: floor start ROOT FILTER KEEP [overlay SCRATCH | user | init]\n"
				"       floor exec PID FILTER KEEP CGROUP\n");
		return 2;
	}
	keep = strtoull(arguments[4], NULL, 16);
	cgroup2 = access("/sys/fs/cgroup/cgroup.controllers", F_OK) == 0;
	if (!strcmp(arguments[1], "exec") && count == 6) {
		enter_pid = atoi(arguments[2]);
		pidfd = (int)syscall(SYS_pidfd_open, enter_pid, 0);
		own_pidns = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
		if (pidfd < 0 || own_pidns < 0) {
			perror("floor: pidfd_open");
			return 1;
		}
		for (size_t i = 0; !cgroup2 && i < LENGTH(hierarchies); i++) {
			char path[PATH_SIZE];
			snprintf(path, sizeof path, "/sys/fs/cgroup/%s/%s/tasks", hierarchies[i], arguments[5]);
			join_fds[i] = open(path, O_WRONLY | O_CLOEXEC);
			if (join_fds[i] < 0) {
				perror(path);
				return 1;
			}
			join_count = (int)i + 1;
		}
	} else {
		root_path = arguments[2];
		if (count == 7 && !strcmp(arguments[5], "overlay")) {
			kind = OVERLAY;
			scratch_path = arguments[6];
		} else if (count == 6 && !strcmp(arguments[5], "user")) {
			kind = USER;
		} else if (count == 6 && !strcmp(arguments[5], "init")) {
			kind = INIT;
		}
	}
	while (fgets(line, sizeof line, stdin)) {
		const char *what = NULL;
		sigset_t all, old;
		long long cpu_before = cpu(RUSAGE_SELF) + cpu(RUSAGE_CHILDREN), before = now();
		sigfillset(&all);
		sigprocmask(SIG_BLOCK, &all, &old);
		int result = pidfd >= 0 ? enter(pidfd, own_pidns, &what) : start(number++, &what);
		int saved = errno;
		sigprocmask(SIG_SETMASK, &old, NULL);
		long long wall = now() - before;
		long long used = cpu(RUSAGE_SELF) + cpu(RUSAGE_CHILDREN) - cpu_before;
		if (result < 0)
			printf("error: %s: %s\n", what, strerror(saved));
		else
			printf("%lld %lld\n", wall, used);
		fflush(stdout);
	}
	return 0;
}
