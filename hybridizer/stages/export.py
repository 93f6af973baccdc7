"""What makes spliced tensors a deployable folder: config, tokenizer, card and, written last, the manifest."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from hybridizer.checkpoint.fingerprint import hash_file
from hybridizer.checkpoint.writer import WrittenCheckpoint
from hybridizer.durable import write_file
from hybridizer.planning.card import write_card
from hybridizer.planning.donor import Donor
from hybridizer.planning.manifest import FILE_NAME, Manifest, make_manifest
from hybridizer.planning.plan import Plan
from hybridizer.records import write_json

_TOOLS = ("hybridizer", "torch", "transformers", "safetensors", "mergekit", "gguf")


def export(plan: Plan, donors: Mapping[str, Donor], written: WrittenCheckpoint, folder: Path) -> Manifest:
    """Complete `folder`, which holds the spliced tensors, and return the manifest that was written into it last.

    The host's tokenizer, chat template and generation config are copied byte for byte; all files get mode 0644.
    """
    write_file(folder / "config.json", json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n")
    for name in plan.companions:
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(donors[plan.host].companions[name], target)
        target.chmod(0o644)
    write_file(folder / "README.md", write_card(plan, {name: donor.license for name, donor in donors.items()}))
    names = ["config.json", "README.md", *plan.companions, *([written.index] if written.index else [])]
    files = {**{name: hash_file(folder / name) for name in names}, **written.files}
    manifest = make_manifest(plan, files, tool_versions())
    write_json(folder / FILE_NAME, manifest.to_json())
    return manifest


def tool_versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape the output, as installed; "absent" for one that is not."""
    versions = {"python": platform.python_version()}
    for tool in _TOOLS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            versions[tool] = "absent"
    return versions
