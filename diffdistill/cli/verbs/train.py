"""`diffdistill train`."""

from diffdistill.cli.parser import Verb, add_config

VERB = Verb(
    "train",
    "train a teacher on images",
    "diffdistill.training.command:train",
    add_config,
    10,
    "diffdistill.config.schema:Train",
    shared=True,
)
