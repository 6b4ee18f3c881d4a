#!/usr/bin/env bash
# Other reinforcement-learning libraries on the ids, each in an environment of its own, since their requirements differ.
# Run by hand: takes some minutes and about 12 GB. ARGS of pytest are passed on.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(sh scripts/find_python.sh)
where=${CANVIT_GYM_VENVS:-build/venvs}

check() { # name, tests, packages
    local name=$1 tests=$2
    shift 2
    "$python" -m venv "$where/$name"
    "$where/$name/bin/python" -m pip install -q -e . pytest "$@"
    "$where/$name/bin/python" -m pytest -q "$tests" ${ARGS:-}
}

check torchrl tests/libraries/test_torchrl.py torchrl
check minari tests/libraries/test_minari.py 'minari[create,hdf5]>=0.5.4,<1'
check rllib tests/libraries/test_rllib.py 'ray[rllib]>=2.60,<3'
