#!/usr/bin/env bash
# What is to be known of a machine with one card, in one JSON and under nine minutes (gpu_suite.py):
#
#     bash benchmarks/gpu_suite.sh out=h100.json
#     bash benchmarks/gpu_suite.sh out=look.json quick=true     # tiny sizes; runs on a CPU too
#
# With uv also against TRL; where there is no uv, in the environment of `python`.
set -euo pipefail
cd "$(dirname "$0")/.."
if command -v uv >/dev/null; then
    exec uv run --with 'trl>=1.16' benchmarks/gpu_suite.py "$@"
fi
exec python benchmarks/gpu_suite.py "$@"
