/* Preloaded into a child process: records what it does to the files below a directory, and what it says on its
 * standard output, in the order in which it happens; and can pretend that the disk is full.
 *
 * RECORDER_DIRECTORY  only files below it
 * RECORDER_LOG        where records are appended; none if unset
 * RECORDER_SPACE      how many bytes the files may grow before writing fails with ENOSPC; no limit if unset
 *
 * A record: op (1 byte), inode (8), offset or number (8), length of a and of b (4 each), a, b. Native byte order.
 *   C created a   M made directory a   R renamed a to b   U removed a
 *   W wrote a at offset   T cut to offset   S sync number began   E sync number ended   A said a
 *
 * A write that ended before a sync began is recorded before it, however the threads are scheduled: otherwise it would
 * look as if the sync had not covered it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Held from before a change until it is recorded, and while the beginning of a sync is. */
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static const char *directory;
static int log_fd = -1;
static int64_t space = -1;
static uint64_t syncs;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void start(void)
{
    directory = getenv("RECORDER_DIRECTORY");
    const char *path = getenv("RECORDER_LOG"), *bytes = getenv("RECORDER_SPACE");
    if (path)
        log_fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (bytes)
        space = atoll(bytes);
}

static void record(char op, uint64_t inode, uint64_t number, const void *a, uint32_t a_len, const void *b, uint32_t b_len)
{
    if (log_fd < 0)
        return;
    char head[25];
    head[0] = op;
    memcpy(head + 1, &inode, 8);
    memcpy(head + 9, &number, 8);
    memcpy(head + 17, &a_len, 4);
    memcpy(head + 21, &b_len, 4);
    struct iovec parts[3] = {{head, 25}, {(void *)a, a_len}, {(void *)b, b_len}};
    size_t all = 25 + (size_t)a_len + b_len;
    pthread_mutex_lock(&lock);
    if ((size_t)syscall(SYS_writev, log_fd, parts, 3) != all)
        abort();
    pthread_mutex_unlock(&lock);
}

static int below(const char *path)
{
    size_t length = directory ? strlen(directory) : 0;
    return length && strncmp(path, directory, length) == 0 && path[length] == '/';
}

/* The path of a file that we record, else 0. */
static int path_of(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    return below(path);
}

static uint64_t inode_of(int fd)
{
    struct stat found;
    return fstat(fd, &found) == 0 ? found.st_ino : 0;
}

static int opened(int existed, int flags, int fd, const char *path)
{
    if (fd < 0 || !path || !below(path))
        return fd;
    if (!existed)
        record('C', inode_of(fd), 0, path, strlen(path), "", 0);
    else if (flags & O_TRUNC)
        record('T', inode_of(fd), 0, "", 0, "", 0);
    return fd;
}

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = va_arg(rest, mode_t);                                                                            \
        va_end(rest);                                                                                                  \
        int existed = syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0;                                               \
        return opened(existed, flags, REAL(name)(path, flags, mode), path);                                            \
    }
OPEN(open)
OPEN(open64)

static int64_t grows(int fd, int64_t end)
{
    struct stat found;
    if (fstat(fd, &found) != 0 || !S_ISREG(found.st_mode) || end <= found.st_size)
        return 0;
    return end - found.st_size;
}

/* Whether a write that ends at `end` finds space. */
static int fits(int fd, int64_t end)
{
    if (space < 0)
        return 1;
    int64_t more = grows(fd, end);
    pthread_mutex_lock(&lock);
    int fits = more <= space;
    space = fits ? space - more : space;
    pthread_mutex_unlock(&lock);
    return fits;
}

static ssize_t written_at(int fd, const void *bytes, size_t length, int64_t offset, int64_t at)
{
    char path[PATH_MAX];
    int ours = path_of(fd, path);
    if (ours && !fits(fd, (offset < 0 ? at : offset) + (int64_t)length)) {
        errno = ENOSPC;
        return -1;
    }
    if (ours)
        pthread_mutex_lock(&order);
    ssize_t done = offset < 0 ? syscall(SYS_write, fd, bytes, length) : syscall(SYS_pwrite64, fd, bytes, length, offset);
    int error = errno;
    if (ours && done > 0)
        record('W', inode_of(fd), offset < 0 ? at : offset, bytes, done, "", 0);
    if (ours)
        pthread_mutex_unlock(&order);
    errno = error;
    return done;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset)
{
    return written_at(fd, bytes, length, offset, 0);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset)
{
    return written_at(fd, bytes, length, offset, 0);
}

ssize_t write(int fd, const void *bytes, size_t length)
{
    if (fd == 1)
        record('A', 0, 0, bytes, length, "", 0);
    return written_at(fd, bytes, length, -1, lseek(fd, 0, SEEK_CUR));
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    ssize_t all = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = write(fd, parts[i].iov_base, parts[i].iov_len);
        if (done < 0)
            return all ? all : done;
        all += done;
        if ((size_t)done < parts[i].iov_len)
            break;
    }
    return all;
}

static int cut(int fd, int64_t length)
{
    char path[PATH_MAX];
    pthread_mutex_lock(&order);
    int done = (int)syscall(SYS_ftruncate, fd, length), error = errno;
    if (done == 0 && path_of(fd, path))
        record('T', inode_of(fd), length, "", 0, "", 0);
    pthread_mutex_unlock(&order);
    errno = error;
    return done;
}

int ftruncate(int fd, off_t length)
{
    return cut(fd, length);
}

int ftruncate64(int fd, off64_t length)
{
    return cut(fd, length);
}

static int synced(int fd, long call)
{
    char path[PATH_MAX];
    int ours = path_of(fd, path) || (directory && strcmp(path, directory) == 0);
    uint64_t inode = ours ? inode_of(fd) : 0, number = 0;
    if (ours) {
        number = __atomic_add_fetch(&syncs, 1, __ATOMIC_SEQ_CST) + ((uint64_t)getpid() << 32);
        pthread_mutex_lock(&order);
        record('S', inode, number, "", 0, "", 0);
        pthread_mutex_unlock(&order);
    }
    int done = (int)syscall(call, fd);
    if (ours && done == 0)
        record('E', inode, number, "", 0, "", 0);
    return done;
}

int fsync(int fd)
{
    return synced(fd, SYS_fsync);
}

int fdatasync(int fd)
{
    return synced(fd, SYS_fdatasync);
}

int rename(const char *from, const char *to)
{
    int done = REAL(rename)(from, to);
    if (done == 0 && below(to))
        record('R', 0, 0, from, strlen(from), to, strlen(to));
    return done;
}

int unlink(const char *path)
{
    int done = REAL(unlink)(path);
    if (done == 0 && below(path))
        record('U', 0, 0, path, strlen(path), "", 0);
    return done;
}

int mkdir(const char *path, mode_t mode)
{
    int done = REAL(mkdir)(path, mode);
    struct stat found;
    if (done == 0 && below(path) && stat(path, &found) == 0)
        record('M', found.st_ino, 0, path, strlen(path), "", 0);
    return done;
}
