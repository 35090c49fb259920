"""Publish a sub-network on the Hub, in one commit or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from hf_layerdrop.checkpoints.hub_waits import bounded_waits
from hf_layerdrop.checkpoints.recommended_file import RECOMMENDED_FILE
from hf_layerdrop.errors import HubError, LayerDropError
from hf_layerdrop.hub.carried import found_results, measured_source, source_table, table_of_cut
from hf_layerdrop.hub.origin import Processor, check_cut, check_processors, find_source, load_pruned
from hf_layerdrop.hub.save import Extras, saving_arguments, write_checkpoint
from hf_layerdrop.reports.card import MeasuredOn
from hf_layerdrop.results.record import SubNetworkResult
from hf_layerdrop.samplers.keep_layers import KeepLayers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Weights of another model in the repository, and what was measured of it: some of these would be read instead of ours.
_STALE_WEIGHTS: tuple[str, ...] = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*",
    "tf_model.h5",
    "flax_model*",
)
_STALE_WEIGHTS += ("adapter_config.json", "adapter_model*")  # which plain transformers would put onto the model
_STALE_WEIGHTS += (RECOMMENDED_FILE,)


class RepoIdError(HubError, ValueError):
    """The name of a repository cannot be one, which is known before the Hub is asked."""


def push_pruned_to_hub(
    model: PreTrainedModel | str | os.PathLike[str],
    repo_id: str,
    *,
    keep_layers: KeepLayers,
    results: Sequence[SubNetworkResult] | None = None,
    plot: str | os.PathLike[str] | bool | None = None,
    tokenizer: Processor | None = None,
    measured_on: MeasuredOn | None = None,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    exist_ok: bool = True,
    commit_message: str | None = None,
    revision: str | None = None,
    max_shard_size: int | str | None = None,
    **load_kwargs: Any,
) -> CommitInfo:
    """Publish a sub-network as a plain checkpoint with a model card, in one commit.

    The token is checked before anything is loaded. Weights that the repository had before are deleted in the same
    commit, since some names would be loaded instead of the new ones.

    Args:
        model: See `save_pruned`, as for all arguments that are not listed here.
        repo_id: ``user/name``; a bare name goes to the token's user. Made if it does not exist.
        keep_layers: See `save_pruned`.
        results: See `save_pruned`.
        plot: See `save_pruned`.
        tokenizer: See `save_pruned`.
        measured_on: See `save_pruned`.
        private: Make a new repository private. An existing public one is then refused rather than written to.
        token: Token with write permission; left out, the one of ``hf auth login`` or ``HF_TOKEN``.
        branch: Branch to commit to, made from main if it does not exist.
        create_pr: Open a pull request instead of committing to main.
        exist_ok: Write to a repository that exists.
        commit_message: First line of the commit.
        revision: Revision of the source.
        max_shard_size: See `save_pruned`.
        **load_kwargs: See `save_pruned`.

    Raises:
        HubError: The Hub refused, failed or could not be reached; the message says what to do.
    """
    _check_arguments(repo_id, branch, create_pr)
    saving, load_kwargs = saving_arguments(max_shard_size, load_kwargs)
    api = HfApi(token=token, library_name="hf_layerdrop")
    with _hub_failures(repo_id, token):
        repo_id = _check_token(api, repo_id)
    if token is not None and isinstance(model, str | os.PathLike):
        load_kwargs = {"token": token, **load_kwargs}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = find_source(model, revision, load_kwargs)
        check_processors(source, model, tokenizer)
        check_cut(source, keep_layers)
        measured = measured_source(model, source, load_kwargs)
        table = source_table(measured, load_kwargs)
        records, data = found_results(table, measured, results)
        pruned, state = load_pruned(model, keep_layers, revision, load_kwargs)
        sets, saving = table_of_cut(table, pruned, keep_layers), {**saving, "state_dict": state}
        extras = Extras(tuple(records), plot, tokenizer, measured_on or data, saving, sets)
        write_checkpoint(pruned, folder, repo_id, source, extras)
        message = commit_message or f"Add a sub-network of {pruned.num_parameters():,} parameters"
        del pruned
        with _hub_failures(repo_id, token):
            head = _prepare_repo(api, repo_id, private, exist_ok, branch)
            return _commit_folder(api, repo_id, folder, message, head=head, branch=branch, create_pr=create_pr)


def _check_arguments(repo_id: str, branch: str | None, create_pr: bool) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RepoIdError(
            f"{repo_id!r} cannot be the name of a repository on the Hub: write user/name, with letters, digits, '-', "
            "'_' and '.'."
        ) from error
    if create_pr and branch not in (None, constants.DEFAULT_REVISION):
        raise RepoIdError(f"A pull request goes to main, not to the branch {branch!r}: leave out one of the two.")


def _check_token(api: HfApi, repo_id: str) -> str:
    """Refuse a token that cannot write; return the repository's full name."""
    user = api.whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(
            f"The token may only read, so nothing was committed to {repo_id!r}: make one with write permission at "
            f"{api.endpoint}/settings/tokens."
        )
    return repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"


def _prepare_repo(api: HfApi, repo_id: str, private: bool | None, exist_ok: bool, branch: str | None) -> str | None:
    """Make the repository and the branch if they do not exist; return the commit that ours will follow."""
    api.create_repo(repo_id, private=private, exist_ok=exist_ok)
    info = api.repo_info(repo_id)
    if private and info.private is False:
        raise HubError(
            f"The repository {repo_id!r} exists and is public, so nothing was committed: make it private in its "
            "settings, or choose another repo_id."
        )
    if branch in (None, constants.DEFAULT_REVISION):
        return info.sha
    api.create_branch(repo_id, branch=branch, exist_ok=True)
    return api.repo_info(repo_id, revision=branch).sha


def _commit_folder(
    api: HfApi, repo_id: str, folder: Path, message: str, *, head: str | None, branch: str | None, create_pr: bool
) -> CommitInfo:
    """Upload a folder in one commit; ``HfApi.upload_folder`` makes several of a large one where hf_xet is installed."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    additions = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in paths]
    new = {addition.path_in_repo for addition in additions}
    beside = [path for path in api.list_repo_files(repo_id, revision=branch) if "/" not in path]  # patterns cross it
    stale = filter_repo_objects(beside, allow_patterns=list(_STALE_WEIGHTS))
    deletions = [CommitOperationDelete(path) for path in stale if path not in new]
    api.preupload_lfs_files(repo_id, additions, revision=branch, create_pr=create_pr)
    try:
        return api.create_commit(
            repo_id, [*deletions, *additions], commit_message=message, revision=branch, create_pr=create_pr
        )
    except HTTPError as error:
        if not create_pr and _may_have_arrived(error):
            _check_head(api, repo_id, branch, head, error)
        raise


def _may_have_arrived(error: HTTPError) -> bool:
    """Tell whether the Hub may have made the commit although its answer is missing."""
    return not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500


def _check_head(api: HfApi, repo_id: str, branch: str | None, head: str | None, error: HTTPError) -> None:
    """Raise unless the last commit is still the one before ours: where we say "nothing was committed" it must be so."""
    try:
        now = api.repo_info(repo_id, revision=branch).sha
    except (HTTPError, OSError):
        raise HubError(
            f"The Hub stopped answering during the commit, and {repo_id!r} may have it or not: look at the repository "
            "before you try again."
        ) from error
    if now != head:
        raise HubError(
            f"The Hub's answer was lost, but {repo_id!r} has the new commit {now}: look at it before you try again."
        ) from error


@contextmanager
def _hub_failures(repo_id: str, token: str | None) -> Iterator[None]:
    """Turn what goes wrong between here and the Hub into one sentence without the token."""
    try:
        with bounded_waits():
            yield
    except LayerDropError:
        raise
    except Exception as error:  # an answer that is none of the Hub's, such as a page to log in, raises anything
        what, advice = _explain(_root_of(error), repo_id)
        message = f"{what}, so nothing was committed to {repo_id!r}: {advice}."
        for secret in filter(None, (token, get_token())):
            message = message.replace(secret, "[token]")
        raise HubError(message) from error


def _root_of(error: BaseException) -> BaseException:
    """Find the Hub's answer behind the RuntimeError that wraps a failed upload."""
    cause = error.__cause__
    return cause if not isinstance(error, HTTPError) and isinstance(cause, HTTPError | OSError) else error


def _explain(error: BaseException, repo_id: str) -> tuple[str, str]:
    """Say what happened, and what to do about it."""
    if isinstance(error, HfHubHTTPError):
        return _explain_status(error.response.status_code, repo_id)
    if isinstance(error, LocalTokenNotFoundError):
        return "There is no Hub token", "log in with 'hf auth login', or give a token (--token, token=...)"
    if isinstance(error, OfflineModeIsEnabled):
        return "Offline mode is on", "unset HF_HUB_OFFLINE and try again"
    if isinstance(error, HTTPError):
        return (
            f"The Hub at {constants.ENDPOINT} could not be reached",
            "check the network and HF_ENDPOINT, and try again",
        )
    return f"The upload failed ({' '.join(str(error).split())})", "try again"


def _explain_status(status: int, repo_id: str) -> tuple[str, str]:
    known = {
        401: ("The Hub did not accept the token (401)", "log in with 'hf auth login', or pass a valid token"),
        403: (f"The token may not write to {repo_id!r} (403)", "use a token with write permission or another repo_id"),
        404: (f"The Hub shows this token no repository {repo_id!r} (404)", "check repo_id and the token's permissions"),
        409: (
            f"The repository {repo_id!r} exists already (409)",
            "choose another repo_id, or allow it with exist_ok=True",
        ),
        412: ("Someone else committed at the same time (412)", "try again"),
        429: ("The Hub asks for fewer requests (429)", "wait some minutes and try again"),
    }
    if status >= 500:
        return f"The Hub failed ({status})", "try again later"
    return known.get(status, (f"The Hub refused ({status})", "check repo_id and the token's permissions"))
