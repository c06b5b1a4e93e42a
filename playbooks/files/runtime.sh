#!/bin/sh
# runtime.sh PYTHON WHEELHOUSE REQUIREMENT...: installs the training runtime where it is missing; says `installed` if it did.
set -eu
python=$1 wheelhouse=$2
shift 2
wanted='import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in ("ray", "torch", "deepspeed", "pynvml", "orchestrator")))'
if [ -x "$python" ] && "$python" -c "$wanted"; then exit 0; fi
[ -d "$wheelhouse" ] || { echo "$python lacks the training runtime and there is no wheelhouse $wheelhouse to install it from" >&2; exit 1; }
/usr/bin/python3 -m venv "$(dirname "$(dirname "$python")")"
"$python" -m pip install --no-index --find-links "$wheelhouse" "$@"
echo installed
