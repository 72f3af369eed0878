#!/usr/bin/env bash
# Pack what a GPU box without a network lacks for the scripts into one archive: Linux x86-64, Python 3.12, CUDA 13, with
# torch, torchvision, transformers, peft, accelerate and what they need already there.
#   bench/gpu_setup.sh WHEELS... ARCHIVE.tgz         the wheels' folders, then the archive to write
# There:  mkdir -p /tmp/site && tar xzf ARCHIVE.tgz -C /tmp/site && export PYTHONPATH=/tmp/site
set -euo pipefail
archive=$(realpath -m "${@: -1}")
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
wheels=()
for folder in "${@:1:$#-1}"; do wheels+=("$folder"/*.whl); done
python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" --python-version 3.12 --implementation cp \
  --only-binary=:all: --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 "${wheels[@]}"
# Kernels for other CUDA versions and other makers' cards, and Unsloth's own web application: two thirds of the bytes.
find "$site/bitsandbytes" -name 'libbitsandbytes_*.so' ! -name '*_cuda130.so' ! -name '*_cpu.so' -delete
rm -rf "$site/studio" "$site/bin"
mkdir -p "$(dirname "$archive")"
tar czf "$archive" -C "$site" .
du -m "$archive"
