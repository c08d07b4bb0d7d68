"""Every pipeline class that has no adapter of its own: its call is read off itself."""

from diffdistill.pipelines.text.adapter import ANY_OTHER, AdapterFor
from diffdistill.pipelines.text.calls.adapter import ReadOff

ADAPTER = AdapterFor(ANY_OTHER, ReadOff)
