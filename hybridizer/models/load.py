"""Causal language models through transformers: loaded from a folder, or built from a config."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybridizer.checkpoint.dtypes import SAFETENSORS_NAMES
from hybridizer.core.errors import DonorError, Problem
from hybridizer.models.faults import library_faults
from hybridizer.models.onednn import prepare_onednn
from hybridizer.models.parts import MODEL_FAULTS


def load_causal_lm(
    folder: Path,
    dtype: torch.dtype | str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any]:
    """The model (in eval mode, parameters without gradients) and the tokenizer in a local folder. Uses no network.

    Raises DonorError as `load_model` does, and when transformers cannot load the tokenizer.
    """
    model = load_model(folder, dtype, device_map, trust_remote_code)
    return model, load_tokenizer(folder, trust_remote_code)


def load_model(
    folder: Path,
    dtype: torch.dtype | str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """The model in a local folder, in eval mode, its parameters without gradients. Uses no network.

    `dtype` "auto" keeps the checkpoint's own. Raises DonorError when transformers cannot load the folder, when its
    weights are not safetensors, and when the checkpoint lacks tensors, which transformers would initialise randomly.
    """
    from transformers import AutoModelForCausalLM

    prepare_onednn()
    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    with _loading(folder, "this folder"):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map=device_map, use_safetensors=True, output_loading_info=True, **options
        )
    _refuse_missing(info, str(folder))
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


def _refuse_missing(info: Mapping[str, Any], where: str) -> None:
    """Raise DonorError for tensors that the loading `info` of transformers lists as missing or of another shape."""
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        what = (
            f"{len(missing)} tensors are missing or of the wrong shape and would be random: {', '.join(missing[:5])}."
        )
        raise DonorError(Problem(where, what, "Repair the checkpoint, or its config.json."))


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a local folder. Uses no network. Raises DonorError when transformers cannot load it."""
    from transformers import AutoTokenizer

    with _loading(folder, "the tokenizer"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)


def read_max_tokens(folder: Path, trust_remote_code: bool = False) -> int | None:
    """`max_tokens` of the model in a local folder, without reading weights. Raises DonorError as loading does."""
    from transformers import AutoConfig

    with _loading(folder, "the config"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        return max_tokens(config)


@contextmanager
def _loading(folder: Path, what: str) -> Iterator[None]:
    """Turn what transformers raises inside the block while it loads `what` from `folder` into a DonorError."""
    try:
        with library_faults():
            yield
    except (OSError, *MODEL_FAULTS) as error:
        found = f"transformers cannot load {what}: {type(error).__name__}: {str(error).strip()[:300]}"
        fix = "Give a folder with config.json, safetensors weights and a tokenizer of a causal language model."
        raise DonorError(Problem(str(folder), found, fix)) from error


def random_causal_lm(config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """The model that this config.json describes, with random weights in `dtype`: where values do not matter.

    Raises DonorError when transformers cannot build it.
    """
    from transformers import AutoModelForCausalLM

    prepare_onednn()
    with _building("config.json"):
        model: nn.Module = AutoModelForCausalLM.from_config(_read_config(config), dtype=dtype, trust_remote_code=False)
    return model.eval().requires_grad_(False)


def checkpoint_shapes(config: Mapping[str, Any], where: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The safetensors dtype and the shape of every tensor that a checkpoint of this config.json has, by name.

    Built on torch's meta device, without memory for a weight; all tensors get the config's dtype, float32 where it has
    none. Raises DonorError, at `where`, when transformers cannot build the model.
    """
    from transformers import AutoModelForCausalLM

    with _building(where):
        read = _read_config(config)
        dtype = read.get_text_config().dtype or read.dtype or torch.float32
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(read, dtype=dtype, trust_remote_code=False)
        first: dict[int, tuple[str, Tensor]] = {}  # a tied tensor is stored once, under its first name
        for name, tensor in model.state_dict(keep_vars=True).items():
            first.setdefault(id(tensor), (name, tensor.detach()))
        made = as_checkpoint(model, dict(first.values()))
    return {
        name: (SAFETENSORS_NAMES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape))
        for name, tensor in made.items()
    }


def load_from_tensors(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> nn.Module:
    """The model that this config.json describes with the checkpoint `tensors`, in eval mode, in their dtypes.

    Tensors that transformers takes as they are share their storage with the model's parameters. Raises DonorError, at
    `where`, when transformers cannot build it and when tensors are missing.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    prepare_onednn()
    with _building(where):
        read = _read_config(config)
        made_by = MODEL_FOR_CAUSAL_LM_MAPPING[type(read)]
        model, info = made_by.from_pretrained(
            None, config=read, state_dict=dict(tensors), dtype="auto", output_loading_info=True
        )
    _refuse_missing(info, where)
    return model.eval().requires_grad_(False)


def _read_config(config: Mapping[str, Any]) -> Any:
    """`config` as transformers reads it from a file: only there it converts old encodings."""
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def _building(where: str) -> Iterator[None]:
    try:
        with library_faults():
            yield
    except (OSError, *MODEL_FAULTS) as error:
        what = f"transformers cannot build this model: {type(error).__name__}: {str(error).strip()[:300]}"
        raise DonorError(Problem(where, what, "Give the config of a causal language model.")) from error


def as_checkpoint(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` of `model` under the names and shapes of its checkpoint: undoes what the loader stacked or renamed.

    All tensors that were made from one of the checkpoint's must be among them.
    """
    from transformers.core_model_loading import revert_weight_conversion

    reverted: dict[str, Tensor] = revert_weight_conversion(model, dict(tensors))
    return reverted


def max_tokens(config: Any) -> int | None:
    """The longest input that a model of this config was made for, in tokens; None where nothing limits it."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None
