"""Completion: ``kubectl nodemem completion SHELL`` for the command itself, ``kubectl_complete-nodemem`` for kubectl.

kubectl, whose own completion is set up, runs ``kubectl_complete-nodemem`` with the words after ``kubectl nodemem``, the
one to complete last, and takes lines of ``value TAB description`` and a last line ``:4`` (complete no file names).
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

from nodemem.api.resources import MEMORY_REPORT, OOM_EXPOSURE, OOM_POLICY, TMPFS_POLICY
from nodemem.cli.kubectl.cluster import Cluster, Trouble, connect

NO_FILES, FILES = ":4", ":0"
"""Cobra's directives."""

SECONDS = 3.0
"""A cluster that doesn't answer by then completes nothing: somebody waits at the prompt."""

SHELLS = ("bash", "zsh", "fish")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "completion",
        help="completion for a shell, of kubectl-nodemem",
        description="A script that completes kubectl-nodemem, names in the cluster included. 'kubectl nodemem' is "
        "completed by kubectl's own completion, which finds kubectl_complete-nodemem on PATH.",
        epilog="bash: source <(kubectl nodemem completion bash); zsh: the same with zsh; fish: kubectl nodemem "
        "completion fish | source",
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """0 done."""
    sys.stdout.write(_SCRIPTS[args.shell])
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """``kubectl_complete-nodemem``: always 0, and never a word on standard error, which would be in the prompt."""
    words = list(sys.argv[1:] if argv is None else argv)
    found, directive = complete(words)
    for value, description in found:
        print(f"{value}\t{description}" if description else value)
    print(directive)
    return 0


def complete(
    words: Sequence[str], ask: Callable[[argparse.Namespace], Cluster] | None = None
) -> tuple[list[tuple[str, str]], str]:
    """What the last of ``words`` may become, with descriptions; and whether files may be it, too."""
    from nodemem.cli.kubectl.main import build_parser

    *before, last = words or [""]
    parser, rest = _command(build_parser(), before)
    option = _awaits_value(parser, before)
    if option is None and "=" in last and last.startswith("--"):
        name, _, value = last.partition("=")
        option = next((each for each in parser._actions if name in each.option_strings), None)
        values, directive = _values(option, parser, before, ask) if option is not None else ([], NO_FILES)
        return [(f"{name}={each}", text) for each, text in values if each.startswith(value)], directive
    if option is not None:
        found, directive = _values(option, parser, before, ask)
    elif last.startswith("-"):
        found, directive = list(_options(parser)), NO_FILES
    else:
        found, directive = _positional(parser, rest, before, ask), NO_FILES
    return [(value, text) for value, text in found if value.startswith(last)], directive


def _command(parser: argparse.ArgumentParser, before: Sequence[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """The sub-command's parser, and the words that are its arguments, without options and their values."""
    rest: list[str] = []
    skip = False
    for word in before:
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = "=" not in word and _takes_value(parser, word)
        elif (commands := _commands(parser)) and not rest:
            parser = commands.get(word, parser)
        else:
            rest.append(word)
    return parser, rest


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for each in parser._actions:
        if isinstance(each, argparse._SubParsersAction):
            return dict(each.choices)
    return {}


def _option(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    return next((each for each in parser._actions if word in each.option_strings), None)


def _takes_value(parser: argparse.ArgumentParser, word: str) -> bool:
    action = _option(parser, word)
    return action is not None and action.nargs != 0


def _awaits_value(parser: argparse.ArgumentParser, before: Sequence[str]) -> argparse.Action | None:
    if before and before[-1].startswith("-") and _takes_value(parser, before[-1]):
        return _option(parser, before[-1])
    return None


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for each in parser._actions:
        if each.option_strings and each.help != argparse.SUPPRESS:
            text = (each.help or "").replace("%(default)s", str(each.default))
            yield max(each.option_strings, key=len), text


def _values(
    option: argparse.Action,
    parser: argparse.ArgumentParser,
    before: Sequence[str],
    ask: Callable[[argparse.Namespace], Cluster] | None,
) -> tuple[list[tuple[str, str]], str]:
    if option.choices is not None:
        return [(str(each), "") for each in option.choices], NO_FILES
    if option.dest in ("kubeconfig", "filename"):
        return [], FILES
    if option.dest == "namespace":
        return _asked(before, lambda cluster: cluster.names("/api/v1/namespaces"), ask), NO_FILES
    if option.dest == "context":
        return [(each, "") for each in _contexts(before)], NO_FILES
    return [], NO_FILES


def _positional(
    parser: argparse.ArgumentParser,
    rest: Sequence[str],
    before: Sequence[str],
    ask: Callable[[argparse.Namespace], Cluster] | None,
) -> list[tuple[str, str]]:
    commands = next((each for each in parser._actions if isinstance(each, argparse._SubParsersAction)), None)
    if commands is not None:
        return [(each.dest, each.help or "") for each in commands._choices_actions]
    match parser.prog.rpartition(" ")[2]:
        case "completion":
            return [] if rest else [(each, "") for each in SHELLS]
        case "top":
            names = _asked(before, lambda cluster: cluster.names(MEMORY_REPORT.path()), ask)
        case "why" if not rest:
            names = _asked(before, lambda cluster: cluster.names(MEMORY_REPORT.path()), ask)
        case "policy" if not rest:
            names = _asked(before, _policies, ask)
        case "exposed":
            names = _asked(before, lambda cluster: cluster.names(OOM_EXPOSURE.path(namespace=cluster.namespace)), ask)
        case _:
            names = []
    return [each for each in names if each[0] not in rest]


def _policies(cluster: Cluster) -> list[str]:
    return [*cluster.names(TMPFS_POLICY.path()), *cluster.names(OOM_POLICY.path())]


def _asked(
    before: Sequence[str],
    names: Callable[[Cluster], list[str]],
    ask: Callable[[argparse.Namespace], Cluster] | None,
) -> list[tuple[str, str]]:
    """Names from the cluster; none where it can't be asked."""
    try:
        return [(name, "") for name in names((ask or _connect)(_given(before)))]
    except (Trouble, OSError):
        return []


def _given(before: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    for names in (("--kubeconfig",), ("--context",), ("-n", "--namespace"), ("--as",)):
        parser.add_argument(*names, default=None, nargs="?")
    return parser.parse_known_args(list(before))[0]


def _connect(given: argparse.Namespace) -> Cluster:
    return connect(
        kubeconfig=given.kubeconfig,
        context=given.context,
        namespace=given.namespace,
        user=getattr(given, "as"),
        seconds=SECONDS,
    )


def _contexts(before: Sequence[str]) -> list[str]:
    try:
        from kubernetes import config
    except ModuleNotFoundError:
        return []
    try:
        found, _ = config.list_kube_config_contexts(_given(before).kubeconfig)  # type: ignore[no-untyped-call]
        return [each["name"] for each in found]
    except (config.ConfigException, OSError, ValueError):
        return []


_BASH = """\
# bash completion of kubectl-nodemem; source it.
_kubectl_nodemem() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        case $line in
            :4) compopt +o default ;;
            :0) compopt -o default ;;
            *) COMPREPLY+=("${line%%$'\\t'*}") ;;
        esac
    done < <(kubectl-nodemem __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -F _kubectl_nodemem kubectl-nodemem
"""

_ZSH = """\
#compdef kubectl-nodemem
# zsh completion of kubectl-nodemem; source it, or put it on $fpath as _kubectl-nodemem.
_kubectl_nodemem() {
    local line files=0
    local -a found
    while IFS= read -r line; do
        case $line in
            :4) ;;
            :0) files=1 ;;
            *) found+=("${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}") ;;
        esac
    done < <(kubectl-nodemem __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
    (( files )) && _files
    (( ${#found} )) && _describe 'kubectl nodemem' found
}
compdef _kubectl_nodemem kubectl-nodemem
"""

_FISH = """\
# fish completion of kubectl-nodemem; source it, or put it in ~/.config/fish/completions/kubectl-nodemem.fish.
function __kubectl_nodemem
    set -l words (commandline -opc) (commandline -ct)
    kubectl-nodemem __complete $words[2..-1] 2>/dev/null | string match -v -r '^:[0-9]+$'
end
complete -c kubectl-nodemem -f -a '(__kubectl_nodemem)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
