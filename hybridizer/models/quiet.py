"""Suppresses the progress bars of libraries: the monitor already reports progress."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def without_bars() -> Iterator[None]:
    """Suppress every tqdm bar that is started inside the block, however tqdm was imported.

    tqdm writes to sys.stderr as it is when a bar starts. Loggers keep the stream that they were created with: import a
    library before the block to keep its log. Errors are not suppressed.
    """
    with redirect_stderr(io.StringIO()):
        yield
