"""Recognises files that are not safetensors: one sentence for each common mistake."""

from __future__ import annotations

SNIFF_BYTES = 64

_PICKLE = (
    "this is a pickle (PyTorch .bin, .pt or .pth), which can run code when it is read.",
    "Convert it to safetensors in a place you trust, or take the model's safetensors revision.",
)
_LFS_POINTER = (
    "this is a Git LFS pointer, a few lines of text that stand for the real file.",
    "Run `git lfs pull` in the folder, or download the file itself.",
)
_WEB_PAGE = (
    "this is a web page (HTML), most likely an error page that was saved under the file's name.",
    "Download the file again and check that you may access it.",
)
_GGUF = (
    "this is a GGUF file under another name.",
    "Give the .gguf file itself as the donor, or convert it to safetensors.",
)
_EMPTY = ("the file is empty (0 bytes).", "Download the file again; the last download is empty.")


def describe_foreign(first_bytes: bytes) -> tuple[str, str] | None:
    """(what the file is, what to do) from its first SNIFF_BYTES bytes; None if it is not a common mistake.

    Meant for files that already failed to be safetensors: some of these signatures can be a valid header length.
    """
    if not first_bytes:
        return _EMPTY
    if first_bytes.startswith(b"version https://git-lfs"):
        return _LFS_POINTER
    if first_bytes.startswith(b"GGUF"):
        return _GGUF
    if first_bytes.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return _WEB_PAGE
    is_zip = first_bytes.startswith(b"PK\x03\x04")
    if is_zip or (first_bytes[:1] == b"\x80" and first_bytes[1:2] in b"\x02\x03\x04\x05"):
        return _PICKLE
    return None
