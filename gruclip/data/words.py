"""Text as numbered words: Penn Treebank's three files, any others, and the text of CPython's own help pages."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pydoc_data.topics import topics

import torch

from gruclip.errors import DataError

EOS = "<eos>"
UNK = "<unk>"

#: A word or number, or a run of one punctuation mark (a ruler of 70 dashes is one token).
TOKEN = re.compile(r"\w+|([^\w\s])\1*")
PYDOC_VOCABULARY = 10_000
PYDOC_CHUNK = 500  #: tokens
MIN_COUNT = 2  #: a word met once in the training text is <unk>, so that <unk> is learned


@dataclass(frozen=True)
class WordCorpus:
    """A text in three splits; `vocabulary[i]` is the word that token i stands for."""

    name: str
    checksum: str  #: SHA-256 (hex) of what it was read from
    splits: dict[str, torch.Tensor]  #: "train", "valid", "test": int64, 1-D
    vocabulary: tuple[str, ...]  #: the training split's words, most frequent first, then alphabetically
    token_unit: str = "word"  #: or "character"

    @property
    def unit(self) -> str:
        return "nats per token"

    @property
    def num_outputs(self) -> int:
        return len(self.vocabulary)


def read_words(name: str, checksum: str, texts: Mapping[str, bytes]) -> WordCorpus:
    """The corpus of UTF-8 texts, one for each split, their words parted by white space.

    A byte order mark is no part of the first word. Raises `DataError` for a text that has no words or is not UTF-8, or
    holds a NUL, and for words that the training split does not have where it has no ``<unk>`` either.
    """
    return _encode(name, checksum, {split: tokens(_lines(name, split, text), "word") for split, text in texts.items()})


def read_text(name: str, checksum: str, texts: Mapping[str, bytes], vocabulary: int, unit: str) -> WordCorpus:
    """The corpus of any UTF-8 texts, its tokens the words of each line, or (`unit` "character") its characters.

    The `vocabulary` holds at most so many of the training text's tokens, the most frequent ones; ``<unk>`` stands for
    those left out, for those met once there, so that it is learned, and for what the other splits have besides.
    Raises `DataError` as `read_words` does, and for a text in which nothing is met twice.
    """
    splits = {split: tokens(_lines(name, split, text), unit) for split, text in texts.items()}
    splits["train"] = _without_rare(splits["train"], vocabulary)
    if not set(splits["train"]) - {EOS, UNK}:
        raise DataError(f"{name}: no {unit} is met twice in the training text; give more of it")
    return replace(_encode(name, checksum, splits, unknown=True), token_unit=unit)


def _lines(name: str, split: str, text: bytes) -> list[str]:
    if b"\0" in text:
        raise DataError(f"{name}: the {split} split holds a NUL byte; give a text file in UTF-8")
    if not text.strip():
        raise DataError(f"{name}: the {split} split is empty, it has no words; give it at least one line of them")
    try:
        # At line ends alone: str.splitlines cuts at form feeds and the like, too.
        lines = re.split(r"\r\n|\r|\n", text.decode("utf-8-sig"))
        return lines if lines[-1] else lines[:-1]
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: the {split} split is not UTF-8 text ({error}); give a text file") from error


def tokens(lines: Iterable[str], unit: str) -> list[str]:
    """The words of each line, or (`unit` "character") its characters, and the end of each."""
    return [token for line in lines for token in (*(line.split() if unit == "word" else line), EOS)]


def _without_rare(text: list[str], vocabulary: int) -> list[str]:
    """``<unk>`` for what is met once or is not frequent enough for a `vocabulary` that holds it and ``<eos>``."""
    frequent = Counter(token for token in text if token != EOS).most_common(vocabulary - 2)
    known = {EOS, *(token for token, count in frequent if count >= MIN_COUNT)}
    return [token if token in known else UNK for token in text]


def pydoc() -> WordCorpus:
    """The text of `pydoc_data.topics`, about 109,000 tokens, lower-cased.

    Cut into chunks of 500 tokens, of which every tenth is for validation and every tenth for the test: so all
    splits are spread over the whole text and resemble each other. The text differs between patch releases of
    CPython; the checksum is the text's.
    """
    text = "\n".join(topics[topic] for topic in sorted(topics))
    stream = [token for line in text.lower().splitlines() for token in (*_pieces(line), EOS)]
    words: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for index, start in enumerate(range(0, len(stream), PYDOC_CHUNK)):
        split = {4: "valid", 9: "test"}.get(index % 10, "train")
        words[split] += stream[start : start + PYDOC_CHUNK]
    words["train"] = _without_rare(words["train"], PYDOC_VOCABULARY)
    return _encode("pydoc", hashlib.sha256(text.encode()).hexdigest(), words)


def _pieces(line: str) -> Iterable[str]:
    return (match[0] for match in TOKEN.finditer(line))


def _encode(name: str, checksum: str, words: Mapping[str, list[str]], unknown: bool = False) -> WordCorpus:
    """Number the words of every split by the training split's vocabulary, to which `unknown` adds ``<unk>``."""
    for split, text in words.items():
        if not text:
            raise DataError(f"{name}: the {split} split is empty; give it at least one line")
    counts = Counter(words["train"])
    if unknown:
        counts.setdefault(UNK, 0)
    vocabulary = tuple(sorted(counts, key=lambda word: (-counts[word], word)))
    number = {word: index for index, word in enumerate(vocabulary)}
    splits = {}
    for split, text in words.items():
        stranger = None if UNK in number else next((word for word in text if word not in number), None)
        if stranger is not None:
            raise DataError(
                f"{name}: the {split} split has {stranger!r}, which the training split has not, "
                f"and there is no {UNK} to stand for it; write {UNK} for rare words in the training split"
            )
        splits[split] = torch.tensor([number.get(word, number.get(UNK, -1)) for word in text])
    return WordCorpus(name, checksum, splits, vocabulary)
