"""Chats: the assistant's tokens and no others, under the model's own template."""

import json
import math

import pytest
import torch
from transformers import AutoTokenizer

from hybridizer.core.errors import InputError
from hybridizer.evaluate.chat import encode_chats, has_template, read_chats, score_chats
from support.scored_models import model_and_parts
from support.tiny import tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
REWRITING = "{{ messages | length }}" + TEMPLATE
TALK = [
    {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"}, {"role": "assistant", "content": "so long"},
]  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path):
    made = AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path / "t"))
    made.chat_template = TEMPLATE
    return made


def chats_of(folder, *conversations):
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return read_chats("talk", path)


def test_the_assistants_words_with_their_end_are_marked_and_nothing_else(tokenizer, tmp_path):
    (row,) = encode_chats(tokenizer, chats_of(tmp_path, TALK))
    spoken = tokenizer.decode([token for token, is_spoken in zip(row.ids, row.spoken, strict=True) if is_spoken])
    assert spoken == "hello</assistant>\nso long</assistant>\n"
    assert tokenizer.decode(row.ids).startswith("<user>hi</user>\n<assistant>hello")


def test_bits_are_those_of_the_models_own_logits(tokenizer, tmp_path):
    model, parts = model_and_parts("llama")
    rows = encode_chats(tokenizer, chats_of(tmp_path, TALK, TALK[:2]))
    expected = []
    for row in rows:
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
        told = [float(log_p[at - 1, row.ids[at]]) for at in range(1, len(row.ids)) if row.spoken[at]]
        expected.append(-sum(told) / math.log(2))
    assert score_chats(model, parts, rows, "x") == pytest.approx(expected, rel=1e-5)
    assert chats_of(tmp_path, TALK, TALK[:2]).num_bytes == (len("hello") + len("so long"), len("hello"))


def test_templates_that_rewrite_earlier_turns_and_models_without_one_are_told(tokenizer, tmp_path):
    assert has_template(tokenizer)
    tokenizer.chat_template = REWRITING
    with pytest.raises(InputError, match="writes earlier turns differently"):
        encode_chats(tokenizer, chats_of(tmp_path, TALK))
    tokenizer.chat_template = "{{ raise_exception('no roles') }}"
    with pytest.raises(InputError, match="refuses these messages: .*no roles"):
        encode_chats(tokenizer, chats_of(tmp_path, TALK))
    tokenizer.chat_template = None
    assert not has_template(tokenizer)


def test_every_mistake_is_reported_with_its_line(tmp_path):
    path = tmp_path / "x.jsonl"
    wrong = ["{", '{"messages": []}', '{"messages": [{"role": "user", "content": "a"}]}', '{"messages": [{"role": 1}]}']
    path.write_text("\n".join(wrong))
    with pytest.raises(InputError) as caught:
        read_chats("talk", path)
    assert [problem.where.rpartition(":")[2] for problem in caught.value.problems] == list("1234")


def test_conversations_that_are_too_long_are_refused(tokenizer, tmp_path):
    model, parts = model_and_parts("llama")
    rows = encode_chats(tokenizer, chats_of(tmp_path, [TALK[0], {"role": "assistant", "content": "x" * 600}]))
    with pytest.raises(InputError, match="the model takes 512"):
        score_chats(model, parts, rows, "chats 'talk'")
