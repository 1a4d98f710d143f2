"""Where data comes from, and the folder it is laid out in.

Every stage reads one data folder:

    sft.jsonl            sft_test.jsonl             dialogues to imitate
    comparisons.jsonl    comparisons_test.jsonl     human comparisons
    prompts.jsonl        eval_prompts.jsonl         prompts to answer
    identity_probes.jsonl  json_probes.jsonl        (testbed) capabilities to keep
    tokenizer/

`open_data` makes it: from the synthetic testbed, from a folder in the hh-rlhf layout,
or takes one that is already laid out.
"""

from collections import Counter
from pathlib import Path

from absl import logging

from rlhf_jax.data.json_lines import scan_json_lines
from rlhf_jax.data.records import (
    Comparison,
    Dialogue,
    Prompt,
    RecordError,
    read_records,
    write_records,
)
from rlhf_jax.data.testbed import world
from rlhf_jax.data.testbed.annotators import AnnotatorConfig, make_annotators
from rlhf_jax.data.testbed.comparisons import write_demonstrated
from rlhf_jax.data.tokenizers import (
    Tokenizer,
    copy_tokenizer,
    has_tokenizer,
    load_tokenizer,
    train_tokenizer,
)

FOLDER = ("sft.jsonl", "sft_test.jsonl", "prompts.jsonl", "eval_prompts.jsonl")
HH_MARKS = ("\n\nHuman:", "\n\nAssistant:")


def open_data(config, workdir: Path) -> Path:
    """The data folder of a run: `config.path`, or `workdir/data` made from it.

    Args:
        config: path ("testbed", a laid-out folder, or a folder in the hh-rlhf layout),
            testbed (its settings), vocab_size (of a tokenizer trained here).

    Raises:
        FileNotFoundError: the folder is in neither layout; says what is missing.
        RecordError: a broken line; names file and line.
    """
    made = Path(workdir) / "data"
    if config.path == "testbed":
        if not (made / "tokenizer").is_dir():
            write_testbed(config, made)
    else:
        path = Path(config.path)
        if all((path / name).is_file() for name in FOLDER):
            return path
        if not (made / "tokenizer").is_dir():
            write_hh(path, made)
    if not (made / "tokenizer").is_dir():
        dialogues = read_records(made / "sft.jsonl", Dialogue)
        texts = [m["content"] for dialogue in dialogues for m in dialogue.messages]
        train_tokenizer(texts, config.vocab_size, made / "tokenizer")
    return made


def open_tokenizer(config, data: Path, init_from: str, workdir: Path) -> Tokenizer:
    """The run's tokenizer, copied into its workdir: `config.tokenizer` if given, else
    that of the model it starts from, else the data folder's."""
    places = [config.tokenizer] if config.tokenizer else []
    if init_from:
        places += [Path(init_from) / "tokenizer", Path(init_from)]
    places += [data / "tokenizer"]
    for place in map(Path, places):
        if has_tokenizer(place):
            target = Path(workdir) / "tokenizer"
            if not target.exists():
                copy_tokenizer(place, target)
            return load_tokenizer(place)
    raise FileNotFoundError(
        f"No tokenizer in any of {[str(p) for p in places]}: set data.tokenizer."
    )


def write_testbed(config, folder: Path) -> None:
    """Lay out the synthetic world of `config.testbed` and `config.annotators`."""
    testbed = world.TestbedConfig(**config.testbed)
    world.write(testbed, folder)
    annotators = make_annotators(AnnotatorConfig(**config.annotators))
    write_demonstrated(folder, annotators, testbed.seed)


def write_hh(path: Path, folder: Path) -> Counter:
    """Lay out a folder that holds train.jsonl[.gz] and test.jsonl[.gz] with the fields
    `chosen` and `rejected` (whole dialogues as text, as in Anthropic's hh-rlhf).

    Returns how many pairs were left out, by reason.
    """
    dropped = Counter()
    for split, suffix in (("train", ""), ("test", "_test")):
        file = _find(path, split)
        comparisons = []
        for number, record in scan_json_lines(file):
            try:
                if isinstance(record, RecordError):
                    raise record
                comparison, reason = hh_comparison(record, f"{split}-{number}")
            except RecordError as error:
                raise RecordError(f"{file}, line {number}: {error}") from None
            if reason:
                dropped[reason] += 1
            else:
                comparisons.append(comparison)
        if not comparisons:
            raise RecordError(f"{file} holds no usable pairs: {dict(dropped)}.")
        prompts = [c.prompt for c in comparisons]
        dialogues = [
            Dialogue((*c.prompt.messages, {"role": "assistant", "content": c.chosen}))
            for c in comparisons
        ]
        write_records(folder / f"sft{suffix}.jsonl", dialogues)
        write_records(folder / f"comparisons{suffix}.jsonl", comparisons)
        name = "prompts.jsonl" if split == "train" else "eval_prompts.jsonl"
        write_records(folder / name, prompts)
    logging.info("Pairs left out of %s: %s", path, dict(dropped))
    return dropped


def hh_comparison(record: dict, name: str) -> tuple[Comparison | None, str]:
    """A comparison from a record of hh-rlhf, or None and the reason it is unusable."""
    sides = []
    for field in ("chosen", "rejected"):
        text = record.get(field)
        if not isinstance(text, str):
            raise RecordError(f"field '{field}' must be text.")
        sides.append(_hh_messages(text))
    chosen, rejected = sides
    if chosen[:-1] != rejected[:-1]:
        return None, "prompts differ"
    for messages in sides:
        roles = [message["role"] for message in messages]
        if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
            return None, "roles do not alternate"
    if not chosen[-1]["content"] or not rejected[-1]["content"]:
        return None, "empty response"
    if chosen[-1] == rejected[-1]:
        return None, "identical responses"
    prompt = Prompt(id=name, messages=tuple(chosen[:-1]))
    return Comparison(prompt, chosen[-1]["content"], rejected[-1]["content"], "a"), ""


def _hh_messages(text: str) -> list[dict]:
    human, assistant = HH_MARKS
    messages = []
    for i, turn in enumerate(text.split(human)):
        if i == 0 and not turn.strip():
            continue  # what stands before the first mark
        question, *answers = turn.split(assistant)
        messages.append({"role": "user", "content": question.strip()})
        messages += [{"role": "assistant", "content": a.strip()} for a in answers]
    return messages


def _find(path: Path, split: str) -> Path:
    for name in (f"{split}.jsonl", f"{split}.jsonl.gz"):
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"data.path={str(path)!r} must be 'testbed', a folder with "
        f"{', '.join(FOLDER)}, or a folder with train.jsonl[.gz] and test.jsonl[.gz]; "
        f"{split}.jsonl[.gz] is missing"
        + ("." if path.is_dir() else ", and there is no such folder.")
    )
