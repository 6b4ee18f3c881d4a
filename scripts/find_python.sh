#!/bin/sh
# Print the path of a Python >= 3.12 that can create virtual environments, or say how to get one and fail.
# A candidate counts only if it runs: pyenv's shims are on PATH even for versions that are not selected.

check='
import sys
if sys.version_info < (3, 12):
    sys.exit(1)
import ensurepip, venv
print(sys._base_executable)  # not a virtual environment that is about to be rebuilt
'
tried=

# Print candidate $1 and exit if it is suitable, otherwise note it as tried.
try() {
    [ -n "$1" ] || return 0
    if found=$("$1" -c "$check" 2>/dev/null </dev/null); then
        echo "$found"
        exit 0
    fi
    tried="$tried $1"
}

try "${PYTHON:-}"
[ -z "${PYTHON:-}" ] || echo "PYTHON=$PYTHON is not a Python >= 3.12 with venv; looking for another." >&2
try "$(uv python find --system --no-python-downloads '>=3.12' 2>/dev/null)"
for name in python3.14 python3.13 python3.12 python3; do
    try "$name"
done
for python in "$(pyenv root 2>/dev/null || echo "${PYENV_ROOT:-${HOME:-}/.pyenv}")"/versions/3.1[2-9]*/bin/python; do
    try "$python"
done
if command -v uv >/dev/null && uv python install 3.12 >&2; then
    try "$(uv python find --system 3.12 2>/dev/null)"
fi

cat >&2 <<EOF
No Python >= 3.12 with the venv and ensurepip modules found. Tried:$tried
and uv. Install one (for example: pyenv install 3.12, uv python install 3.12, brew install python@3.12,
or apt install python3.12 python3.12-venv), or name one: make venv PYTHON=/path/to/python
EOF
exit 1
