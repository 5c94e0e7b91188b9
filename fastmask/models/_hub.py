"""Weights by name on the Hugging Face Hub: ``hf://owner/name[/file][@revision]``, from its cache or downloaded into it.

The cache is huggingface_hub's own, with a folder for each commit; its settings (``HF_HOME``, ``HF_ENDPOINT``,
``HF_HUB_OFFLINE``, the token of ``hf auth login``) hold here, too.
"""

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

FORM = "hf://owner/name[/FILE.safetensors][@REVISION]"
DEFAULT_FILE = "model.safetensors"
BRANCH = "main"
REVISION = r"(?:@(refs/pr/\d+|[\w.-]+))?"
NAME = re.compile(rf"hf://([\w.-]+/[\w.-]+){REVISION}((?:/[^/@]+)+)?{REVISION}", re.ASCII)  # the hub's form, or ours
COMMIT = re.compile(r"[0-9a-f]{40}")


class HubFile(NamedTuple):
    """A file on the hub."""

    repository: str  # owner/name
    file: str
    revision: str  # commit, tag or branch

    def __str__(self) -> str:
        return f"hf://{self.repository}/{self.file}@{self.revision}"


def is_hub_name(name: object) -> bool:
    """Whether weights are named as a file on the hub; the name may be wrong otherwise."""
    return isinstance(name, str) and name.startswith("hf://")


def parse_hub_name(name: str) -> HubFile:
    """The file that a name is of, model.safetensors on the branch main where it names none.

    Raises:
        ValueError: the name has another form, or the file is no safetensors.
    """
    found = NAME.fullmatch(name)
    if found is None or (found[2] and found[4]):
        raise ValueError(f"weights must be {FORM}, got {name}")
    file = (found[3] or f"/{DEFAULT_FILE}")[1:]
    if not file.endswith(".safetensors") or ".." in file.split("/"):
        raise ValueError(f"weights must be {FORM}, as no other kind of file is downloaded, got {name}")
    return HubFile(found[1], file, found[2] or found[4] or BRANCH)


def pin_weights(weights: Any) -> Any:
    """Weights by a name on the hub with the commit that it means now, which is printed; all others as they are.

    Raises: see :func:`fetch_weights`.
    """
    return fetch_weights(weights)[1] if is_hub_name(weights) else weights


def fetch_weights(name: str) -> tuple[Path, str]:
    """The file of a name on the hub, and the name with its commit.

    A file of a commit that is in the cache needs no network. A tag or a branch is looked up, and the commit printed to
    the standard error; without a network it is the commit that the cache has of it.

    Raises:
        ConnectionError: it is not in the cache and cannot be downloaded; the message says which file to put where.
        ImportError: huggingface_hub is not installed.
        ValueError: the name is wrong, or there is no such repository, revision or file.
    """
    wanted = parse_hub_name(name)
    repository, file, revision = wanted
    hub = import_hub(name)
    cached = hub.try_to_load_from_cache(repository, file, revision=revision)
    cached = cached if isinstance(cached, str) else None  # None, or a mark that there is no such file
    if cached is not None and COMMIT.fullmatch(revision):
        return Path(cached), str(wanted)
    note = ""
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, revision=revision))  # fails at once, without retries
        path = Path(hub.hf_hub_download(repository, file, revision=revision))
    except Exception as error:
        problem = explain(error, wanted, name)
        if cached is None or not isinstance(problem, ConnectionError):
            raise problem from error
        path, note = Path(cached), ", when it was last reached"
    pinned = wanted._replace(revision=path.parents[file.count("/")].name)
    if pinned != wanted:
        print(f"fastmask: {name} is {pinned}{note}", file=sys.stderr)
    return path, str(pinned)


def import_hub(name: str) -> Any:
    """huggingface_hub; an ImportError that says what to install for ``name`` where it is missing."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f"{name} needs huggingface_hub: pip install 'fastmask-rcnn[hub]'") from error
    return huggingface_hub


def explain(error: Exception, wanted: HubFile, name: str) -> Exception:
    """An error of the hub's in one line: a ValueError where it answered, a ConnectionError where it did not."""
    from huggingface_hub import constants, errors, hf_hub_url

    repository, file, revision = wanted
    if isinstance(error, errors.RepositoryNotFoundError) or _status(error) in (401, 403):  # gated ones as well
        return ValueError(f"weights must be in a repository that you may read (hf auth login), got {name}")
    if isinstance(error, errors.RevisionNotFoundError):
        return ValueError(f"weights must be of a commit, tag or branch of {repository}, got {revision} in {name}")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return ValueError(f"weights must be a file of {repository}, got {file}{_list_files(wanted)}")
    reason = str(error.__cause__ or error).strip().partition("\n")[0]
    url = hf_hub_url(repository, file, revision=revision)
    where = "anywhere, and give its path"
    if COMMIT.fullmatch(revision):
        folder = f"models--{repository.replace('/', '--')}"
        where = f"at {Path(constants.HF_HUB_CACHE, folder, 'snapshots', revision, file)}"
    return ConnectionError(f"{name} cannot be downloaded ({reason}): put {url} {where}")


def explain_push(error: Exception, repository: str) -> Exception:
    """An error of an upload in one line, as ours."""
    reason = str(error).strip().partition("\n")[0]
    status = _status(error)
    if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
        return ValueError(f"repository must be one that you may write to (hf auth login), got {repository}: {reason}")
    if status in (409, 412):  # somebody else's commit came first
        return FileExistsError(f"{repository} has changed meanwhile, nothing was uploaded: {reason}")
    return ConnectionError(f"{repository} cannot be uploaded to: {reason}")


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _list_files(wanted: HubFile) -> str:
    """The weights that a repository has, for a message."""
    from huggingface_hub import HfApi

    with contextlib.suppress(Exception):
        files = HfApi().list_repo_files(wanted.repository, revision=wanted.revision)
        weights = [file for file in files if os.path.splitext(file)[1] == ".safetensors"]
        return f"; it has {', '.join(weights) or 'no safetensors'}"
    return ""
