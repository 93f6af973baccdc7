"""A prompt begins as its tokenizer begins every text, and ends with its own last token."""

import pytest

from hybridizer.models.encode import added_tokens, encode_prompts
from support.tiny import post_process

TEMPLATES = ("$A", "<s> $A", "$A </s>", "<s> $A </s>", "<s> <unk> $A </s> <unk>")


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_put_before_is_kept_and_what_is_put_after_is_not(tokenizer, template):
    bare = tokenizer("one", add_special_tokens=False)["input_ids"]
    before, _, after = (tokenizer.convert_tokens_to_ids(part.split()) for part in template.partition("$A"))
    tokenizer = post_process(tokenizer, template)
    assert tokenizer("one")["input_ids"] == [*before, *bare, *after]
    assert added_tokens(tokenizer) == (tuple(before), tuple(after))
    assert encode_prompts(tokenizer, ["one", ""]) == [[*before, *bare], before]


def test_an_end_token_that_the_prompt_holds_itself_stays(tokenizer):
    end = tokenizer.eos_token_id
    for template in ("$A", "$A </s>"):
        (ids,) = encode_prompts(post_process(tokenizer, template), ["one</s>"])
        assert ids[-1] == end and ids.count(end) == 1


def test_a_prompt_is_never_cut_and_a_long_one_gives_no_warning(tokenizer):
    tokenizer = post_process(tokenizer, "$A </s>")
    tokenizer.model_max_length = 4
    tokenizer.backend_tokenizer.enable_truncation(4)
    assert len(encode_prompts(tokenizer, ["x" * 30])[0]) == 30
