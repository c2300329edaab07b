"""The plan names what a run is made of; the graph says what of it is due."""

import os
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from oral_lib import paths, scales
from oral_lib.errors import UsageError
from oral_lib.experiments.records import EXPERIMENTS
from oral_lib.planning import tables
from oral_lib.runner import nodes as graph
from oral_lib.runner.nodes import Node
from oral_lib.workflow import cli, plan, reproduce

SCALES = [("smoke", "made"), ("desk", "packages"), ("lab", "packages"), ("paper", "hub")]


@pytest.fixture(autouse=True)
def agreed(monkeypatch):
    """The terms of Gemma are accepted, as for the five models of the lab."""
    monkeypatch.setenv("ORAL_ACCEPT", "gemma")


def beside(scale: str) -> set[str]:
    """The nodes that the report does without."""
    return {*plan.NOTEBOOKS, *(["ablations"] if scale in ("lab", "paper") else [])}


@pytest.mark.parametrize(("scale", "source"), SCALES)
def test_every_node_reads_only_what_an_earlier_node_or_the_repository_holds(
    scale, source, tmp_path
):
    made = set()
    for node in plan.nodes(scale, source, tmp_path):
        needed = {*node.inputs, *node.after} - made
        assert all(path.startswith(str(paths.ROOT / "notebooks")) for path in needed)
        assert not made & set(node.outputs), "two nodes leave the same file"
        made |= set(node.outputs)
    names = [node.name for node in plan.nodes(scale, source, tmp_path)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("scale", "source"), SCALES)
def test_the_report_needs_every_cell_and_every_cell_the_whole_zoo(scale, source, tmp_path):
    nodes = plan.nodes(scale, source, tmp_path)
    report = graph.with_needs(nodes, graph.select(nodes, ["report"]))
    assert {n.name for n in nodes} - {n.name for n in report} == beside(scale)
    zoo = {path for node in nodes if node.name.startswith("zoo/") for path in node.outputs}
    run = paths.run_folder(scale, source, tmp_path)
    known = scales.members(scale, source) + scales.members(scale, source, held_out=True)
    assert zoo == {str(run / "zoo" / b / t / f"seed-{s}" / "run.json") for b, t, s in known}
    for job in scales.generator_jobs(scale):
        start = scales.starts_from("language", job)
        before = {str(run / start / "manifest.json")} if start else set()
        assert zoo | before == set(graph.select(nodes, [job.name])[0].inputs)


@pytest.mark.parametrize(("scale", "source"), SCALES)
def test_the_command_line_takes_every_command_of_the_plan(scale, source, tmp_path):
    parser = cli.parser()
    for node in plan.nodes(scale, source, tmp_path):
        assert node.command[:2] == plan.PROJECT
        args = parser.parse_args(node.command[2:])
        if args.command != "notebook":
            assert (args.scale, args.source, args.out) == (scale, source, tmp_path)


@pytest.mark.parametrize(("scale", "source"), SCALES)
def test_snakemake_may_delete_only_what_lies_in_the_run_folder(scale, source, tmp_path):
    run = paths.run_folder(scale, source, tmp_path)
    for node in plan.nodes(scale, source, tmp_path):
        assert all(path.startswith(f"{run}{os.sep}") for path in node.outputs)
        assert all(path.startswith(str(tmp_path / "results")) for path in node.published)


def test_the_paper_is_planned_with_its_five_models_and_seven_tasks_on_gpus(tmp_path):
    zoo = graph.select(plan.nodes("paper", "hub", tmp_path), ["zoo/*"])
    assert {node.name for node in zoo} == {f"zoo/{base}" for base in tables.PAPER_BASES}
    assert all(node.gpu == 1 and len(node.outputs) == 7 * 10 for node in zoo)
    assert len(tables.PAPER_BASES) == 5 and len(tables.PAPER_TASKS) == 7


def test_the_lab_has_five_language_models_and_four_where_terms_are_not_accepted(monkeypatch):
    names = [cells.base for cells in scales.base_plans("lab")]
    four = ["minilm-l6", "minilm-l3", "smollm2-135m", "smollm2-135m-t4"]
    assert names == [*four, "gemma-3-270m"]
    monkeypatch.setenv("ORAL_ACCEPT", "")
    assert [cells.base for cells in scales.base_plans("lab")] == four
    monkeypatch.setenv("ORAL_ACCEPT", "llama, gemma")
    assert [cells.base for cells in scales.base_plans("lab")] == names


def test_no_model_under_terms_is_planned_before_they_are_accepted(monkeypatch):
    from oral_lib.assets import packages

    monkeypatch.setenv("ORAL_ACCEPT", "")
    for source in ("packages", "local:x", "hub"):
        assert not {c.base for c in scales.base_plans("lab", source)} & set(packages.TERMS)


def test_who_asks_for_a_model_under_terms_is_told_how_to_accept_them(monkeypatch, refused):
    monkeypatch.setenv("ORAL_ACCEPT", "")
    with refused(
        UsageError, "gemma-3-270m", "https://ai.google.dev/gemma/terms", "ORAL_ACCEPT=gemma"
    ):
        scales.base_plan("lab", "gemma-3-270m")
    monkeypatch.setenv("ORAL_ACCEPT", "gemma")
    assert scales.base_plan("lab", "gemma-3-270m").base == "gemma-3-270m"


def test_learning_rates_are_chosen_before_a_zoo_is_trained_with_them(tmp_path):
    nodes = {node.name: node for node in plan.nodes("lab", "packages", tmp_path)}
    place = {name: i for i, name in enumerate(nodes)}
    for cells in scales.base_plans("lab"):
        zoo = nodes[f"zoo/{cells.base}"]
        tune = nodes[f"tune/{cells.parent or cells.base}"]
        assert set(tune.outputs) <= set(zoo.inputs) and place[tune.name] < place[zoo.name]
        chosen = {path.rpartition("/")[2].removesuffix(".json") for path in tune.outputs}
        assert chosen >= set(cells.tasks)
    untuned = [n for n in plan.nodes("desk", "packages", tmp_path) if n.name.startswith("tune/")]
    assert untuned == []


def test_a_later_version_is_made_first_and_trained_with_the_recipes_of_its_model(tmp_path):
    nodes = plan.nodes("lab", "packages", tmp_path)
    needed = graph.with_needs(nodes, graph.select(nodes, ["zoo/smollm2-135m-t4"]))
    assert {n.name for n in needed} == {
        "assets", "tune/smollm2-135m", "evolve/smollm2-135m-t4", "zoo/smollm2-135m-t4",
    }  # fmt: skip
    assert not [n for n in nodes if n.name == "tune/smollm2-135m-t4"]


@pytest.mark.parametrize(("scale", "source"), [*SCALES, ("lab", "local:x"), ("lab", "hub")])
def test_no_encoder_is_asked_to_write(scale, source):
    from oral_lib.models import registry
    from oral_lib.tasks.task import load_task, task_names

    asked = {(c.base, task) for c in scales.base_plans(scale, source) for task in c.tasks}
    written = {(b, t) for b, t in asked if load_task(t).scoring == "answer"}
    assert {t for t in task_names() if load_task(t).scoring == "answer"} == set(tables.FREE_FORM)
    assert not [b for b, _ in written if registry.spec(b).family == "encoder"]
    assert bool(written) == (scale in ("lab", "paper"))  # and models that can write are asked


@pytest.mark.parametrize(("scale", "source"), SCALES)
def test_held_out_seeds_are_in_the_zoo_and_no_generator_is_told_of_them(scale, source):
    told = scales.members(scale, source)
    kept = scales.members(scale, source, held_out=True)
    assert not set(told) & set(kept)
    assert kept
    for cells in scales.base_plans(scale, source):
        for task in cells.tasks:
            seeds = [s for b, t, s in [*told, *kept] if (b, t) == (cells.base, task)]
            assert seeds == scales.zoo_seeds(scale, cells.base, source)


def test_where_there_is_a_gpu_one_process_measures_all_cells_and_notebooks_show_them(tmp_path):
    nodes = {node.name: node for node in plan.nodes("lab", "packages", tmp_path)}
    cells = {name: node for name, node in nodes.items() if name.startswith("language/")}
    for name, node in cells.items():
        measured = nodes[f"cells/{name.split('/')[1]}"]
        assert node.after == measured.outputs and node.inputs[1:] == measured.inputs
        assert node.resumes  # or what was measured would be removed first
    assert cells and not [
        n.name for n in plan.nodes("desk", "packages", tmp_path) if n.name.startswith("cells/")
    ]


def test_every_seed_of_a_cell_has_a_generator_of_its_own_as_far_as_there_are_any():
    assert [scales.generator_of("lab", s) for s in range(3)] == [*scales.generators("lab")[:3]]
    for cells in scales.base_plans("lab"):
        assert len({scales.generator_of("lab", seed) for seed in range(cells.seeds)}) == 3
    assert scales.generator_of("lab", 3) == scales.generator_of("smoke", 1) == "generator"
    assert {"regression", "unconditional"} < set(scales.generators("lab"))


def test_every_generator_has_a_kind_and_a_seed_and_is_looked_up_by_its_name(refused):
    jobs = scales.generator_jobs("lab")
    assert [job.name for job in jobs] == list(scales.generators("lab"))
    assert [(job.kind, job.seed) for job in jobs[:3]] == [("generator", s) for s in range(3)]
    through = [job for job in jobs if job.kind == "through_base"]
    assert [scales.starts_from("language", job) for job in through] == [
        *scales.generators("lab")[:3]
    ]
    assert {job.seed for job in jobs[3:] if job not in through} == {0}
    assert scales.generator_job("lab", "generator-2") == jobs[2]
    with refused(UsageError, "trains no 'genrator'", "Did you mean 'generator'"):
        scales.generator_job("lab", "genrator")
    with refused(UsageError, "trains no 'generator-1'"):
        scales.generator_job("smoke", "generator-1", "vision")


def test_every_base_model_is_planned_in_the_experiment_that_the_registry_names():
    from oral_lib.models import registry

    for scale, source in [*SCALES, ("lab", "local:x"), ("paper", "local:x")]:
        for experiment in scales.EXPERIMENT_NAMES:
            for plan_of_base in scales.base_plans(scale, source, experiment):
                shared = EXPERIMENTS[experiment].has_splits  # with the models of language
                entry = registry.spec(plan_of_base.base)
                named = ("language", "intents") if shared else (experiment,)
                assert entry.experiment in named


def test_the_desk_scale_runs_from_packages_alone():
    for source in ("hub", "local:x"):
        with pytest.raises(UsageError, match="'desk' runs from source 'packages' only"):
            plan.nodes("desk", source)


def test_unknown_scale_source_and_base_are_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match=r"unknown scale 'labb'.*'lab'"):
        plan.nodes("labb", "packages")
    for source in ("package", "local:", "local", "packages:x", "hub:x"):
        with pytest.raises(UsageError, match="unknown source"):
            paths.slug(source)
    with pytest.raises(UsageError, match=r"no base 'minilm'.*'minilm-l6'"):
        scales.zoo_seeds("lab", "minilm")


def test_a_task_is_planned_from_a_source_only_where_its_file_says_that_it_has_rows_there(tmp_path):
    from oral_lib.tasks.task import load_task, task_names

    for source in ("packages", "local:x", "hub"):
        kind = paths.slug(source)
        wanted = {t for t in task_names("language") if kind in load_task(t).sources}
        for cells in scales.base_plans("lab", source):
            planned = set(cells.tasks)
            assert planned in (wanted, wanted - set(tables.FREE_FORM))
            assert cells.base != "smollm2-135m" or planned == wanted
        assert plan.nodes("lab", source, tmp_path)


def test_a_base_of_another_source_is_told_from_one_that_there_is_not(refused):
    with refused(UsageError, "'qwen2.5-0.5b' from 'packages'", "--source hub has it"):
        scales.base_plan("lab", "qwen2.5-0.5b")


def test_what_is_no_cell_of_the_scale_is_refused_with_the_nearest_name():
    scales.check_cell("lab", "packages", "minilm-l6", "movie")
    with pytest.raises(UsageError, match=r"no base 'minilm'.*'minilm-l6'"):
        scales.check_cell("lab", "packages", "minilm", "movie")
    with pytest.raises(UsageError, match=r"no task 'sarcsm' on 'smollm2-135m'.*'sarcasm'"):
        scales.check_cell("lab", "packages", "smollm2-135m", "sarcsm")
    with pytest.raises(UsageError, match="from source 'hub' has no task 'sarcasm'"):
        scales.check_cell("lab", "hub", "minilm-l6", "sarcasm")


@pytest.mark.parametrize(("scale", "source"), SCALES)
def test_a_star_selects_every_language_cell_and_with_them_all_that_they_need(
    scale, source, tmp_path
):
    nodes = plan.nodes(scale, source, tmp_path)
    chosen = graph.select(nodes, ["language*"])
    assert len(chosen) == sum(len(c.tasks) * c.seeds for c in scales.base_plans(scale, source))
    needed = {node.name for node in graph.with_needs(nodes, chosen)}
    apart = tuple(f"{name}/" for name in scales.EXPERIMENT_NAMES if name != "language")
    others = {node.name for node in nodes if node.name.startswith(apart)}
    assert {node.name for node in nodes} - needed == {"report"} | beside(scale) | others


def test_hundreds_of_tasks_are_trained_by_one_node_measured_by_one_and_shown_by_one(tmp_path):
    nodes = plan.nodes("lab", "local:x", tmp_path)
    chosen = {node.name: node for node in graph.select(nodes, ["unseen*"])}
    base = "efficientnet-lite0-yes-no"
    seeded = [
        f"{kind}{seed}" for kind in ("generator", "through_base") for seed in ("", "-1", "-2")
    ]
    kinds = [*seeded, "regression", "multitask"]
    names = ["assets", f"zoo/{base}", *kinds, f"cells/{base}", "notebook", "report"]
    assert list(chosen) == [f"unseen/{name}" for name in names]
    [cells] = scales.base_plans("lab", "local:x", "unseen")
    assert len(chosen[f"unseen/zoo/{base}"].outputs) == len(cells.zoo_tasks) > 150
    assert graph.with_needs(nodes, list(chosen.values())) == list(chosen.values())


def test_each_base_model_of_intents_has_its_zoo_its_rivals_and_one_node_for_all_cells(tmp_path):
    nodes = plan.nodes("lab", "local:x", tmp_path)
    chosen = {node.name: node for node in graph.select(nodes, ["intents*"])}
    bases = [cells.base for cells in scales.base_plans("lab", "local:x", "intents")]
    assert bases == ["minilm-l6", "minilm-l3", "smollm2-135m", "smollm2-135m-all"]
    steps = [f"{step}/{base}" for base in bases for step in ("zoo", "rivals")]
    networks = scales.generators("lab", "intents", "local:x")
    names = ["assets", *steps, *networks, *(f"cells/{base}" for base in bases), "notebook"]
    assert list(chosen) == [f"intents/{name}" for name in [*names, "report"]]
    trained = [path for step in steps for path in chosen[f"intents/{step}"].outputs]
    for name in networks:
        assert sorted(chosen[f"intents/{name}"].inputs) == sorted(trained)
    assert graph.with_needs(nodes, list(chosen.values())) == list(chosen.values())


@pytest.mark.parametrize(("scale", "source"), [("smoke", "made"), ("desk", "packages")])
def test_without_a_gpu_one_process_does_a_step_of_intents_for_all_base_models(
    scale, source, tmp_path
):
    chosen = graph.select(plan.nodes(scale, source, tmp_path), ["intents*"])
    bases = [cells.base for cells in scales.base_plans(scale, source, "intents")]
    for step in ("zoo", "rivals", "cells"):
        [node] = [node for node in chosen if node.name == f"intents/{step}"]
        assert len(node.outputs) == len(bases)
        args = cli.parser().parse_args(node.command[2:])
        assert (args.experiment, args.base) == ("intents", "")


def test_the_split_of_another_set_has_networks_of_its_own_where_there_is_another_set():
    place = ("lab", "local:x", "intents")
    assert [scales.cell_networks(*place, "L3", seed)["through_base"] for seed in range(3)] == [
        "through_base-L3", "through_base-L3-1", "through_base-L3-2",
    ]  # fmt: skip
    for split in ("L0", "L1", "L2"):
        assert scales.cell_networks(*place, split, 0) == {
            "through_base": "through_base", "weights": "weights",
        }  # fmt: skip
        assert scales.cell_networks(*place, split, 2) == {"through_base": "through_base-2"}
    trained = scales.generators(*place[::2], place[1])
    measured = [
        name
        for cells in scales.base_plans(*place)
        for split in cells.tasks
        for seed in range(cells.seeds)
        for name in scales.cell_networks(*place, split, seed).values()
    ]
    assert set(measured) == set(trained)
    assert not [name for name in scales.generators("lab", "intents", "packages") if "L3" in name]
    assert "L3" not in scales.base_plan("lab", "minilm-l3", "packages", "intents").tasks


@pytest.mark.parametrize(("scale", "source"), SCALES)
def test_every_network_is_measured_by_some_cell(scale, source):
    for name in scales.experiments(scale, source):
        measured = {
            network
            for cells in scales.base_plans(scale, source, name)
            for task in cells.cell_tasks
            for seed in range(cells.seeds)
            for network in scales.cell_networks(scale, source, name, task, seed).values()
        }
        assert measured == set(scales.generators(scale, name, source))


def test_a_model_that_two_experiments_share_is_that_of_language_unless_intents_is_named():
    assert "movie" in scales.base_plan("lab", "minilm-l6").tasks
    assert "L2" in scales.base_plan("lab", "minilm-l6", experiment="intents").tasks
    with pytest.raises(UsageError, match="has no task 'L4'"):
        scales.check_cell("lab", "packages", "minilm-l6", "L4", "intents")


@pytest.mark.parametrize("name", ["vision", "multimodal"])
@pytest.mark.parametrize(("scale", "source"), [("smoke", "made"), ("lab", "packages")])
def test_a_star_selects_all_of_an_experiment_and_nothing_of_others_is_needed(
    scale, source, name, tmp_path
):
    nodes = plan.nodes(scale, source, tmp_path)
    chosen = graph.select(nodes, [f"{name}*"])
    assert graph.with_needs(nodes, chosen) == chosen and chosen[-1].name == f"{name}/report"
    root = paths.experiment_folder(scale, source, tmp_path, name)
    models = scales.base_plans(scale, source, name)
    for cells in models:
        for task in cells.tasks:
            for seed in range(cells.seeds):
                folder = paths.cell_folder(root, name, cells.base, task, seed)
                assert str(folder / "metrics.csv") in chosen[-1].inputs
    assert len(chosen[-1].inputs) == 2 * sum(len(c.tasks) * c.seeds for c in models)


def test_the_ablations_of_a_run_are_the_whole_study(tmp_path):
    from oral_lib.workflow import notebooks

    [node] = [n for n in plan.nodes("lab", "packages", tmp_path) if n.name == "ablations"]
    given = dict(pair for pair in pairwise(node.command) if pair[0].islower())
    assert (given["groups"], given["steps"], given["rows"]) == ("all", "0", "300")
    known = {n: given[n] for n in ("groups", "steps", "rows", "samples", "bases", "scale")}
    notebooks.typed_parameters(notebooks.find("70_ablations"), known | {"source": "packages"})


@pytest.mark.parametrize(
    ("scale", "source"),
    [("smoke", "made"), ("desk", "packages"), ("lab", "packages"), ("lab", "local:x"),
     ("lab", "hub"), ("paper", "hub"), ("paper", "local:x")],
)  # fmt: skip
def test_the_notebooks_for_a_first_look_find_a_task_at_every_scale(scale, source):
    planned = {cells.base: cells.tasks for cells in scales.base_plans(scale, source)}
    first = {"tiny-causal", "smollm2-135m"} & set(planned) or {next(iter(planned))}
    for name in first:  # as 00_quickstart has it
        assert {"movie", "sst2"} & set(planned[name])


@pytest.mark.parametrize(
    ("stem", "given"),
    [
        ("22_style", {"task": "movie", "base": "tiny-encoder"}),
        ("10_language", {"task": "digits", "base": "tiny-convnet"}),
        ("70_ablations", {"bases": "tiny-convnet"}),
    ],
)
def test_a_notebook_takes_no_base_model_of_another_experiment(stem, given, refused):
    from oral_lib.workflow import notebooks

    base = given.get("bases") or given["base"]
    with refused(UsageError, f"scale 'smoke' has no base {base!r}"):
        notebooks.typed_parameters(notebooks.find(stem), given)


def test_every_experiment_has_a_notebook_that_takes_the_parameters_of_its_cells():
    from oral_lib.workflow import notebooks

    assert list(EXPERIMENTS) == list(scales.EXPERIMENT_NAMES)
    for name, record in EXPERIMENTS.items():
        assert record.name == name
        parameters = notebooks.parameters(notebooks.find(record.notebook))
        assert {"seed", "scale", "source", "out"} <= set(parameters)
        assert record.shows_all_cells or {"task", "base"} <= set(parameters)


@pytest.mark.parametrize(("scale", "source"), [("smoke", "made"), ("paper", "local:x")])
def test_every_cell_of_a_style_has_a_notebook_and_the_report_needs_them_all(
    scale, source, tmp_path, monkeypatch
):
    monkeypatch.setattr(scales, "find_spec", lambda name: object())  # diffusers or not
    nodes = plan.nodes(scale, source, tmp_path)
    chosen = {node.name: node for node in graph.select(nodes, ["style*"])}
    [cells] = scales.base_plans(scale, source, "style")
    for task in cells.tasks:
        for seed in range(cells.seeds):
            shown = chosen[f"style/{cells.base}/{task}/seed-{seed}"]
            assert shown.inputs[0].endswith("22_style.ipynb")
            assert set(shown.outputs[:2]) <= set(chosen["style/report"].inputs)
            if scale == "paper":  # one process measures all
                assert shown.after == chosen[f"style/cells/{cells.base}"].outputs
    assert len(chosen["style/report"].inputs) == 2 * len(cells.tasks) * cells.seeds


def test_a_folders_own_backbones_take_part(tmp_path):
    names = [c.base for c in scales.base_plans("lab", f"local:{tmp_path}", "vision")]
    assert names == [f"efficientnet-lite{n}" for n in range(3)]
    (tmp_path / "models" / "vit-tiny").mkdir(parents=True)
    (tmp_path / "models" / "vit-tiny" / "config.json").write_text("{}")
    own = [c.base for c in scales.base_plans("lab", f"local:{tmp_path}", "vision")]
    assert own == [*names, "vit-tiny"]


@pytest.mark.parametrize("source", ["packages", "local:x", "hub"])
def test_pictures_are_planned_where_their_files_say_that_there_are_any(source):
    from oral_lib.models import registry
    from oral_lib.tasks.task import load_task, task_names

    kind = paths.slug(source)
    wanted = {t for t in task_names("vision") if kind in load_task(t).sources}
    for cells in scales.base_plans("lab", source, "vision"):
        assert set(cells.tasks) == wanted
        assert registry.spec(cells.base).experiment == "vision"


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name(tmp_path):
    nodes = plan.nodes("lab", "packages", tmp_path)
    with pytest.raises(UsageError, match="Did you mean 'generator'"):
        graph.select(nodes, ["zoo/*", "genrator"])
    with pytest.raises(UsageError, match=r"Did you mean 'zoo/\*'"):
        graph.select(nodes, ["zooo/*"])


def test_a_node_that_leaves_nothing_or_costs_nothing_is_refused():
    with pytest.raises(UsageError, match="has no output"):
        Node("one", (), ())
    with pytest.raises(UsageError, match="memory_mb=0"):
        Node("one", ("x",), (), memory_mb=0)


def chain(tmp_path) -> list[Node]:
    """source -> one -> two -> three, and three also wants a cache to be there."""
    a, b, c, cache, page = (str(tmp_path / n) for n in ("a", "b", "c", "cache", "page"))
    return [
        Node("cache", (cache,), ()),
        Node("one", (a,), (), inputs=(str(tmp_path / "source"),)),
        Node("two", (b,), (), inputs=(a,)),
        Node("three", (c,), (), inputs=(b,), after=(cache,), published=(page,)),
    ]


def put(tmp_path, name: str, age: float) -> None:
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (time.time() - age,) * 2)


@pytest.fixture
def done(tmp_path):
    for age, name in enumerate(["cache", "page", "c", "b", "a", "source"]):
        put(tmp_path, name, 100.0 * (age + 1))
    return tmp_path


def test_nothing_is_due_when_all_is_there_however_new_a_cache_is(done):
    assert graph.due(chain(done)) == {}
    put(done, "cache", 0)
    assert graph.due(chain(done)) == {}


def test_a_newer_input_makes_its_node_and_all_behind_it_due(done):
    put(done, "a", 0)
    assert graph.due(chain(done)) == {"two": "a is newer", "three": "two runs again"}


def test_a_missing_or_published_or_forced_file_makes_its_node_due(done):
    (done / "page").unlink()
    assert graph.due(chain(done)) == {"three": "page is missing"}
    assert list(graph.due(chain(done), {"one"})) == ["one", "two", "three"]
    (done / "cache").unlink()
    assert list(graph.due(chain(done))) == ["cache", "three"]


def test_an_input_that_nobody_makes_is_found(done):
    assert graph.missing_inputs(chain(done)) == []
    (done / "source").unlink()
    assert graph.missing_inputs(chain(done)) == [str(done / "source")]


def test_a_plan_is_read_as_it_was_written_and_belongs_to_one_source(tmp_path):
    nodes = chain(tmp_path)
    graph.write_plan(tmp_path / "plan.json", nodes, "local:/a")
    assert graph.read_plan(tmp_path / "plan.json") == nodes
    graph.same_source(tmp_path / "plan.json", "local:/a")
    with pytest.raises(UsageError, match="has a run of --source local:/a, not local:/b"):
        graph.same_source(tmp_path / "plan.json", "local:/b")


def test_the_time_left_follows_the_pace_of_what_is_done():
    nodes = [Node(name, (name,), (), minutes=10) for name in "abc"]
    assert graph.minutes_left(nodes, {}, {}, 1) == 30
    assert graph.minutes_left(nodes, {"a": 5.0}, {"b": 4.0}, 1) == 1 + 5
    assert graph.minutes_left(nodes, {"a": 5.0}, {"b": 9.0}, 2) == 2.5
    assert graph.minutes_left(nodes, {"a": 5.0, "b": 5.0, "c": 5.0}, {}, 1) == 0
    assert graph.minutes_left(nodes, {"a": 0.01}, {}, 1) == 20  # what was there sets no pace
    assert graph.minutes_left(nodes, {"a": 0.01, "b": 5.0}, {}, 1) == 5


def test_snakemake_alone_plans_the_paper_for_a_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RELEASED", paths.ROOT / "results" / "generators")  # as there
    words = [sys.executable, "-m", "snakemake", "-s", str(paths.ROOT / "Snakefile"), "--dry-run"]
    words += ["--directory", str(tmp_path), "--cores", "1", "--scheduler", "greedy", "--quiet"]
    words += ["rules", "--config", "scale=paper", "source=hub", f"out={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    wanted = len(plan.nodes("paper", "hub", tmp_path)) + 1  # and the rule that asks for all
    assert f"total {wanted}" in " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize(("scale", "source"), [("smoke", "made"), ("lab", "local:x")])
def test_two_towers_are_aligned_before_anything_is_trained_on_them(scale, source, tmp_path):
    from oral_lib.models import registry
    from oral_lib.tasks.task import load_task

    nodes = plan.nodes(scale, source, tmp_path)
    [cells] = scales.base_plans(scale, source, "multimodal")
    assert registry.spec(cells.base).alignment and cells.aligned
    first = [n.name for n in nodes if n.name.startswith("multimodal/")]
    align = first.index(f"multimodal/align/{cells.base}")
    assert align < min(i for i, n in enumerate(first) if "/tune/" in n or "/zoo/" in n)
    zoo = next(n for n in nodes if n.name == f"multimodal/zoo/{cells.base}")
    chosen = graph.with_needs(nodes, [zoo])
    assert f"multimodal/align/{cells.base}" in [n.name for n in chosen]
    kind = paths.slug(source)
    if kind != "made":
        assert all(kind in load_task(task).sources for task in cells.tasks)


def test_where_no_pictures_with_texts_are_nothing_multimodal_is_planned():
    assert "multimodal" not in scales.experiments("lab", "hub")
    assert "multimodal" not in scales.experiments("paper", "packages")


# ---------------------------------------------------------------- the first look
@pytest.fixture
def released(tmp_path, monkeypatch):
    """A folder in the place of the released generator of the desk scale."""
    folder = tmp_path / "generators" / "desk"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    monkeypatch.setattr(paths, "RELEASED", folder.parent)
    return folder


@pytest.mark.parametrize(("scale", "source"), SCALES[1:])
def test_the_first_look_needs_the_released_generator_only(scale, source, released, tmp_path):
    nodes = plan.nodes(scale, source, tmp_path)
    assert nodes[0].name == "quickstart"
    assert graph.with_needs(nodes, nodes[:1]) == nodes[:1]
    assert nodes[0].inputs == (str(released / "manifest.json"),) and not nodes[0].gpu
    assert cli.parser().parse_args(nodes[0].command[2:]).command == "quickstart"


def test_without_a_released_generator_or_a_network_nothing_is_planned(released, tmp_path):
    assert "quickstart" not in {node.name for node in plan.nodes("smoke", "made", tmp_path)}
    (released / "manifest.json").unlink()
    assert "quickstart" not in {node.name for node in plan.nodes("desk", "packages", tmp_path)}


@pytest.mark.parametrize(
    ("scale", "words"), [("smoke", "Leave out --scale smoke"), ("desk", "Clone the repository")]
)
def test_a_first_look_that_is_not_planned_says_why(scale, words, tmp_path, capsys):
    line = ["--only", "quickstart", "--scale", scale, "--out", str(tmp_path), "--dry-run"]
    assert reproduce.main(line) == (2 if scale == "smoke" else 3)
    [said] = capsys.readouterr().err.splitlines()
    assert words in said
