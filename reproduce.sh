#!/usr/bin/env bash
# Finds a Python of the right version and starts oral_lib/workflow/reproduce.py, which does the rest.
# See ./reproduce.sh --help.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
case $root in
  *:* | *$'\n'*)
    echo "oral: the path of this checkout has a colon or a line break, which Python's module path" \
      "cannot contain: move $root to another folder." >&2
    exit 3
    ;;
esac
unset PYTHONHOME # of another Python: none would start
fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'

for python in "${PYTHON:-python3}" python3.12 python3.11; do
  if "$python" -c "$fits" 2>/dev/null; then
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
    exec "$python" -P -m oral_lib.workflow.reproduce "$@"
  fi
  [ -z "${PYTHON:-}" ] || break
done
where=${PYTHON:+ at PYTHON=$PYTHON}
echo "oral: there is no Python 3.11 or 3.12$where. Install one, or name one: PYTHON=/path/to/python3.12 $0" >&2
exit 3
