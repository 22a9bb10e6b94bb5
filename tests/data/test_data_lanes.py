"""Lanes: each target once in evaluation, one stream a lane in training, states kept within a tune only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gruclip.data import Lanes, MusicCorpus, TrainingSplit, WordCorpus, check_window, eval_lanes
from gruclip.errors import ConfigError

BITS = 2 ** torch.arange(20)


def train_lanes(corpus: WordCorpus | MusicCorpus, batch_size: int, seed: int, epoch: int) -> Lanes:
    """Of one run, without the leading axis."""
    stacked = TrainingSplit(corpus, batch_size).lanes([(seed, epoch)])
    return Lanes(*(None if tensor is None else tensor[0] for tensor in vars(stacked).values()))  # type: ignore[arg-type]


def text_of(length: int) -> WordCorpus:
    """Token t is the t-th word of the text, so a target tells where it comes from."""
    text = torch.arange(length)
    return WordCorpus("text", "", dict.fromkeys(("train", "valid", "test"), text), tuple(map(str, range(length))))


def tunes_of(lengths: list[int]) -> MusicCorpus:
    """Frame t of tune i shows the number 1000 (i + 1) + t in binary, so a frame tells where it comes from."""
    tunes = []
    for index, length in enumerate(lengths):
        numbers = 1000 * (index + 1) + torch.arange(length)
        frames = torch.zeros(length, 88, dtype=torch.uint8)
        frames[:, :20] = (numbers[:, None] & BITS) > 0
        tunes.append(frames)
    return MusicCorpus("tunes", "", dict.fromkeys(("train", "valid", "test"), tunes))


def numbers(frames: Tensor) -> Tensor:
    return frames[..., :20].long() @ BITS


def frames_of(lengths: list[int]) -> list[int]:
    return [1000 * (index + 1) + step for index, length in enumerate(lengths) for step in range(length)]


def counted(lanes: Lanes) -> Tensor:
    return torch.ones(lanes.targets.shape[:2], dtype=torch.bool) if lanes.weight is None else lanes.weight == 1


texts = st.integers(1, 20).flatmap(lambda batch: st.tuples(st.just(batch), st.integers(2 * batch, 300)))
tune_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)


# -- words --------------------------------------------------------------------------------------------


def test_eleven_words_in_two_training_lanes() -> None:
    lanes = train_lanes(text_of(11), 2, seed=0, epoch=1)
    assert lanes.inputs.T.tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert lanes.targets.T.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert lanes.keep is None
    assert lanes.weight is None
    assert (len(lanes), lanes.predicted) == (4, 8)


def test_eleven_words_in_two_evaluation_lanes_with_the_remainder_in_the_last() -> None:
    lanes = eval_lanes(text_of(11), "test", 2)
    assert lanes.inputs.T.tolist() == [[0, 1, 2, 3, 0], [5, 6, 7, 8, 9]]
    assert lanes.targets.T.tolist() == [[1, 2, 3, 4, 0], [6, 7, 8, 9, 10]]
    assert lanes.weight is not None
    assert lanes.weight.dtype == torch.float32
    assert lanes.weight.T.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert lanes.predicted == 9


@given(texts)
def test_training_lanes_of_words_are_streams_of_the_text(case: tuple[int, int]) -> None:
    batch, length = case
    lanes = train_lanes(text_of(length), batch, seed=3, epoch=2)
    size = length // batch
    assert lanes.inputs.shape == (size - 1, batch)
    assert torch.equal(lanes.targets, lanes.inputs + 1)
    assert torch.equal(lanes.inputs, torch.arange(size - 1)[:, None] + size * torch.arange(batch))


@given(texts)
def test_evaluation_predicts_each_word_but_a_lanes_first_once(case: tuple[int, int]) -> None:
    batch, length = case
    lanes = eval_lanes(text_of(length), "valid", batch)
    counts = counted(lanes)
    assert torch.equal(lanes.targets[counts], lanes.inputs[counts] + 1)
    firsts = {lane * (length // batch) for lane in range(batch)}
    assert sorted(lanes.targets[counts].tolist()) == sorted(set(range(length)) - firsts)
    assert lanes.predicted == length - batch == int(counts.sum())


# -- music --------------------------------------------------------------------------------------------


@given(tune_lengths, st.integers(1, 8), st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_training_lanes_of_music_are_whole_tunes_in_some_order(
    lengths: list[int], batch: int, seed: int, epoch: int
) -> None:
    lanes = train_lanes(tunes_of(lengths), batch, seed, epoch)
    steps = sum(lengths) // batch
    assert lanes.inputs.shape == lanes.targets.shape == (steps, batch, 88)
    assert lanes.weight is None
    assert lanes.keep is not None
    assert lanes.predicted == steps * batch
    stream = numbers(lanes.targets).T.flatten().tolist()
    begun = [number // 1000 - 1 for number in stream if number % 1000 == 0]
    assert len(set(begun)) == len(begun)
    joined = [1000 * (tune + 1) + step for tune in begun for step in range(lengths[tune])]
    assert stream == joined[: len(stream)]
    before = [number - 1 if number % 1000 else 0 for number in stream]
    assert numbers(lanes.inputs).T.flatten().tolist() == before
    at_lane_start = [place % steps == 0 for place in range(len(stream))] if steps else []
    resets = [number % 1000 == 0 or start for number, start in zip(stream, at_lane_start, strict=True)]
    assert (~lanes.keep).T.flatten().tolist() == resets


@given(tune_lengths)
def test_evaluation_predicts_each_frame_once_from_the_frame_before(lengths: list[int]) -> None:
    lanes = eval_lanes(tunes_of(lengths), "valid", 20)
    assert lanes.keep is not None
    counts = counted(lanes)
    targets, inputs = numbers(lanes.targets), numbers(lanes.inputs)
    assert sorted(targets[counts].tolist()) == frames_of(lengths)
    starts = counts & (targets % 1000 == 0)
    assert torch.equal(~lanes.keep, starts)
    assert (inputs[starts] == 0).all()
    assert torch.equal(inputs[counts & ~starts], targets[counts & ~starts] - 1)
    # A tune stays in its lane: where the state is kept, the input is the target of the step before.
    kept = (lanes.keep & counts)[1:]
    assert torch.equal(inputs[1:][kept], targets[:-1][kept])
    assert lanes.predicted == sum(lengths)


def test_evaluation_pads_the_shorter_lanes_at_their_end() -> None:
    lanes = eval_lanes(tunes_of([5, 3, 4]), "valid", 20)
    assert numbers(lanes.targets).T.tolist() == [
        [1000, 1001, 1002, 1003, 1004, 0, 0],
        [3000, 3001, 3002, 3003, 2000, 2001, 2002],
    ]
    assert lanes.weight is not None
    assert lanes.weight.T.tolist() == [[1, 1, 1, 1, 1, 0, 0], [1] * 7]


def test_a_lane_that_starts_within_a_tune_has_a_zero_state_and_the_frame_before() -> None:
    lanes = train_lanes(tunes_of([6]), 2, seed=0, epoch=1)
    assert numbers(lanes.inputs).T.tolist() == [[0, 1000, 1001], [1002, 1003, 1004]]
    assert lanes.keep is not None
    assert lanes.keep.T.tolist() == [[False, True, True], [False, True, True]]


def test_tunes_are_shuffled_by_seed_and_epoch() -> None:
    corpus = tunes_of([7] * 30)
    first = train_lanes(corpus, 2, seed=1, epoch=1)
    assert torch.equal(train_lanes(corpus, 2, seed=1, epoch=1).targets, first.targets)
    assert not torch.equal(train_lanes(corpus, 2, seed=1, epoch=2).targets, first.targets)
    assert not torch.equal(train_lanes(corpus, 2, seed=2, epoch=1).targets, first.targets)


def test_the_order_of_tunes_is_that_of_the_runs_that_are_kept() -> None:
    lanes = train_lanes(tunes_of([1] * 8), 1, seed=3, epoch=1)
    assert (numbers(lanes.targets) // 1000).flatten().tolist() == [3, 2, 5, 1, 6, 8, 7, 4]


# -- windows ------------------------------------------------------------------------------------------


@given(tune_lengths, st.integers(1, 50))
def test_windows_are_views_that_together_are_the_lanes(lengths: list[int], length: int) -> None:
    lanes = eval_lanes(tunes_of(lengths), "valid", 20)
    windows = [lanes.window(start, length) for start in range(0, len(lanes), length)]
    assert torch.equal(torch.cat([window.inputs for window in windows]), lanes.inputs)
    assert torch.equal(torch.cat([window.targets for window in windows]), lanes.targets)
    assert torch.equal(torch.cat([counted(window) for window in windows]), counted(lanes))
    assert sum(window.predicted for window in windows) == lanes.predicted
    assert {len(window) for window in windows[:-1]} <= {length}
    assert windows[0].inputs.data_ptr() == lanes.inputs.data_ptr()


@pytest.mark.parametrize(
    ("batch_size", "bptt", "message"),
    [
        (20, 100, r"trainer.bptt=100: longer than a lane of 4 steps \(trainer.batch_size=20\); take .* 4 at most"),
        (51, 1, "trainer.batch_size=51: text has data for 50 lanes at most"),
    ],
)
def test_a_window_or_batch_larger_than_the_data_is_refused(batch_size: int, bptt: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_window(text_of(100), batch_size, bptt)


def test_a_window_as_long_as_a_lane_is_taken() -> None:
    check_window(text_of(100), 20, 4)
    check_window(tunes_of([10, 30]), 20, 2)
    with pytest.raises(ConfigError, match=r"trainer\.bptt=3: longer than a lane of 2 steps"):
        check_window(tunes_of([10, 30]), 20, 3)
    with pytest.raises(ConfigError, match=r"trainer\.batch_size=41: tunes has data for 40 lanes"):
        check_window(tunes_of([10, 30]), 41, 1)


def test_the_lanes_of_several_runs_are_those_of_each() -> None:
    corpus, runs = tunes_of([5, 1, 9, 3, 7]), [(0, 1), (1, 1), (0, 2)]
    stacked = TrainingSplit(corpus, 3).lanes(runs)
    for index, (seed, epoch) in enumerate(runs):
        alone = train_lanes(corpus, 3, seed, epoch)
        for name in ("inputs", "targets", "keep"):
            assert torch.equal(getattr(stacked, name)[index], getattr(alone, name))
