"""Argilla's records (version 2): tasks out, answered records in.

`settings` is for `rg.Settings.from_json`, `export_tasks` for
`dataset.records.from_json`, and `import_answers` reads what `dataset.records.to_json`
writes (https://docs.argilla.io/latest/reference/argilla/records/records/). That format
holds neither the time an answer took nor whether it is a draft: have drafts submitted.
What measures the annotators (known answers, repeats) does not go out: a record that
comes back is known by its id.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_jax.data.annotation.answers import Answer
from rlhf_jax.data.annotation.tasks import Task, transcript
from rlhf_jax.data.reading import fields
from rlhf_jax.data.reading.json_lines import RecordError, checked
from rlhf_jax.data.records import CRITERIA

LABELS = {"1": "Response 1", "2": "Response 2", "tie": "Tie"}


def settings(
    criteria: Sequence[str], *, guideline: str, annotators_per_task: int
) -> dict[str, Any]:
    """The dataset's settings: a question overall and for each criterion."""
    return {
        "guidelines": guideline,
        "fields": [
            {
                "name": name,
                "title": name.replace("_", " ").title(),
                "required": True,
                "settings": {"type": "text", "use_markdown": False},
            }
            for name in ("conversation", "response_1", "response_2")
        ],
        "questions": [
            {
                "name": name,
                "title": f"Which response is better: {name}?",
                "required": True,
                "settings": {
                    "type": "label_selection",
                    "options": [{"value": v, "text": t} for v, t in LABELS.items()],
                },
            }
            for name in (*criteria, "overall")
        ],
        "metadata": [],
        "vectors": [],
        "allow_extra_metadata": False,
        "distribution": {"strategy": "overlap", "min_submitted": annotators_per_task},
    }


def export_tasks(tasks: Iterable[Task]) -> list[dict[str, Any]]:
    """Records to log into a dataset."""
    return [
        {
            "id": task.id,
            "fields": {
                "conversation": transcript(task.prompt),
                "response_1": task.shown[0],
                "response_2": task.shown[1],
            },
            "metadata": {},
            "suggestions": {},
            "responses": {},
            "vectors": {},
        }
        for task in tasks
    ]


def import_answers(
    exported: Any, tasks: dict[str, Task]
) -> tuple[list[Answer], Counter]:
    """The answers in a dataset's records, and how many were left out, by reason.

    Suggestions are a model's, not a person's, and are never taken.

    Raises:
        RecordError: no such export, or not of these tasks; says where.
    """
    if not isinstance(exported, list):
        raise RecordError("The export must be a list of records (records.to_json).")
    answers, left_out = {}, Counter()
    for number, row in enumerate(exported, start=1):
        try:
            record = checked(row)
            name = fields.text(record, "id")
            if name not in tasks:
                raise RecordError(f"is {name[:80]!r}, none of the tasks.", "id")
            for user, chosen in _by_user(record, tasks[name]).items():
                overall = chosen.pop("overall", None)
                if overall is None:
                    left_out["no overall choice"] += 1
                elif (name, user) in answers:
                    raise RecordError(f"is {name[:80]!r} as in another record.", "id")
                else:
                    answer = Answer(name, user, overall, chosen or None)
                    answers[name, user] = answer
        except RecordError as error:
            raise RecordError(f"record {number} of the export: {error}") from None
    return list(answers.values()), left_out


def _by_user(record: dict, task: Task) -> dict[str, dict[str, str]]:
    """What each user chose: {user: {question: "a", "b" or "tie"}}."""
    found = defaultdict(dict)
    responses = record.get("responses")
    if not isinstance(responses, dict):
        raise RecordError(
            "must be an object; export with records.to_json.", "responses"
        )
    for question in {*CRITERIA, "overall"} & responses.keys():
        for response in fields.objects(responses, question):
            value = fields.choice(response, "value", tuple(LABELS))
            found[fields.text(response, "user_id")][question] = task.seen(value)
    return found
