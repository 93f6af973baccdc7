import pytest
import torch
from torch.nn import functional

from hybridizer.models import document_attention as module
from hybridizer.models.document_attention import attend, document_attention, find_documents
from hybridizer.models.objective import CausalLMLoss
from hybridizer.models.parts import find_parts
from hybridizer.train.isolation import documents_leak
from support.train_models import tiny_model

ROWS, HEADS, KV_HEADS, TOKENS, WIDTH, VALUE_WIDTH = 2, 6, 2, 300, 16, 24
SPANS = [(0, 0, 7), (0, 7, 160), (0, 160, 300), (1, 0, 299), (1, 299, 300)]


def inputs(dtype=torch.float32, kv_heads=KV_HEADS, value_width=WIDTH):
    generator = torch.Generator().manual_seed(0)
    shapes = [(HEADS, WIDTH), (kv_heads, WIDTH), (kv_heads, value_width)]
    made = [torch.randn(ROWS, TOKENS, *shape, generator=generator).transpose(1, 2) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def mask_of(spans, rows=ROWS, tokens=TOKENS):
    mask = torch.zeros(rows, 1, tokens, tokens, dtype=torch.bool)
    for row, begin, end in spans:
        mask[row, 0, begin:end, begin:end] = True
    return mask.tril()


def formula(query, key, value, spans, scale=None):
    """Attention written out, in float64."""
    q, k, v = (tensor.double() for tensor in (query, key, value))
    k, v = (tensor.repeat_interleave(HEADS // k.shape[1], 1) for tensor in (k, v))
    scores = q @ k.mT * (WIDTH**-0.5 if scale is None else scale)
    return scores.masked_fill(~mask_of(spans), -torch.inf).softmax(-1) @ v


def gradients(output, tensors):
    slope = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype)
    return torch.autograd.grad(output, tensors, slope)


def relative_error(found, exact):
    found, exact = found.detach().double(), exact.detach().double()
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("value_width", [WIDTH, VALUE_WIDTH])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_documents_attend_and_have_gradients_as_the_formula_has(kv_heads, value_width):
    tensors = inputs(kv_heads=kv_heads, value_width=value_width)
    ours, exact = attend(*tensors, SPANS, 0.3), formula(*tensors, SPANS, 0.3)
    assert relative_error(ours, exact) < 1e-6
    for our, their in zip(gradients(ours, tensors), gradients(exact, tensors), strict=True):
        assert relative_error(our, their) < 1e-6


def test_bfloat16_is_as_exact_as_the_kernel_of_torch():
    tensors = inputs(torch.bfloat16)
    exact = formula(*tensors, SPANS)
    theirs = functional.scaled_dot_product_attention(*tensors, attn_mask=mask_of(SPANS), enable_gqa=True)
    ours = attend(*tensors, SPANS)
    expected = gradients(exact, tensors)
    errors = []
    for output in (ours, theirs):
        pairs = zip((output, *gradients(output, tensors)), (exact, *expected), strict=True)
        errors.append([relative_error(found, right) for found, right in pairs])
    assert errors[0] < [2 * error for error in errors[1]]
    assert max(errors[0]) < 2**-7  # eight bits, and rounding of scores and weights


def test_a_document_has_the_bits_that_it_has_alone():
    query, key, value = inputs()
    packed = attend(query, key, value, SPANS)
    for row, begin, end in SPANS:
        alone = attend(*(t[row : row + 1, :, begin:end] for t in (query, key, value)), [(0, 0, end - begin)])
        assert torch.equal(packed[row : row + 1, :, begin:end], alone)


def test_documents_are_read_off_their_mask():
    assert find_documents(mask_of(SPANS)) == SPANS
    whole = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    assert find_documents(whole.tril()) == [(0, 0, 5)]


@pytest.mark.parametrize("change", ["window", "future", "hidden"])
def test_other_masks_have_no_documents(change):
    mask = mask_of(SPANS)
    if change == "window":
        mask &= torch.ones_like(mask).triu(-140)
    elif change == "future":
        mask[1, 0, 3, 4] = True
    else:
        mask[0, 0, 200, 170] = False
    assert find_documents(mask) is None


@pytest.mark.parametrize("rows_of_mask", [ROWS, 1])
def test_packed_rows_run_document_by_document(monkeypatch, rows_of_mask):
    calls = []
    monkeypatch.setattr(module, "attend", lambda *args: calls.append(args[3]) or attend(*args))
    spans = SPANS if rows_of_mask == ROWS else [(row, *span) for row in range(ROWS) for span in ((0, 9), (9, 300))]
    mask, tensors = mask_of(spans)[:rows_of_mask], inputs()
    theirs = functional.scaled_dot_product_attention(*tensors, attn_mask=mask, enable_gqa=True)
    with document_attention(torch.float32):
        ours = [functional.scaled_dot_product_attention(*tensors, attn_mask=mask, enable_gqa=True) for _ in range(2)]
    assert calls == [spans, spans]
    torch.testing.assert_close(ours[0], theirs, rtol=1e-5, atol=1e-6)
    for our, their in zip(gradients(ours[1], tensors), gradients(theirs, tensors), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)  # of numbers up to 40


def test_whole_rows_run_here_in_bfloat16_only(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "attend", lambda *args: calls.append(args[3]) or attend(*args))
    for dtype in (torch.float32, torch.bfloat16):
        with document_attention(dtype):
            functional.scaled_dot_product_attention(*inputs(dtype), is_causal=True, enable_gqa=True)
    assert calls == [[(0, 0, TOKENS), (1, 0, TOKENS)]]


OTHERS = {
    "dropout": ({"dropout_p": 0.5, "is_causal": True}, TOKENS),
    "all pairs": ({}, TOKENS),
    "added mask": ({"attn_mask": torch.zeros(TOKENS, TOKENS)}, TOKENS),
    "window": ({"attn_mask": mask_of(SPANS) & torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(-140)}, TOKENS),
    "short rows": ({"is_causal": True}, 100),
}


@pytest.mark.parametrize(("options", "tokens"), OTHERS.values(), ids=OTHERS)
def test_what_is_not_made_of_documents_is_left_to_torch(options, tokens):
    tensors = [tensor[:, :, :tokens] for tensor in inputs(torch.bfloat16)]
    options = {"enable_gqa": True, **options}
    if "attn_mask" in options and options["attn_mask"].is_floating_point():
        options["attn_mask"] = options["attn_mask"].bfloat16()
    torch.manual_seed(0)
    theirs = functional.scaled_dot_product_attention(*tensors, **options)
    torch.manual_seed(0)
    with document_attention(torch.bfloat16):
        ours = functional.scaled_dot_product_attention(*tensors, **options)
    assert torch.equal(ours, theirs)


def test_queries_behind_cached_keys_are_left_to_torch():
    query, key, value = inputs(torch.bfloat16)
    theirs = functional.scaled_dot_product_attention(query[:, :, -260:], key, value, is_causal=True, enable_gqa=True)
    with document_attention(torch.bfloat16):
        ours = functional.scaled_dot_product_attention(query[:, :, -260:], key, value, is_causal=True, enable_gqa=True)
    assert torch.equal(ours, theirs)


def test_the_function_of_torch_is_restored_after_an_error():
    before = functional.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError), document_attention(torch.float32):
        assert functional.scaled_dot_product_attention is not before
        raise ZeroDivisionError
    assert functional.scaled_dot_product_attention is before


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "mistral", "mixtral"])
def test_a_model_trains_on_packed_rows_as_with_the_dense_mask(monkeypatch, model_type):
    calls = []
    monkeypatch.setattr(module, "attend", lambda *args: calls.append(args[3]) or attend(*args))
    model = tiny_model(model_type)
    model.set_attn_implementation("sdpa")
    objective = CausalLMLoss(model, find_parts(model))
    ids = torch.arange(2 * 300).view(2, 300) % 200 + 3
    positions = torch.cat([torch.arange(120), torch.arange(180), torch.arange(260), torch.arange(40)]).view(2, 300)
    theirs = objective(ids, positions, ids)
    expected = torch.autograd.grad(theirs, list(model.parameters()))
    assert not calls
    with document_attention(torch.float32):
        ours = objective(ids, positions, ids)
        found = torch.autograd.grad(ours, list(model.parameters()))
        assert bool(calls) == (model_type != "mistral")  # each of its layers has a window shorter than a document
        assert not documents_leak(objective, 200, 300)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    for our, their in zip(found, expected, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-4)
