#!/bin/sh
# The lab's sudo where the lab runs as root: passwordless, through `su` and the node's own /etc/pam.d/su.
# Understands what Ansible and people type: -n -H -S -E -k -i -b -p PROMPT -u USER -g GROUP, VAR=VALUE, --.
user=root
while [ $# -gt 0 ]; do
    case "$1" in
        -u | --user) user=$2; shift 2 ;;
        --user=*) user=${1#*=}; shift ;;
        -p | -g | -C | -D | -h | -T) shift 2 ;;
        -V | --version) echo "sudo of the rackray lab"; exit 0 ;;
        -l | -v | -K) exit 0 ;;
        --) shift; break ;;
        -*) shift ;;
        *) break ;;
    esac
done
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Quoted word by word for the one string that `su -c` takes; `env` also takes leading VAR=VALUE words.
line="exec env SUDO_USER=$(id -un) SUDO_UID=$(id -u) PATH=$path"
[ $# -gt 0 ] || set -- /bin/sh
for word in "$@"; do
    line="$line '$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
done
exec su "$user" -s /bin/sh -c "$line"
