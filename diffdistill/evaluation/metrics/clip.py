"""CLIP score: how well images fit their texts."""

from diffdistill.evaluation.metrics import Metric

METRIC = Metric(
    name="clip",
    label="CLIP score",
    summary="Cosine of image and prompt, times 100",
    needs=("texts", "clip"),
    compute=lambda context: context.mean_score("clip"),
    order=50,
)
