"""Corpora: the real ones are what is published, made ones are encoded as stated, and bad ones refused by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from gruclip.choices import DATASETS, OWN_DATASETS, WORD_DATASETS
from gruclip.data import FILES, MusicCorpus, TrainingSplit, WordCorpus, eval_lanes, load
from gruclip.data.music import read_music
from gruclip.data.words import read_words
from gruclip.errors import DataError

TIME_STEPS = {
    "nottingham": (176_561, 45_513, 44_463),
    "jsb_chorales": (13_807, 4_602, 4_725),
    "musedata": (245_202, 82_755, 64_339),
    "piano_midi": (75_911, 8_540, 19_036),
}


# -- the real corpora ---------------------------------------------------------------------------------


def test_every_dataset_of_the_configuration_is_registered() -> None:
    assert (*FILES, *OWN_DATASETS) == DATASETS


def test_penn_treebank_has_its_published_sizes(data_root: Path) -> None:
    corpus = load("ptb", data_root)
    assert isinstance(corpus, WordCorpus)
    assert [len(corpus.splits[split]) for split in ("train", "valid", "test")] == [929_589, 73_760, 82_430]
    assert corpus.num_outputs == len(set(corpus.vocabulary)) == 10_000
    assert all(text.dtype == torch.int64 for text in corpus.splits.values())
    assert corpus.unit == "nats per token"
    first_line = " ".join(corpus.vocabulary[token] for token in corpus.splits["valid"][:9])
    assert first_line == "consumers may want to move their telephones a little"


def test_penn_treebank_in_the_papers_lanes(data_root: Path) -> None:
    corpus = load("ptb", data_root)
    assert TrainingSplit(corpus, 20).lanes([(0, 1)]).inputs.shape == (1, 929_589 // 20 - 1, 20)
    assert eval_lanes(corpus, "valid", 20).predicted == 73_760 - 20
    assert eval_lanes(corpus, "test", 20).predicted == 82_430 - 20


@pytest.mark.parametrize("name", TIME_STEPS)
def test_music_has_its_published_time_steps(name: str, data_root: Path) -> None:
    corpus = load(name, data_root)
    assert isinstance(corpus, MusicCorpus)
    steps = tuple(sum(map(len, corpus.splits[split])) for split in ("train", "valid", "test"))
    assert steps == TIME_STEPS[name]
    assert {tune.shape[1] for tunes in corpus.splits.values() for tune in tunes} == {corpus.num_outputs} == {88}
    assert corpus.unit == "nats per time step"
    assert [eval_lanes(corpus, split, 20).predicted for split in corpus.splits] == list(steps)
    assert TrainingSplit(corpus, 20).lanes([(0, 1)]).inputs.shape[1] == steps[0] // 20


def test_nottingham_has_its_published_tunes(data_root: Path) -> None:
    assert [len(tunes) for tunes in load("nottingham", data_root).splits.values()] == [694, 173, 170]


def test_pydoc_needs_no_file_and_its_splits_resemble_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRUCLIP_DATA", raising=False)
    corpus = load("pydoc", download=False)
    assert isinstance(corpus, WordCorpus)
    train, valid, test = (corpus.splits[split] for split in ("train", "valid", "test"))
    total = len(train) + len(valid) + len(test)
    assert 90_000 < total < 150_000
    assert 0.09 < len(valid) / total < 0.11
    assert 0.09 < len(test) / total < 0.11
    assert {"<eos>", "<unk>", "the"} <= set(corpus.vocabulary)
    assert corpus.num_outputs <= 10_000
    assert sorted(train.unique().tolist()) == list(range(corpus.num_outputs))
    # A word of the validation text is rarely one that the training text lacks or has but once.
    unknown = corpus.vocabulary.index("<unk>")
    assert (valid == unknown).double().mean() < 0.06


def test_word_datasets_are_word_corpora(data_root: Path) -> None:
    assert {*(name for name in FILES if isinstance(load(name, data_root), WordCorpus)), "text"} == set(WORD_DATASETS)


# -- words --------------------------------------------------------------------------------------------


def texts(train: str = "a b <unk>\n", valid: str = "a\n", test: str = "b\n") -> dict[str, bytes]:
    return {"train": train.encode(), "valid": valid.encode(), "test": test.encode()}


def test_words_are_numbered_by_frequency_then_alphabet_of_the_training_text_alone() -> None:
    corpus = read_words("made", "", texts(" b a  b \n\n<unk> a c b\n", valid="z z z a\n", test="c"))
    assert corpus.vocabulary == ("<eos>", "b", "a", "<unk>", "c")
    assert corpus.splits["train"].tolist() == [1, 2, 1, 0, 0, 3, 2, 4, 1, 0]
    assert corpus.splits["valid"].tolist() == [3, 3, 3, 2, 0]
    assert corpus.splits["test"].tolist() == [4, 0]


def test_a_strange_word_is_refused_where_no_unk_can_stand_for_it() -> None:
    with pytest.raises(DataError, match=r"^made: the test split has 'zebra'.*no <unk>"):
        read_words("made", "", texts("a b\n", test="a zebra\n"))
    assert read_words("made", "", texts("a b\n")).vocabulary == ("<eos>", "a", "b")


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_an_empty_text_is_refused(split: str) -> None:
    with pytest.raises(DataError, match=f"^made: the {split} split is empty"):
        read_words("made", "", texts() | {split: b""})


def test_a_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(DataError, match=r"^made: the valid split is not UTF-8"):
        read_words("made", "", texts() | {"valid": b"caf\xe9\n"})


# -- music --------------------------------------------------------------------------------------------


def cells(*tunes: np.ndarray) -> np.ndarray:
    array = np.empty((1, len(tunes)), dtype=object)
    for index, tune in enumerate(tunes):
        array[0, index] = tune
    return array


def mat(**changes: np.ndarray | None) -> bytes:
    """A small piano roll file, with cells replaced, or left out where None."""
    arrays = dict.fromkeys(("traindata", "validdata", "testdata"), cells(np.eye(3, 88), np.eye(5, 88)))
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {name: cell for name, cell in (arrays | changes).items() if cell is not None})
    return buffer.getvalue()


def test_piano_rolls_are_read_as_bytes_whatever_their_type() -> None:
    corpus = read_music("made", "", mat(testdata=cells(np.eye(2, 88, dtype=np.uint8))))
    assert [tuple(tune.shape) for tune in corpus.splits["train"]] == [(3, 88), (5, 88)]
    assert torch.equal(corpus.splits["valid"][1], torch.eye(5, 88, dtype=torch.uint8))
    assert torch.equal(corpus.splits["test"][0], torch.eye(2, 88, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validdata": None}, r"no cell array 'validdata'; .* traindata, validdata, testdata"),
        ({"traindata": np.eye(4, 88)}, "no cell array 'traindata'"),
        ({"testdata": cells()}, r"the test split \(testdata\) is empty"),
        ({"validdata": cells(np.eye(3, 88), np.zeros((0, 88)))}, "tune 1 of validdata has no time steps"),
        ({"validdata": cells(np.eye(3, 93))}, "tune 0 of validdata is 93 wide; .* x 88"),
        ({"traindata": cells(2 * np.eye(1, 88))}, "tune 0 of traindata holds the value 2;"),
        ({"traindata": cells(-np.eye(3, 88, dtype=np.int8))}, "tune 0 of traindata holds the value -1;"),
        ({"traindata": cells(np.full((3, 88), 0.5))}, r"tune 0 of traindata holds the value 0\.5;"),
        ({"traindata": cells(np.full((3, 88), np.nan))}, "tune 0 of traindata holds the value nan;"),
        ({"traindata": cells(np.array("la la"))}, "tune 0 of traindata is not a matrix of numbers"),
    ],
)
def test_a_file_that_is_no_piano_roll_is_refused(changes: dict[str, np.ndarray | None], message: str) -> None:
    with pytest.raises(DataError, match=f"^made: {message}"):
        read_music("made", "", mat(**changes))


@pytest.mark.parametrize("content", [b"", b"no MATLAB file at all " * 20, mat()[:-200]])
def test_a_file_that_matlab_did_not_write_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^made: not a MATLAB file that can be read"):
        read_music("made", "", content)


@pytest.mark.parametrize("content", [b"", b"\0", b"MATLAB", b"MATLAB 5.0 MAT-file" + b"\0" * 120])
def test_a_few_bytes_are_no_piano_rolls(content: bytes) -> None:
    with pytest.raises(DataError, match=r"not a MATLAB file|no cell array"):
        read_music("short", "sum", content)


def test_a_byte_order_mark_is_no_part_of_the_first_word() -> None:
    corpus = read_words("marked", "sum", dict.fromkeys(("train", "valid", "test"), "\ufeffone two\r\n".encode()))
    assert corpus.vocabulary == ("<eos>", "one", "two")


@pytest.mark.parametrize(("text", "named"), [(b"a\0b\n", "NUL byte"), (b"\n" * 1000, "no words"), (b"\xff\n", "UTF-8")])
def test_what_is_no_text_is_refused(text: bytes, named: str) -> None:
    with pytest.raises(DataError, match=named):
        read_words("odd", "sum", {"train": b"a\n", "valid": text, "test": b"a\n"})
