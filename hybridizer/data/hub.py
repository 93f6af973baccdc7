"""Hub datasets: pinned to a commit, and read as streams."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridizer.checkpoint.hashing import fingerprint_files
from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import DonorError, InputError, Problem


def pin_dataset(dataset: str, revision: str | None) -> str:
    """What fixes a dataset's content: the commit that `revision` is on the hub, or a hash of a local folder's files.

    A commit of 40 hex digits is taken as it is. Raises DonorError when the hub does not answer.
    """
    if Path(dataset).is_dir():
        files = {str(path.relative_to(dataset)): path for path in sorted(Path(dataset).rglob("*")) if path.is_file()}
        return fingerprint_files(files, cache_folder())
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        commit = HfApi().dataset_info(dataset, revision=revision).sha
    except (OSError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        what = f"the commit of '{revision or 'main'}' is not known: {reason}"
        fix = "Check the name and your network, or give `revision` as a commit of 40 hex digits."
        raise DonorError(Problem(dataset, what, fix)) from error
    return str(commit)


def stream_texts(dataset: str, config: str | None, split: str, revision: str | None, text_field: str) -> Iterator[Any]:
    """The values of `text_field` in a hub dataset, one record after the other, without downloading all of it.

    Values are passed on unchanged: the caller sorts out what is not text. Raises InputError when `datasets` is not
    installed or has no such column, DonorError when the dataset cannot be opened.
    """
    try:
        import datasets
    except ImportError:
        fix = "pip install datasets, or give local files."
        raise InputError(Problem(dataset, "hub datasets need the package datasets.", fix)) from None
    try:
        stream = datasets.load_dataset(dataset, config, split=split, revision=revision, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        what = f"the dataset cannot be opened: {type(error).__name__}: {str(error)[:300]}"
        raise DonorError(Problem(dataset, what, "Check its name, configuration, split and your network.")) from error
    for record in stream:
        if text_field not in record:
            what = f"has no column '{text_field}'; it has {', '.join(record)}."
            raise InputError(Problem(dataset, what, "Name one of its columns as `field`."))
        yield record[text_field]
