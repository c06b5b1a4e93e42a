#!/bin/sh
# Says what is wrong with the shared directory, in one sentence; silent and 0 when nothing is.
directory=$1
[ -d "$directory" ] || { echo "$directory is no directory: mount the site's shared storage there" >&2; exit 1; }
mountpoint -q "$directory" || { echo "$directory is on the node's own disk: the site's shared storage is not mounted" >&2; exit 1; }
draft=$(mktemp "$directory/.rackray-check.XXXXXX") || { echo "$directory is not writable for $(id -un)" >&2; exit 1; }
rm -f "$draft"
