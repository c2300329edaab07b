"""Cells measure the development paraphrases; the test paraphrases only where a run says so."""

from dataclasses import replace

import pytest

from oral_lib import paths, storage
from oral_lib.errors import UsageError
from oral_lib.evaluation import results
from oral_lib.experiments.conditions import Pickers, Size, questions_of
from oral_lib.models.text_encoder import TextEncoder
from oral_lib.tasks import wordings
from oral_lib.tasks.task import load_task
from oral_lib.workflow import cli, plan, reproduce
from oral_lib.workflow.run import Run

TASK = replace(
    load_task("movie"), paraphrases={"train": ["a"], "development": ["b", "c"], "test": ["d"]}
)


def test_each_choice_reads_its_own_paraphrases_and_the_default_is_development():
    encoder, size = TextEncoder("tiny"), Size(rows=1, control_rows=1)
    pickers = Pickers.of(["movie", "sarcasm"], encoder)
    for name, texts in (("development", ("b", "c")), ("test", ("d",))):
        asked = questions_of(TASK, pickers, encoder, size, seed=0, wordings=name)
        by_condition = {question.condition: question.texts for question in asked}
        assert by_condition["paraphrase"] == texts
        assert {"a", "b", "c", "d"} & {t for part in by_condition.values() for t in part} == {
            *texts
        }
    assert wordings.DEFAULT == "development"


def test_a_run_folder_records_one_choice(tmp_path):
    assert wordings.recorded(tmp_path) == "development"
    for name in ("test", "development", "test"):
        wordings.record(tmp_path, name)
        assert wordings.recorded(tmp_path) == name
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UsageError, match="use one of development, test"):
        wordings.record(tmp_path, "both")
    assert wordings.recorded(tmp_path) == "test"


def test_a_run_measures_what_its_folder_records_unless_it_is_given_another_choice(tmp_path):
    run = Run("smoke", out=tmp_path)
    assert run.measured_wordings == "development"
    wordings.record(paths.run_folder("smoke", "made", tmp_path), "test")
    assert run.measured_wordings == "test"
    assert Run("smoke", out=tmp_path, wordings="development").measured_wordings == "development"
    vision = Run("smoke", out=tmp_path, experiment="vision")
    assert vision.measured_wordings == "test", "all experiments of a run measure the same"


@pytest.mark.parametrize("name", ["tests", "train", "Development"])
def test_another_word_is_refused(name, tmp_path):
    with pytest.raises(UsageError, match="use one of development, test"):
        Run("smoke", out=tmp_path, wordings=name)


def test_a_cell_of_other_wordings_or_of_the_first_release_is_outdated(tmp_path):
    from made_results import made

    folder = results.write_cell(tmp_path / "cell", *made(), {"generator": "a"}, "development")
    assert results.is_current(folder, {"generator": "a"}, "development")
    assert not results.is_current(folder, {"generator": "a"}, "test")
    storage.write_json(folder / "cell.json", {"networks": {"generator": "a"}})
    assert not results.is_current(folder, {"generator": "a"}, "development")


# ---------------------------------------------------------------- the plan
def test_the_test_paraphrases_make_every_cell_due_and_nothing_that_is_trained(tmp_path, capsys):
    run = paths.run_folder("smoke", "made", tmp_path)
    planned = plan.nodes("smoke", "made", tmp_path)
    for node in planned:
        for file in node.outputs:
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        for file in node.published:
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    words = ["--scale", "smoke", "--out", str(tmp_path), "--dry-run"]

    def due(*more):
        assert reproduce.main([*words, *more]) == 0
        printed = capsys.readouterr().out.splitlines()
        return {line.partition(":")[0] for line in printed if not line.startswith(" ")}

    cells = {node.name for node in planned if plan.measures_cells(node)}
    assert cells and all("zoo" not in name and "generator" not in name for name in cells)
    assert not due() & {node.name for node in planned}
    again = due("--wordings", "test") & {node.name for node in planned}
    assert cells <= again and not any(name.rpartition("/")[0].endswith("zoo") for name in again)
    assert not again & {"generator", "regression"}
    wordings.record(run, "test")
    assert not due("--wordings", "test") & cells
    assert cells <= due(), "without the option a run measures the development paraphrases"


def test_the_command_of_cells_records_the_choice_of_the_whole_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "measure", lambda self, base, tasks: self.measured_wordings)
    words = ["cells", "--base", "tiny-encoder", "--scale", "smoke", "--out", str(tmp_path)]
    assert cli.main([*words, "--wordings", "test"]) == 0
    assert Run("smoke", out=tmp_path, experiment="vision").measured_wordings == "test"
    assert cli.main(words) == 0
    assert Run("smoke", out=tmp_path).measured_wordings == "test"
    assert cli.main([*words, "--wordings", "development"]) == 0
    assert Run("smoke", out=tmp_path).measured_wordings == "development"
