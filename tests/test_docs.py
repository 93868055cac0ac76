"""README.md and docs/*.md name files, links, modules and commands that exist."""

import ast
import importlib
import re
from pathlib import Path

import pytest
import typer.main
from present import present

from entroloop.launcher import __main__ as program

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
ROOMS = "data|trainer|selection|eval|slurm|launcher|entroloop|benchmarks|tests|configs|docs"


def anchors(page):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page):
    """Every command line that starts with `entroloop` in a block or in a code span, cut into words."""
    prose: list[str] = []
    blocks: list[str] = []
    for number, piece in enumerate(re.split(r"^```.*\n", page.read_text(), flags=re.MULTILINE)):
        (blocks if number % 2 else prose).append(piece)
    lines = re.findall(r"^(entroloop .+)$", "".join(blocks), flags=re.MULTILINE)
    lines += re.findall(r"^ {4}(entroloop .+)$", "".join(prose), flags=re.MULTILINE)
    lines += [span for span in re.findall(r"`([^`]+)`", "".join(prose)) if span.startswith("entroloop ")]
    return [re.sub(r"\s#.*| {3,}.*|[\[\]…]", " ", line).split() for line in lines]


@pytest.fixture(scope="module")
def program_command():
    program._register()
    return typer.main.get_command(program.app)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    # audit.py is an example of a file to write
    for name in re.findall(rf"`((?:{ROOMS})/[\w/.-]+\.(?:py|yaml|json|md))", page.read_text()):
        assert (ROOT / name).exists() or name.endswith("phases/audit.py"), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_that_no_wheel_has_are_said_to_be_in_the_clone(page):
    text = page.read_text()
    assert not re.search(r"configs/\w+/", text) or "clone" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_imports_of_the_examples_work(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(present(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == [], node.module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page, program_command):
    for words in commands(page):
        command, said = program_command, " ".join(words)
        for word in words[1:]:
            if hasattr(command, "commands") and not word.startswith("-"):
                assert word in command.commands, said
                command = command.commands[word]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known | {"--help"}, said
