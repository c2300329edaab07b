"""Prompting: one sentence in, a folder out that PEFT loads alone and that changes the model."""

import shutil
import subprocess
import sys

import pytest
import torch
from peft import PeftModel

import oral_lib
from oral_lib import storage
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.lora import distances, peft_folder
from oral_lib.models import loading
from oral_lib.tasks.task import load_task
from oral_lib.zoo import store

torch.set_num_threads(1)
TINY = ("tiny-encoder", "tiny-causal")
SENTENCE = "Judge if the critic liked the movie."


@pytest.fixture
def prompted(smoke):
    """`oral_lib.prompt` of the smoke run's generator."""

    def ask(task=SENTENCE, base="tiny-causal", **options):
        options = {"generator": smoke.root / "generator", "scale": "smoke"} | options
        return oral_lib.prompt(task, base=base, **options)

    return ask


@torch.inference_mode()
def logits(model, base):
    return model(**base.tokens(["a superb film", "dull of the scene"])).logits


@pytest.mark.parametrize("name", TINY)
def test_a_prompted_adapter_loads_in_peft_alone_and_changes_the_model(name, prompted, tmp_path):
    [lora] = prompted(base=name)
    folder = lora.save(tmp_path / "my lora")
    base = loading.load(name)
    with base.attach() as model:
        plain = logits(model, base)
    with base.attach(lora.tensors) as model:
        wanted = logits(model, base)
    said = logits(PeftModel.from_pretrained(loading.load(name).model, str(folder)).eval(), base)
    # alone PEFT holds a head as coarsely as the base, in bfloat16 where that is faster
    torch.testing.assert_close(said.float(), wanted.float(), atol=0.02, rtol=0.02)
    assert (said - plain).abs().max() > 0.1


def test_an_adapter_is_saved_over_another_only_when_told_to(prompted, tmp_path, refused):
    [lora] = prompted()
    folder = lora.save(tmp_path / "lora")
    with refused(UsageError, "lora"):
        lora.save(folder)
    [other] = prompted(seed=1)
    assert other.save(folder, overwrite=True) == folder
    tensors, _ = peft_folder.load(folder)
    assert all(torch.equal(tensors[n], t) for n, t in other.tensors.items())


def test_the_same_seed_is_the_same_adapter(prompted):
    one, two = prompted(n=2, seed=3)
    [again] = prompted(seed=3)
    assert all(torch.allclose(t, again.tensors[n], atol=1e-5) for n, t in one.tensors.items())
    assert not all(torch.allclose(t, two.tensors[n], atol=1e-3) for n, t in one.tensors.items())
    [other] = prompted("Tell a gadget from a film.", seed=3)
    assert not all(torch.allclose(t, other.tensors[n]) for n, t in one.tensors.items())


def test_an_adapter_prints_in_a_line_and_holds_no_held_out_wording(prompted, capsys):
    sentence = "Say if whoever wrote this had fun."
    [lora] = prompted(sentence)
    values = sum(tensor.numel() for tensor in lora.tensors.values())
    assert repr(lora) == (
        f"PromptedLora(base='tiny-causal', text={sentence!r}, nearest={lora.card.nearest!r}, "
        f"values={values:,})"
    )
    paraphrases = load_task(lora.task.name).paraphrases
    content = repr((lora.card, lora.config, lora.task))
    assert not any(text in content for part in paraphrases.values() for text in part)
    [note] = capsys.readouterr().err.splitlines()
    assert note == (
        "note: this adapter does task movie (negative / positive), the nearest that the zoo has; "
        "if that is not your task, it will not help."
    )
    prompted(n=3)
    [note] = capsys.readouterr().err.splitlines()
    assert note.startswith("note: these adapters do task movie (negative / positive)")


def test_the_card_says_what_made_the_adapter(prompted, smoke, tmp_path):
    [lora] = prompted(seed=4)
    card = lora.card
    sha = storage.read_json(smoke.root / "generator" / "manifest.json")["sha256"]
    assert (card.text, card.base, card.seed) == (SENTENCE, "tiny-causal", 4)
    assert card.generator == f"{sha[:12]} (smoke)"
    text = (lora.save(tmp_path / "lora") / "README.md").read_text()
    assert SENTENCE in text and sha[:12] in text and card.nearest in text


def test_the_card_names_the_nearest_adapter_of_the_zoo(prompted, smoke):
    [lora] = prompted()
    near = {
        f"{m.task}, seed {m.seed}": distances.distance(lora.tensors, m.tensors, lora.config).total
        for m in smoke.members("tiny-causal")
    }
    assert len(near) == 4 and lora.card.nearest == min(near, key=near.get)
    assert lora.card.distance == pytest.approx(min(near.values()))


def test_an_adapter_that_was_trained_again_since_is_not_named(prompted, smoke, tmp_path):
    shutil.copytree(smoke.root, tmp_path / "run")
    [lora] = prompted(generator=tmp_path / "run" / "generator")
    task, seed = lora.card.nearest.split(", seed ")
    where = store.folder(tmp_path / "run", "tiny-causal", task, int(seed))
    (where / "adapter_model.safetensors").write_bytes(b"another")
    [again] = prompted(generator=tmp_path / "run" / "generator")
    assert again.card.nearest not in ("", lora.card.nearest)
    assert again.card.distance >= lora.card.distance


@pytest.mark.parametrize(
    ("change", "words"),
    [({"task": "../../x"}, "looks like a path"), ({"seed": "one"}, "does not list what")],
)
def test_a_manifest_that_names_no_adapter_is_refused(prompted, smoke, tmp_path, change, words):
    model = smoke.generator()
    model.manifest["zoo"] = [entry | change for entry in model.manifest["zoo"]]
    model.save_pretrained(tmp_path / "odd")
    with pytest.raises(OralError, match=words):
        prompted(generator=tmp_path / "odd")


def test_a_generator_without_a_zoo_beside_it_knows_the_nearest_adapter_all_the_same(
    prompted, smoke, tmp_path
):
    model = smoke.generator()
    model.manifest.pop("scale")  # as when it was trained outside a run
    model.save_pretrained(tmp_path / "alone")
    [expected] = prompted()
    [lora] = prompted(generator=tmp_path / "alone")
    assert lora.card.nearest == expected.card.nearest
    assert lora.card.distance == pytest.approx(expected.card.distance, rel=1e-3)
    assert lora.card.generator.endswith("(custom)")


def test_a_generator_that_names_no_zoo_serves_too(prompted, smoke, tmp_path):
    model = smoke.generator()
    model.manifest.pop("zoo")
    model.save_pretrained(tmp_path / "alone")
    [lora] = prompted(generator=tmp_path / "alone")
    assert lora.card.nearest == "" and lora.card.distance is None and lora.task is None
    folder = lora.save(tmp_path / "lora")
    assert "not measured" in (folder / "README.md").read_text()
    assert not (folder / "oral.json").exists()


def test_a_saved_adapter_carries_the_form_of_the_nearest_task(prompted, tmp_path):
    [lora] = prompted()
    assert lora.card.nearest.startswith(f"{lora.task.name}, seed ")
    form = storage.read_json(lora.save(tmp_path / "lora") / "oral.json")
    assert form["name"] == lora.task.name and form["labels"] == lora.task.labels


def test_the_default_generator_is_that_of_a_run_with_the_base_model(prompted, smoke, refused):
    [expected] = prompted()
    [lora] = oral_lib.prompt(SENTENCE, base="tiny-causal", out=smoke.out)
    assert all(torch.equal(t, lora.tensors[n]) for n, t in expected.tensors.items())
    with refused(UsageError, "'tiny-convnet'", "smoke (made) has tiny-causal, tiny-encoder"):
        oral_lib.prompt(SENTENCE, base="tiny-convnet", out=smoke.out)
    with refused(PreflightError, "of scale desk", "reproduce.sh"):
        oral_lib.prompt(SENTENCE, base="tiny-causal", out=smoke.out, scale="desk")


def test_what_cannot_be_prompted_is_refused(prompted, tmp_path, monkeypatch, refused):
    for empty in ("", " \n"):
        with refused(UsageError, "empty sentence"):
            prompted(empty)
    with refused(UsageError, "2,001 letters"):
        prompted("x" * 2001)
    for text in ("red\x1b[31m", "half \udce9"):
        with refused(UsageError, "control character"):
            prompted(text)
    with refused(UsageError, "'tiny-casual'", "Did you mean 'tiny-causal'?"):
        prompted(base="tiny-casual")
    with refused(UsageError, "'minilm-l6'", "tiny-encoder"):  # known, but not to this generator
        prompted(base="minilm-l6")
    with refused(UsageError, "n=0"):
        prompted(n=0)
    with refused(PreflightError, str(tmp_path), "reproduce.sh"):
        prompted(generator=tmp_path / "nowhere")


def test_errors_carry_their_exit_codes():
    codes = {oral_lib.OralError: 1, oral_lib.UsageError: 2, oral_lib.PreflightError: 3}
    assert all(kind("x").exit_code == code for kind, code in codes.items())


def test_importing_the_library_loads_no_torch():
    code = "import sys, oral_lib; oral_lib.__dir__(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there():
    for name in oral_lib.__all__:
        assert getattr(oral_lib, name) is not None
