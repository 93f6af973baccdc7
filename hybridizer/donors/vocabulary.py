"""Do two donors read and write the same tokens? Told from their tokenizer files, without a tokenizer library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from hybridizer.donors.donor import Donor

_OTHER_FORMATS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def compare_vocabularies(host: Donor, donor: Donor) -> str | None:
    """One sentence that names the first difference between the two vocabularies; None when they agree.

    They agree when every token both know has one id, and neither has regular tokens the other lacks. Special tokens
    that only one side has do no harm, since the host's tokenizer is the one that is kept.
    """
    if donor.structure.vocab_size != host.structure.vocab_size:
        return (
            f"'{donor.name}' has a vocabulary of {donor.structure.vocab_size} tokens, "
            f"the host '{host.name}' one of {host.structure.vocab_size}."
        )
    ours, theirs = _tokenizer_file(host), _tokenizer_file(donor)
    if ours is None or theirs is None or ours.read_bytes() == theirs.read_bytes():
        return None
    if ours.name != "tokenizer.json" or theirs.name != "tokenizer.json":
        return f"the tokenizers of '{donor.name}' ({theirs.name}) and the host '{host.name}' ({ours.name}) differ."
    return _first_difference(host.name, *_read_tokens(ours), donor.name, *_read_tokens(theirs))


def _tokenizer_file(donor: Donor) -> Path | None:
    return next(
        (donor.tokenizer_files[name] for name in ("tokenizer.json", *_OTHER_FORMATS) if name in donor.tokenizer_files),
        None,
    )


def _read_tokens(file: Path) -> tuple[dict[str, int], dict[str, int]]:
    content = json.loads(file.read_bytes())
    vocabulary = content.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # unigram models list [token, score] pairs; the id is the position
        vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
    return vocabulary, {token["content"]: token["id"] for token in content.get("added_tokens", [])}


def _first_difference(
    host: str, ours: Mapping[str, int], our_added: Mapping[str, int],
    donor: str, theirs: Mapping[str, int], their_added: Mapping[str, int],
) -> str | None:  # fmt: skip
    all_ours, all_theirs = {**ours, **our_added}, {**theirs, **their_added}
    for token in sorted(all_ours.keys() & all_theirs.keys(), key=all_ours.__getitem__):
        if all_ours[token] != all_theirs[token]:
            return (
                f"the token {token!r} is number {all_theirs[token]} for '{donor}' "
                f"and {all_ours[token]} for the host '{host}'."
            )
    for owner, regular, other, other_all in ((donor, theirs, host, all_ours), (host, ours, donor, all_theirs)):
        missing = [token for token in regular if token not in other_all]
        if missing:
            return f"'{owner}' knows {len(missing)} tokens that '{other}' does not, {missing[0]!r} for one."
    return None
