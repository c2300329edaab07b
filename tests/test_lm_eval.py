"""Seven tasks are asked and scored as lm-evaluation-harness does.

Its own files and its own model class are read out of the pinned wheel, which is never installed:
what it would want beside itself is of no use here, and is not imported.
"""

import importlib.util
import re
import sys
import zipfile
import zipimport
from dataclasses import replace
from types import SimpleNamespace

import made_tokenizers
import pandas as pd
import pytest
import torch
import yaml

from oral_lib.assets import sources
from oral_lib.errors import PreflightError
from oral_lib.evaluation import scoring
from oral_lib.models import loading
from oral_lib.tasks.rows import task_rows
from oral_lib.tasks.task import load_task

torch.set_num_threads(1)
FILES = {
    "sst2": "glue/sst2/default.yaml",
    "mrpc": "glue/mrpc/default.yaml",
    "rte": "glue/rte/default.yaml",
    "wnli": "glue/wnli/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "winogrande": "winogrande/default.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
}
CHOSEN = [name for name in FILES if name != "gsm8k"]  # between answers, none is written
PAIRS = [
    ("The shares rose 3 percent.", "Stock in the firm gained 3 % {today}.", 1),
    ("Ann thanked Sue because she had helped.", "Sue had helped.", 1),
    ("The firm, founded in Oslo in 1920, makes bells.", "The firm makes boats.", 0),
    ("It's 5 o'clock\tin Paris , she said .", "He was late & he knew it.", 0),
]
PASSAGES = [
    ("Otters eat fish and live near rivers.", "do otters eat fish", True),
    ("Café 日本 (est. 1999) -- a chain -- has  two shops.", "is it a chain", True),
    ("The river Rhine runs through six countries.", "is the rhine in africa", False),
    ("A kilobyte is 1000 bytes.\nSome say 1024.", "is a kilobyte ever 1024 bytes", True),
]
BLANKS = [
    ("The cup did not fit in the box because the _ was too big.", "cup", "box", "1"),
    ("Ann wrote to Sue, who is older than _.", "Ann", "Sue", "1"),
    ("_ asked the teacher how long the test, or quiz_1, takes.", "The boy", "The book", "1"),
    ("Tim's horse beat Lee's horse, so _ was sad .", "Tim", "Lee", "2"),
]
SUMS = [
    ("Tom eats 2 of 12 apples. How many are left?", "12 - 2 = <<12-2=10>>10\n#### 10"),
    ("What is 40% of $3,000?", "It is 0.4 * 3000 = $<<0.4*3000=1200>>1,200.\n#### 1,200"),
    ("Lee owes $9 and pays $4. What has he?", "4 - 9 = -5, a debt.\n#### -5"),
    ("How long are 3 rods of 1.5 m?", "3*1.5=<<3*1.5=4.5>>4.5 meters\n#### 4.5"),
]
WRITTEN = [  # what models write after a question
    " 12 - 2 = 10\n#### 10",
    " She has $1,200. #### 1,200.",
    " That makes 3 + 4 = 7 of them",
    " The answer is $18.",
    " I do not know",
    "#### -5\nHe owes 7.",
    " 2.5 + 2 is 4.5",
]


def docs(name):
    """Rows in the columns of the hub."""
    if name == "gsm8k":
        return [{"question": question, "answer": answer} for question, answer in SUMS]
    if name == "winogrande":
        columns = ("sentence", "option1", "option2", "answer")
        return [dict(zip(columns, row, strict=True)) for row in BLANKS]
    if name == "boolq":  # `answer` at google/boolq, `label` in the copy that they read
        columns = ("passage", "question", "answer", "label")
        return [dict(zip(columns, (*row, int(row[-1])), strict=True)) for row in PASSAGES]
    if name == "sst2":
        texts = ["a gripping , clever story ", "dull", "it 's {never} 100% dull ", "too long "]
        return [{"sentence": text, "label": i % 2} for i, text in enumerate(texts, 1)]
    return [dict(zip(("sentence1", "sentence2", "label"), row, strict=True)) for row in PAIRS]


@pytest.fixture(scope="module")
def wheel():
    """The path of the pinned lm-evaluation-harness, from which modules can be imported."""
    try:
        found = sources.lm_eval_wheel(
            offline=True
        )  # fetched by ./reproduce.sh test, before its tests
    except PreflightError as error:
        pytest.skip(f"lm-evaluation-harness is unavailable: {error}")
    sys.path.append(str(found))
    yield found
    sys.path.remove(str(found))


@pytest.fixture(scope="module")
def theirs(wheel):
    """name -> their task: `doc_to_text`, `doc_to_target`, `doc_to_choice` and their settings."""
    from lm_eval.utils import apply_template

    def read(name):
        folder = f"lm_eval/tasks/{FILES[name].rpartition('/')[0]}"
        with zipfile.ZipFile(wheel) as box:

            class Loader(yaml.SafeLoader):
                pass

            def function(loader, node):
                module, _, called = loader.construct_scalar(node).partition(".")
                spec = zipimport.zipimporter(f"{wheel}/{folder}").find_spec(module)
                made = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(made)
                return getattr(made, called)

            Loader.add_constructor("!function", function)
            settings = yaml.load(box.read(f"lm_eval/tasks/{FILES[name]}"), Loader)

        def filled(key):
            form = settings.get(key)

            def fill(doc):
                if callable(form):
                    return form(doc)
                if isinstance(form, list):
                    return form
                return doc[form] if form in doc else apply_template(form, doc)

            return fill

        parts = {key: filled(key) for key in ("doc_to_text", "doc_to_target", "doc_to_choice")}
        return SimpleNamespace(settings=settings, **parts)

    return {name: read(name) for name in FILES}


def asked(task, doc):
    """The (context, continuation) pairs and the place of the right one, as their tasks build it."""
    text, target, choices = (
        get(doc) for get in (task.doc_to_text, task.doc_to_target, task.doc_to_choice)
    )
    gap = task.settings.get("target_delimiter", " ")
    if isinstance(text, int):  # the choices are contexts, and the target is what they share
        return [(choice, gap + target) for choice in choices], text
    return [(text, gap + choice) for choice in choices], target


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """name -> the same rows as this project reads them from a local folder, in the same order."""
    folder, found = tmp_path_factory.mktemp("data"), {}
    for name in FILES:
        task = load_task(name)
        (folder / name).mkdir()
        parts = {task.sources["local"]["train"], task.sources["local"]["test"]}
        for part in parts:
            pd.DataFrame(docs(name)).to_parquet(folder / name / f"{part}.parquet")
        rows = task_rows(task, f"local:{folder}").test
        found[name] = sorted(rows, key=lambda row: int(row.key.rpartition("-")[2]))
        assert len(found[name]) == len(docs(name))
    return found


@pytest.fixture(scope="module")
def base():
    """SmolLM2 in float32, so that rounding hides nothing."""
    found = loading.load("smollm2-135m")
    found.model.float()
    return found


@pytest.fixture(scope="module")
def harness(base, wheel):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=base.model, tokenizer=base.tokenizer, backend="causal", batch_size=4)


def request(kind, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@pytest.mark.parametrize("name", FILES)
def test_prompts_and_answers_are_those_of_the_harness(name, theirs, ours):
    task, their = load_task(name), theirs[name]
    for doc, row in zip(docs(name), ours[name], strict=True):
        if task.scoring == "option":
            assert (list(row.options), row.label) == asked(their, doc)
        elif task.scoring == "label":
            prompt = task.prompt(row.text)
            assert ([(prompt, f" {word}") for word in task.labels], row.label) == asked(their, doc)
        else:
            assert task.prompt(row.text) == their.doc_to_text(doc)
            gold = their.doc_to_target(doc)
            for pattern in their.settings["metric_list"][0]["regexes_to_ignore"]:
                gold = re.sub(pattern, "", gold)
            assert row.answer == gold


@pytest.mark.parametrize("name", FILES)
def test_the_hub_data_set_is_the_one_that_the_harness_reads(name, theirs):
    spec, settings = load_task(name).sources["hub"], theirs[name].settings
    assert spec["test"] == settings.get("test_split", settings.get("validation_split"))
    if name == "boolq":  # the same rows; ours is the repository of their authors
        assert (spec["repo"], settings["dataset_path"]) == ("google/boolq", "aps/super_glue")
    else:
        assert (spec["repo"], spec["config"]) == (
            settings["dataset_path"],
            settings["dataset_name"],
        )


def harness_of(base):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=base.model, tokenizer=base.tokenizer, backend="causal", batch_size=4)


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("kind", ["byte_level", "llama", "unigram"])
def test_log_likelihoods_are_those_of_the_harness_whatever_the_tokenizer(
    kind, name, theirs, ours, wheel
):
    base = made_tokenizers.small_model(getattr(made_tokenizers, kind)())
    task, rows = replace(load_task(name), max_tokens=2000), ours[name]
    pairs = [pair for doc in docs(name) for pair in asked(theirs[name], doc)[0]]
    likely = harness_of(base).loglikelihood(
        [request("loglikelihood", *pair) for pair in pairs], disable_tqdm=True
    )
    wanted = torch.tensor([value for value, _ in likely]).view(len(rows), -1)
    [scores] = scoring.score(base.model, base, task, rows)
    torch.testing.assert_close(scores, wanted, atol=1e-3, rtol=1e-4)
    assert scores.std() > 0.1


@pytest.mark.parametrize("kind", ["byte_level", "llama", "unigram"])
def test_what_is_written_is_what_the_harness_writes_whatever_the_tokenizer(kind, ours, wheel):
    base = made_tokenizers.small_model(getattr(made_tokenizers, kind)())
    task = replace(load_task("gsm8k"), max_new_tokens=12, max_tokens=2000)
    prompts = [task.prompt(row.text) for row in ours["gsm8k"]]
    settings = {"until": ["Question:"], "max_gen_toks": 12, "do_sample": False}
    wanted = harness_of(base).generate_until(
        [request("generate_until", prompt, dict(settings)) for prompt in prompts],
        disable_tqdm=True,
    )
    [texts] = scoring.write_answers(base.model, base, task, ours["gsm8k"])
    assert [text.split("Question:")[0] for text in texts] == wanted
    assert any(text.strip() for text in wanted)


@pytest.mark.parametrize("name", CHOSEN)
def test_where_a_tokenizer_ends_texts_the_text_is_scored_and_not_its_end(name, ours, theirs, wheel):
    """The harness counts the end-of-text token behind a context among the context's tokens.

    So it leaves out the first token of each continuation and scores end-of-text instead. The right
    value comes from the logits of the same text without the token at its end.
    """
    base = made_tokenizers.small_model(made_tokenizers.ends_with_eos())
    task, rows = replace(load_task(name), max_tokens=2000), ours[name]
    pairs = [pair for doc in docs(name) for pair in asked(theirs[name], doc)[0]]
    bos, plain = [base.tokenizer.bos_token_id], made_tokenizers.byte_level().encode
    wanted = torch.tensor(
        [made_tokenizers.likelihood(base, bos + plain(c).ids, plain(r).ids) for c, r in pairs]
    ).view(len(rows), -1)
    [scores] = scoring.score(base.model, base, task, rows)
    torch.testing.assert_close(scores, wanted, atol=1e-3, rtol=1e-4)
    likely = harness_of(base).loglikelihood(
        [request("loglikelihood", *pair) for pair in pairs], disable_tqdm=True
    )
    theirs_differ = torch.tensor([value for value, _ in likely]).view(len(rows), -1) - wanted
    assert theirs_differ.abs().min() > 1e-2


@pytest.mark.parametrize("name", CHOSEN)
def test_log_likelihoods_and_score_are_those_of_the_harness(name, theirs, ours, base, harness):
    task, rows = load_task(name), ours[name]
    questions = [asked(theirs[name], doc) for doc in docs(name)]
    pairs = [pair for some, _ in questions for pair in some]
    likely = harness.loglikelihood(
        [request("loglikelihood", *pair) for pair in pairs], disable_tqdm=True
    )
    wanted = torch.tensor([value for value, _ in likely]).view(len(rows), -1)
    [found] = scoring.score(base.model, base, task, rows)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)
    right = torch.tensor([gold for _, gold in questions])
    assert right.tolist() == [row.label for row in rows]
    assert (found.argmax(1) == right).tolist() == (wanted.argmax(1) == right).tolist()


def test_what_is_written_is_what_the_harness_writes(theirs, ours, base, harness):
    task = replace(load_task("gsm8k"), max_new_tokens=24)
    settings = theirs["gsm8k"].settings["generation_kwargs"] | {"max_gen_toks": 24}
    prompts = [task.prompt(row.text) for row in ours["gsm8k"]]
    wanted = harness.generate_until(
        [request("generate_until", prompt, dict(settings)) for prompt in prompts],
        disable_tqdm=True,
    )
    [found] = scoring.write_answers(base.model, base, task, ours["gsm8k"])
    assert [text.split("Question:")[0].strip() for text in found] == [w.strip() for w in wanted]
    assert any(text.strip() for text in wanted)


@pytest.mark.parametrize("text", WRITTEN)
def test_an_answer_is_read_as_the_harness_reads_it(text, theirs):
    """Its strict match, and its flexible match where the strict one finds nothing."""
    from lm_eval.filters.extraction import RegexFilter

    strict, flexible = (
        RegexFilter(**{k: v for k, v in some["filter"][0].items() if k != "function"})
        for some in theirs["gsm8k"].settings["filter_list"]
    )
    [[said]] = strict.apply([[text]], [{}])
    if said == "[invalid]":
        [[said]] = flexible.apply([[text]], [{}])
    for pattern in theirs["gsm8k"].settings["metric_list"][0]["regexes_to_ignore"]:
        said = re.sub(pattern, "", said)
    assert load_task("gsm8k").extracted(text) == said.replace("[invalid]", "")
