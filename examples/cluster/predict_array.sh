#!/bin/bash
# Predicts millions of photos by the processes of a SLURM array, which need not know of each other:
#
#     sbatch --array 0-99 examples/cluster/predict_array.sh --checkpoint runs/my_run photos.csv --output labels
#
# Each takes the photos whose hash is its number, and writes down what it has finished. After a failure, a time limit or a
# pre-emption, give the same command again: what is done is not done again. The number of processes may then be another.
#SBATCH --job-name=resnest_seg_predict
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

exec resnest-seg predict "$@" --shard "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT"
