"""The headers of a checkpoint wherever it is: in a folder, or on the Hub, of which nothing but headers is fetched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError

from hf_layerdrop.checkpoints.adapter_files import ADAPTER_CONFIG, adapted_base
from hf_layerdrop.checkpoints.downloads import HubModel, find_tensors
from hf_layerdrop.checkpoints.headers import (
    CONFIG_NAME,
    INDEX_NAME,
    PICKLE_NAMES,
    WEIGHTS_NAME,
    CheckpointHeaders,
    check_not_gguf,
    read_checkpoint,
    read_config,
)
from hf_layerdrop.checkpoints.unreadable import hub_answering, is_there, reading, unreadable
from hf_layerdrop.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def read_headers(
    name_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None, **where: Any
) -> CheckpointHeaders:
    """Read the headers of a local folder, or of a model on the Hub if there is no such folder.

    Those of an adapter are its base's.

    Args:
        name_or_path: The folder or the Hub id.
        revision: Revision on the Hub.
        token: For the Hub.
        **where: ``subfolder``, ``cache_dir`` and ``local_files_only`` as for ``from_pretrained``.

    Raises:
        CheckpointError: There is no such checkpoint, or it is broken; see `read_checkpoint`.
    """
    with reading(name_or_path, alone=True):
        if (base := adapted_base(name_or_path, {**where, "revision": revision, "token": token})) is not None:
            return read_headers(base, token=token, **{**where, "subfolder": ""})
        if is_there(name_or_path) or not _HUB_ID.fullmatch(str(name_or_path)):
            return read_checkpoint(Path(name_or_path) / (where.get("subfolder") or ""))
        return read_hub_checkpoint(str(name_or_path), revision=revision, token=token, **where)


def read_hub_checkpoint(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    is_base: bool = False,
) -> CheckpointHeaders:
    """Read config.json and the weight headers of a model on the Hub; no weights are fetched, if it has ranges.

    Those of an adapter are its base's, of which ``is_base`` says that it must not be an adapter again.

    Raises:
        CheckpointError: There is no such model, or it is broken.
    """
    try:
        if local_files_only or constants.is_offline_mode():
            cached = snapshot_download(repo_id, revision=revision, cache_dir=cache_dir, local_files_only=True)
            return read_checkpoint(Path(cached) / (subfolder or ""))
        with hub_answering(repo_id):  # answers at once where a download would retry for long
            info = HfApi(token=token).model_info(repo_id, revision=revision, timeout=10)
        model = HubModel(repo_id, info.sha or "main", subfolder or "", token=token, cache_dir=cache_dir)
        files = {sibling.rfilename for sibling in info.siblings or ()}
        config_is_there = model.path(CONFIG_NAME) in files
        if not config_is_there or not files & set(map(model.path, (WEIGHTS_NAME, INDEX_NAME, *PICKLE_NAMES))):
            check_not_gguf(repo_id, files)
        if not config_is_there and model.path(ADAPTER_CONFIG) in files and not is_base:
            base = adapted_base(Path(model.download(ADAPTER_CONFIG)).parent, {})
            return read_hub_checkpoint(str(base), token=token, cache_dir=cache_dir, is_base=True)
        if not config_is_there:
            raise CheckpointError(f"{repo_id!r} has no {CONFIG_NAME} on the Hub: give a repository that holds a model.")
        config = read_config(Path(model.download(CONFIG_NAME)).parent)
        return CheckpointHeaders(repo_id, config, find_tensors(model, files)[0])
    except (HTTPError, HFValidationError, OSError) as error:  # OSError: offline, no network
        raise CheckpointError(unreadable(repo_id, error)) from error
