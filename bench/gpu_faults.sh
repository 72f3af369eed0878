#!/usr/bin/env bash
# Killed and gone on with, out of memory, stalled, and at a rate that makes NaN, on a GPU: text (4 bits, packed) and
# vision, through the rendered scripts.
#   bash bench/gpu_faults.sh OUT [PART...]     needs bench/gpu_setup.sh's archive unpacked in /tmp/site; about 6 minutes
# Parts, all unless some are named: text vision (killed and gone on with), text-memory vision-memory (out of memory),
# stall nan (text).
# Prints for each kind: the lines that decide, how far the adapter of the run that was killed is from an uninterrupted
# one's beside how far two uninterrupted ones are from each other, and what became of a run with too little memory for
# its batch.
set -uo pipefail
out=$(realpath -m "${1:?usage: gpu_faults.sh OUT [PART...]}")
parts=("${@:2}")
[ ${#parts[@]} -gt 0 ] || parts=(text vision text-memory vision-memory stall nan)
export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
root=/tmp/faults
lines='^(step |eval step|checkpoint|resumed|out of memory|deadline|RESULT|error)|Error'
mkdir -p "$out" "$root"
# A card that is smaller than it is, by `CAP_GIB`: for the process that begins again with smaller batches too.
mkdir -p "$root/cap"
cat > "$root/cap/sitecustomize.py" <<'PY'
import os, torch
total = torch.cuda.get_device_properties(0).total_memory / 2**30
torch.cuda.set_per_process_memory_fraction(float(os.environ["CAP_GIB"]) / total)
PY
# A kernel that never ends, in the fourth backward pass: by then, the clock says, it has gone on for 17 minutes.
mkdir -p "$root/stall-here"
cat > "$root/stall-here/sitecustomize.py" <<'PY'
import time, torch
clock, passed, calls, backward = time.monotonic, [0.0], [0], torch.Tensor.backward
time.monotonic = lambda: clock() + passed[0]
def stalling(self, *rest, **more):
    calls[0] += 1
    if calls[0] == 4:
        torch.cuda._sleep(2**62)
        passed[0] = 1020.0
    return backward(self, *rest, **more)
torch.Tensor.backward = stalling
PY
cat > "$root/compare.py" <<'PY'
import sys
from safetensors.torch import load_file
one, other = (load_file(f"{folder}/adapter_model.safetensors") for folder in sys.argv[1:3])
assert one.keys() == other.keys()
far = {name: (one[name] - other[name]).abs() for name in one}
worst = max(far, key=lambda name: far[name].max())
mean = sum(d.sum().item() for d in far.values()) / sum(d.numel() for d in far.values())
size = sum(w.abs().sum().item() for w in one.values()) / sum(w.numel() for w in one.values())
print(f"mean weight {size:.3e}, mean difference {mean:.3e}, largest {far[worst].max().item():.3e} in {worst}")
PY
# Between the memory after loading and the peak of training: enough for half of the batch, not for all of it.
cat > "$root/cap.py" <<'PY'
import json, sys
peaks = json.loads(open(sys.argv[1]).read().rpartition("RESULT ")[2])["peaks_gib"]
print(round(peaks["load"] + 0.75 * (peaks["train"] - peaks["load"]), 2))
PY
# Long rows, so that the batch decides the memory and not the weights.
cat > "$root/rows.py" <<'PY'
import pathlib, sys
sys.path.insert(0, "bench")
import memory
kind, model, folder = sys.argv[1:]
image = 448 if kind == "vision" else None
shape = memory.Config(kind, kind, "4bit", 16, 2048, 16, image, accumulate=1, steps=3)
memory._rows(shape, pathlib.Path(folder), memory._end(pathlib.Path(model)))
PY

run() { # LOG SCRIPT FLAGS...
  python3 "${@:2}" > "$out/$1.log" 2>&1
}

interrupted() { # KIND SCRIPT FLAGS...
  local kind=$1 script=$2 where=$root/$1
  shift 2
  local common=("$@" --model "$where/model" --dataset "$where/rows" --eval-rows 8 --sample-rows 0 --logging-steps 1
    --learning-rate 1e-3 --trackio-project "" --checkpoint-minutes 0.001 --max-steps 8)
  run "$kind-whole" "$script" "${common[@]}" --output-dir "$where/whole" &
  local whole=$!
  run "$kind-again" "$script" "${common[@]}" --output-dir "$where/again" &
  local again=$!
  python3 "$script" "${common[@]}" --output-dir "$where/killed" > "$out/$kind-killed.log" 2>&1 &
  local pid=$!
  until grep -q '^checkpoint step 4 ' "$out/$kind-killed.log" || ! kill -0 $pid 2> /dev/null; do sleep 0.1; done
  kill -9 $pid 2> /dev/null
  wait $pid 2> /dev/null
  run "$kind-resumed" "$script" "${common[@]}" --output-dir "$where/killed"
  wait $whole $again
  {
    for part in whole killed resumed; do
      echo "---- $kind $part"
      grep -E "$lines" "$out/$kind-$part.log"
    done
    echo "---- $kind: an uninterrupted run's adapter and the killed one's, then two uninterrupted ones"
    python3 "$root/compare.py" "$where/whole" "$where/killed"
    python3 "$root/compare.py" "$where/whole" "$where/again"
  } > "$out/$kind.txt" 2>&1
}

small_card() { # KIND SCRIPT FLAGS...
  local kind=$1 script=$2 where=$root/$1
  shift 2
  PYTHONPATH=$PWD/bench:/tmp/site python3 "$root/rows.py" "$kind" "$where/model" "$where/long"
  local common=("$@" --model "$where/model" --dataset "$where/long" --eval-rows 0 --logging-steps 1 --train-on all
    --trackio-project "" --checkpoint-minutes 0 --max-steps 3 --batch-size 16 --gradient-accumulation 1)
  run "$kind-wide" "$script" "${common[@]}" --output-dir "$where/wide"
  local cap
  cap=$(python3 "$root/cap.py" "$out/$kind-wide.log")
  CAP_GIB=$cap PYTHONPATH=$root/cap:$PYTHONPATH run "$kind-capped" "$script" "${common[@]}" --output-dir "$where/capped"
  {
    for part in wide capped; do
      echo "---- $kind $part $([ $part = capped ] && echo "at $cap GiB")"
      grep -E "$lines" "$out/$kind-$part.log"
      grep -oE '"peaks_gib": [^}]*}' "$out/$kind-$part.log"
    done
  } > "$out/$kind-memory.txt" 2>&1
}

wrong() { # PART FLAGS...: a text run that goes wrong, and its next attempt
  local part=$1 where=$root/text
  shift
  local common=(--model "$where/model" --dataset "$where/rows" --eval-rows 0 --logging-steps 1 --trackio-project ""
    --load-in 4bit --packing --max-length 1024 --batch-size 8 --checkpoint-minutes 0.001 --max-steps 8
    --output-dir "$root/$part")
  PYTHONPATH=$root/$part-here:$PYTHONPATH run "$part-first" job_scripts/sft_text.py "${common[@]}" "$@"
  echo "status $?" >> "$out/$part-first.log"
  [ "$part" = nan ] || run "$part-again" job_scripts/sft_text.py "${common[@]}" "$@"
  {
    for log in "$out/$part"-*.log; do
      echo "---- $(basename "$log" .log)"
      grep -E "$lines|^status|in stalling|in backward" "$log"
    done
  } > "$out/$part.txt" 2>&1
}

for kind in text:qwen3 vision:qwen3-vl; do
  where=$root/${kind%:*}
  [[ " ${parts[*]} " == *" ${kind%:*}"* || ${kind%:*} = text ]] || continue
  [ -d "$where/model" ] || python3 bench/family_models.py "${kind#*:}" "$where/model" > "$out/${kind%:*}-model.log" 2>&1 &
  [ -d "$where/rows" ] || PYTHONPATH=$PWD/bench:/tmp/site python3 -c \
    "import family_models, pathlib; family_models.write_${kind%:*}_rows(pathlib.Path('$where/rows'))" &
done
wait
# A vision run reads its rows as a stream, as it does by default: those that were seen are skipped.
for part in "${parts[@]}"; do
  case $part in
    text) interrupted text job_scripts/sft_text.py --load-in 4bit --packing --max-length 1024 --batch-size 8 --gradient-accumulation 1 & ;;
    vision) interrupted vision job_scripts/sft_vlm.py --load-in 4bit --max-length 1024 --batch-size 8 --gradient-accumulation 1 & ;;
    text-memory) small_card text job_scripts/sft_text.py --load-in 4bit --no-packing --max-length 2048 & ;;
    vision-memory) small_card vision job_scripts/sft_vlm.py --load-in 4bit --max-length 2048 --image-size 448 --no-streaming & ;;
    stall) wrong stall & ;;
    nan) wrong nan --learning-rate 4e9 & ;;
    *) echo "unknown part '$part': choose text, vision, text-memory, vision-memory, stall or nan" >&2 && exit 2 ;;
  esac
done
wait
for part in "${parts[@]}"; do cat "$out/$part.txt"; done
