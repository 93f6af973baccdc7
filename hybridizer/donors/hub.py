"""Model snapshots of the Hugging Face hub, through huggingface_hub and its cache."""

from __future__ import annotations

from pathlib import Path

from hybridizer.core.errors import DonorError, Problem

WANTED_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*"]


def find_snapshot(
    repository: str, revision: str | None, where: str, *, download: bool, extra: list[str]
) -> Path | None:
    """The local folder of one snapshot; its name is the commit that `revision` (branch, tag, commit) stands for.

    With `download` the hub is asked and missing files are fetched; without a network the cache answers. Without
    `download` only the cache is looked at, and None says that the snapshot is not there. `extra` adds file patterns
    (pickle weights, remote code) to those fetched. Raises DonorError for what cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = f"{repository}@{revision}" if revision else repository
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=WANTED_FILES + extra, local_files_only=not download
            )
        )
    except GatedRepoError:
        what, fix = "is gated", "Accept its terms on the hub, then `hf auth login`."
    except RevisionNotFoundError:
        what, fix = "has no such revision", "Name a branch, a tag or a commit that exists."
    except RepositoryNotFoundError:
        what, fix = "is not on the hub, or is private", "Check the spelling; for a private model, `hf auth login`."
    except LocalEntryNotFoundError:
        if not download:
            return None
        what = "is not in the local cache, and the hub could not be reached"
        fix = "Run with a network once, or give a local folder (./ in front)."
    except HfHubHTTPError as error:
        what, fix = f"could not be fetched: {str(error).splitlines()[0]}", "Try again; finished files are kept."
    raise DonorError(Problem(where, f"the model {wanted} {what}.", fix))
