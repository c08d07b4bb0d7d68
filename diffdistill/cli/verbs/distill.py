"""`diffdistill distill`."""

from diffdistill.cli.parser import Verb, add_config

VERB = Verb(
    "distill",
    "distil a teacher into a one- or few-step student",
    "diffdistill.training.command:distill",
    add_config,
    20,
    "diffdistill.config.schema:Distill",
    shared=True,
)
