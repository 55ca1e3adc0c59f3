# The first process of the namespaces of a private libvirtd (tests/libvirtd.py): FOLDER USER HOST DRIVER... It lays its folders where libvirtd
# looks for them, starts and stops it as it is told on standard input, and reaps what others leave: a libvirtd whose probes
# are not reaped waits for each. When its input ends, it ends, and with it everything in here.
folder=$1
user=$2
mkdir -p "$folder"/{run/libvirt,run/lock,etc/libvirt,lib,cache,log,dev,sockets,drivers}
for file in group hosts ld.so.cache localtime nsswitch.conf passwd swtpm-localca.conf swtpm-localca.options swtpm_setup.conf; do
    [ ! -e /etc/$file ] || cp -L /etc/$file "$folder/etc/"
done
# libvirtd does not start without these two, which a package that is not needed would make.
grep -q ^libvirt-qemu: "$folder/etc/passwd" || echo "libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin" >> "$folder/etc/passwd"
grep -q ^libvirt-qemu: "$folder/etc/group" || echo "libvirt-qemu:x:64055:" >> "$folder/etc/group"
cat > "$folder/etc/libvirt/libvirtd.conf" <<END
unix_sock_dir = "$folder/sockets"
auth_unix_ro = "none"
auth_unix_rw = "none"
listen_tls = 0
log_outputs = "3:file:$folder/libvirtd.log"
END
cat > "$folder/etc/libvirt/qemu.conf" <<END
user = "$user"
group = "$user"
swtpm_user = "$user"
swtpm_group = "$user"
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
END
if [ -n "$3" ]; then
    # Each of two must take itself for another host, and neither may take the other's images away.
    echo "$3" > /proc/sys/kernel/hostname
    echo "host_uuid = \"$(cat /proc/sys/kernel/random/uuid)\"" >> "$folder/etc/libvirt/libvirtd.conf"
    echo "dynamic_ownership = 0" >> "$folder/etc/libvirt/qemu.conf"
fi
# No more drivers than are asked for: others look for services that are not here.
for driver in "${@:4}"; do ln -s /usr/lib/*/libvirt/connection-driver/libvirt_driver_"$driver".so "$folder/drivers/"; done
# A /dev without kvm: where it exists and cannot be used, libvirtd asks QEMU for its abilities again and again.
mount -t tmpfs none "$folder/dev"
for device in null zero full random urandom tty; do
    : > "$folder/dev/$device"
    mount --bind /dev/$device "$folder/dev/$device"
done
mkdir "$folder/dev/pts" "$folder/dev/shm"
# Terminals of its own: guests' serial consoles are some, and who makes them is another user.
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 none "$folder/dev/pts"
ln -s pts/ptmx "$folder/dev/ptmx"
mount --rbind "$folder/dev" /dev
mount --bind "$folder/etc" /etc
mount --bind "$folder/run" /run
for part in lib cache log; do mount --bind "$folder/$part" /var/$part; done
mkdir -p /var/lib/swtpm-localca
chown "$user:" /var/lib/swtpm-localca
export LIBVIRT_DRIVER_DIR=$folder/drivers
while read -r word; do
    case $word in
        start) libvirtd -f /etc/libvirt/libvirtd.conf < /dev/null > /dev/null & libvirtd=$! ;;
        stop) kill "$libvirtd"; wait "$libvirtd" || true ;;
    esac
    echo "$word"
done
