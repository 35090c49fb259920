"""Run the code blocks of Markdown files, in order, as a reader would: ``python readme_blocks.py README.md``.

The Python blocks of a file share one namespace, bash blocks stop at the first error, and both run in a fresh folder
without network. Where a bash block is commands of ours alone, they run in processes that have torch imported already.
What they would fetch from the Hub is there in small: checkpoints as folders of the same name, and GLUE's SST-2 in the
cache of `datasets`. A block that cannot run has ``<!-- not run: reason -->`` above it; all others do.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}
ROWS = 32  # of each split: a few steps an epoch

_BLOCK = re.compile(
    r"(?P<comment><!--(?:(?!-->).)*-->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_NOT_RUN = re.compile(r"<!-- not run: \S.*-->\n", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code and the line of the file on which it begins."""

    language: str
    code: str
    line: int
    runs: bool


def find_blocks(text: str) -> list[Block]:
    """List the Python and bash blocks of a Markdown text."""
    return [
        Block(
            match["language"],
            match["code"],
            text.count("\n", 0, match.start("code")) + 1,
            not _NOT_RUN.fullmatch(match["comment"] or ""),
        )
        for match in _BLOCK.finditer(text)
        if match["language"] in ("python", "bash")
    ]


def run_blocks(blocks: list[Block], name: str) -> None:
    """Run the blocks in the current folder; the first error ends it, and a traceback shows the line of the file."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        start = time.perf_counter()
        say(f"--- {name}:{block.line} ({block.language}){'' if block.runs else ': not run'}")
        if not block.runs:
            continue
        if block.language == "bash":
            run_bash(block.code)
        else:
            exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), namespace)
        say(f"--- {name}:{block.line} took {time.perf_counter() - start:.1f} s")


def run_bash(code: str) -> None:
    """Run a bash block; to import torch takes most of the time of a command, so that ours share one import."""
    commands = [words for line in code.splitlines() if (words := shlex.split(line, comments=True))]
    if not all(words[0] == "hf-layerdrop" for words in commands):
        subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True)
        return
    from warm import run_python

    for words in commands:
        done = run_python("-m", "hf_layerdrop", *words[1:], cwd=Path.cwd())
        say(f"{done.stdout}{done.stderr}")
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, words)


def prepare(folder: Path, datasets_cache: Path) -> None:
    """Make what the blocks would fetch, in small: as deep as the real models, and 16 wide."""
    from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM, BertTokenizer

    words = prepare_sst2(datasets_cache)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=512)
    size = {"vocab_size": len(tokenizer), "pad_token_id": 0}
    bert = BertConfig(
        **size, hidden_size=16, num_hidden_layers=12, num_attention_heads=2, intermediate_size=32, initializer_range=0.2
    )
    bart = BartConfig(
        **size, d_model=16, encoder_layers=6, decoder_layers=6, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, init_std=0.2,
    )  # fmt: skip
    models = {"bert-base-uncased": BertForMaskedLM(bert), "facebook/bart-base": BartForConditionalGeneration(bart)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def prepare_sst2(datasets_cache: Path) -> list[str]:
    """Put a few rows of SST-2 where `load_dataset` looks for what it has loaded before; return their words."""
    from datasets.packaged_modules.parquet.parquet import Parquet

    from hf_layerdrop.tasks.embedded import embedded_sst2

    splits = {split: rows.select(range(ROWS)) for split, rows in embedded_sst2().items()}
    files = {split: str(datasets_cache.with_name(f"{split}.parquet")) for split in splits}
    for split, rows in splits.items():
        rows.to_parquet(files[split])
    builder = Parquet(str(datasets_cache.with_name("scratch")), "glue", "sst2", data_files=files)
    builder.download_and_prepare(str(datasets_cache / "nyu-mll___glue" / "sst2" / "0.0.0" / "prepared"))
    return sorted({word for rows in splits.values() for sentence in rows["sentence"] for word in sentence.split()})


def say(line: str) -> None:
    """Report on a line of its own, before what the next block writes."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(*files: Path) -> None:
    """Run all blocks of some files, each in a folder of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary, "prepared", "datasets")
        cache.mkdir(parents=True)
        # before transformers and datasets are imported, which read these once; and hf-layerdrop is beside this Python
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        os.environ.update({**OFFLINE, "HF_DATASETS_CACHE": str(cache), "PATH": path})
        before = Path.cwd()
        try:
            for file in files:
                folder = Path(temporary, file.stem)
                folder.mkdir()
                os.chdir(folder)
                run_file(file, folder, cache)
        finally:
            os.chdir(before)


def run_file(file: Path, folder: Path, datasets_cache: Path) -> None:
    """Run all blocks of a file in the current folder."""
    blocks = find_blocks(file.read_text(encoding="utf-8"))
    if not any(block.runs for block in blocks):
        raise SystemExit(f"{file} has no block of code that runs.")
    prepare(folder, datasets_cache)
    run_blocks(blocks, file.name)
    say(f"{sum(block.runs for block in blocks)} of {len(blocks)} blocks of {file.name} ran.")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("usage: python tests/support/readme_blocks.py FILE.md ...")
    main(*(Path(name).resolve() for name in sys.argv[1:]))
