import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from hybridizer.models.loss import NextToken, chunked_loss
from hybridizer.models.matmul import UpcastMatmul, matmul_dtype
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import find_parts
from support.train_models import tiny_model


class Recorder(TorchDispatchMode):
    """The dtypes of what goes into every matrix product and attention, and of what comes out."""

    def __init__(self):
        super().__init__()
        self.taken, self.given = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        if "mm" in name or "attention" in name:
            self.taken |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
            self.given |= {part.dtype for part in (result if isinstance(result, tuple) else (result,))}
        return result


def low(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).bfloat16().requires_grad_()


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "mamba2", "qwen3_moe"])
def test_no_matrix_product_and_no_attention_of_a_step_is_left_in_bfloat16(monkeypatch, model_type):
    # Products are widened only on such a processor, and there the loss widens its own.
    monkeypatch.setattr("hybridizer.models.hardware.has_bfloat16", lambda device: False)
    model = tiny_model(model_type).bfloat16().eval()
    ids = torch.arange(24)[None] + 3
    with Recorder() as beneath, UpcastMatmul():
        CausalLMLoss(model, find_parts(model))(ids, torch.arange(24)[None], ids).backward()
    assert beneath.taken - {torch.int32} == {torch.float32}  # grouped products also take where each group ends


def test_every_product_of_the_loss_stays_in_bfloat16_only_where_that_runs_in_hardware(bfloat16_cpu):
    model = tiny_model("llama").bfloat16().eval()
    hidden, ids = low(24, 64), torch.arange(24) + 3
    with Recorder() as seen:
        chunked_loss(hidden, model.lm_head, list(model.lm_head.parameters()), NextToken(ids))[0].backward()
    assert seen.taken == {torch.bfloat16 if bfloat16_cpu else torch.float32}


def test_attention_gives_gradients_in_bfloat16():
    q, k, v = (low(1, 2, 16, 8) for _ in range(3))
    with UpcastMatmul(), Recorder() as above:
        output = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        assert above.given == {torch.bfloat16, torch.float32}  # the output, and the sums of exponentials
        above.given.clear()
        output.backward(torch.ones_like(output))
    assert above.given == {torch.bfloat16}


def test_a_product_is_rounded_once_in_each_direction():
    x, weight = low(5, 64), low(3, 64)
    with UpcastMatmul():
        output = functional.linear(x, weight)
        output.backward(torch.ones_like(output))
    assert torch.equal(output, (x.float() @ weight.float().T).bfloat16())
    assert torch.equal(weight.grad, (torch.ones(3, 5) @ x.float()).bfloat16())


def test_attention_gives_what_float32_gives_and_keeps_bfloat16():
    q, k, v = (low(1, 2, 16, 8) for _ in range(3))
    kept = []
    with UpcastMatmul(), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        output = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    exact = functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    assert torch.equal(output, exact.bfloat16())
    assert kept.count(torch.bfloat16) == 4  # queries, keys, values and the output


def test_float32_passes_untouched():
    x, weight = torch.randn(5, 64), torch.randn(3, 64)
    expected = functional.linear(x, weight)
    with UpcastMatmul():
        assert torch.equal(functional.linear(x, weight), expected)


@pytest.mark.parametrize("hardware, multiplied", [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_multiplies_in_itself_only_in_hardware(monkeypatch, hardware, multiplied):
    monkeypatch.setattr("hybridizer.models.hardware.has_bfloat16", lambda device: hardware)
    assert matmul_dtype(torch.bfloat16, torch.device("cpu")) == multiplied
    assert matmul_dtype(torch.float32, torch.device("cpu")) == torch.float32
