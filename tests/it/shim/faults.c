/* Loaded before libc by LD_PRELOAD: what a process does to the files of one directory is counted, and at a given place it
 * dies or is told an error. Settings from the environment, so that nothing of this is in the program:
 *   SHIM_DIR      files below this path are meant
 *   SHIM_LOG      one byte is appended for each of its operations: w write, s sync, n change of a name or length
 *   SHIM_KILL_AT  SIGKILL at this operation, counted from 1; odd ones before it is done, even ones after it
 *   SHIM_KILL_ON  SIGKILL after a write that contains this text
 *   SHIM_FAIL     while this file exists, operations fail with the error number it holds, opening for writing too
 *   SHIM_CLOCK    this file holds seconds that are added to the wall clock
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static atomic_long done;

static int meant_path(const char *path) {
    const char *dir = getenv("SHIM_DIR");
    return dir && path && strncmp(path, dir, strlen(dir)) == 0;
}

static int meant(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return meant_path(path);
}

static int read_number(const char *name, long *number) {
    const char *path = getenv(name);
    if (!path) return 0;
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    char text[32] = {0};
    ssize_t length = syscall(SYS_read, fd, text, sizeof text - 1);
    close(fd);
    *number = atol(text);
    return length > 0;
}

static void die(void) { syscall(SYS_kill, getpid(), SIGKILL); for (;;) pause(); }

/* Before an operation: its number, or -1 where it is to fail. */
static long before(char kind) {
    long error, at = atomic_fetch_add(&done, 1) + 1;
    const char *log = getenv("SHIM_LOG"), *kill_at = getenv("SHIM_KILL_AT");
    if (log) {
        int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        if (fd >= 0) { syscall(SYS_write, fd, &kind, 1); close(fd); }
    }
    if (kill_at && atol(kill_at) == at && at % 2) die();
    if (read_number("SHIM_FAIL", &error)) { errno = error; return -1; }
    return at;
}

static void after(long at, const void *data, size_t length) {
    const char *kill_at = getenv("SHIM_KILL_AT"), *text = getenv("SHIM_KILL_ON");
    if (kill_at && atol(kill_at) == at) die();
    if (text && data && memmem(data, length, text, strlen(text))) die();
}

#define DO(kind, is_meant, call, data, length) \
    if (!(is_meant)) return call; \
    long at = before(kind); \
    if (at < 0) return -1; \
    __typeof__(call) result = call; \
    int kept = errno; \
    after(at, data, length); \
    errno = kept; \
    return result

ssize_t write(int fd, const void *data, size_t length) { DO('w', meant(fd), REAL(write)(fd, data, length), data, length); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t to) { DO('w', meant(fd), REAL(pwrite)(fd, data, length, to), data, length); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t to) { DO('w', meant(fd), REAL(pwrite64)(fd, data, length, to), data, length); }
ssize_t writev(int fd, const struct iovec *data, int count) { DO('w', meant(fd), REAL(writev)(fd, data, count), NULL, 0); }
int ftruncate(int fd, off_t length) { DO('n', meant(fd), REAL(ftruncate)(fd, length), NULL, 0); }
int ftruncate64(int fd, off64_t length) { DO('n', meant(fd), REAL(ftruncate64)(fd, length), NULL, 0); }
int fallocate(int fd, int mode, off_t from, off_t length) { DO('n', meant(fd), REAL(fallocate)(fd, mode, from, length), NULL, 0); }
int fsync(int fd) { DO('s', meant(fd), REAL(fsync)(fd), NULL, 0); }
int fdatasync(int fd) { DO('s', meant(fd), REAL(fdatasync)(fd), NULL, 0); }
int rename(const char *from, const char *to) { DO('n', meant_path(to), REAL(rename)(from, to), NULL, 0); }
int unlink(const char *path) { DO('n', meant_path(path), REAL(unlink)(path), NULL, 0); }

static int may_open(const char *path, int flags) {
    long error;
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && meant_path(path) && read_number("SHIM_FAIL", &error)) {
        errno = error;
        return 0;
    }
    return 1;
}

#define OPEN(name, give) \
    mode_t mode = 0; \
    if (flags & O_CREAT) { va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); } \
    return may_open(path, flags) ? REAL(name)give : -1

int open(const char *path, int flags, ...) { OPEN(open, (path, flags, mode)); }
int open64(const char *path, int flags, ...) { OPEN(open64, (path, flags, mode)); }
int openat(int dir, const char *path, int flags, ...) { OPEN(openat, (dir, path, flags, mode)); }
int openat64(int dir, const char *path, int flags, ...) { OPEN(openat64, (dir, path, flags, mode)); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    long seconds;
    int result = REAL(clock_gettime)(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME && read_number("SHIM_CLOCK", &seconds)) now->tv_sec += seconds;
    return result;
}
