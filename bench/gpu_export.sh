#!/usr/bin/env bash
# Merged and loaded again, on a GPU: a text and a vision model trained in 4 bits through the rendered scripts.
#   bash bench/gpu_export.sh OUT         needs bench/gpu_setup.sh's archive unpacked in /tmp/site; about 4 minutes
# Prints for each kind: the lines that decide, and how far the merged model's logits are from those of the adapter on the
# 16-bit model, in a process with plain transformers and PEFT.
set -uo pipefail
out=$(realpath -m "${1:?usage: gpu_export.sh OUT}")
export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
root=/tmp/exports
lines='^(== (merge|export)|step |merged|gguf|RESULT|error)|Error'
mkdir -p "$out" "$root"

both() { # KIND MODEL SCRIPT COMPARE_FLAGS...
  local kind=$1 model=$2 script=$3 where=$root/$1
  shift 3
  [ -d "$where/model" ] || python3 bench/family_models.py "$model" "$where/model" > "$out/$kind-model.log" 2>&1
  [ -d "$where/rows" ] || PYTHONPATH=$PWD/bench:/tmp/site python3 -c \
    "import family_models, pathlib; family_models.write_${kind}_rows(pathlib.Path('$where/rows'))" \
    >> "$out/$kind-model.log" 2>&1
  local common=(--model "$where/model" --dataset "$where/rows" --eval-rows 4 --sample-rows 0 --logging-steps 1
    --learning-rate 1e-3 --trackio-project "" --checkpoint-minutes 0 --max-steps 6 --load-in 4bit --max-length 1024
    --batch-size 4 --gradient-accumulation 1 --resume never)
  python3 "$script" "${common[@]}" --merge 16bit --output-dir "$where/out" > "$out/$kind.log" 2>&1
  echo "status $?" >> "$out/$kind.log"
  python3 bench/compare_merged.py "$where/model" "$where/out" "$where/out/merged" "$where/rows" "$@" \
    > "$out/$kind-compare.json" 2> "$out/$kind-compare.log"
  # 4 bits again, of what is loaded so.
  python3 "$script" "${common[@]}" --merge 4bit --max-steps 2 --output-dir "$where/out4" > "$out/$kind-4bit.log" 2>&1
  echo "status $?" >> "$out/$kind-4bit.log"
  {
    echo "---- $kind, trained in 4 bits, merged in 16"
    grep -E "$lines|^status" "$out/$kind.log" | cut -c1-600
    echo "---- $kind: the merged model and the adapter on the 16-bit model"
    cat "$out/$kind-compare.json" || tail -5 "$out/$kind-compare.log"
    [ -s "$out/$kind-compare.json" ] || tail -5 "$out/$kind-compare.log"
    echo "---- $kind, merged in 4"
    grep -E "$lines|^status" "$out/$kind-4bit.log" | cut -c1-600
  } > "$out/$kind.txt" 2>&1
}

both text qwen3 job_scripts/sft_text.py &
both vision qwen3-vl job_scripts/sft_vlm.py --vision &
wait
cat "$out/text.txt" "$out/vision.txt"
