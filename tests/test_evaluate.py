"""Evaluation against sums over single documents and windows in float64; sampling; the alarm for leaked text."""

import math

import numpy as np
import pytest
import torch

from gptlib.data.dataset import open_dataset
from gptlib.device import Place
from gptlib.evaluate import LeakError, evaluate, generate, sample_from_run
from gptlib.model import GPT
from gptlib.records import RecordError
from gptlib.train import run_from_folder, train

CPU = Place(torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny(tiny):
    """A context that every story fits into, several to a row, none of which sees another."""
    return lambda changes=None: tiny({"model.seq_len": 1024, "model.document_mask": True} | (changes or {}))


@pytest.fixture(scope="module")
def model(tiny, tiny_dataset):
    torch.set_num_threads(1)
    return train(tiny(), tiny_dataset, 1, CPU, lambda row: None)[0]


@torch.no_grad()
def nll(model, tokens):
    """-ln p of each token but the first, given those before it: float64, one sequence at a time."""
    logits = model(torch.from_numpy(tokens[None].astype(np.int64))).double()[0, :-1]
    return -logits.log_softmax(-1)[torch.arange(len(tokens) - 1), tokens[1:].astype(np.int64)].numpy()


@pytest.fixture(scope="module")
def by_document(model, tiny_dataset):
    """Of each validation document: -ln p of its tokens and of the end-of-text behind it."""
    eot = np.array([tiny_dataset.eot])
    documents = tiny_dataset.documents("val")
    assert all(len(document) < 1023 for document in documents)
    return [nll(model, np.concatenate([eot, document, eot])) for document in documents]


# --- loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_rows", [0, 1, 7])
def test_the_loss_is_the_mean_over_every_scored_target(model, tiny_dataset, tiny, by_document, micro_rows):
    result = evaluate(model, tiny_dataset, tiny({"hardware.micro_rows": micro_rows}), CPU)
    every = np.concatenate(by_document)
    assert result.tokens == len(every) == sum(len(document) + 1 for document in tiny_dataset.documents("val"))
    assert result.loss == pytest.approx(every.mean(), rel=1e-6)


def test_the_loss_of_a_stream_is_that_of_its_windows(model, tiny_dataset, tiny):
    tokens = np.concatenate(tiny_dataset.tokens("val"))
    unmasked = GPT(tiny({"model.document_mask": False}).model, tiny_dataset.vocab_size)
    unmasked.load_state_dict(model.state_dict())
    windows = [tokens[start : start + 65] for start in range(0, len(tokens) - 1, 64)]
    every = np.concatenate([nll(unmasked, window) for window in windows])
    result = evaluate(unmasked, tiny_dataset, tiny({"data.rows": "stream", "model.seq_len": 64}), CPU)
    assert result.tokens == len(every) == len(tokens) - 1
    assert result.loss == pytest.approx(every.mean(), rel=1e-6)
    assert (result.floor, result.excess, result.excess_se) == (None, None, None)  # windows cut documents


def test_a_cheap_evaluation_takes_the_first_rows(model, tiny_dataset, tiny, by_document):
    result = evaluate(model, tiny_dataset, tiny(), CPU, rows=1)
    first = 1 + np.cumsum([len(document) for document in by_document]).tolist().index(result.tokens)
    assert 1 < first < len(by_document) and len(np.concatenate(by_document[: first + 1])) > 1024
    assert result.loss == pytest.approx(np.concatenate(by_document[:first]).mean(), rel=1e-6)
    floor = tiny_dataset.val_nll[:first].sum() / result.tokens
    assert result.floor == pytest.approx(floor, rel=1e-9) and result.excess == pytest.approx(result.loss - floor)


def test_bits_per_byte_are_those_of_the_text(model, tiny_dataset, tiny, by_document):
    text_nats = sum(document[:-1].sum() for document in by_document)  # the end of a document is no byte of it
    size = sum(len(tiny_dataset.tokenizer.decode(document).encode()) for document in tiny_dataset.documents("val"))
    result = evaluate(model, tiny_dataset, tiny(), CPU)
    assert result.bits_per_byte == pytest.approx(text_nats / size / math.log(2), rel=1e-6)


def test_the_excess_is_what_the_loss_has_over_the_floor(model, tiny_dataset, tiny, by_document):
    result = evaluate(model, tiny_dataset, tiny(), CPU)
    assert result.excess == pytest.approx(result.loss - result.floor, rel=1e-9)
    assert result.floor == pytest.approx(tiny_dataset.floor(), rel=1e-9)
    over = np.array([document.sum() for document in by_document]) - tiny_dataset.val_nll
    assert result.excess_se == pytest.approx(over.std(ddof=1) * math.sqrt(len(over)) / result.tokens, rel=1e-4)


def test_a_model_below_the_entropy_of_its_text_is_an_alarm(model, dataset_path, tiny):
    dataset = open_dataset(dataset_path)
    loss = evaluate(model, dataset, tiny(), CPU)
    total = loss.tokens * loss.loss
    dataset.val_nll = dataset.val_nll * (total + 15) / dataset.val_nll.sum()  # luck: e^-15
    assert evaluate(model, dataset, tiny(), CPU).excess < 0
    dataset.val_nll = dataset.val_nll * (total + 40) / dataset.val_nll.sum()
    with pytest.raises(LeakError, match="by 40 nats: validation text has leaked"):
        evaluate(model, dataset, tiny(), CPU)


def test_evaluating_leaves_a_training_model(model, tiny_dataset, tiny):
    model.train()
    evaluate(model, tiny_dataset, tiny(), CPU, rows=1)
    assert model.training and all(p.grad is None for p in model.parameters())


# --- sampling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1025])
def test_a_prompt_has_to_fit_the_context(model, tiny_dataset, length):
    with pytest.raises(ValueError, match=f"prompt of {length} tokens: give 1 to 1024"):
        generate(model, [0] * length, 1, CPU, tiny_dataset.vocab_size, 0)


def test_a_sample_is_its_seeds(model, tiny_dataset):
    first, again, other = (generate(model, [5], 30, CPU, tiny_dataset.vocab_size, seed) for seed in (1, 1, 2))
    assert first == again != other and len(first) == 30


def test_ids_behind_the_vocabulary_are_never_drawn(tiny):
    model = GPT(tiny({"model.logit_softcap": 0}).model, 300)
    model.init_weights(0)
    with torch.no_grad():
        model.head.weight[300:] = 100 * torch.randn(20, 16)  # the padding would win nearly always
    ids = generate(model, [1], 60, CPU, 300, seed=0, temperature=2.0)
    assert len(ids) == 60 and max(ids) < 300


def test_the_context_slides_over_a_long_sample(tiny):
    model = GPT(tiny({"model.seq_len": 8}).model, 300)
    model.init_weights(0)
    assert len(generate(model, [1] * 8, 20, CPU, 300, seed=0)) == 20


def test_a_low_temperature_takes_the_likeliest(model, tiny_dataset):
    ids = generate(model, [tiny_dataset.eot], 5, CPU, tiny_dataset.vocab_size, seed=3, temperature=1e-4)
    context = [tiny_dataset.eot]
    with torch.no_grad():
        for _ in range(5):
            context.append(int(model(torch.tensor([context]))[0, -1, : tiny_dataset.vocab_size].argmax()))
    assert ids == context[1:]


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_is_positive(model, tiny_dataset, temperature):
    with pytest.raises(ValueError, match="temperature.*above 0"):
        generate(model, [1], 5, CPU, tiny_dataset.vocab_size, 0, temperature)


# --- a finished run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prepare_run, tiny):
    run = prepare_run(tmp_path_factory.mktemp("finished"), tiny())
    run_from_folder(run)
    return run


def test_a_finished_run_can_be_sampled(finished, model, tiny_dataset):
    text = sample_from_run(finished, "Once", 20, seed=4)
    assert text == sample_from_run(finished, "Once", 20, seed=4) != sample_from_run(finished, "Once", 20, seed=5)
    assert len(text) >= 1


def test_a_prompt_that_is_too_long_for_a_run_is_one_line(finished):
    with pytest.raises(ValueError, match="give 1 to 1024, the context of this model") as error:
        sample_from_run(finished, "A very long story. " * 100, 5)
    assert "\n" not in str(error.value)


def test_what_is_no_run_or_has_no_checkpoint_is_one_line(tmp_path, prepare_run, tiny):
    with pytest.raises(RecordError, match=r"run\.json: no such record"):
        sample_from_run(tmp_path, "Once", 5)
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        sample_from_run(prepare_run(tmp_path, tiny()), "Once", 5)
