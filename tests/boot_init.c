// SPDX-License-Identifier: AGPL-3.0-or-later
/*
 * The only program of a guest that boots from its own disk (tests/bootable.py): loads the modules, counts in the disk's last
 * sector how often it was booted, says so on the serial console, and then what the kernel was told:
 *
 *   end=off     powers off
 *   end=login   shows a login prompt, and does what the lines typed there ask for: "off" powers off, "write N" writes N to
 *               the beginning of the second disk, flushes it, and says so, "read" says what is there; others are said back
 *   end=wait    waits for ever
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <linux/fs.h>
#include <unistd.h>

enum { SECTOR = 512 };

static void load_modules(void)
{
    struct dirent **names;
    int count = scandir("/modules", &names, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char path[300];
        snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
        int file = names[i]->d_name[0] == '.' ? -1 : open(path, O_RDONLY);
        if (file >= 0 && syscall(SYS_finit_module, file, "", 0) == 0)
            close(file);
    }
}

static void count(void)
{
    char sector[SECTOR] = "";
    unsigned long long size = 0;
    int disk = open("/dev/vda", O_RDWR);
    if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size) < 0 || pread(disk, sector, SECTOR, size - SECTOR) != SECTOR) {
        printf("the disk cannot be read\n");
        return;
    }
    sector[SECTOR - 1] = 0;
    int times = atoi(sector) + 1;
    memset(sector, 0, SECTOR);
    snprintf(sector, SECTOR, "%d", times);
    if (pwrite(disk, sector, SECTOR, size - SECTOR) != SECTOR || fsync(disk) < 0)
        printf("the disk cannot be written\n");
    close(disk);
    printf("boot number %d \x1b[31m\n", times);
}

/* Not by way of memory: the disk itself is asked. */
static void second_disk(const char *number)
{
    static char sector[4096] __attribute__((aligned(4096)));
    int disk = open("/dev/vdb", O_RDWR | O_DIRECT);
    if (number)
        snprintf(sector, sizeof sector, "%s", number);
    if (number ? pwrite(disk, sector, sizeof sector, 0) < 0 || fsync(disk) < 0 : pread(disk, sector, sizeof sector, 0) < 0)
        printf("failed\n");
    else
        printf("%s %d.\n", number ? "wrote" : "holds", atoi(sector));
    close(disk);
}

int main(void)
{
    mkdir("/dev", 0755);
    mount("dev", "/dev", "devtmpfs", 0, "");
    mkdir("/sys", 0755);
    mount("sys", "/sys", "sysfs", 0, "");
    int console = open("/dev/console", O_RDWR);
    for (int number = 0; number < 3; number++)
        dup2(console, number);
    setvbuf(stdout, NULL, _IONBF, 0);
    load_modules();
    count();
    struct stat firmware;
    printf("firmware %s\n", stat("/sys/firmware/efi", &firmware) == 0 ? "UEFI" : "BIOS");
    const char *end = getenv("end");
    char line[80];
    if (end && strcmp(end, "login") == 0) {
        printf("guest login: ");
        while (fgets(line, sizeof line, stdin) && strcmp(line, "off\n") != 0)
            if (strncmp(line, "write ", 6) == 0 || strcmp(line, "read\n") == 0)
                second_disk(line[0] == 'w' ? line + 6 : NULL);
            else
                printf("heard %s", line);
    }
    if (end && strcmp(end, "wait") == 0)
        for (;;)
            pause();
    sync();
    reboot(RB_POWER_OFF);
    return 1;
}
