#!/usr/bin/env bash
# The whole chain on a GPU machine without network: `launch --model FOLDER --local`, from the plan to the result.
# That machine's own Python has the training stack, so `uv run` stands for that Python; all else is the real thing.
#   bash bench/gpu_chain.sh OUT          needs bench/gpu_setup.sh's archive unpacked in /tmp/site, and .gpu/launch
set -euo pipefail
out=${1:?usage: gpu_chain.sh OUT}
mkdir -p /tmp/bin
cat >/tmp/bin/uv <<'SHIM'
#!/usr/bin/env bash
while [[ $# -gt 0 && $1 != *.py ]]; do shift; done
PYTHONPATH=/tmp/site exec python3 "$@"
SHIM
chmod +x /tmp/bin/uv
# The launcher is "installed" there by a path file, as its supervisor and its child find their packages by themselves.
python3 -c "
import site
line = 'import sys; sys.path[:0] = [\"$PWD\", \"$PWD/.gpu/launch\", \"/tmp/site\"]'
open(site.getsitepackages()[0] + '/launch.pth', 'w').write(line)"
export PATH=/tmp/bin:$PATH LAUNCH_HOME=/tmp/launch-home
[ -d /tmp/chain/model ] || python3 bench/family_models.py qwen3-vl /tmp/chain/model
[ -d /tmp/chain/rows ] || PYTHONPATH=$PWD/bench python3 -c \
  "import family_models, pathlib; family_models.write_vision_rows(pathlib.Path('/tmp/chain/rows'))"
launch() { python3 -c 'import sys; sys.argv[0] = "launch"; from launcher.cli.app import main; main()' "$@"; }
launch --model /tmp/chain/model --dataset /tmp/chain/rows --local --max-steps 20 --eval-rows 8 --sample-rows 1 \
  --batch-size 4 --effective-batch-size 4 --learning-rate 1e-3 2>&1 | tee "$out/chain.log"
launch ps --all --local
