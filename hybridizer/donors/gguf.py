"""GGUF files, dequantised to safetensors through transformers and its reader, the package `gguf`."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from hybridizer.core.errors import CheckpointError, Problem
from hybridizer.core.files import write_file
from hybridizer.donors.gguf_header import GgufHeader
from hybridizer.donors.gguf_rope import TABLE_NAME, read_rope_scaling
from hybridizer.models.faults import library_faults
from hybridizer.models.quiet import without_bars

_ORIGINAL = "Use the original safetensors checkpoint, or a GGUF of an architecture transformers supports."
_REFETCH = "Download the file again. If the error stays, report it to the author of the file."
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
# Header keys that change what the model computes, and the config fields that may hold them. transformers ignores keys
# that its table for an architecture does not list, so that the default of its config class stays.
_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers",),
    "embedding_length": ("hidden_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.layer_norm_rms_epsilon": _EPSILONS,
    "attention.layer_norm_epsilon": _EPSILONS,
    "attention.sliding_window": ("sliding_window",),
    "attention.scale": ("attention_multiplier", "attention_scale"),
    "attention.clamp_kqv": ("clip_qkv",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "residual_scale": ("residual_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "expert_used_count": ("num_experts_per_tok",),
    "rope.freq_base": ("rope_theta",),
    "rope.scaling.type": ("rope_type",),
    "rope.scaling.factor": ("factor",),
    "rope.scaling.attn_factor": ("attention_factor",),
}
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {  # values that change nothing
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.attn_factor": (0.0, 1.0),
    "attention.clamp_kqv": (0.0,),
    "attention.sliding_window": (0,),
    "expert_used_count": (0,),
}
_DEBRIS = ("_name_or_path", "_model_name_or_path", "is_local", "local_files_only", "name_or_path")


def dequantise_gguf(header: GgufHeader, folder: Path) -> None:
    """Write the model of a GGUF file into the existing `folder` as config, float32 safetensors, and tokenizer files.

    float32 holds every dequantised value exactly (block scales are float16, products of them are not). The configs
    describe the same model to transformers 4 and 5. Raises CheckpointError for an architecture that
    transformers does not read, for a damaged file, and where anything in the file (a tensor, a setting that changes
    the result) would be lost, or a tensor of the model would keep random values.
    """
    _check_data(header)
    with tempfile.TemporaryDirectory() as alone:  # files beside the original would be read, and are not part of it
        link = Path(alone) / "model.gguf"
        link.symlink_to(header.path.resolve())
        model = _load(header, link)
        _check_settings(header, model.config)
        _save_model(model, folder)
        if "tokenizer.ggml.model" in header.metadata:
            _save_tokenizer(header, link, folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def _refuse(path: Path, what: str, fix: str = _REFETCH) -> NoReturn:
    raise CheckpointError(Problem(str(path), what, fix))


def _check_data(header: GgufHeader) -> None:
    """Raise CheckpointError unless every tensor is inside the file and none overlaps another."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    end = 0
    for tensor in sorted(header.tensors.values(), key=lambda tensor: tensor.begin):
        if tensor.kind not in set(GGMLQuantizationType):
            _refuse(header.path, f"the tensor '{tensor.name}' is of the unknown type {tensor.kind}.", _ORIGINAL)
        per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        if tensor.shape[-1] % per_block:
            _refuse(header.path, f"rows of '{tensor.name}', {tensor.shape[-1]} wide, are not whole blocks.")
        if tensor.begin < end:
            _refuse(header.path, f"the tensor '{tensor.name}' overlaps the one before it.")
        end = tensor.begin + tensor.num_elements // per_block * block_bytes
        if end > header.num_bytes:
            what = f"the tensor '{tensor.name}' would end at byte {end}, and the file ends at {header.num_bytes}."
            _refuse(header.path, what, "The file was cut short: download it again.")


def _load(header: GgufHeader, link: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    from hybridizer.models.check import LOAD_FAULTS, without_logs

    try:
        with without_bars(), without_logs(), library_faults():
            model, info = AutoModelForCausalLM.from_pretrained(
                link.parent,
                gguf_file=link.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
                trust_remote_code=False,
                local_files_only=True,
            )
    except LOAD_FAULTS as error:
        what = f"transformers cannot read this GGUF file: {type(error).__name__}: {str(error)[:300]}"
        raise CheckpointError(Problem(str(header.path), what, _ORIGINAL)) from error
    missing = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind])
    if missing:
        what = f"it gives no value, or one of the wrong shape, for {len(missing)} tensors: {', '.join(missing[:5])}."
        _refuse(header.path, what)
    in_config = _take_rope_scaling(header, model.config)
    _check_all_read(header, model, sorted(str(key) for key in info["unexpected_keys"]), in_config)
    return model


def _take_rope_scaling(header: GgufHeader, config: Any) -> int:
    """Put the rule of the file's table of rope factors into `config`; how many numbers of the file it stands for."""
    found = getattr(config, "rope_parameters", None)
    rope = found if isinstance(found, Mapping) else {}
    theta = rope.get("rope_theta")
    scaling = read_rope_scaling(header, theta) if isinstance(theta, (int, float)) and theta > 0 else None
    if scaling is None:
        return 0
    if rope.get("rope_type", "default") != "default":
        _refuse(header.path, f"it has both a table of rope factors and the scaling '{rope['rope_type']}'.", _ORIGINAL)
    config.rope_parameters = scaling
    return header.tensors[TABLE_NAME].num_elements


def _check_all_read(header: GgufHeader, model: Any, unexpected: list[str], in_config: int) -> None:
    """Raise CheckpointError when the file holds more numbers than the model and its config took from it.

    transformers ignores tensors that it has no name for, so numbers are counted: renaming, splitting and permuting
    tensors keeps their count. `in_config` numbers are in the config.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held = sum(tensor.num_elements for tensor in header.tensors.values()) - in_config
    buffers = {id(tensor) for tensor in model.parameters()}
    state = model.state_dict(keep_vars=True).values()
    stored = sum({id(tensor): tensor.numel() for tensor in state if id(tensor) not in buffers}.values())
    if held not in (parameters, parameters + stored):
        lost = unexpected or _name_unread(header, model)
        named = f", among them {', '.join(lost[:5])}" if lost else ""
        what = f"it holds {held:,} numbers and the model made of it {parameters + stored:,}: some are not read{named}."
        _refuse(header.path, what, _ORIGINAL)


def _name_unread(header: GgufHeader, model: Any) -> list[str]:
    from gguf.constants import MODEL_ARCH_NAMES
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    if header.architecture not in MODEL_ARCH_NAMES.values():
        return []
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config={})
    known = get_gguf_hf_weights_map(model, processor)
    return sorted(name for name in header.tensors if name not in known)


def _check_settings(header: GgufHeader, config: Any) -> None:
    """Raise CheckpointError when the config that transformers made differs from the header in what is computed."""
    rope = list(_flatten(getattr(config, "rope_parameters", None) or {}))
    for setting, fields in _SETTINGS.items():
        in_file = header.setting(setting)
        if in_file is None or in_file in _NEUTRAL.get(setting, ()):
            continue
        found = [getattr(config, name, None) for name in fields] + [value for key, value in rope if key in fields]
        if not any(_same(in_file, value) for value in found):
            known = [value for value in found if value is not None]
            has = f"the config made of it has {known[0]!r}" if known else "transformers ignores it"
            _refuse(header.path, f"`{header.architecture}.{setting}` is {in_file!r}, and {has}.", _ORIGINAL)
    if not any(header.setting(name) for name in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")):
        _refuse(header.path, "its header has no epsilon for the norms; a default would be a guess.")


def _flatten(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value)
        else:
            yield key, value


def _same(in_file: Any, found: Any) -> bool:
    if isinstance(in_file, (int, float)) and isinstance(found, (int, float)):
        return math.isclose(in_file, found, rel_tol=1e-6)
    return bool(in_file == found)


def _save_model(model: Any, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):  # a model without the loader's settings, for the loaded tensors
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig.from_model_config(config)
    with without_bars():
        plain.save_pretrained(folder)
    _edit_json(folder / "config.json", _for_both_generations)


def _save_tokenizer(header: GgufHeader, link: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    from hybridizer.models.check import LOAD_FAULTS, without_logs

    try:
        with without_bars(), without_logs(), library_faults():
            tokenizer = AutoTokenizer.from_pretrained(
                link.parent, gguf_file=link.name, trust_remote_code=False, local_files_only=True
            )
            tokenizer.save_pretrained(folder)
    except LOAD_FAULTS as error:
        what = f"transformers cannot read the tokenizer in it: {type(error).__name__}: {str(error)[:300]}"
        raise CheckpointError(Problem(str(header.path), what, _ORIGINAL)) from error
    _edit_json(folder / "tokenizer_config.json", _name_class_for_both)


def _edit_json(path: Path, edit: Any) -> None:
    if path.is_file():
        content = edit(json.loads(path.read_text(encoding="utf-8")))
        write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _for_both_generations(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with the keys of transformers 4 beside those of 5: `rope_theta`, `rope_scaling`, `torch_dtype`."""
    config = {key: value for key, value in config.items() if key not in _DEBRIS}
    rope = config.get("rope_parameters")
    if isinstance(rope, Mapping) and "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        if scaling.get("rope_type", "default") != "default":
            config.setdefault("rope_scaling", scaling)
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])
    return config


def _name_class_for_both(config: dict[str, Any]) -> dict[str, Any]:
    """`config` without machine-specific keys, and with a tokenizer class that transformers 4 has as well."""
    config = {key: value for key, value in config.items() if key not in _DEBRIS}
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return config
