"""The pipeline of one encoder pass beside a model: files in its folder, which stock diffusers reads if it is told."""

from pathlib import Path

from diffdistill.errors import ConfigError
from diffdistill.files import read_json, read_text, write_text

FILE, SPLIT = "pipeline.py", "decoders.py"
FILES = (FILE, SPLIT)


def pipeline_files(*, of_texts: bool) -> dict[str, str]:
    """The texts of these files by name, for a Stable Diffusion folder or for one of pixels.

    >>> sorted(pipeline_files(of_texts=False))
    ['decoders.py', 'pipeline.py']
    """
    home = Path(__file__).parent
    return {FILE: read_text(home / ("pipeline.py" if of_texts else "pixels.py")), SPLIT: read_text(home / SPLIT)}


def publish_pipeline(folder: str | Path) -> Path:
    """Write `pipeline.py` and its `decoders.py` into the folder of a Stable Diffusion model, whose other files stay as
    they are; returns the first.

    `DiffusionPipeline.from_pretrained(folder)` is the stock pipeline as before, and with `custom_pipeline=folder,
    trust_remote_code=True` the one of one encoder pass, in a process without this package. ConfigError for a folder of
    another pipeline, and for one that has another file of these names.

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
    texts = pipeline_files(of_texts=True)
    for name, text in texts.items():
        if (folder / name).is_file() and (folder / name).read_text("utf-8") != text:
            raise ConfigError(f"'{folder / name}' is there and is another; move it away")
    for name, text in texts.items():
        write_text(folder / name, text)
    return folder / FILE
