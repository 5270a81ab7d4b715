"""How functions of others are found, and told apart by their code."""

from __future__ import annotations

from pathlib import Path

import pytest

from primecli import plugins
from primecli.errors import PrimecliError, UsageError

OWN = ("ce", "dpo")
pytestmark = pytest.mark.usefixtures("here")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def register(directory: Path, package: str, *lines: str, group: str = plugins.PRM_OBJECTIVES) -> None:
    """What an installed package leaves behind for entry points to be found."""
    information = directory / f"{package}-1.0.dist-info"
    write(information / "METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    write(information / "entry_points.txt", f"[{group}]\n" + "".join(f"{line}\n" for line in lines))


def found(text: str) -> plugins.Plugin:
    plugin = plugins.find(text, plugins.PRM_OBJECTIVES, OWN)
    assert plugin is not None
    return plugin


def test_a_module_in_the_current_directory(here: Path) -> None:
    write(here / "my_losses.py", "def twice(x):\n    return 2 * x\n")
    plugin = found("mine=my_losses:twice")
    assert (plugin.name, plugin.target) == ("mine", "my_losses:twice")
    assert plugin.call(4) == 8
    assert plugins.problem("mine=my_losses:twice", plugins.PRM_OBJECTIVES, OWN) is None


def test_a_name_of_primecli_is_no_plug_in() -> None:
    assert plugins.find("ce", plugins.PRM_OBJECTIVES, OWN) is None


def test_an_installed_one_goes_by_its_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(here / "site")
    write(here / "site/their/losses.py", "class Kept:\n    @staticmethod\n    def call(x):\n        return x\n")
    register(here / "site", "their", "theirs = their.losses:Kept.call", "ce = their.losses:Kept.call")
    register(here / "site", "others", "estimator = their.losses:Kept.call", group=plugins.ESTIMATORS)
    assert found("theirs").call(3) == 3
    assert plugins.find("ce", plugins.PRM_OBJECTIVES, OWN) is None  # nobody can take a name of primecli's
    with pytest.raises(UsageError, match="'estimator' is not one of ce, dpo, theirs, nor NAME=module:function"):
        found("estimator")


def test_two_packages_with_one_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(here / "site")
    for package in ("one", "two"):
        register(here / "site", package, f"twin = {package}:loss")
    with pytest.raises(UsageError, match="twin is registered twice, as one:loss and two:loss: write NAME=module"):
        found("twin")


def test_the_identity_is_the_code_of_the_whole_package(here: Path) -> None:
    write(here / "pack_a/__init__.py", "")
    helper = write(here / "pack_a/inner/helper.py", "X = 1\n")
    write(here / "pack_a/inner/losses.py", "def one(): ...\ndef two(): ...\n")
    write(here / "alone_a.py", "def one(): ...\n")
    write(here / "pack_a/notes.txt", "no code")
    plugin = found("mine=pack_a.inner.losses:one")
    before, alone = plugin.identity(), found("mine=alone_a:one").identity()
    assert before.startswith("pack_a.inner.losses:one@")
    assert before == found("other=pack_a.inner.losses:one").identity()
    assert before != found("mine=pack_a.inner.losses:two").identity()
    write(here / "pack_a/notes.txt", "still no code")
    assert plugin.identity() == before
    helper.write_text("X = 2\n")
    assert plugin.identity() != before
    assert found("mine=alone_a:one").identity() == alone  # its neighbours are not its package
    helper.write_text("X = 1\n")
    assert plugin.identity() == before
    assert plugin.recorded("loss") == {"loss": "mine", "loss_plugin": before}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prefx", "'prefx' is not one of ce, dpo, nor NAME=module:function"),
        ("mine=losses", "'mine=losses' is not NAME=module:function"),
        ("=losses:f", "'=losses:f' is not NAME=module:function"),
        ("my name=losses:f", "'my name=losses:f' is not NAME=module:function"),
        ("mine=losses.py:f", "losses.py is a file, not a module"),
        ("mine=a/b:f", "a/b is a file, not a module"),
        ("ce=losses:f", "ce is primecli's own"),
        ("mine=no_such_module:f", "there is no module no_such_module"),
        ("mine=no_such.module:f", "there is no module no_such"),
        ("mine=.relative:f", "mine (.relative:f): "),
        ("mine=sys:exit", "sys has no file whose content would tell one version of it from another"),
        ("mine=raises_b.module:f", "mine (raises_b.module:f): ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_wrong_with_a_name(text: str, says: str, here: Path) -> None:
    write(here / "raises_b/__init__.py", "1 / 0\n")
    problem = plugins.problem(text, plugins.PRM_OBJECTIVES, OWN)
    assert problem is not None
    assert says in problem


def test_what_is_wrong_with_a_module(here: Path) -> None:
    write(here / "raises_c.py", "raise ValueError('two\\nlines')\n")
    write(
        here / "holds_c.py",
        "value = 3\n\n\ndef fails():\n    raise KeyError('reward')\n\n\ndef full():\n    raise MemoryError\n",
    )
    with pytest.raises(UsageError, match=r"^mine \(raises_c:f\) cannot be imported: ValueError: two \(--debug"):
        found("mine=raises_c:f").load()
    with pytest.raises(UsageError, match="cannot be imported: AttributeError: module 'holds_c' has no attribute 'f'"):
        found("mine=holds_c:f").load()
    with pytest.raises(UsageError, match="is int, not a function"):
        found("mine=holds_c:value").load()
    with pytest.raises(PrimecliError, match=r"mine \(holds_c:fails\) failed: KeyError: 'reward'"):
        found("mine=holds_c:fails").call()
    with pytest.raises(MemoryError):
        found("mine=holds_c:full").call()
