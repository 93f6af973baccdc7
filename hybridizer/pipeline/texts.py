"""The texts of a recipe, tokenised before anything is spliced: an error in one never comes after hours of work."""

from __future__ import annotations

from hybridizer.core.progress import Monitor
from hybridizer.data.counts import warn_of_epochs, write_count
from hybridizer.data.tokenizer import load_encoder
from hybridizer.pipeline.amounts import source_keys
from hybridizer.pipeline.donor_texts import write_donor_text
from hybridizer.pipeline.plan import Planned
from hybridizer.recipe.models import DataEntry
from hybridizer.train.run import open_texts


def generate_texts(planned: Planned, monitor: Monitor) -> None:
    """Let donors write the texts that the recipe asks of them, unless they are in the cache.

    Raises what `write_texts` raises.
    """
    train, folder = planned.resolved.recipe.train, planned.resolved.recipe.folder
    for entry in train.data if train is not None else ():
        write_donor_text(entry, planned.donors, folder, monitor)


def tokenise_texts(planned: Planned, monitor: Monitor) -> None:
    """Tokenise the training sources and the general texts of a recipe that trains, with the host's own tokenizer.

    They are found in the cache afterwards, by training and evaluation, which load the same tokenizer from the model.
    The token counts are kept for later plans; sources that training repeats too often are noted. Raises what
    `open_texts` raises, and DonorError for a tokenizer that does not load.
    """
    from hybridizer.data.batches import num_training_tokens

    recipe, plan = planned.resolved.recipe, planned.plan
    train, host = recipe.train_section, planned.donors[plan.host]
    encoder = load_encoder(host.folder, "remote_code" in host.allow)
    sources = open_texts(train.data, recipe.folder, encoder, monitor)
    total_weight = sum(source.weight for source in sources)
    for source, key in zip(sources, source_keys(recipe, plan), strict=True):
        count = num_training_tokens(source, train.heldout_ratio)
        write_count(key, count)
        epochs = train.tokens * source.weight / total_weight / max(count, 1)
        if warning := warn_of_epochs(source.name, epochs, count):
            monitor.note(f"warning: {warning}")
    for text in recipe.evaluate.bits_per_byte if recipe.evaluate else ():
        open_texts((DataEntry(path=text.path, field=text.field),), recipe.folder, encoder, monitor)
