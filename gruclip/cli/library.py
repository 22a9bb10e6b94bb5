"""What the command line does, for Python: runs by the words that one would type, and their training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from gruclip.cli.explain import explain
from gruclip.cli.training import planned_runs, usual_runs
from gruclip.config import RunConfig
from gruclip.errors import UserError
from gruclip.training import runner
from gruclip.training.runner import RunResult
from hydra_plugins.gruclip.settings import check_typed


def compose(*overrides: str) -> list[RunConfig]:
    """The runs that ``gruclip train -m`` would train with these overrides, each once; nothing is read or written.

    Raises `UserError` for a setting, a group or a value that cannot be.

    >>> runs = compose("+experiment=ptb", "optimizer.delta=0.2,0.5", "trainer.budget=short")
    >>> [(run.model.hidden_size, run.optimizer.delta, run.max_epochs) for run in runs]
    [(650, 0.2, 10), (650, 0.5, 10)]
    """
    for override in overrides:
        if not isinstance(override, str):
            raise UserError(f"{override!r:.50}: should be a word such as 'seed=0,1'")
    try:
        runs = planned_runs(overrides)
        check_typed(runs, overrides)
        return runs
    except Exception as error:
        message = None if isinstance(error, UserError) else explain(error)
        if message is None:
            raise
        raise UserError(message) from error


def train(
    runs: Iterable[RunConfig],
    *,
    stack: bool = False,
    stack_size: int | None = None,
    quiet: bool = False,
    ended: Callable[[Path], object] | None = None,
) -> list[RunResult]:
    """Train every run that is not finished yet, as ``gruclip train`` would, into the folders that it would take; the
    results in the order of `runs`.

    stack: train runs side by side: on a GPU those of one shape as one program, on a CPU in a process for each core (a
    script that does this needs ``if __name__ == "__main__":`` around it, for each process imports it again);
    `stack_size` of them at a time (None: as many as the memory takes), and others as soon as some have ended.
    quiet: show nothing. ended: called with the folder of each run that is trained here, once its summary is written.
    Raises `UserError` before anything is written when a setting, a corpus or a folder is wrong or a stack does not
    fit into the memory, and `Interrupted`, a KeyboardInterrupt, after a checkpoint when a signal asks for it. Runs that
    other processes are training are waited for. The losses of a summary are in nats per token or per time step.

    >>> run = RunConfig.from_dict({"model": {"hidden_size": 8}, "trainer": {"max_steps": 2}})
    >>> [result] = train([run], quiet=True)
    >>> result.status, result.skipped, str(result.folder)
    ('success', False, 'outputs/demo/spectral_clipping,delta=0.2,lr=1,seed=0,hidden_size=8,max_steps=2')
    >>> train([run], quiet=True)[0].skipped
    True
    """
    runs = list(runs) if isinstance(runs, Iterable) else [runs]
    for run in runs:
        if not isinstance(run, RunConfig):
            raise UserError(f"runs: {run!r:.50}: should be a gruclip.RunConfig")
    return runner.train(runs, defaults=usual_runs(runs), stack=stack, stack_size=stack_size, quiet=quiet, ended=ended)
