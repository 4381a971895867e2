#!/bin/bash
# Trains on several machines under SLURM, and survives pre-emption, time limits and dead workers:
#
#     sbatch --nodes 2 --gpus-per-node 8 tools/slurm_train.sh --dataset ade20k --output runs/my_run
#
# The run folder must lie where all machines see it. The job is put back into the queue when SLURM ends it, and goes on
# from its last state, because of --resume auto. Change the lines below to what your cluster asks for.
#SBATCH --job-name=resnest_seg
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

# torchrun's agents keep their store over restarts, with the addresses of dead workers in it, unless they are told not to.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
ENDED=0

# 120 s before the end (and on pre-emption) the batch script gets SIGTERM: hand it on, wait until all have saved, and
# queue again. Each training process exits with 143; torchrun and srun turn that into codes of their own. torchrun's agent
# kills what still runs after 30 s (it has no option for that): where a step and the saving of a state take longer, the run
# goes on from the state before, so let --train.save_every be a small number of steps.
trap 'ENDED=1; scancel --signal=TERM "$SLURM_JOB_ID.0" || true' TERM

srun --kill-on-bad-exit=0 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --rdzv-id "$SLURM_JOB_ID" \
    tools/train_seg.py "$@" --resume auto &

STATUS=0
wait $! || STATUS=$?
if [ "$ENDED" = 1 ]; then
    wait || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$STATUS"
