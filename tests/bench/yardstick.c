/* The yardstick, "C reads all": what a plain C program spends on reading everything that a node report needs, with nothing
 * remembered between passes. For each process: status, oom_score_adj, oom_score, cgroup and the ns/mnt link; one mountinfo
 * per mount namespace; one statfs per tmpfs; memory.stat, usage and limit per container. Files are opened, read, closed.
 *
 * usage: yardstick MEMORY_CGROUP_ROOT v1|v2
 * For each line on stdin it makes one pass and answers with one line: CPU milliseconds of the pass, and of its part that
 * reads the processes alone; number of processes, mount namespaces, tmpfs, containers; sum of VmRSS in KiB. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];

static long slurp(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  long total = 0, got;
  while (total < (long)sizeof buffer - 1 && (got = read(fd, buffer + total, sizeof buffer - 1 - total)) > 0) total += got;
  close(fd);
  buffer[total] = 0;
  return total;
}

/* A set of strings by FNV-1a hash: open addressing, large enough for any bench. */
#define SLOTS (1 << 16)
struct set { uint64_t slots[SLOTS]; long size; };
static struct set namespaces, devices, containers;

static int add(struct set *set, const char *text, size_t length) {
  uint64_t hash = 1469598103934665603ULL;
  for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)text[i]) * 1099511628211ULL;
  if (!hash) hash = 1;
  size_t at = hash % SLOTS;
  while (set->slots[at] && set->slots[at] != hash) at = (at + 1) % SLOTS;
  if (set->slots[at]) return 0;
  set->slots[at] = hash;
  set->size++;
  return 1;
}

static double cpu_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static void unescape(char *text) {
  char *out = text;
  for (; *text; text++) {
    if (text[0] == '\\' && text[1] && text[2] && text[3]) {
      *out++ = (char)((text[1] - '0') * 64 + (text[2] - '0') * 8 + (text[3] - '0'));
      text += 3;
    } else {
      *out++ = *text;
    }
  }
  *out = 0;
}

static void mounts_of(const char *pid) {
  char path[8192], device[64], root[4096], point[4096];
  snprintf(path, sizeof path, "/proc/%s/mountinfo", pid);
  if (slurp(path) < 0) return;
  for (char *line = buffer; line && *line;) {
    char *next = strchr(line, '\n');
    if (next) *next++ = 0;
    if (strstr(line, " - tmpfs ") && sscanf(line, "%*d %*d %63s %4095s %4095s", device, root, point) == 3 &&
        add(&devices, device, strlen(device))) {
      struct statfs usage;
      unescape(point);
      snprintf(path, sizeof path, "/proc/%s/root%s", pid, point);
      statfs(path, &usage);
    }
    line = next;
  }
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  int v1 = !strcmp(argv[2], "v1");
  const char *files[] = {"memory.stat", v1 ? "memory.usage_in_bytes" : "memory.current",
                         v1 ? "memory.limit_in_bytes" : "memory.max"};
  char line[16];
  while (fgets(line, sizeof line, stdin)) {
    memset(&namespaces, 0, sizeof namespaces);
    memset(&devices, 0, sizeof devices);
    memset(&containers, 0, sizeof containers);
    static char container_paths[4096][1024];
    static char first_pids[4096][16];
    long paths = 0, spaces = 0, processes = 0, rss = 0;
    double start = cpu_ms();
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; (entry = readdir(proc));) {
      if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
      char path[512], link[64];
      snprintf(path, sizeof path, "/proc/%.16s/status", entry->d_name);
      if (slurp(path) < 0) continue;
      processes++;
      char *found = strstr(buffer, "\nVmRSS:");
      if (found) rss += atol(found + 7);
      snprintf(path, sizeof path, "/proc/%.16s/oom_score_adj", entry->d_name);
      slurp(path);
      snprintf(path, sizeof path, "/proc/%.16s/oom_score", entry->d_name);
      slurp(path);
      snprintf(path, sizeof path, "/proc/%.16s/cgroup", entry->d_name);
      if (slurp(path) > 0) {
        char *own = v1 ? strstr(buffer, ":memory:") : strstr(buffer, "0::");
        if (own) {
          own = strchr(own + (v1 ? 1 : 2), ':') + 1;
          size_t length = strcspn(own, "\n");
          if (memmem(own, length, "/kubepods", 9) && paths < 4096 && length < 1024 && add(&containers, own, length))
            memcpy(container_paths[paths++], own, length), container_paths[paths - 1][length] = 0;
        }
      }
      snprintf(path, sizeof path, "/proc/%.16s/ns/mnt", entry->d_name);
      ssize_t length = readlink(path, link, sizeof link);
      if (length > 0 && spaces < 4096 && add(&namespaces, link, (size_t)length))
        snprintf(first_pids[spaces++], sizeof first_pids[0], "%.15s", entry->d_name);
    }
    closedir(proc);
    double processes_ms = cpu_ms() - start;
    for (long i = 0; i < spaces; i++) mounts_of(first_pids[i]);
    for (long i = 0; i < paths; i++)
      for (int j = 0; j < 3; j++) {
        char path[4096];
        snprintf(path, sizeof path, "%s%s/%s", argv[1], container_paths[i], files[j]);
        slurp(path);
      }
    printf("%.3f %.3f %ld %ld %ld %ld %ld\n", cpu_ms() - start, processes_ms, processes, namespaces.size, devices.size,
           containers.size, rss);
    fflush(stdout);
  }
  return 0;
}
