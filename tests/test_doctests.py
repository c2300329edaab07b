"""The examples in docstrings run, and every public name has one."""

import doctest
import inspect
import pkgutil
from importlib import import_module

import pytest
import torch

import oral_lib
import oral_lib.lora
import oral_lib.method
from oral_lib import paths
from oral_lib.prompting.release import write_release

torch.set_num_threads(1)


def modules(package) -> list[str]:
    return [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]


def public() -> dict[str, object]:
    """Every public name and what it stands for."""
    names = {f"oral_lib.{n}": getattr(oral_lib, n) for n in oral_lib.__all__ if n != "__version__"}
    names |= {f"oral_lib.lora.{n}": getattr(oral_lib.lora, n) for n in oral_lib.lora.__all__}
    names |= {f"oral_lib.method.{n}": getattr(oral_lib.method, n) for n in oral_lib.method.__all__}
    return names


def examples(content: object, name: str) -> list[doctest.Example]:
    # an alias of a type has no docstring of its own: its example is in the head of its module
    source = import_module("oral_lib.lora.adapter") if name.endswith(".Adapter") else content
    return doctest.DocTestParser().get_examples(inspect.getdoc(source) or "")


def run(test: doctest.DocTest) -> None:
    torch.manual_seed(0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    result = runner.run(test, out=report.append)
    assert not result.failed, "".join(report)


@pytest.mark.parametrize("name", [*modules(oral_lib.lora), *modules(oral_lib.method)])
def test_the_examples_of_a_module_run(name):
    module = import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        if test.examples:
            run(test)


@pytest.mark.parametrize("name", sorted(f"oral_lib.{n}" for n in oral_lib._PUBLIC))
def test_the_example_of_a_public_name_runs(name, smoke, monkeypatch):
    monkeypatch.chdir(smoke.out)  # the run that the examples of the generator name
    if name == "oral_lib.pretrained":
        write_release("smoke", "made", smoke.out)
        monkeypatch.setattr(paths, "RELEASED", smoke.out / "results" / "generators")
    content = public()[name]
    test = doctest.DocTestParser().get_doctest(
        inspect.getdoc(content) or "", {"oral_lib": oral_lib, "torch": torch}, name, None, 0
    )
    module = import_module(content.__module__)
    test.globs |= vars(module)
    run(test)


def test_every_public_name_has_an_example():
    found = {name: bool(examples(content, name)) for name, content in public().items()}
    assert sorted(name for name, has in found.items() if not has) == []
