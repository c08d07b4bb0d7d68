"""The verbs that train as functions, `diffdistill.train`, `.distill` and `.align`: the same settings, the same runs.

    import diffdistill

    run = diffdistill.distill("fashion_mnist/dmd2", output_dir="runs/mine", student__steps=2)
    run.metrics["fid"], run.folder, run.model

Errors are those of `diffdistill.errors`, each a sentence. Importing this module loads no torch; a call does, once its
settings are checked.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffdistill import registry
from diffdistill.errors import ConfigError

if TYPE_CHECKING:
    from diffdistill.config import Resolved
    from diffdistill.training.run import Result

    Config = str | os.PathLike[str] | Resolved[Any]


def train(config: "Config", /, *, allow_code: bool = False, **settings: Any) -> "Result":
    """Train a teacher on images, as `diffdistill train` does; arguments, result and errors as of `distill`.

    Two steps on made-up images of a size that the recipe does not have:

    >>> import tempfile
    >>> import numpy as np
    >>> quick = {"max_train_steps": 2, "train_batch_size": 4, "sample_every": 0, "evaluation__at_end": False}
    >>> tiny = {"block_out_channels": [8, 8], "norm_num_groups": 4, "attention_head_dim": 8}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pixels, labels = np.zeros((16, 8, 8), np.uint8), np.arange(16) % 2
    ...     np.savez(f"{folder}/mine.npz", images=pixels, labels=labels)
    ...     settings = {"data__path": f"{folder}/mine.npz", "output_dir": f"{folder}/run", "network": tiny, **quick}
    ...     run = train("fashion_mnist/teacher", **settings)
    ...     run.model.image_shape, run.model.num_classes
    ((1, 8, 8), 2)
    """
    return _run("train", "diffdistill.config.schema:Train", config, allow_code, settings)


def distill(config: "Config", /, *, allow_code: bool = False, **settings: Any) -> "Result":
    """Distil a teacher into a one- or few-step student, as `diffdistill distill` does.

    config: a YAML file, the name of a shipped config such as "fashion_mnist/dmd2", or what `load_config` returned.
    settings: laid over it. A key of a section is written with two underscores, `student__steps=2`, or with its dots,
        `**{"student.steps": 2}`; a dict is merged into its section, `student={"steps": 2}`; None is null.
    allow_code: whether names of the form `FILE.py:NAME` may run the file, from here on, as with `--allow-code`.

    Returns the finished run: its folder, the figures of its last evaluation, and its model, read at first use. Raises
    ConfigError for settings that are not allowed, and the other errors of `diffdistill.errors`, such as Interrupted
    for Ctrl-C, after which `resume_from_checkpoint="latest"` goes on.

    One step of a recipe, on made-up images:

    >>> import tempfile
    >>> import numpy as np
    >>> quick = {"max_train_steps": 1, "train_batch_size": 2, "sample_every": 0, "evaluation__at_end": False}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pixels, labels = np.zeros((20, 28, 28), np.uint8), np.arange(20) % 10
    ...     np.savez(f"{folder}/mine.npz", images=pixels, labels=labels)
    ...     settings = {"data__path": f"{folder}/mine.npz", "output_dir": f"{folder}/run", **quick}
    ...     run = distill("fashion_mnist/dmd2", student__regression=None, **settings)
    ...     run.model.role, run.model.levels, sorted(path.name for path in run.model_folder.glob("*.json"))
    ('student', (2.5,), ['diffdistill.json', 'model_index.json'])
    >>> distill("fashion_mnist/dmd2", output_dir="runs/mine", student__stepz=2)
    Traceback (most recent call last):
    diffdistill.errors.Problems: override 'student.stepz=2': unknown key 'student.stepz' (did you mean ...?)
    """
    return _run("distill", "diffdistill.config.schema:Distill", config, allow_code, settings)


def align(config: "Config", /, *, allow_code: bool = False, **settings: Any) -> "Result":
    """Align a text-to-image pipeline with pairs, as `diffdistill align` does; arguments, result and errors as of
    `distill`.

    One step of MaPO on the bundled emoji and their pairs:

    >>> import tempfile
    >>> quick = {"max_train_steps": 1, "train_batch_size": 2, "sample_every": 0, "evaluation__at_end": False}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = align("emoji/mapo", output_dir=f"{folder}/run", data__limit=8, **quick)
    ...     type(run.model.network).__name__, run.model.image_shape
    ('UNet2DConditionModel', (8, 8, 8))
    """
    return _run("align", "diffdistill.config.align:Align", config, allow_code, settings)


def _run(verb: str, model: str, config: Any, allow_code: bool, settings: Mapping[str, Any]) -> "Result":
    if allow_code:
        registry.allow_code()
    resolved = _resolved(model, config, settings)
    run: Result = registry.named(f"diffdistill.training.run:{verb}")(resolved)
    return run


def _resolved(model: str, config: Any, settings: Mapping[str, Any]) -> "Resolved[Any]":
    from diffdistill.config import Resolved, load_config

    kind = registry.named(model)
    if isinstance(config, str | os.PathLike):
        return load_config(kind, os.fspath(config), overrides_of(settings))
    if not isinstance(config, Resolved) or not isinstance(config.config, kind):
        raise ConfigError(
            f"the config is a {type(getattr(config, 'config', config)).__name__}; give a YAML file, the name of a "
            f"shipped config, or what load_config({kind.__name__}, ...) returned"
        )
    if settings:
        raise ConfigError(
            f"{', '.join(settings)} cannot be laid over settings that are resolved already; give a file's name with "
            f"them, or give them to load_config"
        )
    return config


def overrides_of(settings: Mapping[str, Any]) -> list[str]:
    """`{"student__steps": 2}` as the command line has it, `["student.steps=2"]`; ConfigError for other objects."""
    from diffdistill.config.yaml import flow

    return [f"{key.replace('__', '.')}={flow(_plain(key, value))}" for key, value in settings.items()]


def _plain(key: str, value: Any) -> Any:
    """A value as YAML has it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(key, inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(key, inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # NumPy's floats are floats, too
    if value is not None:
        raise ConfigError(
            f"setting '{key}' is a {type(value).__name__}; give a number, a text, None, or lists and dicts of them"
        )
    return value
