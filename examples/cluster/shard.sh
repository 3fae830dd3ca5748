#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Run one shard of a sweep: its number comes from a Slurm array job or from an indexed Job of Kubernetes.
#
#     shard.sh --grid=grid.json --model=model.keras --data=npz:examples.npz --out=/shared/sweep
set -eu
index=${SLURM_ARRAY_TASK_ID:-$((${JOB_COMPLETION_INDEX:?neither a Slurm array task nor an indexed Job} + 1))}
count=${SWEEP_SHARDS:-${SLURM_ARRAY_TASK_COUNT:?set SWEEP_SHARDS to the number of shards}}
exec tfq sweep "$@" --shard="$index/$count"
