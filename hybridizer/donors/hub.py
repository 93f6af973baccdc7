"""Model snapshots of the Hugging Face hub, through huggingface_hub and its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybridizer.core.errors import DonorError, Problem
from hybridizer.donors.files import TOKENIZER_FILE_PATTERNS

SMALL_FILES = ("config.json", "README.md", *TOKENIZER_FILE_PATTERNS)  # all that a plan from configs reads
WANTED_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*"]
_FIRST = "Run with a network once, or give a local folder (./ in front)."
_AGAIN = "Run again with a network: complete files are kept."


def find_snapshot(
    repository: str, revision: str | None, where: str, *, download: bool, patterns: Sequence[str]
) -> Path | None:
    """The local folder of one snapshot; its name is the commit that `revision` (branch, tag, commit) stands for.

    With `download`, files that are missing from the cache are fetched; without a network a complete snapshot in the
    cache is used. Without `download` only the cache is read, and None means that the snapshot is not complete there.
    `patterns` are those of the files to fetch: WANTED_FILES and more, or SMALL_FILES. Raises DonorError when the
    snapshot cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The base of the HTTP library's errors: which library that is depends on the version of huggingface_hub.
    http_error = HfHubHTTPError.__mro__[1]
    wanted = f"{repository}@{revision}" if revision else repository
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(patterns), local_files_only=not download
            )
        )
    except GatedRepoError:
        what, fix = "is gated", "Accept its terms on the hub, then `hf auth login`."
    except RevisionNotFoundError:
        what, fix = "has no such revision", "Name a branch, a tag or a commit that exists."
    except RepositoryNotFoundError:
        what, fix = "is not on the hub, or is private", "Check the spelling; for a private model, `hf auth login`."
    except LocalEntryNotFoundError as error:
        if not download:
            return None
        held, fix = _describe_cached(repository, revision)
        what = f"{held}, and {_describe_failure(error.__cause__)}"
    except http_error as error:
        what, fix = f"could not be fetched: {_first_line(error)}", _AGAIN
    except OSError as error:
        what, fix = f"could not be fetched: {error.strerror or _first_line(error)}", "Check permissions and the disk."
    raise DonorError(Problem(where, f"the model {wanted} {what}.", fix))


def _describe_cached(repository: str, revision: str | None) -> tuple[str, str]:
    """What the cache has of the repository, and what to do when it does not suffice."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    refs = folder / "refs"
    names = {str(path.relative_to(refs)): path.read_text() for path in sorted(refs.rglob("*")) if path.is_file()}
    commits = {path.name for path in (folder / "snapshots").glob("*")}
    if not commits:
        return "is not in the local cache", _FIRST
    wanted = revision or "main"
    if names.get(wanted, wanted) in commits:
        return "is only partly in the local cache", _AGAIN
    held = sorted(name for name, commit in names.items() if commit in commits) or sorted(commits)
    what = f"is not in the local cache at revision {wanted} (revisions there: {', '.join(held)})"
    return what, f"Run with a network once, or name a revision that is there: {repository}@{held[0]}."


def _describe_failure(error: BaseException | None) -> str:
    """Why the hub was of no help."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered with an error: {_first_line(error)}"
    return "the hub could not be reached"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200].rstrip(".")
