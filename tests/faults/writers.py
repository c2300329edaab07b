"""Writes one file of every kind that the project writes, and prints how each went, as JSON.

    python -m tests.faults.writers FOLDER

Run with the library of full_disk.c, where `write` and `fsync` fail.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from oral_lib import storage
from oral_lib.errors import OralError


def writers(folder: Path) -> dict[str, Callable[[], object]]:
    """A function for each kind of file, by the name of the file that it writes in `folder`."""
    import pandas
    import torch
    from made_results import made
    from matplotlib.figure import Figure

    from oral_lib.evaluation import results
    from oral_lib.lora import peft_folder
    from oral_lib.report.figures import theme
    from oral_lib.workflow import notebooks

    tensors = {"a": torch.ones(4000)}
    adapter = {"base_model.model.q.lora_A.weight": torch.ones(2, 4000)}
    adapter["base_model.model.q.lora_B.weight"] = torch.zeros(3, 2)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
    card = peft_folder.Card("Is the film good?", base="tiny-base", generator="example", seed=0)
    rows = pandas.DataFrame({"text": ["a"] * 1000})

    def figure(kind: str) -> Callable[[], object]:
        return lambda: theme.save_figure(Figure(), folder / kind, "figure")

    return {
        "t/tensors.safetensors": lambda: storage.write_tensors(
            folder / "t" / "x.safetensors", tensors
        ),
        "values.json": lambda: storage.write_json(folder / "values.json", list(range(3000))),
        "rows.csv": lambda: storage.write_text(folder / "rows.csv", rows.to_csv()),
        "png/figure.png": figure("png"),
        "svg/figure.svg": figure("svg"),
        "cell": lambda: results.write_cell(folder / "cell", *made()),
        "lora": lambda: peft_folder.save(folder / "lora", adapter, config, card),
        "quick.ipynb": lambda: notebooks.run_notebook(
            notebooks.find("00_quickstart"), folder / "quick.ipynb", {"scale": "smoke"}
        ),
    }


PARTS = {  # what the disk is full for, where it is not the name itself
    "t/tensors.safetensors": "/t/",  # safetensors writes to a file of another name first
    "png/figure.png": "figure.png",
    "svg/figure.svg": "figure.svg",
    "cell": "items.parquet",
    "lora": "/.lora.",
    "quick.ipynb": "quick.running.ipynb",
}


def main(folder: Path) -> None:
    """Tries every writer, with a full disk and with one that fails at the end of a file.

    Prints a list [FULL_FSYNC, name, kind of error, message].
    """
    outcomes = []
    for at_end in ("", "1"):
        if at_end:
            os.environ["FULL_FSYNC"] = at_end
        for name, write in writers(folder).items():
            if at_end and name.endswith(".ipynb"):
                continue  # papermill writes it
            os.environ["FULL"] = PARTS.get(name, name)
            try:
                write()
                outcomes.append([at_end, name, "", ""])
            except (OralError, OSError) as error:
                outcomes.append([at_end, name, type(error).__name__, str(error)])
            os.environ["FULL"] = ""
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
