#!/usr/bin/env bash
# Merged, converted, and loaded again, on a GPU: a text and a vision model trained in 4 bits through the rendered scripts.
#   bash bench/gpu_export.sh OUT [text] [vision]   needs bench/gpu_setup.sh's archive unpacked in /tmp/site; about 5 minutes
# With UNSLOTH_LLAMA_CPP_PATH set (bench/llama_cpp.sh) GGUF files are made too, and llama.cpp answers from them.
# Prints for each kind: the lines that decide, and how far the merged model's logits are from those of the adapter on the
# 16-bit model, in a process with plain transformers and PEFT; the same exports made later, by the export script.
set -uo pipefail
out=$(realpath -m "${1:?usage: gpu_export.sh OUT [text] [vision]}")
kinds=("${@:2}")
export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
root=/tmp/exports
lines='^(== (merge|export)|step |merged|gguf|[^ ]+\.gguf: |RESULT|error)|Error'
mkdir -p "$out" "$root"
[ ${#kinds[@]} -gt 0 ] || kinds=(text vision)
gguf=()
if [ -n "${UNSLOTH_LLAMA_CPP_PATH:-}" ]; then
  gguf=(--gguf f16 --gguf q4_k_m)
  # The converter knows published tokenizers only, by a hash; the bench's own splits words as Qwen's does.
  cp -r "$UNSLOTH_LLAMA_CPP_PATH" "$root/llama.cpp"
  sed -i 's/raise NotImplementedError("BPE pre-tokenizer was not recognized.*/res = "qwen2"/' "$root/llama.cpp/conversion/base.py"
  export UNSLOTH_LLAMA_CPP_PATH=$root/llama.cpp
fi

run() { # LOG SCRIPT FLAGS...
  python3 "${@:2}" > "$out/$1.log" 2>&1
  echo "status $?" >> "$out/$1.log"
}

all() { # KIND MODEL TRAIN_SCRIPT COMPARE_FLAGS...
  local kind=$1 model=$2 train=job_scripts/$3 export=job_scripts/export.py where=$root/$1
  shift 3
  # More layers than pictures are added to: llama.cpp wants one after them.
  [ -d "$where/model" ] || python3 bench/family_models.py --layers 4 "$model" "$where/model" > "$out/$kind-model.log" 2>&1
  [ -d "$where/rows" ] || PYTHONPATH=$PWD/bench:/tmp/site python3 -c \
    "import family_models, pathlib; family_models.write_${kind}_rows(pathlib.Path('$where/rows'))" \
    >> "$out/$kind-model.log" 2>&1
  local common=(--model "$where/model" --dataset "$where/rows" --eval-rows 4 --sample-rows 0 --logging-steps 1
    --learning-rate 1e-3 --trackio-project "" --checkpoint-minutes 0 --max-steps "${STEPS:-24}" --load-in 4bit
    --max-length 1024 --batch-size 4 --gradient-accumulation 1 --resume never --run-name "$kind")
  # 4 bits again, of what is loaded so: for it, two steps of its own.
  run "$kind-4bit" "$train" "${common[@]}" --merge 4bit --max-steps 2 --output-dir "$where/out4" &
  run "$kind" "$train" "${common[@]}" --merge 16bit "${gguf[@]}" --output-dir "$where/out"
  run "$kind-later" "$export" --adapter "$where/out" --load-in 4bit --merge 16bit "${gguf[@]}" --run-name "$kind" \
    --output-dir "$where/later" &
  python3 bench/compare_merged.py "$where/model" "$where/out" "$where/out/merged" "$where/rows" "$@" \
    > "$out/$kind-compare.json" 2> "$out/$kind-compare.log"
  wait
  {
    for part in "$kind" "$kind-later" "$kind-4bit"; do
      echo "---- $part"
      grep -E "$lines|^status" "$out/$part.log" | cut -c1-700
    done
    echo "---- $kind: the merged model and the adapter on the 16-bit model"
    if [ -s "$out/$kind-compare.json" ]; then cat "$out/$kind-compare.json"; else tail -5 "$out/$kind-compare.log"; fi
  } > "$out/$kind.txt" 2>&1
}

for kind in "${kinds[@]}"; do
  case $kind in
    text) all text qwen3 sft_text.py & ;;
    vision) all vision qwen3-vl sft_vlm.py --vision & ;;
    *) echo "unknown kind '$kind': choose text or vision" >&2 && exit 2 ;;
  esac
done
wait
for kind in "${kinds[@]}"; do cat "$out/$kind.txt"; done
