#!/usr/bin/env bash
# Looks up known vulnerabilities of both locks with pip-audit, in an environment that is removed
# afterwards. It needs the network. Exit code 0: none is known. Any other: see the output.
set -euo pipefail

env=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet pip-audit
code=0
for lock in "$env"/lock-*.txt; do
  echo "== ${lock##*/}"
  # --strict: a package that the service does not know is an error, not a pass
  "$folder/bin/pip-audit" --strict --no-deps --disable-pip --progress-spinner off -r "$lock" || code=1
done
exit "$code"
