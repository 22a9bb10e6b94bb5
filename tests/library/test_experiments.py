"""The paper's experiments from Python: the same runs in the same folders as from the command line."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime

import gruclip
from gruclip.cli import main
from gruclip.errors import UserError

TINY = ["model.hidden_size=4", "trainer.max_steps=1", "trainer.batch_size=2", "trainer.bptt=3"]


def test_a_composed_run_is_trained_into_the_folder_of_the_command_line(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["+experiment=jsb_chorales", f"dataset.root={data_root}", *TINY]
    assert main(["train", *typed, "seed=0"]) == 0
    folders = list((tmp_path / "outputs/jsb_chorales").iterdir())
    runs = gruclip.compose(*typed, "seed=0,1")
    assert [run.seed for run in runs] == [0, 1]
    results = gruclip.train(runs, quiet=True)
    assert [result.skipped for result in results] == [True, False]
    assert [(tmp_path / result.folder) for result in results][:1] == folders
    assert "num_layers" not in str(results[1].folder)
    frame = gruclip.read_runs("outputs", "jsb_chorales")
    assert sorted(frame["seed"]) == [0, 1]
    assert set(frame["status"]) == {"success"}


def test_an_experiment_of_ones_own_name_is_told_apart_from_the_defaults(tmp_path: Path) -> None:
    run = dataclasses.replace(gruclip.compose(*TINY)[0], experiment="mine", output_dir=str(tmp_path))
    (result,) = gruclip.train([run], quiet=True)
    assert result.folder.name == "spectral_clipping,delta=0.2,lr=1,seed=0,hidden_size=4,max_steps=1,bptt=3,batch_size=2"


def test_composing_leaves_the_hydra_of_the_caller_as_it_was() -> None:
    with hydra.initialize_config_module("gruclip.conf", version_base="1.3", job_name="mine"):
        mine = GlobalHydra.instance().hydra
        assert gruclip.compose("seed=3")[0].seed == 3
        assert GlobalHydra.instance().hydra is mine
        assert JobRuntime.instance().get("name") == "mine"


def test_what_cannot_be_composed_is_told_in_one_line() -> None:
    for overrides in (["+experiment=nothing"], ["optimizer.lr=fast"], ["optimizer.delta=7"]):
        with pytest.raises(UserError, match=overrides[0].lstrip("+").partition("=")[0]):
            gruclip.compose(*overrides)


@pytest.mark.parametrize("runs", [[{"seed": 0}], 7, ["+experiment=ptb"]])
def test_what_is_no_list_of_runs_is_refused_in_one_line(runs: Any) -> None:
    with pytest.raises(UserError, match=r"should be a gruclip\.RunConfig"):
        gruclip.train(runs)


def test_runs_come_from_a_generator_and_alone(tmp_path: Path) -> None:
    composed = gruclip.compose(*TINY, f"output_dir={tmp_path}", "seed=0,1")
    assert len(gruclip.train((run for run in composed), quiet=True)) == 2
    (again,) = gruclip.train(composed[0], quiet=True)
    assert again.skipped


def test_what_the_command_line_trains_once_or_refuses_is_composed_so() -> None:
    assert len(gruclip.compose("optimizer.lr=1,1.0")) == 1
    with pytest.raises(UserError, match=r"schedule\.factor=2.*does nothing"):
        gruclip.compose("schedule.factor=2")
    with pytest.raises(UserError, match="should be a word"):
        gruclip.compose(["seed=0"])  # type: ignore[arg-type]


def test_a_spectral_state_is_read_from_a_checkpoint_without_trusting_it() -> None:
    state, weight = gruclip.SpectralState(), torch.randn(300, 300) / 10
    gruclip.clip_singular_values_(weight, 1.5, state=state)
    file = io.BytesIO()
    torch.save({"state": {0: {"spectral": state}}}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["state"][0]["spectral"].state_dict()
    assert loaded.keys() == state.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.state_dict().items())
