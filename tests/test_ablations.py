"""One part of the generator is changed at a time, and no test row has a say in it."""

import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch

import oral_lib
from oral_lib import scales
from oral_lib.baselines import averages
from oral_lib.errors import OralError, UsageError
from oral_lib.experiments import ablation_study, ablation_variants, ablations, generators
from oral_lib.experiments.ablation_variants import Gauge, Pooling
from oral_lib.lora import adapter
from oral_lib.method import recurrence, tokenization
from oral_lib.method.training import tokens as on_tokens
from oral_lib.report.studies import ablation_summary
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task

BASE = "tiny-encoder"
SMALL = {"rows": 20, "samples": 2, "steps": 4}


@pytest.fixture(scope="module")
def own(smoke, tmp_path_factory):
    """A smoke run of this module's own, with the zoo of the shared one."""
    made = oral_lib.Run("smoke", out=tmp_path_factory.mktemp("ablations"))
    shutil.copytree(smoke.root / "zoo", made.root / "zoo")
    return made


@pytest.fixture(scope="module")
def study(own):
    return own.ablation_study(device="cpu", **SMALL)


@pytest.fixture(scope="module")
def measured(own):
    return own.ablate(["objective", "temperature"], device="cpu", **SMALL)


def with_components(config, components):
    """`config` with so many components, rotated where there are any."""
    rotation = "bases" if components else "none"
    return replace(config, components=components, component_rotation=rotation)


def variant(study, group: str, name: str) -> ablation_variants.Variant:
    found = [
        v
        for v in ablation_variants.variants(study.config, study.sampling, [group])
        if v.name == name
    ]
    assert len(found) == 1
    return found[0]


# --- what is compared -----------------------------------------------------------------------


def test_a_study_is_another_once_a_text_is_that_it_reads(study, monkeypatch):
    before = study.key()
    assert study.key() == before

    def other(name):
        told = {"description": "Another text."} if name == "movie" else {}
        return replace(load_task(name), **told)

    for module in ("oral_lib.tasks.task", "oral_lib.experiments.ablation_study"):
        monkeypatch.setattr(f"{module}.load_task", other)
    assert study.key() != before


def test_all_groups_have_one_name():
    assert ablation_variants.check_groups(["all"]) == list(ablation_variants.GROUPS)


@pytest.mark.parametrize("scale", ["smoke", "lab"])
def test_every_group_holds_the_default_once_and_no_variant_twice(scale):
    default = generators.preset(scale)
    for group in ablation_variants.GROUPS:
        found = ablation_variants.variants(default.network, default.sampling, [group])
        assert sum(v.default for v in found) == 1, group
        assert len({v.name for v in found}) == len(found)
        assert len({repr(v.settings) for v in found}) == len(found)


def test_a_variant_differs_from_the_default_in_its_part_alone():
    preset = generators.preset("lab")
    config, sampling = preset.network, preset.sampling
    parts = {"token": ["k"], "steps": ["steps"], "encoder": ["text_encoder"]}
    parts |= {"recurrence": ["recurrence"], "temperature": ["temperature", "noise_sharing"]}
    parts["components"] = ["components", "component_rotation", "noise_sharing"]
    parts |= {"noise": ["reads_token_mean", "noise_sharing"], "joint": ["projection"]}

    def undone(now, default, fields):
        return replace(
            now, **{name: getattr(default, name) for name in fields if hasattr(now, name)}
        )

    for group, fields in parts.items():
        for v in ablation_variants.variants(config, sampling, [group]):
            assert undone(v.config, config, fields) == config
            assert undone(v.sampling, sampling, fields) == sampling
            assert v.settings[2:] == (Gauge.SHARED, Pooling.SHARED)
    for group in ("gauge", "statistics"):
        listed = ablation_variants.variants(config, sampling, [group])
        assert all((v.config, v.sampling) == (config, sampling) for v in listed)


def test_whatever_the_token_size_a_step_reads_as_many_values(study):
    for v in ablation_variants.variants(study.config, study.sampling, ["token"]):
        read = ablation_study.training_of(study, v.config).tokens * v.config.k
        assert read == study.training.tokens * study.config.k


def test_names_that_do_not_exist_are_refused_with_the_nearest(own, refused):
    with refused(UsageError, "no ablation 'guage'", "'gauge'"):
        own.ablate(["guage"], **SMALL)
    with refused(UsageError, "no base 'tiny-encodr'", "'tiny-encoder'"):
        own.ablate(["gauge"], bases=["tiny-encodr"], **SMALL)
    with refused(UsageError, "no task 'movei'", "'movie'"):
        own.ablate(["gauge"], tasks=["movei"], **SMALL)
    with refused(UsageError, "rows=0"):
        own.ablate(["gauge"], rows=0)


# --- gauge and statistics -------------------------------------------------------------------


@pytest.mark.parametrize("components", [0, 8])  # of fewer adapters: nothing is lost
@pytest.mark.parametrize("gauge", Gauge)
def test_in_every_gauge_the_tokens_are_the_same_weights_and_zero_tokens_the_base(
    study, gauge, components
):
    one = variant(study, "gauge", gauge.value)
    one = replace(one, config=with_components(one.config, components))
    model, shelves, used = ablation_study.assemble_variant(one, study)
    layout, start = (
        model.bases[BASE].layout,
        ablation_study.Evaluator(study).base(BASE, "movie").lora_init(),
    )
    for place, member in enumerate(study.members):
        statistics = used[BASE, member.task]
        values = statistics.denormalise(shelves[BASE].tokens[place : place + 1])
        [found] = tokenization.decode(layout, values)
        for a, b in adapter.factors(found).items():
            wanted = member.tensors[b] @ member.tensors[a]
            assert torch.allclose(found[b] @ found[a], wanted, atol=1e-5)
    nothing = torch.zeros_like(shelves[BASE].tokens[:1])
    [zero] = tokenization.decode(layout, used[BASE, "movie"].denormalise(nothing))
    assert all(not zero[b].any() for b in adapter.factors(zero).values())
    assert all(torch.equal(zero[n], t) for n, t in start.items() if "lora_" not in n)


@pytest.mark.parametrize("components", [0, 8])
def test_with_statistics_of_one_task_zero_tokens_are_its_soup(study, components):
    one = variant(study, "statistics", "per task (leaks)")
    one = replace(one, config=with_components(one.config, components))
    model, _, used = ablation_study.assemble_variant(one, study)
    layout = model.bases[BASE].layout
    for task in study.tasks[BASE]:
        zero = torch.zeros(1, layout.l, one.config.size)
        [found] = tokenization.decode(layout, used[BASE, task].denormalise(zero))
        soup = averages.soup([m.tensors for m in study.members if m.task == task])
        assert all(torch.allclose(found[n], t, atol=1e-6) for n, t in soup.items())


@pytest.mark.parametrize("components", [0, 8])
@pytest.mark.parametrize("pooling", Pooling)
def test_what_is_denoised_is_put_back_among_the_very_tokens_of_the_zoo(study, pooling, components):
    one = variant(study, "statistics", pooling.value)
    one = replace(one, config=with_components(one.config, components))
    model, shelves, _ = ablation_study.assemble_variant(one, study)
    told = shelves[BASE].tokens
    for way in ("hull", "span"):
        back = model.bases[BASE].projection.nearest(told, way)
        torch.testing.assert_close(back, told, atol=1e-3, rtol=1e-3)


def test_the_denoising_error_is_1_for_zeros_and_0_for_the_clean_tokens(study):
    model, shelves, _ = ablation_study.assemble_variant(variant(study, "objective", "x0"), study)
    shelf = shelves[BASE]
    network = model.network
    network.denoiser.forward = lambda x, t, p, c: torch.zeros_like(x)
    assert ablation_study.denoising_error(network, BASE, shelf) == [1.0, 1.0]
    clean = iter([shelf.tokens[members.unique()] for members in shelf.members])
    network = model.network
    network.denoiser.forward = lambda x, t, p, c: next(clean)
    assert ablation_study.denoising_error(network, BASE, shelf) == [0.0, 0.0]


# --- a study --------------------------------------------------------------------------------


def test_variants_are_judged_on_validation_rows(study):
    for task in study.tasks[BASE]:
        split = task_rows(load_task(task), study.source)
        seen = {row.key for row in ablation_study.Evaluator(study).rows(task)}
        assert len(seen) == SMALL["rows"]
        assert seen <= {row.key for row in split.validation}
        assert not seen & {row.key for row in split.test}


def test_every_variant_has_every_metric_of_every_task_beside_the_trained_adapters(measured):
    assert list(measured.columns) == ablations.ABLATION_COLUMNS
    assert set(measured.group) == {"objective", "temperature", "noise", "reference"}
    for (group, name), part in measured.groupby(["group", "variant"]):
        own = {(r.task, r.metric) for r in part.itertuples()}
        if group == "reference":
            assert {("movie", "accuracy"), ("sarcasm", "accuracy")} <= own, name
            continue
        several = ("accuracy", "spread", "unseen", "other", "zeros", "denoising")
        wanted = {(task, m) for task in ("movie", "sarcasm") for m in several}
        assert own == wanted | {("all", "seconds"), ("all", "parameters")}, name
    shares = measured[measured.metric == "accuracy"]
    assert (shares.ci_low <= shares.value).all() and (shares.value <= shares.ci_high).all()


def test_what_is_measured_is_not_measured_again(own, measured, monkeypatch):
    monkeypatch.setattr(on_tokens, "train", None)
    monkeypatch.setattr(ablation_study, "evaluate", None)
    again = own.ablate(["temperature", "objective"], device="cpu", **SMALL)
    pd.testing.assert_frame_equal(again, measured)


def test_variants_of_the_sampling_share_one_generator(own, measured, monkeypatch):
    trained = []
    monkeypatch.setattr(on_tokens, "train", lambda *args, **rest: trained.append(args))
    found = own.ablate(["steps"], device="cpu", **SMALL)
    assert trained == []
    warm = measured[(measured.group == "temperature") & (measured.metric == "seconds")]
    assert len(warm) == 2 * len(ablation_variants.TEMPERATURES) - 1 and warm.value.nunique() == 1
    steps = found[(found.group == "steps") & (found.metric == "seconds")]
    assert len(steps) == len(ablation_variants.SAMPLING_STEPS) and steps.value.nunique() == 1


def test_another_training_is_another_study(own, measured, monkeypatch):
    def stop(*args, **rest):
        raise OralError("it would be trained")

    monkeypatch.setattr(on_tokens, "train", stop)
    with pytest.raises(OralError, match="it would be trained"):
        own.ablate(["objective"], device="cpu", **{**SMALL, "steps": 5})


def test_a_variant_that_fails_is_named_and_the_others_are_kept(own, monkeypatch, refused):
    whole = on_tokens.train

    def fragile(model, *args, **rest):
        if model.config.recurrence.kind == "lstm":
            raise RuntimeError("out of memory")
        return whole(model, *args, **rest)

    monkeypatch.setattr(on_tokens, "train", fragile)
    with refused(OralError, "1 of 6 ablations failed", "recurrence lstm", "out of memory"):
        own.ablate(["recurrence"], device="cpu", **SMALL)
    kept = pd.read_csv(own.results / "ablations.csv")
    assert set(kept[kept.group == "recurrence"].variant) == {
        "mamba2",
        "transformer",
        "bidirectional",
        "none",
    }
    monkeypatch.setattr(on_tokens, "train", whole)
    found = own.ablate(["recurrence"], device="cpu", **SMALL)
    assert set(found[found.group == "recurrence"].variant) == set(recurrence.RECURRENCES)


def test_rows_of_other_bases_and_seeds_stay_in_the_table(own, measured):
    path = own.results / "ablations.csv"
    other = measured[measured.group == "objective"].assign(base="another")
    before = pd.concat([pd.read_csv(path), other, other.assign(base=BASE, seed=7)])
    before.to_csv(path, index=False)
    own.ablate(["objective"], device="cpu", **SMALL)
    after = pd.read_csv(path)
    assert (after.base == "another").sum() == (after.seed == 7).sum() == len(other)
    assert not after.duplicated(["group", "variant", "base", "task", "metric", "seed"]).any()


def test_tasks_with_answers_to_be_written_are_left_out_unless_they_are_named(own, monkeypatch):
    slow = replace(load_task("sarcasm"), scoring="answer", answer_pattern="(.*)", max_new_tokens=1)
    for module in ("ablations", "ablation_study"):
        monkeypatch.setattr(
            f"oral_lib.experiments.{module}.load_task",
            lambda name: slow if name == "sarcasm" else load_task(name),
        )
    assert ablations.quick(["movie", "sarcasm"]) == ["movie"]
    assert own.ablation_study(device="cpu", **SMALL).tasks == {BASE: ("movie",)}
    named = own.ablation_study(device="cpu", tasks=["sarcasm"], **SMALL)
    assert named.tasks == {BASE: ("sarcasm",)}
    assert {m.task for m in named.members} == {"movie", "sarcasm"}, "the zoo is whole all the same"


# --- what is said ---------------------------------------------------------------------------


def frame(values: dict[str, float], half: float) -> pd.DataFrame:
    rows = [
        {"group": "objective", "variant": n, "default": n == "x0", "task": t, "metric": "accuracy",
         "value": v, "ci_low": v - half, "ci_high": v + half}
        for n, v in values.items() for t in ("a", "b")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_words_say_whether_a_variant_is_above_the_default_by_more_than_the_items_explain():
    [same] = ablation_summary.ablation_findings(frame({"x0": 0.8, "v": 0.8}, 0.01))
    assert "no variant is above it" in same
    [near] = ablation_summary.ablation_findings(frame({"x0": 0.8, "v": 0.82}, 0.05))
    assert "v is 2.0 points above, within the item noise" in near
    [far] = ablation_summary.ablation_findings(frame({"x0": 0.8, "v": 0.9}, 0.05))
    assert "v is 10.0 points above, more than the item noise" in far


def test_statistics_of_each_task_are_called_what_they_are():
    made = frame({"shared": 0.8, "per task": 0.9}, 0.01)
    made = made.assign(group="statistics", default=made.variant == "shared")
    leak = made[~made.default].assign(metric="other", value=0.88)
    [said] = ablation_summary.ablation_findings(pd.concat([made, leak]))
    assert "per task 90.0%, and 88.0% with a wrong-task prompt: the statistics encode" in said
    assert "points above" not in said


def test_the_mean_over_tasks_is_surer_than_each_of_them():
    found = ablation_summary.ablation_means(frame({"x0": 0.8}, 0.02)).iloc[0]
    assert found.value == pytest.approx(0.8)
    assert found.value - found.ci_low == pytest.approx(0.02 / 2**0.5)
    assert found.ci_high - found.value == pytest.approx(0.02 / 2**0.5)


def test_the_zoo_that_is_ablated_is_that_of_the_plan(study):
    planned = [m for m in scales.members("smoke", "made") if m[0] == BASE]
    assert [(m.base, m.task, m.seed) for m in study.members] == planned
