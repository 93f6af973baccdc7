"""Whether two donors have the same tokens, by their tokenizer files; no tokenizer library is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hybridizer.checkpoint.strict_json import shorten
from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.donors.donor import Donor
from hybridizer.donors.files import read_object

FAST_NAME = "tokenizer.json"
_OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.json")
_RESTORE = "Restore the file from the donor's source, or take the tokenizer files of the model it was made from."
_LARGEST_ID = 1 << 31


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one tokenizer: regular and added ones by text, and the rules that merge them, where it has any.

    `merges` is None where the kind of tokenizer has none that could be compared.
    """

    regular: Mapping[str, int]
    added: Mapping[str, int]
    merges: tuple[tuple[str, ...], ...] | None


def has_tokenizer(donor: Donor) -> bool:
    """Whether the donor comes with the files that a tokenizer can be loaded from."""
    return bool(_vocabulary_files(donor.tokenizer_files))


def compare_vocabularies(host: Donor, donor: Donor) -> str | None:
    """One sentence that names the first difference between the two vocabularies; None when they agree.

    They agree when every token in both has one id, neither has regular tokens the other lacks, and both merge in the
    same order. Special tokens that only one side has are harmless, since the host's tokenizer is kept.
    Donors of which one has no tokenizer files are compared by the size of the vocabulary alone.
    """
    if donor.structure.vocab_size != host.structure.vocab_size:
        return (
            f"'{donor.name}' has a vocabulary of {donor.structure.vocab_size} tokens, "
            f"the host '{host.name}' one of {host.structure.vocab_size}."
        )
    ours, theirs = _vocabulary_files(host.tokenizer_files), _vocabulary_files(donor.tokenizer_files)
    if not ours or not theirs or _contents(ours) == _contents(theirs):
        return None
    first, second = read_vocabulary(ours), read_vocabulary(theirs)
    if first is None or second is None:
        differing = sorted(name for name in {*ours, *theirs} if _content(ours, name) != _content(theirs, name))
        return f"the tokenizers of '{donor.name}' and the host '{host.name}' differ in {', '.join(differing)}."
    return _first_difference(host.name, first, donor.name, second)


def _vocabulary_files(files: Mapping[str, Path]) -> dict[str, Path]:
    """The files that make the vocabulary: tokenizer.json alone where it is, since transformers prefers it."""
    if FAST_NAME in files:
        return {FAST_NAME: files[FAST_NAME]}
    bases = [name for name in files if name.endswith(".model") or name in ("vocab.json", "vocab.txt")]
    beside = [name for name in ("merges.txt", "added_tokens.json") if name in files]
    return {name: files[name] for name in [*bases, *beside]} if bases else {}


def _contents(files: Mapping[str, Path]) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files.items()}


def _content(files: Mapping[str, Path], name: str) -> bytes | None:
    return files[name].read_bytes() if name in files else None


def check_tokenizer_files(files: Mapping[str, Path]) -> None:
    """Raise CheckpointError for tokenizer files that no tokenizer can be loaded from.

    JSON is read strictly; vocabularies must map text to whole numbers. Missing companions are named: merges.txt beside
    the vocab.json of a byte-level tokenizer.
    """
    for name in _OBJECTS:
        if name in files:
            read_object(files[name])
    for name, path in files.items():
        if name.endswith((".jinja", ".txt")) and not name.startswith(("LICENSE", "NOTICE")):
            _read_text(path)
        if name.endswith(".model") and path.stat().st_size == 0:
            _refuse(path, "the file is empty (0 bytes).")
    read_vocabulary(_vocabulary_files(files))
    if FAST_NAME not in files and "vocab.json" in files and "merges.txt" not in files:
        others = [name for name in files if name.endswith(".model")]
        if not others and _is_byte_pair(files):
            _refuse(files["vocab.json"], "there is no merges.txt beside it, and no tokenizer.json.")


def _is_byte_pair(files: Mapping[str, Path]) -> bool:
    """Whether the vocabulary has tokens of byte-level BPE, the blank for one."""
    return any(token.startswith("\u0120") for token in _read_table(files["vocab.json"]))


def read_vocabulary(files: Mapping[str, Path]) -> Vocabulary | None:
    """The vocabulary that these files make; None where it is in a binary file, or there is none.

    Raises CheckpointError for files that do not have the content that their names stand for.
    """
    if FAST_NAME in files:
        return _read_fast(files[FAST_NAME])
    added = _read_table(files["added_tokens.json"]) if "added_tokens.json" in files else {}
    if any(name.endswith(".model") for name in files):
        return None
    if "vocab.json" in files:
        merges = _read_merges(files["merges.txt"]) if "merges.txt" in files else None
        return Vocabulary(_read_table(files["vocab.json"]), added, merges)
    if "vocab.txt" in files:
        tokens = _read_text(files["vocab.txt"]).splitlines()
        return Vocabulary({token: place for place, token in enumerate(tokens)}, added, None)
    return None


def _read_fast(path: Path) -> Vocabulary:
    content = read_object(path)
    model = content.get("model")
    if not isinstance(model, dict):
        _refuse(path, f"`model` must be an object, found {shorten(model)}.")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):  # unigram models list [token, score] pairs; the id is the position
        if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in vocabulary):
            _refuse(path, "`model.vocab` must list pairs of a token and its score.")
        vocabulary = {token: place for place, (token, _) in enumerate(vocabulary)}
    regular = _check_table(path, "`model.vocab`", vocabulary)
    added: dict[str, int] = {}
    entries = content.get("added_tokens") or []
    if not isinstance(entries, list):
        _refuse(path, f"`added_tokens` must be a list, found {shorten(entries)}.")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            _refuse(path, f"`added_tokens` holds {shorten(entry)}, which names no token.")
        added |= _check_table(path, "`added_tokens`", {entry["content"]: entry.get("id")})
    return Vocabulary(regular, added, _read_fast_merges(path, model.get("merges")))


def _read_fast_merges(path: Path, merges: Any) -> tuple[tuple[str, ...], ...] | None:
    if merges is None:
        return None
    if not isinstance(merges, list):
        _refuse(path, f"`model.merges` must be a list, found {shorten(merges)}.")
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in merges]
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or not all(isinstance(part, str) for part in pair) or len(pair) != 2:
            _refuse(path, f"`model.merges` holds {shorten(pair)}, which is not two tokens.")
    return tuple(tuple(pair) for pair in pairs)


def _read_merges(path: Path) -> tuple[tuple[str, ...], ...]:
    lines = [line for line in _read_text(path).split("\n") if line.strip() and not line.startswith("#version")]
    pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines]
    if wrong := next((pair for pair in pairs if len(pair) != 2), None):
        _refuse(path, f"the line {shorten(' '.join(wrong))} is not two tokens.")
    return tuple(pairs)


def _read_table(path: Path) -> dict[str, int]:
    return _check_table(path, "the file", read_object(path))


def _check_table(path: Path, where: str, table: Any) -> dict[str, int]:
    if not isinstance(table, dict):
        _refuse(path, f"{where} must map tokens to numbers, found {shorten(table)}.")
    for token, number in table.items():
        if type(number) is not int or not 0 <= number < _LARGEST_ID:
            _refuse(path, f"{where} gives the token {shorten(token)} the number {shorten(number)}.")
    return table


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(path, f"not UTF-8 text at byte {error.start}.")
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}.")


def _refuse(path: Path, what: str) -> NoReturn:
    raise CheckpointError(Problem(str(path), what, _RESTORE))


def _first_difference(host: str, ours: Vocabulary, donor: str, theirs: Vocabulary) -> str | None:
    all_ours, all_theirs = {**ours.regular, **ours.added}, {**theirs.regular, **theirs.added}
    for token in sorted(all_ours.keys() & all_theirs.keys(), key=all_ours.__getitem__):
        if all_ours[token] != all_theirs[token]:
            return (
                f"the token {token!r} is number {all_theirs[token]} for '{donor}' "
                f"and {all_ours[token]} for the host '{host}'."
            )
    sides = ((donor, theirs.regular, host, all_ours), (host, ours.regular, donor, all_theirs))
    for owner, regular, other, other_all in sides:
        missing = [token for token in regular if token not in other_all]
        if missing:
            return f"'{owner}' has {len(missing)} tokens that '{other}' lacks, such as {missing[0]!r}."
    if ours.merges is None or theirs.merges is None or ours.merges == theirs.merges:
        return None
    place = next(
        (place for place, (a, b) in enumerate(zip(ours.merges, theirs.merges, strict=False)) if a != b),
        min(len(ours.merges), len(theirs.merges)),
    )
    return f"'{donor}' and the host '{host}' have different merge rules, from rule {place} on."
