"""What a finished model is tried with: the question reaches the model as a user's would."""

from types import SimpleNamespace

import torch
from transformers import AutoTokenizer

from hybridizer.models.check import generate_text
from support.tiny import post_process, tiny_tokenizer


def test_the_prompt_ends_with_its_own_last_token_where_the_tokenizer_appends_eos(tmp_path):
    tokenizer = post_process(AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path)), "<s> $A </s>")
    tokenizer.save_pretrained(tmp_path)
    seen = {}

    def generate(input_ids, attention_mask, **options):
        seen.update(ids=input_ids[0].tolist(), mask=attention_mask[0].tolist())
        return torch.cat([input_ids, input_ids[:, :1]], dim=1)

    model = SimpleNamespace(config=SimpleNamespace(get_text_config=SimpleNamespace), generate=generate)
    generate_text(tmp_path, model, "the day", 1)
    bare = tokenizer("the day", add_special_tokens=False)["input_ids"]
    assert seen["ids"] == [tokenizer.bos_token_id, *bare] and seen["mask"] == [1] * len(seen["ids"])
