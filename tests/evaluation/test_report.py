"""The report of made-up runs: what is in it, and how a browser shows it."""

import json
import re
import shutil
from pathlib import Path

import pytest

from rlhf_jax.evaluation.report.conversations import differences
from rlhf_jax.evaluation.report.page import write_report
from rlhf_jax.evaluation.report.plots import curve, group_curves
from rlhf_jax.evaluation.report.runs import find_runs, group_runs
from rlhf_jax.evaluation.report.tables import last

ROOT = Path(__file__).parents[2]

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title=1\">"
    "</section> {{ 7 * 7 }} https://example.com/x.png"
)


def write_run(folder: Path, stage: str, *, seed=0, metrics=(), summary=None, **config):
    folder.mkdir(parents=True)
    record = {"config": {"stage": stage, "seed": seed, **config}}
    (folder / "config.json").write_text(json.dumps(record))
    if metrics:
        lines = "".join(json.dumps(line) + "\n" for line in metrics)
        (folder / "metrics.jsonl").write_text(lines)
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def steps(slope, count=20):
    return [
        {
            "step": i,
            "objective/kl": 0.1 * i,
            "objective/scores": slope * i,
            "eval/quality": 2 * slope * i if i % 5 == 0 else None,
            "response/length_mean": 20 + i,
            "tokens_per_second": 100.0,
        }
        for i in range(1, count + 1)
    ]


def model(name, quality, net=None):
    bounds = {"mean": quality, "low": quality - 0.3, "high": quality + 0.3}
    row = {"checkpoint": name, "quality": bounds, "length": 20.0, "kl": quality - 2}
    if net is not None:
        versus = {"win": 0.5, "tie": 0.25, "lose": 0.25, "net": net}
        versus |= {"net_low": net - 0.1, "net_high": net + 0.1}
        row["against_baseline"] = versus
    return row


@pytest.fixture
def runs(tmp_path):
    """Two strengths of PPO over two seeds, and an evaluation a seed."""
    for seed in (0, 1):
        world = tmp_path / f"seed{seed}"
        for kl in (0.01, 0.1):
            write_run(
                world / f"ppo_{kl}",
                "ppo",
                seed=seed,
                metrics=steps(1 + seed + kl),
                summary={},
                kl_coef=kl,
                init_from=str(world / "sft"),
            )
        models = {"sft": model(f"sft {seed}", 2.0), "ppo": model(f"ppo {seed}", 3, 0.3)}
        summary = {"models": models, "judge": "testbed", "baseline": "sft"}
        folder = write_run(world / "evaluate", "evaluate", seed=seed, summary=summary)
        for name, text in (("sft", "A plain answer."), ("ppo", f"A good {HOSTILE}")):
            answer = {"id": "p", "intent": "poem", "prompt": f"Say {HOSTILE}"}
            answer |= {"response": text, "quality": 2.0, "kl": 0.1, "tokens": len(text)}
            (folder / f"answers_{name}.jsonl").write_text(json.dumps(answer) + "\n")
    return tmp_path


def page(folder, **fields):
    return write_report([folder], folder / "out.html", form="html", title="", **fields)


def test_seeds_are_one_run_and_other_configs_are_others(runs):
    found, notes = find_runs([runs])
    groups = {group.label: len(group.runs) for group in group_runs(found)}
    assert groups == {"ppo_0.01": 2, "ppo_0.1": 2, "evaluate": 2}
    assert notes == []


def test_the_page_holds_everything_that_there_is(runs):
    calibration = {"expected_error": 0.02, "bins": []}
    calibration["bins"] = [{"confidence": 0.6, "accuracy": 0.62, "pairs": 90}]
    folder = write_run(runs / "seed0" / "reward", "reward", metrics=[], summary={})
    (folder / "evaluation").mkdir()
    report = json.dumps({"calibration": calibration})
    (folder / "evaluation" / "report.json").write_text(report)
    text = page(runs)
    for title in (
        "Models",
        "Runs",
        "Quality, length, reliability",
        "Training: ppo",
        "Conversations",
        "Config differences",
    ):
        assert f"<h2>{title}</h2>" in text, title
    for title in (
        "Quality against KL",
        "Length of responses",
        "Reliability of the reward model",
        "Score against KL",
        "True quality against KL",
        "Length of responses, tokens",
    ):
        assert f">{title}</text>" in text, title
    assert text.count("<svg") == 3 + 2 + 5
    assert '<th scope="row">kl_coef</th>\n<td>0.01</td>\n<td>0.1</td>' in text
    assert "+30.0%" in text


def test_what_was_measured_once_is_a_number_and_no_plot(runs):
    lines = [{"step": 1100, "eval/accuracy": 0.6914, "loss/reward": 0.5}]
    write_run(runs / "reward", "reward", metrics=lines, summary={})
    text = page(runs)
    assert "<li>Held-out pairs in order, reward, step 1,100: <b>0.6914</b></li>" in text
    assert "Held-out pairs in order</text>" not in text


def test_over_optimisation_is_seen_where_a_judge_watched(runs):
    lines = [
        {
            "step": 8 * i,
            "watch/scores": float(i),
            "watch/judge_scores": judge,
            "watch/length": 1 + 0.2 * i,
            "watch/over_optimised": float(judge < 0),
        }
        for i, judge in enumerate([0.0, 0.6, 0.8, -0.4, -0.9])
    ]
    assert "Over-optimisation" not in page(runs)
    write_run(runs / "watched", "ppo", metrics=lines, summary={})
    text = page(runs)
    plot = text[: text.index(">Over-optimisation, held-out prompts</text>")]
    plot = text[plot.rindex("<svg") :]
    plot = plot[: plot.index("</svg>")]
    for label in ("score learned from", "judge", "length (right)", "over-optimised"):
        assert f">{label}</text>" in plot
    # Dashes of the judge and of the length, and a cross at each of the two warnings,
    # each once more in the legend.
    assert plot.count("stroke-dasharray") == 2 * 2
    assert len(re.findall('<use [^>]*"fill: #', plot)) == 2 + 1


def test_speed_is_a_median_that_no_single_step_moves(runs):
    lines = steps(1, count=240)
    for line in lines:
        line["tokens_per_second"] = 400_000.0 if line["step"] % 8 == 0 else 11_570.0
    write_run(runs / "fast", "ppo", metrics=lines, summary={}, kl_coef=9)
    groups = [g for g in group_runs(find_runs([runs])[0]) if g.label == "fast"]
    (found,) = group_curves(groups, "tokens_per_second", {"fast": 0})
    assert len(found.x) == 24 and set(found.mean) == {11_570.0}
    assert "| 11,570 |" in write_report([runs / "fast"], None, form="md", title="")
    lines[0]["tokens_per_second"] = 2e6
    groups = [g._replace(runs=[g.runs[0]._replace(metrics=lines * 3)]) for g in groups]
    assert last(groups[0].runs[0], "tokens_per_second") == 11_570


def test_what_is_known_of_an_answer_is_said_in_words(runs):
    folder = runs / "seed0" / "evaluate"
    path = folder / "answers_ppo.jsonl"
    for result, word in ((1.0, "won"), (-1, "lost"), (0.0, "tied")):
        line = json.loads(path.read_text().splitlines()[0]) | {"result": result}
        path.write_text(json.dumps(line) + "\n")
        assert f"<small>{word}, quality 2.00, KL 0.10</small>" in page(runs)


BROKEN = [
    ("seed0/evaluate/summary.json", {"models": {"sft": {"kl": 0.1}}}),
    ("seed0/evaluate/summary.json", {"step": 3}),
    ("seed0/evaluate/summary.json", []),
    ("seed0/evaluate/summary.json", {"models": [], "judge": "x", "baseline": "y"}),
    (
        "seed0/evaluate/summary.json",
        {"models": {"a": {"kl": 0, "quality": 3}}, "judge": "x", "baseline": "a"},
    ),
    ("seed0/ppo_0.1/evaluation/report.json", {}),
    ("seed0/ppo_0.1/evaluation/report.json", {"calibration": {"bins": []}}),
    (
        "seed0/ppo_0.1/evaluation/report.json",
        {"calibration": {"expected_error": 0.1, "bins": [{"accuracy": 1}]}},
    ),
]


@pytest.mark.parametrize("form", ["html", "md"])
@pytest.mark.parametrize(("name", "content"), BROKEN)
def test_a_file_of_something_else_is_named(runs, name, content, form):
    path = runs / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    if form == "md" and "report.json" in name:
        assert write_report([runs], None, form=form, title="")  # has no plots
        return
    with pytest.raises(ValueError, match=rf"{name} is not the (report|summary)"):
        write_report([runs], None, form=form, title="")


def test_lines_of_something_else_are_passed_over(runs):
    for name, line in (
        ("ppo_0.1/metrics.jsonl", {"step": "three", "objective/kl": {}}),
        ("ppo_0.1/samples.jsonl", {"prompt": ["a"], "step": None}),
        ("evaluate/answers_ppo.jsonl", {"id": "p", "response": 3, "kl": "?"}),
    ):
        with (runs / "seed0" / name).open("a") as file:
            file.write(json.dumps(line) + "\n")
    assert "Quality against KL" in page(runs)


def test_what_models_say_is_text(runs):
    text = page(runs)
    assert "<script" not in text and "<img" not in text
    assert "&lt;script&gt;" in text and "{{ 7 * 7 }}" in text


def test_nothing_is_fetched(runs):
    text = (
        page(runs).replace("https://example.com", "").replace("http://www.w3.org", "")
    )
    assert "http" not in text and '<link rel="icon" href="data:,">' in text


def test_markdown_has_the_tables(runs):
    text = write_report([runs], None, form="md", title="Mine")
    assert text.startswith("# Mine\n")
    assert "| ppo | 2 | 50% / 25% / 25% | 3.00 | +30.0% | 20.0 | 1.00 |" in text
    assert "| kl_coef | 0.01 | 0.1 |" in text


def test_runs_that_are_open_doubled_or_broken_are_said_to_be(runs):
    write_run(runs / "open", "ppo", metrics=steps(1, count=3), kl_coef=7)
    write_run(runs / "empty", "dpo")
    shutil.copytree(runs / "open", runs / "zzz")
    with (runs / "open" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "objective/kl"')
    _, notes = find_runs([runs, runs / "open"])
    assert sorted(notes) == [
        "empty is not finished: 0 steps.",
        "open is not finished: 3 steps.",
        "zzz is left out: config and seed are open's.",
    ]
    assert "zzz is left out" in page(runs)


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"No run in .* or below"):
        find_runs([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*missing"):
        find_runs([tmp_path / "missing"])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        find_runs([tmp_path])


def test_a_curve_is_the_mean_of_its_seeds():
    found = curve([[(1, 1.0), (2, 2.0)], [(2, 4.0)]], colour=0, label="")
    assert (found.x, found.mean, found.low, found.high) == ([2], [3], [2], [4])
    # The ends of epochs, which differ: in order.
    found = curve([[(4, 1.0), (9, 2.0)], [(4, 1.0), (7, 4.0)]], colour=0, label="")
    assert found.x.tolist() == [4, 8] and found.mean.tolist() == [1, 3]
    assert curve([[], []], colour=0, label="") is None


def test_differences_are_by_words():
    old, new = "It is a good small cat.", "It is a bad small cat. Bye."
    assert differences(old, new) == [
        ("same", "It is a "),
        ("removed", "good "),
        ("added", "bad "),
        ("same", "small "),
        ("removed", "cat."),
        ("added", "cat. Bye."),
    ]
    assert differences("你好吗", "你好")[-1] == ("removed", "吗")
    assert differences("one two", "three four") == [("added", "three four")]


def test_a_browser_shows_it(runs, tmp_path):
    """Wide, on a phone and in the dark: no errors, no requests, no sideways scrolling;
    the screenshots are in pytest's temporary folder."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs chromium")
    page(runs)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        backgrounds = {}
        for name, width, scheme in (
            ("wide", 1280, "light"),
            ("phone", 390, "light"),
            ("dark", 1280, "dark"),
        ):
            said = []
            tab = browser.new_page(
                viewport={"width": width, "height": 800}, color_scheme=scheme
            )
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            tab.on("request", lambda request, said=said: said.append(request.url))
            tab.goto((runs / "out.html").as_uri())
            assert [x for x in said if not x.startswith(("file:", "data:"))] == [], name
            assert tab.title() == str(runs)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            script = "getComputedStyle(document.{}).{}".format
            backgrounds[name] = tab.evaluate(script("body", "backgroundColor"))
            ink = tab.evaluate(script('querySelector("svg text")', "fill"))
            assert ink == tab.evaluate(script("body", "color")), name
            tab.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        browser.close()
    assert backgrounds["wide"] != backgrounds["dark"]
