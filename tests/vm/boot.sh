#!/bin/sh
# First process of the virtual machine: finds the disk and hands over to init.sh on it.
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t devtmpfs dev /dev
while read -r name; do
    $busybox insmod "/modules/$name.ko" || echo "boot: module $name cannot be loaded"
done </modules/order
tries=0
while [ ! -b /dev/vda ]; do
    tries=$((tries + 1))
    if [ $tries -gt 100 ]; then
        echo "boot: the disk did not appear"
        $busybox poweroff -f
    fi
    $busybox usleep 100000
done
$busybox mount -t ext4 /dev/vda /disk || $busybox poweroff -f
$busybox umount /proc
$busybox umount /dev
exec $busybox switch_root /disk /init
