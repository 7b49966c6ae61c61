/* A file layer that forgets what was not flushed, for LD_PRELOAD: writes to files whose path begins with $POWER_FILE (but not to *-shm,
 * which is memory) are noted until fsync or fdatasync of that file. At write number $POWER_AFTER the power goes: every unflushed write is taken
 * back, except some (by $POWER_SEED) that reached the disk anyway, whole or in part, in no order; then the process is killed.
 * With $POWER_REFUSE naming a file that exists, flushing fails with EIO. Built and used by tests/test_live_journal_faults.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
  dev_t dev;
  ino_t ino;
  char *path; /* not a descriptor: closing any of a file's descriptors would end SQLite's locks on it */
  off_t at, size_before; /* size of the file before this write */
  size_t n, n_old;
  char *now, *old;
} Note;

static Note *notes;
static size_t n_notes, room;
static long writes_left = -1;
static unsigned long long dice;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_fsync)(int), (*real_fdatasync)(int), (*real_truncate)(int, off_t);

__attribute__((constructor)) static void begin(void) {
  real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
  real_fsync = dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
  real_truncate = dlsym(RTLD_NEXT, "ftruncate64");
  if (getenv("POWER_AFTER")) writes_left = atol(getenv("POWER_AFTER"));
  dice = getenv("POWER_SEED") ? strtoull(getenv("POWER_SEED"), 0, 10) * 2654435761u + 88172645463325252ull : 1;
}

static unsigned rnd(void) {
  dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
  return (unsigned)(dice >> 11);
}

static char *path_of(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, 4095);
  path[n > 0 ? n : 0] = 0;
  return path;
}

static int ours(int fd) {
  char path[4096];
  const char *want = getenv("POWER_FILE");
  if (!want) return 0;
  size_t n = strlen(path_of(fd, path));
  return !strncmp(path, want, strlen(want)) && !(n > 4 && !strcmp(path + n - 4, "-shm"));
}

static void note(int fd, const void *now, size_t n, off_t at) {
  struct stat s;
  char path[4096];
  if (fstat(fd, &s)) return;
  if (n_notes == room) notes = realloc(notes, (room = room ? 2 * room : 1024) * sizeof *notes);
  Note *x = &notes[n_notes++];
  *x = (Note){s.st_dev, s.st_ino, strdup(path_of(fd, path)), at, s.st_size, n, 0, malloc(n + 1), malloc(n + 1)};
  if (n) memcpy(x->now, now, n);
  ssize_t got = pread(fd, x->old, n, at);
  x->n_old = got > 0 ? got : 0;
}

static void drop(Note *x) { free(x->path), free(x->now), free(x->old); }

static void flushed(int fd) {
  struct stat s;
  if (fstat(fd, &s)) return;
  size_t kept = 0;
  for (size_t i = 0; i < n_notes; i++) {
    if (notes[i].dev == s.st_dev && notes[i].ino == s.st_ino) drop(&notes[i]);
    else notes[kept++] = notes[i];
  }
  n_notes = kept;
}

static void power_off(void) {
  for (size_t i = n_notes; i-- > 0;) { /* back to what is surely on the disk ... */
    Note *x = &notes[i];
    int fd = open(x->path, O_RDWR);
    if (x->n_old) real_pwrite(fd, x->old, x->n_old, x->at);
    real_truncate(fd, x->size_before);
    close(fd);
  }
  for (size_t i = 0; i < n_notes; i++) { /* ... and some of the rest, which may have been written by chance */
    Note *x = &notes[i];
    unsigned d = rnd() % 4;
    int fd = open(x->path, O_RDWR);
    if (d == 0 && x->n) real_pwrite(fd, x->now, x->n, x->at);
    if (d == 1 && x->n > 512) real_pwrite(fd, x->now, x->n / 512 * 512 / 2, x->at);
    close(fd);
  }
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

ssize_t pwrite64(int fd, const void *from, size_t n, off_t at) {
  if (!ours(fd)) return real_pwrite(fd, from, n, at);
  pthread_mutex_lock(&lock);
  note(fd, from, n, at);
  ssize_t done = real_pwrite(fd, from, n, at);
  if (writes_left > 0 && --writes_left == 0) power_off();
  pthread_mutex_unlock(&lock);
  return done;
}
ssize_t pwrite(int fd, const void *from, size_t n, off_t at) { return pwrite64(fd, from, n, at); }

int ftruncate64(int fd, off_t size) {
  if (!ours(fd)) return real_truncate(fd, size);
  pthread_mutex_lock(&lock);
  struct stat s;
  if (!fstat(fd, &s) && s.st_size > size) { /* what is cut off can come back */
    char *old = malloc(s.st_size - size);
    ssize_t got = pread(fd, old, s.st_size - size, size);
    note(fd, old, got > 0 ? got : 0, size);
    notes[n_notes - 1].n = 0; /* a cut has nothing to write again */
    free(old);
  }
  int done = real_truncate(fd, size);
  pthread_mutex_unlock(&lock);
  return done;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int flush(int fd, int (*real)(int)) {
  if (!ours(fd)) return real(fd);
  const char *refuse = getenv("POWER_REFUSE");
  if (refuse && !access(refuse, F_OK)) return errno = EIO, -1;
  pthread_mutex_lock(&lock);
  flushed(fd); /* the machine stays on, so nothing needs to reach a disk here */
  pthread_mutex_unlock(&lock);
  return 0;
}
int fsync(int fd) { return flush(fd, real_fsync); }
int fdatasync(int fd) { return flush(fd, real_fdatasync); }
