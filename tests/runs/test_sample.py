"""Samples of trained runs: words of the vocabulary, notes of the keyboard, the same for the same seed."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from gruclip.cli import main
from gruclip.config import DatasetConfig, ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.data import load
from gruclip.data.midi import read_midi
from gruclip.errors import ConfigError
from gruclip.model.sampling import continued
from gruclip.model.stacked import nll, zero_states
from gruclip.runs.sample import sample
from gruclip.runs.trained import evaluate_run, read_trained
from gruclip.training.runner import train


def run(path: Path, root: Path, dataset: DatasetConfig | None = None) -> RunConfig:
    return RunConfig(
        dataset=dataset or DatasetConfig("jsb_chorales", str(root)),
        model=ModelConfig(hidden_size=16),
        optimizer=OptimizerConfig("spectral_clipping", lr=0.1, delta=0.2),
        trainer=TrainerConfig(max_epochs=None, max_steps=20, bptt=10),
        output_dir=str(path),
        device="cpu",
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a text of its own, of some hundred words."""
    path = tmp_path_factory.mktemp("text")
    (path / "corpus").mkdir()
    for split in ("train", "valid", "test"):
        lines = [f"the {colour} cat sees the {colour} dog" for colour in ("red", "green", "blue", "black")]
        (path / "corpus" / f"{split}.txt").write_text("\n".join(lines * 12) + "\n")
    (result,) = train([run(path, path, DatasetConfig("text", str(path / "corpus")))], quiet=True)
    return result.folder


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    (result,) = train([run(tmp_path_factory.mktemp("music"), data_root)], quiet=True)
    return result.folder


def test_a_text_run_draws_words_of_its_vocabulary(text: Path) -> None:
    drawn = sample(text, length=50, seed=3)
    assert drawn.text is not None
    assert set(drawn.text.split()) <= {"the", "red", "green", "blue", "black", "cat", "sees", "dog", "<unk>"}
    assert len(drawn.text.split()) + drawn.text.count("\n") == 50


def test_the_same_seed_draws_the_same_and_another_another(text: Path, music: Path) -> None:
    assert sample(text, seed=1) == sample(text, seed=1)
    assert sample(text, seed=1) != sample(text, seed=2)
    one, other = (sample(music, seed=5).roll for _ in range(2))
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)


def test_a_prompt_stands_first(text: Path, music: Path, data_root: Path) -> None:
    drawn = sample(text, length=3, prompt="the red")
    assert drawn.text is not None
    assert drawn.text.startswith("the red")
    tune = load("jsb_chorales", data_root).splits["test"][2]
    drawn = sample(music, length=8, prompt="2:16")
    assert drawn.roll is not None
    assert torch.equal(drawn.roll[:16], tune[:16])
    assert len(drawn.roll) == 24


def test_at_a_low_temperature_the_most_probable_token_is_drawn_step_after_step(text: Path) -> None:
    """The model's own state is carried: the tokens are those that evaluation finds most probable after each prefix."""
    config, corpus, parameters = read_trained(text)
    tokens = continued(parameters, config.model, torch.tensor([0]), 6, 0.01, seed=0).tolist()
    for length in range(1, 7):
        prefix = torch.tensor(tokens[:length])
        losses = []
        for candidate in range(corpus.num_outputs):
            from gruclip.data import Lanes

            targets = torch.cat([prefix[1:], torch.tensor([candidate])])
            window = Lanes(prefix.view(1, -1, 1), targets.view(1, -1, 1), None, None)
            states = zero_states(config.model, 1, 1, parameters["output"])
            losses.append(nll(parameters, config.model, window, states)[0].item())
        assert tokens[length] == min(range(len(losses)), key=losses.__getitem__)


def test_at_a_low_temperature_the_notes_drawn_are_those_more_probable_than_not(music: Path) -> None:
    config, _, parameters = read_trained(music)
    # After nothing the state is zero, and the bias alone speaks.
    probable = torch.arange(88) % 3 == 0
    parameters = {**parameters, "output_bias": torch.where(probable, 1.0, -1.0).unsqueeze(0)}
    nothing = torch.zeros(0, 88, dtype=torch.uint8)
    cold, hot = (continued(parameters, config.model, nothing, 1, temperature, seed=0) for temperature in (0.01, 100.0))
    assert torch.equal(cold[0], probable.to(torch.uint8))
    assert not torch.equal(hot[0], cold[0])


def test_sample_writes_a_tune_and_its_picture(music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tune.mid"
    assert main(["sample", str(music), "--length", "64", "--prompt", "0:8", "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(out), str(out.with_suffix(".png"))]
    roll, drawn = read_midi("tune", out.read_bytes(), 2), sample(music, length=64, prompt="0:8").roll
    assert drawn is not None
    assert torch.equal(roll, drawn[: len(roll)])
    assert not drawn[len(roll) :].any()


def test_a_disk_that_is_full_leaves_the_tune_and_the_picture_that_were_there(
    music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", str(music), "--out", str(tmp_path / "tune.mid")]
    assert main(command) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for room in (10, min(map(len, before.values())) + 10):  # for neither, for the tune alone
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            assert main(command) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--length", "0"], "--length 0: should be a whole number from 1 to 100,000"),
        (["--temperature", "0"], "--temperature 0: should be a number from 0.01 to 100"),
        (["--temperature", "nan"], "--temperature nan: should be"),
        (["--seed", "-1"], "--seed -1: should be"),
        (["--prompt", "9999:3"], "--prompt 9999:3: should be TUNE or TUNE:STEPS"),
        (["--prompt", "0:0"], "--prompt 0:0: should be TUNE or TUNE:STEPS"),
        (["--prompt", "0:99999"], "--prompt 0:99999: tune 0 has "),
        (["--out", "a.wav"], "--out a.wav: this run's samples go into a .mid file"),
        (["--out", "nowhere/a.mid"], "nowhere/a.mid: cannot be written (No such file or directory)"),
    ],
)
def test_a_sample_that_cannot_be_is_refused_in_one_line(
    arguments: list[str], complaint: str, music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(music), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert not list(tmp_path.iterdir())


def test_a_run_on_a_text_that_was_altered_since_is_refused(text: Path, tmp_path: Path) -> None:
    config, _, _ = read_trained(text)
    path = Path(config.dataset.root or "") / "test.txt"
    before = path.read_text()
    path.write_text(before + "the cat\n")
    try:
        for refused in (lambda: sample(text), lambda: evaluate_run(text, "test")):
            with pytest.raises(Exception, match="was trained on other data"):
                refused()
        with pytest.raises(Exception, match="belongs to another configuration or other data"):
            train([config], quiet=True)
    finally:
        path.write_text(before)
    assert train([config], quiet=True)[0].skipped


def test_an_empty_prompt_is_told(text: Path) -> None:
    with pytest.raises(ConfigError, match="nothing in it"):
        sample(text, prompt=" ")
