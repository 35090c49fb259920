"""`transformers serve` of a cut, in a process on loopback, answers what `generate` does; `make serving-fastapi`."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from readme_blocks import find_blocks
from serving import NEW_TOKENS, PAGE, cut_folder, plain, runtime

pytestmark = pytest.mark.serving
for needed in ("fastapi", "uvicorn", "openai"):
    runtime(needed, '"transformers[serving]"')
PROMPTS = ["w7 w9 w11 w14", "w30 w8", "w5 w55 w21"]
SECONDS = 300


@pytest.mark.parametrize("depth", [0, 1])
def test_the_answers_are_those_of_generate(depth, tmp_path):
    folder = cut_folder("llama", depth, tmp_path)
    model, tokenizer = plain("llama", folder), AutoTokenizer.from_pretrained(folder)
    with served(folder, tmp_path / "log") as address:
        for prompt in PROMPTS:
            body = {"model": str(folder), "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0}
            answer = ask(f"{address}/v1/completions", body)
            inputs = tokenizer(prompt, return_tensors="pt")
            tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[
                0, inputs["input_ids"].shape[1] :
            ]
            assert answer["choices"][0]["text"].split() == tokenizer.decode(tokens, skip_special_tokens=True).split()
            assert answer["usage"]["completion_tokens"] >= 1


def ask(address, body):
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        return json.load(response)


@contextmanager
def served(folder, log):
    """Run the line of the page on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = next(b.code for b in find_blocks(PAGE.read_text()) if "transformers serve" in b.code).splitlines()[0]
    words = [word.replace("out/lm-6-layers", str(folder)) for word in shlex.split(line, comments=True)]
    program = Path(sys.executable).with_name(words[0])
    command = [str(program), *words[1:], "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(address, process, log):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        if answers(address):
            return
        time.sleep(0.5)
    pytest.fail(f"transformers serve does not answer:\n{log.read_text()[-3000:]}")


def answers(address):
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True
