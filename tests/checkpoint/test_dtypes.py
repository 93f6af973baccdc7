import pytest
import safetensors.torch
import torch

from hybridizer.checkpoint.dtypes import DTYPE_BITS, SAFETENSORS_NAMES, TORCH_NAMES


@pytest.mark.parametrize("name", sorted(DTYPE_BITS))
def test_names_and_widths_are_those_of_torch_and_safetensors(name, tmp_path):
    dtype = getattr(torch, TORCH_NAMES[name])
    assert dtype.itemsize * 8 == DTYPE_BITS[name]
    safetensors.torch.save_file(
        {"x": torch.zeros(2, dtype=torch.uint8).repeat(dtype.itemsize).view(dtype)}, tmp_path / "x"
    )
    with safetensors.safe_open(tmp_path / "x", "pt") as file:
        assert file.get_slice("x").get_dtype() == name


def test_no_two_dtypes_share_a_name():
    assert {SAFETENSORS_NAMES[TORCH_NAMES[name]] for name in DTYPE_BITS} == set(DTYPE_BITS)
