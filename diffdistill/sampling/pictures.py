"""Files of images that are drawn: PNG, WebP or JPEG. No torch: the command line reads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("png", "webp", "jpg")
QUICK = 1  # zlib's level: a third of the time of Pillow's 6, for files a fifteenth larger (docs/performance.md)
JPEG_QUALITY = 95


@dataclass(frozen=True)
class PictureFile:
    """How images are written. PNG and WebP keep every pixel, but for WebP with a quality; JPEG never does.

    quality: 1 to 100, of WebP and JPEG; None: WebP without loss, JPEG of 95.
    """

    format: str = "png"
    quality: int | None = None

    def check(self) -> None:
        """ConfigError for a form that is not written, and for a quality that nothing asks for."""
        if self.format not in FORMATS:
            raise ConfigError(f"'{self.format:.20}' is no format of images; choose one of {', '.join(FORMATS)}")
        if self.quality is None:
            return
        if self.format == "png":
            raise ConfigError("a quality goes with webp or jpg, and PNG keeps every pixel; leave it out")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality {self.quality} is not between 1 and 100; choose one that is")

    @property
    def lossless(self) -> bool:
        return self.format == "png" or (self.format == "webp" and self.quality is None)

    def record(self) -> dict[str, Any]:
        """The entries of `samples.json`.

        >>> PictureFile("jpg").record()
        {'format': 'jpg', 'quality': 95, 'lossless': False}
        """
        quality = JPEG_QUALITY if self.format == "jpg" and self.quality is None else self.quality
        return {"format": self.format, "quality": quality, "lossless": self.lossless}

    def save(self, picture: "Image", file: Path) -> None:
        """Write one image; colours are never stored in halves of the resolution."""
        if self.format == "png":
            picture.save(file, "PNG", compress_level=QUICK)
        elif self.format == "jpg":
            picture.save(file, "JPEG", quality=self.record()["quality"], subsampling=0)
        elif self.lossless:
            picture.save(file, "WEBP", lossless=True, quality=0)  # here the quality is the effort
        else:
            picture.save(file, "WEBP", quality=self.quality)
