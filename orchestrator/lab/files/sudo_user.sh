#!/bin/sh
# The lab's sudo where the lab runs as a normal user: root of a nested user namespace, which owns this node's files only.
while [ $# -gt 0 ]; do
    case "$1" in
        -u | --user | -p | -g | -C | -D | -h | -T) shift 2 ;;
        -V | --version) echo "sudo of the rackray lab"; exit 0 ;;
        -l | -v | -K) exit 0 ;;
        --) shift; break ;;
        -*) shift ;;
        *) break ;;
    esac
done
[ $# -gt 0 ] || set -- /bin/sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
exec unshare -U -r -- env "$@"
