/* One pod of the synthetic node: a pause process and application processes of known sizes.
 *
 * usage: pod MOUNT_DIR TMPFS_COUNT PROCESSES_PER_CONTAINER OOM_SCORE_ADJ REPORT_FD CGROUP_PROCS...
 *
 * The first cgroup gets the pause process alone, each further one a container of its own mount namespace. Each process reports
 * itself on REPORT_FD as three ints (pid, container index, oom_score_adj read back) when it is ready, and again after each
 * SIGUSR1, on which it grows or shrinks its anonymous memory by 16 pages. All die with the process that started the pod. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { SHARED_KIB = 32, STEP_PAGES = 16, TMPFS_FILE_KIB = 16 };

static int report_fd;
static sigset_t wake;

static void die(const char *what) {
  perror(what);
  _exit(1);
}

static void write_file(const char *path, const char *text, int must) {
  int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0 || write(fd, text, strlen(text)) < 0) {
    if (must) die(path);
  }
  if (fd >= 0) close(fd);
}

static void join(const char *procs, const char *adj) {
  char pid[16];
  snprintf(pid, sizeof pid, "%d", getpid());
  write_file(procs, pid, 1);
  write_file("/proc/self/oom_score_adj", adj, 0); /* lowering it needs CAP_SYS_RESOURCE */
}

static void *filled(size_t size, int flags) {
  char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("mmap");
  memset(memory, 1, size);
  return memory;
}

static void report(int container) {
  char text[16] = {0};
  int fd = open("/proc/self/oom_score_adj", O_RDONLY | O_CLOEXEC);
  if (fd < 0 || read(fd, text, sizeof text - 1) <= 0) die("oom_score_adj");
  close(fd);
  int record[3] = {getpid(), container, atoi(text)};
  if (write(report_fd, record, sizeof record) != sizeof record) die("report");
}

static void live(const char *name, int container, int number) {
  long page = sysconf(_SC_PAGESIZE);
  prctl(PR_SET_NAME, name);
  filled((size_t)(1 + number % 4) * 65536, MAP_PRIVATE);
  if (number == 0) filled(SHARED_KIB * 1024, MAP_SHARED);
  char *step = filled(STEP_PAGES * page, MAP_PRIVATE);
  for (int grown = 1;; grown = !grown) {
    /* Before Linux 6.2, /proc shows what was faulted in only after 64 faults, or once something is unmapped. */
    munmap(filled(page, MAP_PRIVATE), page);
    report(container);
    int signal;
    sigwait(&wake, &signal);
    if (grown)
      madvise(step, STEP_PAGES * page, MADV_DONTNEED);
    else
      memset(step, 1, STEP_PAGES * page);
  }
}

static pid_t child(void) {
  pid_t parent = getpid(), pid = fork();
  if (pid < 0) die("fork");
  if (!pid) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
  }
  return pid;
}

int main(int argc, char **argv) {
  if (argc < 7) return 2;
  int tmpfs = atoi(argv[2]), processes = atoi(argv[3]);
  report_fd = atoi(argv[5]);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  sigemptyset(&wake);
  sigaddset(&wake, SIGUSR1);
  sigprocmask(SIG_BLOCK, &wake, NULL);
  if (unshare(CLONE_NEWNS | CLONE_NEWIPC)) die("unshare");
  if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL)) die("make private");
  for (int i = 0; i < tmpfs; i++) {
    char path[4096];
    static char content[TMPFS_FILE_KIB * 1024 + 1];
    snprintf(path, sizeof path, "%s/%d", argv[1], i);
    if (mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m")) die("mount tmpfs");
    memset(content, 'x', sizeof content - 1);
    strcat(path, "/file");
    write_file(path, content, 1);
  }
  for (int container = 1; container < argc - 6; container++) {
    if (child()) continue;
    if (unshare(CLONE_NEWNS)) die("unshare");
    join(argv[6 + container], argv[4]);
    for (int number = 1; number < processes; number++)
      if (!child()) live("worker", container, number);
    live("app", container, 0);
  }
  join(argv[6], "-998");
  live("pause", 0, 1);
}
