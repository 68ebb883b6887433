#!/usr/bin/env bash
# Holds sampler="vllm" against a real vLLM on this machine's processor, with the embedded model.
# $AUTODIDACT_VLLM_PYTHON may name an interpreter that has vLLM; else vllm_environment.sh makes one.
#
#     bash benchmarks/vllm_conformance.sh [pytest's arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${AUTODIDACT_VLLM_PYTHON:-}" ]; then
    AUTODIDACT_VLLM_PYTHON=$(bash benchmarks/vllm_environment.sh)
    export AUTODIDACT_VLLM_PYTHON
fi
# left alone, vLLM keeps one core free for its scheduler
export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-nobind}
exec uv run pytest -n 0 -m vllm -rA tests/training/backends/test_vllm_conformance.py "$@"
