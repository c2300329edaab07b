"""Asking: raw texts and images in, what a base model answers without and with an adapter out."""

import json
import sys

import pytest
import torch

import oral_lib
from oral_lib import storage
from oral_lib.errors import OralError, UsageError
from oral_lib.evaluation.evaluate import evaluate
from oral_lib.lora import peft_folder
from oral_lib.models import registry
from oral_lib.prompting import answers, forms
from oral_lib.tasks.task import Task, load_task, task_names
from oral_lib.workflow import cli

torch.set_num_threads(1)
TEXTS = ["a superb film", "dull of the scene", "it was boring"]


@pytest.fixture(scope="module")
def adapter(smoke):
    """A function: a zoo adapter of a base model and task, as a generated one."""

    def make(base="tiny-causal", task="movie", folder=None):
        [member] = [m for m in smoke.members(base) if (m.task, m.seed) == (task, 0)]
        config = smoke.base(base).peft_config().to_dict()
        card = peft_folder.Card("text", base, "a zoo", 0)
        return oral_lib.PromptedLora(member.tensors, config, card, load_task(task))

    return make


@pytest.mark.parametrize("base", ["tiny-causal", "tiny-encoder"])
def test_an_answer_is_that_of_the_evaluation(base, adapter):
    lora, task = adapter(base), load_task("movie")
    rows = oral_lib.task_rows(task, "made").test[:20]
    said = oral_lib.ask(base, lora, [row.text for row in rows])
    [outcome] = evaluate(oral_lib.load_base(base, source="made"), task, rows, [lora.tensors])
    assert [answer.answer for answer in said] == [task.labels[i] for i in outcome.predicted]
    for answer, likely in zip(said, outcome.likely, strict=True):
        expected = dict(zip(task.labels, likely.softmax(-1).tolist(), strict=True))
        assert answer.probabilities == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("base", ["tiny-causal", "tiny-encoder"])
def test_the_adapter_is_the_same_as_a_folder_as_an_object_and_as_tensors(base, adapter, tmp_path):
    lora = adapter(base)
    expected = oral_lib.ask(base, lora, TEXTS)
    folder = lora.save(tmp_path / "lora")
    loaded = oral_lib.load_base(base, source="made")
    assert oral_lib.ask(base, folder, TEXTS) == expected
    assert oral_lib.ask(loaded, str(folder), TEXTS) == expected
    assert oral_lib.ask(base, lora.tensors, TEXTS, task="movie") == expected
    alone = oral_lib.ask(base, lora, TEXTS[1], task=load_task("movie"))
    assert alone.answer == expected[1].answer  # products of another shape round otherwise
    assert alone.probabilities == pytest.approx(expected[1].probabilities, abs=1e-5)
    without = oral_lib.ask(base, None, TEXTS, task="movie")
    assert without != expected and without == oral_lib.ask(
        base, loaded.lora_init(), TEXTS, task="movie"
    )


def test_before_and_after_are_the_answers_without_and_with_the_adapter(adapter):
    lora = adapter()
    task, pairs = answers.before_and_after("tiny-causal", lora, TEXTS)
    assert task.name == "movie"
    assert [a for a, _ in pairs] == oral_lib.ask("tiny-causal", None, TEXTS, task="movie")
    assert [b for _, b in pairs] == oral_lib.ask("tiny-causal", lora, TEXTS)


def test_another_task_asks_in_its_own_form(adapter):
    answer = oral_lib.ask("tiny-causal", adapter(), "a superb film", task="sarcasm")
    assert sorted(answer.probabilities) == sorted(load_task("sarcasm").labels)


def test_a_task_of_written_answers_gets_a_written_text():
    answer = oral_lib.ask("tiny-causal", None, "3 + 4", task="arithmetic")
    assert answer.written and not answer.probabilities
    assert answer.answer == load_task("arithmetic").extracted(answer.written)
    assert str(answer) == answer.answer or answer.written in str(answer)


def test_an_answer_prints_the_likeliest_labels_first():
    many = {str(i): (i + 1) / 28 for i in range(7)}
    text = str(answers.Answer("x", "6", many))
    assert text == "6 (25%), 5 (21%), 4 (18%), 3 (14%), 2 (11%), ..."


def test_images_are_answered_by_vision_models(tmp_path):
    task = load_task("solar_cells")
    rows = oral_lib.task_rows(task, "made").test[:2]
    files = []
    for row in rows:
        files.append(tmp_path / f"{row.key}.ppm")
        files[-1].write_bytes(row.image)
    base = oral_lib.load_base("tiny-convnet", source="made")
    both = oral_lib.ask(base, None, image=files, task="solar_cells")
    [outcome] = evaluate(base, task, rows, [base.lora_init()])
    assert [a.answer for a in both] == [task.labels[i] for i in outcome.predicted]
    assert oral_lib.ask(base, None, image=rows[1].image, task="solar_cells") == both[1]
    answer = oral_lib.ask(
        "tiny-vision-language", None, "is it red", image=files[0], task="easy_vqa_yesno"
    )
    assert sum(answer.probabilities.values()) == pytest.approx(1)


# ---------------------------------------------------------------- the form next to the weights
@pytest.mark.parametrize("name", task_names())
def test_every_task_comes_back_from_its_form(name, tmp_path):
    task = load_task(name)
    storage.write_json(tmp_path / "oral.json", forms.form_of(task))
    back = forms.read_form(tmp_path)
    assert all(getattr(back, key) == getattr(task, key) for key in forms.FORM_KEYS)


def test_a_folder_without_a_form_needs_the_name_of_a_task(adapter, tmp_path, refused):
    folder = adapter().save(tmp_path / "lora")
    expected = oral_lib.ask("tiny-causal", folder, TEXTS)
    (folder / "oral.json").unlink()
    with refused(UsageError, "task='movie'", "--task"):
        oral_lib.ask("tiny-causal", folder, TEXTS)
    assert oral_lib.ask("tiny-causal", folder, TEXTS, task="movie") == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"template": "{text:>9999999999}"}, "template"),
        ({"template": "{text.__class__}"}, "template"),
        ({"template": "no field"}, "template"),
        ({"labels": ["only"]}, "at least two labels"),
        ({"labels": ["a", "a"]}, "labels"),
        ({"scoring": "exec"}, "scoring"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"odd": 1}, "odd"),
        ({"scoring": "answer", "labels": []}, "answer_pattern"),
        (
            {"scoring": "answer", "labels": [], "max_new_tokens": 9, "answer_pattern": "((a*)*)*b"},
            "answer_pattern",
        ),
    ],
)
def test_a_hostile_form_is_refused_with_file_and_key(adapter, tmp_path, refused, change, words):
    folder = adapter().save(tmp_path / "lora")
    form = json.loads((folder / "oral.json").read_text())
    (folder / "oral.json").write_text(json.dumps(form | change))
    with refused(OralError, "oral.json", words):
        oral_lib.ask("tiny-causal", folder, TEXTS)


def test_a_form_that_leads_out_of_the_folder_is_refused(adapter, tmp_path, refused):
    folder = adapter().save(tmp_path / "lora")
    (folder / "oral.json").rename(tmp_path / "else.json")
    (folder / "oral.json").symlink_to(tmp_path / "else.json")
    with refused(OralError, "leads out of the folder"):
        oral_lib.ask("tiny-causal", folder, TEXTS)


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "empty"),
        (["a", " \u200b"], {}, "text 2 of 2 is empty"),
        ([], {}, "no text"),
        ("half \udce9", {}, "surrogate"),
        ("x" * 100_001, {}, "100,001 letters"),
        ("a", {"image": b"x"}, "leave out the image"),
        ("a", {"task": "digits"}, "name a file with image="),
        ("a", {"task": "quartz"}, "'option'"),
        ("a", {"task": "moive"}, "Did you mean 'movie'"),
    ],
)
def test_an_input_that_cannot_be_answered_is_refused(text, options, words, refused):
    with refused(UsageError, words):
        oral_lib.ask("tiny-causal", None, text, **{"task": "movie", **options})


def test_an_adapter_of_another_base_model_is_refused(adapter, refused, tmp_path):
    with refused(UsageError, "was made for tiny-causal, not tiny-encoder: use --base tiny-causal"):
        oral_lib.ask("tiny-encoder", adapter(), "a film")
    lora = adapter()
    lora.config["base_model_name_or_path"] = "someone/their-model"
    with refused(UsageError, "does not fit base model 'tiny-encoder'"):
        oral_lib.ask("tiny-encoder", lora, "a film")
    with refused(UsageError, "2 labels", "3 classes"):
        base = oral_lib.load_base("tiny-encoder", source="made", labels=3)
        oral_lib.ask(base, adapter("tiny-encoder"), "a film")
    lora = adapter()
    lora.config["lora_alpha"] = 32
    with refused(UsageError, "the scale 8.0, not 2.0"):
        oral_lib.ask("tiny-causal", lora, "a film")


def test_an_image_that_cannot_be_read_is_named(tmp_path, refused):
    with refused(UsageError, "nowhere.png", "No such file"):
        oral_lib.ask("tiny-convnet", None, image=tmp_path / "nowhere.png", task="digits")


# ---------------------------------------------------------------- the command line
def test_ask_prints_both_answers_next_to_each_other(adapter, tmp_path, capsys, monkeypatch):
    folder = adapter().save(tmp_path / "lora")
    words = ["ask", "--base", "tiny-causal", "--lora", str(folder), "--text", "a superb film"]
    assert cli.main([*words, "--text", "dull\nof the scene"]) == 0
    form, head, _, first, second = capsys.readouterr().out.splitlines()
    assert "movie: negative, positive" in form
    assert head.split() == ["input", "tiny-causal", "with", "lora"]
    before, after = answers.before_and_after("tiny-causal", folder, ["a superb film"])[1][0]
    assert first.split()[:3] == ["a", "superb", "film"]
    assert first.split()[3] == before.answer and first.split()[5] == after.answer
    assert "dull of the scene" in second

    class Stdin:
        class buffer:
            read = staticmethod(lambda most: b" a superb film\n")

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert cli.main([*words[:-1], "-"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == first.split()
    assert cli.main(["ask", "--base", "tiny-encoder", "--task", "movie", "--text", "a"]) == 0
    assert "tiny-encoder (untrained head)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("--base tiny-causal --lora {}", 2, "--text is missing"),
        ("--base tiny-causal --text a", 2, "--lora is missing"),
        ("--base tiny-casual --lora {} --text a", 2, "Did you mean 'tiny-causal'?"),
        ("--base tiny-causal --lora {}-x --text a", 2, "Did you mean 'lora'?"),
        ("--base tiny-causal --lora no/such/folder --text a", 2, "no adapter folder 'no/such/fo"),
        ("--base tiny-causal --lora {} --text a --task moive", 2, "'movie'"),
        (
            "--base tiny-encoder --lora {} --text a",
            2,
            "lora was made for tiny-causal, not tiny-encoder: use --base tiny-causal",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_line(adapter, tmp_path, capsys, line, code, words):
    folder = adapter().save(tmp_path / "lora")
    assert cli.main(["ask", *line.format(folder).split()]) == code
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("oral: ") and words in said


def test_an_adapter_may_be_asked_with_a_later_version_of_its_base_model(adapter):
    lora = adapter()
    later = oral_lib.load_base("tiny-causal", source="made")
    later.spec = registry.spec("tiny-causal-t2")
    assert oral_lib.ask(later, lora, "a film").probabilities


def test_a_form_is_a_task_without_rows(tmp_path):
    storage.write_json(tmp_path / "oral.json", forms.form_of(load_task("movie")))
    assert isinstance(forms.read_form(tmp_path), Task) and forms.read_form(tmp_path / "no") is None
