#!/bin/sh
# Set up a node in the new namespaces of this process, then execute COMMAND.
# usage: boot.sh NAME ADDRESS/BITS DIRECTORY BRIDGE_FD COMMAND...
#
# DIRECTORY has the node's own files: DIRECTORY/etc/hosts is its /etc/hosts, and so on. All other
# files are those of the machine. BRIDGE_FD is open on the network namespace with the bridge "lab".
set -eu
name=$1 address=$2 directory=$3 bridge=/proc/self/fd/$4
shift 4

# The machine may be a node of a real cluster: hide its file system.
umount --quiet --lazy /etc/pve || true
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
# Overlays, because the machine may lack the mount points, and must not get them.
for place in etc usr/sbin var/lib; do
  mkdir -p "/run/layers/$place/upper" "/run/layers/$place/work"
  mount -t overlay -o \
    "lowerdir=/$place,upperdir=/run/layers/$place/upper,workdir=/run/layers/$place/work" \
    overlay "/$place"
done
for place in etc/corosync var/lib/pve-cluster var/lib/corosync var/lib/rrdcached var/log; do
  mkdir -p "/$place"
  mount --bind "$directory/$place" "/$place"
done
# Where the daemon looks for it.
corosync=$(command -v corosync || true)
if [ -n "$corosync" ] && [ ! -e /usr/sbin/corosync ]; then
  ln -s "$corosync" /usr/sbin/corosync
fi
touch /etc/hosts
mount --bind "$directory/etc/hosts" /etc/hosts
# While no daemon is mounted there, nobody can write to what only looks like its file system.
mkdir -p /etc/pve
mount --bind /etc/pve /etc/pve
mount -o remount,bind,ro /etc/pve
# systemd mounts it on the machine; a second mount in its place would fail.
mountpoint -q /sys/fs/fuse/connections || mount -t fusectl fusectl /sys/fs/fuse/connections

hostname "$name"
ip link set lo up
ip link add eth0 type veth peer name "$name" netns "$bridge"
ip address add "$address" dev eth0
ip link set eth0 up
nsenter --net="$bridge" ip link set "$name" master lab up
exec "$@"
