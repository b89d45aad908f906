#!/usr/bin/env bash
# Trains the tiny preset for a few steps on this machine's GPUs and prints a report to paste into an issue.
#
#   examples/gpu_smoke.sh                   one GPU, and tensor parallelism if there are two or more
#   PLATFORM=cpu examples/gpu_smoke.sh      the same stages on the CPU, without Transformer Engine
#
# What has run on a GPU, and what has not: docs/gpu.md. Any outcome is worth a report.
#
# What runs: a corpus is made of Python's standard library; torch kernels, then Transformer Engine's, each on one GPU;
# a run that is stopped half-way and resumed; TP2 with sequence parallelism; each result is exported to the Hugging Face
# format and its logits are compared; then the tests marked `gpu`, if pytest is installed. A stage that fails is reported and the others go on; the exit status is then 1.
#
# Settings: PLATFORM (cuda), STEPS (8, even), PYTHON (the active environment's, else .venv's).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PLATFORM="${PLATFORM:-cuda}"
STEPS="${STEPS:-8}"
if [[ -z "${PYTHON:-}" ]]; then
  if [[ -n "${VIRTUAL_ENV:-}" ]]; then PYTHON="$VIRTUAL_ENV/bin/python"; else PYTHON=.venv/bin/python; fi
fi

if [[ "$PLATFORM" != cuda && "$PLATFORM" != cpu ]]; then
  echo "gpu_smoke: PLATFORM=$PLATFORM must be cuda or cpu" >&2
  exit 2
fi
if [[ ! "$STEPS" =~ ^[0-9]+$ ]] || (( 10#$STEPS < 6 || 10#$STEPS % 2 )); then
  echo "gpu_smoke: STEPS=$STEPS must be an even number of at least 6" >&2
  exit 2
fi
if ! "$PYTHON" -c 'import qwen_megatron'; then
  echo "gpu_smoke: $PYTHON cannot import qwen_megatron; run make setup, or name the interpreter with PYTHON=" >&2
  exit 2
fi
STEPS=$((10#$STEPS))
# A platform asked for is the one used, by every command.
if [[ "$PLATFORM" == cpu ]]; then export CUDA_VISIBLE_DEVICES=""; fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

mkdir -p runs
WORK="$(mktemp -d runs/gpu-smoke.XXXXXX)"
failed=0
results=()

# stage NAME COMMAND...: runs a command, keeps its output in a log, remembers how it ended.
stage() {
  local name="$1" log="$WORK/${1//[^A-Za-z0-9]/-}.log" started=$SECONDS
  shift
  echo "== $name: $*"
  if "$@" > "$log" 2>&1; then
    results+=("$(printf '%-28s ok      %4d s' "$name" "$((SECONDS - started))")")
  else
    failed=1
    results+=("$(printf '%-28s FAILED  %4d s, last lines:' "$name" "$((SECONDS - started))")")
    results+=("$(tail -n 12 "$log" | sed 's/^/    /')")
    echo "   failed, see $log" >&2
    return 1
  fi
}

# train NAME PROCESSES OVERRIDE...: one run of the tiny preset in the folder $WORK/NAME.
train() {
  local name="$1" processes="$2"
  shift 2
  "$PYTHON" -m qwen_megatron.parallel.loopback --nproc-per-node "$processes" -m qwen_megatron pretrain \
    model.preset=tiny parallel.platform="$PLATFORM" "data.blend=[$WORK/corpus]" data.eval_samples=4 \
    training.train_iters="$STEPS" training.global_batch_size=4 training.eval_interval="$STEPS" \
    optimizer.lr=1e-2 optimizer.lr_warmup_iters=4 logging.tensorboard=false checkpoint.directory="$WORK/$name" "$@"
}

# check NAME: exports the last checkpoint of $WORK/NAME and compares it with the export.
check() {
  local name="$1" checkpoint
  checkpoint="$WORK/$name/iter_$(printf '%07d' "$STEPS")"
  stage "export $name" "$PYTHON" -m qwen_megatron convert to-hf "$checkpoint" "$WORK/$name-hf" --format qwen2 &&
    # fp32 logits are compared to 1e-4: matrix products must not be rounded to TF32.
    NVIDIA_TF32_OVERRIDE=0 stage "verify $name" \
      "$PYTHON" -m qwen_megatron convert verify "$checkpoint" "$WORK/$name-hf" &&
    results+=("    $(grep '^logits:' "$WORK/verify-$name.log")")
}

devices() {
  if [[ "$PLATFORM" == cpu ]]; then echo 2; else "$PYTHON" -c 'import torch; print(torch.cuda.device_count())'; fi
}

versions() {
  local commit
  commit="$(git describe --always --dirty --abbrev=40 --exclude='*' 2> /dev/null || echo 'not a git checkout')"
  echo "commit              $commit"
  "$PYTHON" - <<'PYTHON_END'
import importlib.util
import os
import platform
from importlib import metadata

import torch


def version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


packages = ("torch", "megatron-core", "transformer-engine", "flash-attn", "transformers", "numpy")
print("python             ", platform.python_version(), platform.machine())
for package in packages:
    print(f"{package:<20}{version(package)}")
wgrad = importlib.util.find_spec("fused_weight_gradient_mlp_cuda")
print("fused wgrad        ", "found" if wgrad else "not found", "(comes with NVIDIA apex)")
print("CUDA               ", torch.version.cuda or "none")
if torch.cuda.is_available():
    print("cuDNN              ", torch.backends.cudnn.version())
    print("NCCL               ", ".".join(map(str, torch.cuda.nccl.version())))
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        print(f"{f'GPU {number}':<20}{gpu.name}, {memory}, compute {gpu.major}.{gpu.minor}")
print("cores              ", len(os.sched_getaffinity(0)), "| OMP_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
PYTHON_END
  if command -v nvidia-smi > /dev/null; then
    echo "driver              $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | sort -u | tr '\n' ' ')"
  fi
}

# What the runs measured: losses of each, and whether the resumed one repeats the bits of the one it must equal.
losses() {
  "$PYTHON" - "$WORK" "$1" <<'PYTHON_END'
import json
import pathlib
import sys

work, whole = pathlib.Path(sys.argv[1]), sys.argv[2]
runs = {}
for path in sorted(work.glob("*/metrics.jsonl")):
    rows = map(json.loads, path.read_text().splitlines())
    runs[path.parent.name] = {row["step"]: row for row in rows if "loss" in row}
for name, steps in runs.items():
    if steps:
        first, last = steps[min(steps)], steps[max(steps)]
        print(
            f"{name:<10} step {first['step']}: loss {first['loss']:.6f} grad norm {first['grad_norm']:.6f} | "
            f"step {last['step']}: loss {last['loss']:.6f} grad norm {last['grad_norm']:.6f} | "
            f"{last['tokens_per_second']:,.0f} tokens/s, {last['peak_memory_bytes'] / 2**30:.2f} GiB"
        )
if runs.get(whole) and runs.get("resumed"):
    bits = [{step: row["loss_hex"] for step, row in runs[name].items()} for name in (whole, "resumed")]
    print(f"resumed    losses equal those of {whole} bit for bit: {'yes' if bits[0] == bits[1] else 'NO'}")
states = sorted(work.glob("*/iter_*/state.json"))
for threads in sorted({json.loads(path.read_text())["environment"]["threads"] for path in states}):
    print(f"threads    {threads} a process in some of these runs")
PYTHON_END
}

count="$(devices)"
if (( count == 0 )); then
  echo "gpu_smoke: torch sees no GPU; PLATFORM=cpu runs the stages that need none" >&2
  exit 2
fi

# Which kernels the runs on two processes and the resumed one use: Transformer Engine's where it works.
whole=torch
kernels=model.implementation=torch

runs() {
  stage "collect text" "$PYTHON" -m data_tools collect-stdlib --output "$WORK/text.jsonl" || return 0
  stage "tokenize" "$PYTHON" -m data_tools tokenize "$WORK/text.jsonl" --output "$WORK/corpus" || return 0
  if stage "torch kernels" train torch 1 "$kernels"; then check torch || true; fi
  if [[ "$PLATFORM" == cpu ]]; then
    results+=("Transformer Engine           not run: it has no kernels for the CPU")
  elif stage "Transformer Engine" train te 1 model.implementation=transformer_engine; then
    whole=te
    kernels=model.implementation=transformer_engine
    check te || true
  fi
  if stage "stop half-way" train resumed 1 "$kernels" training.exit_iter="$((STEPS / 2))"; then
    stage "resume" train resumed 1 "$kernels" || true
  fi
  if (( count < 2 )); then
    results+=("TP2, sequence parallel       not run: one GPU")
  elif stage "TP2, sequence parallel" train tp2 2 "$kernels" \
    parallel.tensor_model_parallel_size=2 parallel.sequence_parallel=true; then
    check tp2 || true
  fi
  if [[ "$PLATFORM" == cuda ]] && "$PYTHON" -c 'import pytest' 2> /dev/null; then
    stage "tests marked gpu" "$PYTHON" -m pytest -q -m gpu tests/gpu &&
      results+=("    $(tail -n 1 "$WORK/tests-marked-gpu.log")")
  fi
}

runs

echo
echo '----- 8< ----- paste from here -----'
echo '```'
echo "qwen-megatron GPU smoke test, PLATFORM=$PLATFORM STEPS=$STEPS"
versions
echo
printf '%s\n' "${results[@]}"
echo
losses "$whole"
echo '```'
echo '----- 8< ----- to here -----'

if (( failed )); then
  echo "gpu_smoke: a stage failed; logs and checkpoints are kept in $WORK" >&2
  exit 1
fi
rm -rf "$WORK"
