#!/bin/sh
# Runs the test programs of a virtual machine and switches it off. See `run` for what is printed.
export PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 RUST_BACKTRACE=0
# Files were copied by whoever made the disk.
chown -R 0:0 /etc /init /modules /root /tests /usr
chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap 2>/dev/null
chmod 1777 /tmp /var/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666,gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t cgroup2 -o nsdelegate cgroup /sys/fs/cgroup
mount --make-rshared /
ln -sfn /proc/self/fd /dev/fd
hostname machine
ip link set lo up
while read -r name; do
    insmod "/modules/$name.ko" || echo "init: module $name cannot be loaded"
done </modules/order

cat >/etc/passwd <<'END'
root:x:0:0:root:/root:/bin/sh
gpuc-test:x:1000:1000::/home/gpuc-test:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
END
cat >/etc/group <<'END'
root:x:0:
tty:x:5:
gpuc-test:x:1000:
nogroup:x:65534:
END
echo "gpuc-test:524288:65536" >/etc/subuid
echo "gpuc-test:524288:65536" >/etc/subgid
printf 'passwd: files\ngroup: files\n' >/etc/nsswitch.conf
echo "127.0.0.1 localhost" >/etc/hosts
echo 1 >/proc/sys/net/ipv4/ip_forward
# Some tests hold ten thousand ports.
ulimit -n 65536

# As systemd does it: processes in leaves, controllers handed down, and a subtree that belongs to the user.
cgroup=/sys/fs/cgroup
mkdir $cgroup/system $cgroup/user $cgroup/user/session
echo $$ >$cgroup/system/cgroup.procs
for controller in $(cat $cgroup/cgroup.controllers); do
    echo "+$controller" >$cgroup/cgroup.subtree_control
    echo "+$controller" >$cgroup/user/cgroup.subtree_control
done
chown 1000:1000 $cgroup/user $cgroup/user/session $cgroup/user/cgroup.procs $cgroup/user/cgroup.subtree_control \
    $cgroup/user/cgroup.threads $cgroup/user/session/cgroup.*
mkdir -p /home/gpuc-test /run/user/1000 /home/gpuc-test/tmp
chown 1000:1000 /home/gpuc-test /home/gpuc-test/tmp /run/user/1000
chmod 700 /run/user/1000
export LD_LIBRARY_PATH=/tests
# What one test starts has, for a moment, what another holds open: a claim is then still somebody's.
export RUST_TEST_THREADS=1

echo "@@ kernel $(uname -r)"
as_root() {
    GPUC_REQUIRE="$(cat /tests/require)" timeout -s KILL 300 "/tests/$1" $(cat /tests/arguments)
}
as_user() {
    (
        echo 0 >$cgroup/user/session/cgroup.procs
        cd /home/gpuc-test
        exec timeout -s KILL 300 /usr/bin/setpriv --reuid=1000 --regid=1000 --init-groups env HOME=/home/gpuc-test USER=gpuc-test \
            LOGNAME=gpuc-test XDG_RUNTIME_DIR=/run/user/1000 TMPDIR=/home/gpuc-test/tmp \
            GPUC_REQUIRE="$(cat /tests/require)" "/tests/$1" $(cat /tests/arguments)
    )
}
cd /root
for user in root user; do
    while read -r program; do
        echo "@@ begin $user $program"
        begun=$(cut -d. -f1 /proc/uptime)
        as_$user "$program" </dev/null 2>&1
        status=$?
        echo
        echo "@@ end $user $program $status $(($(cut -d. -f1 /proc/uptime) - begun))"
    done <"/tests/list-$user"
done
echo "@@ done"
poweroff -f
