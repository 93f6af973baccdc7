"""What the file system refuses, as errors that name path and reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridizer.core.errors import from_os_error


@contextmanager
def reporting_os_errors(folder: Path | None = None) -> Iterator[None]:
    """Turn an OSError that nothing inside the block or the decorated function handled into a HybridizerError.

    `from_os_error` says which: a path that cannot be used is invalid input, a full disk is a failed run. The error
    names the path that the system gives, else `folder`: a full disk gives none. A closed standard output is passed on,
    since it is how a reader of a pipe ends a command.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise from_os_error(error, str(folder or Path())) from error
