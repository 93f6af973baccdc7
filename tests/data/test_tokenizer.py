from hybridizer.data.tokenizer import TokenizerEncoder


def test_documents_get_the_tokenizers_ids_and_end_with_its_end_token(tokenizer):
    encoder = TokenizerEncoder(tokenizer)
    rows = encoder.encode(["one two", "three"])
    for text, row in zip(["one two", "three"], rows, strict=True):
        assert row == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert max(max(row) for row in rows) < encoder.vocab_size


def test_the_prefix_is_what_the_tokenizer_puts_before_every_text(tokenizer):
    from tokenizers.processors import TemplateProcessing

    assert TokenizerEncoder(tokenizer).prefix == ()
    start = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[start])
    encoder = TokenizerEncoder(tokenizer)
    assert encoder.prefix == (tokenizer.bos_token_id,)
    assert all(tuple(row[:1]) == encoder.prefix for row in encoder.encode(["one two", "three"]))


def test_long_documents_are_not_cut(tokenizer):
    tokenizer.backend_tokenizer.enable_truncation(4)
    (row,) = TokenizerEncoder(tokenizer).encode(["one two three " * 100])
    assert len(row) > 100


def test_another_tokenizer_has_another_identity(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    assert TokenizerEncoder(other).identity == TokenizerEncoder(tokenizer).identity
    other.backend_tokenizer.enable_truncation(4)  # it is switched off, and makes no other tokens
    assert TokenizerEncoder(other).identity == TokenizerEncoder(tokenizer).identity
    other.add_tokens(["<new>"])
    assert TokenizerEncoder(other).identity != TokenizerEncoder(tokenizer).identity
