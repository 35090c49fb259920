"""What the server of warm.py imports once, for all processes that are forked from it."""

import gc

import evaluate  # noqa: F401
import sklearn.metrics  # noqa: F401 - which the metrics of evaluate import
import torch
from accelerate import Accelerator  # noqa: F401
from torch.distributed import fsdp  # noqa: F401
from transformers import AutoTokenizer, BertModel, Trainer  # noqa: F401

import conftest  # noqa: F401
from hf_layerdrop.training import callbacks, train  # noqa: F401

torch.set_num_threads(1)
gc.freeze()  # nor do the forked processes search it for garbage
