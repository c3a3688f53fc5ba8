"""metav1.LabelSelector: does it select these labels?"""

from collections.abc import Mapping

from nodemem.api.types import LabelSelector, LabelSelectorRequirement


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """An empty selector selects everything."""
    return all(labels.get(key) == value for key, value in (selector.match_labels or {}).items()) and all(
        _holds(each, labels) for each in selector.match_expressions
    )


def selects_all(selector: LabelSelector) -> bool:
    return not selector.match_labels and not selector.match_expressions


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
