"""sgpo-verl: rollouts where they teach, as a plugin for verl."""

__version__ = "0.1.0"
SUPPORTED_VERL = ">=0.9.1,<0.10"
