"""What each of two processes does for test_zero3 with Trainer; prints one JSON object a line, from rank 0."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}

import deepspeed
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from torch import distributed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from accumulation_worker import found_of, new_model, trainer_for
from hf_layerdrop.injection.ranks.ddp import leave_ranks
from zero3_worker import distance

CONFIG = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "gradient_clipping": 0.0,
    "zero_optimization": {
        "stage": 3,
        "stage3_prefetch_bucket_size": 0,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_reuse_distance": 0,
    },
}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    PartialState(backend="gloo")  # which Trainer would choose on accelerators only, and on a CPU train alone
    for execution in ("skip", "mask"):
        AcceleratorState._reset_state()
        configured = {"use_configured_state": True}
        model = new_model(execution)
        trainer = trainer_for(model, folder, 2, use_cpu=False, deepspeed=CONFIG, accelerator_config=configured)
        trainer.train()
        unset_hf_deepspeed_config()  # or the models to compare with would be sharded, too
        found = found_of(trainer, model, execution, distance)
        found["wrapped"] = type(trainer.model_wrapped).__name__
        if distributed.get_rank() == 0:
            print(json.dumps({"case": execution, **found}), flush=True)  # noqa: T201 - what the test reads
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
