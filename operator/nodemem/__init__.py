"""nodemem: where a node's memory went, and which process the OOM killer will take."""

__version__ = "0.1.0"
