"""Settings: typed models (`schema`), strict YAML (`yaml`), files and overrides (`loader`)."""

from diffdistill.config.loader import Resolved, dump_config, find_config, load_config

__all__ = ["Resolved", "dump_config", "find_config", "load_config"]
