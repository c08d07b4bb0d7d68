"""What a text-to-image model is distilled on: captioned images, encoded once, or prompts alone."""

from dataclasses import dataclass, replace

from torch import Tensor

from diffdistill import processes
from diffdistill.config.schema import Distill
from diffdistill.data import ImageSet, batch_indices, load_images
from diffdistill.data.prompts import digest_of, read_prompts, without_texts
from diffdistill.data.rows import Coloured, Images, rows_read
from diffdistill.errors import ConfigError
from diffdistill.pipelines.text.denoiser import TextDenoiser
from diffdistill.pipelines.text.encoded import latents_of
from diffdistill.pipelines.text.shelf import shelf_of


@dataclass(frozen=True)
class TextSet:
    """N prompts and, unless only prompts were given, the latents of their images.

    ids: int64 `(N,)`, rows of the model's prompt table. latents: float32 `(N, C, h, w)` on the CPU, or as `Rows`
    on disk, or None.
    images: what they were made of, to measure against, or None. name, fingerprint: as of an `ImageSet`.
    """

    ids: Tensor
    latents: Images | None
    images: ImageSet | None
    name: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)

    def draw(
        self, size: int, seed: int, step: int, flip: bool = False, rows: slice | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """`(latents, prompt ids)` of one step, a function of (seed, step). `text_data` has refused `flip`; rows: as of
        `ImageSet.draw`.
        """
        chosen = batch_indices(len(self), size, seed, step)
        return None if self.latents is None else rows_read(self.latents, chosen, rows), self.ids[chosen]


def text_data(config: Distill, model: TextDenoiser) -> TextSet:
    """The data of a run; sets the model's size of image where `data.image_size` asks for another, and where it keeps
    encoded prompts.

    Raises ConfigError for settings that do not fit, DataError for what cannot be read.
    """
    settings = config.data
    _set_size(model, settings.image_size)
    model.adapter.kept.limit = settings.prompt_cache_gb * 1e9
    model.adapter.there.limit = settings.prompt_device_gb * 1e9
    model.adapter.shelf = shelf_of(config.teacher, settings.prompt_disk_gb)
    if settings.horizontal_flip:
        raise ConfigError("data.horizontal_flip mirrors images, and their latents are encoded once; leave it false")
    if settings.prompts is not None:
        return _prompts_only(config, model)
    size = model.adapter.image_size
    data: ImageSet = load_images(
        settings.path, split=settings.split, image_size=size, limit=settings.limit,
        keep=settings.keep, workers=settings.workers, disk_gb=settings.disk_cache_gb,
        captions=settings.caption_column,
    )  # fmt: skip
    if data.texts is None:
        raise ConfigError(without_texts(settings.path))
    if data.images.shape[1] == 1:  # a VAE takes colour
        data = replace(data, images=Coloured(data.images))
    assert data.texts is not None
    processes.agree({"data": data.fingerprint})  # several encode it in turn
    latents = latents_of(config, model, data)
    model.adapter.rest("vae")
    return TextSet(model.prompts.ids(data.texts), latents, data, data.name, data.fingerprint)


def _prompts_only(config: Distill, model: TextDenoiser) -> TextSet:
    file = str(config.data.prompts)
    if config.consistent:
        raise ConfigError(
            f"a consistency loss noises images, and data.prompts '{file}' gives prompts alone; set data.path to "
            f"captioned images"
        )
    if config.adversarial is not None and config.adversarial.reals == "data":
        raise ConfigError(
            f"method.adversarial compares with images, and data.prompts '{file}' gives prompts alone; set "
            f"method.adversarial=null, a method without it, data.path to captioned images, or "
            f"method.adversarial.reals=teacher"
        )
    if config.student.training_input == "noised_data":
        raise ConfigError(
            "student.training_input=noised_data needs images, and data.prompts gives prompts alone; use "
            "backward_simulation"
        )
    settings = config.evaluation
    compared = [metric for metric in settings.metrics if metric != "clip"]
    if compared and settings.reference is None and (settings.at_end or settings.every):
        raise ConfigError(
            f"evaluation.metrics={','.join(compared)} compares with images, and data.prompts gives prompts alone; set "
            "evaluation.reference, or evaluation.metrics=[clip], or evaluation.at_end=false and evaluation.every=0"
        )
    prompts = read_prompts(file)[: config.data.limit]
    return TextSet(model.prompts.ids([prompt.text for prompt in prompts]), None, None, file, digest_of(prompts))


def _set_size(model: TextDenoiser, size: int | None) -> None:
    adapter = model.adapter
    if size is None:
        return
    if size % adapter.size_multiple:
        raise ConfigError(
            f"data.image_size is {size} and the teacher's images are multiples of {adapter.size_multiple}; set "
            f"{max(1, round(size / adapter.size_multiple)) * adapter.size_multiple}"
        )
    adapter.image_size = size
