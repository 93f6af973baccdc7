"""A limit in seconds on code that others wrote, such as the chat template of a donor."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def call_within(seconds: float, function: Callable[[], Result]) -> Result:
    """The result of `function`, or the exception that it raises. Raises TimeoutError after `seconds`.

    It runs in a thread of its own, in which SystemExit is then raised at the next Python instruction. That ends a loop
    in a template; a call into a compiled library ends only when it returns.
    """
    idents: list[int] = []

    def run() -> Result:
        idents.append(threading.get_ident())
        return function()

    pool = ThreadPoolExecutor(1)
    future = pool.submit(run)
    try:
        return future.result(seconds)
    except TimeoutError:
        if not future.done():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(idents[0]), ctypes.py_object(SystemExit))
            raise TimeoutError(f"not finished after {seconds:g} seconds") from None
        raise
    finally:
        pool.shutdown(wait=False)
