"""Corpora of the user's own: texts, MIDI files, `.mat` files; read as they are, and tied to a run by their sum."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import mido
import numpy as np
import pytest
import scipy.io
import torch

from gruclip.cli import main
from gruclip.config import RunConfig
from gruclip.data import MusicCorpus, WordCorpus, load
from gruclip.data.convert import convert
from gruclip.data.midi import midi_of, read_midi
from gruclip.data.words import EOS, UNK
from gruclip.errors import ConfigError, DataError


def texts(folder: Path, **changed: str) -> Path:
    content = {"train": "a b a\nb c\na d\n", "valid": "b a e\n", "test": "a\n"} | changed
    folder.mkdir(exist_ok=True)
    for split, text in content.items():
        (folder / f"{split}.txt").write_text(text)
    return folder


def words_of(corpus: WordCorpus, split: str) -> list[str]:
    return [corpus.vocabulary[token] for token in corpus.splits[split].tolist()]


def test_words_met_once_and_those_of_the_other_splits_are_unknown(tmp_path: Path) -> None:
    corpus = load("text", texts(tmp_path))
    assert isinstance(corpus, WordCorpus)
    assert words_of(corpus, "train") == ["a", "b", "a", EOS, "b", UNK, EOS, "a", UNK, EOS]
    assert words_of(corpus, "valid") == ["b", "a", UNK, EOS]
    assert set(corpus.vocabulary) == {"a", "b", UNK, EOS}


def test_the_vocabulary_holds_the_most_frequent(tmp_path: Path) -> None:
    corpus = load("text", texts(tmp_path), vocabulary=3)
    assert set(corpus.vocabulary) == {"a", EOS, UNK}


def test_a_vocabulary_always_has_an_unknown_word(tmp_path: Path) -> None:
    corpus = load("text", texts(tmp_path, train="a a\n", valid="b\n"))
    assert words_of(corpus, "valid") == [UNK, EOS]


def test_characters_are_tokens_and_a_line_ends_with_one(tmp_path: Path) -> None:
    corpus = load("text", texts(tmp_path, train="aab b\nb a\n"), unit="character")
    assert words_of(corpus, "train") == ["a", "a", "b", " ", "b", EOS, "b", " ", "a", EOS]
    assert corpus.token_unit == "character"  # by which samples are written


def test_the_sum_is_of_what_was_read(tmp_path: Path) -> None:
    first = load("text", texts(tmp_path / "one")).checksum
    assert load("text", texts(tmp_path / "two")).checksum == first
    assert load("text", texts(tmp_path / "one", test="b\n")).checksum != first


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"valid": " \n"}, "valid split is empty"),
        ({"train": "a\0b\n"}, "NUL byte"),
        ({"train": "a b c\n"}, "no word is met twice"),
    ],
)
def test_a_text_that_is_none_is_refused(tmp_path: Path, changed: dict[str, str], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load("text", texts(tmp_path, **changed))


@pytest.mark.parametrize("name", ["text", "piano_roll"])
def test_a_corpus_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.root=.*nowhere: cannot be read \(No such file"):
        load(name, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"(train\.txt|train): cannot be"):
        load(name, tmp_path)
    with pytest.raises(ConfigError, match=r"dataset\.root=null"):
        RunConfig.from_dict({"dataset": {"name": name}})


def test_settings_of_own_corpora_are_theirs_alone() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.vocabulary=5: is for dataset=text, this is pydoc; leave it out"):
        RunConfig.from_dict({"dataset": {"vocabulary": 5}})
    own = RunConfig.from_dict({"dataset": {"name": "text", "root": "x", "unit": "character"}})
    assert own.identity_settings()["dataset.unit"] == "character"
    assert not {"dataset.unit", "dataset.steps_per_beat"} & RunConfig().identity_settings().keys()


@hypothesis.given(
    roll=st.lists(st.sets(st.integers(0, 87), max_size=6), min_size=1, max_size=40),
    steps=st.sampled_from([1, 2, 3, 4, 7]),
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_a_roll_written_as_midi_is_the_roll_that_is_read(roll: list[set[int]], steps: int) -> None:
    tune = torch.zeros(len(roll), 88, dtype=torch.uint8)
    for step, keys in enumerate(roll):
        tune[step, list(keys)] = 1
    content = midi_of(tune, steps)
    if not tune.any():
        with pytest.raises(DataError, match="no notes in it"):
            read_midi("tune", content, steps)
        return
    last = int(tune.any(1).nonzero().max()) + 1  # silence at the end is not written
    assert torch.equal(read_midi("tune", content, steps), tune[:last])


def midi(path: Path, *messages: object, ticks: int = 480) -> Path:
    file = mido.MidiFile(ticks_per_beat=ticks)
    file.tracks.append(mido.MidiTrack(messages))
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save(path)
    return path


def note(kind: str, number: int, time: int, **more: int) -> object:
    return mido.Message(kind, note=number, time=time, **more)


def test_drums_are_left_out_and_a_note_never_released_ends_with_the_file(tmp_path: Path) -> None:
    path = midi(
        tmp_path / "a.mid", note("note_on", 36, 0, channel=9), note("note_on", 60, 240), note("note_on", 62, 240),
        note("note_off", 62, 480),
    )  # fmt: skip
    roll = read_midi("a", path.read_bytes(), 2)
    assert roll.nonzero().tolist() == [[1, 39], [2, 39], [2, 41], [3, 39], [3, 41]]


def steps_of(path: Path, key: int = 60) -> list[int]:
    return read_midi("a", path.read_bytes(), 2)[:, key - 21].tolist()


def tracks(path: Path, *each: tuple[object, ...]) -> Path:
    file = mido.MidiFile(ticks_per_beat=480)
    file.tracks += [mido.MidiTrack(messages) for messages in each]
    file.save(path)
    return path


def test_half_steps_are_spread_evenly(tmp_path: Path) -> None:
    # Sixteen sixteenths of two steps a quarter: each lies on a half step.
    run = [note(kind, 40 + n, time) for n in range(16) for kind, time in (("note_on", 0), ("note_off", 120))]
    roll = read_midi("a", midi(tmp_path / "a.mid", *run).read_bytes(), 2)
    assert roll.sum(1).tolist() == [1, 2, 2, 2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize(
    ("ticks", "steps", "time", "first"), [(480, 2, 120, 1), (480, 2, 119, 0), (72, 7, 36, 4), (500, 15, 350, 11)]
)
def test_halfway_between_two_steps_a_note_begins_at_the_later(
    ticks: int, steps: int, time: int, first: int, tmp_path: Path
) -> None:
    path = midi(tmp_path / "a.mid", note("note_on", 60, time), note("note_off", 60, ticks), ticks=ticks)
    assert int(read_midi("a", path.read_bytes(), steps)[:, 60 - 21].nonzero()[0]) == first


LONG = (note("note_on", 60, 0), note("note_off", 60, 4 * 480))
SHORT = (note("note_on", 60, 0), note("note_off", 60, 480))
AFTER = (note("note_on", 60, 4 * 480), note("note_off", 60, 480))


@pytest.mark.parametrize("each", [(LONG, SHORT), (SHORT, LONG)])
def test_a_note_sounds_as_long_as_any_track_holds_it(each: tuple[tuple[object, ...], ...], tmp_path: Path) -> None:
    assert steps_of(tracks(tmp_path / "a.mid", *each)) == [1] * 8


@pytest.mark.parametrize("each", [(LONG, AFTER), (AFTER, LONG)])
def test_a_note_handed_from_track_to_track_goes_on(each: tuple[tuple[object, ...], ...], tmp_path: Path) -> None:
    assert steps_of(tracks(tmp_path / "a.mid", *each)) == [1] * 10


def test_a_note_struck_without_force_is_released(tmp_path: Path) -> None:
    path = midi(
        tmp_path / "a.mid", note("note_on", 60, 0), note("note_on", 60, 480, velocity=0), note("note_on", 62, 960)
    )
    assert steps_of(path) == [1] * 2 + [0] * 5


def test_two_channels_hold_a_note_each(tmp_path: Path) -> None:
    path = midi(
        tmp_path / "a.mid", note("note_on", 60, 0, channel=0), note("note_on", 60, 0, channel=1),
        note("note_off", 60, 480, channel=1), note("note_off", 60, 960, channel=0),
    )  # fmt: skip
    assert steps_of(path) == [1] * 6


def test_a_note_struck_again_as_it_is_released_goes_on_in_whatever_order(tmp_path: Path) -> None:
    first, again = note("note_on", 60, 0), [note("note_on", 60, 4 * 480), note("note_off", 60, 0)]
    late = [note("note_off", 60, 4 * 480), note("note_on", 60, 0)]
    for turn in (again, late):
        assert steps_of(midi(tmp_path / "a.mid", first, *turn, note("note_off", 60, 4 * 480))) == [1] * 16
    grace = midi(tmp_path / "a.mid", note("note_on", 60, 0), note("note_off", 60, 0), note("note_on", 62, 960))
    assert steps_of(grace)[:2] == [1, 0]  # of no length: one step


def test_a_text_is_cut_at_line_ends_alone(tmp_path: Path) -> None:
    text = "alpha beta\x0cgamma\u2028delta\x85 beta\r\nalpha delta\rbeta\n"
    folder = tmp_path / "text"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_bytes(2 * text.encode())
    for unit, count in (("word", 2 * (5 + 2 + 1 + 3)), ("character", 2 * (len(text) - 1))):
        assert load("text", str(folder), unit=unit).splits["train"].numel() == count


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([("note_on", 10, 0)], "note 10 is no key of a piano"),
        ([("note_on", 60, 0), ("note_off", 60, 2**28 - 1)], "time steps long, which no tune is"),
        ([], "no notes in it"),
    ],
)
def test_a_tune_that_is_none_is_refused(messages: list[tuple[str, int, int]], complaint: str, tmp_path: Path) -> None:
    path = midi(tmp_path / "a.mid", *(note(*message) for message in messages))
    with pytest.raises(DataError, match=complaint):
        read_midi("a", path.read_bytes(), 2)


def test_a_tune_timed_as_film_is_not_called_one_without_notes(tmp_path: Path) -> None:
    content = bytearray(midi(tmp_path / "a.mid", note("note_on", 60, 0), note("note_off", 60, 480)).read_bytes())
    content[12:14] = bytes([256 - 25, 40])  # SMPTE: 25 frames a second, 40 ticks a frame
    with pytest.raises(DataError, match="its times are not in beats"):
        read_midi("a", bytes(content), 2)


@hypothesis.given(content=st.binary(max_size=80), keep=st.integers(0, 120))
@hypothesis.settings(deadline=None, max_examples=150)
def test_bytes_that_are_no_midi_file_are_refused_in_one_line(
    content: bytes, keep: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = midi(tmp_path_factory.mktemp("midi") / "a.mid", note("note_on", 60, 0), note("note_off", 60, 240))
    for damaged in (content, path.read_bytes()[:keep] + content):
        try:
            read_midi("a", damaged, 2)
        except DataError as error:
            told = str(error)
        else:
            told = ""
        assert "\n" not in told


def test_a_folder_of_midi_files_is_a_corpus(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        midi(tmp_path / split / "b.MID", note("note_on", 60 + number, 0), note("note_off", 60 + number, 480))
        midi(tmp_path / split / "a.midi", note("note_on", 70, 0), note("note_off", 70, 240))
    corpus = load("piano_roll", tmp_path)
    assert isinstance(corpus, MusicCorpus)
    assert [tune.nonzero().tolist() for tune in corpus.splits["valid"]] == [[[0, 49]], [[0, 40], [1, 40]]]
    finer = load("piano_roll", tmp_path, steps_per_beat=4)
    assert len(finer.splits["valid"][1]) == 4
    (tmp_path / "test" / "a.midi").rename(tmp_path / "test" / "c.midi")
    assert load("piano_roll", tmp_path).checksum != corpus.checksum


@pytest.mark.parametrize("name", ["mine.mat", "MINE.MAT"])
def test_a_mat_file_of_ones_own_is_read_as_the_corpora_are(name: str, tmp_path: Path, data_root: Path) -> None:
    shutil.copy(data_root / "music/JSB_Chorales.mat", tmp_path / name)
    own, registered = load("piano_roll", tmp_path / name), load("jsb_chorales", data_root)
    for split, tunes in registered.splits.items():
        assert all(map(torch.equal, tunes, own.splits[split]))


def test_a_damaged_mat_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + b"\xff" * 64)
    with pytest.raises(DataError, match=r"mine\.mat"):
        load("piano_roll", path)
    scipy.io.savemat(path, {"traindata": np.zeros((2, 2))})
    with pytest.raises(DataError, match="no cell array 'traindata'"):
        load("piano_roll", path)


def test_a_reader_that_warns_refuses_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mine.mat"
    scipy.io.savemat(path, {"x": np.ones(2)})
    path.write_bytes(path.read_bytes() + path.read_bytes()[128:])  # the variable twice, which scipy warns of
    with pytest.raises(DataError, match=r"mine\.mat: no cell array 'traindata'"):
        load("piano_roll", path)


def test_a_reader_that_crashes_takes_nothing_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gruclip.data import isolated

    monkeypatch.setattr(isolated, "_CODE", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "a.mat").write_bytes(b"x")
    with pytest.raises(DataError, match="damaged \\(the reader ended with signal 11\\)"):
        load("piano_roll", tmp_path / "a.mat")


def test_other_files_are_refused_and_a_pickle_has_a_way(tmp_path: Path) -> None:
    for name, remedy in (("a.txt", "should be a .mat file"), ("a.pickle", "gruclip data convert")):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match=remedy):
            load("piano_roll", tmp_path / name)


def test_a_pickled_corpus_is_converted(tmp_path: Path) -> None:
    corpus = {split: [[[60, 64], [], [108]], [(21,)]] for split in ("train", "valid", "test")}
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(corpus, protocol=2))
    assert main(["data", "convert", str(tmp_path / "a.pickle"), str(tmp_path / "a.mat")]) == 0
    tunes = load("piano_roll", tmp_path / "a.mat").splits["valid"]
    assert [tune.nonzero().tolist() for tune in tunes] == [[[0, 39], [0, 43], [2, 87]], [[0, 0]]]


def test_a_corpus_converted_at_another_time_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pickle").write_bytes(pickle.dumps({split: [[[60]]] for split in ("train", "valid", "test")}))
    made = set()
    for moment in ("Mon Jan  1 00:00:00 2024", "Tue Jan  2 00:00:00 2024"):
        monkeypatch.setattr("time.asctime", lambda moment=moment: moment)
        made.add(convert(tmp_path / "a.pickle"))
    assert len(made) == 1


def test_a_disk_that_is_full_leaves_the_converted_corpus_that_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pickle").write_bytes(pickle.dumps({split: [[[60]]] for split in ("train", "valid", "test")}))
    command = ["data", "convert", str(tmp_path / "a.pickle"), str(tmp_path / "a.mat")]
    assert main(command) == 0
    before, limits = (tmp_path / "a.mat").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert main(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{tmp_path / 'a.mat'}: cannot be written (File too large)" in capsys.readouterr().err
    assert (tmp_path / "a.mat").read_bytes() == before


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def _nested(depth: int) -> bytes:
    """A pickled corpus with a note of so many lists in each other, more than `repr` can follow."""
    note, splits = b"]" * depth + b"a" * (depth - 1), (b"U\x05train", b"U\x05valid", b"U\x04test")
    return b"\x80\x02}(" + b"".join(split + b"]]]" + note + b"aaa" for split in splits) + b"u."


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (_nested(10**5), "step 0 has [[[[[[[...]]]]]]], which is no key of a piano"),
        (pickle.dumps({key: [[["la" * 999]]] for key in ("train", "valid", "test")}), "step 0 has 'lalalala"),
        (pickle.dumps(_Bomb()), "it names posix.system"),
        (b"no pickle", "not a pickled corpus"),
        (pickle.dumps([1]), "a dictionary of train, valid, test"),
        (pickle.dumps({key: [[[300]]] for key in ("train", "valid", "test")}), "step 0 has 300"),
        (pickle.dumps({key: [] for key in ("train", "valid", "test")}), "train split is no list of tunes"),
    ],
)
def test_no_pickle_runs_anything(
    content: bytes, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pickle").write_bytes(content)
    assert main(["data", "convert", "a.pickle", "a.mat"]) == 2
    told = capsys.readouterr().err
    assert complaint in told
    assert len(told) < 200
    assert [path.name for path in tmp_path.iterdir()] == ["a.pickle"]


def test_two_corpora_whose_folders_share_a_name_are_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for place, words in (("a", "a b a b\n"), ("b", "b b a c\n")):
        Path(place).mkdir()
        texts(Path(place, "corpus"), train=words * 40, valid=words * 40, test=words * 40)
    typed = ["dataset=text", "dataset.root=a/corpus,b/corpus", "trainer.max_steps=2", "trainer.batch_size=2"]
    assert main(["train", "-m", *typed, "trainer.bptt=3", "output_dir=o"]) == 2
    told = (
        "would be the folder of two runs, of dataset.root=a/corpus and of b/corpus; give one of them another output_dir"
    )
    assert told in capsys.readouterr().err
    assert not Path("o").exists()


def test_a_run_on_a_corpus_that_has_moved_is_evaluated_where_that_lies_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts(Path("corpus"), **dict.fromkeys(("train", "valid", "test"), "a b a b\n" * 40))
    typed = ["dataset=text", "dataset.root=corpus", "trainer.max_steps=2", "trainer.batch_size=2", "trainer.bptt=3"]
    assert main(["train", *typed, "output_dir=o"]) == 0
    (folder,) = tmp_path.glob("o/*/*")
    Path("corpus").rename("moved")
    capsys.readouterr()
    for command in (["eval", str(folder)], ["sample", str(folder), "--length", "3"]):
        assert main(command) == 2
        assert "--root says where the corpus lies now" in capsys.readouterr().err
        assert main([*command, "--root", "moved"]) == 0
        assert capsys.readouterr().out
        assert main([*command, "--root", "nowhere"]) == 2
        assert capsys.readouterr().err.startswith("gruclip: dataset.root=nowhere: ")


def test_a_converted_corpus_goes_where_there_is_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "convert", "a.pickle", str(tmp_path / "no" / "a.mat")]) == 2
    assert f"there is no folder {tmp_path / 'no'}); make it first" in capsys.readouterr().err
    assert main(["data", "convert", "a.pickle", "a.mat", "--root", "x"]) == 2
    assert capsys.readouterr().err == "gruclip: --root x: does nothing beside convert; leave it out\n"


def test_names_of_corpora_may_stand_behind_an_option(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--root", str(data_root), "jsb_chorales"], ["jsb_chorales", "--root", str(data_root)]):
        assert main(["data", "verify", *words]) == 0
        assert "jsb_chorales" in capsys.readouterr().out
    assert main(["data", "verify", "--root", str(data_root), "jsb_chorales", "--nope"]) == 2
    assert "--nope: no such option of gruclip data; see gruclip data --help" in capsys.readouterr().err
