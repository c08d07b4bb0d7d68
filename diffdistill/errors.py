"""Errors a user can cause: one sentence each, with the exit code the command line returns.

The sentence says what was given, what is allowed, and what to do.
"""


class DiffDistillError(Exception):
    """Base of all errors that are the user's to mend; anything else is a bug of ours."""

    exit_code = 1
    told = False  # by another process of the same run


class ConfigError(DiffDistillError):
    """A flag, key or value that is not allowed."""

    exit_code = 2


class Problems(ConfigError):
    """Several settings that are not allowed, a line each."""


class DataError(DiffDistillError):
    """Images, labels or prompts that are missing, unreadable or do not fit."""

    exit_code = 3


class CheckpointError(DiffDistillError):
    """A model folder or a checkpoint that is missing a file or is damaged."""

    exit_code = 4


class FeaturesMissing(CheckpointError):
    """Nothing was said of features, and those that fit the pictures are not on this machine."""


class NonFiniteError(DiffDistillError):
    """A loss or gradient that is NaN or infinite: training stopped before the update."""

    exit_code = 5


class DiskError(DiffDistillError):
    """Not enough room, or no permission to write."""

    exit_code = 6


class Preempted(DiffDistillError):
    """A signal asked the run to stop; the state was saved."""

    exit_code = 75


class Interrupted(DiffDistillError):
    """The user pressed Ctrl-C; the state was saved."""

    exit_code = 130
