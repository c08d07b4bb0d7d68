"""A byte pair encoding of the emoji captions (1508.07909), in the files of a `CLIPTokenizer`."""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

END = "</w>"
FIRST, LAST = "<|startoftext|>", "<|endoftext|>"
LENGTH = 24


def words_of(texts: Iterable[str]) -> Counter[tuple[str, ...]]:
    """Words as CLIP cuts them, each a tuple of byte symbols of which the last ends in `</w>`, with their numbers."""
    from transformers import CLIPTokenizerFast

    cut = CLIPTokenizerFast(vocab={FIRST: 0, LAST: 1}, merges=[]).backend_tokenizer.pre_tokenizer
    counts = Counter(word for text in texts for word, _ in cut.pre_tokenize_str(text.lower()))
    return Counter({(*word[:-1], word[-1] + END): count for word, count in counts.items()})


def merges_of(words: Counter[tuple[str, ...]], count: int) -> list[tuple[str, str]]:
    """The most frequent neighbours, joined and counted again, up to `count` times; ties in alphabetical order."""
    merges = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = Counter({_joined(word, best): times for word, times in words.items()})
    return merges


def _joined(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    if pair[0] not in word:
        return word
    found: list[str] = []
    for symbol in word:
        if found and (found[-1], symbol) == pair:
            found[-1] += symbol
        else:
            found.append(symbol)
    return tuple(found)


def make_tokenizer(texts: Iterable[str], merges: int, out: Path) -> Any:
    """Learn the merges, save `vocab.json`, `merges.txt` and the tokenizer's settings; returns the `CLIPTokenizer`."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    learned = merges_of(words_of(texts), merges)
    letters = sorted(ByteLevel.alphabet())
    symbols = [*letters, *(letter + END for letter in letters), *("".join(pair) for pair in learned), FIRST, LAST]
    vocabulary = {symbol: place for place, symbol in enumerate(dict.fromkeys(symbols))}
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = "".join(f"{first} {second}\n" for first, second in learned)
    (out / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(out, model_max_length=LENGTH)
    tokenizer.save_pretrained(out)
    return tokenizer
