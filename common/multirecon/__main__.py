"""The command line ``multirecon``: python-fire, with the arguments checked before anything runs."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["COMMANDS", "main"]

# name -> (place, what it does); the module is imported when the command is called, so that `version` loads no torch
COMMANDS: dict[str, tuple[str, str]] = {
    "evaluate": ("multirecon.harness.commands:evaluate", "run bundles on tasks and record how well they do"),
    "reconstruct": ("multirecon.harness.commands:reconstruct", "reconstruct a file by the best method for it"),
    "report": ("multirecon.harness.commands:report", "turn records into one HTML file, Markdown and CSV"),
    "merge": ("multirecon.harness.commands:merge", "join the records of several folders, of shards for example"),
    "simulate": ("multirecon.harness.commands:simulate", "write a task's measurements as files that any bundle reads"),
    "tune": ("multirecon.harness.tuning_command:tune", "tune bundles on validation anatomies, with equal trials"),
    "tasks": ("multirecon.harness.commands:tasks", "list the tasks"),
    "bundles": ("multirecon.harness.commands:bundles", "list the bundles and their variants"),
    "pack": ("multirecon.zoo.commands:pack", "write bundles as archives that run with nothing of this installed"),
    "zoo list": ("multirecon.zoo.commands:zoo_list", "list what a zoo offers"),
    "zoo verify": ("multirecon.zoo.commands:zoo_verify", "check the archives of a zoo, or what was downloaded from it"),
    "zoo download": ("multirecon.zoo.commands:zoo_download", "bring bundles, checked before they are unpacked"),
    "zoo publish": ("multirecon.zoo.commands:zoo_publish", "sign a folder of archives as a zoo"),
    "new": ("multirecon.bundle.scaffold:new", "start a bundle as a copy of another"),
    "info": ("multirecon.conversion.commands:info", "say what is in a file: measurement, raw data or image"),
    "convert": ("multirecon.conversion.commands:convert", "turn a raw data file into a measurement file"),
    "dataset build": ("multirecon.data.commands:dataset_build", "simulate a training set into memory-mapped files"),
    "dataset info": ("multirecon.data.commands:dataset_info", "say what is in such a set, and check its files"),
    "anatomies download": ("multirecon.data.commands:anatomies_download", "fetch the public head label maps"),
    "anatomies list": ("multirecon.data.commands:anatomies_list", "list the anatomies at hand"),
    "label bundles": ("multirecon.interop.label:list_bundles", "say what MONAI Label can serve, and why not the rest"),
    "label prepare": ("multirecon.interop.label:prepare_app", "make the folder of a MONAI Label server"),
    "version": ("multirecon.harness.commands:version", "print versions"),
}
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")


class UsageError(Exception):
    """What is wrong with the arguments, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 done, 1 it failed with one line, 2 wrong arguments and nothing ran.

    Args:
        arguments: words after ``multirecon``; the default is those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    if not words or words[0] in ("--help", "-h", "help"):
        print(overview())
        return 0 if words else 2
    if words[0] == "--version":
        words[0] = "version"
    name, rest = split_command(words)
    if name not in COMMANDS and rest and rest[0] in ("--help", "-h") and subcommands(name):
        print(overview(subcommands(name)))
        return 0
    try:
        if name not in COMMANDS:
            raise UsageError(f"unknown command {name!r}; there are {', '.join(subcommands(words[0]) or COMMANDS)}")
        try:
            function = load(COMMANDS[name][0])
        except ModuleNotFoundError as error:
            if not str(error.name).startswith("multirecon."):
                raise
            # the copy inside an archive of a bundle leaves the harness, the interoperability and the zoo out
            raise UsageError(f"{name}: not part of an archive's copy of multirecon; install the package") from None
        if any(w in ("--help", "-h") for w in rest):
            return run_fire(function, ["--help"], name)
        command = check(function, rest)
    except UsageError as error:
        print(f"multirecon: {error}", file=sys.stderr)
        return 2
    try:
        return run_fire(function, command, name)
    except KeyboardInterrupt:
        print("multirecon: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"multirecon: {one_line(error)}", file=sys.stderr)
        return 1


def one_line(error: Exception) -> str:
    """Return what went wrong in one line; of the system's errors the place and the reason."""
    if isinstance(error, OSError) and error.strerror:
        place = error.filename or "output"
        return f"{place}: expected a file or folder that can be read and written, got {error.strerror!r}"
    return " ".join(str(error).split())


def subcommands(group: str) -> list[str]:
    """Return the commands of two words that begin with the given one."""
    return [name for name in COMMANDS if name.startswith(f"{group} ")]


def split_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command, of one word or two, and what follows it."""
    count = 2 if subcommands(words[0]) and len(words) > 1 and not words[1].startswith("-") else 1
    return " ".join(words[:count]), list(words[count:])


def overview(names: Sequence[str] = ()) -> str:
    """Return the list of commands, or of those named."""
    chosen = names or list(COMMANDS)
    width = max(map(len, chosen))
    lines = [f"  {name:{width}}  {COMMANDS[name][1]}" for name in chosen]
    return "\n".join(["usage: multirecon COMMAND ...   (multirecon COMMAND --help says more)", "", *lines])


def load(target: str) -> Callable[..., Any]:
    """Return the function called ``module:name``."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def run_fire(function: Callable[..., Any], command: Sequence[str], name: str) -> int:
    """Let python-fire call the function with checked words."""
    import fire
    from fire.decorators import SetParseFn, SetParseFns

    if "--help" not in command:
        # fire guesses types (a folder called 123 becomes a number): here the annotations decide
        converters = {p.name: converter(function, p) for p in parameters(function)}
        function = SetParseFn(str)(SetParseFns(**converters)(_copy(function)))
    try:
        words = name.split()
        component = functools.reduce(lambda inner, word: {word: inner}, reversed(words), typing.cast(Any, function))
        fire.Fire(component, command=[*words, *command], name="multirecon")
    except SystemExit as end:
        return int(end.code or 0) if isinstance(end.code, int | None) else 1
    return 0


def _copy(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of its own, so that what fire notes on it does not stay on the library's."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def check(function: Callable[..., Any], words: Sequence[str]) -> list[str]:
    """Return the words in a form that leaves nothing to guess, after checking them against the signature.

    Raises:
        UsageError: on an unknown or repeated flag, a missing value, a value of another type, or a word too many.
    """
    known = {p.name: p for p in parameters(function)}
    named: dict[str, str] = {}
    plain: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-"):
            plain.append(word)
            continue
        flag, equals, value = word.lstrip("-").partition("=")
        flag = _full(flag.replace("-", "_"), known)
        if flag.startswith("no") and flag[2:] in known and is_bool(function, known[flag[2:]]) and not equals:
            flag, value, equals = flag[2:], "false", "="
        if flag not in known or known[flag].kind is inspect.Parameter.VAR_POSITIONAL:
            choices = ", ".join(f"--{n}" for n, p in known.items() if p.kind is not inspect.Parameter.VAR_POSITIONAL)
            raise UsageError(f"unknown flag {word.split('=')[0]!r}; there are {choices or 'none'}")
        if not equals:
            value = "true" if is_bool(function, known[flag]) else _value(word, waiting)
        _put(named, flag, value)
    rest = _positional(known, named, plain)
    for name, value in named.items():
        _convert(function, known[name], value)
    missing = [
        n for n, p in known.items() if p.default is p.empty and n not in named and p.kind is not p.VAR_POSITIONAL
    ]
    if missing:
        raise UsageError(f"missing argument {missing[0].upper()}")
    if rest:  # words that follow places by position fill them by position
        rest = [named.pop(p.name) for p in known.values() if p.kind is p.POSITIONAL_OR_KEYWORD] + rest
    return [*rest, *(f"--{name}={value}" for name, value in named.items())]


def _full(flag: str, known: dict[str, inspect.Parameter]) -> str:
    """Return the name that a single letter stands for, where it stands for one only (as fire's help says)."""
    names = [n for n in known if len(flag) == 1 and n.startswith(flag)]
    return names[0] if len(names) == 1 else flag


def _value(word: str, waiting: list[str]) -> str:
    if not waiting or waiting[0].startswith("--"):
        raise UsageError(f"{word}: expected a value")
    return waiting.pop(0)


def _put(named: dict[str, str], name: str, value: str) -> None:
    if name in named:
        raise UsageError(f"--{name} is given twice")
    named[name] = value


def _positional(known: dict[str, inspect.Parameter], named: dict[str, str], plain: list[str]) -> list[str]:
    """Give plain words to the positional parameters; return those of a variadic one."""
    places = [p for p in known.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    for place in places:
        if plain and place.name not in named:
            _put(named, place.name, plain.pop(0))
    variadic = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in known.values())
    if plain and not variadic:
        raise UsageError(f"unexpected argument {plain[0]!r}")
    return plain


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a function."""
    return list(inspect.signature(function).parameters.values())


def kinds(function: Callable[..., Any], parameter: inspect.Parameter) -> list[Any]:
    """Return the types that a parameter's annotation allows, without ``None``."""
    hint = typing.get_type_hints(function).get(parameter.name, str)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [option for option in options if option is not type(None)]


def is_bool(function: Callable[..., Any], parameter: inspect.Parameter) -> bool:
    """Whether a parameter is a switch."""
    return kinds(function, parameter) == [bool]


def converter(function: Callable[..., Any], parameter: inspect.Parameter) -> Callable[[str], Any]:
    """Return the function from a word to a parameter's value."""
    kind = kinds(function, parameter)[0]
    if typing.get_origin(kind) is tuple:
        return lambda word: tuple(part.strip() for part in word.split(",") if part.strip())
    if kind is bool:
        return _to_bool
    return kind if kind in (int, float, Path) else str


def _to_bool(word: str) -> bool:
    if word.lower() not in TRUE + FALSE:
        raise ValueError(word)
    return word.lower() in TRUE


def _convert(function: Callable[..., Any], parameter: inspect.Parameter, word: str) -> None:
    try:
        converter(function, parameter)(word)
    except ValueError:
        expected = {int: "a whole number", float: "a number", bool: "true or false"}[kinds(function, parameter)[0]]
        raise UsageError(f"--{parameter.name}: expected {expected}, got {word!r}") from None


if __name__ == "__main__":
    sys.exit(main())
