"""Converts what libraries raise on damaged input into RuntimeError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def library_faults() -> Iterator[None]:
    """Convert exceptions outside the usual hierarchy, raised inside the block, into RuntimeError with the same message.

    A panic in a Rust library (tokenizers, safetensors) is a BaseException, and tokenizers raises bare Exceptions.
    Errors of chat templates (jinja2) and of config validation (huggingface_hub) derive directly from Exception.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException" or type(error) is Exception or _is_foreign(error):
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise


def _is_foreign(error: BaseException) -> bool:
    return any(base.__name__ in ("StrictDataclassError", "TemplateError") for base in type(error).__mro__)
