"""`diffdistill align`."""

from diffdistill.cli.parser import Verb, add_config

VERB = Verb(
    "align",
    "align a text-to-image pipeline with preferences",
    "diffdistill.training.command:align",
    add_config,
    30,
    "diffdistill.config.align:Align",
    shared=True,
)
