"""metav1.LabelSelector: does it select these labels, and which labels does it look at?"""

from collections.abc import Iterable, Mapping

from nodemem.api.types import LabelSelector, LabelSelectorRequirement


def selects(selector: LabelSelector | None, labels: Mapping[str, str]) -> bool:
    """None and an empty selector select everything."""
    return selector is None or (
        all(labels.get(key) == value for key, value in (selector.match_labels or {}).items())
        and all(_holds(each, labels) for each in selector.match_expressions)
    )


def selects_all(selector: LabelSelector | None) -> bool:
    return selector is None or not (selector.match_labels or selector.match_expressions)


def keys(selectors: Iterable[LabelSelector | None]) -> tuple[str, ...]:
    """The labels that decide: objects that agree in these are selected alike."""
    found: set[str] = set()
    for each in selectors:
        if each is not None:
            found.update(each.match_labels or ())
            found.update(requirement.key for requirement in each.match_expressions)
    return tuple(sorted(found))


def _holds(requirement: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    match requirement.operator:
        case "In":
            return labels.get(requirement.key) in requirement.values
        case "NotIn":
            # Also where the label is absent, as everywhere in Kubernetes.
            return labels.get(requirement.key) not in requirement.values
        case "Exists":
            return requirement.key in labels
        case "DoesNotExist":
            return requirement.key not in labels
