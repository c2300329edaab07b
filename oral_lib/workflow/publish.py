"""Publishing: finished cells become tables, curves, figures and pages; notebooks become pages."""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd

from oral_lib import paths, provenance, scales, storage
from oral_lib.assets import sources
from oral_lib.errors import PreflightError
from oral_lib.evaluation import results as tables
from oral_lib.evaluation import small_tables
from oral_lib.experiments.records import EXPERIMENTS
from oral_lib.report import build, notebook_html
from oral_lib.report.figures import gallery, theme
from oral_lib.workflow import notebooks
from oral_lib.zoo import store

MEASURED = (  # with the cells; a run has JSON files of their rows, in a folder of the table's name
    small_tables.NOVELTY,
    small_tables.TEXTS,
    small_tables.MAPS,
    small_tables.BYTES,
    small_tables.COSTS,
    small_tables.INTENTS_COSTS,
    small_tables.INTENTS_MAP,
)


def publish(
    scale: str,
    source: str,
    experiment: str,
    root: Path,
    results: Path,
    cells: Sequence[Path],
    wordings: str,
) -> Path:
    """The path of the new report, results/README.md.

    Adds the cells to the tables in `results`, writes curves and manifest, and draws all figures.
    Waits while another experiment writes there.

    Args:
        scale: the scale of the run.
        source: its data source, with the folder of a local one.
        experiment: one of `scales.EXPERIMENT_NAMES`.
        root: the folder of the experiment, with zoo and generators.
        results: the folder of published results of the scale.
        cells: the folders of the cells to publish.
        wordings: the paraphrases that they measured, for the manifest.

    Raises:
        OralError: a cell breaks the schema of results, or a file of the run is damaged.
    """
    with writing(results):
        tables.collect(cells, results)
        for table in MEASURED:
            if len(rows := table.measured(root)):
                table.append(results, rows.to_dict("records"))
        losses = curves(scale, source, experiment, root)
        path = results / f"curves-{experiment}-{paths.slug(source)}.csv"
        storage.write_text(path, losses.to_csv(index=False, float_format="%.5g"))
        _write_manifest(scale, source, experiment, root, results, wordings)
        if EXPERIMENTS[experiment].shows_images:
            _draw_answers(scale, source, experiment, results)
        report = build.write_report(results.parent, scale)
        storage.write_json(root / "published.json", {"report": report.name})
        return report


def published(results: Path, experiment: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(metrics, items) of `experiment` among the published results."""
    return tables.read(results, experiment)


def writing(results: Path) -> AbstractContextManager[None]:
    """The lock of the published results: experiments read and rewrite the same files in turn."""
    results.mkdir(parents=True, exist_ok=True)
    runs = results.parent.parent / "runs"
    runs.mkdir(exist_ok=True)
    return storage.file_lock(runs / ".report.lock")


def curves(scale: str, source: str, experiment: str, root: Path) -> pd.DataFrame:
    """[series, step, loss] of every adapter of the zoo and of every generator, thinned out."""
    parts = []
    if EXPERIMENTS[experiment].zoo_curves:
        for base, task, seed in scales.members(scale, source, experiment):
            losses = store.read(root, base, task, seed).info["losses"]
            parts.append((f"zoo of {base}/{task} seed {seed}", losses))
    for name in scales.generators(scale, experiment, source):
        losses = storage.read_json(root / name / "manifest.json")["losses"]
        parts.append((f"generator/{name}", losses))
    frames = [
        pd.DataFrame({"series": name, "step": range(1, len(losses) + 1), "loss": losses})
        for name, losses in parts
    ]
    return tables.thinned(pd.concat(frames, ignore_index=True))


def _write_manifest(
    scale: str, source: str, experiment: str, root: Path, results: Path, wordings: str
) -> None:
    """Writes what the results were made with: data, seeds, configurations, recipes."""
    unread = scales.members(scale, source, experiment, held_out=True)
    jobs = scales.generator_jobs(scale, experiment, source)
    generators = [job for job in jobs if job.kind == jobs[0].kind and job.split == jobs[0].split]
    manifest = storage.read_json(root / jobs[0].name / "manifest.json")
    config = storage.read_json(root / jobs[0].name / "config.json")
    zoo = manifest.get("zoo", [])
    provenance.manifest(
        results,
        source=EXPERIMENTS[experiment].publication(paths.slug(source)),
        seeds={
            "zoo": sorted({member["seed"] for member in zoo}),
            "held out of training": sorted({seed for _, _, seed in unread}),
            "generator": [job.seed for job in generators],
        },
        wordings=wordings,
        held_out=max(Counter((base, task) for base, task, _ in unread).values(), default=0),
        zoo=zoo,
        assets=sources.identities(source, experiment),
        training=manifest["training"],
        generator=config["generator"],
        recipes=_recipes(root, zoo) or _recipes_of_sets(root),
        rivals=_rivals(root),
        tuning=_tuning(root),
        aligned=_json_files(root / "aligned"),
        evolved=_json_files(root / "evolved"),
    )


def _rivals(root: Path) -> dict[str, dict]:
    """How rivals and adapters of an experiment with splits were trained, by base model."""
    chosen = {}
    for path in storage.list_paths(root / "rivals", "*/manifest.json"):
        content = storage.read_json(path)
        chosen[path.parent.name] = content.get("training") or {
            name: _chosen(storage.read_json(path.parent / f"{name}.json"))
            for name in content["files"]
        }
    return chosen


def _chosen(info: Mapping) -> dict:
    """How a rival was trained, and what was chosen for it."""
    return {k: info[k] for k in ("recipe", "chosen", "steps", "penalty", "threshold") if k in info}


def _recipes_of_sets(root: Path) -> dict[str, dict]:
    """The training recipe of adapters that are stored in sets, by base model."""
    files = storage.list_paths(root / "zoo", "*/manifest.json")
    read = {path.parent.name: storage.read_json(path) for path in files}
    return {base: content["recipe"] for base, content in read.items() if "recipe" in content}


def _recipes(root: Path, zoo: Sequence[dict]) -> dict[str, dict[str, dict]]:
    """The training recipe of the adapters in `zoo`, by base model and task."""
    recipes: dict[str, dict[str, dict]] = {}
    for entry in zoo:
        info = store.read(root, entry["base"], entry["task"], entry["seed"]).info
        recipes.setdefault(entry["base"], {})[entry["task"]] = info["recipe"]
    return recipes


def _tuning(root: Path) -> dict[str, dict[str, dict]]:
    """The recipes that tuning compared, by base model and task."""
    candidates: dict[str, dict[str, dict]] = {}
    for path in storage.list_paths(root / "tuning", "*/*.json"):
        candidates.setdefault(path.parent.name, {})[path.stem] = storage.read_json(path)
    return candidates


def _json_files(folder: Path) -> list[dict]:
    """The content of the JSON files in `folder`, sorted by file name."""
    return [storage.read_json(path) for path in storage.list_paths(folder, "*.json")]


def _draw_answers(scale: str, source: str, experiment: str, results: Path) -> None:
    """Draws test images with answers, on the first base model. Prints a line and draws nothing if
    the images have been removed since they were measured."""
    slug = paths.slug(source)
    _, items = tables.read(results, experiment, slug)
    base = scales.base_plans(scale, source, experiment)[0].base
    items = items[(items.base == base) & (items.seed == 0)]
    try:
        examples = gallery.examples(items, source)
    except PreflightError as error:
        print(f"no figure of images with answers: {error}", file=sys.stderr)
        return
    if examples:
        remark = f"First test rows of {base}; adapter and sample 0, generator seed 0."
        figure = gallery.example_images(
            *examples, remark=f"{remark} n = {len(examples[1])} images."
        )
        theme.save_figure(figure, results / "figures", f"answers-{experiment}-{slug}")


# ---------------------------------------------------------------- executed notebooks
EXECUTED = (  # notebooks that are published by default
    *("00_quickstart", "01_method", "02_your_own_adapters", "50_control", "80_novelty"),
    *(record.notebook for record in EXPERIMENTS.values()),
)


def publish_notebook(name: str, scale: str, source: str, out: Path) -> Path:
    """The new page of a notebook, results/notebooks/<name>.html.

    The page of a scale other than smoke is called <name>-<scale>.html. It is that of the first
    notebook of this name that the run of the scale executed, if there is one. Else the notebook is
    executed now, in runs/notebooks. Paths of this machine are not part of a page.

    Args:
        name: of a notebook of the project.
        scale: the value of its parameter `scale`.
        source: of its parameter `source`.
        out: the folder of runs/ and results/.

    Raises:
        UsageError: no such notebook, or it cannot run at this scale.
        OralError: a cell raised.
    """
    file = notebooks.find(name)
    title = file.stem + ("" if scale == "smoke" else f"-{scale}")
    executed = _executed(file.stem, paths.run_folder(scale, source, out))
    executed = executed or _run(file, title, scale, source, out)
    content = storage.read_json(executed)
    origin = Path(content["metadata"]["papermill"]["input_path"]).parent.parent
    places = {str(place): "." for place in (paths.ROOT, out.absolute(), origin)}
    places |= {str(Path.home()): "~", tempfile.gettempdir(): "TEMPORARY"}
    about = f"notebooks/{file.stem}.py, executed at the scale {scale}"
    places = dict(sorted(places.items(), reverse=True))  # a folder after those that it contains
    text = notebook_html.notebook_page(content, title, places, about)
    path = out / "results" / "notebooks" / f"{title}.html"
    storage.write_text(path, text)
    return path


def _executed(name: str, run: Path) -> Path | None:
    """The first executed copy of the notebook `name` in the folder of a run."""
    for path in storage.list_paths(run / "notebooks", "*.ipynb"):
        about = storage.read_json(path)["metadata"].get("papermill", {})
        if Path(about.get("input_path", "")).stem == name and not about.get("exception"):
            return path
    return None


def _run(file: Path, title: str, scale: str, source: str, out: Path) -> Path:
    """The copy of a notebook that is executed now, with its outputs."""
    executed = out / "runs" / "notebooks" / f"{title}.ipynb"
    values = {"scale": scale, "source": source} | ({"out": str(out)} if out != paths.ROOT else {})
    values["compute"] = json.dumps(scale == "smoke")  # else: what the published results hold
    allowed = notebooks.parameters(file)
    values = {name: value for name, value in values.items() if name in allowed}
    notebooks.run_notebook(file, executed, values)
    return executed
