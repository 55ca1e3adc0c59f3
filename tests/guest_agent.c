// SPDX-License-Identifier: AGPL-3.0-or-later
/*
 * The first process of a guest that has QEMU's guest agent (tests/guest_agent.py): starts the agent when its channel is there,
 * and becomes guest_init.c's program. By other names it is a program that the agent can run:
 *
 *   tool fill PATH BYTES | remove PATH   a file of bytes that cannot be compressed, fsynced; gone, and that too is on the disk
 *   hook freeze | thaw                   says on the console that it was called; ends with the digit in the file /hook-ends, or 0
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

/* The agent's channel: the only port, on a bus whose number is how many virtio devices came before. Empty before it is there. */
static char channel[40];

static int found(void)
{
    DIR *devices = opendir("/dev");
    struct dirent *device;
    while (devices && (device = readdir(devices)))
        if (strncmp(device->d_name, "vport", 5) == 0)
            snprintf(channel, sizeof channel, "/dev/%.30s", device->d_name);
    if (devices)
        closedir(devices);
    return *channel != 0;
}

static int failed(const char *what)
{
    perror(what);
    return 1;
}

static int fill(const char *path, uint64_t size)
{
    static uint64_t words[8192];
    uint64_t state = size;
    int file = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
    if (file < 0)
        return failed("open");
    for (uint64_t done = 0; done < size; done += sizeof words) {
        for (unsigned i = 0; i < sizeof words / sizeof *words; i++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            words[i] = state;
        }
        if (write(file, words, sizeof words) != sizeof words)
            return failed("write");
    }
    return fsync(file) < 0 ? failed("fsync") : 0;
}

static int tool(int count, char **words)
{
    if (count == 4 && strcmp(words[1], "fill") == 0)
        return fill(words[2], strtoull(words[3], NULL, 10));
    if (count == 3 && strcmp(words[1], "remove") == 0) {
        if (unlink(words[2]) < 0)
            return failed("unlink");
        sync();
        return 0;
    }
    return 2;
}

static int hook(const char *what)
{
    char end = '0';
    int file = open("/hook-ends", O_RDONLY);
    if (file >= 0 && read(file, &end, 1) != 1)
        end = '0';
    if (end == 's')
        sleep(1000);
    int log = open("/hook-log", O_CREAT | O_WRONLY | O_APPEND, 0644);
    dprintf(log, "%s\n", what);
    printf("heard %s\n", what);
    return end - '0';
}

int main(int count, char **words)
{
    const char *name = strrchr(words[0], '/');
    if (strcmp(name, "/tool") == 0)
        return tool(count, words);
    if (strcmp(name, "/hook") == 0)
        return hook(words[1]);
    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, "");
    mkdir("/sys", 0755);
    mount("sys", "/sys", "sysfs", 0, "");
    if (fork() == 0) {
        while (!found())
            usleep(10000);
        int log = open("/dev/console", O_WRONLY);
        dup2(log, 1);
        dup2(log, 2);
        execl("/usr/sbin/qemu-ga", "qemu-ga", "-m", "virtio-serial", "-p", channel, "-t", "/", "-f", "/agent.pid", NULL);
        _exit(failed("qemu-ga"));
    }
    execl("/guest_init", "/guest_init", NULL);
    return failed("guest_init");
}
