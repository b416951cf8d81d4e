#!/usr/bin/env bash
# Everything that is said of GPUs, measured on a box with one GPU and without a network; under nine minutes.
# Needs Python with torch, triton, transformers and numpy. Words are handed on: benchmarks/gpu.sh --only kernels --out DIR
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .dev && ln -sfn .. .dev/baseload
# The checkout must not stand on sys.path: transformers would import our kernels/ as its optional package of that name.
export PYTHONSAFEPATH=1 PYTHONPATH="$PWD/.dev${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" -m baseload.benchmarks.gpu "$@"
