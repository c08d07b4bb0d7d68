"""The pipeline of one encoder pass beside a model: a file in its folder, which stock diffusers reads if it is told."""

from pathlib import Path

from diffdistill.errors import ConfigError
from diffdistill.files import read_json, write_text
from diffdistill.parts.one_encoder import pipeline

FILE = "pipeline.py"


def publish_pipeline(folder: str | Path) -> Path:
    """Write `pipeline.py` into the folder of a Stable Diffusion model, whose other files stay as they are.

    `DiffusionPipeline.from_pretrained(folder)` is the stock pipeline as before, and with `custom_pipeline=folder,
    trust_remote_code=True` the one of one encoder pass, in a process without this package. ConfigError for a folder of
    another pipeline, and for one that has another `pipeline.py`.

    >>> import shutil, tempfile
    >>> from diffdistill.assets import asset
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     publish_pipeline(shutil.copytree(asset("emoji_teacher"), f"{folder}/model")).name
    'pipeline.py'
    """
    folder = Path(folder)
    index = folder / "model_index.json"
    kind = read_json(index).get("_class_name") if index.is_file() else None
    if kind != "StableDiffusionPipeline":
        raise ConfigError(
            f"'{folder}' is {'no pipeline' if kind is None else f'a {kind}'}, and one encoder pass is for the UNet of "
            f"a StableDiffusionPipeline; give its folder"
        )
    target, text = folder / FILE, Path(pipeline.__file__).read_text("utf-8")
    if target.is_file() and target.read_text("utf-8") != text:
        raise ConfigError(f"'{target}' is there and is another; move it away")
    write_text(target, text)
    return target
