#!/usr/bin/env bash
# Packing on a GPU: the same rows through the rendered text script, packed and not, and what the labels say.
#   bash bench/gpu_packing.sh OUT        needs bench/gpu_setup.sh's archive unpacked in /tmp/site
set -euo pipefail
out=${1:?usage: gpu_packing.sh OUT}
export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1
[ -d /tmp/pack/model ] || python3 bench/family_models.py qwen3 /tmp/pack/model
[ -d /tmp/pack/rows ] || PYTHONPATH=$PWD/bench:/tmp/site python3 -c \
  "import family_models, pathlib; family_models.write_text_rows(pathlib.Path('/tmp/pack/rows'))"
for how in --no-packing --packing; do
  python3 job_scripts/sft_text.py --model /tmp/pack/model --dataset /tmp/pack/rows --eval-rows 8 --max-steps 20 $how \
    --max-length 512 --batch-size 4 --gradient-accumulation 1 --learning-rate 1e-3 --trackio-project "" \
    --output-dir "/tmp/pack/out$how" 2>&1 | grep -E '^(labels:|step (1|20)/|eval step|RESULT|error)|Error' | tee "$out/packing$how.log"
done
