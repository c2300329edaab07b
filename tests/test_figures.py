import io
import os
import subprocess
import sys
from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from made_results import PROFILE, ablation, cell, made, made_items, stacking
from matplotlib.lines import Line2D
from PIL import Image
from readable import DEFICIENCIES, faults, says_n, seen

from oral_lib import paths
from oral_lib.evaluation import item_tables, small_tables
from oral_lib.report import build, comparisons, drawing
from oral_lib.report.comparisons import judged, without_signal
from oral_lib.report.figures import (
    ablations,
    cells,
    costs,
    gallery,
    hero,
    maps,
    method,
    overview,
    signals,
    texts,
    theme,
    training,
)

USELESS = {key: (0.5, samples) for key, (_, samples) in PROFILE.items()}
RESULTS = paths.ROOT / "results"


@pytest.fixture(scope="module")
def two_cells() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and items of two cells, the first of them without signal."""
    cells = [
        made(cell(task="a_b"), profile=USELESS, n=100, n_control=60),
        made(cell(task="movie"), n=100, n_control=60),
    ]
    return pd.concat([rows for rows, _ in cells]), item_tables.join([rows for _, rows in cells])


@pytest.fixture(scope="module")
def compared(two_cells) -> pd.DataFrame:
    return judged(two_cells[1], 0)


def contents(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def marks(axis) -> list[Line2D]:
    """The lines of an axis that are one mark."""
    return [line for line in axis.lines if len(line.get_xdata()) == 1]


def words(figure) -> set[str]:
    return {text.get_text() for axis in figure.axes for text in axis.texts}


def bottom(figure) -> str:
    return figure._supxlabel.get_text().replace("\n", " ")


def test_figures_of_the_method_draw_their_arrays(tmp_path):
    random = np.random.default_rng(0)
    owner = np.repeat([0, 1], 4)
    tokens = method.tokens_figure(random.normal(size=(8, 6)), owner, ["query A", "query B"])
    labels = [label.get_text() for label in tokens.axes[0].get_yticklabels()]
    assert labels == ["query A", "query B"]
    schedule = method.schedule_figure(np.linspace(1, 0, 101))
    assert any("t = 50" in text.get_text() for text in schedule.axes[0].texts)
    prototypes = random.normal(size=(8, 5))
    similarity = method.prototypes_figure(prototypes).axes[1].images[0].get_array()
    assert np.allclose(np.diag(similarity), 1) and similarity.shape == (8, 8)
    states, truth = np.linspace(random.normal(size=6), np.ones(6), 11), np.ones(6)
    steps = method.denoising_figure(states, truth, steps=range(1000, -1, -100))
    assert steps.axes[0].get_title(loc="left") == "t = 1000"
    assert steps.axes[-1].lines[0].get_ydata()[-1] == pytest.approx(0)
    assert len(theme.save_figure(schedule, tmp_path, "schedule")) == 2


def test_images_of_a_style_lie_in_rows_named_after_their_adapters(tmp_path):
    random = np.random.default_rng(0)
    rows = {n: random.integers(0, 256, (3, 3, 8, 8), np.uint8) for n in ("real", "base", "trained")}
    figure = method.style_figure(rows)
    drawn = [axis.images[0].get_array() for axis in figure.axes]
    assert all(np.array_equal(a, b) for a, b in zip(
        drawn, (p.transpose(1, 2, 0) for row in rows.values() for p in row), strict=True
    ))  # fmt: skip
    boxes = [axis.get_position() for axis in figure.axes]
    assert [box.x0 for box in boxes[:3]] == pytest.approx([box.x0 for box in boxes[3:6]])
    assert boxes[0].y0 - boxes[3].y1 > boxes[3].y0 - boxes[6].y1 > 0  # a gap below the real ones
    assert set(rows) <= {text.get_text() for text in figure.texts}
    assert len(theme.save_figure(figure, tmp_path, "style")) == 2


def test_figures_show_the_numbers_of_the_rows(two_cells):
    metrics, items = two_cells
    rows = comparisons.pooled(metrics[metrics.metric == "accuracy"])
    figure = cells.methods(rows, comparisons.per_sample(items))
    drawn = {text.get_text() for axis in figure.axes for text in axis.texts}
    wanted = rows[rows.condition.isin(["none", "matched"])].value
    assert {f"{100 * value:.1f}" for value in wanted} <= drawn
    controls = cells.conditions(rows)
    labels = [label.get_text() for label in controls.axes[0].get_yticklabels()]
    others = ["held-out paraphrase", "wrong-task prompt", "random words", "empty prompt"]
    assert labels == ["task's own prompt", *others]


# ---------------------------------------------------------------- all cells of a source
def test_gaps_draw_the_two_level_interval_and_the_state_of_every_cell(compared):
    gap = (compared.what == "generated") & (compared.against == "trained")
    movie = compared.task == "movie"
    looks = {"equal": ("o", False), "undecided": ("o", True), "below": ("v", False)}
    for state, (shape, hollow) in looks.items():
        drawn = compared.copy()
        drawn.loc[gap & movie, ["difference", "ci_low", "ci_high"]] = -0.002, -0.004, 0.003
        drawn.loc[gap & movie, ["state", "signal"]] = state, True
        [axis] = overview.gaps(drawn).axes
        assert [-0.4, 0.3] in [list(np.round(line.get_xdata(), 6)) for line in axis.lines]
        [mark] = [line for line in marks(axis) if np.isclose(line.get_xdata()[0], -0.2)]
        assert mark.get_marker() == shape
        assert (mark.get_markerfacecolor() == "white") == hollow
        assert theme.ORANGE in (mark.get_markerfacecolor(), mark.get_markeredgecolor())


def test_a_value_beyond_the_panel_stays_within_it_and_the_footnote_says_so(compared):
    far = compared.copy()
    gap = (far.what == "generated") & (far.against == "trained") & (far.task == "movie")
    far.loc[gap, ["difference", "ci_low", "ci_high"]] = -0.5, -0.6, -0.4
    figure = overview.gaps(far)
    [axis] = figure.axes
    low, high = axis.get_xlim()
    assert all(low <= line.get_xdata()[0] <= high for line in marks(axis))
    assert "lie further out" in bottom(figure)


def test_a_cell_without_signal_is_pale_and_its_gain_stays_in_sight(compared):
    figure = overview.gaps(compared)
    gain = compared[(compared.task == "a_b") & (compared.what == "trained")].difference.iloc[0]
    assert {"no signal", f"{100 * gain:+.1f}".replace("-", "−")} <= words(figure)
    [axis] = figure.axes
    assert {line.get_alpha() for line in marks(axis) if line.get_ydata()[0] < 0.5} == {0.4}
    assert {line.get_alpha() for line in marks(axis) if line.get_ydata()[0] > 0.5} == {1.0}


def test_base_models_that_were_not_run_take_no_space():
    places = [cell(task, base) for task in ("movie", "b", "c", "d") for base in ("minilm-l6",)]
    items = item_tables.join([made_items(place, n=40) for place in places])
    figure = overview.gaps(judged(items, 0))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["minilm-l6"]


def test_unseen_tasks_are_named_by_their_classes():
    names = ["cifar10_yes_1001000000", "cifar10_yes_1111111110"]
    parts = [made_items(cell(name, "tiny", experiment="unseen"), n=60) for name in names]
    figure = overview.gaps(judged(item_tables.join(parts), 0, "balanced_accuracy"))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["airplanes, cats", "all but trucks"]


def test_controls_are_points_and_stay_in_sight_without_a_gain(compared):
    [axis] = overview.controls(compared).axes
    for task, y in (("a_b", 0), ("movie", 1)):
        rows = compared[compared.what.str.startswith("generated/") & (compared.task == task)]
        rows = rows[rows.against == "generated"]
        drawn = [line.get_xdata()[0] for line in marks(axis) if abs(line.get_ydata()[0] - y) < 0.5]
        assert len(rows) == 4 and np.isfinite(rows.difference).all()
        for value in 100 * rows.difference:
            assert np.isclose(drawn, value).any()


def test_a_probe_that_equals_the_adapters_does_not_take_their_signal():
    places = [cell("digits", "efficientnet-lite0", experiment="vision"), cell("movie")]
    probe = {("linear_probe", "none"): PROFILE["trained", "none"]}
    items = pd.concat([made_items(places[0], PROFILE | probe), made_items(places[1], USELESS)])
    compared = judged(item_tables.join([items]), 0)
    assert without_signal(compared) == {("language", "packages", "minilm-l6", "movie")}
    figure = overview.gaps(compared[compared.experiment == "vision"])
    assert "no signal" not in words(figure)


def test_signals_are_sorted_and_name_the_best_simple_method(compared):
    second = compared[compared.task == "movie"].assign(task="sarcasm")
    gap = (second.what == "generated") & (second.against == "trained")
    second.loc[gap, ["difference", "ci_low", "ci_high"]] = -0.03, -0.04, -0.01
    second.loc[gap, "state"] = "below"
    soup = (second.what == "generated") & (second.against == "soup_task")
    second.loc[soup, ["difference", "ci_low", "ci_high"]] = -0.02, -0.03, -0.01
    figure = signals.signals(pd.concat([compared, second]))
    left, right = figure.axes
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == ["sarcasm, minilm-l6", "movie, minilm-l6"]  # a_b has no signal
    first = next(line for line in marks(right) if line.get_ydata()[0] == 0)
    assert first.get_marker() == theme.LOOKS["soup_task"].mark
    assert first.get_xdata()[0] == pytest.approx(-2)
    simple = ["soup_task", "retrieval", "router", "regression"]
    rows = compared[(compared.task == "movie") & (compared.what == "generated")]
    best = rows[rows.against.isin(simple)].difference.min()  # rows of two tables share numbers
    other = next(line for line in marks(right) if line.get_ydata()[0] == 1)
    assert other.get_xdata()[0] == pytest.approx(100 * best)
    assert "1 below" in bottom(figure) and "2 cells with signal" in bottom(figure)


# ---------------------------------------------------------------- texts, map, costs, hero
def text_rows(items: pd.DataFrame) -> pd.DataFrame:
    """Rows of texts.csv for made items: the wrong-task prompts are about the other task."""
    key = ["experiment", "source", "base", "task", "seed", "condition", "sample"]
    rows = items[items.method == "generated"][key].drop_duplicates()
    rows = rows.astype({"task": str, "condition": str})
    other = rows.task.map({"movie": "a_b", "a_b": "movie"})
    about = rows.task.where(rows.condition != "mismatched", other)
    about = about.where(~rows.condition.isin(["random", "empty"]), rows.condition)
    return rows.assign(text_of=about, router="movie", retrieval=about)


def test_the_heat_map_has_the_accuracy_of_each_sentence_on_each_task(two_cells):
    items = two_cells[1]
    figure = texts.text_by_task(items, text_rows(items))
    values = np.asarray(figure.axes[0].images[0].get_array())
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == ["a b", "movie", "random words", "empty prompt"]
    generated = items[(items.method == "generated") & (items.task == "movie")]
    own = generated[generated.condition.isin(["matched", "paraphrase"])]
    wrong = generated[generated.condition == "mismatched"]
    per_sample = own.groupby(["condition", "sample"], observed=True).correct.mean()
    assert values[1, 1] == pytest.approx(100 * per_sample.mean())
    assert values[0, 1] == pytest.approx(100 * wrong.correct.mean())
    assert "retrieval 100%" in bottom(figure)
    assert texts.text_by_task(items, text_rows(items).iloc[:0]) is None


def map_rows() -> pd.DataFrame:
    random = np.random.default_rng(0)
    rows = []
    for task, centre in (("movie", (0, 0)), ("review_topic", (8, 1)), ("sarcasm", (1, 0.5))):
        for kind, n in (("adapter", 8), ("held_out", 2), ("average", 1), ("generated", 5)):
            for number, (x, y) in enumerate(centre + random.normal(size=(n, 2))):
                rows.append({"kind": kind, "task": task, "number": number, "x": x, "y": y})
    return pd.DataFrame(rows).assign(base="minilm-l6", share=0.4)


def test_the_map_has_every_point_and_a_panel_for_every_task():
    rows = map_rows()
    whole, *zoomed = maps.zoo_map(rows).axes
    assert [axis.get_title(loc="left") for axis in zoomed] == ["movie", "review topic", "sarcasm"]
    points = np.concatenate([np.stack(line.get_data(), axis=1) for line in whole.lines])
    assert sorted(map(tuple, points)) == sorted(zip(rows.x, rows.y, strict=True))
    assert words(maps.zoo_map(rows)) == {"movie", "review topic", "sarcasm"}


def cost_rows(metrics: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = comparisons.pooled(metrics[metrics.metric == "accuracy"])
    router = rows[rows.method == "retrieval"].assign(method="router")
    rows = pd.concat([rows, router])
    spent = {"base": (0, 0), "router": (0, 0.01), "generated": (0, 0.4), "trained": (900, 30.0)}
    table = [
        {"base": base, "task": task, "method": name, "labelled_rows": n, "seconds": s}
        for base, task in rows[["base", "task"]].drop_duplicates().to_numpy()
        for name, (n, s) in spent.items()
    ]
    return rows, pd.DataFrame(table).assign(device="CPU")


def test_costs_show_the_mean_accuracy_at_the_rows_and_seconds_of_a_method(two_cells):
    rows, spent = cost_rows(two_cells[0])
    figure = costs.accuracy_and_cost(rows, spent)
    trained = rows[(rows.method == "trained")].value.mean()
    for axis, x in zip(figure.axes, (900, 30.0), strict=True):
        large = [line for line in marks(axis) if line.get_markersize() >= 9]
        points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in large]
        assert any(abs(u - x) < 0.05 * x and v == pytest.approx(100 * trained) for u, v in points)
    fewer = spent[~((spent.task == "movie") & (spent.method == "trained"))]
    assert "n = 1 cells" in bottom(costs.accuracy_and_cost(rows, fewer))  # the same cells for all
    assert costs.accuracy_and_cost(rows, spent.iloc[:0]) is None


def hero_rows() -> pd.DataFrame:
    rows = []
    for sentence in ("Is the film review good or bad?", "Does the headline mean what it says?"):
        for n, text in enumerate(["A charming film.", "Two hours that feel like four. " * 4]):
            for name in ("base", "generated", "router"):
                answer = "good" if name == "base" or n == 0 else "bad"
                row = {"sentence": sentence, "input": text, "truth": ("good", "bad")[n]}
                rows.append(row | {"method": name, "answer": answer, "probability": 0.75})
    return pd.DataFrame(rows)


def test_the_answers_of_a_scale_are_drawn_as_its_hero(tmp_path):
    rows = hero_rows().assign(base="b", commit="a").to_dict("records")
    small_tables.ANSWERS.append(tmp_path, rows)
    [(name, figure)] = drawing.scale_figures(tmp_path, [])
    assert name == "hero" and "n = 2 inputs a sentence" in bottom(figure)


def test_the_hero_marks_right_and_wrong_answers_of_every_method():
    figure = hero.hero_figure(hero_rows(), base="b", remark="n = 2 inputs a sentence.")
    texts_of_panel = [text.get_text() for text in figure.axes[0].texts]
    assert texts_of_panel.count("✓ good  75%") == 3 and texts_of_panel.count("✓ bad  75%") == 2
    assert texts_of_panel.count("✗ good  75%") == 1
    assert "base model 2 of 4, generated 4 of 4, router 4 of 4" in bottom(figure)


# ---------------------------------------------------------------- training
CURVES = [
    "zoo of smollm2-135m/movie seed 0",
    "zoo of smollm2-135m/movie seed 1",
    "zoo of smollm2-135m/sarcasm seed 0",
    "zoo of smollm2-135m/arithmetic seed 0",
    "generator/generator",
    "generator/generator-1",
    "generator/regression",
    "generator/unconditional",
]


def curve_rows() -> pd.DataFrame:
    steps = np.arange(1, 21)
    frames = [
        pd.DataFrame({"series": name, "step": steps, "loss": (1 + i) / steps})
        for i, name in enumerate(CURVES)
    ]
    return pd.concat(frames)


def test_a_panel_has_one_kind_of_loss_and_a_zoo_one_curve_a_group_of_tasks():
    figure = training.loss_curves(curve_rows())
    titles = [axis.get_title(loc="left") for axis in figure.axes if axis.get_visible()]
    assert titles == [
        "generator: denoising loss", "regression: squared error", "zoo of smollm2-135m",
    ]  # fmt: skip
    first, _, zoo = figure.axes
    assert [line.get_label() for line in first.lines] == ["generator", "unconditional"]
    assert [line.get_label() for line in zoo.lines] == ["labels", "written answers"]
    labels = zoo.lines[0].get_ydata()
    assert labels[0] == pytest.approx(2)  # the median of 1, 2 and 3 at the first step
    for axis in (first, zoo):
        assert len({str(line.get_linestyle()) for line in axis.lines}) == len(axis.lines)
    assert "3 (labels), 1 (written answers)" in bottom(figure)


def test_bars_compare_one_version_of_the_code_on_one_device():
    frame = pd.DataFrame(stacking())
    second = frame.assign(commit="def", value=2 * frame.value)
    figure = training.training_speed(pd.concat([frame, second]))
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["minilm-l6, GPU, abc", "minilm-l6, GPU, def"]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [43, 300, 4567]
    assert "4,567  (×106, 40%)" in words(figure)


def test_ablations_are_differences_to_the_default_of_the_same_seeds():
    rows = ablation().assign(base="b", task="t", seed=0)
    again = rows[rows.group == "token size"].assign(seed=1, value=rows.value + 0.1)
    again = again.assign(ci_low=again.value - 0.05, ci_high=again.value + 0.05)
    figure = ablations.ablation_figure(pd.concat([rows, again]))
    axes = {axis.get_title(loc="left"): axis for axis in figure.axes}
    assert list(axes) == ["reference", "token size", "objective"]
    [trained] = marks(axes["reference"])
    assert trained.get_xdata()[0] == pytest.approx(5, abs=0.3)  # may be held at the edge
    values = [line.get_xdata()[0] for line in marks(axes["token size"])]
    assert values[0] == 0 and len(values) == 2
    names = [label.get_text() for label in axes["token size"].get_yticklabels()]
    assert names == ["256 (default)", "512"]
    shown = words(figure)
    assert "75.0  (2)" in shown and "70.0  (1)" in shown  # the default with two seeds and with one
    assert "another accuracy of the default" in bottom(figure)


# ---------------------------------------------------------------- every figure can be read
def every_figure(two_cells, compared):
    metrics, items = two_cells
    rows = comparisons.pooled(metrics[metrics.metric == "accuracy"])
    unseen_items = made_items(cell("cifar10_yes_1001000000", "tiny", experiment="unseen"), n=60)
    yield "gaps", overview.gaps(compared)
    yield "unseen", overview.gaps(judged(unseen_items, 0, "balanced_accuracy"))
    yield "controls", overview.controls(compared)
    yield "signals", signals.signals(compared)
    yield "texts", texts.text_by_task(items, text_rows(items))
    yield "map", maps.zoo_map(map_rows())
    yield "costs", costs.accuracy_and_cost(*cost_rows(metrics))
    yield "hero", hero.hero_figure(hero_rows(), base="b", remark="n = 2 inputs.")
    yield "loss", training.loss_curves(curve_rows())
    yield "benchmarks", training.training_speed(pd.DataFrame(stacking()))
    yield "ablations", ablations.ablation_figure(ablation().assign(n_items=100, n_samples=3))
    yield "methods", cells.methods(rows, comparisons.per_sample(items))
    yield "prompts", cells.conditions(rows, comparisons.per_sample(items))
    answers = pd.DataFrame({"text": ["is it a cat?"] * 3, "truth": ["yes", "no", "place 1 of 9"]})
    answers = answers.assign(base=["no", "no", "place 4 of 9"], generated=answers.truth)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)
    yield "answers", gallery.example_images(pixels, answers, remark="n = 3 images.")


def published_figures(scale: str):
    """The figures of a published scale, small tables and all."""
    folder = RESULTS / scale
    yield from build._figures(folder, build._read(folder))


def test_no_figure_has_texts_that_overlap_are_cut_off_or_too_small(two_cells, compared):
    for name, figure in [*every_figure(two_cells, compared), *published_figures("desk")]:
        with theme.styled():
            assert (name, faults(figure)) == (name, [])
        assert says_n(figure), name


def test_texts_that_overlap_are_cut_off_or_too_small_are_noticed():
    with theme.styled():
        figure, axis = theme.subplots(height=3)
        for x, y, words in (
            (0.2, 0.5, "one text"),
            (0.21, 0.5, "over another"),
            (0.2, 0.9, "−0.0"),
        ):
            figure.text(x, y, words)
        figure.text(0.97, 0.9, "out of the figure")
        figure.text(0.5, 0.1, "small", fontsize=5)
        axis.plot(0.5, 2, "o", clip_on=False)
        wrong = faults(figure)
    assert wrong == [
        "'one text' and 'over another' overlap",
        "'out of the figure' is cut off",
        "'small' has 6.9 pixels",
        "a mark may lie outside of its panel",
        "'−0.0' has a negative zero",
    ]
    assert not says_n(figure)


# ---------------------------------------------------------------- colours and marks
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_of_methods_differ_for_every_reader(deficiency):
    colours = {look.colour for look in theme.LOOKS.values()}
    assert len(colours) == 9
    distances = [
        np.linalg.norm(seen(a, deficiency) - seen(b, deficiency))
        for a, b in combinations(sorted(colours), 2)
    ]
    assert min(distances) > 20


def test_two_reds_and_greens_are_one_colour_for_some_readers():
    near = {n: np.linalg.norm(seen("#a05000", n) - seen("#607000", n)) for n in DEFICIENCIES}
    assert near["none"] > 40 and min(near["protanopia"], near["deuteranopia"]) < 20


def test_methods_of_one_colour_have_marks_of_their_own():
    looks = [(look.colour, look.mark) for look in theme.LOOKS.values()]
    assert len(set(looks)) == len(looks)


def test_no_mark_of_a_method_means_a_state():
    assert {look.mark for look in theme.LOOKS.values()} & {theme.STATE_MARKS["below"]} == set()
    faces = {
        state: theme.mark_of(theme.LOOKS["generated"], state=state) for state in theme.STATE_MARKS
    }
    shapes = [(look["marker"], look["mfc"]) for look in faces.values()]
    assert len(set(shapes)) == len(shapes)
    for name, look in theme.LOOKS.items():
        assert theme.mark_of(look)["mfc"] != "white", name


def test_a_png_of_images_keeps_a_small_patch_of_one_colour():
    random = np.random.default_rng(0)
    pixels = np.repeat(random.integers(0, 256, (1, 64, 64, 1)), 3, axis=3).astype(np.uint8)
    pixels[:, 4:16, 4:16] = (0, 0, 255)
    figure = gallery.example_images(pixels, pd.DataFrame({"truth": ["yes"], "base": ["no"]}))
    image = Image.open(io.BytesIO(figure._repr_png_())).convert("RGB")
    blue = [colour for _, colour in image.getcolors(10**6) if colour == (0, 0, 255)]
    assert blue


def test_a_png_has_a_palette_and_keeps_the_colours_of_the_methods(compared, tmp_path):
    path, *_ = theme.save_figure(overview.gaps(compared), tmp_path, "gaps")
    image = Image.open(path)
    assert image.mode == "P" and path.stat().st_size < 40_000
    drawn = [colour for _, colour in image.convert("RGB").getcolors(1000)]
    colours = {"#" + bytes(colour).hex() for colour in drawn}
    assert {"#ffffff", theme.ORANGE, theme.MAGENTA, theme.YELLOW, theme.SKY} <= colours


# --- the look --------------------------------------------------------------------------------

DRAW = """
import sys
from pathlib import Path
import numpy as np, pandas as pd
from oral_lib.report.figures import method, theme, training
steps = np.arange(20)
curves = [pd.DataFrame({"series": s, "step": steps, "loss": 1 / (1 + steps)}) for s in ("g", "z/m")]
figures = {
    "loss": training.loss_curves(pd.concat(curves)),
    "schedule": method.schedule_figure(np.linspace(1, 0, 50)),
}
for name, figure in figures.items():
    theme.save_figure(figure, Path(sys.argv[1]), name)
    Path(sys.argv[1], f"{name}-in-a-notebook.png").write_bytes(figure._repr_png_())
"""
RC = """
text.usetex: True
axes.grid: True
axes.prop_cycle: cycler("color", ["r"])
figure.constrained_layout.use: False
font.family: serif
font.size: 30
lines.linewidth: 5
path.sketch: 1, 100, 2
path.simplify: False
savefig.bbox: tight
savefig.dpi: 10
savefig.transparent: True
svg.fonttype: none
text.hinting: no_autohint
"""


@pytest.mark.parametrize(
    "backend", ["svg", "tkagg", "module://matplotlib_inline.backend_inline", ""]
)
def test_a_figure_has_the_same_bytes_whatever_the_user_has_set(tmp_path, backend):
    def drawn(name: str, **settings: str) -> dict[str, bytes]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MPL", "MATPLOTL"))}
        environment |= {"PYTHONPATH": str(paths.ROOT), "MATPLOTLIBRC": os.devnull} | settings
        (tmp_path / name).mkdir()
        command = [sys.executable, "-P", "-c", DRAW, str(tmp_path / name)]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True)
        return contents(tmp_path / name)

    (tmp_path / "matplotlibrc-of-a-user").write_text(RC)
    usual = drawn("usual")
    assert len(usual) == 6
    rc = str(tmp_path / "matplotlibrc-of-a-user")
    assert drawn("of a user", MATPLOTLIBRC=rc, MPLBACKEND=backend) == usual


def test_the_settings_of_the_user_are_back_after_a_figure():
    with matplotlib.rc_context({"lines.linewidth": 7.0}):
        with theme.styled():
            assert matplotlib.rcParams["lines.linewidth"] == 1.5
            assert matplotlib.rcParams["font.size"] == 10
        assert matplotlib.rcParams["lines.linewidth"] == 7.0
