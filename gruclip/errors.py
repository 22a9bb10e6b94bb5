"""Errors that are the user's to mend: the command line prints them as one line and exits with 2."""


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, the value, and the remedy."""


class RefusedRun(UserError):
    """A run cannot be begun or continued as its folder is; others can."""


class ConfigError(UserError):
    """A setting has a value it cannot have."""


class MissingRuns(UserError):
    """There are no runs of which what was asked for could be made."""


class NoRuns(MissingRuns):
    """There are no runs at all."""


class DataError(UserError):
    """A corpus is missing, altered or not of the form it should have."""


class NonFiniteError(ValueError):
    """A matrix holds NaN or infinity where finite numbers are needed."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training, after a checkpoint; `signal` is its number, `then` what goes on how."""

    def __init__(self, signal: int, then: str = "the same command continues where it stopped") -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal, self.then = signal, then
