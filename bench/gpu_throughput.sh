#!/usr/bin/env bash
# Throughput on a GPU box without a network, for one model: bash bench/gpu_throughput.sh OUT qwen3-4b
# Needs bench/gpu_setup.sh's archive unpacked in /tmp/site. About five minutes a model: the import alone takes 40 s a variant.
set -euo pipefail
out=${1:?usage: gpu_throughput.sh OUT MODEL} model=${2:?usage: gpu_throughput.sh OUT MODEL}
export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1
mkdir -p "$out/$model"
python3 bench/throughput.py "$out/$model" --models "$model" --only usual packed plain planned --rows 96 --planned 4x1p
