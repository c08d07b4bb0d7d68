"""How alike a picture and its mirror image are: a reward that wants PIL pictures and has no gradient."""

from PIL import Image, ImageChops, ImageOps, ImageStat

from diffdistill.rewards import CallableReward


def scores(pictures: list[Image.Image], prompts: object = None) -> list[float]:
    """Minus the mean difference of a pixel and its mirror image, of 255: 0 where there is none."""
    return [-ImageStat.Stat(ImageChops.difference(one, ImageOps.mirror(one))).mean[0] for one in pictures]


symmetry = CallableReward(scores, "symmetry", pil=True)
