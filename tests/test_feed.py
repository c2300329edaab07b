"""The feed: what a stack reads in a step is what each of its runs would read alone."""

import pytest
import torch

from oral_lib.evaluation import scoring
from oral_lib.models import loading
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task
from oral_lib.zoo import batches
from oral_lib.zoo.batches import StackBatches

torch.set_num_threads(1)
BATCH, STEPS = 4, 6
MIXED = {  # tasks that are scored alike, with rows of other lengths, label words and options
    "label": ("movie", "rte", "review_topic"),
    "option": ("quartz", "winogrande"),
    "answer": ("arithmetic", "gsm8k"),
}


@pytest.fixture(scope="module")
def base():
    found = loading.load("tiny-causal")
    found.model.float()
    return found


def fed(base, how):
    """(feed of two seeds of each task that is scored so, its runs, the rows of each task)."""
    jobs = [(load_task(name), seed) for name in MIXED[how] for seed in (0, 1)]
    data = {task.name: task_rows(task, "made") for task, _ in jobs}
    return StackBatches.of(base, jobs, data, steps=STEPS, batch=BATCH), jobs, data


@pytest.mark.parametrize("how", MIXED)
def test_group_s_of_a_step_is_the_batch_that_run_s_would_read_alone(base, how):
    found, jobs, data = fed(base, how)
    streams = [batches.batches(data[task.name].train, BATCH, seed) for task, seed in jobs]
    assert found.scoring_kind == how and len(found.widths) == len(found.tails) == STEPS
    for step in range(STEPS):
        read, labels, words = found.step(step)
        assert len(read.ids) == len(jobs) * BATCH * read.options
        assert read.ids.shape[1] == found.widths[step] == read.lengths.max()
        for s, (task, _) in enumerate(jobs):
            rows = [data[task.name].train[i] for i in next(streams[s])]
            alone = base.encode_rows(task, rows)
            own = slice(s * BATCH * read.options, (s + 1) * BATCH * read.options)
            assert alone.options == read.options and alone.tail <= read.tail
            width = alone.ids.shape[1]
            assert torch.equal(read.ids[own, :width], alone.ids)
            assert torch.equal(read.lengths[own], alone.lengths)
            assert torch.equal(read.begins[own], alone.begins)
            own = slice(s * BATCH, (s + 1) * BATCH)
            assert labels[own].tolist() == [row.label for row in rows]
            asked = base.answer_ids(task)
            assert torch.equal(words[own, : len(asked)], asked.expand(BATCH, -1))


@pytest.mark.parametrize("how", MIXED)
def test_a_row_costs_in_a_feed_what_it_costs_alone(base, how):
    found, jobs, data = fed(base, how)
    read, labels, words = found.step(0)
    together = scoring.losses(base.model, base, how, read, labels, words).view(len(jobs), BATCH)
    assert together.min() > 0 and len(set(together.flatten().tolist())) > BATCH
    for (task, seed), losses in zip(jobs, together, strict=True):
        chosen = next(batches.batches(data[task.name].train, BATCH, seed))
        rows = [data[task.name].train[i] for i in chosen]
        answers = torch.tensor([row.label for row in rows])
        asked = base.answer_ids(task).expand(BATCH, -1)
        alone = scoring.losses(base.model, base, how, base.encode_rows(task, rows), answers, asked)
        torch.testing.assert_close(losses, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", ["option", "answer"])
def test_a_wider_tail_than_a_row_has_changes_nothing(base, how):
    """Steps of one width share the longest tail among them, so that they share a graph."""
    found, *_ = fed(base, how)
    read, labels, words = found.step(1)
    wider = read.cut(found.widths[1], found.tails[1] + 3)
    one, other = (scoring.losses(base.model, base, how, r, labels, words) for r in (read, wider))
    torch.testing.assert_close(one, other)
    pairs = set(zip(found.widths, found.tails, strict=True))
    assert len(pairs) == len({width for width, _ in pairs})


def test_rows_of_a_table_may_be_wider_than_any_so_that_feeds_follow_one_another(base):
    task = load_task("movie")
    jobs, data = [(task, 0)], {"movie": task_rows(task, "made")}
    short = StackBatches.of(base, jobs, data, steps=2, batch=BATCH)
    wide = StackBatches.of(base, jobs, data, steps=2, batch=BATCH, longest=50)
    assert wide.table.ids.shape[1] == 50 > short.table.ids.shape[1]
    assert wide.widths == short.widths and torch.equal(wide.table.lengths, short.table.lengths)
    for one, other in zip(wide.step(1)[1:], short.step(1)[1:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("width", "wanted"), [(1, 8), (8, 8), (9, 16), (65, 80), (129, 160)])
def test_on_a_gpu_widths_are_few(width, wanted):
    assert batches.rounded_width(width) == wanted
    assert len({batches.rounded_width(w) for w in range(1, 513)}) <= 24
