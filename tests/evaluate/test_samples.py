"""Continuations: the most probable token each time, raw, from any tokenizer and any model."""

from functools import partial

import pytest
import torch
from transformers import AutoTokenizer

from hybridizer.core.errors import InputError
from hybridizer.evaluate.samples import continue_prompts, num_prompts
from hybridizer.models.parts import run_model
from hybridizer.recipe.models import Evaluate
from support.scored_models import model_and_parts, text_of
from support.tiny import post_process, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def samples_of(tokenizer, texts=(), prompts=(), model_type="llama", new_tokens=6, **overrides):
    model, _ = model_and_parts(model_type, **overrides)
    settings = Evaluate(prompts=tuple(prompts), new_tokens=new_tokens)
    return model, continue_prompts(model, tokenizer, texts, settings)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mamba2", "rwkv", "jamba", "qwen3_next"])
def test_a_continuation_is_the_most_probable_token_each_time(tokenizer, model_type):
    model, (sample,) = samples_of(tokenizer, prompts=["the day and"], model_type=model_type)
    prompt = tokenizer("the day and")["input_ids"]
    ids = list(prompt)
    for _ in range(6):
        ids.append(int(run_model(model, torch.tensor([ids]))[0, -1].argmax()))
    assert (sample.source, sample.prompt) == ("recipe", "the day and")
    assert sample.continuation == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True) != ""


def test_prompts_are_the_beginnings_of_the_first_documents_of_each_text(tokenizer):
    texts = [text_of(120, 9, 30, name="a"), text_of(20, name="b")]
    _, samples = samples_of(tokenizer, texts, ["x"])
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    assert [sample.source for sample in samples] == ["a", "a", "b", "recipe"]
    expected = [texts[0].documents[0].tokens[:48], texts[0].documents[1].tokens[:4], texts[1].documents[0].tokens[:10]]
    assert [sample.prompt for sample in samples[:3]] == [decode(ids) for ids in expected]
    assert num_prompts(texts, Evaluate(prompts=("x",))) == 4


def test_neither_chat_template_nor_generation_config_changes_what_is_shown(tokenizer):
    _, plain = samples_of(tokenizer, prompts=["hello"])
    tokenizer.chat_template = "CHAT {{ messages[0].content }}"
    model, _ = model_and_parts("llama")
    own = model.generation_config
    own.update(do_sample=True, temperature=9.0, repetition_penalty=5.0, eos_token_id=list(range(3, 256)))
    assert continue_prompts(model, tokenizer, (), Evaluate(prompts=("hello",), new_tokens=6)) == plain
    assert model.generation_config is own and own.repetition_penalty == 5.0


@pytest.mark.parametrize("template", ["$A </s>", "$A <unk>"], ids=["EOS", "SEP"])
def test_a_token_that_the_tokenizer_puts_behind_a_text_is_not_continued(tokenizer, template):
    _, expected = samples_of(tokenizer, prompts=["one two"])
    assert samples_of(post_process(tokenizer, template), prompts=["one two"])[1] == expected


def test_tokenizers_without_pad_and_end_tokens_serve(tokenizer):
    _, (expected,) = samples_of(tokenizer, prompts=["one two"])
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.bos_token = None
    _, (found,) = samples_of(tokenizer, prompts=["one two"])
    assert found.prompt == "one two" and len(found.continuation) >= len(expected.continuation) > 0


def test_a_continuation_ends_before_the_end_token_and_at_the_longest_input(tokenizer):
    model, parts = model_and_parts("llama")
    first = int(model(torch.tensor([tokenizer("ab")["input_ids"]])).logits[0, -1].argmax())
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
    (sample,) = continue_prompts(model, tokenizer, (), Evaluate(prompts=("ab",)))
    assert sample.continuation == ""
    tokenizer.eos_token = None
    model.config.max_position_embeddings = 5
    settings = Evaluate(prompts=("ab",))
    seen = []
    hook = parts.embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    continue_prompts(model, tokenizer, (), settings, seen.append)
    hook.remove()
    assert seen == [2, 1, 1, 1]  # two tokens give the third, and the cache two more; then one prompt is done


@pytest.mark.parametrize(("prompt", "count"), [("</s>", 0), ("x" * 512, 512)])
def test_a_prompt_without_tokens_or_without_room_is_refused(tokenizer, prompt, count):
    with pytest.raises(InputError, match=rf"evaluate.prompts\[0\]: {count} tokens"):
        samples_of(tokenizer, prompts=[prompt])


def test_an_end_token_behind_a_prompt_is_taken_off(tokenizer):
    _, (expected,) = samples_of(tokenizer, prompts=["one two"])
    _, (found,) = samples_of(tokenizer, prompts=["one two</s>"])
    assert found == expected


def test_a_prompt_that_ends_within_a_character_keeps_its_whole_continuation(tokenizer, monkeypatch):
    text = text_of(2)
    first, second = tokenizer("é")["input_ids"]
    text.documents[0].tokens[:] = first, second
    given = [second, *tokenizer("t")["input_ids"]]
    monkeypatch.setattr("hybridizer.evaluate.samples.continue_greedily", lambda *arguments: given)
    _, (sample,) = samples_of(tokenizer, [text], new_tokens=2)
    assert (sample.prompt, sample.continuation) == ("\ufffd", "\ufffdt")
