#!/usr/bin/env bash
# Does it work with all versions that pyproject.toml allows? Run by hand, not in CI: every job installs PyTorch again.
#
#     scripts/test_versions.sh                    # all jobs
#     scripts/test_versions.sh torch-2.11 newest  # some of them
#
#     lowest         the whole suite, every dependency at the lowest version declared
#     torch-lowest   the compile tests, PyTorch alone at the lowest version declared
#     torch-2.11     the compile tests
#     newest         the compile tests, everything at the newest version that the range allows
#     suite          the whole suite, everything at the newest version: with PYTHON=python3.13, say
#
# A job's virtual environment and log are kept under $VERSIONS_DIR (default: .versions). $PYTHON makes it (default: what
# scripts/find_python.sh finds). $ARGS is passed on to pytest (default: -n 2). Tests marked `gpu` use a GPU if PyTorch
# sees one.
set -uo pipefail
cd "$(dirname "$0")/.."

dir=${VERSIONS_DIR:-.versions}
python=${PYTHON:-$(sh scripts/find_python.sh)} || exit 1
compile_tests="tests/test_compile.py tests/test_fast_step.py"
mkdir -p "$dir"
dir=$(cd "$dir" && pwd) # tests run programs in other directories

# Print `name==version` for the lowest version of every direct dependency, extras included; with an argument, only of it.
lowest_versions() {
    "$python" - "$@" <<'PYTHON'
import re
import sys
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
requirements = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
for requirement in sorted(set(requirements)):
    found = re.match(r"([A-Za-z0-9._-]+)(?:\[.*\])?>=([0-9.]+)", requirement)
    if found and (not sys.argv[1:] or found[1] in sys.argv[1:]):
        print(f"{found[1]}=={found[2]}")
PYTHON
}

run_job() {
    local job=$1 tests=$compile_tests constraints
    constraints=$(mktemp)
    case $job in
        lowest) lowest_versions >"$constraints"; tests=tests ;;
        torch-lowest) lowest_versions torch >"$constraints" ;;
        torch-2.11) echo "torch==2.11.*" >"$constraints" ;;
        newest) ;;
        suite) tests=tests ;;
        *) echo "unknown job $job; there are: lowest torch-lowest torch-2.11 newest suite" >&2; return 2 ;;
    esac
    {
        "$python" -m venv --clear "$dir/$job" &&
        "$dir/$job/bin/python" -m pip install --disable-pip-version-check -e '.[dev]' -c "$constraints" &&
        "$dir/$job/bin/python" -m pip list --disable-pip-version-check &&
        TORCHINDUCTOR_CACHE_DIR="$dir/$job/inductor" "$dir/$job/bin/python" -m pytest -q ${ARGS:--n 2} $tests
    } >"$dir/$job.log" 2>&1
    local status=$?
    rm -f "$constraints"
    echo "$job: $([ $status = 0 ] && echo passed || echo "FAILED, see $dir/$job.log") ($(tail -n 1 "$dir/$job.log"))"
    return $status
}

[ $# -gt 0 ] || set -- lowest torch-lowest torch-2.11 newest
failed=0
for job in "$@"; do
    run_job "$job" || failed=1
done
exit $failed
