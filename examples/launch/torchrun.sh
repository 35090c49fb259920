#!/usr/bin/env bash
# One machine, several GPUs: examples/launch/torchrun.sh GPUS OUTPUT
# Started again after a crash it continues from the last complete checkpoint, and ends where it would have ended.
set -euo pipefail
gpus=${1:?number of GPUs} output=${2:?output folder}
torchrun --standalone --nproc_per_node "$gpus" --max-restarts 3 --no-python \
    hf-layerdrop train --model bert-base-uncased --task mnli --layerdrop 0.2 \
    --output_dir "$output" --save_strategy steps --save_steps 500 --bf16 \
    --resume_from_checkpoint auto --overwrite
