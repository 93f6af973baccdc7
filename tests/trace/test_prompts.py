"""What a donor is run on does not depend on what its tokenizer puts behind a text."""

import pytest

from hybridizer.recipe.models import Trace
from hybridizer.trace.masking import choose_mask_token
from hybridizer.trace.prompts import prepare_prompts
from support.tiny import post_process
from support.traced_donors import PROBES

BEHIND = {"EOS": "$A </s>", "BOS and EOS": "<s> $A </s>", "BOS and SEP": "<s> $A <unk>"}


def prompts_of(tokenizer, share):
    return prepare_prompts(PROBES, tokenizer, Trace(mask_ratio=share), choose_mask_token(tokenizer, "_"), None)


@pytest.mark.parametrize("template", BEHIND.values(), ids=BEHIND)
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_token_put_behind_a_text_changes_no_prompt_mask_or_answer(tokenizer, template, share):
    """The last token is the one whose state is read, and is never masked: it must be the prompt's own."""
    without = post_process(tokenizer, template.partition("$A")[0] + "$A")
    expected = prompts_of(without, share)
    found = prompts_of(post_process(tokenizer, template), share)
    assert found == expected
    assert [tokenizer.decode([prompt.ids[-1]]) for prompt in found] == [probe.prompt[-1] for probe in PROBES.probes]
    assert all(prompt.masked[-1] == prompt.ids[-1] and prompt.masked != prompt.ids for prompt in found)
    assert [prompt.answer is None for prompt in found] == [probe.target is None for probe in PROBES.probes]
