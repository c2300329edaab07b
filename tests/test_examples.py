"""The example images of the report: measured answers next to the truth."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import oral_lib
from oral_lib.errors import PreflightError
from oral_lib.report.figures import gallery
from oral_lib.tasks import images

METHODS = {"base": "none", "trained": "none", "generated": "matched"}


def items_of(task, keys, predicted):
    """Outcomes of sample 0, and of another that must not be drawn."""
    parts = [
        pd.DataFrame({"task": task, "method": method, "condition": condition, "sample": sample,
                      "item": keys, "predicted": [predicted[method] + sample] * len(keys)})
        for method, condition in METHODS.items()
        for sample in (0, 1)
    ]  # fmt: skip
    return pd.concat(parts)


@pytest.fixture
def scored():
    """(items, rows) of a task of images, one of questions and one of matching."""
    predicted = {"base": 1, "trained": 0, "generated": 0}
    parts, rows = [], {}
    for name in ("solar_cells", "easy_vqa", "flickr8k"):
        spec = oral_lib.load_task(name)
        rows[name] = list({r.image: r for r in oral_lib.task_rows(spec, "made").test}.values())[1:5]
        place = "text_to_image/" if spec.scoring == "match" else ""
        parts.append(items_of(name, [place + row.key for row in rows[name]], predicted))
    return pd.concat(parts), rows


def test_the_first_images_that_every_method_was_scored_on_are_drawn(scored):
    items, rows = scored
    pixels, answers = gallery.examples(items, "made", number=3)
    assert (
        pixels.shape == (9, gallery.EXAMPLE_PIXELS, gallery.EXAMPLE_PIXELS, 3)
        and pixels.dtype == np.uint8
    )
    assert len(np.unique(pixels.reshape(9, -1), axis=0)) == 9
    labels = oral_lib.load_task("solar_cells").labels
    assert list(answers.truth[:3]) == [labels[row.label] for row in rows["solar_cells"][:3]]
    assert set(answers.base[:3]) == {labels[1]} and set(answers.trained[:3]) == {labels[0]}


def test_an_image_that_one_method_was_not_scored_on_is_left_out(scored):
    items, rows = scored
    first = rows["solar_cells"][0].key
    part = items[~((items.method == "trained") & (items.item == first))]
    _, answers = gallery.examples(part[part.task == "solar_cells"], "made", number=3)
    labels = oral_lib.load_task("solar_cells").labels
    assert list(answers.truth) == [labels[row.label] for row in rows["solar_cells"][1:]]
    assert gallery.examples(items[items.method != "base"], "made") is None


def test_questions_lie_above_their_answers_and_matching_gives_the_place(scored):
    items, rows = scored
    _, answers = gallery.examples(items, "made", number=3)
    first = rows["easy_vqa"][0]
    assert answers.text[3] == first.text
    assert list(answers.text[6:]) == [row.text for row in rows["flickr8k"][:3]]
    assert set(answers.base[6:]) == {"place 2 of 4"}  # of the four images that were scored
    assert set(answers.generated[6:]) == set(answers.truth[6:]) == {"place 1 of 4"}


def test_right_and_wrong_answers_are_marked_and_explained(scored):
    items, _ = scored
    figure = gallery.example_images(*gallery.examples(items, "made", number=3), remark="n = 3.")
    words = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert words.count("✗ base: place 2 of 4") == words.count("✓ generated: place 1 of 4") == 3
    about = figure._supxlabel.get_text().replace("\n", " ")
    for part in ("✓: right, ✗: wrong", "head", "untrained", "rank of the text's own", "n = 3."):
        assert part in about
    titles = [axis.get_title() for axis in figure.axes]
    assert sum("right answer: " in title for title in titles) == 6


def test_a_wide_image_is_not_squashed():
    file = io.BytesIO()
    Image.new("RGB", (40, 10), "red").save(file, "png")
    [pixels] = images.pad_to_square([file.getvalue()], 20)
    red = (pixels == (255, 0, 0)).all(-1)
    assert red.any(0).all() and red.any(1).sum() == 5  # the full width, a quarter of the height
    assert (pixels[~red] == 255).all()
    with pytest.raises(PreflightError, match="Image 0 of 1"):
        images.pad_to_square([b"no picture"], 20)
