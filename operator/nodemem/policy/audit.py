"""What Enforce would do, in sentences: the answer to "and if I turn it on?"."""

from nodemem.node.summary import quantity
from nodemem.policy import reclaim
from nodemem.policy.entries import name_of
from nodemem.policy.limits import Policy
from nodemem.policy.tally import Effect, Tally
from nodemem.policy.words import count


def sentences(tally: Tally) -> list[str]:
    """The places where most would change first."""
    effects = sorted(tally.effects.items(), key=lambda each: (-each[1].shrunk - each[1].grown, each[0]))
    said = [sentence for place, effect in effects for sentence in _of_place(place, effect)]
    for policy, mounts in sorted(tally.overruled.items(), key=lambda each: (-each[1], each[0])):
        said.append(f"{policy} would come before it on {count(mounts, 'mount')}.")
    return said


def cleaning(policy: Policy, tally: Tally) -> list[str]:
    """What the nodes clean themselves, or would; enforced it is said as it is."""
    would = policy.spec.mode == "Audit"
    said = []
    for claim in reclaim.claims(policy.name, policy.spec):
        of = tally.cleaning.get(name_of(claim.entry))
        if of is None:
            continue
        if of.nodes:
            said.append(f"{reclaim.sentence(claim.entry, would=would)} on {count(of.nodes, 'node')}.")
        for other, nodes in sorted(of.overruled.items()):
            verb = "would come" if would else "comes"
            said.append(f"For {reclaim.subject(claim.entry)} {other} {verb} before it on {count(nodes, 'node')}.")
    if tally.freeable_bytes and would:
        said.append(f"About {quantity(tally.freeable_bytes)} would be freed by that now.")
    return said


def freed_bytes(tally: Tally) -> int:
    """What has to be freed before every limit holds."""
    return sum(each.over_bytes for each in tally.effects.values())


def _of_place(place: str, effect: Effect) -> list[str]:
    said = []
    if effect.shrunk:
        text = (
            f"Would shrink {_where(place, effect.shrunk, effect.shrunk_nodes)}, by {quantity(effect.less_bytes)} in all"
        )
        if effect.over:
            text += (
                f"; {effect.over:,} of them {'is' if effect.over == 1 else 'are'} in use over the limit, and would be"
                f" deferred until {quantity(effect.over_bytes)} {'is' if effect.over == 1 else 'are'} freed there"
            )
        said.append(f"{text}.")
    if effect.grown:
        where = _where(place, effect.grown, effect.grown_nodes)
        said.append(f"Would grow {where}, by {quantity(effect.more_bytes)} in all.")
    if effect.same:
        where = _where(place, effect.same, effect.same_nodes)
        said.append(f"Would leave {where} as {'it is' if effect.same == 1 else 'they are'}.")
    if effect.unlimited:
        said.append(
            f"Could not limit {place} in {count(effect.unlimited, 'place')}: mounted without a size, and the kernel"
            " gives such a mount none later."
        )
    if effect.unknown:
        said.append(f"Of {count(effect.unknown, 'mount')} of {place}, size or usage is unknown.")
    return said


def _where(place: str, mounts: int, nodes: int) -> str:
    if mounts == nodes:
        return f"{place} on {count(nodes, 'node')}"
    return f"{count(mounts, 'mount')} ({place}) on {count(nodes, 'node')}"
