"""A sweep adds cells to a run: each once, whoever names it, and none that could not run."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import oral_lib
from oral_lib import paths, scales, storage
from oral_lib.errors import UsageError
from oral_lib.runner import engine
from oral_lib.workflow import cli, notebooks, plan, sweeps

SHIPPED = storage.list_paths(paths.ROOT / "notebooks" / "sweeps", "*.yaml")
LANGUAGE = {
    "notebook": "10_language",
    "parameters": {"scale": "smoke"},
    "grid": {"base": ["tiny-encoder"], "task": ["movie", "sarcasm"], "seed": [0, 1]},
}
ABLATIONS = {"notebook": "70_ablations", "cells": [{"groups": "gauge"}, {"groups": "steps"}]}


def written(folder: Path, content: object, name: str = "one.yaml") -> Path:
    path = folder / name
    path.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    )
    return path


def made(folder: Path, content: object):
    """(cells, all nodes) of a sweep at the smoke scale, below `folder`."""
    sweep = sweeps.read_sweep(written(folder, content))
    return sweeps.sweep_nodes(sweep, "smoke", "made", folder)


def parameters(node) -> dict[str, str]:
    """What a node gives its notebook."""
    words = node.command[len(plan.PROJECT) + 3 :]
    return dict(zip(words[1::3], words[2::3], strict=True))


# --- the cells ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_sweep_of_the_repository_could_run(path, tmp_path):
    sweep = sweeps.read_sweep(path)
    cells, wanted = sweeps.sweep_nodes(sweep, sweep.scale, sweep.source, tmp_path)
    assert len(cells) == len(sweep.cells) > 1
    available = set()
    for node in wanted:
        needed = {*node.inputs, *node.after} - available
        assert all(name.startswith(str(paths.ROOT / "notebooks")) for name in needed)
        assert not available & set(node.outputs), "two nodes leave the same file"
        available |= set(node.outputs)


def test_a_grid_is_a_product_and_cells_stand_beside_it(tmp_path):
    content = LANGUAGE | {"cells": [{"base": "tiny-causal", "task": "movie", "seed": 3}]}
    found = [
        (c["base"], c["task"], c["seed"])
        for c in sweeps.read_sweep(written(tmp_path, content)).cells
    ]
    encoder = [("tiny-encoder", task, seed) for task in ("movie", "sarcasm") for seed in (0, 1)]
    assert found == [*encoder, ("tiny-causal", "movie", 3)]


def test_cells_that_the_plan_has_are_the_plans_own_nodes(tmp_path):
    cells, _ = made(tmp_path, LANGUAGE)
    planned = {node.name: node for node in plan.nodes("smoke", "made", tmp_path)}
    for name in ("language/tiny-encoder/movie/seed-0", "language/tiny-encoder/sarcasm/seed-0"):
        assert planned[name] in cells
    assert [cell.name for cell in cells if cell.name not in planned] == [
        "language/tiny-encoder/movie/seed-1",
        "language/tiny-encoder/sarcasm/seed-1",
    ]


def test_a_further_seed_is_the_very_node_that_a_plan_with_more_seeds_has(tmp_path, monkeypatch):
    cells, _ = made(tmp_path, LANGUAGE)
    more = tuple(replace(entry, seeds=2) for entry in scales.base_plans("smoke"))
    monkeypatch.setitem(scales.SCALES["smoke"], "language", lambda source: more)
    planned = {node.name: node for node in plan.nodes("smoke", "made", tmp_path)}
    for cell in cells:
        assert cell.outputs == planned[cell.name].outputs
        assert cell.inputs == planned[cell.name].inputs
        assert parameters(cell) == parameters(planned[cell.name])


def test_two_experiments_may_call_their_base_model_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(scales, "find_spec", lambda name: object())  # diffusers or not
    grid = {"base": ["tiny-diffusion"], "task": ["pokemon"], "seed": [0, 1]}
    parameters = {"scale": "smoke"}
    content = {"notebook": "22_style", "parameters": parameters, "grid": grid}
    cells, wanted = made(tmp_path, content)
    names = [f"style/tiny-diffusion/pokemon/seed-{seed}" for seed in (0, 1)]
    assert [cell.name for cell in cells] == names
    others = {node.name for node in wanted} - set(names)
    assert others and all(name.startswith("style/") for name in others)


@pytest.mark.parametrize(
    ("stem", "cell", "experiment"),
    [
        ("20_vision", {"base": "tiny-encoder"}, "vision"),
        ("my_own", {"base": "tiny-vit"}, "vision"),
        ("my_own", {"base": "tiny-vit", "experiment": "unseen"}, "unseen"),
        ("my_own", {"steps": 3}, "language"),
    ],
)
def test_a_cell_belongs_to_the_experiment_of_its_notebook_or_its_base_model(stem, cell, experiment):
    assert sweeps.experiment_of(stem, cell, "smoke", "made") == experiment


def test_a_cell_is_the_same_whether_a_default_is_written_out_or_not(tmp_path):
    [short], _ = made(tmp_path, {"notebook": "70_ablations", "cells": [{"groups": "gauge"}]})
    long = {"groups": "gauge", "rows": 100, "bases": "tiny-encoder"}
    [written_out], _ = made(tmp_path, {"notebook": "70_ablations", "cells": [long]})
    assert short == written_out
    twice = {"notebook": "70_ablations", "cells": [{"groups": "gauge"}, long]}
    assert len(made(tmp_path, twice)[0]) == 1


def test_cells_of_other_parameters_have_files_of_their_own_below_the_run(tmp_path):
    cells, wanted = made(tmp_path, ABLATIONS)
    outputs = [path for cell in cells for path in cell.outputs]
    assert len(set(outputs)) == len(cells) == 2
    run = paths.run_folder("smoke", "made", tmp_path)
    assert all(path.startswith(f"{run}{os.sep}") for path in outputs)
    needed = {node.name for node in wanted} - {cell.name for cell in cells}
    assert needed and all(name.startswith("zoo/tiny-encoder") for name in needed)


def test_the_command_of_a_cell_gives_the_notebook_the_values_of_the_file(tmp_path):
    cells, _ = made(
        tmp_path, {"notebook": "70_ablations", "cells": [{"groups": "gauge", "rows": 7}]}
    )
    values = notebooks.typed_parameters(notebooks.find("70_ablations"), parameters(cells[0]))
    assert (values["groups"], values["rows"], values["scale"]) == ("gauge", 7, "smoke")
    assert values["out"] == str(tmp_path)


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grid": {"sed": [1]}}, "no parameter 'sed'. Did you mean 'seed'?"),
        ({"grid": {"seed": ["one"]}}, "parameter seed must be a whole number like 0, got 'one'"),
        ({"grid": {"seed": [1.5]}}, "parameter seed must be a whole number"),
        ({"grid": {"seed": [True]}}, "parameter seed must be a whole number"),
        ({"grid": {"seed": [-1]}}, "parameter seed must be 0 or more"),
        ({"grid": {"task": [12]}}, "parameter task must be a text like 'movie', got 12"),
        ({"grid": {"task": [["movie"]]}}, "grid.task[0]: must be a text or a whole number"),
        ({"grid": {"task": ["movei"]}}, "unknown task 'movei'. Did you mean 'movie'?"),
        ({"grid": {"task": ["review_topic"]}}, "has no task 'review_topic' on 'tiny-encoder'"),
        ({"grid": {"base": ["minilm-l7"]}}, "unknown base model 'minilm-l7'"),
        ({"grid": {"base": ["minilm-l6"]}}, "scale 'smoke' has no base 'minilm-l6'"),
        ({"grid": {"seed": 3}}, "grid.seed: must be a list of values, got 3"),
        ({"grid": {"seed": []}}, "grid.seed: must be a list of values, got []"),
        ({"grid": {"scale": ["smoke", "lab"]}}, "'scale' must be the same in all cells"),
        ({"parameters": {"scale": "smok"}}, "unknown scale 'smok'. Did you mean 'smoke'?"),
        ({"parameters": {"seed": 1}}, "'seed' is in `parameters` and in a cell"),
        ({"parameters": {"out": "x"}}, "`out` is not a parameter of a sweep: use --out"),
        ({"parameters": [1]}, "parameters: must be a map of names to values, got [1]"),
        ({"cells": [3]}, "cells[0]: must be a map of names to values, got 3"),
        ({"parameters": {1: 2}}, "parameters: the key 1 must be a text"),
        ({"grid": {None: [1]}}, "grid: 'null' is read in several ways"),
        ({"grid": {"seed": [2**31]}}, "parameter seed must be 0 or more and below 2**31"),
        ({"notebook": "10_langage"}, "there is no notebook '10_langage'"),
        ({"notebook": None}, "notebook: 'null' is read"),
        ({"gird": {}}, "gird: unknown key 'gird'. Did you mean 'grid'?"),
        ({"grid": {}}, "neither `grid` nor `cells`"),
        ({"grid": {"task": [False]}}, "parameter task must be a text like 'movie', got False"),
        ({"grid": {"seed": list(range(99999))}}, "has 99,999 cells, more than 10,000"),
        ({"cells": [{}]}, "cells[0]: must have at least 1 entries, got 0"),
        ({"notebook": " "}, "notebook: must not be empty"),
    ],
)
def test_a_file_that_cannot_be_meant_gives_2_and_one_line_with_its_name_before_anything_starts(
    tmp_path, monkeypatch, capsys, change, words
):
    monkeypatch.setattr(engine, "run_nodes", None)
    path = written(tmp_path, LANGUAGE | change)
    assert cli.main(["sweep", str(path), "--out", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"oral: {path}:") and words in line


def test_what_is_no_yaml_or_is_not_there_is_refused(tmp_path, refused):
    with refused(UsageError, "one.yaml", "one.yaml:2: is not valid YAML"):
        sweeps.read_sweep(written(tmp_path, "notebook: 10_language\n  grid: ["))
    with refused(UsageError, "none.yaml", "cannot be read"):
        sweeps.read_sweep(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seed: [0, 1]", "seed: [0]\n  seed: [1]", ":7: grid.seed: the key 'seed' is there twice"),
        ("seed: [0, 1]", "seed: [0, 010]", ":6: grid.seed[1]: '010' is read in several ways"),
        ("seed: [0, 1]", "seed: [0, ~]", ":6: grid.seed[1]: '~' is read in several ways"),
        ("seed: [0, 1]", "seed: [0, no]", ":6: grid.seed[1]: 'no' is read in several ways"),
        ("seed: [0, 1]", "seed: [0, 1.0e+999]", ":6: grid.seed[1]: '1.0e+999' is read"),
        ("task: [movie]", "task: [movie, on]", ":5: grid.task[1]: 'on' is read in several ways"),
        ("task: [movie]", "task: [!!str movie]", ":5: is not valid YAML: tags"),
        ("  task", "\ttask", ":5: is not valid YAML"),
        ("grid:", "notebook: 20_vision\ngrid:", ":3: notebook: the key 'notebook' is there twice"),
        ("task: [movie]", "tsak: [movie]", ":3: grid: cell 1 "),
    ],
)
def test_a_slip_in_the_file_is_named_with_its_line(tmp_path, refused, old, new, words):
    text = "notebook: 10_language\nparameters: {scale: smoke}\ngrid:\n  base: [tiny-encoder]\n"
    text += "  task: [movie]\n  seed: [0, 1]\n"
    path = written(tmp_path, text)
    assert len(sweeps.read_sweep(path).cells) == 2
    with refused(UsageError, f"{path}{words}"):
        sweeps.read_sweep(written(tmp_path, text.replace(old, new)))


def test_an_unknown_ablation_is_refused_with_the_nearest(tmp_path, refused):
    content = {"notebook": "70_ablations", "grid": {"groups": ["gauge", "tokn"]}}
    with refused(UsageError, "cell 2 (groups='tokn')", "Did you mean 'token'?"):
        sweeps.read_sweep(written(tmp_path, content))
    content = {"notebook": "70_ablations", "cells": [{"bases": "tiny-causal minilm-l6"}]}
    with refused(UsageError, "scale 'smoke' has no base 'minilm-l6'"):
        sweeps.read_sweep(written(tmp_path, content))


def test_the_command_line_goes_before_the_file(tmp_path):
    path = written(tmp_path, LANGUAGE | {"grid": {"base": ["minilm-l6"], "task": ["movie"]}})
    sweep = sweeps.read_sweep(path, "lab", "packages")
    assert (sweep.scale, sweep.source) == ("lab", "packages")


# --- running --------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch):
    """Names of the nodes that would have run, each call of the engine a list; all succeed."""
    calls = []

    def run(nodes, todo, *args, **rest):
        calls.append([node.name for node in nodes if node.name in todo])
        for path in (path for node in nodes if node.name in todo for path in node.outputs):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
        return {}

    monkeypatch.setattr(engine, "run_nodes", run)
    return calls


def test_a_sweep_runs_once_and_a_larger_one_only_what_it_adds(tmp_path, ran, capsys):
    small = written(tmp_path, LANGUAGE)
    assert cli.main(["sweep", str(small), "--out", str(tmp_path)]) == 0
    assert {"generator", "language/tiny-encoder/movie/seed-1"} <= set(ran[0])
    assert not any("tiny-causal/" in name for name in ran[0] if name.startswith("language"))
    assert cli.main(["sweep", str(small), "--out", str(tmp_path)]) == 0
    assert len(ran) == 1 and "4 cells, 4 of them done" in capsys.readouterr().out
    grid = LANGUAGE["grid"] | {"seed": [0, 1, 2]}
    large = written(tmp_path, LANGUAGE | {"grid": grid}, "two.yaml")
    assert cli.main(["sweep", str(large), "--out", str(tmp_path)]) == 0
    assert ran[1] == [f"language/tiny-encoder/{task}/seed-2" for task in ("movie", "sarcasm")]


def test_what_the_ordinary_run_made_is_not_run_again(tmp_path, ran):
    from oral_lib.workflow import reproduce

    words = ["--scale", "smoke", "--only", "language*", "--out", str(tmp_path)]
    assert reproduce.main(words) == 0
    assert cli.main(["sweep", str(written(tmp_path, LANGUAGE)), "--out", str(tmp_path)]) == 0
    assert ran[1] == [f"language/tiny-encoder/{task}/seed-1" for task in ("movie", "sarcasm")]


def test_a_dry_run_tells_the_cells_and_starts_nothing(tmp_path, ran, capsys):
    path = written(tmp_path, LANGUAGE)
    assert cli.main(["sweep", str(path), "--dry-run", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "language/tiny-encoder/movie/seed-1: metrics.csv is missing" in said
    assert not ran and not (tmp_path / "runs").exists()


def test_the_report_takes_cells_that_a_sweep_added_but_none_of_another_generator(
    tmp_path, monkeypatch
):
    run = oral_lib.Run("smoke", out=tmp_path)
    monkeypatch.setattr(oral_lib.Run, "cell", lambda *given: None)

    from oral_lib.evaluation import results

    names = ["generator", "through_base"]
    for name in names:
        storage.write_json(run.root / name / "manifest.json", {"losses": [1.0]})
    networks = results.network_hashes(run.root, names)
    folders = {
        seed: paths.cell_folder(run.root, "language", "tiny-encoder", "movie", seed)
        for seed in (1, 2, 3)
    }
    for seed, hashes in ((1, networks), (2, {"generator": "of another generator"})):
        folders[seed].mkdir(parents=True)
        for name in ("metrics.csv", "items.parquet"):
            (folders[seed] / name).touch()
        about = {"networks": hashes, "wordings": "development"}
        storage.write_json(folders[seed] / "cell.json", about)
    folders[3].mkdir()
    planned = [cell for cell in run.cells() if cell not in folders.values()]
    assert run.cells() == [*planned, folders[1]]
    assert len(planned) == sum(len(cells.tasks) for cells in scales.base_plans("smoke"))


@pytest.mark.parametrize("way", ["-p", "-f"])
def test_plain_papermill_takes_the_parameters_of_a_cell(tmp_path, way):
    given = ["-p", "groups", "gauge", "-p", "rows", "7"]
    if way == "-f":
        given = ["-f", str(written(tmp_path, {"groups": "gauge", "rows": 7}))]
    notebook = str(notebooks.find("70_ablations"))
    words = [sys.executable, "-m", "papermill", notebook, str(tmp_path / "a.ipynb")]
    done = subprocess.run([*words, "--prepare-only", *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "a.ipynb").read_text())["cells"]
    [injected] = [c for c in cells if "injected-parameters" in c["metadata"].get("tags", [])]
    assert {'groups = "gauge"', "rows = 7"} <= {line.strip() for line in injected["source"]}
