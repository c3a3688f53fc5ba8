"""Reads and changes one Linux node: no Kubernetes, no policy, no printing."""
