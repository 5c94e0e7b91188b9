"""Weights onto the Hugging Face Hub, with a model card made from what their file tells."""

import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastmask.models._hub import DEFAULT_FILE, HubFile, explain_push, import_hub
from fastmask.models._metadata import describe_model
from fastmask.models.checkpoint import Checkpoint, save_weights
from fastmask.models.detection.faster_rcnn import FasterRCNN
from fastmask.models.from_checkpoint import build_from

CARD = "README.md"
HEAD = """---
library_name: fastmask
pipeline_tag: {task}
---

# {repository}

`{builder}` of fastmask, {size:.1f} million parameters.

```python
from fastmask import Predictor

predictor = Predictor.from_pretrained("hf://{repository}")  # @ and a commit or a tag pin it
(prediction,) = predictor(["photo.jpg"])
```
"""
METRICS = """
## Metrics

COCO's average precision, as the file tells it; `fastmask train` measures it on the validation images by which it
chooses the epoch.

"""
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def push_weights(
    path: str | os.PathLike[str],
    repository: str,
    *,
    builder: str | None = None,
    private: bool = False,
    force: bool = False,
) -> str:
    """Upload a checkpoint to the Hugging Face Hub as safetensors, with its metadata and a model card, in one commit.

    The repository's README.md, its card, tells the builder, categories, options and, where the file has them, metrics.
    The token is that of ``hf auth login``. What a commit replaces stays in the repository's history.

    Args:
        path: of a checkpoint of any kind that :func:`fastmask.models.from_checkpoint` builds a model of.
        repository: owner/name; created if it does not exist.
        builder: name of the builder, where neither the file nor its keys and shapes tell it.
        private: create the repository for those alone who have access.
        force: replace weights or a card that are there already.

    Returns:
        str: the name of the weights with the commit, ``hf://owner/name/model.safetensors@...``.

    Raises:
        FileExistsError: the repository has weights or a card, and ``force`` is not set, or others commit meanwhile.
        FileNotFoundError: there is no such file.
        ConnectionError: the hub cannot be reached.
        ImportError: huggingface_hub is not installed.
        ValueError: the file is not a checkpoint, or of a model that fastmask does not build, the repository is no
            owner/name, or may not be written to, or ``private`` and public already.
    """
    repository = repository.removeprefix("hf://")
    if not REPOSITORY.fullmatch(repository):
        raise ValueError(f"repository must be owner/name, got {repository}")
    hub = import_hub("fastmask push")
    checkpoint = Checkpoint(path)
    name, model = build_from(checkpoint, builder, {})
    meta = checkpoint.meta
    described = describe_model(model, name, meta.get("categories"), meta.get("skeletons"))
    described |= {"metrics": meta["metrics"]} if "metrics" in meta else {}
    card = write_card(repository, model, described).encode()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, DEFAULT_FILE)
        save_weights(checkpoint.get_state_dict(), file, **described)
        api = hub.HfApi()
        parent = _find_parent(api, repository, private, force)
        try:
            if parent is None:
                api.create_repo(repository, private=private)
            contents = ((DEFAULT_FILE, str(file)), (CARD, card))
            additions = [hub.CommitOperationAdd(path_in_repo=to, path_or_fileobj=what) for to, what in contents]
            message = f"Upload {name} by fastmask"
            done = api.create_commit(repository, additions, commit_message=message, parent_commit=parent)
        except Exception as error:
            raise explain_push(error, repository) from error
    return str(HubFile(repository, DEFAULT_FILE, done.oid))


def _find_parent(api: Any, repository: str, private: bool, force: bool) -> str | None:
    """The newest commit of a repository that may be added to; None if there is no such repository."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repository)
    except RepositoryNotFoundError:
        return None
    except Exception as error:
        raise explain_push(error, repository) from error
    there = {file.rfilename for file in info.siblings or ()} & {DEFAULT_FILE, CARD}
    if there and not force:
        raise FileExistsError(
            f"{repository} must not have {' and '.join(sorted(there))} already (commit {info.sha}); "
            "--force (force=True) replaces them"
        )
    if private and not info.private:
        raise ValueError(f"private must not be asked for with {repository}, which is there already and public")
    return str(info.sha)


def write_card(repository: str, model: FasterRCNN, described: Mapping[str, Any]) -> str:
    """The model card of a repository: Markdown, after the settings that the hub reads.

    Args:
        repository: owner/name.
        model: the model.
        described: of the file: :func:`fastmask.models._metadata.describe_model`'s entries, and metrics.
    """
    heads = model.roi_heads
    task = "keypoint-detection" if heads.has_keypoint() else "object-detection"
    task = "image-segmentation" if heads.has_mask() else task
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    card = HEAD.format(task=task, repository=repository, builder=described["builder"], size=size)
    if metrics := described.get("metrics"):
        rows = [[kind, *(f"{value:.3f}" if value >= 0 else "-" for value in metrics[kind][:3])] for kind in metrics]
        card += METRICS + _tabulate("", "AP", "AP50", "AP75", rows=rows)
    categories = described.get("categories")
    named = list(enumerate(categories or ()))[1:]  # without the background
    card += "\n## Categories\n\n" + (_tabulate("label", "category", rows=named) if named else "The file names none.\n")
    for category, skeleton in described.get("skeletons", {}).items():
        names = ", ".join(skeleton["names"]) or "without names"
        card += f"\n{skeleton['number']} keypoints of {_escape(category)}: {_escape(names)}\n"
    return card + "\n## Options\n\n" + _tabulate("option", "value", rows=described["options"].items())


def _tabulate(*head: str, rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    cells: list[Iterable[object]] = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_escape, row))} |\n" for row in cells)


def _escape(cell: object) -> str:
    return " ".join(str(cell).split()).replace("|", "\\|").replace("<", "&lt;")
