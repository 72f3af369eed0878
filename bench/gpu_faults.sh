#!/usr/bin/env bash
# Killed and gone on with, and out of memory, on a GPU: text (4 bits, packed) and vision, through the rendered scripts.
#   bash bench/gpu_faults.sh OUT         needs bench/gpu_setup.sh's archive unpacked in /tmp/site; about 5 minutes
# Prints for each kind: the lines that decide, how far the adapter of the run that was killed is from the uninterrupted
# one's, and what became of a run with too little memory for its batch.
set -uo pipefail
out=$(realpath -m "${1:?usage: gpu_faults.sh OUT}")
export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
root=/tmp/faults
lines='^(step |eval step|checkpoint|resumed|out of memory|deadline|RESULT|error)|Error'
mkdir -p "$out" "$root"
# The script, on a card that is smaller than it is: by `CAP_GIB`.
cat > "$root/capped.py" <<'PY'
import os, runpy, sys, torch
total = torch.cuda.get_device_properties(0).total_memory / 2**30
torch.cuda.set_per_process_memory_fraction(float(os.environ["CAP_GIB"]) / total)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
PY
cat > "$root/compare.py" <<'PY'
import sys
from safetensors.torch import load_file
one, other = (load_file(f"{folder}/adapter_model.safetensors") for folder in sys.argv[1:3])
assert one.keys() == other.keys()
far = max((one[name] - other[name]).abs().max().item() for name in one)
print(f"largest weight {max(w.abs().max().item() for w in one.values()):.3e}, largest difference {far:.3e}")
PY
# Between the memory after loading and the peak of training: enough for half of the batch, not for all of it.
cat > "$root/cap.py" <<'PY'
import json, sys
peaks = json.loads(open(sys.argv[1]).read().rpartition("RESULT ")[2])["peaks_gib"]
print(round(peaks["load"] + 0.7 * (peaks["train"] - peaks["load"]), 2))
PY

both() { # KIND SCRIPT FLAGS...
  local kind=$1 script=$2 where=$root/$1
  shift 2
  local common=("$@" --model "$where/model" --dataset "$where/rows" --eval-rows 8 --sample-rows 0 --logging-steps 1
    --learning-rate 1e-3 --trackio-project "" --checkpoint-minutes 0.001 --max-steps 8)
  python3 "$script" "${common[@]}" --output-dir "$where/whole" > "$out/$kind-whole.log" 2>&1
  python3 "$script" "${common[@]}" --output-dir "$where/killed" > "$out/$kind-killed.log" 2>&1 &
  local pid=$!
  until grep -q '^checkpoint step 4 ' "$out/$kind-killed.log" || ! kill -0 $pid 2> /dev/null; do sleep 0.1; done
  kill -9 $pid 2> /dev/null
  wait $pid 2> /dev/null
  python3 "$script" "${common[@]}" --output-dir "$where/killed" > "$out/$kind-resumed.log" 2>&1
  local cap
  cap=$(python3 "$root/cap.py" "$out/$kind-whole.log")
  CAP_GIB=$cap python3 "$root/capped.py" "$script" "${common[@]}" --output-dir "$where/capped" > "$out/$kind-capped.log" 2>&1
  {
    for part in whole killed resumed capped; do
      echo "---- $kind $part $([ $part = capped ] && echo "at $cap GiB")"
      grep -E "$lines" "$out/$kind-$part.log"
    done
    echo "---- $kind: the uninterrupted run's adapter and the killed one's"
    python3 "$root/compare.py" "$where/whole" "$where/killed"
  } > "$out/$kind.txt" 2>&1
}

[ -d $root/text/model ] || python3 bench/family_models.py qwen3 $root/text/model
[ -d $root/vision/model ] || python3 bench/family_models.py qwen3-vl $root/vision/model
for kind in text vision; do
  [ -d $root/$kind/rows ] || PYTHONPATH=$PWD/bench:/tmp/site python3 -c \
    "import family_models, pathlib; family_models.write_${kind}_rows(pathlib.Path('$root/$kind/rows'))"
done
both text job_scripts/sft_text.py --load-in 4bit --packing --max-length 1024 --batch-size 8 --gradient-accumulation 1 &
both vision job_scripts/sft_vlm.py --load-in 4bit --max-length 1024 --batch-size 8 --gradient-accumulation 1 &
wait
cat "$out/text.txt" "$out/vision.txt"
