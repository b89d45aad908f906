#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment and runs the tour there, away from the checkout: `make test-wheel`.
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${1:-python3}"

"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/dist" "$root"
"$python" -m venv "$work/env"
grep -v '^#' "$root/requirements/cpu.txt" > "$work/requirements.txt"
"$work/env/bin/pip" install --quiet "$(grep '^torch==' "$work/requirements.txt")" 2>/dev/null \
  || "$work/env/bin/pip" install --quiet --extra-index-url https://download.pytorch.org/whl/cpu \
    "$(grep '^torch==' "$work/requirements.txt")"
"$work/env/bin/pip" install --quiet -r "$work/requirements.txt"
"$work/env/bin/pip" install --quiet --no-deps "$work"/dist/*.whl

mkdir "$work/elsewhere"
cd "$work/elsewhere"
PATH="$work/env/bin:$PATH"
export OMP_NUM_THREADS=1
unset PYTHONPATH
python - <<'EOF'
import data_tools, qwen_megatron
for package in (data_tools, qwen_megatron):
    assert "site-packages" in package.__file__, package.__file__
EOF
set -x
qwen-data collect-stdlib --output stdlib.jsonl
qwen-data tokenize stdlib.jsonl --output corpus
qwen-data verify corpus
qwen-megatron recipes
small=(recipe:demo --processes 2 parallel.pipeline_model_parallel_size=1 'data.blend=[corpus]' data.eval_samples=4
  checkpoint.directory=run training.train_iters=8 training.exit_iter=4 training.seq_length=64)
qwen-megatron launch "${small[@]}" training.exit_iter=2
qwen-megatron launch "${small[@]}"
qwen-megatron convert to-hf run/iter_0000004 hf --format qwen2
qwen-megatron convert verify run/iter_0000004 hf
qwen-megatron generate run/iter_0000004 --prompt "def main(" --max-new-tokens 4
qwen-megatron report run
