#!/usr/bin/env bash
# Train teacher, nano and probes on a GPU, in calls of a few minutes that continue one another.
#
#     bash experiments/nano/gpu_run.sh STATE_DIR [options of experiments.nano.gpu_run]
#
# Reads STATE_DIR (which may be empty) and writes to $OUT, or to STATE_DIR where $OUT is not set. Installs nothing and
# needs no network. Takes $MINUTES (8.5) and half a minute more. $DEVICE (a GPU where there is one) and $PYTHON
# (python3) can be set. Leaves at most 8 files of at most 16 MB: run.tar (teacher, nano, probes), the states of
# unfinished trainings, metrics.json, log.txt. Ship the result from an unpacked run.tar:
#
#     mkdir -p runs/gpu/run && tar -xf STATE_DIR/run.tar -C runs/gpu/run
#     python -m experiments.nano.ship --model-dir runs/gpu/run/nano/model --probes-dir runs/gpu/run/probes \
#         --teacher-dir runs/gpu/run/teacher
set -euo pipefail

MOST_FILES=8
MOST_BYTES=$((16 * 1024 * 1024))

state=${1:-${OUT:-}}
if [ -z "$state" ]; then
    echo "usage: bash experiments/nano/gpu_run.sh STATE_DIR [options]" >&2
    exit 2
fi
mkdir -p "$state" "${OUT:-$state}"
state=$(cd "$state" && pwd)
out=$(cd "${OUT:-$state}" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ "$state" != "$out" ] && [ -f "$state/log.txt" ]; then
    cp "$state/log.txt" "$out/log.txt"
fi

export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
"${PYTHON:-python3}" -m experiments.nano.gpu_run --state-dir "$state" --output-dir "$out" \
    --minutes "${MINUTES:-8.5}" ${DEVICE:+--device "$DEVICE"} "${@:2}" 2>&1 | tee -a "$out/log.txt"

files=$(find "$out" -type f | wc -l)
too_large=$(find "$out" -type f -size "+${MOST_BYTES}c")
if [ "$files" -gt "$MOST_FILES" ] || [ -n "$too_large" ]; then
    echo "error: $out has $files files (at most $MOST_FILES); larger than 16 MB: ${too_large:-none}" >&2
    exit 1
fi
