"""Label Studio and Argilla: export of tasks, and import of answers in their format."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from rlhf_jax.data.annotation import argilla, label_studio
from rlhf_jax.data.annotation.answers import Answer, comparisons
from rlhf_jax.data.reading.json_lines import RecordError
from rlhf_jax.data.records import CRITERIA

CHOICES = ("1", "tie", "2")


def chosen(number: int) -> dict[str, str]:
    """Return an annotator's choice on the screen at the task of this number."""
    return {
        name: CHOICES[(number + i) % 3] for i, name in enumerate((*CRITERIA, "overall"))
    }


def expected(tasks, annotator, **fields) -> list[Answer]:
    answers = []
    for number, task in enumerate(tasks.values()):
        seen = {name: task.seen(choice) for name, choice in chosen(number).items()}
        overall = seen.pop("overall")
        answers.append(Answer(task.id, annotator, overall, seen, **fields))
    return answers


def label_studio_annotation(number, **fields):
    side = {"1": "left", "2": "right", "tie": "tie"}
    picks = {name: side[choice] for name, choice in chosen(number).items()}
    overall = picks.pop("overall")
    result = [
        {
            "id": f"r{i}",
            "from_name": name,
            "to_name": "conversation",
            "type": "choices",
            "origin": "manual",
            "value": {"choices": [pick]},
        }
        for i, (name, pick) in enumerate(picks.items())
    ]
    if overall == "tie":
        result.append({**result[0], "from_name": "tie", "value": {"choices": ["tie"]}})
    else:
        # A Pairwise is a region of itself.
        names = {"from_name": "overall", "to_name": "overall", "type": "pairwise"}
        result.append({"id": "p", **names, "value": {"selected": overall}})
    return {
        "id": number,
        "completed_by": 7,
        "result": result,
        "was_cancelled": False,
        "lead_time": 12.5,
        "created_at": "2026-01-02T03:04:05.678Z",
        **fields,
    }


def through_json(value):
    return json.loads(json.dumps(value))


def filled_in_label_studio(tasks, **fields):
    exported = through_json(label_studio.export_tasks(tasks.values()))
    for number, record in enumerate(exported):
        record["id"] = 100 + number
        record["annotations"] = [label_studio_annotation(number, **fields)]
        record["predictions"] = []
    return exported


def filled_in_argilla(tasks, user="0b1de4b4-6b27-4f5a-9f55-3c6a2c5d0c5b"):
    exported = through_json(argilla.export_tasks(tasks.values()))
    for number, record in enumerate(exported):
        record |= {"status": "completed", "_server_id": f"s{number}"}
        record["suggestions"] = {"overall": {"value": "1", "score": 1.0, "agent": "m"}}
        record["responses"] = {
            name: [{"value": value, "user_id": user}]
            for name, value in chosen(number).items()
        }
    return exported


def test_a_round_trip_through_label_studio_keeps_every_choice(make_queue):
    tasks = make_queue()
    answers, left_out = label_studio.import_answers(
        filled_in_label_studio(tasks), tasks
    )
    assert answers == expected(
        tasks, "7", seconds=12.5, time="2026-01-02T03:04:05.678Z"
    )
    assert not left_out
    assert len(comparisons(tasks, answers)) == len(tasks)


def test_a_round_trip_through_argilla_keeps_every_choice(make_queue):
    tasks = make_queue()
    answers, left_out = argilla.import_answers(filled_in_argilla(tasks, "ann"), tasks)
    assert answers == expected(tasks, "ann")
    assert not left_out
    assert len(comparisons(tasks, answers)) == len(tasks)


@pytest.mark.parametrize("tool", [label_studio, argilla])
def test_what_measures_annotators_does_not_go_out(tool, make_queue):
    tasks = make_queue()
    text = json.dumps(tool.export_tasks(tasks.values()))
    for word in ("known", "repeat", "sample", "shown"):
        assert word not in text


def test_the_labelling_interface_names_what_the_tasks_hold(make_queue):
    root = ElementTree.fromstring(label_studio.labeling_config(CRITERIA))
    texts = {node.get("name"): node.get("value") for node in root.iter("Text")}
    data = label_studio.export_tasks(make_queue().values())[0]["data"]
    assert {value.lstrip("$") for value in texts.values()} == {*data} - {"task"}
    assert root.find("Pairwise").get("toName") == "response_1,response_2"
    for node in root.iter("Choices"):
        assert node.get("toName") in texts
    names = {node.get("name") for node in root.iter("Choices")}
    assert names == {*CRITERIA, "tie"}


def test_argillas_settings_name_what_the_records_hold(make_queue):
    made = argilla.settings(CRITERIA, guideline="Be fair.", annotators_per_task=3)
    record = argilla.export_tasks(make_queue().values())[0]
    assert [field["name"] for field in made["fields"]] == [*record["fields"]]
    assert [q["name"] for q in made["questions"]] == [*CRITERIA, "overall"]
    assert made["distribution"]["min_submitted"] == 3


def test_label_studios_skips_ties_and_half_answers(make_queue):
    tasks = make_queue()
    exported = filled_in_label_studio(tasks)
    left = {"from_name": "overall", "type": "pairwise", "value": {"selected": "left"}}
    tie = {"from_name": "tie", "type": "choices", "value": {"choices": ["tie"]}}
    other = {"from_name": "note", "type": "textarea", "value": {"text": ["Hm."]}}
    exported[0]["annotations"][0] |= {"was_cancelled": True, "result": []}
    exported[1]["annotations"][0]["result"] = [left, tie]
    exported[2]["annotations"][0]["result"] = [other]
    exported[3]["annotations"][0]["result"] = [left, other]
    exported[4]["annotations"] = []
    who = {"id": 3, "email": "ann@lab.org"}
    exported[5]["annotations"][0]["completed_by"] = who
    exported[5]["annotations"].append(label_studio_annotation(5, completed_by=who))
    answers, left_out = label_studio.import_answers(exported, tasks)
    by_task = {answer.task: answer for answer in answers}
    ids = [*tasks]
    assert by_task[ids[0]].preference == "skip"
    assert by_task[ids[3]].preference == tasks[ids[3]].seen("1")
    assert by_task[ids[3]].criteria is None
    assert by_task[ids[5]].annotator == "ann@lab.org"
    assert not {ids[1], ids[2], ids[4]} & set(by_task)
    assert left_out == {
        "both a response and a tie": 1,
        "no overall choice": 1,
        "annotated again by the same annotator": 1,
    }
    assert len(comparisons(tasks, answers)) == len(tasks) - 4


def test_several_users_of_argilla_are_kept_apart(make_queue):
    tasks = make_queue()
    record = filled_in_argilla(tasks)[0]
    record["responses"] = {
        "overall": [
            {"value": "1", "user_id": "ann"},
            {"value": "tie", "user_id": "bob"},
        ],
        "safety": [{"value": "2", "user_id": "bob"}, {"value": "2", "user_id": "cy"}],
    }
    answers, left_out = argilla.import_answers([record], tasks)
    task = tasks[record["id"]]
    assert set(map(repr, answers)) == {
        repr(Answer(task.id, "ann", task.seen("1"), None)),
        repr(Answer(task.id, "bob", "tie", {"safety": task.seen("2")})),
    }
    assert left_out == {"no overall choice": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r.pop("annotations"),
            "field 'annotations' must be a list, not null",
        ),
        (lambda r: r.pop("data"), "field 'task' is missing"),
        (lambda r: r["data"].update(task="x"), "field 'task' is 'x', which is not"),
        (lambda r: r["annotations"].append(3), r"'annotations\[1\]' must be an object"),
        (lambda r: r["annotations"][0].pop("result"), "'result' must be a list"),
        (lambda r: r["annotations"][0].pop("completed_by"), "must name the annotator"),
        (lambda r: r["annotations"][0].update(lead_time=-1), "'lead_time' must be sec"),
        (
            lambda r: r["annotations"][0]["result"][0].update(
                value={"choices": ["up"]}
            ),
            "field 'helpfulness' must be one of",
        ),
        (
            lambda r: r["annotations"][0]["result"][0]["value"].update(choices=3),
            "field 'choices' must be a list of texts",
        ),
    ],
)
def test_what_is_no_export_of_label_studio_is_named(change, message, make_queue):
    tasks = make_queue()
    exported = filled_in_label_studio(tasks)
    change(exported[1])
    with pytest.raises(RecordError, match=f"task 2 of the export: .*{message}"):
        label_studio.import_answers(exported, tasks)


def test_a_record_that_stands_twice_in_argillas_export_is_named(make_queue):
    tasks = make_queue()
    exported = filled_in_argilla(tasks)
    exported.insert(5, exported[2])
    with pytest.raises(RecordError, match="record 6 of the export: field 'id' is"):
        argilla.import_answers(exported, tasks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 3}, "field 'id' must be text, not number"),
        ({"id": "x"}, "field 'id' is 'x', not one of the tasks"),
        ({"responses": []}, "field 'responses' must be an object"),
        ({"responses": {"overall": "1"}}, "field 'overall' must be a list"),
        ({"responses": {"overall": [{"value": "1"}]}}, "field 'user_id' is missing"),
        ({"responses": {"overall": [{"value": 1}]}}, "field 'value' must be text"),
        ({"responses": {"overall": [{"value": "3"}]}}, "field 'value' must be one of"),
    ],
)
def test_what_is_no_export_of_argilla_is_named(change, message, make_queue):
    tasks = make_queue()
    exported = filled_in_argilla(tasks)
    exported[1] |= change
    with pytest.raises(RecordError, match=f"record 2 of the export: {message}"):
        argilla.import_answers(exported, tasks)


@pytest.mark.parametrize("tool", [label_studio, argilla])
@pytest.mark.parametrize("value", [None, 3, "x", {}, [None], [[]], [3]])
def test_any_other_json_is_refused(tool, value, make_queue):
    with pytest.raises(RecordError):
        tool.import_answers(value, make_queue())
