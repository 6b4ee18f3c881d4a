#!/usr/bin/env bash
# Test the ids with other reinforcement-learning libraries, each in its own environment, since requirements differ.
# Run by hand: takes a few minutes and about 12 GB. ARGS is passed on to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(sh scripts/find_python.sh)
where=${CANVIT_GYM_VENVS:-build/venvs}

check() { # name, tests, packages
    local name=$1 tests=$2
    shift 2
    "$python" -m venv "$where/$name"
    "$where/$name/bin/python" -m pip install -q -e '.[benchmark]' pytest "$@"
    "$where/$name/bin/python" -m pytest -q "$tests" ${ARGS:-}
}

check torchrl tests/libraries/test_torchrl.py torchrl
check minari tests/libraries/test_minari.py 'minari[create,hdf5]>=0.5.4,<1'
check rllib tests/libraries/test_rllib.py 'ray[rllib]>=2.60,<3'
