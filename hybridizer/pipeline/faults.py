"""What the file system refuses, as errors that name path and reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridizer.checkpoint.publish import to_output_error


@contextmanager
def as_output_errors(folder: Path | None = None) -> Iterator[None]:
    """Turn an OSError that nothing inside the block or the decorated function handled into an OutputError.

    It names the path that the system gives, else `folder`: a full disk gives none. A closed standard output is passed
    on, since it is how a reader of a pipe ends a command.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise to_output_error(error, folder or Path()) from error
