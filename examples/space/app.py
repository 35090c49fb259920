"""A Space that shows one model at any depth. Its variable MODEL names the model: the id of one on the Hub."""

import os

from hf_layerdrop import demo_checkpoint, launch_app

launch_app(os.environ.get("MODEL") or demo_checkpoint())
