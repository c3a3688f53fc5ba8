"""The controller: flags exposed pods, shows stale nodes, clears away reports of nodes that are gone.

kopf watches; plain functions decide; one loop writes, and only while it holds the Lease.
"""
