#!/usr/bin/env bash
# Becomes one host: its own home folder, /tmp, /run, /dev/shm, name and list of hosts, and an sshd that is its process 1.
# Runs as the first process of new PID, mount, UTS and IPC namespaces, in a network namespace that is set up already.
#   host.sh NAME FOLDER HOME VISIBLE...      FOLDER: this host's own files; VISIBLE: folders that it shares with others
set -euo pipefail
name=$1 folder=$2 home=$3
shift 3

hostname "$name"
mount --bind "$folder/hosts" /etc/hosts
mount --bind "$folder/nsswitch.conf" /etc/nsswitch.conf
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs "$folder/tmp"
for path in "$folder" "$@"; do # what lies below a folder that is about to be covered is bound into what covers it
  case $path/ in
    /tmp/*) target=$folder/tmp${path#/tmp} ;;
    "$home"/*) target=$folder/home${path#"$home"} ;;
    *) continue ;;
  esac
  mkdir -p "$target"
  mount --bind "$path" "$target"
done
mount --rbind "$folder/home" "$home"
mount --rbind "$folder/tmp" /tmp # last: FOLDER may lie in it
chmod 1777 /tmp
mount -t tmpfs tmpfs /run
mkdir /run/sshd
exec /usr/sbin/sshd -D -e -f "$folder/sshd_config"
