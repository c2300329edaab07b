"""A released generator: written by one command, used where no run is, refused when damaged."""

import hashlib
import json
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch

import oral_lib
from oral_lib import paths
from oral_lib.assets import sources
from oral_lib.assets.packages import ASSETS
from oral_lib.errors import OralError, PreflightError, UsageError
from oral_lib.prompting import answers, card, quickstart, release
from oral_lib.prompting.prompt import prompt_from
from oral_lib.runner import doctor
from oral_lib.tasks.task import load_task, task_names
from oral_lib.workflow import cli, plan, reproduce
from oral_lib.zoo import run_folders

torch.set_num_threads(1)
RELEASED = paths.RELEASED / "desk"
SENTENCE = "Judge if the critic liked the movie."


@pytest.fixture(scope="module")
def written(smoke, tmp_path_factory):
    """The folder of a release of the smoke run."""
    out = tmp_path_factory.mktemp("released")
    shutil.copytree(smoke.root / "generator", paths.run_folder("smoke", "made", out) / "generator")
    return release.write_release("smoke", "made", out)


@pytest.fixture
def released(written, tmp_path, monkeypatch):
    """A copy of the release, in the place of the released generators."""
    folder = tmp_path / "generators" / "smoke"
    shutil.copytree(written, folder)
    monkeypatch.setattr(paths, "RELEASED", folder.parent)
    return folder


def fix_sums(folder):
    """Hashes that fit what is there, as a stranger would write them."""
    names = [p.name for p in folder.iterdir() if p.name not in ("SHA256SUMS", "README.md")]
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


# ---------------------------------------------------------------- writing
def test_a_release_is_the_generator_of_the_run(written, smoke):
    weights = [p.name for p in smoke.root.joinpath("generator").glob("*.safetensors")]
    names = {"README.md", "LICENSE", "SHA256SUMS", "config.json", "manifest.json", *weights}
    assert {path.name for path in written.iterdir()} == names
    for name in ("config.json", "manifest.json", *weights):
        assert (written / name).read_bytes() == (smoke.root / "generator" / name).read_bytes()
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=written, check=False)
    assert done.returncode == 0


def test_the_card_and_licence_say_what_it_is(written):
    text = (written / "README.md").read_text()
    for words in ("tiny-causal", "negative, positive", "## Limits", "oral_lib.ask", "apache-2.0"):
        assert words in text
    assert "Not measured" in text
    licence = (written / "LICENSE").read_text()
    assert "Apache License" in licence and "synthetic" in licence


def test_the_licence_of_every_model_and_data_set_is_named():
    used = [ASSETS[name] for name in ("minilm-l6", "smollm2-135m", "sarcasm")]
    notice = card.licence_notice(used)
    assert all(asset.licence in notice and asset.package in notice for asset in used)


def test_a_release_names_the_data_of_its_tasks(smoke):
    model = smoke.generator()
    model.source = "packages"
    names = {asset.name for asset in release.derived_from(model)}
    assert names == {"movie_snippets", "sarcasm"}  # the models of the smoke scale are synthetic


@pytest.mark.parametrize(("limit", "value"), [("FOLDER_BYTES", 1000), ("FILE_BYTES", 1000)])
def test_a_release_that_is_too_large_is_refused_and_leaves_the_old_one(
    written, monkeypatch, refused, limit, value
):
    before = (written / "SHA256SUMS").read_bytes()
    monkeypatch.setattr(release, limit, value)
    with refused(OralError, "MB are released"):
        release.write_release("smoke", "made", written.parents[2])
    assert (written / "SHA256SUMS").read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == ["smoke"]


def test_figures_of_another_zoo_are_refused(written, refused):
    out = written.parents[2]
    results = paths.results_folder("smoke", out)
    results.mkdir(parents=True)
    try:
        (results / "metrics.csv").touch()
        manifest = {"made": {"zoo": [{"sha256": "0" * 64}]}}
        (results / "manifest.json").write_text(json.dumps(manifest))
        with refused(OralError, "figures of another zoo"):
            release.write_release("smoke", "made", out)
    finally:
        shutil.rmtree(results)


def test_the_figures_of_a_release_are_the_published_ones():
    from made_results import made

    metrics, _ = made()
    row = metrics[(metrics.metric == "accuracy") & (metrics.method == "trained")].iloc[0]
    zoo = [{"base": row.base, "task": row.task}]
    text = card._measured(metrics, zoo)
    assert f"| {row.base} | {row.task} | {row.n_items} |" in text
    assert f"{100 * row.value:.1f}" in text and "trained" in text


def test_release_without_a_run_is_one_line(tmp_path, capsys):
    assert cli.main(["release", "--scale", "smoke", "--out", str(tmp_path)]) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert "no generator in" in line and not (tmp_path / "results").exists()


# ---------------------------------------------------------------- using
def test_pretrained_is_the_generator_of_the_run(released, smoke):
    generator = oral_lib.pretrained("smoke")
    expected = smoke.generator().generate(SENTENCE, "tiny-causal", seed=3)
    adapters = generator.generate(SENTENCE, "tiny-causal", seed=3)
    assert all(torch.equal(t, adapters[0][name]) for name, t in expected[0].items())


def test_prompt_uses_a_released_generator_where_no_run_has_the_base_model(
    released, tmp_path, capsys
):
    [lora] = oral_lib.prompt(SENTENCE, base="tiny-causal", out=tmp_path / "empty")
    note, _ = capsys.readouterr().err.splitlines()
    assert "the released generator smoke" in note and str(released) in note
    [again] = oral_lib.prompt(SENTENCE, base="tiny-causal", generator=released)
    assert lora.task.name in ("movie", "sarcasm") and lora.card == again.card
    assert oral_lib.ask("tiny-causal", lora, "a superb film").probabilities


def test_a_run_comes_before_a_released_generator(released, smoke, monkeypatch):
    (released / "config.json").write_text("{")  # would be refused if it were read first
    [lora] = oral_lib.prompt(SENTENCE, base="tiny-causal", out=smoke.out)
    assert lora.card.text == SENTENCE


def test_generate_and_bases_say_where_a_released_generator_is(released, tmp_path, capsys):
    out = ["--out", str(tmp_path / "empty")]
    words = ["generate", "--text", SENTENCE, "--base", "tiny-causal", *out]
    assert cli.main([*words, "--save", str(tmp_path / "lora")]) == 0
    said = capsys.readouterr()
    where, does, saved, ask = said.err.splitlines()
    assert where == f"note: using the released generator smoke ({released})"
    assert "this adapter does task movie (negative / positive), the nearest" in does
    assert said.out == f"{tmp_path / 'lora'}\n" and f"{tmp_path / 'lora'} (" in saved
    assert f'ask --base tiny-causal --lora {tmp_path / "lora"} --text "..."' in ask
    assert cli.main(["bases", *out]) == 0
    listed = capsys.readouterr().out
    [row] = [line for line in listed.splitlines() if line.startswith("  tiny-causal")]
    assert row.endswith("smoke (released)") and f"is in {released}" in listed
    assert cli.main([*words, "--scale", "desk", "--save", str(tmp_path / "other")]) == 3


def test_a_released_generator_is_read_without_a_network(released, tmp_path, monkeypatch):
    def refuse(*given):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    [lora] = oral_lib.prompt(SENTENCE, base="tiny-causal", out=tmp_path)
    folder = lora.save(tmp_path / "lora")
    assert oral_lib.ask("tiny-causal", folder, "a film", source=f"local:{tmp_path}")


# ---------------------------------------------------------------- a first look
def test_the_quickstart_generates_asks_and_prints_before_and_after(released, tmp_path, capsys):
    released.rename(released.parent / "desk")
    save = tmp_path / "first"
    assert cli.main(["quickstart", "--save", str(save)]) == 0
    said = capsys.readouterr().out
    steps = [line for line in said.splitlines() if " of 3, " in line]
    assert len(steps) == 3 and all(" s): " in line for line in steps)
    content = json.loads((save / "answers.json").read_text())
    assert content["sentence"] == quickstart.SENTENCE and len(content["answers"]) == 3
    for entry, text in zip(content["answers"], quickstart.OPINIONS, strict=True):
        assert entry["input"] == text and text in said and entry["base"] != entry["lora"]
    [lora] = oral_lib.prompt(
        quickstart.SENTENCE, base="tiny-causal", generator=released.parent / "desk"
    )
    again = oral_lib.ask("tiny-causal", save / "lora", quickstart.OPINIONS[0])
    assert again == oral_lib.ask("tiny-causal", lora, quickstart.OPINIONS[0])
    assert again.probabilities == pytest.approx(content["answers"][0]["lora"])
    assert "compared with those under the LoRA" in said and "of 3 answers changed" in said
    assert f"--lora {save / 'lora'}" in said and "generate --base tiny-causal" in said
    assert cli.main(["quickstart", "--save", str(save)]) == 0  # a second time, too


def test_the_quickstart_asks_no_held_out_wording():
    wordings = [
        w for name in task_names() for ws in load_task(name).paraphrases.values() for w in ws
    ]
    assert quickstart.SENTENCE not in wordings


def test_offline_names_the_models_that_are_missing(released, monkeypatch, tmp_path, capsys):
    released.rename(released.parent / "desk")
    monkeypatch.setattr(quickstart, "missing_assets", lambda place, source: ["smollm2-135m"])
    line = ["--only", "quickstart", "--scale", "desk", "--offline", "--out", str(tmp_path / "o")]
    assert reproduce.main(line) == 3
    assert "smollm2-135m" in capsys.readouterr().err


def test_the_doctor_of_the_first_look_names_its_models_only(released, monkeypatch):
    released.rename(released.parent / "desk")
    monkeypatch.setattr(quickstart, "missing_assets", lambda place, source: ["smollm2-135m"])
    nodes = [node for node in plan.nodes("desk", "packages") if node.name == "quickstart"]
    assert [check.what for check in doctor.assets("packages", nodes)] == [
        "assets",
        "asset smollm2-135m",
    ]


def test_the_quickstart_is_a_node_that_runs(released, tmp_path, capfd, monkeypatch):
    released.rename(released.parent / "desk")
    nodes = plan.nodes("desk", "packages", tmp_path / "out")
    [node] = [node for node in nodes if node.name == "quickstart"]
    assert cli.main(node.command[2:]) == 0
    assert all(Path(path).is_file() for path in node.outputs)


# ---------------------------------------------------------------- refusals
def test_an_unknown_name_and_a_missing_folder_are_refused(released, monkeypatch, tmp_path, refused):
    with refused(UsageError, "'smok'", "Did you mean 'smoke'?"):
        oral_lib.pretrained("smok")
    with refused(UsageError, "'../smoke'"):
        oral_lib.pretrained("../smoke")
    monkeypatch.setattr(paths, "RELEASED", tmp_path / "none")
    with refused(PreflightError, str(tmp_path / "none"), "Clone the repository"):
        oral_lib.pretrained("smoke")


def weights(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def cut(folder):
    file = weights(folder)
    file.write_bytes(file.read_bytes()[:-100])


def flip(folder):
    file = weights(folder)
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(bytes(content))


def other_config(folder):
    config = json.loads((folder / "config.json").read_text())
    config["sampling"]["steps"] = 1
    (folder / "config.json").write_text(json.dumps(config))


def lie(folder):
    """Damaged weights whose hash in SHA256SUMS fits."""
    flip(folder)
    fix_sums(folder)


def pickle(folder):
    (folder / "extra.bin").write_bytes(b"x")


def link(folder):
    file = weights(folder)
    file.rename(folder.parent / "elsewhere")
    file.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (cut, OralError, "is damaged"),
        (flip, OralError, "is damaged"),
        (lie, OralError, "damaged"),
        (other_config, OralError, "config.json is damaged"),
        (pickle, OralError, "'extra.bin'"),
        (link, OralError, "leads out of the folder"),
        (lambda folder: weights(folder).unlink(), PreflightError, "is missing"),
        (lambda folder: (folder / "LICENSE").unlink(), PreflightError, "LICENSE is missing"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), OralError, "SHA256SUMS is missing"),
        (lambda folder: (folder / "SHA256SUMS").write_text("x\n"), OralError, "SHA256SUMS:1"),
        (lambda folder: (folder / "SHA256SUMS").write_text(""), OralError, "does not list"),
        (
            lambda folder: (folder / "SHA256SUMS").write_text(f"{'0' * 64}  ../x\n"),
            OralError,
            "SHA256SUMS:1",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), PreflightError, "damaged"),
    ],
)
def test_a_damaged_or_hostile_release_is_refused_in_one_line(
    released, refused, damage, kind, words
):
    damage(released)
    with refused(kind, words):
        oral_lib.pretrained("smoke")
    with pytest.raises(OralError):
        oral_lib.prompt(SENTENCE, base="tiny-causal", out=released / "none")


def test_a_card_that_was_reworded_is_no_damage(released):
    (released / "README.md").write_text("Other words.\n")
    assert oral_lib.pretrained("smoke").bases


# ---------------------------------------------------------------- the release of the repository
@pytest.mark.skipif(not (RELEASED / "manifest.json").is_file(), reason="nothing is released")
def test_the_released_generator_is_whole_and_small(monkeypatch):
    monkeypatch.setattr(paths, "RELEASED", RELEASED.parent)
    assert set(oral_lib.pretrained("desk").bases) == {"minilm-l6", "smollm2-135m"}
    assert release._checked_size(RELEASED) <= release.FOLDER_BYTES


@pytest.mark.skipif(
    not (RELEASED / "manifest.json").is_file() or not sources.is_stored("smollm2-135m"),
    reason="nothing is released, or its base model is not on this machine",
)
def test_the_first_input_of_the_quickstart_is_answered_otherwise(monkeypatch):
    monkeypatch.setattr(paths, "RELEASED", RELEASED.parent)
    place = run_folders.released_generator("desk")
    [lora] = prompt_from(place, quickstart.SENTENCE, "smollm2-135m")
    _, [(before, after)] = answers.before_and_after("smollm2-135m", lora, quickstart.OPINIONS[:1])
    assert (before.answer, after.answer) == ("positive", "negative")
