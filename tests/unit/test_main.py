"""The command line: wrong arguments execute nothing, errors are one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from multirecon import __main__ as cli

calls = []


def command(
    output: Path,
    *,
    names: tuple[str, ...] = (),
    count: int = 1,
    rate: float = 0.5,
    limit: int | None = None,
    progress: bool = True,
    title: str = "",
):
    """Do something.

    Args:
        output: a folder.
        names: some names.
    """
    calls.append((output, names, count, rate, limit, progress, title))
    if title == "bad":
        raise ValueError("title: expected good,\n  got bad")
    if title == "gone":
        raise FileNotFoundError("no such file: x")


def many(*folders: str, output: str = ""):
    """Do something with many."""
    calls.append((folders, output))


def after(output: Path, *folders: str, limit: int = 0):
    """Do something with one and many."""
    calls.append((output, folders, limit))


@pytest.fixture(autouse=True)
def _commands(monkeypatch):
    calls.clear()
    functions = {"here:command": command, "here:many": many, "here:after": after}
    monkeypatch.setattr(
        cli,
        "COMMANDS",
        {"do": ("here:command", "do it"), "many": ("here:many", "do all"), "after": ("here:after", "x")},
    )
    monkeypatch.setattr(cli, "load", functions.__getitem__)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["do", "out", "--tilte", "x"], "unknown flag '--tilte'; there are --output, --names"),
        (["do", "out", "--title"], "--title: expected a value"),
        (["do", "out", "--title", "--count", "2"], "--title: expected a value"),
        (["do", "out", "--count", "two"], "--count: expected a whole number, got 'two'"),
        (["do", "out", "--count=1.5"], "--count: expected a whole number, got '1.5'"),
        (["do", "out", "--rate", "x"], "--rate: expected a number, got 'x'"),
        (["do", "out", "--limit", "x"], "--limit: expected a whole number"),
        (["do", "out", "--progress=maybe"], "--progress: expected true or false"),
        (["do", "out", "more"], "unexpected argument 'more'"),
        (["do", "out", "-"], "unknown flag '-'"),
        (["do", "out", "-z", "1"], "unknown flag '-z'"),
        (["do", "out", "--output", "again"], "unexpected argument 'out'"),
        (["do", "out", "--count", "1", "--count", "2"], "--count is given twice"),
        (["do"], "missing argument OUTPUT"),
        (["many", "a", "--folders", "b"], "unknown flag '--folders'"),
        (["od", "out"], "unknown command 'od'; there are do, many, after"),
    ],
)
def test_wrong_arguments_execute_nothing(words, message, capsys):
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert calls == []
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["do", "out"], (Path("out"), (), 1, 0.5, None, True, "")),
        (["do", "123", "--title", "1e3"], (Path("123"), (), 1, 0.5, None, True, "1e3")),
        (["do", "--output=a b", "--names", "x, y:z"], (Path("a b"), ("x", "y:z"), 1, 0.5, None, True, "")),
        (["do", "out", "--noprogress", "-c", "-3"], (Path("out"), (), -3, 0.5, None, False, "")),
        (["do", "out", "--progress", "--limit=4"], (Path("out"), (), 1, 0.5, 4, True, "")),
        (["do", "[1,2]", "--rate=1e-3", "--title=--x"], (Path("[1,2]"), (), 1, 1e-3, None, True, "--x")),
        (["do", "out", "--progress=no", "--title="], (Path("out"), (), 1, 0.5, None, False, "")),
        (["many"], ((), "")),
        (["after", "1"], (Path("1"), (), 0)),
        (["after", "1", "2", "3", "--limit", "4"], (Path("1"), ("2", "3"), 4)),
        (["after", "--output", "1", "2"], (Path("1"), ("2",), 0)),
        (["many", "1", "b,c", "--output", "d"], (("1", "b,c"), "d")),
    ],
)
def test_words_become_the_annotated_types(words, expected):
    assert cli.main(words) == 0
    assert calls == [expected]


@pytest.mark.parametrize(("title", "line"), [("bad", "title: expected good, got bad"), ("gone", "no such file: x")])
def test_errors_are_one_line_unless_debugging(title, line, capsys):
    assert cli.main(["do", "out", "--title", title]) == 1
    assert capsys.readouterr().err == f"multirecon: {line}\n"
    with pytest.raises((ValueError, FileNotFoundError)):
        cli.main(["do", "out", "--title", title, "--debug"])


def test_help_executes_nothing(capsys):
    assert cli.main(["do", "--help"]) == 0
    captured = capsys.readouterr()
    assert "multirecon do OUTPUT" in captured.out + captured.err
    assert calls == []
    assert cli.main(["--help"]) == 0
    assert "do it" in capsys.readouterr().out
    assert cli.main([]) == 2


def test_version_loads_no_torch():
    code = (
        "import sys; from multirecon.__main__ import main\n"
        "assert main(['version']) == 0; print(sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.startswith("multirecon 0")


def test_every_command_exists_and_is_documented(monkeypatch):
    monkeypatch.undo()
    for name, (target, what) in cli.COMMANDS.items():
        function = cli.load(target)
        assert function.__doc__, name
        assert what
        for parameter in cli.parameters(function):
            assert f"{parameter.name}:" in function.__doc__, (name, parameter.name)
            assert callable(cli.converter(function, parameter))


def _environment():
    import os

    import multirecon

    return {**os.environ, "PYTHONPATH": str(Path(multirecon.__file__).parents[1])}
