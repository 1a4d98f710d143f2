"""Benchmark of reward models on people's preferences, with every pair a test pair.

python -m benchmarks.human_rewards --data=FOLDER --cache=FOLDER --model=FOLDER
    [--arms longer bag bigrams random frozen trained] [--language=zh] [--report]

FOLDER of the data holds hh_rlhf_helpful, llmbar, pandalm_human and qa_feedback in their
published layouts (docs/data_formats.md); for `--language=zh`, oasst1_zh_ranked, the
Chinese rankings of OpenAssistant. The model is a published chat model; without one, the
arms that need none can run. Arms:

- longer: the response with more words wins;
- bag, bigrams: logistic regressions on counts of tokens, and also of bigrams;
- random: the reward stage on a model of a million parameters from random weights;
- frozen: a linear head on the model's hidden state at a response's last token;
- trained: the reward stage on the model, whose last ten of 30 layers are trained.

Arms are trained on hh helpful alone (on the rankings in Chinese). Its conversations are
divided into folds (five; two for `trained`), and each fold is judged by the model
trained on the others, so that every pair is a test pair. The other sets are judged by
the model of each fold, whose results are averaged. Each arm is trained on the pairs as
they are and on the pairs that length balancing keeps, and where it has the reward
model's loss, with weights 0 and 0.01 of the squared scores.

The cache keeps each unit of work (a trained fold, a block of hidden states) as a file:
a run that was killed goes on where it was. `--report` only writes the results so far,
to results/human_rewards.json and .md (human_rewards_zh in Chinese). The predictions
made before the first run stand in benchmarks/human_rewards_report.py.
"""

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import human_rewards_report
from benchmarks.frozen_heads import WIDTHS, choose_ridge, fit_head, hidden_states
from benchmarks.preference_sets import (
    length_in,
    preference_files,
    read_set,
    unit_of_length,
)
from configs import prepare_comparisons as prepare_config
from configs import reward as reward_config
from configs.pipeline import LAST_TEN_OF_30
from rlhf_jax.data.cleaning.annotator_quality import Limits
from rlhf_jax.data.cleaning.filters import chosen_and_rejected, clean
from rlhf_jax.data.cleaning.length_balance import length_balance
from rlhf_jax.data.cleaning.votes import read_votes
from rlhf_jax.data.encoding import Pair, encode_pairs
from rlhf_jax.data.records import Comparison, write_records
from rlhf_jax.data.sources import tokenizer_of
from rlhf_jax.data.tokenizers.tokenizer import (
    Tokenizer,
    copy_tokenizer,
    is_readable,
    load_tokenizer,
    train_tokenizer,
)
from rlhf_jax.evaluation.baselines import bag_of_words_margins
from rlhf_jax.evaluation.held_out import score_pairs
from rlhf_jax.files import read_arrays, read_json, write_arrays, write_json
from rlhf_jax.stages import reward
from rlhf_jax.training import weights
from rlhf_jax.training.allocator import keep_freed_memory
from rlhf_jax.training.inputs import fingerprint

RESULTS = Path(__file__).parents[1] / "results"
# The sets of each language: the set's name in the data folder, and a part of the set.
# Arms are trained on the first.
SETS = {
    "en": {
        "hh": ("hh_rlhf_helpful", ""),
        "LLMBar natural": ("llmbar", "LLMBar/Natural"),
        "LLMBar adversarial": ("llmbar", "LLMBar/Adversarial"),
        "MT-Bench votes": ("llmbar", "Processed/MT-Bench"),
        "PandaLM majority": ("pandalm_human", ""),
        "qa_feedback": ("qa_feedback", ""),
    },
    "zh": {"oasst1 zh": ("oasst1_zh_ranked", "")},
}
REPORTED = 32  # pairs of a fold in the reward stage's own report
# The reward stage on the pretrained model.
PRETRAINED = {
    "batch_size": 16,
    "epochs": 1,
    "eval_every": 0,
    "keep_checkpoints": 1,
    "max_prompt_tokens": 512,
    "max_response_tokens": 384,
    "optimizer.learning_rate": 5e-5,
    "optimizer.trainable": LAST_TEN_OF_30,
    "pad_to_multiple": 64,
    "patience": 0,
    "save_every": 50,
    "scan_layers": True,
    "validation_share": 0.02,
}


class Data(NamedTuple):
    """The N cleaned pairs of all sets."""

    comparisons: list[Comparison]
    sets: np.ndarray  # str [N]: the name of each pair's set
    conversation: np.ndarray  # float [N]: hash in [0, 1) of the first user turn
    lengths: np.ndarray  # int [N, 2]: words or characters of chosen and rejected

    @property
    def is_own(self) -> np.ndarray:
        """bool [N]: True for the pairs of the set that arms are trained on."""
        return self.sets == self.sets[0]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of the arms' work; a test has smaller ones."""

    folds: int = 5
    folds_trained: int = 2  # of the arm "trained", whose folds take an hour each
    vocab_size: int = 2048  # of the tokenizer of the arms without a model
    max_prompt_tokens: int = 2048  # the oldest turns of longer prompts are removed
    max_response_tokens: int = (
        1536  # a pair with a longer response counts as half right
    )
    block: int = 128  # rows of two responses in a file of hidden states
    tokens_at_once: int = 4096  # of a batch of hidden states or scores
    overrides: dict = dataclasses.field(default_factory=dict)  # of the reward stage

    def folds_of(self, arm: str) -> int:
        return self.folds_trained if arm == "trained" else self.folds

    def batch_of(self, longest: Pair) -> int:
        """Return the number of rows a batch where this is the longest row."""
        return max(1, self.tokens_at_once // sum(map(len, longest)))


class Unit(NamedTuple):
    """One training of one arm."""

    arm: str
    balanced: bool
    regularisation: float | None  # None for arms without the reward model's loss
    fold: int
    folds: int

    @property
    def variant(self) -> str:
        """The unit's name without its fold."""
        name = f"{self.arm}-{'balanced' if self.balanced else 'plain'}"
        weight = self.regularisation
        return name if weight is None else f"{name}-{weight:g}"

    @property
    def name(self) -> str:
        return f"{self.variant}-{self.fold}of{self.folds}"


def units(arms: Sequence[str], sizes: Sizes) -> Iterator[Unit]:
    """Yield the units of work of these arms, in their order."""
    for arm in arms:
        is_counted = arm in ("longer", "bag", "bigrams")
        regularisations = (None,) if is_counted else (0.01, 0.0)
        balanced = (False,) if arm == "longer" else (False, True)
        folds = 1 if arm == "longer" else sizes.folds_of(arm)
        for which in itertools.product(regularisations, balanced, range(folds)):
            regularisation, is_balanced, fold = which
            yield Unit(arm, is_balanced, regularisation, fold, folds)


# Data


def read_data(folder: Path, language: str) -> Data:
    """Read and clean the sets of a language."""
    files, parts = preference_files(folder), []
    for name, (origin, part) in SETS[language].items():
        if origin not in files:
            raise FileNotFoundError(f"{folder} has no set {origin}.")
        data = read_set(files[origin], ["subset"])
        rows = data.parts()[part] if part else range(len(data.comparisons))
        parts.append(_cleaned(name, [data.comparisons[i] for i in rows]))
    comparisons, *arrays = zip(*parts, strict=True)
    return Data(list(itertools.chain(*comparisons)), *map(np.concatenate, arrays))


def _cleaned(name: str, comparisons: list[Comparison]) -> Data:
    unit = unit_of_length(comparisons)
    votes = read_votes(comparisons, lambda texts: [length_in(unit, t) for t in texts])
    cleaning = clean(votes, Limits(**prepare_config.get_config().annotators))
    rows = np.flatnonzero(cleaning.reason == 0)
    lengths = [votes.lengths[side] for side in chosen_and_rejected(votes, rows)]
    kept = [comparisons[i] for i in rows]
    sets = np.array([name] * len(kept))
    return Data(kept, sets, votes.conversation[rows], np.stack(lengths, axis=1))


def rows_of(unit: Unit, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows int [M] that a unit is trained on, and the rows that it judges:
    its fold of the conversations, and all other sets."""
    fold = (data.conversation * unit.folds).astype(int)
    train = np.flatnonzero(data.is_own & (fold != unit.fold))
    if unit.balanced:
        better, worse = data.lengths[train].T
        train = train[
            length_balance(
                better, worse, width=human_rewards_report.BUCKET, seed=0
            ).keep
        ]
    return train, np.flatnonzero(~data.is_own | (fold == unit.fold))


# Arms


class Workplace:
    """All that the arms work with; each part is made where it is first needed.

    Args:
        cache: the folder of the units of work.
        model: the folder of a pretrained model; "" for arms that need none.
    """

    def __init__(self, data: Data, cache: Path, model: str, sizes: Sizes):
        self.data, self.cache, self.model, self.sizes = data, cache, model, sizes

    @functools.cached_property
    def own_tokenizer(self) -> Tokenizer:
        """The tokenizer of the arms without a pretrained model, trained on the texts of
        the pairs, not on which is better."""
        folder = self.cache / "tokenizer"
        if not is_readable(folder):
            rows = np.flatnonzero(self.data.is_own)
            own = [self.data.comparisons[i] for i in rows]
            texts = [m["content"] for c in own for m in c.prompt.messages]
            texts += [text for c in own for text in (c.response_a, c.response_b)]
            train_tokenizer(texts, self.sizes.vocab_size, folder)
        return load_tokenizer(folder)

    @functools.cached_property
    def model_tokenizer(self) -> Tokenizer:
        return tokenizer_of(self.model)

    @functools.cached_property
    def own_pairs(self) -> dict[int, Pair]:
        return self._encode(self.own_tokenizer)

    @functools.cached_property
    def model_pairs(self) -> dict[int, Pair]:
        return self._encode(self.model_tokenizer)

    def _encode(self, tokenizer: Tokenizer) -> dict[int, Pair]:
        """Return the token ids by row of the pairs that are not too long."""
        place = {id(c): i for i, c in enumerate(self.data.comparisons)}
        kept, pairs, _ = encode_pairs(
            self.data.comparisons,
            tokenizer=tokenizer,
            max_prompt_tokens=self.sizes.max_prompt_tokens,
            max_response_tokens=self.sizes.max_response_tokens,
            too_long="truncate_prompt",
        )
        return {place[id(c)]: pair for c, pair in zip(kept, pairs, strict=True)}

    @functools.cached_property
    def hidden(self) -> np.ndarray:
        """The model's hidden state at the last token of chosen and rejected: float16
        [N, 2, D], NaN for pairs that are too long."""
        model = weights.load_model(self.model, dtype="float32", scan_layers=True)
        readable = sorted(self.model_pairs)
        rows, place = in_twos([self.model_pairs[i] for i in readable])
        states = self._by_blocks(rows, functools.partial(hidden_states, model))
        width = states.shape[-1]
        hidden = np.full((len(self.data.sets), 2, width), np.nan, np.float16)
        hidden[readable] = states.reshape(-1, width)[place]
        return hidden

    def _by_blocks(self, rows: list[Pair], states_of: Callable) -> np.ndarray:
        """Return float16 [rows, 2, D], computed in blocks of rows of similar length,
        each a file of the cache."""
        order, states = by_length(rows), None
        starts = range(0, len(rows), self.sizes.block)
        for number, start in enumerate(starts):
            block = order[start : start + self.sizes.block]
            file = self.cache / "hidden" / f"{number:04d}.npz"
            if not file.is_file():
                print(f"hidden states: block {number + 1} of {len(starts)}", flush=True)
                values = states_of(
                    [rows[i] for i in block],
                    pad_id=self.model_tokenizer.pad_id,
                    batch_size=self.sizes.batch_of(rows[block[-1]]),
                )
                write_arrays(file, {"hidden": values.astype(np.float16)})
            values = read_arrays(file)["hidden"]
            if states is None:
                states = np.empty((len(rows), *values.shape[1:]), np.float16)
            states[block] = values
        return states


def in_twos(pairs: Sequence[Pair]) -> tuple[list[Pair], np.ndarray]:
    """Arrange the distinct responses to each prompt in rows of two, so that a response
    of several pairs is read once.

    Returns:
        The rows, the second response of which is a filler where it is one token long;
        and the place int [pairs, 2] of chosen and rejected among the responses
        [rows * 2].
    """
    by_prompt: dict[tuple, dict[tuple, int]] = {}
    for prompt, *responses in pairs:
        known = by_prompt.setdefault(tuple(prompt), {})
        for response in responses:
            known.setdefault(tuple(response), len(known))
    rows, first = [], {}
    for prompt, known in by_prompt.items():
        first[prompt] = 2 * len(rows)
        responses = [list(response) for response in known]
        responses += [responses[-1][-1:]] * (len(responses) % 2)
        rows += [
            (list(prompt), *two)
            for two in zip(responses[::2], responses[1::2], strict=True)
        ]
    place = [
        [first[tuple(p)] + by_prompt[tuple(p)][tuple(r)] for r in responses]
        for p, *responses in pairs
    ]
    return rows, np.array(place, int).reshape(-1, 2)


def by_length(rows: Sequence[Pair]) -> np.ndarray:
    """Return the order int [rows] from the shortest row to the longest."""
    return np.argsort([sum(map(len, row)) for row in rows], kind="stable")


def longer(unit: Unit, work: Workplace, train: np.ndarray, test: np.ndarray):
    return np.subtract(*work.data.lengths[test].T)


def bag(unit: Unit, work: Workplace, train: np.ndarray, test: np.ndarray):
    pairs = work.own_pairs
    readable = [i for i in test if i in pairs]
    margins = np.zeros(len(work.data.sets))
    margins[readable] = bag_of_words_margins(
        [pairs[i] for i in train if i in pairs],
        [pairs[i] for i in readable],
        longest=2 if unit.arm == "bigrams" else 1,
    )
    return margins[test]


def frozen(unit: Unit, work: Workplace, train: np.ndarray, test: np.ndarray):
    hidden = work.hidden
    train = train[~np.isnan(hidden[train]).any(axis=(1, 2))]
    features = hidden[train].astype(np.float32)
    mean, std = features.mean(axis=(0, 1)), features.std(axis=(0, 1)) + 1e-6
    fit = functools.partial(fit_head, regularisation=unit.regularisation)
    features = (features - mean) / std
    ridge = choose_ridge(features, work.data.conversation[train], fit)
    head = np.asarray(fit(features, np.ones(len(features), np.float32), ridge=ridge))
    difference = np.subtract(*np.moveaxis(hidden[test].astype(np.float32), 1, 0))
    return np.nan_to_num((difference / std) @ head)  # 0 for what is too long


def trained(unit: Unit, work: Workplace, train: np.ndarray, test: np.ndarray):
    """Train a reward model by its stage, from the pretrained model or from random
    weights; score the test pairs."""
    folder = work.cache / "runs" / unit.name
    is_pretrained = unit.arm == "trained"
    comparisons = work.data.comparisons
    own = test[work.data.is_own[test]]
    for name, rows in (("comparisons", train), ("comparisons_test", own[:REPORTED])):
        write_records(folder / "data" / f"{name}.jsonl", [comparisons[i] for i in rows])
    _ = work.own_tokenizer  # the stage finds it in the data folder
    copy_tokenizer(work.cache / "tokenizer", folder / "data" / "tokenizer")
    config = reward_config.get_config("hh")
    if is_pretrained:
        config.init_from = work.model
        config.update_from_flattened_dict(PRETRAINED)
    config.update_from_flattened_dict(work.sizes.overrides)
    config.data.path = str(folder / "data")
    config.score_regularisation = unit.regularisation
    reward.run(config, str(folder / "run"))

    model = weights.load_model(folder / "run")
    pairs = work.model_pairs if is_pretrained else work.own_pairs
    tokenizer = work.model_tokenizer if is_pretrained else work.own_tokenizer
    readable = [i for i in test if i in pairs]
    rows, place = in_twos([pairs[i] for i in readable])
    order, scores = by_length(rows), np.empty((len(rows), 2), np.float32)
    for start in range(0, len(rows), work.sizes.block):
        block = order[start : start + work.sizes.block]
        scores[block] = score_pairs(
            model,
            [rows[i] for i in block],
            pad_id=tokenizer.pad_id,
            multiple=WIDTHS,
            batch_size=work.sizes.batch_of(rows[block[-1]]),
        )
    margins = np.zeros(len(work.data.sets))
    margins[readable] = np.subtract(*scores.ravel()[place].T)
    return margins[test]


ARMS = {
    "longer": longer,
    "bag": bag,
    "bigrams": bag,
    "random": trained,
    "frozen": frozen,
    "trained": trained,
}
NEED_MODEL = ("frozen", "trained")


# The run


def run(work: Workplace, arms: Sequence[str]) -> None:
    """Do the units of work that the cache lacks."""
    for unit in units(arms, work.sizes):
        file = margins_file(work.cache, unit)
        if not file.is_file():
            print(f"{unit.name} begins", flush=True)
            train, test = rows_of(unit, work.data)
            margins = np.full(len(work.data.sets), np.nan)
            margins[test] = ARMS[unit.arm](unit, work, train, test)
            write_arrays(file, {"margins": margins})
            shutil.rmtree(work.cache / "runs" / unit.name, ignore_errors=True)


def margins_file(cache: Path, unit: Unit) -> Path:
    """Return the file of a unit's margins float [N], NaN for pairs it did not judge."""
    return cache / "margins" / f"{unit.name}.npz"


def check_cache(work: Workplace) -> None:
    """Write what the cache is made from, or compare it with that.

    Raises:
        ValueError: the cache was made from other data, another model or other limits.
    """
    digest = hashlib.sha256()
    for c, name in zip(work.data.comparisons, work.data.sets, strict=True):
        record = [str(name), c.prompt.id, c.chosen, c.rejected]
        digest.update(json.dumps(record).encode())
    limits = ("vocab_size", "max_prompt_tokens", "max_response_tokens", "block")
    made_from = {"data": digest.hexdigest()[:16]}
    made_from |= {name: getattr(work.sizes, name) for name in limits}
    made_from["model"] = fingerprint(work.model) if work.model else ""
    file = work.cache / "made_from.json"
    before = read_json(file) if file.is_file() else {"model": ""}
    made_from["model"] = made_from["model"] or before["model"]
    for name, value in made_from.items():
        if before.get(name, value) != value and before[name] != "":
            raise ValueError(
                f"{work.cache} was made from another {name} ({before[name]}, now "
                f"{value}): name another --cache, or restore the first."
            )
    write_json(file, made_from)


def results_so_far(work: Workplace) -> dict[str, np.ndarray]:
    """Return the margins float [folds done, N] of each variant with a finished fold."""
    done: dict[str, list[np.ndarray]] = {}
    for unit in units(ARMS, work.sizes):
        file = margins_file(work.cache, unit)
        if file.is_file():
            done.setdefault(unit.variant, []).append(read_arrays(file)["margins"])
    return {name: np.stack(folds) for name, folds in done.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--language", choices=SETS, default="en")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    flags = parser.parse_args(arguments)
    without = [arm for arm in flags.arms if arm in NEED_MODEL and not flags.model]
    if without and not flags.report:
        parser.error(f"the arms {', '.join(without)} need --model=FOLDER")
    keep_freed_memory()
    try:
        data = read_data(flags.data, flags.language)
        work = Workplace(data, flags.cache.absolute(), flags.model, Sizes())
        check_cache(work)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not flags.report:
        run(work, flags.arms)
    name = "human_rewards" + ("" if flags.language == "en" else f"_{flags.language}")
    human_rewards_report.write(flags.results / name, data, results_so_far(work))


if __name__ == "__main__":
    main()
