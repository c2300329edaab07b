import os
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from made_results import PROFILE, ablation, cell, made, made_items, stacking

from oral_lib import paths
from oral_lib.evaluation import item_tables
from oral_lib.report import comparisons
from oral_lib.report.comparisons import judged, trained_gains, without_signal
from oral_lib.report.figures import ablations, cells, method, overview, theme, training
from oral_lib.report.figures.theme import BLUE, VERMILION
from oral_lib.report.tables.grid import MODELS
from oral_lib.scales import PAPER_TASKS

FEW = {
    ("base", "none"): (0.5, 1),
    ("trained", "none"): (0.8, 3),
    ("generated", "matched"): (0.8, 2),
}


@pytest.fixture(scope="module")
def two_cells() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metrics and items of two cells, the first of them without signal."""
    useless = {key: (0.5, samples) for key, (_, samples) in PROFILE.items()}
    cells = [
        made(cell(task="a_b"), profile=useless, n=100, n_control=60),
        made(cell(task="movie"), n=100, n_control=60),
    ]
    return pd.concat([rows for rows, _ in cells]), item_tables.join([rows for _, rows in cells])


def contents(folder) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


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
    assert len(theme.save_figure(schedule, tmp_path, "schedule")) == 3


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
    assert len(theme.save_figure(figure, tmp_path, "style")) == 3


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


def test_loss_curves_of_the_seeds_of_a_task_share_a_name_and_a_colour():
    names = [
        "zoo of x/movie seed 0",
        "zoo of x/movie seed 1",
        "zoo of x/sarcasm seed 0",
        "gen/rating",
    ]
    frames = [pd.DataFrame({"series": n, "step": [1, 2, 3], "loss": [3.0, 2, 1]}) for n in names]
    figure = training.loss_curves(pd.concat(frames))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["gen", "zoo of x"]
    labels = {text.get_text() for text in figure.axes[1].texts}
    assert labels == {"movie (2 seeds, 3 steps)", "sarcasm (3 steps)"}
    assert len({line.get_color() for line in figure.axes[1].lines}) == 2


def test_parity_draws_both_intervals_and_the_difference_of_every_cell(two_cells):
    metrics, items = two_cells
    rows = comparisons.pooled(metrics[metrics.metric == "accuracy"])
    figure = overview.parity(rows, without_signal(trained_gains(items)))
    axes = {axis.get_title(loc="left"): axis for axis in figure.axes}
    assert list(axes) == ["minilm-l6"]  # of two tasks of packages only what was run
    whole = overview.parity(rows.assign(source="local"))
    assert [axis.get_title(loc="left") for axis in whole.axes] == list(MODELS)
    axis = axes["minilm-l6"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["a b", "movie"]
    drawn = {tuple(line.get_xdata()) for line in axis.lines}
    for name in ("trained", "generated"):
        row = rows[(rows.task == "movie") & (rows.method == name)].iloc[0]
        assert (100 * row.ci_low, 100 * row.ci_high) in drawn and (100 * row.value,) in drawn
    texts = [text.get_text() for text in axis.texts]
    assert texts.count("no signal") == 1 and "not run" not in texts
    [gap] = [a for a in whole.axes if a.get_title(loc="left") == "gemma-3-270m"]
    assert {text.get_text() for text in gap.texts} == {"not run"}


def test_parity_in_auc_leaves_out_the_tasks_that_have_none():
    parts = [made(cell(task, source="local"), profile=FEW, n=20)[0] for task in ("sst2", "rte")]
    rows = pd.concat(parts)
    for metric, count in (("accuracy", len(PAPER_TASKS)), ("auc", 2)):
        figure = overview.parity(comparisons.pooled(rows[rows.metric == metric]))
        assert len(figure.axes[0].get_yticklabels()) == count


def test_gaps_draw_the_paired_interval_and_mark_intervals_below_zero(two_cells):
    compared = judged(two_cells[1], 1)
    gap = (compared.what == "generated") & (compared.against == "trained")
    bad = compared.task == "movie"
    compared.loc[gap & bad, ["difference", "ci_low", "ci_high"]] = -0.02, -0.03, -0.01
    compared.loc[gap & ~bad, ["difference", "ci_low", "ci_high"]] = 0.002, -0.08, 0.01
    [axis] = overview.gaps(compared).axes
    drawn = {tuple(np.round(line.get_xdata(), 6)): line.get_color() for line in axis.lines}
    assert drawn[-3.0, -1.0] == drawn[(-2.0,)] == VERMILION
    assert drawn[-4.0, 1.0] == drawn[(0.2,)] == BLUE  # cut at the edge of the panel


def test_controls_draw_what_is_kept_and_nothing_without_signal(two_cells):
    compared = judged(two_cells[1], 1)
    figure = overview.controls(compared)
    axis = next(a for a in figure.axes if a.get_title(loc="left") == "minilm-l6")
    assert [text.get_text() for text in axis.texts] == ["no signal"]
    drawn = [line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 1]
    texts = compared.what.str.startswith("generated/") & (compared.against == "generated")
    shares = compared[(compared.task == "movie") & texts].share
    assert len(shares) == 4 and drawn == pytest.approx(100 * (1 + shares.to_numpy()))


def test_a_probe_that_equals_the_adapters_does_not_take_their_signal():
    places = [cell("digits", "efficientnet-lite0", experiment="vision"), cell("movie")]
    useless = {key: (0.5, samples) for key, (_, samples) in PROFILE.items()}
    probe = {("linear_probe", "none"): PROFILE["trained", "none"]}
    items = pd.concat([made_items(places[0], PROFILE | probe), made_items(places[1], useless)])
    compared = judged(items, 1)
    [row] = compared[compared.what.eq("linear_probe") & compared.against.eq("trained")].itertuples()
    assert row.ci_low <= 0 <= row.ci_high
    no_signal = {("language", "packages", "minilm-l6", "movie")}
    assert without_signal(compared) == without_signal(trained_gains(items)) == no_signal
    [axis] = overview.controls(compared[compared.experiment == "vision"]).axes
    assert "no signal" not in {text.get_text() for text in axis.texts}


def test_ablations_mark_the_default_and_draw_the_reference():
    figure = ablations.ablation_figure(ablation())
    assert [axis.get_title(loc="left").strip() for axis in figure.axes] == [
        "token size", "objective",
    ]  # fmt: skip
    axis = figure.axes[0]
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in dots] == [False, True]
    assert [list(line.get_xdata()) for line in dots] == [[70], [60]]
    assert [75, 75] in [list(line.get_xdata()) for line in axis.lines]


def test_training_speed_draws_many_at_once_and_plain_peft():
    frame = pd.DataFrame(stacking())
    speed, share = training.training_speed(frame).axes
    assert list(speed.lines[0].get_xdata()) == [1, 64]
    assert list(speed.lines[0].get_ydata()) == [300, 4567]
    assert {"4,567", "PEFT, one by one: 43"} <= {text.get_text() for text in speed.texts}
    assert list(share.lines[0].get_ydata()) == [10, 40]


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
    assert len(usual) == 8
    rc = str(tmp_path / "matplotlibrc-of-a-user")
    assert drawn("of a user", MATPLOTLIBRC=rc, MPLBACKEND=backend) == usual


def test_the_settings_of_the_user_are_back_after_a_figure():
    with matplotlib.rc_context({"lines.linewidth": 7.0}):
        with theme.styled():
            assert matplotlib.rcParams["lines.linewidth"] == 1.5
            assert matplotlib.rcParams["font.size"] == 12
        assert matplotlib.rcParams["lines.linewidth"] == 7.0
