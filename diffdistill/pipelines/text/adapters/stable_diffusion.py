"""`StableDiffusionPipeline`: SD 1.x and 2.x."""

from diffdistill.pipelines.text.adapter import Adapter, AdapterFor

ADAPTER = AdapterFor("StableDiffusionPipeline", Adapter)
