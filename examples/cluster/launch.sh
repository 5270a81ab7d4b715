#!/usr/bin/env bash
# Runs an update on the GPUs of several machines that share a file system, as a prefix of its command:
#
#   launch.sh node1,node2 8 primecli update-policy ...    torchrun on each machine, started over ssh
#   launch.sh slurm 8 primecli update-policy ...          srun on all nodes of this job, one task for each GPU
#
# It is made for the LAUNCH of a loop: make LAUNCH="path/launch.sh node1,node2 8". 8: GPUs of each machine. The first
# machine is this one, and has rank 0, which alone reads stdin and writes stdout. The others need the same paths: the
# environment, the working directory, models and runs. ssh must not ask for a password.
set -euo pipefail

if [ $# -lt 3 ]; then
  echo "usage: launch.sh HOST,HOST...|slurm GPUS COMMAND..." >&2
  exit 2
fi
hosts=$1 gpus=$2
shift 2

# Updates of one pipeline are started at the same time, so each takes a free port of its own.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')

if [ "$hosts" = slurm ]; then
  # --overlap: they share the GPUs, in turn, with the other stages. srun hands stdin to all tasks; only rank 0 reads it.
  MASTER_PORT=$port exec srun --overlap --nodes="$SLURM_NNODES" --ntasks=$((SLURM_NNODES * gpus)) \
    --ntasks-per-node="$gpus" --gpus-per-node="$gpus" ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "$@"
fi

IFS=, read -ra hosts <<< "$hosts"
torchrun=("$(command -v torchrun)" --nnodes "${#hosts[@]}" --nproc-per-node "$gpus"
  --master-addr "${hosts[0]}" --master-port "$port")

# What the command reads of the environment, for the other machines.
variables=()
for name in $(compgen -e); do
  case $name in
    PATH | PYTHONPATH | LD_LIBRARY_PATH | PRIMECLI_CONFIG | OMP_* | HF_* | NCCL_* | GLOO_* | TORCH_* | CUDA_* | WANDB_*)
      variables+=("$name=${!name}") ;;
  esac
done

processes=()
trap 'kill "${processes[@]}" 2> /dev/null || true; wait' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
for rank in "${!hosts[@]}"; do
  run=("${torchrun[@]}" --node-rank "$rank" --no-python "$@")
  if [ "$rank" = 0 ]; then
    "${run[@]}" <&0 &
  else
    there="cd $(printf %q "$PWD") && exec env $(printf '%q ' "${variables[@]}" "${run[@]}")"
    ssh -n -o BatchMode=yes "${hosts[$rank]}" "$there" > /dev/null &
  fi
  processes+=($!)
done
for _ in "${processes[@]}"; do
  wait -n # where it fails on one machine, the script ends, and with it the others
done
