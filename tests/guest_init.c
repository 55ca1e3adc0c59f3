// SPDX-License-Identifier: AGPL-3.0-or-later
/*
 * The only program of the tests' guest, its first process (tests/guest.py): loads the modules, and does what lines on the
 * second serial port ask for:
 *
 *   start     mount the disks, begin beating and churning; answers "started"
 *   go K      append record K to the file "records" on disk K % 2, fsync; answers "safe K"
 *   poweroff, reboot    unmount in order, and end
 *
 * By itself it says "up" when it can be asked, "beat" ten times a second from a process of its own, and "error WHAT: WHY" for
 * every call that failed. A line is one write, so lines of several processes are never mixed.
 *
 * A record has 512 bytes, little-endian: magic "EWG1", u64 number, 62 words of splitmix64 seeded with the number, CRC-32.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { DISKS = 2, RECORD = 512, WORDS = 62 };

static const char *const device[DISKS] = {"/dev/vda", "/dev/vdb"};
static const char *const folder[DISKS] = {"/a", "/b"};
static int port, records[DISKS] = {-1, -1};

static void say(const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    while (write(port, text, length) < 0 && errno == EINTR)
        ;
}

static int tried(const char *what, int result)
{
    if (result < 0)
        say("error %s: %s\n", what, strerror(errno));
    return result;
}

static uint32_t crc32(const uint8_t *data, int length)
{
    uint32_t crc = ~0u;
    for (int i = 0; i < length; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

static void write_record(uint64_t number)
{
    uint8_t record[RECORD] = "EWG1";
    uint64_t state = number;
    memcpy(record + 4, &number, 8);
    for (int word = 0; word < WORDS; word++) {
        uint64_t z = state += 0x9E3779B97F4A7C15u;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        z ^= z >> 31;
        memcpy(record + 12 + 8 * word, &z, 8);
    }
    uint32_t crc = crc32(record, RECORD - 4);
    memcpy(record + RECORD - 4, &crc, 4);
    int file = records[number % DISKS];
    if (tried("write of a record", write(file, record, RECORD)) == RECORD && tried("fsync", fsync(file)) == 0)
        say("safe %llu\n", (unsigned long long)number);
}

/* Keeps a file system's journal busy: files made, filled, renamed, linked and removed in eight folders. Names repeat, so it
 * never fills the disk; that a name is there or not there yet is no error. */
static void churn(int disk)
{
    static char filling[24000];
    memset(filling, 'a' + disk, sizeof filling);
    for (unsigned n = 0;; n++) {
        char inside[40], made[60], kept[60], other[60];
        snprintf(inside, sizeof inside, "%s/folder%u", folder[disk], n % 8);
        snprintf(made, sizeof made, "%s/new", inside);
        snprintf(kept, sizeof kept, "%s/file%u", inside, n * 7 % 13);
        snprintf(other, sizeof other, "%s/folder%u/file%u", folder[disk], n * 5 % 8, n % 13);
        mkdir(inside, 0755);
        int file = open(made, O_CREAT | O_TRUNC | O_WRONLY, 0644);
        if (tried("open", file) >= 0) {
            tried("write", write(file, filling, n * 3331 % sizeof filling));
            if (n % 16 == 0)
                tried("fsync of a file", fsync(file));
            close(file);
        }
        tried("rename", rename(made, kept));
        if (n % 3 == 0)
            unlink(other);
        if (n % 5 == 0)
            link(kept, other);
        if (n % 24 == 23) { /* folder and all */
            DIR *listing = opendir(inside);
            struct dirent *entry;
            while (listing && (entry = readdir(listing)))
                unlinkat(dirfd(listing), entry->d_name, 0);
            if (listing)
                closedir(listing);
            tried("rmdir", rmdir(inside));
        }
        usleep(15000);
    }
}

static void beat(void)
{
    for (;;) {
        say("beat\n");
        usleep(100000);
    }
}

static void start(void)
{
    for (int disk = 0; disk < DISKS; disk++) {
        char path[20];
        snprintf(path, sizeof path, "%s/records", folder[disk]);
        mkdir(folder[disk], 0755);
        tried("mount", mount(device[disk], folder[disk], "ext4", MS_NOATIME, "errors=remount-ro"));
        records[disk] = tried("open records", open(path, O_CREAT | O_WRONLY | O_APPEND, 0644));
        if (fork() == 0)
            churn(disk);
    }
    if (fork() == 0)
        beat();
    say("started\n");
}

static void end(int how)
{
    kill(-1, SIGKILL); /* all but this process */
    while (wait(NULL) > 0)
        ;
    for (int disk = 0; disk < DISKS; disk++)
        if (records[disk] >= 0) {
            close(records[disk]);
            tried("umount", umount(folder[disk]));
        }
    tcdrain(port);
    reboot(how);
}

static void load_modules(void)
{
    struct dirent **names;
    int count = scandir("/modules", &names, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char path[300];
        snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
        if (names[i]->d_name[0] != '.') {
            int file = open(path, O_RDONLY);
            if (tried(path, syscall(SYS_finit_module, file, "", 0)) == 0)
                close(file);
        }
    }
}

int main(void)
{
    mkdir("/dev", 0755);
    mount("dev", "/dev", "devtmpfs", 0, "");
    port = open("/dev/ttyS1", O_RDWR | O_NOCTTY);
    struct termios settings;
    tcgetattr(port, &settings);
    cfmakeraw(&settings);
    cfsetspeed(&settings, B115200);
    tcsetattr(port, TCSANOW, &settings);
    load_modules();
    say("up\n");
    FILE *commands = fdopen(port, "r");
    char line[80];
    while (fgets(line, sizeof line, commands)) {
        unsigned long long number;
        if (sscanf(line, "go %llu", &number) == 1)
            write_record(number);
        else if (strcmp(line, "start\n") == 0)
            start();
        else if (strcmp(line, "poweroff\n") == 0)
            end(RB_POWER_OFF);
        else if (strcmp(line, "reboot\n") == 0)
            end(RB_AUTOBOOT);
        else
            say("error asked for: %s", line);
    }
    say("error the port is closed\n");
    for (;;)
        pause();
}
