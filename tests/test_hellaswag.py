"""HellaSwag against a plain loop, one row at a time in float64; its files against bytes put together by hand."""

import dataclasses
import json
import math
import statistics
import struct
import threading

import numpy as np
import pytest
import tiktoken
import torch

from gptlib import analysis, hellaswag, notebook, records
from gptlib.config import ConfigError, load_config, project_root
from gptlib.data.tokenizers import Tokenizer
from gptlib.device import Place
from gptlib.evaluate import evaluate_hellaswag
from gptlib.fields import EvalConfig
from gptlib.hellaswag import (
    Question,
    Questions,
    answer_batches,
    count_hits,
    encode_items,
    item_of,
    open_questions,
    read_eval_bin,
    read_jsonl,
    write_eval_bin,
    write_jsonl,
)
from gptlib.model import GPT
from gptlib.report import plots
from gptlib.report.tables import summary_table
from gptlib.stats.compare import two_sample
from gptlib.study.experiment import Experiment, execute, judge, summarise
from gptlib.study.hypothesis import Ablation, Analysis
from gptlib.study.plan import plan_experiment
from gptlib.train import run_from_folder, train

CPU = Place(torch.device("cpu"))
TINY = project_root() / "params" / "data" / "hellaswag_tiny.jsonl"
BYTE = Tokenizer({"kind": "byte"})
SCORINGS = ("llm.c", "prefix")


@pytest.fixture(scope="module")
def items():
    return read_jsonl(TINY)


@pytest.fixture(scope="module")
def gpt2():
    """A tokenizer that passes for GPT-2's, whose files need a network: the 256 bytes are its first ids."""
    tokenizer = Tokenizer({"kind": "gpt2"})
    ranks = {bytes([i]): i for i in range(256)}
    tokenizer.__dict__["_encoding"] = tiktoken.Encoding(
        "bytes", pat_str=r"(?s:.)", mergeable_ranks=ranks, special_tokens={}
    )
    return tokenizer


@pytest.fixture(scope="module")
def merging():
    """A BPE with merges, so that a text cut in two may have other tokens than the whole."""
    merges = [b"e ", b" t", b"the", b"he", b"in", b" a", b"s.", b" s"]
    return Tokenizer({"kind": "bpe", "tokens": [bytes([i]).hex() for i in range(256)] + [m.hex() for m in merges]})


@pytest.fixture(scope="module")
def model(tiny):
    """Untrained, but far from uniform: its answers vary."""
    torch.set_num_threads(1)
    model = GPT(tiny({"model.projection_init": "plain", "model.num_layers": 2}).model, 300)
    model.init_weights(3)
    with torch.no_grad():
        model.head.weight.mul_(8)
    return model


# --- the answers, by a plain loop -------------------------------------------------------------------------------


@torch.no_grad()
def ending_nll(model, row, count):
    """-ln p of each of the last `count` tokens of one row: no padding, no batch, float64."""
    logits = model(torch.tensor([row])).double()[0]
    return [float(logits[t - 1].logsumexp(0) - logits[t - 1, row[t]]) for t in range(len(row) - count, len(row))]


def plain_rows(item, tokenizer, scoring):
    """Of each ending: the tokens of its row, and how many of them are the ending's."""
    ids = lambda text: [int(i) for i in tokenizer.encode(text)]  # noqa: E731
    if scoring == "llm.c":
        return [(ids(item["ctx"]) + ids(" " + ending), len(ids(" " + ending))) for ending in item["endings"]]
    rows = [[tokenizer.eot, *ids(item["ctx"] + " " + ending)] for ending in item["endings"]]
    same = 0
    while len({row[same] for row in rows}) == 1:
        same += 1
    return [(row, len(row) - same) for row in rows]


def plain_hits(model, tokenizer, scoring, seq_len):
    right = [0, 0]
    for line in TINY.read_text().splitlines():
        item = json.loads(line)
        nll = [ending_nll(model, row[-seq_len:], count) for row, count in plain_rows(item, tokenizer, scoring)]
        for number, score in enumerate((sum, statistics.fmean)):
            scores = [score(values) for values in nll]
            right[number] += scores.index(min(scores)) == item["label"]
    return right


@pytest.mark.parametrize("seq_len", [256, 100])
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("micro_rows", [0, 1])
def test_both_accuracies_are_those_of_a_plain_loop(model, merging, items, tiny, scoring, seq_len, micro_rows):
    questions = encode_items(items, merging, scoring)
    config = tiny({"model.seq_len": seq_len, "hardware.micro_rows": micro_rows})
    found = evaluate_hellaswag(model, questions, config, CPU)
    expected = plain_hits(model, merging, scoring, seq_len)
    assert [round(24 * found["acc"]), round(24 * found["acc_norm"])] == expected
    assert (found["scoring"], found["tokenizer"], found["items"]) == (scoring, "bpe-265", 24)
    longer = [len(row) > seq_len for line in items for row, _ in plain_rows(json.loads(line.line), merging, scoring)]
    assert found["cut_rows"] == sum(longer) and any(longer) == (seq_len == 100)
    assert model.training


@pytest.mark.parametrize("scoring", SCORINGS)
def test_every_token_of_an_ending_is_scored_with_the_context_that_fits(model, items, scoring):
    questions = encode_items(items, BYTE, scoring).questions
    found = {}
    for batch, asked in answer_batches(questions, 100, 1000):
        with torch.no_grad():
            nll_bt = model(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), reduction="none").numpy()
        for b, row in enumerate(nll_bt):
            found[id(asked[b // 4]), b % 4] = row[batch.targets[b] >= 0]
    assert len(found) == 4 * 24
    for item, question in zip(items, questions, strict=True):
        for number, (row, count) in enumerate(plain_rows(json.loads(item.line), BYTE, scoring)):
            expected = ending_nll(model, row[-100:], count)
            np.testing.assert_allclose(found[id(question), number], expected, rtol=2e-4, atol=2e-4)


def test_nothing_is_dropped_while_it_answers(model, items, tiny):
    dropping = GPT(tiny({"model.projection_init": "plain", "model.num_layers": 2, "model.dropout": 0.9}).model, 300)
    dropping.load_state_dict(model.state_dict())
    questions = encode_items(items, BYTE)
    for label in range(4):  # how often it takes each ending
        asked = tuple(dataclasses.replace(question, label=label) for question in questions.questions)
        same = dataclasses.replace(questions, questions=asked)
        assert evaluate_hellaswag(dropping, same, tiny(), CPU) == evaluate_hellaswag(model, same, tiny(), CPU)
    assert dropping.training


def test_the_scorings_and_the_accuracies_differ(model, items, tiny):
    found = [evaluate_hellaswag(model, encode_items(items, BYTE, scoring), tiny(), CPU) for scoring in SCORINGS]
    assert len({accuracy for f in found for accuracy in (f["acc"], f["acc_norm"])}) > 1


def test_sum_and_mean_can_disagree_and_of_equals_the_first_wins():
    short, long, other = np.array([1, 2], np.uint16), np.array([1, 2, 3, 4], np.uint16), np.array([9], np.uint16)
    targets = np.full((8, 6), -1)
    nll = np.full((8, 6), 100.0)  # what is not scored does not count
    for b, (ending, each) in enumerate([(short, 2.0), (long, 1.5), (other, 7.0), (other, 7.0)] + [(short, 1.0)] * 4):
        targets[b, 5 - len(ending) : 5] = ending
        nll[b, 5 - len(ending) : 5] = each
    ask = lambda *labels: [Question(other, (short, long, other, other), label) for label in labels]  # noqa: E731
    assert count_hits(nll, targets, ask(0, 0)).tolist() == [2, 1]
    assert count_hits(nll, targets, ask(1, 0)).tolist() == [1, 2]
    assert count_hits(nll, targets, ask(2, 3)).tolist() == [0, 0]


# --- tokens -----------------------------------------------------------------------------------------------------


def test_context_and_endings_are_encoded_apart(merging):
    item = item_of(json.dumps({"ctx": "see the ", "endings": ["the", "a", "tin.", "he"], "label": 1}))
    (question,) = encode_items([item], merging).questions
    assert question.context.tolist() == merging.encode("see the ").tolist()
    assert [e.tolist() for e in question.endings] == [merging.encode(f" {e}").tolist() for e in item.endings]
    assert merging.eot not in question.context and question.label == 1


def test_a_common_prefix_reaches_into_the_endings_but_leaves_each_a_token():
    item = item_of(json.dumps({"ctx": "A", "endings": ["man", "mango", "mane", "mans"], "label": 0}))
    (question,) = encode_items([item], BYTE, "prefix").questions
    assert question.context.tolist() == [256, *b"A ma"]
    assert [bytes(e.astype(np.uint8)) for e in question.endings] == [b"n", b"ngo", b"ne", b"ns"]
    same = item_of(json.dumps({"ctx": "A", "endings": ["man"] * 4, "label": 0}))
    assert [len(e) for e in encode_items([same], BYTE, "prefix").questions[0].endings] == [1] * 4


def test_rows_are_padded_to_few_lengths_and_batches_keep_to_their_tokens(items):
    questions = encode_items(items, BYTE).questions
    shapes = [batch.inputs.shape for batch, _ in answer_batches(questions, 200, 3000)]
    assert {length for _, length in shapes} <= {64, 128, 192, 200}
    assert max(rows * length for rows, length in shapes) <= 3000 and max(rows for rows, _ in shapes) > 4
    asked = [question for _, part in answer_batches(questions, 200, 1) for question in part]
    assert sorted(map(id, asked)) == sorted(map(id, questions))  # each once, also where a question is above the budget


# --- figures ----------------------------------------------------------------------------------------------------


def wilson(right, n, z=1.959963984540054):
    centre, half = (right / n + z**2 / (2 * n)), z * math.sqrt(right / n * (1 - right / n) / n + z**2 / (4 * n**2))
    return [(centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)]


@pytest.mark.parametrize(("right", "count"), [(7, 24), (0, 24), (24, 24), (2955, 10_042)])
def test_the_intervals_are_wilsons(right, count):
    one = Question(np.ones(3, np.uint16), (np.ones(2, np.uint16),) * 4, 0)
    found = hellaswag.figures(Questions((one,) * count, "gpt2", "llm.c"), [right, count // 2], 8)
    assert found["acc"] == right / count and found["acc_norm"] == count // 2 / count
    assert found["acc_ci"] == pytest.approx(wilson(right, count), abs=1e-12)
    assert found["acc_norm_ci"] == pytest.approx(wilson(count // 2, count), abs=1e-12)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_questions_and_add_up(model, items, tiny, world, monkeypatch):
    questions, config = encode_items(items[:23], BYTE), tiny({"hardware.micro_rows": 2})
    alone = evaluate_hellaswag(model, questions, config, CPU)
    barrier, sent, results, seen = threading.Barrier(world, timeout=30), [], {}, {}

    def all_reduce(tensor):
        sent.append(tensor.clone())
        barrier.wait()
        tensor.copy_(sum(sent))

    def batches(mine, *sizes):
        seen[threading.current_thread().name] = mine
        return answer_batches(mine, *sizes)

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    monkeypatch.setattr("gptlib.evaluate.answer_batches", batches)
    model.eval()

    def rank(number):
        results[number] = evaluate_hellaswag(model, questions, config, Place(CPU.device, number, world))

    threads = [threading.Thread(target=rank, args=(number,), name=str(number)) for number in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[number] for number in range(world)] == [alone] * world
    for number in range(world):
        assert list(map(id, seen[str(number)])) == [
            id(q) for i, q in enumerate(questions.questions) if i % world == number
        ]


# --- files: jsonl -----------------------------------------------------------------------------------------------


def test_the_hand_made_set_has_the_published_shape(items):
    published = [
        "ind",
        "activity_label",
        "ctx_a",
        "ctx_b",
        "ctx",
        "split",
        "split_type",
        "label",
        "endings",
        "source_id",
    ]
    rows = [json.loads(line) for line in TINY.read_text().splitlines()]
    assert len(rows) == len(items) == 24 and len({row["ctx"] for row in rows}) == 24
    for number, (row, item) in enumerate(zip(rows, items, strict=True)):
        assert list(row) == published and row["ind"] == number
        assert row["ctx"] == f"{row['ctx_a']} {row['ctx_b']}".strip() == item.ctx
        assert len(set(row["endings"])) == 4 and tuple(row["endings"]) == item.endings and row["label"] == item.label
    assert [sum(item.label == label for item in items) for label in range(4)] == [6] * 4
    right_is_longest = sum(len(item.endings[item.label]) == max(map(len, item.endings)) for item in items)
    assert 0 < right_is_longest < 12


def test_a_jsonl_is_written_as_it_was_read(tmp_path, items):
    write_jsonl(tmp_path / "again.jsonl", items)
    assert (tmp_path / "again.jsonl").read_bytes() == TINY.read_bytes()
    odd = '{"label":0,   "endings": ["\u00e9\u2028", "\\u00e9", "b", "c"], "ctx": "d"}\r\n'.encode()
    (tmp_path / "odd.jsonl").write_bytes(odd)
    write_jsonl(tmp_path / "odd2.jsonl", read_jsonl(tmp_path / "odd.jsonl"))
    assert (tmp_path / "odd2.jsonl").read_bytes() == odd


GOOD = {"ctx": "A man", "endings": ["a", "b", "c", "d"], "label": 3}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no JSON object with ctx, endings and label"),
        ("", "no JSON object"),
        ("[1]", "no JSON object"),
        (json.dumps({"ctx": "A man", "endings": ["a", "b", "c", "d"]}), "no JSON object with ctx, endings and label"),
        (json.dumps(GOOD | {"endings": ["a", "b", "c"]}), "ctx and 4 endings have to be texts"),
        (json.dumps(GOOD | {"endings": "abcd"}), "ctx and 4 endings have to be texts"),
        (json.dumps(GOOD | {"endings": ["a", "b", "c", ""]}), "none empty"),
        (json.dumps(GOOD | {"ctx": ""}), "none empty"),
        (json.dumps(GOOD | {"label": 4}), "label=4 is no number from 0 to 3"),
        (json.dumps(GOOD | {"label": "3"}), "label='3' is no number"),
        (json.dumps(GOOD | {"label": True}), "label=True is no number"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n{json.dumps(GOOD)}\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl line 2: .*; fetch or make it again") as error:
        read_jsonl(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "empty.bin").touch()
    (tmp_path / "latin.jsonl").write_bytes(b'{"ctx": "\xe9"}\n')
    for read, name, message in [
        (read_jsonl, "none.jsonl", r"none\.jsonl: cannot be read \(No such file"),
        (read_eval_bin, "none.bin", r"none\.bin: cannot be read"),
        (read_eval_bin, "empty.bin", r"empty\.bin: empty"),
        (read_jsonl, "latin.jsonl", r"latin\.jsonl: not UTF-8 at byte 9"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)


# --- files: llm.c's .bin ----------------------------------------------------------------------------------------


def by_hand(questions, magic=20240522, version=1, count=None, longest=None):
    """The bytes of an eval .bin, word by word; `questions`: (label, context, four endings) in lists of ids."""
    body, sizes = b"", []
    for index, (label, context, endings) in enumerate(questions):
        words = [label, 4, len(context), *context]
        for ending in endings:
            words += [len(ending), *ending]
        sizes.append(2 * (3 + len(words)))
        body += struct.pack(f"<{3 + len(words)}H", 65535, sizes[-1], index, *words)
    count, longest = len(questions) if count is None else count, max(sizes) if longest is None else longest
    return struct.pack("<256i", magic, version, count, longest, *[0] * 252) + body


TWO = [
    (3, [15496, 995], [[262], [257, 582], [50256], [1, 2, 3]]),
    (0, [464], [[10], [11], [12, 13], [14]]),
]


def test_a_bin_is_read_and_written_byte_for_byte(tmp_path):
    (tmp_path / "two.bin").write_bytes(by_hand(TWO))
    found = read_eval_bin(tmp_path / "two.bin")
    assert (found.tokenizer, found.scoring) == ("gpt2", "llm.c")
    read = [(q.label, q.context.tolist(), [e.tolist() for e in q.endings]) for q in found.questions]
    assert read == TWO
    write_eval_bin(tmp_path / "again.bin", found)
    assert (tmp_path / "again.bin").read_bytes() == by_hand(TWO)
    assert {p.name for p in tmp_path.iterdir()} == {"two.bin", "again.bin"}


def test_a_bin_of_items_is_what_llmc_writes(tmp_path, items, gpt2):
    write_eval_bin(tmp_path / "tiny.bin", encode_items(items, gpt2))
    expected = [(i.label, list(i.ctx.encode()), [list(f" {e}".encode()) for e in i.endings]) for i in items]
    assert (tmp_path / "tiny.bin").read_bytes() == by_hand(expected)


def test_a_bin_and_its_jsonl_have_the_same_answers(tmp_path, items, gpt2, tiny):
    write_jsonl(tmp_path / "two.jsonl", items[:2])
    write_eval_bin(tmp_path / "two.bin", encode_items(items[:2], gpt2))
    paths = [str(tmp_path / name) for name in ("two.jsonl", "two.bin")]
    found = [open_questions(EvalConfig(hellaswag=path), gpt2, 256) for path in paths]
    model = GPT(tiny().model, gpt2.vocab_size)
    model.init_weights(1)
    scores = [evaluate_hellaswag(model, questions, tiny(), CPU) for questions in found]
    names = [(s.pop("file"), len(s.pop("hash"))) for s in scores]
    assert scores[0] == scores[1] and names == [("two.jsonl", 16), ("two.bin", 16)]


def changed(at, word):
    """The bytes of TWO with the uint16 number `at` behind the header changed."""
    data = bytearray(by_hand(TWO))
    struct.pack_into("<H", data, 1024 + 2 * at, word)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (by_hand(TWO, magic=20240520), "no header of an eval .bin (magic 20240522, version 1)"),
        (by_hand(TWO, version=2), "no header of an eval .bin"),
        (by_hand(TWO)[:3], "no header of an eval .bin"),
        (by_hand(TWO)[:1023], "no header of an eval .bin"),
        (by_hand(TWO)[:1024], "0 examples of up to 0 bytes where the header says 2 of up to 38"),
        (by_hand(TWO)[:-1], "truncated: 1093 bytes are no whole number of uint16"),
        (by_hand(TWO)[:-2], "example 1 is truncated: 30 of 32 bytes"),
        (by_hand(TWO)[:-28], "example 1 is truncated: 4 of 32 bytes"),
        (by_hand(TWO)[:-30], "example 1 is truncated: 2 of 10 bytes"),
        (by_hand(TWO)[:-32], "1 examples of up to 38 bytes where the header says 2"),
        (by_hand(TWO, count=3), "2 examples of up to 38 bytes where the header says 3 of up to 38"),
        (by_hand(TWO, longest=40), "where the header says 2 of up to 40"),
        (by_hand(TWO) + b"\0\0", "example 2 begins with 0 instead of 65535"),
        (changed(0, 7), "example 0 begins with 7 instead of 65535"),
        (changed(1, 37), "example 0 says that it has 37 bytes"),
        (changed(1, 0), "example 0 says that it has 0 bytes"),
        (changed(1, 40), "example 0 is altered: its counts do not fill its 40 bytes"),
        (changed(1, 36), "example 0 is altered: its counts do not fill its 36 bytes"),
        (changed(2, 1), "example 0 says that it is number 1"),
        (changed(3, 4), "example 0 has label 4 of 4 endings"),
        (changed(4, 5), "example 0 has label 3 of 5 endings"),
        (changed(5, 0), "example 0 is altered: its counts"),
        (changed(5, 60_000), "example 0 is altered: its counts"),
        (changed(6, 50_257), "example 0 has token 50257, out of GPT-2's vocabulary of 50257"),
    ],
)
def test_a_damaged_bin_is_one_line_that_says_what_is_wrong(tmp_path, data, message):
    path = tmp_path / "damaged.bin"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged\.bin: ") as error:
        read_eval_bin(path)
    assert message in str(error.value) and str(error.value).endswith("; fetch or make it again")
    assert "\n" not in str(error.value)


def test_what_a_bin_cannot_hold_is_refused(tmp_path, items, gpt2):
    one, path = Question(np.ones(33_000, np.uint16), (np.ones(1, np.uint16),) * 4, 0), tmp_path / "no.bin"
    small = dataclasses.replace(one, context=np.ones(1, np.uint16))
    for questions, message in [
        (encode_items(items, BYTE), "gpt2, split as llm.c does, not byte and llm.c"),
        (encode_items(items, gpt2, "prefix"), "not gpt2 and prefix"),
        (Questions((one,), "gpt2", "llm.c"), "1 examples of up to 66028 bytes; an eval .bin has 1 to 65535 of up to"),
        (Questions((), "gpt2", "llm.c"), "0 examples"),
        (Questions((small,) * 65_536, "gpt2", "llm.c"), "65536 examples of up to 30 bytes"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_eval_bin(path, questions)
    assert not path.exists()


# --- asking for it ----------------------------------------------------------------------------------------------


def test_a_bin_needs_the_tokenizer_of_gpt2(tmp_path):
    (tmp_path / "two.bin").write_bytes(by_hand(TWO))
    config = EvalConfig(hellaswag=str(tmp_path / "two.bin"))
    with pytest.raises(
        ValueError, match=r"two\.bin has the tokens of GPT-2, this model those of byte; give the .jsonl"
    ):
        open_questions(config, BYTE, 256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval.hellaswag": "hellaswag"}, "give a .jsonl, an eval .bin, tiny, or nothing"),
        ({"eval.hellaswag": "a.bin", "eval.hellaswag_scoring": "prefix"}, "a .bin has tokens; give the .jsonl"),
        ({"eval.hellaswag_scoring": "lm-eval"}, "llm.c"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_the_configuration(changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config("smoke", changes)


def test_a_context_may_be_cut_but_never_an_ending(items):
    longest = max(len(f" {ending}") for item in items for ending in item.endings)
    open_questions(EvalConfig(hellaswag="tiny"), BYTE, longest + 1)
    with pytest.raises(
        ValueError, match=rf"tiny\.jsonl item \d+: an ending of {longest} tokens .* model.seq_len={longest};"
    ):
        open_questions(EvalConfig(hellaswag="tiny"), BYTE, longest)


def test_paths_are_seen_from_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = open_questions(EvalConfig(hellaswag="params/data/hellaswag_tiny.jsonl"), BYTE, 256)
    assert found == dataclasses.replace(
        open_questions(EvalConfig(hellaswag="tiny"), BYTE, 256), questions=found.questions
    )


# --- in a run and in an experiment ------------------------------------------------------------------------------

ASKED = {"eval.hellaswag": "tiny"}


def test_a_run_is_asked_once_and_its_training_is_untouched(tiny, tiny_dataset):
    plain, rows, asked_rows = train(tiny(), tiny_dataset, 1, CPU, lambda row: None), [], []
    model, result = train(tiny(ASKED), tiny_dataset, 1, CPU, asked_rows.append)
    assert "hellaswag" not in plain[1] and "hellaswag_error" not in plain[1] and not rows
    assert result["final_val_loss"] == plain[1]["final_val_loss"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain[0].parameters(), strict=True))
    questions = open_questions(tiny(ASKED).eval, tiny_dataset.tokenizer, 256)
    assert result["hellaswag"] == evaluate_hellaswag(model, questions, tiny(), CPU)
    assert result["hellaswag"]["tokenizer"] == "bpe-300" and result["hellaswag"]["file"] == "hellaswag_tiny.jsonl"
    assert result["hellaswag_error"] == 1 - result["hellaswag"]["acc_norm"]
    assert not any("hellaswag" in key for row in asked_rows for key in row)


def test_the_clock_stands_still(tiny, tiny_dataset, monkeypatch):
    clock = [0.0]

    def slow(*args):
        clock[0] += 1000
        return {"acc_norm": 0.25}

    monkeypatch.setattr("gptlib.train.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("gptlib.train.evaluate_hellaswag", slow)
    monkeypatch.setattr("gptlib.train.update", lambda *args: clock.__setitem__(0, clock[0] + 1))
    _, result = train(tiny(ASKED), tiny_dataset, 1, CPU, lambda row: None)
    assert result["time_seconds"] == 4 and result["hellaswag_error"] == 0.75 and clock[0] == 1004


def test_a_file_that_will_not_do_costs_no_training(tiny, tiny_dataset, monkeypatch):
    monkeypatch.setattr("gptlib.train.evaluate", lambda *args: pytest.fail("trained"))
    with pytest.raises(ValueError, match=r"none\.jsonl: cannot be read"):
        train(tiny({"eval.hellaswag": "none.jsonl"}), tiny_dataset, 1, CPU, lambda row: None)


def test_the_result_has_it(tmp_path, prepare_run, tiny):
    run = prepare_run(tmp_path, tiny(ASKED | {"eval.hellaswag_scoring": "prefix"}))
    run_from_folder(run)
    found = records.read_json(run / "result.json")["hellaswag"]
    assert found["scoring"] == "prefix" and found["items"] == 24
    assert found["acc_ci"] == pytest.approx(wilson(round(24 * found["acc"]), 24))


ABLATION = Ablation(
    variant="gelu",
    hypothesis="With GELU it knows less.",
    independent_variable="model.activation",
    change={"model.activation": "gelu"},
    why="Neither has parameters.",
    analysis=Analysis(metric="hellaswag_error", test="paired", margin=0.001),
)


@pytest.fixture
def recorded(outputs, tiny):
    """An experiment whose right answers of 24 are given: {seed: acc_norm * 24}."""

    def make(right, ablation=None):
        plan = plan_experiment(outputs, "study", "full", tiny(ASKED), list(right), ablation)
        one = Question(np.ones(3, np.uint16), (np.ones(2, np.uint16),) * 4, 0)
        for index, seed, run in plan.runs():
            scores = hellaswag.figures(Questions((one,) * 24, "bpe-300", "llm.c"), [7, right[seed]], 8)
            result = {"run_id": index, "seed": seed, "attempt": 1, "fingerprint": plan.fingerprint, "success": True}
            result |= {"status": "finished", "time_seconds": 2.0, "final_val_loss": 4.0 + seed / 1000}
            result |= {"best_val_loss": 4.0, "hellaswag": scores, "hellaswag_error": 1 - scores["acc_norm"]}
            records.write_json(run / "result.json", result)
        return Experiment(plan)

    return make


BASELINE, VARIANT = {42: 8, 43: 9, 44: 8, 45: 10}, {42: 11, 43: 12, 44: 10, 45: 13}


def test_more_right_answers_are_better(recorded):
    baseline, variant = recorded(BASELINE), recorded(VARIANT, ABLATION)
    found = judge(baseline, variant, ABLATION.analysis)
    errors = [[1 - right / 24 for right in arm.values()] for arm in (BASELINE, VARIANT)]
    assert found == two_sample(*errors, "paired", margin=0.001)
    assert found.verdict == "better" and found.difference == pytest.approx(-2.75 / 24)
    assert summarise(variant, found)["comparison"]["metric"] == "hellaswag_error"


def test_the_summary_and_its_table_name_scoring_and_tokenizer(recorded, executed, outputs, tiny):
    experiment = recorded(BASELINE)
    summary = summarise(experiment)
    found = summary["statistics"]["hellaswag"]
    assert (found["scoring"], found["tokenizer"], found["items"]) == ("llm.c", "bpe-300", 24)
    assert found["acc"]["mean"] == 7 / 24 and found["acc_norm"]["mean"] == pytest.approx(8.75 / 24)
    assert found["acc_norm"]["std"] == pytest.approx(statistics.stdev([8 / 24, 9 / 24, 8 / 24, 10 / 24]))
    assert "HellaSwag acc_norm: 0.3646 (llm.c scoring, bpe-300 tokens, 24 items)" in experiment.describe()
    other = Experiment(execute(plan_experiment(outputs, "study", "none", tiny(), [42], None)).plan)
    plain = summarise(other)
    assert plain["statistics"]["hellaswag"] is None and "HellaSwag" not in other.describe()
    table = summary_table([summary, plain])
    assert list(table["HellaSwag acc_norm"]) == ["0.3646 ± 0.0635 (llm.c, bpe-300)", "–"]
    assert "HellaSwag acc_norm" not in summary_table([plain])


def test_an_experiment_that_would_not_measure_its_metric_is_not_begun(executed, outputs, tiny):
    with pytest.raises(ConfigError, match="hellaswag_error is not measured while eval.hellaswag is empty"):
        plan_experiment(outputs, "study", "full", tiny(), [42], ABLATION)
    outputs.mkdir(exist_ok=True)
    (outputs / "none.bin").write_bytes(b"")
    asked = plan_experiment(outputs, "study", "full", tiny({"eval.hellaswag": str(outputs / "none.bin")}), [42], None)
    with pytest.raises(ValueError, match=r"none\.bin has the tokens of GPT-2"):
        execute(asked)
    assert not executed and not asked.folder.exists()


def test_what_is_shown_says_what_is_compared(recorded):
    baseline, variant = recorded(BASELINE), recorded(VARIANT, ABLATION)
    answers = [notebook.Answer(baseline, variant, judge(baseline, variant, ABLATION.analysis))]
    label = "error on HellaSwag (share of items wrong)"
    assert analysis.label_of(answers) == label and analysis.label_of([]) == "final validation loss (nats/token)"
    frame = notebook.final_losses(baseline, variant)
    assert list(frame)[2] == "hellaswag_error" and frame.iloc[0, 2] == pytest.approx(1 - 8 / 24)
    assert plots.seed_losses(frame).axes[0].get_ylabel() == label
    figure = plots.differences({"gelu": answers[0].comparison}, analysis.label_of(answers))
    assert label in figure.axes[0].get_xlabel() and "nats" not in figure.axes[0].get_xlabel()
    spread = statistics.stdev(right / 24 for right in BASELINE.values())
    for said in (notebook.detectable(baseline, ABLATION.analysis), analysis.findings(baseline, answers).data):
        assert f"{spread:.4f}" in said and "share of items wrong" in said and "nats" not in said


def test_a_tuning_takes_the_values_of_the_declared_metric(outputs, tiny):
    """The one with the higher loss, where it is right more often."""
    tune = {"tune": {"optim.muon.lr": [0.02, 0.03]}, "tune_seeds": [1]}
    asked = ABLATION.model_copy(update=tune)
    plan = plan_experiment(outputs, "study", "full", tiny(ASKED), [42], asked)
    for trial, loss, error in zip(plan.tuning(), (3.0, 4.0, 3.0, None), (0.7, 0.6, 0.5, None), strict=True):
        result = {"fingerprint": trial.fingerprint, "status": "finished", "final_val_loss": loss}
        result |= {} if error is None else {"hellaswag_error": error}  # as of a run that diverged
        records.write_json(next(trial.runs())[2] / "result.json", result)
    arms = plan_experiment(outputs, "study", "full", tiny(ASKED), [42], asked).arms
    assert [point.loss for point in arms.grid] == [0.7, 0.6, 0.5, math.inf]
    assert (arms.baseline.optim.muon.lr, arms.variant.optim.muon.lr) == (0.03, 0.02)
