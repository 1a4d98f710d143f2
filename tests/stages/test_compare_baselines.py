"""Baselines are compared on the scores that PPO would learn from."""

import json

import numpy as np
import pytest

from rlhf_jax.data.records import Response
from rlhf_jax.evaluation.gradient_variance import DRAWS, crossing, relative_variance
from rlhf_jax.stages import compare_baselines

LETTERS = """
def letters(prompts, responses):
    return [len(response.text) for response in responses]
"""


@pytest.fixture
def make(monkeypatch, model_folders, stage_config, tmp_path):
    """`make(lengths, greedy)`: a config whose policy answers with texts of these
    lengths, [prompts, samples], and greedily of those, [prompts]; answers of more than
    4 letters are cut."""

    def config(lengths, greedy, offset=0.0, **fields):
        def sample(*_, count, temperature, **__):
            rows = lengths if temperature else np.array(greedy)[:, None]
            assert rows.shape[1] == count
            return [
                [Response("a" * n, bool(n <= 4), [1] * n) for n in row] for row in rows
            ]

        monkeypatch.setattr(compare_baselines, "sample_candidates", sample)
        own = tmp_path / "own.py"
        own.write_text(LETTERS)
        rewards = f"{own}:letters=1.0"
        if offset:
            rewards += f",prompt_offset={offset}"
        return stage_config(
            "compare_baselines",
            policy=model_folders[0],
            rewards=rewards,
            num_prompts=len(lengths),
            samples_per_prompt=lengths.shape[1],
            **{"gradient_directions": 0} | fields,
        )

    return config


def test_the_report_is_of_the_scores_less_the_penalty(make, tmp_path, capsys):
    lengths = np.array([[1, 3, 2], [4, 3, 5], [2, 2, 1]])
    greedy = np.array([2, 3, 1])
    compare_baselines.run(make(lengths, greedy), str(tmp_path / "run"))
    report = json.loads((tmp_path / "run" / "summary.json").read_text())
    scores = lengths - 1.0 * (lengths > 4)  # missing_end_penalty is 1
    within = scores.var(axis=1, ddof=1).mean()
    between = scores.mean(axis=1).var(ddof=1) - within / 3
    assert report["within"] == pytest.approx(within)
    assert report["ratio"] == pytest.approx(between / within)
    assert report["ratio_low"] <= report["ratio"] <= report["ratio_high"]
    left = report["variance left"]
    assert left["none"] == pytest.approx(within + between)
    distance = (scores.mean(axis=1) - greedy).var(ddof=1) - within / 3
    assert left["greedy"] == pytest.approx(within + distance)
    assert left["leave-one-out of 3"] == pytest.approx(within * 1.5)
    intents = report["by intent"].values()
    assert sum(row["prompts"] for row in intents) == 3
    total = sum(row["prompts"] * row["mean"] for row in intents)
    assert total == pytest.approx(scores.mean(axis=1).sum())
    shown = capsys.readouterr().out
    assert (tmp_path / "run" / "baselines.md").read_text() in shown
    assert f"left by: {min(list(left)[:-1], key=left.get)}, " in shown
    assert f"from K = {report['least answers']} on" in shown
    order = [shown.index(f"| {name} |") for name in sorted(left, key=left.get)]
    assert order == sorted(order)


def test_scores_that_are_all_alike_end_the_run(make, tmp_path):
    config = make(np.full((3, 2), 2), [2, 2, 2])
    with pytest.raises(ValueError, match="score alike, for every prompt"):
        compare_baselines.run(config, str(tmp_path / "run"))


def test_an_offset_by_prompt_raises_the_variance_between_prompts_alone(make, tmp_path):
    lengths, greedy = np.tile([[1, 3, 2], [4, 3, 4]], (4, 1)), [2, 4] * 4
    reports = []
    for name, offset in (("plain", 0.0), ("offset", 9.0)):
        run = tmp_path / name
        compare_baselines.run(make(lengths, greedy, offset), str(run))
        reports.append(json.loads((run / "summary.json").read_text()))
    plain, offset = reports
    assert offset["within"] == pytest.approx(plain["within"], rel=1e-4)
    assert offset["between"] > 10 * plain["between"]
    for name in plain["variance left"].keys() - {"none"}:
        left = [report["variance left"][name] for report in reports]
        assert left[1] == pytest.approx(left[0], rel=1e-4), name
    assert offset["best"] != "none" and offset["least answers"] == 1


def test_gradients_are_of_the_first_samples_of_the_first_prompts(
    make, tmp_path, monkeypatch, capsys
):
    lengths = np.array([[1, 3, 2, 4, 2], [4, 3, 5, 1, 1], [2, 2, 1, 3, 4], [1] * 5])
    given = {}

    def fake(policy, answers, key, **options):
        given.update(options)
        rows = zip(answers.prompts, answers.prompt_ids, answers.responses, strict=True)
        given["rows"] = [(x.id, tuple(ids), len(y.tokens)) for x, ids, y in rows]
        return derivatives

    derivatives = np.random.default_rng(0).normal(size=(6, 3))
    monkeypatch.setattr(compare_baselines, "logprob_derivatives", fake)
    config = make(
        lengths,
        [2, 3, 1, 1],
        gradient_directions=3,
        gradient_prompts=3,
        gradient_ratios=(0.5, 1.0, 4.0),
        temperature=0.8,
    )
    compare_baselines.run(config, str(tmp_path / "run"))
    ids, tokens, counts = zip(*given["rows"], strict=True)
    assert counts == (1, 3, 4, 3, 2, 2)
    assert ids[::2] == ids[1::2] and len(set(ids)) == 3
    assert tokens[::2] == tokens[1::2] and len(set(tokens)) == 3
    assert (given["directions"], given["temperature"]) == (3, 0.8)
    assert given["batch_size"] * 5 <= config.batch_size or given["batch_size"] == 1
    report = json.loads((tmp_path / "run" / "summary.json").read_text())["gradient"]
    scores = (lengths - 1.0 * (lengths > 4))[:3]
    assert report["predicted"]["mean of 1"] == pytest.approx([4 / 3, 1.0, 0.4])
    expected = relative_variance(
        scores,
        np.array([2, 3, 1]),
        derivatives.reshape(3, 2, 3),
        np.random.default_rng(config.seed).standard_normal((DRAWS, 3)),
        config.gradient_ratios,
    )
    for name, values in expected.items():
        assert report["relative variance"][name] == pytest.approx(values, rel=1e-4)
    x = crossing(config.gradient_ratios, expected["mean of 4"])
    assert report["crossing"]["mean of 4"] == pytest.approx(x, rel=1e-4)
    text = capsys.readouterr().out
    below = text[text.index("The policy gradient of 6 answers along 3 ") :]
    mean = report["relative variance"]["mean of 1"][0]
    assert f"| 0.5 | {mean:.2f} (1.33) | " in below
    assert f"The mean of 4 lowers it from B / W = {x:.2f} [" in below
    assert all(
        len(line) <= 80 for line in below.split("compare_baselines:")[0].split("\n")
    )


def test_two_prompts_are_too_few_for_gradients(make, tmp_path):
    config = make(np.ones((3, 5), int), [1, 1, 1], gradient_directions=1)
    config.prompts = str(tmp_path / "two.jsonl")
    prompt = {"messages": [{"role": "user", "content": "2 + 2?"}]}
    lines = [json.dumps({"id": name} | prompt) for name in "ab"]
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="on 3 prompts or more; 2 of 2 is within"):
        compare_baselines.run(config, str(tmp_path / "run"))
