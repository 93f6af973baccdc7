"""Library calls without their progress bars: the monitor already says what is going on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def without_bars() -> Iterator[None]:
    """Draw none of the bars that tqdm would start inside the block, whichever module imported it, and however.

    tqdm draws on sys.stderr as it stands when a bar starts. Loggers keep the stream they were made with, so import the
    library before the block and its log still shows; so do errors.
    """
    with redirect_stderr(io.StringIO()):
        yield
