"""``kubectl nodemem``: what the cluster's nodes report, and what its policies do there. It changes nothing."""
