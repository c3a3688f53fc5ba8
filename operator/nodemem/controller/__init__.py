"""The controller: flags exposed pods, turns TmpfsPolicies into the nodes' limits, shows stale nodes, clears away
reports of nodes that are gone.

kopf watches; plain functions decide; one loop writes, and only while it holds the Lease.
"""
