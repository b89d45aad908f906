#!/usr/bin/env bash
# Starts this node's processes of a training job; run it on every node with the same settings.
#
#   on each of two nodes:
#   NNODES=2 MASTER_ADDR=node0 examples/launch/multi_node.sh examples/qwen-14b.yaml \
#     data.blend=[/shared/data/web] checkpoint.directory=/shared/runs/14b
#
# The authors have run it as two nodes on one machine with gloo, never on two machines or with GPUs.
# docs/multi-node.md says what the nodes must share. Another job than pretraining is named first: sft, reward or ppo.
#
# Settings:
#   NNODES          nodes of the job
#   MASTER_ADDR     name or address of one node of the job, on which torchrun's store will run
#   MASTER_PORT     its port (29500); the same on every node, free on that one
#   NPROC_PER_NODE  processes a node ("gpu", one for each GPU)
#   JOB_ID          a name that is the same on every node and differs from other jobs' (qwen-megatron)
#   MAX_RESTARTS    how often torchrun starts all processes again after one failed (0)
set -euo pipefail

if [[ -z "${NNODES:-}" || -z "${MASTER_ADDR:-}" ]]; then
  echo "multi_node: set NNODES and MASTER_ADDR, the same on every node" >&2
  exit 2
fi
if (( $# == 0 )); then
  echo "multi_node: give what qwen-megatron launch is given: [JOB] CONFIG.yaml and SECTION.KEY=VALUE" >&2
  exit 2
fi
job=pretrain
case "$1" in pretrain|sft|reward|ppo) job="$1"; shift ;; esac
# torchrun announces its default of 1 on every start; the engine sets cores / processes itself.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

exec torchrun \
  --nnodes "$NNODES" \
  --nproc-per-node "${NPROC_PER_NODE:-gpu}" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29500}" \
  --rdzv-id "${JOB_ID:-qwen-megatron}" \
  --max-restarts "${MAX_RESTARTS:-0}" \
  -m qwen_megatron "$job" "$@"
