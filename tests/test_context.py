"""Where a continuation begins: checked against the text, for every kind of tokenizer."""

import os
import random
from collections import Counter
from dataclasses import replace

import made_tokenizers
import pytest
import torch
from made_tokenizers import likelihood, small_model
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

from oral_lib.baselines import majority
from oral_lib.checkpoints.context import cut_pairs
from oral_lib.errors import UsageError
from oral_lib.evaluation import scoring
from oral_lib.evaluation.evaluate import Outcome
from oral_lib.tasks.rows import Row, task_rows
from oral_lib.tasks.task import load_task

torch.set_num_threads(1)
KINDS = ("byte_level", "llama", "unigram", "ends_with_eos")
LABELLED = ("sst2", "boolq", "rte", "mrpc", "wnli", "movie")
TEXTS = ("a warm film", "never funny , and too long", "Café 日本 (est. 1999)", "don't", "12 of 40%")


@pytest.fixture(scope="module", params=KINDS)
def base(request):
    return small_model(getattr(made_tokenizers, request.param)())


def plain(base, text):
    return base.tokenizer(text, add_special_tokens=False)["input_ids"]


def front(base):
    """BOS where the tokenizer has a template for special tokens."""
    return [1] if base.tokenizer("a")["input_ids"][0] == 1 else []


def rows_of(task, **fields):
    first = task_rows(task, "made").train[0]
    return [replace(first, key=f"r{i}", text=text, **fields) for i, text in enumerate(TEXTS)]


# ---------------------------------------------------------------- labels
@pytest.mark.parametrize("name", LABELLED)
def test_a_label_is_scored_by_the_token_that_follows_the_prompt(base, name):
    task = load_task(name)
    [scores] = scoring.score(base.model, base, task, rows_of(task))
    for text, likely in zip(TEXTS, scores, strict=True):
        prompt = plain(base, task.prompt(text))[-task.max_tokens + len(front(base)) :]
        for label, value in zip(task.labels, likely, strict=True):
            whole = plain(base, f"{task.prompt(text)} {label}")
            first = whole[len(plain(base, task.prompt(text)))]
            assert base.tokenizer.decode([first]).strip() == label  # no mark by itself
            assert value == pytest.approx(likelihood(base, front(base) + prompt, [first]), abs=1e-3)


def test_spaces_at_the_end_of_a_template_belong_to_the_label(base):
    task = load_task("sst2")
    blank = replace(task, template=task.template + " ")
    rows = rows_of(task)
    assert torch.equal(base.answer_ids(blank), base.answer_ids(task))
    assert torch.equal(base.encode_rows(blank, rows).ids, base.encode_rows(task, rows).ids)


def test_label_words_that_begin_alike_behind_the_prompt_are_refused(base, refused):
    task = replace(load_task("sst2"), labels=["yes please", "yes indeed"])
    with refused(UsageError, "sst2", "yes indeed", base.name):
        base.answer_ids(task)


def test_a_label_that_a_row_cuts_differently_is_refused_by_row(refused):
    core = made_tokenizers.byte_level()
    core.normalizer = normalizers.Replace(Regex("(?<=film) yes"), " no")
    base, task = small_model(core), replace(load_task("boolq"), template="{text}")
    assert len(base.encode_rows(task, rows_of(task)[1:]).ids) == len(TEXTS) - 1
    with refused(UsageError, "boolq", "'r0'", base.name, "'yes'"):
        base.encode_rows(task, rows_of(task))


# ---------------------------------------------------------------- options
OPTIONS = [("the cup", " was big"), ("the cup", " hops away"), ("it", " was big"), ("x", " y z")]


def test_an_option_is_scored_by_all_its_tokens(base):
    task = load_task("winogrande")
    rows = [rows_of(task, options=tuple(OPTIONS[i : i + 2]))[0] for i in (0, 2)]
    [scores] = scoring.score(base.model, base, task, rows)
    for (context, rest), value in zip(OPTIONS, scores.flatten(), strict=True):
        whole, begin = plain(base, context + rest), len(plain(base, context))
        assert whole[:begin] == plain(base, context)
        right = likelihood(base, front(base) + whole[:begin], whole[begin:])
        assert value == pytest.approx(right, abs=1e-3)


@pytest.mark.parametrize("decoder", [None, decoders.Fuse()])
def test_an_option_that_shares_a_token_with_its_context_is_cut_by_itself(decoder):
    core = made_tokenizers.across_words()
    core.decoder = decoder
    base, task = small_model(core), load_task("winogrande")
    assert base.tokenizer.tokenize("the cup was big") == ["the cup was big"]
    [row] = rows_of(task, options=tuple(OPTIONS[:2]))[:1]
    [[scores]] = scoring.score(base.model, base, task, [row])
    for (context, rest), value in zip(OPTIONS, scores, strict=False):
        right = likelihood(base, plain(base, context), plain(base, rest))
        assert value == pytest.approx(right, abs=1e-3) and value < -1


def test_a_token_that_spans_the_boundary_and_cannot_be_cut_is_refused(refused):
    """With a space mark before each text, a continuation by itself has two marks."""
    core = made_tokenizers.across_words()
    core.normalizer = normalizers.Prepend(" ")
    base, task = small_model(core), load_task("winogrande")
    [row] = rows_of(task, options=(("the cup", " was big"), ("the cup", " ran away")))[:1]
    with refused(UsageError, "winogrande", "'r0'", base.name, "the cup", "was big"):
        scoring.score(base.model, base, task, [row])


def test_a_character_that_is_not_counted_is_noticed():
    """`é` and `ü` are one unknown token, so the ids of the context begin the whole text's."""
    core = made_tokenizers.across_words()
    core.model.fuse_unk = True
    base = small_model(core)
    assert plain(base, "é ü!")[:1] == plain(base, "é")
    assert plain(base, "éü!") == [*plain(base, "é"), *plain(base, "!")]
    with pytest.raises(UsageError, match="no token boundary"):
        cut_pairs(base.tokenizer, [("é", "ü!")], ["a row"])


def test_blanks_between_context_and_option_are_scored_as_the_harness_scores_them():
    base, task = small_model(made_tokenizers.byte_level()), load_task("winogrande")
    one, other = (
        rows_of(task, options=((f"the cup{blank}", f"{rest}was big"),) * 2)[0]
        for blank, rest in ((" ", ""), ("", " "))
    )
    table = base.encode_rows(task, [one, other])
    assert torch.equal(table.ids[:2], table.ids[2:])
    assert torch.equal(table.begins[:2], table.begins[2:])


def test_an_option_without_context_follows_the_token_that_begins_a_text(refused):
    base, task = small_model(made_tokenizers.byte_level()), load_task("winogrande")
    row = rows_of(task, options=(("", " was big"), ("", " yes")))[0]
    [[scores]] = scoring.score(base.model, base, task, [row])
    assert scores[1] == pytest.approx(likelihood(base, [1], plain(base, " yes")), abs=1e-3)
    base.tokenizer.bos_token = base.tokenizer.eos_token = None
    with refused(UsageError, "winogrande", "'r0'", "begins a text"):
        base.encode_rows(task, [row])


def test_a_continuation_that_is_cut_off_is_refused_by_row(base, refused):
    task = replace(load_task("winogrande"), max_tokens=6)
    row = rows_of(task, options=(("x", " cup" * 40), ("x", " cup")))[0]
    with refused(UsageError, "winogrande", "'r0'", "max_tokens"):
        base.encode_rows(task, [row])


def test_a_continuation_without_text_is_refused(base, refused):
    task = load_task("winogrande")
    row = rows_of(task, options=(("the cup", ""), ("the cup", " cup")))[0]
    with refused(UsageError, "winogrande", "'r0'"):
        base.encode_rows(task, [row])


def test_lowered_and_stripped_text_is_checked_as_well():
    core = made_tokenizers.byte_level()
    core.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])
    base, task = small_model(core), load_task("winogrande")
    row = rows_of(task, options=(("The CUP", " Was Big"), ("The cup", " yes")))[0]
    table = base.encode_rows(task, [row])
    assert base.tokenizer.decode(table.ids[0, table.begins[0] : table.lengths[0]]) == " was big"


@pytest.mark.parametrize("template", ["<s> $A </s>", "<s> <s> $A </s> </s>", "$A </s>"])
def test_separators_behind_a_text_are_left_out(template):
    core = made_tokenizers.byte_level()
    core.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    base, task = small_model(core), load_task("winogrande")
    row = rows_of(task, options=tuple(OPTIONS[:2]))[0]
    table, count = base.encode_rows(task, [row]), template.count("<s>")
    for ids, n in zip(table.ids.tolist(), table.lengths, strict=True):
        assert ids[:count] == [1] * count and not {1, 2} & set(ids[count:n])


# ---------------------------------------------------------------- training and generation
@pytest.mark.parametrize("name", ["gsm8k", "arithmetic"])
def test_training_scoring_and_generation_share_the_prompt(base, name):
    task = replace(load_task(name), max_tokens=2000)
    rows = rows_of(task, answer="14", target=" 12 and 2\n#### 14")
    table = base.encode_rows(task, rows)
    for i, prompt in enumerate(base.prompt_ids(task, rows)):
        begin, end = int(table.begins[i]), int(table.lengths[i])
        ids = table.ids[i, :end].tolist()
        assert ids[:begin] == prompt
        assert ids[-1] == 2 and 2 not in ids[:-1]  # one end-of-text, behind the answer
        assert ids[:-1] == front(base) + plain(base, task.prompt(TEXTS[i]) + rows[i].target)


def test_a_long_prompt_keeps_the_special_tokens_in_front_of_it(base):
    task = replace(load_task("gsm8k"), max_tokens=20)
    rows = [replace(row, text="cup " * 60) for row in rows_of(task, answer="1", target=" 1")]
    long = base.prompt_ids(task, rows)[0]
    assert len(long) == 20 and long[: len(front(base))] == front(base)
    ids = base.encode_rows(task, rows).ids[0].tolist()
    assert len(ids) == 20 and ids[: len(front(base))] == front(base)
    label = replace(load_task("sst2"), max_tokens=20)
    ids = base.encode_rows(label, [replace(rows[0], label=1)]).ids[0].tolist()
    assert len(ids) == 20 and ids[: len(front(base))] == front(base)


# ---------------------------------------------------------------- empty answers
@pytest.mark.parametrize("answer", ["", " ", "\n"])
def test_an_empty_answer_is_never_correct(answer):
    rows = [Row("a", "one", 0, answer=answer), Row("b", "two", 0, answer="2")]
    outcome = Outcome(torch.zeros(2, 1), rows, [answer, "2"])
    assert outcome.correct.tolist() == [False, True]
    outcome = Outcome(torch.zeros(2, 1), rows, ["", answer])
    assert outcome.correct.tolist() == [False, False]


def test_the_most_frequent_answer_is_never_empty():
    rows = [Row(str(i), "x", 0, answer=answer) for i, answer in enumerate(["", "", "", "5"])]
    assert majority.majority(rows, rows, 0).correct.tolist() == [False, False, False, True]
    assert not majority.majority(rows[:3], rows, 0).correct.any()


def test_a_pre_tokenizer_that_puts_a_space_first_is_refused_or_scored():
    """`add_prefix_space` puts a space before each text, as RoBERTa's tokenizers may."""
    core = made_tokenizers.byte_level()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    base, task = small_model(core), load_task("winogrande")
    row = rows_of(task, options=tuple(OPTIONS[:2]))[0]
    [[scores]] = scoring.score(base.model, base, task, [row])
    for (context, rest), value in zip(OPTIONS, scores, strict=False):
        whole, begin = plain(base, context + rest), len(plain(base, context))
        assert value == pytest.approx(likelihood(base, whole[:begin], whole[begin:]), abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_any_tokenizer_is_cut_at_the_boundary_or_refused(seed):
    """Scored are the tokens of the whole text that belong to the continuation, or those of it by
    itself; no other outcome, and no special token. ORAL_PAIRS sets the number of pairs."""
    draw, outcomes = random.Random(seed), Counter()
    pairs = int(os.environ.get("ORAL_PAIRS", 1200))
    while outcomes.total() < pairs:
        tokenizer = made_tokenizers.wrapped(made_tokenizers.random_tokenizer(draw))

        def ids(text, tokenizer=tokenizer):
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        for _ in range(60):
            context = made_tokenizers.random_text(draw, 5).rstrip()
            rest = draw.choice((" ", " ", "", "\n")) + made_tokenizers.random_text(draw, 4)
            try:
                [cut] = cut_pairs(tokenizer, [(context, rest)], ["a row"])
            except UsageError as error:
                assert "\n" not in str(error)
                outcomes["refused"] += 1
                continue
            spans = tokenizer(context + rest, add_special_tokens=False, return_offsets_mapping=True)
            spans = spans["offset_mapping"]
            first = next((i for i, (_, end) in enumerate(spans) if end > len(context)), len(spans))
            whole = ids(context + rest)
            if cut[1:] == (whole[:first], whole[first:]):
                outcomes["behind its context"] += 1
            else:
                assert cut[1:] == (ids(context), ids(rest)), (context, rest)
                outcomes["by itself"] += 1
            assert cut.continuation and not {1, 2} & set(cut.continuation)
    assert outcomes["behind its context"] > outcomes["refused"] + outcomes["by itself"]
