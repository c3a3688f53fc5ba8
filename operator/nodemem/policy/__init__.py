"""TmpfsPolicies and nodes in, limits and their rollout out. Plain data both ways: no I/O, no clock, no API objects.

``limits`` says what each node is to hold, ``rollout`` which nodes may be told so now, ``audit`` what enforcing would
do, and ``status`` puts all of it in the words of a policy's status. The same input gives the same output, in whatever
order it comes.
"""
