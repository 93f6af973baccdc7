"""A small antonym task, a tiny Llama that learns it in seconds, and damaged copies of that model."""

import copy
import random

import torch

NUM_WORDS = 16
RELATIONS = {"opposite": 1, "partner": 2}  # the answer to word w is w ^ 1 or w ^ 2, by the first token
MARKERS = {relation: NUM_WORDS + index for index, relation in enumerate(RELATIONS)}
UNKNOWN = NUM_WORDS + len(RELATIONS)
NUM_LAYERS = 4
MAX_PARAMETERS = 200_000


def toy_prompt(generator):
    """The relation, and word numbers: two answered examples, the question and its answer."""
    relation = generator.choice(list(RELATIONS))
    questions = generator.sample(range(NUM_WORDS), 3)
    return relation, [word for question in questions for word in (question, question ^ RELATIONS[relation])]


def toy_text(relation, words):
    """The prompt as text, "opposite w3 w2 w10 w11 w6", and the target that should follow, " w7"."""
    return f"{relation} " + " ".join(f"w{word}" for word in words[:-1]), f" w{words[-1]}"


def toy_tokenizer():
    """One token per word, an unknown token, no padding or mask token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{word}": word for word in range(NUM_WORDS)} | MARKERS | {"<unk>": UNKNOWN}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def fresh(seed=0):
    """A tiny Llama with random weights, embeddings and head apart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=UNKNOWN + 1, hidden_size=48, intermediate_size=96, num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    assert sum(parameter.numel() for parameter in model.parameters()) < MAX_PARAMETERS
    return model


def trained(num_steps=150, seed=0, whole_text=False):
    """A donor: the same model, taught to answer every question of such prompts; if `whole_text`, to predict all words.

    Of 6 seeds, with AVX2 and with AVX-512 kernels, the slowest answers 0.89 to 0.97 of the probes right after 90
    steps, 0.95 after 120, and each of them all after 150 and after 180: by then rounding decides nothing.
    """
    model = fresh(seed).requires_grad_(True).train()
    generator = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(num_steps):
        prompts = [toy_prompt(generator) for _ in range(64)]
        ids = torch.tensor([[MARKERS[relation], *words] for relation, words in prompts])
        logits = model(input_ids=ids[:, :-1]).logits
        first, step = (0, 1) if whole_text else (1, 2)
        asked, answers = logits[:, first::step], ids[:, first + 1 :: step]
        loss = torch.nn.functional.cross_entropy(asked.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def shuffled(donor, order=(3, 1, 0, 2)):
    """A copy of `donor` with its layers in another order."""
    copied = copy.deepcopy(donor)
    copied.model.layers = torch.nn.ModuleList(copied.model.layers[i] for i in order)
    for index, layer in enumerate(copied.model.layers):
        layer.self_attn.layer_idx = index
    return copied


def constant(donor, word):
    """A copy of `donor` that predicts `word` for any input, with high probability."""
    copied = copy.deepcopy(donor)
    for layer in copied.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    copied.model.embed_tokens.weight.fill_(1.0)
    copied.model.norm.weight.fill_(1.0)
    copied.lm_head.weight.zero_()
    copied.lm_head.weight[word] = 0.2
    return copied
